"""Tests of kernels/. They need no GPU: where there is none, Triton's interpreter runs the kernels on the CPU."""
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():  # before kernels are imported: Triton's interpreter runs them on the CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")

import kernels
from kernels import backend, laplacian_l1, laplacian_l1_with_grad, triplet_margin
from kernels.bench import plain_laplacian, plain_triplet, with_backward

HERE = Path(__file__).parent

# ---- kernels ---------------------------------------------------------------------------------------------------------


def brute_laplacian(d, levels):
    """Spec section 2 to the letter on one difference [C, H, W], in float64, a pixel at a time."""
    def mean_abs(x):
        return sum(abs(v) for plane in x for row in plane for v in row) / (len(x) * len(x[0]) * len(x[0][0]))

    loss, planes = 0.0, np.asarray(d, dtype=np.float64).tolist()
    for _ in range(levels):
        height, width = len(planes[0]), len(planes[0][0])
        blurred = [[[sum(ty * tx / 256 * plane[min(max(y + dy, 0), height - 1)][min(max(x + dx, 0), width - 1)]
                         for dy, ty in zip((-2, -1, 0, 1, 2), (1, 4, 6, 4, 1))
                         for dx, tx in zip((-2, -1, 0, 1, 2), (1, 4, 6, 4, 1)))
                     for x in range(width)] for y in range(height)] for plane in planes]
        loss += mean_abs([[[p - b for p, b in zip(*rows)] for rows in zip(plane, blur)]
                          for plane, blur in zip(planes, blurred)])
        planes = [[[(b[2 * y][2 * x] + b[2 * y][2 * x + 1] + b[2 * y + 1][2 * x] + b[2 * y + 1][2 * x + 1]) / 4
                    for x in range(width // 2)] for y in range(height // 2)] for b in blurred]
    return loss + mean_abs(planes)


def brute_triplet(codes, margin, radius):
    """Spec section 2 to the letter on one clip [T, D], in float64, a triplet at a time."""
    codes, terms = np.asarray(codes, dtype=np.float64), []
    for a in range(len(codes)):
        for p in range(len(codes)):
            for n in range(len(codes)):
                if 0 < abs(a - p) <= radius < abs(a - n):
                    near, far = ((codes[a] - codes[k]) @ (codes[a] - codes[k]) for k in (p, n))
                    terms.append(max(near - far + margin, 0))
    return np.mean(terms)


@pytest.mark.parametrize("shape, levels", [((2, 2, 8, 8), 3), ((2, 1, 13, 11), 2), ((1, 3, 16, 9), 1)])
def test_laplacian_agrees_with_loops_in_float64(shape, levels):
    torch.manual_seed(0)
    pred, target = torch.randn(shape, dtype=torch.float64), torch.randint(0, 256, shape, dtype=torch.uint8)
    want = [brute_laplacian(p - (t / 127.5 - 1), levels) for p, t in zip(pred.numpy(), target.numpy().astype(float))]
    assert np.allclose(laplacian_l1(pred, target, levels), want, rtol=1e-12)
    assert np.allclose(laplacian_l1(pred.float(), target.double() / 127.5 - 1, levels), want, rtol=1e-6)


@pytest.mark.parametrize("frames, radius, margin", [(4, 2, 2.0), (9, 2, 0.5), (6, 4, 2.0), (5, 1, 30.0)])
def test_triplet_agrees_with_loops_in_float64(frames, radius, margin):
    codes = torch.randn(3, frames, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    want = [brute_triplet(c, margin, radius) for c in codes.numpy()]
    assert np.allclose(triplet_margin(codes, margin, radius), want, rtol=1e-12)
    assert np.allclose(triplet_margin(codes.float(), margin, radius), want, rtol=1e-5)


def test_gradients_pass_gradcheck():
    torch.manual_seed(0)
    pred = torch.randn(2, 2, 9, 12, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 2, 9, 12, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: laplacian_l1(x, target, 2), pred)
    codes = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: triplet_margin(x), codes)


def test_losses_repeat_bit_for_bit_with_two_threads():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        pred, target = torch.randn(8, 3, 64, 64), torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
        codes, ones = torch.randn(8, 16, 50), torch.ones(8)
        runs = [(*laplacian_l1_with_grad(pred.clone(), target, ones), with_backward(triplet_margin)(codes.clone())[0])
                for _ in range(3)]
        assert all(torch.equal(x, y) for run in runs[1:] for x, y in zip(runs[0], run))
    finally:
        torch.set_num_threads(threads)


def test_autocast_does_not_reach_the_losses():
    torch.manual_seed(0)
    pred, target, codes = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16), torch.randn(2, 8, 5)
    want = laplacian_l1(pred, target), triplet_margin(codes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = laplacian_l1(pred, target), triplet_margin(codes)
    assert all(torch.equal(x, y) for x, y in zip(want, got))


def test_triplet_builds_no_large_tensor():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        bytes = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(x, torch.Tensor):
                    self.bytes = max(self.bytes, x.untyped_storage().nbytes())
            return out

    torch.manual_seed(0)
    codes = torch.randn(40, 64, 128)  # [B, T, T, T] and [B, T, T, D] would both pass 64 MB
    with Largest() as largest:
        losses = triplet_margin(codes)
    assert 2 ** 20 < largest.bytes <= 2 ** 26
    assert torch.allclose(losses[-1:], triplet_margin(codes[-1:]))


def test_laplacian_on_cpu_costs_no_more_than_convolution():
    torch.manual_seed(0)
    pred, target, ones = torch.randn(128, 3, 64, 64), torch.rand(128, 3, 64, 64) * 2 - 1, torch.ones(128)

    def cpu_seconds(run):
        best = []
        for _ in range(3):
            start = time.thread_time()
            run()
            best.append(time.thread_time() - start)
        return min(best)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        theirs = cpu_seconds(lambda: with_backward(plain_laplacian)(pred, target))
        ours = cpu_seconds(lambda: with_backward(laplacian_l1)(pred, target))
        fused = cpu_seconds(lambda: laplacian_l1_with_grad(pred, target, ones))
    finally:
        torch.set_num_threads(threads)
    assert ours <= 1.1 * theirs and fused <= ours


def test_bad_input_of_the_losses_is_named():
    frames = torch.zeros(2, 3, 15, 16)
    for call, words in (
            (lambda: laplacian_l1(frames, frames), "15 x 16"),
            (lambda: laplacian_l1(frames, frames[:1], 3), "same"),
            (lambda: laplacian_l1(frames[0], frames[0], 3), "same"),
            (lambda: laplacian_l1(frames.long(), frames, 3), "int64"),
            (lambda: laplacian_l1(frames, frames.long(), 3), "int64"),
            (lambda: laplacian_l1(frames, frames, 0), "at least 1"),
            (lambda: laplacian_l1_with_grad(frames, frames, torch.ones(3), 3), "weight"),
            (lambda: triplet_margin(torch.zeros(2, 3, 5)), "radius \\+ 2 = 4 frames"),
            (lambda: triplet_margin(torch.zeros(2, 8)), "B, T, D"),
            (lambda: triplet_margin(torch.zeros(2, 8, 4, dtype=torch.long)), "float")):
        with pytest.raises(ValueError, match=words) as error:
            call()
        assert "\n" not in str(error.value)


# ---- kernels: Triton against float64 (on a GPU, or interpreted on the CPU) -------------------------------------------

interpreted = os.environ.get("TRITON_INTERPRET") == "1" and not torch.cuda.is_available()
needs_triton = [pytest.mark.skipif(kernels.laplacian.triton is None, reason="triton is not installed"),
                pytest.mark.skipif(not (interpreted or torch.cuda.is_available()), reason="TRITON_INTERPRET is not 1")]


@pytest.fixture
def device(monkeypatch):
    """Where Triton runs: its kernels, and nothing else, compute the losses, and every buffer starts as NaN."""
    monkeypatch.setenv("NAV_KERNELS", "triton")
    for name in ("empty", "empty_like"):
        def poisoned(*args, make=getattr(torch, name), **options):
            x = make(*args, **options)
            return x.fill_(float("nan")) if x.is_floating_point() else x
        monkeypatch.setattr(torch, name, poisoned)
    return torch.device("cpu" if interpreted else "cuda")


def off(got, want):
    """Largest and mean absolute difference."""
    d = (got.detach().double().cpu() - want.detach().double().cpu()).abs()
    return d.max().item(), d.mean().item()


LAPLACIAN = [(torch.float32, "uint8", 64, 4, (1, 1)), (torch.float32, "same", 32, 5, (1, 3)),
             (torch.float32, "uint8", 16, 3, (3, 1)), (torch.bfloat16, "uint8", 64, 4, (1, 1)),
             (torch.bfloat16, "uint8", 64, 3, (1, 1)), (torch.float16, "uint8", 32, 3, (1, 1)),
             (torch.bfloat16, "same", 16, 4, (3, 1)), (torch.float16, "fp32", 16, 3, (1, 2)),
             (torch.bfloat16, "uint8", 128, 5, (1, 1))]


@pytest.mark.parametrize("dtype, kind, side, levels, shape", LAPLACIAN)
@pytest.mark.usefixtures("device")
class TestLaplacianKernel:
    pytestmark = needs_triton

    def test_agrees_with_float64(self, device, dtype, kind, side, levels, shape):
        torch.manual_seed(side + levels)
        pred = torch.randn(*shape, side, side, device=device).to(dtype)
        target = torch.randint(0, 256, pred.shape, dtype=torch.uint8, device=device)
        if kind != "uint8":
            target = (target / 127.5 - 1).to(dtype if kind == "same" else torch.float32)
        weight = (torch.rand(shape[0], device=device) + 0.5) * pred[0].numel()  # a gradient of order 1
        losses, grad = laplacian_l1_with_grad(pred, target, weight, levels)
        assert grad.dtype == dtype and losses.dtype == torch.float32 and not losses.requires_grad

        def reference(loss, dtype):
            x = pred.to(dtype).requires_grad_()
            y = target.to(dtype) if loss is plain_laplacian and kind != "uint8" else target
            value = loss(x, y, levels)
            return value, torch.autograd.grad((value * weight).sum(), x)[0]

        true, true_grad = reference(plain_laplacian, torch.float64)
        plain, plain_grad = reference(plain_laplacian, dtype)
        assert off(losses, true)[0] <= 2 * off(plain, true)[0] + 1e-6
        assert off(losses, true)[0] <= (1e-6 if dtype == torch.float32 else 3e-5)
        assert off(grad, true_grad)[1] <= 2 * off(plain_grad, true_grad)[1] + 1e-6
        if dtype == torch.float32:
            assert off(grad, true_grad)[0] <= 2 * off(plain_grad, true_grad)[0] + 1e-6
        if side <= 32:  # forward alone, and backward with an upstream gradient that is not 1
            again, again_grad = reference(laplacian_l1, dtype)
            assert torch.equal(again, losses) and torch.equal(again_grad, grad)


@pytest.mark.usefixtures("device")
class TestKernels:
    pytestmark = needs_triton

    def test_any_layout_gives_the_same_bits(self, device):
        torch.manual_seed(0)
        pred, target = (torch.randn(3, 2, 16, 16, device=device) for _ in range(2))
        weight = torch.rand(6, device=device)[::2]
        losses, grad = laplacian_l1_with_grad(pred, target, weight, 3)
        wide = torch.zeros(6, 2, 16, 40, device=device)
        wide[::2, :, :, 8:40:2] = pred
        for other in (pred.to(memory_format=torch.channels_last), wide[::2, :, :, 8:40:2], pred.mT.contiguous().mT):
            assert not other.is_contiguous()
            got = laplacian_l1_with_grad(other, target.to(memory_format=torch.channels_last), weight, 3)
            assert torch.equal(got[0], losses) and torch.equal(got[1], grad)
        cl = pred.to(memory_format=torch.channels_last)
        assert laplacian_l1_with_grad(cl, target, weight, 3)[1].is_contiguous(memory_format=torch.channels_last)

    def test_identical_images_and_a_brightness_offset(self, device):
        target = torch.arange(256, dtype=torch.uint8, device=device).view(1, 1, 16, 16)  # every value
        pred = target / 127.5 - 1
        losses, grad = laplacian_l1_with_grad(pred, target, torch.ones(1, device=device), 4)
        assert losses.item() == 0 and not grad.any()
        pred = torch.zeros(1, 1, 16, 16, device=device)
        losses, grad = laplacian_l1_with_grad(pred + 0.125, pred, torch.full((1,), 256.0, device=device), 3)
        assert losses.item() == 0.125 and abs(grad.sum().item() - 256) < 1e-3  # the residual's, and no band's
        true, = with_backward(lambda x: plain_laplacian(x, pred.double(), 3))(pred.double() + 0.125)
        assert off(grad, 256 * true)[0] < 1e-6
        assert abs(laplacian_l1(pred + 0.1, pred, 3).item() - 0.1) < 1e-6

    def test_nothing_is_kept_when_nobody_asks(self, device, monkeypatch):
        pred = torch.zeros(1, 1, 16, 16, device=device)
        monkeypatch.setattr(torch, "empty_like", None)  # what the gradient is written to
        assert not laplacian_l1(pred, pred, 3).requires_grad
        assert not triplet_margin(torch.zeros(1, 4, 3, device=device)).requires_grad

    @pytest.mark.parametrize("dtype, clips, frames, dim", [
        (torch.float32, 2, 4, 3), (torch.float32, 1, 16, 50), (torch.float32, 1, 17, 200), (torch.bfloat16, 1, 16, 50),
        (torch.float16, 1, 4, 50), (torch.float32, 1, 64, 8), (torch.float32, 1, 5, 512)])
    def test_triplet_agrees_with_float64(self, device, dtype, clips, frames, dim):
        torch.manual_seed(frames)
        codes = (torch.randn(clips, frames, dim, device=device) / dim ** 0.5).to(dtype)
        weight = torch.rand(clips, device=device) + 0.5

        def reference(loss, dtype):
            x = codes.to(dtype).requires_grad_()
            value = loss(x)
            return value, torch.autograd.grad((value * weight).sum(), x)[0]

        got, true, plain = (reference(f, t) for f, t in (
            (triplet_margin, dtype), (plain_triplet, torch.float64), (plain_triplet, dtype)))
        assert got[0].dtype == torch.float32 and got[1].dtype == dtype
        for x, y, z in zip(got, true, plain):
            assert off(x, y)[0] <= 2 * off(z, y)[0] + 1e-6

    def test_triplet_of_coincident_and_near_codes(self, device):
        codes = torch.full((1, 6, 5), 30.0, device=device, requires_grad=True)
        loss = triplet_margin(codes)
        loss.sum().backward()
        assert loss.item() == 2 and not codes.grad.any()
        near = torch.full((1, 6, 5), 30.0) + torch.arange(6)[:, None] * 2.0 ** -16  # exact in fp32
        want = brute_triplet(near[0].numpy(), 1e-8, 2)
        assert abs(triplet_margin(near.to(device), margin=1e-8).item() - want) <= 1e-5 * want

    def test_kernels_repeat_bit_for_bit(self, device):
        torch.manual_seed(0)
        pred, codes = torch.randn(2, 1, 16, 16, device=device), torch.randn(1, 16, 20, device=device)
        first, second = ((*laplacian_l1_with_grad(pred, -pred, pred[:, 0, 0, 0], 3),
                          *with_backward(triplet_margin)(codes)) for _ in range(2))
        assert all(torch.equal(x, y) for x, y in zip(first, second))


# ---- kernels: which code runs ----------------------------------------------------------------------------------------

def test_backend_says_why(monkeypatch, capsys):
    monkeypatch.delenv("NAV_KERNELS", raising=False)
    assert backend("cpu").startswith("torch: ")
    laplacian_l1(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), 3)
    assert capsys.readouterr() == ("", "")  # PyTorch on a CPU is no surprise
    monkeypatch.setenv("NAV_KERNELS", "torch")
    assert backend("cpu") == "torch: NAV_KERNELS=torch"
    monkeypatch.setenv("NAV_KERNELS", "tritn")
    with pytest.raises(RuntimeError, match="torch or triton"):
        backend("cpu")


def test_what_the_kernel_does_not_cover(monkeypatch, capsys):
    frames = torch.zeros(1, 1, 24, 16)
    monkeypatch.setattr(kernels, "_HAS_TRITON", True)
    monkeypatch.setattr(kernels, "_INTERPRETED", True)
    monkeypatch.setenv("NAV_KERNELS", "triton")
    for call in (lambda: laplacian_l1(frames, frames, 3), lambda: triplet_margin(torch.zeros(1, 65, 4)),
                 lambda: laplacian_l1(frames[:, :, :16].double(), frames[:, :, :16], 3)):
        with pytest.raises(RuntimeError, match="NAV_KERNELS=triton, but"):
            call()
    monkeypatch.delenv("NAV_KERNELS")
    monkeypatch.setattr(kernels, "_said", set())
    for _ in range(2):
        assert not kernels.use_triton("laplacian_l1", torch.device("cuda"), "2 levels")
        assert kernels.use_triton("laplacian_l1", torch.device("cuda"), None)
    assert capsys.readouterr().err.count("2 levels") == 1
    monkeypatch.setenv("NAV_KERNELS", "triton")
    monkeypatch.setattr(kernels, "_INTERPRETED", False)
    with pytest.raises(RuntimeError, match="the device is cpu"):
        laplacian_l1(frames, frames, 3)


def test_kernels_import_without_triton():
    code = ("import sys; sys.modules['triton'] = None; import torch, kernels; print(kernels.backend('cpu')); "
            "print(kernels.triplet_margin(torch.zeros(1, 4, 2)).item())")
    run = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True)
    assert run.stdout.split("\n")[:2] == ["torch: triton is not installed", "2.0"], run.stderr


@pytest.mark.skipif(kernels.laplacian.triton is None, reason="triton is not installed")
def test_no_register_spills_where_it_trains():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, "-m", "kernels.bench", "--compile", "--arch", "sm_90", "--kernel",
                          "laplacian_grad"], cwd=HERE, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    header, *lines = (line.split() for line in run.stdout.splitlines())
    assert header == "kernel arch dtype levels side warps registers spill shared".split()
    rows = {(kernel, dtype, levels): int(spill) for kernel, _, dtype, levels, _, _, _, spill, _ in lines}
    assert rows == {("laplacian_grad", dtype, levels): 0 for dtype in ("bf16", "fp32") for levels in "34"}
