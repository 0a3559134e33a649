"""How fast the losses are on this device, and how many registers the kernels compile to.

    python -m kernels.bench [--json FILE]         plain PyTorch, torch.compile and the losses of this folder
    python -m kernels.bench --compile [--arch N]  registers and spilled bytes of a thread; needs no GPU
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch.utils.benchmark import Timer

from kernels import (laplacian, laplacian_l1, laplacian_l1_with_grad, name_backend, plain_laplacian,
                     plain_triplet, triplet, triplet_margin)

FRAMES = {"cpu": (16, 128), "cuda": (16, 128, 4096)}
CODES = {"cpu": (1, 32), "cuda": (1, 128, 1024)}  # clips
# ---- timing ------------------------------------------------------------------------------------------------

def microseconds(call, device):
    """20th percentile, median and 80th percentile; on a GPU with an empty L2 cache before each run."""
    if device.type == "cuda":
        from triton.testing import do_bench
        return [1000 * ms for ms in do_bench(call, quantiles=[0.2, 0.5, 0.8])]
    timer = Timer("call()", globals=dict(call=call), num_threads=torch.get_num_threads())
    times = timer.blocked_autorange(min_run_time=0.5)
    return [1e6 * torch.tensor(times.times).quantile(q).item() for q in (0.2, 0.5, 0.8)]

def with_backward(loss):
    """loss(x, y), then the gradient of its sum by x."""
    def run(x, *others):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(loss(x, *others).sum(), x)
    return run

def providers(plain, ours, device):
    """(name, loss): the definition in eager PyTorch, the same compiled, and the loss of this folder."""
    yield "torch eager", plain
    if device.type == "cuda":
        torch.compiler.reset()  # a new shape: after several of them torch.compile would give up
        yield "torch.compile", torch.compile(plain, dynamic=False)
    yield f"ours ({name_backend(device).split(':')[0]})", ours

def time_all(device):
    """Print a line for each loss, input, provider and pass -> the same as a list of dicts."""
    line = "{:<10} {:<20} {:<14} {:<17} {:>10} {:>24} {:>8}".format
    print(line("loss", "input", "provider", "pass", "us, median", "20th to 80th percentile", "GB/s"))
    table = []

    def measure(loss, shape, provider, passes, call, moved):
        low, median, high = microseconds(call, device)
        GB_per_s = moved / median / 1000
        table.append(dict(loss=loss, input=shape, provider=provider, passes=passes, median_us=median,
                          p20_us=low, p80_us=high, bytes=moved, GB_per_s=GB_per_s))
        print(line(loss, shape, provider, passes, f"{median:.1f}", f"{low:.1f} to {high:.1f}",
                   f"{GB_per_s:.1f}"), flush=True)

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for n in FRAMES[device.type]:
        # As in training: the channels come last, and the target is bytes.
        pred = torch.randn(n, 64, 64, 3, device=device, dtype=dtype).permute(0, 3, 1, 2)
        target = torch.randint_like(pred, 256, dtype=torch.uint8)
        shape = f"{n} x 3 x 64 x 64"
        p, t = pred.nbytes, target.nbytes
        for name, loss in providers(plain_laplacian, laplacian_l1, device):
            forward = torch.no_grad()(loss)
            both = with_backward(loss)
            measure("laplacian", shape, name, "forward", lambda: forward(pred, target), p + t)
            # Backward reads both again and writes the gradient.
            measure("laplacian", shape, name, "forward+backward", lambda: both(pred, target), 3 * p + 2 * t)
        weight = torch.ones(n, device=device)
        measure("laplacian", shape, name, "with_grad",
                lambda: laplacian_l1_with_grad(pred, target, weight), 2 * p + t)
    for clips in CODES[device.type]:
        for D in (50, 200):
            codes = torch.randn(clips, 16, D, device=device)
            shape = f"{clips} x 16 x {D}"
            for name, loss in providers(plain_triplet, triplet_margin, device):
                forward = torch.no_grad()(loss)
                both = with_backward(loss)
                measure("triplet", shape, name, "forward", lambda: forward(codes), codes.nbytes)
                measure("triplet", shape, name, "forward+backward", lambda: both(codes), 3 * codes.nbytes)
    return table

# ---- compiling ---------------------------------------------------------------------------------------------

def launches(dtype, gradient):
    """What training launches -> (kernel, types of its arguments, constants, options)."""
    terms = laplacian._terms(64, dict(bf16=torch.bfloat16, fp32=torch.float32)[dtype], torch.uint8)
    types = dict(pred="*" + dtype, target="*u8", weight="*fp32", losses="*fp32", grad="*" + dtype,
                 matrices="*fp16" if terms == 1 else "*bf16")
    constants = dict(C=3, PRED_LAST=True, TARGET_LAST=True, SIDE=64, LEVELS=4, TERMS=terms, GRAD=gradient)
    yield laplacian._laplacian_kernel, types, constants, laplacian._options(64, terms)
    rows, block, warps = triplet.tiles(16, 50)
    types = dict(codes="*" + dtype, weight="*fp32", losses="*fp32", grad="*" + dtype, T="i32", D="i32",
                 margin="fp32", radius="i32", one_over_count="fp32")
    constants = dict(ROWS=rows, BLOCK=block, GRAD=gradient)
    yield triplet._triplet_kernel, types, constants, dict(num_warps=warps, enable_fp_fusion=True)

def compile_all(arch):
    """Print registers and spilled bytes of a thread -> the same as a list of dicts."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    cuobjdump = shutil.which("cuobjdump", path=f"{tools}{os.pathsep}{os.environ.get('PATH', '')}")
    table = []
    for dtype, gradient in (("bf16", True), ("bf16", False), ("fp32", True), ("fp32", False)):
        for kernel, types, constants, options in launches(dtype, gradient):
            pointers = [kernel.arg_names.index(name) for name in types if types[name].startswith("*")]
            aligned = {(place,): [["tt.divisibility", 16]] for place in pointers}
            source = ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), constants, aligned)
            compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
            with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
                Path(file.name).write_bytes(compiled.asm["cubin"])
                text = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True,
                                      check=True).stdout
            registers, spilled = (int(re.search(rf"{word}:(\d+)", text)[1]) for word in ("REG", "STACK"))
            table.append(dict(kernel=kernel.__name__, dtype=dtype, gradient=gradient, registers=registers,
                              spilled=spilled))
            print(", ".join(f"{key} {value}" for key, value in table[-1].items()), flush=True)
    return table

def main():
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--compile", action="store_true", help="compile the kernels; needs Triton, no GPU")
    parser.add_argument("--arch", type=int, default=90, help="with --compile: compute capability (90)")
    parser.add_argument("--json", metavar="FILE", help="keep the table")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    about = dict(device=name, torch=torch.__version__, triton=getattr(laplacian.triton, "__version__", None))
    if args.compile and (laplacian.triton is None or os.environ.get("TRITON_INTERPRET") == "1"):
        print("kernels.bench: --compile needs triton, and TRITON_INTERPRET unset", file=sys.stderr)
        return 2
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    table = compile_all(args.arch) if args.compile else time_all(device)
    if args.json:
        Path(args.json).write_text(json.dumps(dict(about=about, table=table), indent=1) + "\n")

if __name__ == "__main__":
    sys.exit(main())
