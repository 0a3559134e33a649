"""A function of tensors as one CUDA graph: no launch of a single kernel waits for Python."""
import torch


class Captured:
    """call(*tensors) -> tensors, as one CUDA graph: two warm-up calls make all buffers, the third is captured
    and replayed, and so is every further one.

    The next call overwrites what it returns. Where the capture fails, `tell` hears the cause, once, and from
    then on every call runs kernel by kernel.
    """

    def __init__(self, call, tell):
        self.call = call
        self.tell = tell
        self.failed = False
        self.graph = self.inputs = None

    def drop(self):
        """Forget the graph: the next call warms up again. What still runs on the device is waited for."""
        if self.graph:
            torch.cuda.synchronize()
        self.graph = self.inputs = None

    def __call__(self, *inputs):
        if self.failed:
            return self.call(*inputs)
        if self.inputs is None:
            self.inputs = [x.clone() for x in inputs]
            self.warm_up_left = 2
        for mine, new in zip(self.inputs, inputs):
            mine.copy_(new)
        if self.warm_up_left:
            self.warm_up_left -= 1
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                outputs = self.call(*self.inputs)
            torch.cuda.current_stream().wait_stream(stream)
            return outputs
        if self.graph is None:
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph):
                    self.outputs = self.call(*self.inputs)
            except RuntimeError as error:  # a capture computes nothing: this call is still to be done
                cause = error.__context__ or error  # the end of a capture raises again, and says less
                self.tell(f"steps without a CUDA graph, since {cause}")
                torch.cuda.set_stream(torch.cuda.default_stream())
                self.failed = True
                return self.call(*inputs)
            self.graph = graph
        self.graph.replay()
        return self.outputs
