"""How fast the losses are here, and what the kernels compile to.

    python -m kernels.bench [--json FILE]    times them against plain PyTorch and torch.compile
    python -m kernels.bench --compile        instructions, barriers, registers, spills; needs Triton, no GPU
    python -m kernels.bench --sweep          times the Laplacian kernel's variants on a GPU, names the fastest
"""
import argparse
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F

from kernels import backend, laplacian, laplacian_l1, laplacian_l1_with_grad, triplet, triplet_margin

# ---- compiling ---------------------------------------------------------------------------------------------

ARCHS = (80, 90, 100)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
CHOICES = "form terms maxnreg warps program".split()
COUNTS = "instructions barriers registers spill shared".split()
COLUMNS = ["kernel", "arch", "dtype", "layout", "levels", *CHOICES, *COUNTS]


def choices(launch):
    """The values of CHOICES."""
    program = "frame" if launch.frame else "plane"
    return launch.form, launch.terms, launch.maxnreg or "-", launch.warps, program


def worth_timing(dtype):
    """The Laplacian kernel's variants for a pred of this dtype, a target of bytes; the first is what runs."""
    default = laplacian._launch(64, dtype, torch.uint8)
    exact = (3,) if dtype == torch.float32 else (1, 2)
    return [default, *(x for x in laplacian._VARIANTS if x.terms in exact and x != default)]


def jobs(all_variants):
    """(kernel, dtype, layout, levels, launch): what training and evaluation launch, and its variants."""
    for dtype in DTYPES:
        default, *others = worth_timing(DTYPES[dtype])
        for kernel in ("laplacian_grad", "laplacian"):
            yield kernel, dtype, "last", 4, default
            if kernel == "laplacian_grad":
                yield kernel, dtype, "last", 3, default
            if all_variants:
                # Without a gradient, up is mean.
                launches = [x for x in others if x.form != "up" or kernel == "laplacian_grad"]
                yield from ((kernel, dtype, "last", 4, launch) for launch in launches)
                yield from ((kernel, dtype, "first", 4, launch) for launch in (default, *launches))
        yield "triplet_grad", dtype, "-", "-", None
        yield "triplet", dtype, "-", "-", None


def compile_one(name, dtype, layout, levels, launch, arch):
    """One line of the table, the values of COLUMNS; layout: where the channels come. It needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    op, grad = name.split("_")[0], name.endswith("_grad")
    pointer = "*" + dtype
    if op == "laplacian":
        kernel = laplacian._laplacian_kernel
        types = dict(pred=pointer, target="*u8", weight="*fp32", losses="*fp32", grad=pointer,
                     matrices="*fp16" if launch.terms == 1 else "*bf16")
        last = layout == "last"
        values = dict(C=3, PRED_LAST=last, TARGET_LAST=last, SIDE=64, LEVELS=levels, TERMS=launch.terms,
                      FORM=launch.form, FRAME=launch.frame, GRAD=grad)
        options = laplacian._options(launch, 64)
        chosen = choices(launch)
    else:
        kernel = triplet._triplet_kernel
        rows, block, warps = triplet.tiles(16, 50)
        types = dict(codes=pointer, weight="*fp32", losses="*fp32", grad=pointer, T="i32", D="i32",
                     margin="fp32", radius="i32", one_over_count="fp32")
        values = dict(ROWS=rows, BLOCK=block, GRAD=grad)
        options = dict(num_warps=warps, enable_fp_fusion=True)
        chosen = ("-", "-", "-", warps, "clip")
    pointers = [x for x in types if types[x].startswith("*")]
    attributes = {(kernel.arg_names.index(x),): [["tt.divisibility", 16]] for x in pointers}
    source = ASTSource(kernel, {**types, **dict.fromkeys(values, "constexpr")}, values, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    counted = counts(compiled.asm["cubin"])
    return [name, f"sm_{arch}", dtype, layout, levels, *chosen, *counted, compiled.metadata.shared]


def counts(cubin):
    """Of compiled code: instructions, barriers, registers of a thread, its bytes of stack (what spilled)."""
    import triton
    beside = Path(triton.__file__).parent / "backends/nvidia/bin"
    path = f"{beside}{os.pathsep}{os.environ.get('PATH', '')}"  # cuobjdump calls nvdisasm
    tool = shutil.which("cuobjdump", path=path)
    if tool is None:
        raise SystemExit("kernels.bench: no cuobjdump, neither in the triton package nor on the PATH")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        text = subprocess.run([tool, "-sass", "-res-usage", str(file)], env={**os.environ, "PATH": path},
                              capture_output=True, text=True, check=True).stdout
    code = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?([A-Z]\w*)", text, re.MULTILINE)
    instructions = sum(word != "NOP" for word in code)  # the end is filled up with NOP
    registers, stack = (int(re.search(rf"{word}:(\d+)", text)[1]) for word in ("REG", "STACK"))
    return instructions, code.count("BAR"), registers, stack


def compile_all(archs, kernels, all_variants):
    """Prints the table, a line as soon as it and those before it are known; returns it as a list of dicts."""
    if laplacian.triton is None:
        raise SystemExit("kernels.bench: --compile needs triton, which is not installed")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("kernels.bench: unset TRITON_INTERPRET: interpreted kernels cannot be compiled")
    line = ("{:<15} {:<6} {:<5} {:<6} {:>6} {:<8} {:>5} {:>7} {:>5} {:<7} "
            "{:>12} {:>8} {:>9} {:>5} {:>6}").format
    print(line(*COLUMNS), flush=True)
    todo = [(*job, arch) for arch in archs for job in jobs(all_variants) if job[0] in kernels]
    table = []
    with ProcessPoolExecutor() as pool:
        for row in pool.map(compile_one, *zip(*todo)):
            print(line(*row), flush=True)
            table.append(dict(zip(COLUMNS, row)))
    return table


# ---- what the kernels are timed against --------------------------------------------------------------------

def plain_laplacian(pred, target, levels=4):
    """laplacian_l1 as one would write it: padding, depthwise convolution, average pooling, autograd."""
    channels = pred.shape[1]
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=pred.device) / 16
    kernel = (taps[:, None] * taps).to(pred.dtype).expand(channels, 1, 5, 5)
    g = pred - (target.to(pred.dtype) / 127.5 - 1 if target.dtype == torch.uint8 else target)
    loss = 0
    for _ in range(levels):
        blurred = F.conv2d(F.pad(g, (2, 2, 2, 2), mode="replicate"), kernel, groups=channels)
        loss = loss + (g - blurred).abs().mean((1, 2, 3))
        g = F.avg_pool2d(blurred, 2)
    return (loss + g.abs().mean((1, 2, 3))).float()


def plain_triplet(codes, margin=2.0, radius=2):
    """triplet_margin as one would write it: all [B, T, T, T] triplets, autograd."""
    d = (codes[:, :, None] - codes[:, None]).square().sum(-1)
    index = torch.arange(codes.shape[1], device=codes.device)
    apart = (index[:, None] - index).abs()
    triplets = ((apart > 0) & (apart <= radius))[:, :, None] & (apart > radius)[:, None]
    hinge = F.relu(d[:, :, :, None] - d[:, :, None] + margin)
    return (hinge * triplets).float().sum((1, 2, 3)) / triplets.sum()


def with_backward(loss):
    """loss(x, y), then the gradient of its sum by x."""
    def run(x, *rest):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(loss(x, *rest).sum(), x)
    return run


# ---- timing ------------------------------------------------------------------------------------------------

WARM_UP = 0.2  # seconds: a GPU raises its clocks only once it works


def clock(run, buffers, device, repeats):
    """Seconds of run(*buffer): 20th percentile, median, 80th. Buffers take turns: none is in the cache."""
    turns = itertools.cycle(buffers)
    cuda = device.type == "cuda"
    started = time.perf_counter()
    while time.perf_counter() - started < WARM_UP:
        run(*next(turns))
        if cuda:
            torch.cuda.synchronize(device)
    seconds = []
    for _ in range(repeats):
        if cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run(*next(turns))
            end.record()
            seconds.append((start, end))
        else:
            start = time.perf_counter()
            run(*next(turns))
            seconds.append(time.perf_counter() - start)
    if cuda:
        torch.cuda.synchronize(device)
        seconds = [start.elapsed_time(end) / 1e3 for start, end in seconds]
    cuts = statistics.quantiles(seconds, n=10, method="inclusive")
    return cuts[1], cuts[4], cuts[7]


def rotating(make, size, cache):
    """Inputs of `size` bytes for clock, as many as pass twice the cache. make(k): k of each, stacked."""
    count = 2 * cache // size + 2
    return list(zip(*(stack.unbind() for stack in make(count))))


def cache_of(device):
    """Bytes of the GPU's L2; 32 MB stand for a CPU's."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 2 ** 25


def frames_to_time(n, dtype, device, last=True):
    """(pred, target of bytes) of n frames, as clock takes them; last: channels_last, as in training."""
    def make(count):
        shape = (count, n, 64, 64, 3) if last else (count, n, 3, 64, 64)
        pred = torch.randn(shape, device=device, dtype=dtype)
        target = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        return (x.permute(0, 1, 4, 2, 3) if last else x for x in (pred, target))

    return rotating(make, n * 3 * 64 * 64 * (dtype.itemsize + 1), cache_of(device))


def copy_bandwidth(device):
    """Bytes read and written per second by a large copy: the bound that the percentages refer to."""
    n = 2 ** 28 if device.type == "cuda" else 2 ** 24
    source, to = (torch.empty(n, dtype=torch.float32, device=device).fill_(1) for _ in range(2))
    return 8 * n / clock(lambda: to.copy_(source), [()], device, 20)[1]


def clock_graph(run, buffers, device, repeats):
    """As clock, of one CUDA graph with a run on each of the buffers: without what launches in Python cost."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(*buffers[0])
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = [run(*buffer) for buffer in buffers]  # kept: else each run would write over the last one's
    times = clock(graph.replay, [()], device, repeats)
    del outputs
    return tuple(seconds / len(buffers) for seconds in times)


def time_all(device):
    """Prints the measurements; returns them as a list of dicts."""
    cuda, rows = device.type == "cuda", []
    bandwidth = copy_bandwidth(device)
    print(f"copy bandwidth {bandwidth / 1e9:.1f} GB/s; microseconds: median (20th to 80th percentile); MB: "
          "what the pass must read and write")
    line = "{:<10} {:<16} {:<15} {:<17} {:>28} {:>9} {:>7} {:>7} {:>8}".format
    print(line("loss", "input", "provider", "pass", "microseconds", "MB", "GB/s", "of copy", "peak MB"))

    def measure(loss, shape, buffers, provider, passes, run, moved, timer=clock):
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        low, median, high = timer(run, buffers, device, 50 if cuda else 8)
        peak = None
        if cuda and timer is clock:  # a graph holds the outputs for all buffers
            peak = (torch.cuda.max_memory_allocated(device) - before) / 1e6
        rate = moved / median
        rows.append(dict(loss=loss, input=shape, provider=provider, passes=passes, median=median, p20=low,
                         p80=high, bytes=moved, bytes_per_second=rate, of_copy=rate / bandwidth,
                         peak_mb=peak))
        print(line(loss, shape, provider, passes, f"{median * 1e6:.1f} ({low * 1e6:.1f} to {high * 1e6:.1f})",
                   f"{moved / 1e6:.2f}", f"{rate / 1e9:.1f}", f"{rate / bandwidth:.1%}",
                   "-" if peak is None else f"{peak:.0f}"), flush=True)

    def providers(plain):
        yield "torch eager", plain
        if cuda:
            torch.compiler.reset()  # a new shape: after a few of them torch.compile would give up
            yield "torch.compile", torch.compile(plain, dynamic=False)

    ours = "triton" if cuda and backend(device) == "triton" else "this torch path"
    dtype = torch.bfloat16 if cuda else torch.float32
    for n in (16, 256, 4096) if cuda else (16, 128):
        shape = f"{n} x 3 x 64 x 64"
        buffers = frames_to_time(n, dtype, device)
        t = n * 3 * 64 * 64  # bytes of target
        p = t * dtype.itemsize  # and of pred
        forward = p + t
        both = 3 * p + 2 * t  # backward reads both again and writes pred's gradient
        with_grad = 2 * p + t
        ones = torch.ones(n, device=device)
        for provider, loss in providers(plain_laplacian):
            measure("laplacian", shape, buffers, provider, "forward", torch.no_grad()(loss), forward)
            measure("laplacian", shape, buffers, provider, "forward+backward", with_backward(loss), both)

        def fused(pred, target):
            return laplacian_l1_with_grad(pred, target, ones)

        alone = torch.no_grad()(laplacian_l1)
        measure("laplacian", shape, buffers, ours, "forward", alone, forward)
        measure("laplacian", shape, buffers, ours, "forward+backward", with_backward(laplacian_l1), both)
        measure("laplacian", shape, buffers, ours, "with_grad", fused, with_grad)
        if cuda:
            measure("laplacian", shape, buffers, ours, "forward, graph", alone, forward, clock_graph)
            measure("laplacian", shape, buffers, ours, "with_grad, graph", fused, with_grad, clock_graph)
    for b in (1, 64, 1024):
        for d in (50, 200):
            size, shape = b * 16 * d * 4, f"{b} x 16 x {d}"
            buffers = rotating(lambda k: [torch.randn(k, b, 16, d, device=device)], size, cache_of(device))
            for provider, loss in (*providers(plain_triplet), (ours, triplet_margin)):
                measure("triplet", shape, buffers, provider, "forward", torch.no_grad()(loss), size)
                both = with_backward(loss)
                measure("triplet", shape, buffers, provider, "forward+backward", both, 3 * size)
    return rows


SWEPT = (128, 4096)  # frames: what a step of training has, and what fills a GPU


def sweep(device):
    """Times the Laplacian kernel's variants in CUDA graphs, names the fastest of each case; list of dicts."""
    bandwidth = copy_bandwidth(device)
    columns = ["dtype", "layout", "gradient", "frames", *CHOICES]
    line = "{:<5} {:<6} {:<8} {:>6}   {:<8} {:>5} {:>7} {:>5} {:<7} {:>26} {:>7}".format
    print(f"copy bandwidth {bandwidth / 1e9:.1f} GB/s; microseconds: median (20th to 80th percentile)")
    print(line(*columns, "microseconds", "of copy"))
    table, winners = [], []
    for dtype, layout, gradient, n in itertools.product(DTYPES, ("last", "first"), ("yes", "no"), SWEPT):
        item = DTYPES[dtype].itemsize
        buffers = frames_to_time(n, DTYPES[dtype], device, layout == "last")
        weight = torch.ones(n, device=device) if gradient == "yes" else None
        want = laplacian._torch_path(*buffers[0], weight, 4)
        moved = n * 3 * 64 * 64 * (item + 1 + (item if gradient == "yes" else 0))
        times = {}
        for launch in worth_timing(DTYPES[dtype]):
            def run(pred, target):
                return laplacian._triton_path(pred, target, weight, 4, launch)

            case = (dtype, layout, gradient, n, *choices(launch))
            pairs = [(x, y) for x, y in zip(run(*buffers[0]), want) if y is not None]
            if any((x - y).abs().mean() > 0.01 * y.abs().mean() for x, y in pairs):
                print(line(*case, "wrong numbers", "-"), flush=True)  # the compiler's fault: no candidate
                continue
            low, median, high = clock_graph(run, buffers, device, 50)
            times[launch] = median
            of_copy = moved / median / bandwidth
            print(line(*case, f"{median * 1e6:.1f} ({low * 1e6:.1f} to {high * 1e6:.1f})", f"{of_copy:.1%}"),
                  flush=True)
            table.append(dict(zip(columns, case), median=median, p20=low, p80=high, of_copy=of_copy))
        winner = min(times, key=times.get, default=None)
        winners.append(f"{dtype}, channels {layout}, gradient {gradient}, {n} frames: {winner}")
    print("the fastest (training: bf16, channels last, gradient yes):", *winners, sep="\n", flush=True)
    return table


# ---- command -----------------------------------------------------------------------------------------------

def main():
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--compile", action="store_true", help="compile the kernels and count; needs no GPU")
    parser.add_argument("--sweep", action="store_true", help="time the Laplacian's variants; needs a GPU")
    parser.add_argument("--arch", type=lambda text: int(text.removeprefix("sm_")), choices=ARCHS, nargs="+",
                        default=[90], help="with --compile: for these (default: sm_90)")
    names = "laplacian laplacian_grad triplet triplet_grad".split()
    parser.add_argument("--kernel", choices=names, nargs="+", default=names, help="with --compile: these")
    parser.add_argument("--default", action="store_true", help="with --compile: only what training runs")
    parser.add_argument("--json", metavar="FILE", help="keep the table")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    about = dict(torch=torch.__version__, triton=getattr(laplacian.triton, "__version__", None), threads=None,
                 device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu")
    if device.type == "cpu":
        about["threads"] = torch.get_num_threads()
    if args.compile:
        table = compile_all(args.arch, args.kernel, not args.default)
    elif args.sweep:
        if device.type == "cpu" or laplacian.triton is None:
            print("kernels.bench: --sweep needs a CUDA GPU and triton: it times the kernel's variants",
                  file=sys.stderr)
            return 2
        print(", ".join(f"{key} {value}" for key, value in about.items() if value is not None))
        table = sweep(device)
    else:
        print(", ".join(f"{key} {value}" for key, value in about.items() if value is not None))
        if device.type == "cpu":
            print("no CUDA GPU: this times the torch path on the CPU, and cannot time Triton, torch.compile, "
                  "CUDA graphs or N = 4096, nor measure GPU memory")
        table = time_all(device)
    if args.json:
        Path(args.json).write_text(json.dumps(dict(about=about, table=table), indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
