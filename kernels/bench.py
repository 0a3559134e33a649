"""How fast the losses are here, and what the kernels compile to.

    python -m kernels.bench [--json FILE]             times them against plain PyTorch and torch.compile
    python -m kernels.bench --compile                 registers, spills and shared memory; needs Triton, but no GPU
"""
import argparse
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

from kernels import laplacian, laplacian_l1, laplacian_l1_with_grad, triplet, triplet_margin

# ---- compiling -----------------------------------------------------------------------------------------------------

ARCHS = (80, 90, 100)
COLUMNS = "kernel arch dtype levels side warps registers spill shared".split()


def variants():
    """(kernel, dtype, levels, side) of everything that training and evaluation launch; triplet's side is T, D is 50."""
    for dtype in ("bf16", "fp32"):
        for levels in (4, 3):
            yield "laplacian_grad", dtype, levels, 64
            yield "laplacian", dtype, levels, 64
        yield "triplet_grad", dtype, "-", 16
        yield "triplet", dtype, "-", 16


def compile_one(name, dtype, levels, side, arch):
    """One line of the table, the values of COLUMNS. Compiles in this process, whatever GPU it has or has not."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    op, grad = name.split("_")[0], name.endswith("_grad")
    pointer = "*" + dtype
    if op == "laplacian":
        kernel = laplacian._laplacian_kernel
        warps, terms = laplacian.warps_and_terms(side, {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype])
        types = dict(pred=pointer, target="*u8", weight="*fp32", losses="*fp32", grad=pointer, matrices="*bf16",
                     C="i32", pred_w="i32", target_w="i32")  # channels_last, as in training
        values = dict(pred_c=1, target_c=1, SIDE=side, LEVELS=levels, TERMS=terms, GRAD=grad)
        aligned = ("pred", "target", "weight", "losses", "grad", "matrices")
    else:
        kernel = triplet._triplet_kernel
        rows, block, warps = triplet.tiles(side, 50)
        types = dict(codes=pointer, weight="*fp32", losses="*fp32", grad=pointer, T="i32", D="i32", margin="fp32",
                     radius="i32", one_over_count="fp32")
        values = dict(ROWS=rows, BLOCK=block, GRAD=grad)
        aligned = ("codes", "weight", "losses", "grad")
    attributes = {(kernel.arg_names.index(a),): [["tt.divisibility", 16]] for a in aligned}
    source = ASTSource(kernel, {**types, **dict.fromkeys(values, "constexpr")}, values, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps})
    registers, stack = resources(compiled.asm["cubin"])
    return [name, f"sm_{arch}", dtype, levels, side, warps, registers, stack, compiled.metadata.shared]


def resources(cubin):
    """Registers per thread and bytes of stack (what spilled) of compiled code."""
    import triton
    beside = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    tool = str(beside) if beside.exists() else shutil.which("cuobjdump")
    if tool is None:
        raise SystemExit("kernels.bench: no cuobjdump, neither in the triton package nor on the PATH")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text = subprocess.run([tool, "-res-usage", str(path)], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"REG:(\d+)", text)[1]), int(re.search(r"STACK:(\d+)", text)[1])


def compile_all(archs, kernels):
    """Prints the table, a line as soon as it and those before it are known; returns it as a list of dicts."""
    if laplacian.triton is None:
        raise SystemExit("kernels.bench: --compile needs triton, which is not installed")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("kernels.bench: unset TRITON_INTERPRET: interpreted kernels cannot be compiled")
    line = "{:<15} {:<7} {:<6} {:>6} {:>5} {:>6} {:>10} {:>6} {:>7}".format
    print(line(*COLUMNS), flush=True)
    jobs = [(*variant, arch) for arch in archs for variant in variants() if variant[0] in kernels]
    table = []
    with ProcessPoolExecutor() as pool:
        for row in pool.map(compile_one, *zip(*jobs)):
            print(line(*row), flush=True)
            table.append(dict(zip(COLUMNS, row)))
    return table


# ---- what the kernels are timed against ----------------------------------------------------------------------------

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
    return (F.relu(d[:, :, :, None] - d[:, :, None] + margin) * triplets).float().sum((1, 2, 3)) / triplets.sum()


def with_backward(loss):
    """loss(x, y), then the gradient of its sum by x."""
    def run(x, *rest):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(loss(x, *rest).sum(), x)
    return run


# ---- timing --------------------------------------------------------------------------------------------------------

def clock(run, buffers, device, repeats):
    """Seconds of run(*buffer): 20th percentile, median, 80th. Buffers rotate, so that none is in the cache."""
    for k in range(min(3, repeats)):
        run(*buffers[k % len(buffers)])
    seconds = []
    for k in range(repeats):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run(*buffers[k % len(buffers)])
            end.record()
            seconds.append((start, end))
        else:
            start = time.perf_counter()
            run(*buffers[k % len(buffers)])
            seconds.append(time.perf_counter() - start)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        seconds = [start.elapsed_time(end) / 1e3 for start, end in seconds]
    cuts = statistics.quantiles(seconds, n=10, method="inclusive")
    return cuts[1], cuts[4], cuts[7]


def rotating(make, size, device):
    """As many inputs as it takes to pass twice the cache of the GPU (8 at most on a CPU's account)."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 2 ** 25
    return [make() for _ in range(max(2, min(2 * cache // size + 1, 64)))]


def copy_bandwidth(device):
    """Bytes read and written per second by a large copy: the bound that the percentages refer to."""
    n = 2 ** 28 if device.type == "cuda" else 2 ** 24
    source, to = (torch.empty(n, dtype=torch.float32, device=device).fill_(1) for _ in range(2))
    return 8 * n / clock(lambda: to.copy_(source), [()], device, 20)[1]


def graphed(run, *inputs):
    """run(*inputs) captured in a CUDA graph; call the result to replay it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(*inputs)
    return graph.replay


def time_all(device):
    """Prints the measurements; returns them as a list of dicts."""
    cuda, rows = device.type == "cuda", []
    bandwidth = copy_bandwidth(device)
    print(f"copy bandwidth {bandwidth / 1e9:.1f} GB/s; times in microseconds: median (20th to 80th percentile)")
    line = "{:<10} {:<22} {:<14} {:<16} {:>28} {:>10} {:>8} {:>7} {:>9}".format
    print(line("loss", "input", "provider", "pass", "microseconds", "floor MB", "GB/s", "of copy", "peak MB"))

    def measure(loss, shape, buffers, provider, passes, run, floor):
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        low, median, high = clock(run, buffers, device, 50 if cuda else 8)
        peak = (torch.cuda.max_memory_allocated(device) - before) / 1e6 if cuda else None
        rate = floor / median
        rows.append(dict(loss=loss, input=shape, provider=provider, passes=passes, median=median, p20=low, p80=high,
                         floor_bytes=floor, bytes_per_second=rate, of_copy=rate / bandwidth, peak_mb=peak))
        print(line(loss, shape, provider, passes, f"{median * 1e6:.1f} ({low * 1e6:.1f} to {high * 1e6:.1f})",
                   f"{floor / 1e6:.2f}", f"{rate / 1e9:.1f}", f"{rate / bandwidth:.1%}",
                   "-" if peak is None else f"{peak:.0f}"), flush=True)

    compiled = [("torch.compile", torch.compile)] if cuda else []
    ours = "triton" if cuda and laplacian.triton else "this torch path"
    dtype = torch.bfloat16 if cuda else torch.float32
    for n in (16, 256, 4096) if cuda else (16, 128):
        size, shape = n * 3 * 64 * 64, f"{n} x 3 x 64 x 64"
        item = dtype.itemsize
        buffers = rotating(lambda: [x.to(memory_format=torch.channels_last) for x in (  # as in training
            torch.randn(n, 3, 64, 64, device=device).to(dtype), torch.randint(0, 256, (n, 3, 64, 64), dtype=torch.uint8, device=device))],
            size * (item + 1), device)
        one = torch.ones(n, device=device)
        forward, both = size * (item + 1), size * (2 * item + 1)
        for provider, wrap in [("torch eager", lambda f: f), *compiled]:
            loss = wrap(plain_laplacian)
            measure("laplacian", shape, buffers, provider, "forward", torch.no_grad()(loss), forward)
            measure("laplacian", shape, buffers, provider, "forward+backward", with_backward(loss), both)
        measure("laplacian", shape, buffers, ours, "forward", torch.no_grad()(laplacian_l1), forward)
        measure("laplacian", shape, buffers, ours, "forward+backward", with_backward(laplacian_l1), both)
        measure("laplacian", shape, buffers, ours, "with_grad", lambda p, t: laplacian_l1_with_grad(p, t, one), both)
        if cuda and n == 16:
            replay = graphed(lambda p, t: laplacian_l1_with_grad(p, t, one), *buffers[0])
            measure("laplacian", shape, [()], ours, "with_grad, graph", replay, both)
    for b in (1, 64, 1024):
        for d in (50, 200):
            size, shape = b * 16 * d * 4, f"{b} x 16 x {d}"
            buffers = rotating(lambda: (torch.randn(b, 16, d, device=device),), size, device)
            for provider, wrap in [("torch eager", lambda f: f), *compiled]:
                loss = wrap(plain_triplet)
                measure("triplet", shape, buffers, provider, "forward", torch.no_grad()(loss), size)
                measure("triplet", shape, buffers, provider, "forward+backward", with_backward(loss), 2 * size)
            measure("triplet", shape, buffers, ours, "forward", torch.no_grad()(triplet_margin), size)
            measure("triplet", shape, buffers, ours, "forward+backward", with_backward(triplet_margin), 2 * size)
    return rows


# ---- command -------------------------------------------------------------------------------------------------------

def main():
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--compile", action="store_true", help="compile every kernel that training uses; needs no GPU")
    parser.add_argument("--arch", type=lambda text: int(text.removeprefix("sm_")), choices=ARCHS, nargs="+",
                        default=ARCHS, help="with --compile: only these")
    names = sorted({variant[0] for variant in variants()})
    parser.add_argument("--kernel", choices=names, nargs="+", default=names, help="with --compile: only these")
    parser.add_argument("--json", metavar="FILE", help="keep the table")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    about = dict(torch=torch.__version__, triton=getattr(laplacian.triton, "__version__", None), threads=None,
                 device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu")
    if device.type == "cpu":
        about["threads"] = torch.get_num_threads()
    if args.compile:
        table = compile_all(args.arch, args.kernel)
    else:
        print(", ".join(f"{key} {value}" for key, value in about.items() if value is not None))
        if device.type == "cpu":
            print("no CUDA GPU: this times the torch path on the CPU, and cannot time Triton, torch.compile, CUDA "
                  "graphs or N = 4096, nor measure GPU memory")
        table = time_all(device)
    if args.json:
        Path(args.json).write_text(json.dumps(dict(about=about, table=table), indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
