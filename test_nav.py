"""Tests of nav: the kernels first, then nav.py in its order, then data_prep.py. They need no GPU, no network.

Where a number is compared, the other side is an independent formula: float64, loops, PyTorch's own optimiser,
or scikit-image's values. The commands are run as a user runs them, on small clips.
"""
import bz2
import contextlib
import copy
import errno
import fractions
import gzip
import http.server
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from dataclasses import fields, replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

if not torch.cuda.is_available():  # before kernels are imported: Triton's interpreter runs them on the CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")

import data_prep
import kernels
import nav
from data_prep import ACTIONS, PERSONS, DataError
from kernels import (GRU, ToColours, backend, laplacian, laplacian_l1, laplacian_l1_with_grad, name_backend,
                     plain_laplacian, plain_triplet, triplet_margin)

ROOT = Path(__file__).resolve().parent
CPU = torch.device("cpu")
LAYOUTS = {  # static and transient rows of six clips: each its own person, 2 persons x 3 actions, both free
    "static": (range(6), [0] * 6), "grid": ([0, 0, 0, 1, 1, 1], [0, 1, 2] * 2), "both": (range(6), range(6)),
    "3 x 3": ([0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 1, 2] * 3)}

def toy_clips(N=5, L=6, size=16, rows=None, seed=0):
    """Small moving squares on coloured grounds, as Clips."""
    rng = np.random.default_rng(seed)
    videos = np.tile(rng.integers(0, 256, (N, 1, 1, 1, 3), np.uint8), (1, L, size, size, 1))
    colours = rng.integers(0, 256, (N, 1, 1, 3))
    for t in range(L):
        videos[:, t, size // 4:size // 2, t % size:t % size + 4] = colours
    ids = [np.array(each) for each in rows or (range(N), [0] * N)]
    static_names, transient_names = ([f"{c}{i}" for i in range(each.max() + 1)] for c, each in zip("st", ids))
    names = [f"s{i}_t{k}" for i, k in zip(*ids)]
    return data_prep.Clips(videos, *ids, static_names, transient_names, names, "toy clips of the tests")

def laid_out(layout):
    return toy_clips(len(LAYOUTS[layout][0]), rows=LAYOUTS[layout])

def settings(**changes):
    usual = dict(D_s=7, D_t=5, levels=3, width=8, batch=2, per_clip=0, steps=10, precision="fp32")
    return nav.Settings(**usual | changes)

def trainer_of(clips=None, **changes):
    return nav.Trainer(settings(**changes), clips or toy_clips(), CPU)

def after(steps, trainer):
    for _ in range(steps):
        trainer.step()
    return trainer

def dB(a, b):
    return 10 * np.log10(255 ** 2 / np.mean((np.asarray(a, float) - b) ** 2))

def max_mean_error(got, want):  # the largest and the mean absolute difference
    d = (got.detach().double().cpu() - want.detach().double().cpu()).abs()
    return d.max().item(), d.mean().item()

@pytest.fixture(scope="session", autouse=True)
def small_gru_and_no_cache():
    """A small R, one thread and short waits are faster; VGG16 weights in a cache stay out of it."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nav, "HIDDEN", 16)
        patch.setattr(data_prep, "BACKOFF", 0.001)
        patch.setattr(data_prep, "TIMEOUT", 0.2)
        patch.setenv("TORCH_HOME", os.devnull)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield

@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)

@pytest.fixture
def toy(tmp_path):
    """The options that train on a prepared set of 5 toy clips, toy.npz, in a moment."""
    data_prep.save(toy_clips(), tmp_path / "toy.npz")
    return (f"--dataset {tmp_path}/toy.npz --width 4 --levels 3 --batch 2 --device cpu --precision fp32 "
            "--checkpoint-every 0").split()

def run(*options, main=nav.main):
    """nav.py's main, or data_prep.py's, in this process as a user calls it -> exit status, stdout, stderr."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            status = main([str(option) for option in options])
        except SystemExit as stop:
            status = stop.code
    return status or 0, out.getvalue(), err.getvalue()

def run_ok(*options):
    """What a run that ends well prints."""
    status, out, errors = run(*options)
    assert (status, errors) == (0, ""), errors
    return out

def run_error(*options, main=nav.main):
    """The one line on standard error of a run that ends with 2."""
    status, _, errors = run(*options, main=main)
    assert status == 2 and re.fullmatch(r"(nav|data_prep\.py): .+\n", errors), (options, errors)
    return errors

def popen(*options, script="nav.py", **more):
    """nav.py, or data_prep.py, in a process of its own."""
    command = [sys.executable, str(ROOT / script), *map(str, options)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)

def read_json(path):
    return json.loads(Path(path).read_text())

def checkpoint(folder):
    return torch.load(Path(folder, "checkpoint.pt"), weights_only=True)

def learned(folder):
    """What a checkpoint learned and would go on from: all but the log and its clock."""
    return {key: value for key, value in checkpoint(folder).items() if key not in ("log", "data")}

def bit_equal(a, b):
    """Equal bit for bit, through dicts and lists."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(bit_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(bit_equal, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b

# ---- kernels: the losses against their definitions, the Triton kernels against float64, the backend --------
@pytest.mark.parametrize("shape, levels", [((2, 2, 8, 8), 3), ((2, 1, 13, 11), 2), ((1, 3, 16, 9), 1)])
def test_laplacian_agrees_with_convolution_and_pooling(shape, levels):
    pred = torch.randn(shape, dtype=torch.float64)
    target = torch.randint(0, 256, shape, dtype=torch.uint8)
    for x, y in ((pred, target), (pred.float(), target.double() / 127.5 - 1)):
        want = plain_laplacian(pred, target, levels)
        losses = laplacian_l1(x, y, levels)
        assert losses.dtype == plain_laplacian(x, target, levels).dtype == x.dtype
        assert torch.allclose(losses.double(), want, rtol=1e-6)

@pytest.mark.parametrize("frames, radius, margin", [(4, 2, 2.0), (9, 2, 0.5), (6, 4, 2.0), (5, 1, 30.0)])
def test_triplet_agrees_with_loops_in_float64(frames, radius, margin):
    codes = torch.randn(1, frames, 4, dtype=torch.float64)
    d = torch.cdist(codes, codes)[0].square()
    want = np.mean([max(d[a, p] - d[a, n] + margin, 0) for a, p, n in np.ndindex(*[frames] * 3)
                    if 0 < abs(a - p) <= radius < abs(a - n)])
    assert triplet_margin(codes, margin, radius).item() == pytest.approx(want, rel=1e-9)
    assert triplet_margin(codes.float(), margin, radius).item() == pytest.approx(want, rel=1e-5)

def test_gradients_pass_gradcheck():
    torch.manual_seed(0)
    pred, target = torch.randn(2, 2, 2, 9, 12, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: laplacian_l1(x, target, 2), pred.requires_grad_())
    assert torch.autograd.gradcheck(triplet_margin, torch.randn(2, 6, 3).double().requires_grad_())

def test_losses_repeat_bit_for_bit(two_threads):
    pred = torch.randn(8, 3, 64, 64)
    target = torch.randint(0, 256, pred.shape, dtype=torch.uint8)
    codes = torch.randn(40, 64, 128)  # in chunks: at once it would take over 64 MB
    found = []
    for autocast in (False, False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            losses = laplacian_l1_with_grad(pred.clone(), target, torch.ones(8))
            found.append([*losses, triplet_margin(codes.clone())])
    assert bit_equal(found[0], found[1]) and bit_equal(found[0], found[2])
    assert torch.allclose(found[0][2][-1:], triplet_margin(codes[-1:]))

def test_long_clips_of_the_triplet_go_in_parts(monkeypatch):
    """Groups of clips, groups of anchors of a long clip: the same losses and gradients, no large tensor."""
    codes = torch.randn(3, 9, 5)
    weight = torch.rand(3)
    want = value_and_gradient(triplet_margin, codes, weight)
    for most in (9 * 9 * 5, 9 * 5, 1):
        monkeypatch.setattr(kernels.triplet, "MOST_FLOATS", most)
        got = value_and_gradient(triplet_margin, codes, weight)
        assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(got, want))

def test_bad_input_of_the_losses_is_named():
    x = torch.zeros(2, 3, 15, 16)
    for loss, args, words in ((laplacian_l1, (x, x), "15 x 16"), (laplacian_l1, (x, x[:1], 3), "same"),
            (laplacian_l1, (x[0], x[0], 3), "same"), (laplacian_l1, (x, x, 0), "at least 1"),
            (laplacian_l1, (x.long(), x, 3), "int64"), (laplacian_l1, (x, x.long(), 3), "int64"),
            (laplacian_l1_with_grad, (x, x, x, 3), "weight"), (triplet_margin, (x[0].long(),), "float"),
            (triplet_margin, (x[0][:, :3],), "radius \\+ 2 = 4 frames"), (triplet_margin, (x,), "B, T, D")):
        with pytest.raises(ValueError, match=words):
            loss(*args)

def value_and_gradient(loss, x, weight):
    """A loss of every clip, and the gradient of its sum by that weight."""
    x = x.clone().requires_grad_()
    value = loss(x)
    return value, torch.autograd.grad((value * weight).sum(), x)[0]

bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32

interpreted = os.environ.get("TRITON_INTERPRET") == "1" and not torch.cuda.is_available()

@pytest.fixture
def device(monkeypatch):
    """Where Triton runs: nothing else computes the losses, and every buffer starts as NaN."""
    if backend.triton is None or not (interpreted or torch.cuda.is_available()):
        pytest.skip("needs triton, and a GPU or TRITON_INTERPRET=1")
    monkeypatch.setenv("NAV_KERNELS", "triton")
    for name in ("empty", "empty_like"):
        def poisoned(*args, make=getattr(torch, name), **options):
            x = make(*args, **options)
            return x.fill_(float("nan")) if x.is_floating_point() else x
        monkeypatch.setattr(torch, name, poisoned)
    return torch.device("cpu" if interpreted else "cuda")

@pytest.mark.parametrize("dtype, kind, side, levels, shape", [
    (fp32, "uint8", 64, 4, (1, 1)), (fp32, "same", 32, 5, (1, 3)), (fp32, "uint8", 16, 3, (3, 1)),
    (bf16, "uint8", 64, 4, (1, 1)), (bf16, "uint8", 32, 3, (1, 2)), (fp16, "uint8", 32, 3, (1, 1)),
    (bf16, "same", 16, 4, (3, 1)), (fp16, "fp32", 16, 3, (1, 2)), (bf16, "uint8", 128, 5, (1, 1))])
def test_laplacian_kernel_agrees_with_float64(device, dtype, kind, side, levels, shape):
    """At most twice the error of PyTorch's own code in the same dtype."""
    torch.manual_seed(side + levels)
    pred = torch.randn(*shape, side, side, device=device).to(dtype)
    target = torch.randint(0, 256, pred.shape, dtype=torch.uint8, device=device)
    if kind != "uint8":
        target = (target / 127.5 - 1).to(dtype if kind == "same" else fp32)
    weight = (torch.rand(shape[0], device=device) + 0.5) * pred[0].numel()  # a gradient of order 1
    def plain_loss(x):
        return plain_laplacian(x, target if kind == "uint8" else target.to(x.dtype), levels)
    true, true_grad = value_and_gradient(plain_loss, pred.double(), weight)
    plain, plain_grad = value_and_gradient(plain_loss, pred, weight)
    pred = pred.to(memory_format=torch.channels_last)  # and target is not
    losses, grad = laplacian_l1_with_grad(pred, target, weight, levels)
    assert grad.dtype == dtype and losses.dtype == fp32 and not losses.requires_grad
    most = min(2 * max_mean_error(plain, true)[0] + 1e-6, 1e-6 if dtype == fp32 else 3e-5)
    assert max_mean_error(losses, true)[0] <= most
    at = 0 if dtype == fp32 else 1  # the largest difference, the mean difference
    assert max_mean_error(grad, true_grad)[at] <= 2 * max_mean_error(plain_grad, true_grad)[at] + 1e-6
    again = value_and_gradient(lambda x: laplacian_l1(x, target, levels), pred, weight)
    assert bit_equal(again, (losses, grad))  # forward alone, and an upstream gradient that is not 1

def test_one_fp16_term_only_where_it_is_exact(device):
    for side, pred, terms in ((64, bf16, 1), (16, bf16, 2), (64, fp16, 2), (64, fp32, 3)):
        assert laplacian._terms(side, pred, torch.uint8) == terms
    pred = torch.full((1, 1, 32, 32), 2.0 ** 17, device=device, dtype=bf16)  # over 65,504
    assert laplacian_l1(pred, -pred, 4).item() == 2.0 ** 18
    target = torch.arange(256, dtype=torch.uint8, device=device).view(1, 1, 16, 16)  # every value
    pred = (target.cpu() / 127.5 - 1).to(device)  # a GPU divides by way of the reciprocal
    losses, grad = laplacian_l1_with_grad(pred, target, torch.ones(1, device=device), 4)
    assert losses.item() == 0 and not grad.any()

def test_any_layout_gives_the_same_bits(device):
    pred, target = torch.randn(2, 3, 2, 16, 16, device=device)
    weight = torch.rand(6, device=device)[::2]
    want = laplacian_l1_with_grad(pred, target, weight, 3)
    wide = torch.zeros(6, 2, 16, 40, device=device)
    wide[::2, :, :, 8:40:2] = pred
    last = pred.to(memory_format=torch.channels_last)
    for other in (wide[::2, :, :, 8:40:2], pred.mT.contiguous().mT, pred, last):
        got = laplacian_l1_with_grad(other, target.to(memory_format=torch.channels_last), weight, 3)
        assert bit_equal(got, want)
    assert got[1].is_contiguous(memory_format=torch.channels_last)

@pytest.mark.parametrize("dtype, clips, frames, dim", [(fp32, 2, 4, 3), (fp32, 1, 17, 200), (bf16, 1, 16, 50),
                                                       (fp16, 1, 4, 50), (fp32, 1, 64, 8), (fp32, 1, 5, 512)])
def test_triplet_kernel_agrees_with_float64(device, dtype, clips, frames, dim):
    codes = (torch.randn(clips, frames, dim, device=device) / dim ** 0.5).to(dtype)
    weight = torch.rand(clips, device=device) + 0.5
    got, again = (value_and_gradient(triplet_margin, codes, weight) for _ in range(2))
    assert got[0].dtype == fp32 and got[1].dtype == dtype and bit_equal(got, again)
    true, plain = (value_and_gradient(plain_triplet, x, weight) for x in (codes.double(), codes))
    for x, y, z in zip(got, true, plain):
        assert max_mean_error(x, y)[0] <= 2 * max_mean_error(z, y)[0] + 1e-6
    near = torch.full((1, 6, 5), 30.0) + torch.arange(6)[:, None] * 2.0 ** -16  # exact in fp32
    want = plain_triplet(near.double(), 1e-8)
    assert torch.allclose(triplet_margin(near.to(device), 1e-8).cpu().double(), want, rtol=1e-5, atol=0)

@pytest.mark.parametrize("B, T, D", [(1, 1, 3), (3, 7, 5)])
def test_our_gru_is_torchs(B, T, D):
    layer = GRU(D, 11).double()
    x = torch.randn(B, T, D, dtype=torch.double, requires_grad=True)
    outs = [layer(x), torch.nn.GRU.forward(layer, x)[0]]
    upstream = torch.randn(B, T, 11, dtype=torch.double)
    grads = [torch.autograd.grad(out, [x, *layer.parameters()], upstream) for out in outs]
    for a, b in zip([outs[0], *grads[0]], [outs[1], *grads[1]], strict=True):
        assert torch.allclose(a, b, atol=1e-12)

@pytest.mark.parametrize("length", [[1, 5, 3, 5], [2, 2, 2, 2], [1, 1, 4, 1]])
def test_a_row_of_the_gru_may_end_early(length):
    """The states before the end, and their gradients, are nn.GRU's; in bfloat16 nearly so."""
    x = torch.randn(4, 5, 6, requires_grad=True)
    length = torch.tensor(length)
    is_needed = (torch.arange(5) < length[:, None])[:, :, None]
    upstream = torch.randn(4, 5, 40) * is_needed
    for bf16, tolerance in ((False, 1e-5), (True, 0.03)):
        layer = GRU(6, 40, bf16)
        ours = layer(x, length)
        theirs = torch.nn.GRU.forward(layer, x)[0] * is_needed
        inputs = [x, *layer.parameters()]
        ours, theirs = ([out, *torch.autograd.grad(out, inputs, upstream)] for out in (ours, theirs))
        for a, b in zip(ours, theirs, strict=True):
            assert a.dtype == torch.float32 and (a - b).norm() <= tolerance * b.norm()
        assert not bf16 or not torch.equal(ours[0], theirs[0])
        with torch.no_grad():  # a clip is the same clip, drawn alone or beside others
            assert torch.allclose(layer(x)[:1], layer(x[:1]), atol=1e-6)

@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 2)])
def test_the_last_layer_is_torchs(size):
    layer = ToColours(5).double()
    x = torch.randn(2, 5, *size, dtype=torch.double, requires_grad=True)
    outs = [layer(x), torch.nn.ConvTranspose2d.forward(layer, x)]
    upstream = torch.randn_like(outs[1])
    grads = [torch.autograd.grad(out, [x, *layer.parameters()], upstream) for out in outs]
    for a, b in zip([outs[0], *grads[0]], [outs[1], *grads[1]], strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, atol=1e-12)

def test_the_backend_and_its_reason(monkeypatch, capsys):
    x = torch.zeros(1, 1, 24, 16)
    for name, value in dict(_reasons_told=set(), triton=mock.Mock(), INTERPRETED=True).items():
        monkeypatch.setattr(backend, name, value)
    monkeypatch.setenv("NAV_KERNELS", "torch")
    assert name_backend("cpu") == "torch: NAV_KERNELS=torch" and laplacian_l1(x, x, 3).item() == 0
    monkeypatch.setenv("NAV_KERNELS", "triton")
    for loss, *args in ((laplacian_l1, x, x, 3), (triplet_margin, torch.zeros(1, 65, 4)),
                        (laplacian_l1, x[:, :, :16].double(), x[:, :, :16], 3)):
        with pytest.raises(RuntimeError, match="NAV_KERNELS=triton, but"):
            loss(*args)
    monkeypatch.delenv("NAV_KERNELS")
    assert not any(backend.use_triton("a", torch.device("cuda"), "2 levels") for _ in range(2))
    assert capsys.readouterr().err.count("2 levels") == 1
    monkeypatch.setattr(backend, "INTERPRETED", False)
    monkeypatch.delenv("CC", raising=False)
    for compiler, headers, version, said in (
            ("gcc", False, (9, 0), "headers (python3-dev)"), (None, True, (9, 0), "(gcc or clang)"),
            ("gcc", True, (7, 5), "capability 8.0"), ("gcc", True, (9, 0), "triton")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: version)
        monkeypatch.setattr(backend.shutil, "which", lambda name: compiler)
        monkeypatch.setattr(backend.os.path, "exists", lambda path: headers)
        backend._missing_for_triton.cache_clear()
        assert name_backend("cuda").endswith(said)
    backend._missing_for_triton.cache_clear()

def test_kernels_import_without_triton():
    code = ("import sys; sys.modules['triton'] = None; import torch, kernels; "
            "print(kernels.name_backend('cpu')); print(kernels.triplet_margin(torch.zeros(1, 4, 2)).item())")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["torch: triton is not installed", "2.0"], done.stderr

@pytest.mark.skipif(backend.triton is None, reason="triton is not installed")
def test_the_kernels_compile_and_hardly_spill():
    command = [sys.executable, "-m", "kernels.bench", "--compile", "--json", os.path.abspath("table.json")]
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    table = read_json("table.json")["table"]
    assert len(table) == 8 and {row["kernel"] for row in table} == {"_laplacian_kernel", "_triplet_kernel"}
    for row in table:
        trains = row["kernel"] == "_laplacian_kernel" and row["dtype"] == "bf16" and row["gradient"]
        assert 0 < row["registers"] <= 255 and row["spilled"] <= 32 * trains, row

def test_the_losses_bench_prints_and_keeps_a_table(monkeypatch):
    from kernels import bench
    monkeypatch.setattr(bench, "FRAMES", dict(cpu=(1,)))
    monkeypatch.setattr(bench, "CODES", dict(cpu=(1,)))
    monkeypatch.setattr(bench, "microseconds", lambda call, device: call() is None or (1.0, 2.0, 3.0))
    table = bench.time_all(CPU)
    assert [row["passes"] for row in table[:5]] == ["forward", "forward+backward"] * 2 + ["with_grad"]
    assert {row["loss"] for row in table} == {"laplacian", "triplet"} and table[0]["GB_per_s"] > 0

# ---- codes and settings ------------------------------------------------------------------------------------
def test_table_6_is_the_papers():
    for line in """chair 206 50 0.01 0.01 2 4 6.25e-5 6.25e-5 12.5 1500
                   weizmann 56 200 0.01 0.1 2 3 6.25e-5 6.25e-3 12.5 3500
                   golf 56 200 0.01 0.01 2 4 0.1 0.1 12.5 10000""".splitlines():
        name, *numbers = line.split()
        ours = nav.TABLE_6[name] | nav.PAPER[name]
        assert list(ours.values()) == [float(n) for n in numbers]
    assert list(ours) == "D_s D_t lambda_s lambda_t alpha levels lr_G lr_R lr_Z steps".split()

def test_every_setting_is_an_option_with_its_help():
    said = run_ok("--help")
    for f in fields(nav.Settings):
        begin = re.escape(f.metadata["help"][:20])
        assert re.search(rf"--{f.name.replace('_', '-')}[ ,].*?(\n +|  ){begin}", said), f.name
    for action in nav.ACTIONS:  # at the top, with an example; its own help has its own options alone
        assert re.search(rf"nav.py {action.__name__} --\w+ \w+", said[:said.index("options:")])
    experts = said.index("options for experts")
    assert all(experts > said.index(f"\n  --{name} ") for name in ("resume", "steps"))
    alone = run_ok("sample", "--help")
    assert "--count" in alone and "--steps" not in alone and "--seeds" not in alone

@pytest.mark.parametrize("momentum", [False, True])
def test_rows_follow_torchs_optimisers(momentum):
    """A row of every step follows torch.optim (Adam, or SGD with momentum 0.9); others do not move."""
    torch.manual_seed(0)
    dictionary = nav.Dictionary(4, 6, momentum=momentum)
    before = dictionary.z.clone()
    code = torch.nn.Parameter(dictionary.z[2].double())
    optimiser = torch.optim.SGD([code], 0.1, momentum=0.9) if momentum else torch.optim.Adam([code], 0.1)
    norms = []
    for g in torch.randn(9, 3, 6):
        dictionary.update(torch.tensor([2, 1]), g[:2], 0.1)
        code.grad = g[0].double()
        optimiser.step()
        norms.append(code.norm().item())
        code.data /= max(1.0, norms[-1])  # the unit ball (Sec. 3.3)
    assert torch.allclose(dictionary.z[2].double(), code, atol=1e-5) and min(norms) < 1 < max(norms)
    assert torch.equal(dictionary.z[[0, 3]], before[[0, 3]]) and not torch.equal(dictionary.z[1], before[1])

@pytest.mark.parametrize("rho", [1, 2, 5])
def test_low_rank_is_the_best_approximation(rho):
    z = torch.randn(2, 8, 5)
    left = nav.low_rank(z, rho)
    error = torch.linalg.svdvals(z)[:, rho:].square().sum(1)  # Eckart-Young
    assert torch.allclose((z - left).square().sum((1, 2)), error, atol=1e-5)
    assert (torch.linalg.svdvals(left)[:, rho:] < 1e-5).all()

# ---- networks, the objective, and the two stages -----------------------------------------------------------
@pytest.mark.parametrize("size, width", [(16, 1), (64, 8), (128, 8)])
def test_generator_draws_every_size_and_heeds_its_label(size, width):
    codes = torch.randn(2, 9)
    frames = nav.Generator(9, size, width)(codes, None)
    assert frames.shape == (2, 3, size, size) and frames.abs().max() <= 1
    G = nav.Generator(9, size, width, labels=4).eval()
    assert not torch.equal(G(codes, torch.tensor([0, 1])), G(codes, torch.tensor([0, 2])))

@pytest.mark.parametrize("frames, layout", [(6, "static"), (2, "grid"), (6, "both"), (2, "both")])
def test_gradient_is_that_of_equation_6(frames, layout):
    """`objective`, R once for each row and as far as needed, against autograd through the sum over clips, R
    for every clip. Where rows end early, l_triplet is of the rows that reach the last frame."""
    trainer = trainer_of(laid_out(layout), lambda_s=0.3, lambda_t=0.5, alpha=3, per_clip=frames, batch=4)
    m = trainer.model
    batch = trainer.batches.gather(*trainer.batches.choose())
    z_s, z_t = m.z_s.codes_of(batch.static_rows), m.z_t.codes_of(batch.transient_rows)
    v_hat, losses, sums = nav.objective(m, trainer.s, batch, z_s, m.R(z_t, batch.length))
    ours = [z_s.grad, z_t.grad, *(p.grad.clone() for p in m.parameters())]
    m.zero_grad()
    static_row = trainer.batches.static_id[batch.clips]
    transient_row = trainer.batches.transient_id[batch.clips]
    a, b = m.z_s.codes_of(static_row), m.z_t.codes_of(transient_row)
    r = m.R(b)
    rendered = m.render(a, torch.stack([r[j, batch.times[j]] for j in range(4)]), transient_row)
    l = plain_laplacian(rendered, batch.v, 3).view(4, frames)
    is_whole = (batch.length == 6)[batch.transient_of_clip]
    assert is_whole.all() == ((frames, layout) != (2, "both"))
    l_triplet = torch.where(is_whole, plain_triplet(r, 3.0, 3) * (4 / is_whole.sum()), 0)
    loss = (l.mean(1) + 0.3 * l[:, 0] + 0.5 * l_triplet).sum()
    loss.backward()
    theirs = [torch.zeros_like(z_s).index_add_(0, batch.static_of_clip, a.grad),
              torch.zeros_like(z_t).index_add_(0, batch.transient_of_clip, b.grad)]
    theirs += [*(p.grad for p in m.parameters()), rendered, l]
    theirs.append(torch.stack([loss, l.mean(1).sum(), l_triplet.sum()]))
    ours += [v_hat, losses, sums]
    assert all(torch.allclose(x, y, atol=1e-5, rtol=1e-4) for x, y in zip(ours, theirs, strict=True))

def test_rows_that_r_leaves_early_are_any_rows():
    """On the average of many steps every clip's l_triplet has weight 1, as in Eq. 6."""
    trainer = trainer_of(toy_clips(12, rows=(range(12), range(12))), batch=8, per_clip=1)
    weight = torch.zeros(12)
    frames = 0
    for _ in range(2000):
        batch = trainer.batches.gather(*trainer.batches.choose())
        is_whole = batch.length == 6
        weight[batch.transient_rows] += is_whole * 8 / is_whole.sum()
        frames += batch.length.sum().item()
        needed = torch.zeros(8, dtype=torch.long).scatter_(0, batch.transient_of_clip, batch.times[:, 0] + 1)
        assert (batch.length >= needed).all() and 2 <= is_whole.sum()
    assert torch.allclose(weight / (2000 * 8 / 12), torch.ones(12), atol=0.1)
    assert frames < 0.8 * 2000 * 8 * 6

def test_paper_recipe_against_a_reference_of_a_few_lines():
    """Sec. 3.1, three times: Adam on gamma; with the new gamma, Adam on theta, SGD with momentum on codes."""
    changes = dict(recipe="paper", batch=1, lr_G=1e-3, lr_R=2e-3, lr_Z=0.5, lambda_s=0.1, lambda_t=0.2)
    trainer, twin = (trainer_of(toy_clips(1), **changes) for _ in range(2))
    m = twin.model
    codes = [torch.nn.Parameter(z.clone()) for z in (m.z_s.z, m.z_t.z)]
    adam_G = torch.optim.Adam(m.G.parameters(), lr=1e-3)
    adam_R = torch.optim.Adam(m.R.parameters(), lr=2e-3)
    sgd = torch.optim.SGD(codes, lr=0.5, momentum=0.9)
    clip_loss = 1.0
    for _ in range(3):
        batch = twin.batches.gather(*twin.batches.choose())
        for optimisers, lambda_t in (([adam_G], 0.0), ([adam_R, sgd], 0.2)):
            r = m.R(codes[1])
            code_of_frame = torch.cat([codes[0].expand(6, -1), r[0, batch.times[0]]], 1)
            l = plain_laplacian(m.G(code_of_frame, None), batch.v, 3)
            for optimiser in (adam_G, adam_R, sgd):
                optimiser.zero_grad()
            (l.mean() + 0.1 * l[0] + lambda_t * plain_triplet(r).sum()).backward()
            for optimiser in optimisers:
                optimiser.step()
        for z in codes:
            z.data = nav.unit_ball(z.data)
        clip_loss += 0.1 * (l.mean().item() - clip_loss)
    ours = after(3, trainer).model
    for p, q in zip([ours.z_s.z, ours.z_t.z, *ours.parameters()], [*codes, *m.parameters()]):
        assert torch.allclose(p, q, atol=1e-5)  # of 1e-3; where a gradient is near 0 its rounding shows
    assert trainer.batches.clip_loss.item() == pytest.approx(clip_loss, abs=1e-5)

# ---- training and batches ----------------------------------------------------------------------------------
@pytest.mark.parametrize("more", [
    {}, dict(recipe="paper"), dict(augment=True, decay=2.5), dict(recurrent=False)])
def test_resume_is_bit_exact(more):
    straight, stopped, resumed = (trainer_of(window="random", lr_Z=0.01, **more) for _ in range(3))
    resumed.restore(copy.deepcopy(after(6, stopped).state()))
    assert bit_equal(after(13, straight).state(), after(7, resumed).state())

def test_pictures_of_an_unfinished_run_are_of_the_average(toy):
    """Against the same steps with the average computed here; behind the last step it is the model."""
    trainer = trainer_of(steps=200, lr_G=0.01)
    theirs = trainer.model.state_dict()["G.code.weight"].clone()
    for step in range(1, 201):
        rate = nav.schedule(step - 1, 200)
        now = after(1, trainer).model.state_dict()
        if step % 4 == 0:
            theirs += min(1.0, 4 / min(rate * 8, step / 8)) * (now["G.code.weight"] - theirs)
        if step in (40, 150):
            assert torch.allclose(trainer.average["G.code.weight"], theirs, atol=1e-7)
            assert not torch.equal(theirs, now["G.code.weight"])
    assert all(torch.equal(trainer.average[name], now[name]) for name in trainer.average)
    assert {name for name in now if name not in trainer.average} == {
        f"{table}.{name}" for table in ("z_s", "z_t") for name in ("m", "v", "count")}
    assert not after(4, trainer_of(recipe="paper")).average
    with ctrl_c(30):
        run(*toy, "--steps", 60, "--out", "run")
    kept, model = checkpoint("run"), nav.load("run", "cpu").model.state_dict()
    assert kept["steps_done"] == 31 and torch.equal(model["z_s.z"], kept["average"]["z_s.z"])
    assert not torch.equal(model["z_s.z"], kept["model"]["z_s.z"])

@pytest.mark.parametrize("layout", ["static", "grid"])
def test_two_threads_repeat_bit_for_bit(two_threads, layout):
    """Codes large enough for PyTorch to share the work out: rows add up in the same order each time."""
    twins = [trainer_of(laid_out(layout), D_t=1000, batch=6, per_clip=1) for _ in range(2)]
    assert bit_equal(*(after(1, trainer).state() for trainer in twins))

@pytest.mark.parametrize("recipe, steps, until", [("fast", 200, 100), ("fast", 2000, 200), ("paper", 9, 5)])
def test_norms_learn_early_then_stay(recipe, steps, until):
    trainer = trainer_of(recipe=recipe, steps=steps)
    for step in (0, until - 1, until, steps - 1):
        trainer.steps_done = step
        before = trainer.model.G.layers[0].running_mean.clone()
        stay = torch.equal(after(1, trainer).model.G.layers[0].running_mean, before)
        assert stay == (step >= until and recipe == "fast"), step

def test_every_pass_visits_every_clip_once():
    clips = toy_clips(5)
    batches = nav.Batches(clips, settings(recipe="paper", per_clip=4), CPU)
    met = []
    static_frames = set()
    for _ in range(60):
        batch = batches.gather(*batches.choose())
        met += batch.clips.tolist()
        static_frames |= set(batch.times[:, 0].tolist())
        for j, shown, frames in zip(batch.clips, batch.times, batch.v.unflatten(0, (2, 4))):
            assert len({*shown.tolist()}) == 4
            assert np.array_equal(frames.permute(0, 2, 3, 1), clips.videos[j][shown])
    passes = [tuple(met[i:i + 5]) for i in range(0, 120, 5)]
    assert all(sorted(each) == list(range(5)) for each in passes) and len(set(passes)) > 15
    assert static_frames == set(range(6))

def test_hard_clips_come_more_often():
    """Over many steps a clip comes as (its loss / the mean)^3, at most 8 times and at least an eighth."""
    loss = torch.tensor([1.0, 1.2, 0.9, 1.5, 1.0, 0.8, 2.5, 0.0])
    batches = nav.Batches(toy_clips(8), settings(batch=1, per_clip=2), CPU)
    times = torch.zeros(8)
    for step in range(5000):
        clips, _ = batches.choose()
        batches.update_losses(clips, torch.stack([0.5 * loss[clips], 1.5 * loss[clips]], 1))
        times[clips] += step >= 1000  # by then it knows all losses
    expected = ((loss / loss.mean()) ** 3).clamp(1 / 8, 8)
    assert torch.allclose(times / times.sum(), expected / expected.sum(), atol=0.008) and times.min() > 0
    assert torch.allclose(batches.clip_loss, loss, atol=0.01)

def test_random_windows_are_consecutive_and_reach_both_ends():
    full = np.arange(15, dtype=np.uint8)[:, None, None, None] * np.ones((1, 16, 16, 3), np.uint8)
    clips = replace(toy_clips(2), length=np.array([6, 9]), full=full)
    batches = nav.Batches(clips, settings(window="random"), CPU)
    begins = set()
    for _ in range(60):
        batch = batches.gather(*batches.choose())
        for j, order, values in zip(batch.clips.tolist(), batch.times, batch.v[:, 0, 0, 0].view(2, 6).int()):
            assert (values[order.argsort()].diff() == 1).all()
            begins.add((j, values.min().item()))
    assert begins == {(0, 0), (1, 6), (1, 7), (1, 8), (1, 9)}

# ---- our recipe --------------------------------------------------------------------------------------------
def test_rates_rise_stay_and_fall_to_zero():
    rates = [nav.schedule(step, 1000) for step in range(1000)]
    assert rates[0] == 1 / 50 and rates[49:301] == [1.0] * 252 and 0 < rates[-1] < 0.003
    assert rates[650] == pytest.approx(0.5)
    assert rates[:50] == sorted(rates[:50]) and rates[300:] == sorted(rates[300:], reverse=True)

@pytest.mark.parametrize("bf16, off", [(False, 1e-4), (True, 0.02)])
@pytest.mark.parametrize("c_in, c_out", [(16, 8), (64, 3), (48, 3)])  # fewer, more, as many rows as columns
def test_muon_moves_all_directions_alike(c_in, c_out, bf16, off):
    """Against the SVD: an update has the momentum's directions, all of one size, elements of about lr."""
    torch.manual_seed(0)
    w = torch.nn.Parameter((0.02 * torch.randn(c_in, c_out, 4, 4)).to(memory_format=torch.channels_last))
    muon = nav.Muon([w], bf16=bf16)
    muon.param_groups[0]["lr"] = torch.tensor(0.01)
    k = min(c_in, 16 * c_out)
    size = max(c_in, 16 * c_out) ** 0.5
    u, v = (torch.linalg.qr(torch.randn(n, k, dtype=torch.double))[0] for n in (c_in, 16 * c_out))
    w.grad = (u * torch.linspace(0.3, 1.5, k) @ v.T).float().view_as(w)  # condition number 5
    muon.step()  # which computes the root at its end
    before = w.detach().clone()
    muon.step()
    turned = u.T @ ((before - w) / 0.01).detach().double().flatten(1) @ v / size
    found = (turned - turned.diagonal().diag()).abs().max()  # in the momentum's own directions
    assert found < off and (found > 1e-4) == bf16
    assert 0.6 < turned.diagonal().min() and turned.diagonal().max() < 1.3

def test_first_r_is_the_identity_and_decay_spares_norms():
    torch.manual_seed(0)
    R, z = nav.Recurrent(8), nav.unit_ball(torch.randn(3, 6, 8))
    before = (R(z) - z).norm()
    nav.start_as_identity(R, z)
    assert (R(z) - z).norm() < 0.3 * before
    plain, decayed = (trainer_of(augment=True, decay=decay, lr_G=0.1) for decay in (0.0, 2.5))
    start = {name: p.detach().clone() for name, p in plain.model.G.named_parameters()}
    ours = dict(after(1, decayed).model.G.named_parameters())
    for name, p in after(1, plain).model.G.named_parameters():  # the first step's rate is lr_G / 50
        assert torch.allclose(ours[name], p - 2.5 * 0.1 / 50 * start[name] * (p.ndim > 1), atol=1e-7), name

def test_augmented_frames_are_shifted_recoloured_and_say_so():
    v = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (400, 3, 16, 16), dtype=np.uint8))
    v[:, :, 4:8] = v[:, :1, 4:8]  # rows of greys
    out, numbers = nav.augment(v, torch.rand(400, 5, generator=torch.Generator().manual_seed(1)))
    moved, turned = (numbers[:, ids].abs().sum(1) > 0 for ids in ([0, 1], [2, 3]))
    assert 0.35 < moved.float().mean() < 0.6 and 0.4 < turned.float().mean() < 0.6
    assert torch.equal(out[~moved & ~turned], v[~moved & ~turned])
    assert (out[~moved, :, 4:8].int() - v[~moved, :, 4:8].int()).abs().max() <= 1  # grey and white stay
    assert (out[turned & ~moved] != v[turned & ~moved]).any((1, 2, 3)).all()
    for frame, shifted, number in zip(v[moved & ~turned], out[moved & ~turned], numbers[moved & ~turned]):
        right, down = (4 * number[:2]).int().tolist()
        padded = np.pad(frame.numpy(), ((0, 0), (4, 4), (4, 4)), "edge")
        assert np.array_equal(shifted, padded[:, 4 - down : 20 - down, 4 - right : 20 - right])

def test_aligned_windows_find_the_frames_that_move_alike():
    """Three people do two motions, each at a time of their own: the windows found undo those times."""
    rng = np.random.default_rng(0)
    late = np.array([[0, 5, 3], [2, 7, 1]])
    films = []
    for action, person in itertools.product(range(2), range(3)):
        film = np.full((20, 32, 32, 3), rng.integers(40, 200, 3), np.uint8)
        colour = rng.integers(0, 255, 3)
        for t in range(20):
            x = int(13 + 12 * np.sin((1 + action) * (t + late[action, person]) ** 1.3 / 5))
            film[t, 8 + 9 * action : 18 + 9 * action, x : x + 5] = colour
        films.append(film)
    clips = data_prep.from_clips(films, 8, list("abcdef"), list("xyz") * 2, list("jjjkkk"), "test", "own")
    every = [[film[t : t + 8].tobytes() for t in range(13)] for film in clips.full.reshape(6, 20, 32, 32, 3)]
    for held_out in ([], [1, 5]):  # which then have no say, and follow
        found = data_prep.at_windows(clips, data_prep.aligned(clips, held_out))
        begin = [films.index(video.tobytes()) for video, films in zip(found.videos, every)]
        assert all(np.ptp(row) == 0 for row in np.array(begin).reshape(2, 3) + late), begin
    clips.full.reshape(6, 20, -1)[2:4] = clips.full.reshape(6, 20, -1)[2:4, ::-1]  # held out: backwards
    s = settings(hold_out=2)
    begin = data_prep.aligned(clips, nav.held_out_clips(clips, s))
    alone = data_prep.aligned(nav.keep_from_training(clips, s)[0])
    assert np.array_equal(np.delete(begin, nav.held_out_clips(clips, s)), alone)

# ---- measures ----------------------------------------------------------------------------------------------
# scikit-image 0.26.0: structural_similarity(x, y, gaussian_weights=True, sigma=1.5, data_range=1,
# use_sample_covariance=False, channel_axis=-1) of two images: seed, height, width, noise

@pytest.mark.parametrize("seed, height, width, noise, expected", [
    (0, 64, 64, 0.1, 0.829659351564758), (1, 33, 47, 0.3, 0.4269317132754757),
    (2, 16, 16, 0.02, 0.9925284091078406)])
def test_ssim_agrees_with_scikit_image(seed, height, width, noise, expected):
    i, j = np.mgrid[:height, :width]
    x = np.stack([0.5 + 0.5 * np.sin((c + 1) * i / 7 + j / 5) for c in range(3)], -1)
    y = np.clip(x + noise * np.random.default_rng(seed).standard_normal(x.shape), 0, 1)
    x, y = (torch.from_numpy(v).permute(2, 0, 1)[None] for v in (x, y))
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-4)):
        both = nav.moments(x.to(dtype)), nav.moments(y.to(dtype))
        assert nav.ssim(*both).item() == pytest.approx(expected, abs=tolerance)

@pytest.fixture(scope="session")
def vgg16(tmp_path_factory):
    """VGG16's first layers with random weights, as a file."""
    widths = [3, 64, 64, 128, 128, 256, 256, 256]
    weights = {}
    for layer, c_in, c_out in zip((0, 2, 5, 7, 10, 12, 14), widths, widths[1:]):
        weights[f"features.{layer}.weight"] = 0.05 * torch.randn(c_out, c_in, 3, 3)
        weights[f"features.{layer}.bias"] = 0.3 * torch.randn(c_out)
    torch.save(weights, tmp_path_factory.getbasetemp() / "vgg16.pth")
    return tmp_path_factory.getbasetemp() / "vgg16.pth"

@pytest.mark.parametrize("at_once", [1, 2 * 4 * 16 * 16, 2 ** 18])
def test_psnr_fcs_and_mcs_by_hand(vgg16, monkeypatch, at_once):
    """MCS is log10 |f - f^|^2, in float64, of what VGG16 sees move from frame to frame."""
    a, b = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 4, 16, 16, 3), np.uint8))
    assert nav.psnr(a, b).tolist() == pytest.approx([dB(x, y.numpy()) for x, y in zip(a, b)], abs=1e-4)
    assert nav.psnr(a, a).tolist() == [100.0] * 3
    ssims = [[nav.ssim(nav.moments(clip[0]), nav.moments(v)).item() for v in clip]
             for clip in nav.unit_frames(a)]
    fcs = nav.fcs(nav.moments(nav.unit_frames(a)))
    assert fcs.tolist() == pytest.approx(np.mean(ssims, 1).tolist(), abs=1e-5)
    phi, why = nav.load_vgg16(str(vgg16), CPU)
    relu3_3 = copy.deepcopy(phi).double()
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).double()[..., None, None]
    sets = [[relu3_3((v.permute(0, 3, 1, 2) / 255 - mean) / std) for v in each] for each in (a, b[:2])]
    moves = [[v[t + 1] - v[t] for v in each for t in range(3)] for each in sets]
    expected = torch.sub(*(sum(each) / len(each) for each in moves)).square().sum().log10().item()
    monkeypatch.setattr(nav, "PIXELS_AT_ONCE", at_once)
    found = nav.scores(a.split(2), b[:2], phi, None)
    assert why is None and found["mcs"] == pytest.approx(expected, abs=1e-4)
    pairs = nav.scores(a.split(2), b, phi, None, pairs=True)
    of_a, of_b = (nav.moments(nav.unit_frames(clips)) for clips in (a, b))
    assert pairs["psnr"] == pytest.approx(nav.psnr(a, b).mean().item())
    assert pairs["psnr_min"] == nav.psnr(a, b).min().item()
    assert pairs["ssim"] == pytest.approx(nav.ssim(of_a, of_b).mean().item())
    assert found["fcs"] == pytest.approx(fcs.mean().item())
    assert found["fcs_bound"] == pytest.approx(nav.fcs(of_b)[:2].mean().item())
    equal = nav.scores(a.split(2), a, phi, None)
    assert equal["mcs"] is None and "-inf" in equal["mcs_note"]
    assert equal["fcs"] == pytest.approx(equal["fcs_bound"])

def test_the_nearest_clip_and_its_distance():
    real = torch.from_numpy(np.random.default_rng(0).integers(0, 204, (70, 6, 32, 32, 3), np.uint8))
    index, distance = nav.nearest(torch.stack([real[8], real[3] + 51]), nav.thumbnails(real))
    assert index.tolist() == [8, 3] and distance[0] == 0
    assert distance[1].item() == pytest.approx(0.2, abs=1e-5)

def test_what_each_score_sees(vgg16):
    """Frozen clips have the best FCS, noise between true ends the best MCS; MCS_t sees both, and order."""
    phi, _ = nav.load_vgg16(str(vgg16), CPU)
    real = torch.from_numpy(toy_clips(4, size=32).videos)
    noise = torch.randint_like(real, 256)
    noise[:, [0, -1]] = real[:, [0, -1]]
    sets = dict(near=(real.int() + 1).clamp(max=255).byte(), frozen=real[:, :1].expand_as(real), noise=noise,
                shuffled=real[:, [0, 4, 2, 3, 1, 5]], one=real[:1].expand_as(real))
    found = {name: nav.scores([clips], real, phi, None) for name, clips in sets.items()}
    assert found["frozen"]["fcs"] == pytest.approx(1, abs=1e-6) and found["one"]["distinct_nearest"] == 1
    assert found["noise"]["mcs"] < found["near"]["mcs"] and found["near"]["distinct_nearest"] == 4
    assert found["near"]["mcs_t"] < min(found[name]["mcs_t"] for name in "frozen noise shuffled one".split())

# ---- unseen pairs, ablation, encoding ----------------------------------------------------------------------
def test_held_out_cells_leave_every_row_and_column():
    clips = laid_out("3 x 3")
    whole = dict(zip(clips.names, clips.videos))
    for K, seed in itertools.product(range(1, 5), range(5)):
        train_set, held_out = nav.keep_from_training(clips, settings(hold_out=K, seed=seed))
        assert len(held_out.names) == K and sorted(train_set.names + held_out.names) == sorted(clips.names)
        assert set(train_set.static_id) == set(train_set.transient_id) == {0, 1, 2}
        assert all(np.array_equal(whole[name], v) for name, v in zip(train_set.names, train_set.videos))
    with pytest.raises(DataError, match="at most"):
        nav.keep_from_training(clips, settings(hold_out=7))
    clips = toy_clips(5, L=9)
    train_set, held_out = nav.keep_from_training(clips, settings(hold_out_clips=2, every=2))
    assert held_out.names == clips.names[3:] and train_set.static_names == ["s0", "s1", "s2"]
    assert np.array_equal(train_set.videos, clips.videos[:3, ::2]) and train_set.length.tolist() == [5] * 3
    assert np.array_equal(train_set.full.reshape(train_set.videos.shape), train_set.videos)

@pytest.fixture(scope="module")
def grid_run(tmp_path_factory):
    """A run on a 3 x 3 grid with 3 cells kept from training, of rank 2 -> its folder, settings, model."""
    folder = tmp_path_factory.mktemp("grid")
    data_prep.save(replace(laid_out("3 x 3"), fps=12.5), folder / "grid.npz")
    run_ok(*"--width 8 --steps 150 --device cpu --precision fp32 --hold-out 3 --rank 2".split(),
         "--dataset", folder / "grid.npz", "--out", folder / "run")
    loaded = nav.load(folder / "run", "cpu")
    return folder / "run", loaded.settings, loaded.model

def test_exchange_interpolation_and_rank_in_a_run(grid_run):
    folder, s, model = grid_run
    weizmann = dict(nav.TABLE_6["weizmann"], conditional=False, augment=True)
    assert read_json(folder / "config.json") == read_json(folder / "config.json") | weizmann
    metrics = read_json(folder / "metrics.json")
    seen, unseen = nav.keep_from_training(laid_out("3 x 3"), s)
    expected = []
    for truth, i, k in zip(unseen.videos, unseen.static_id, unseen.transient_id):
        person, action = seen.videos[seen.static_id == i], seen.videos[seen.transient_id == k]
        additive = np.clip(person.mean(0) + action.mean(0) - seen.videos.mean(0), 0, 255)
        expected.append([max(dB(truth, v) for v in person), dB(truth, additive)])
    baselines = [metrics[f"exchange_{name}_psnr"] for name in ("nearest", "additive")]
    assert baselines == pytest.approx(np.mean(expected, 0), abs=1e-3) and metrics["videos"] == 6
    ours = nav.videos(model, unseen.static_id, unseen.transient_id).numpy()
    assert metrics["exchange_psnr"] == pytest.approx(np.mean([*map(dB, ours, unseen.videos)]), abs=1e-3)
    assert (torch.linalg.svdvals(checkpoint(folder)["model"]["z_t.z"])[:, 2:] < 1e-5).all()
    assert "3 of them unseen" in run_ok("exchange", "--run", folder, "--device", "cpu")
    sheet = np.asarray(Image.open(folder / "exchange.png").convert("RGB"))
    assert (sheet == nav.FRAME).all(2).sum() >= 3 * 2 * (16 + 48) * 2
    weights = nav.line(6, [1, 4], 3)  # from frame to frame of the clip
    assert torch.allclose(weights @ torch.arange(6.0), torch.tensor([1, 1.75, 2.5, 3.25, 4]))
    shown = nav.frames_between(model, (0, 0), weights)
    assert len(shown) == 5 and torch.equal(shown[[0, -1]], nav.videos(model, [0], [0])[0][[1, 4]])
    z_t = model.z_t.z[:1]
    longer = torch.cat([z_t[:, :2], 0.5 * (z_t[:, 1:2] + z_t[:, 2:3]), z_t[:, 2:3]], 1)
    expected = nav.to_bytes(model.render(model.z_s.z[:1], model.R(longer), torch.tensor([0])))
    weights = torch.cat([torch.eye(6)[:1], nav.line(6, [1, 2], 1)])
    assert torch.equal(nav.frames_between(model, (0, 0), weights, "z"), expected)
    interpolate = ["interpolate", "--run", folder, "--device", "cpu"]
    assert "3 frames between" in run_ok(*interpolate, "--clip", 1, "--frames", 2, 5, "--between", 3)
    data_prep.save(toy_clips(L=4), "four.npz")
    run_ok("--dataset", "four.npz", "--device", "cpu", "--width", 8, "--steps", 2, "--out", "four")
    assert "3 frames between" in run_ok("interpolate", "--run", "four", "--device", "cpu")
    assert "40 frames between" in run_ok(*interpolate, "--fps-factor", 9)  # above 50 a second
    assert len(read_clip(folder / "interpolation.gif")) == 46
    assert "10 frames between" in run_ok(*interpolate, "--fps-factor", 3)
    by_r = read_clip(folder / "interpolation.gif")
    run_ok(*interpolate, "--fps-factor", 3, "--on", "z")
    assert not np.array_equal(read_clip(folder / "interpolation.gif"), by_r)

def test_samples_leave_as_arrays_and_files(grid_run, monkeypatch):
    """samples.npz is read as it is by evaluate, encode and data_prep.py; Python gives the same clips."""
    folder, s, model = grid_run
    sample = ["sample", "--run", folder / "checkpoint.pt", "--device", "cpu", "--out", "out"]
    assert "out/samples" in run_ok(*sample, "--static", "s1", 2, "--transient", "t0", "t2", "--save", "webp")
    made = np.load("out/samples.npz")
    assert made["static"].tolist() == ["s1", "s1", "s2", "s2"] and made["fps"] == 12.5
    assert made["names"].tolist() == ["s1_t0", "s1_t2", "s2_t0", "s2_t2"]
    loaded = nav.load(folder, "cpu")
    expected = loaded.clips(made["static"], made["transient"])
    assert expected.dtype == np.uint8 and np.array_equal(made["videos"], expected)
    assert np.array_equal(loaded.clip(2, "t2"), expected[3])
    for statics, transients in ((["s1"], ["t0", "t2"]), (["s1", "s2"], ["t0"]), ([], [])):
        with pytest.raises(DataError, match="as many expected"):
            loaded.clips(statics, transients)
    for name, clip in zip(made["names"], expected):
        assert np.array_equal(read_clip(f"out/samples/{name}.webp"), clip)
    grid = data_prep.load(folder.parent / "grid.npz")
    evaluate = ["evaluate", "--device", "cpu", "--real", folder.parent / "grid.npz", "--out", "e"]
    run_ok(*evaluate, "--generated", "out/samples.npz")
    inside = nav.scores([torch.from_numpy(expected)], torch.from_numpy(grid.videos), None, None)
    assert read_json("e/metrics.json")["fcs"] == inside["fcs"]
    run_ok(*evaluate, "--generated", "out")  # the same clips, and not the sheet of all of them
    assert read_json("e/metrics.json")["fcs"] == inside["fcs"]
    assert "no such file" in run_error(*evaluate[:4], "none", "--generated", "out")
    shutil.copytree(folder, "whole")
    run_ok(*evaluate, "--generated", "whole")  # its samples.npz, and no pictures of many clips
    assert read_json("e/metrics.json")["videos"] == len(np.load("whole/samples.npz")["videos"])
    Path("whole/samples.npz").unlink()
    assert "samples.npz" in run_error(*evaluate, "--generated", "whole")
    again = prepared("folder", "out/samples.npz", "--name", "again", "--grid", "--size", 16, "--frames", 6,
                     out="set")
    assert np.array_equal(again.videos, expected) and again.transient_names == ["t0", "t2"]
    assert "nearest: t2" in run_error(*sample, "--transient", "t22")
    assert "0 to 2" in run_error(*sample, "--static", 3)
    for wrong in (grid.videos[0] / 255, grid.videos[0][:5], grid.videos[0][:, 1:]):
        with pytest.raises(DataError, match="expected"):
            loaded.encode(wrong)
    codes = loaded.encode(grid.videos[0])
    assert codes["video"].shape == grid.videos[0].shape and codes["z_t"].shape == (6, 200)

def test_many_samples_differ_and_the_seed_draws_others(grid_run):
    folder, s, model = grid_run
    drawn = {}
    for seed, count in ((0, 9), (1, 9), (0, 20)):
        run_ok("sample", "--run", folder, "--device", "cpu", "--out", "out", "--count", count, "--seed", seed)
        drawn[seed, count] = np.load("out/samples.npz")["names"].tolist()
    assert len(set(drawn[0, 9])) == 9 and drawn[0, 9] != drawn[1, 9]
    assert sorted(drawn[0, 20]) == sorted(drawn[0, 9])  # there are nine pairs: none comes twice
    gaussian = ["--count", 20, "--prior", "gaussian", "--fps", 60]
    assert "at most 50" in run_ok("sample", "--run", folder, "--device", "cpu", "--out", "out", *gaussian)
    assert np.load("out/samples.npz")["videos"].shape[0] == 20
    with Image.open("out/samples.gif") as gif:
        assert gif.size == (64, 64)  # at most 16 clips
    many = [str(j) for j in range(30_000)]
    data = dict(pairs=[[j, j] for j in range(30_000)], clips=30_000, static_names=many, transient_names=many)
    model = mock.Mock(z_s=mock.Mock(z=torch.zeros(30_000, 2)))
    run = nav.Run(None, None, data, [], model)
    _, k, statics, words = nav.choose_codes(run, "unseen", 16, torch.Generator().manual_seed(0), None, None)
    pairs = set(zip(statics, k.tolist()))
    assert len(pairs) == 16 and all(int(i) != k for i, k in pairs) and "mixtures" in words

@pytest.mark.parametrize("layout, words", [
    ("grid", "of the 3 pairs that training never saw"), ("static", "new static codes"),
    ("both", "of the 30 pairs that training never saw; each clip has its own transient code")])
def test_samples_after_training_are_new(toy, layout, words):
    data_prep.save(toy_clips(6, rows=([0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 2, 0])), "six.npz")
    said = run_ok(*toy, "--dataset", "six.npz", "--layout", layout, "--steps", 2, "--out", "run")
    made = np.load("run/samples.npz")
    assert words in said and words in str(made["source"])
    assert len(made["videos"]) == (3 if layout == "grid" else 16)
    data = checkpoint("run")["data"]
    pairs = {(data["static_names"][i], data["transient_names"][k]) for i, k in data["pairs"]}
    assert not pairs & set(zip(made["static"].tolist(), made["transient"].tolist()))

def test_exchange_moves(grid_run):
    folder, s, model = grid_run
    run_ok("exchange", "--run", folder, "--device", "cpu", "--out", "out")
    whole = read_clip("out/exchange.gif")
    film, rate = data_prep.read_clip("out/exchange.mp4")
    assert len(film) == len(whole) == 6 and rate == 12.5 and film.shape[1] > 6 * whole.shape[1]
    is_framed = np.abs(whole - np.array(nav.FRAME)).max(-1) < 12
    assert (is_framed.sum((1, 2)) >= 3 * 4 * 4 * 16).all()  # three unseen cells of 16 x 16 within 4 pixels
    assert np.abs(np.diff(whole.astype(int), axis=0)).max() > 30

def test_encoding_comes_closer_than_any_known_clip(grid_run, monkeypatch):
    folder, s, model = grid_run
    real = torch.from_numpy(toy_clips(2, seed=9).videos)
    before = copy.deepcopy(model.state_dict())
    z_s, z_t, label = nav.find_codes(model, s, real, steps=60)
    assert bit_equal(before, model.state_dict()) and max(z.norm(dim=-1).max() for z in (z_s, z_t)) < 1.0001
    known = nav.videos(model, *torch.cartesian_prod(torch.arange(3), torch.arange(3)).T)
    def l_rec(videos, v):  # what it goes down by
        frames, v = (x.flatten(0, 1).permute(0, 3, 1, 2) for x in (videos, v.expand_as(videos)))
        return laplacian_l1(frames / 127.5 - 1, v, s.levels).view(len(videos), -1).mean(1)
    made = nav.videos_of(model, z_s, z_t, label)
    ratios = torch.stack([l_rec(clip[None], v)[0] / l_rec(known, v).min() for v, clip in zip(real, made)])
    assert ratios.max() < 0.99 and ratios.mean() < 0.9, ratios  # G of nine toy clips cannot draw every one
    large = toy_clips(1, L=7, size=40).videos[0]
    np.savez("clip.npz", clip=large)
    data_prep.write_clip(large, "clip.gif")
    for name in ("clip.npz", "clip.gif"):  # of another size, and a frame too many
        assert "PSNR" in run_ok("encode", "--run", folder, "--input", name, "--device", "cpu")
    assert torch.load(folder / "encoded.pt", weights_only=True)["z_t"].shape == (6, 200)
    loaded = nav.load(folder, "cpu")
    loaded.data["reading"]["fps"] = 5.0
    monkeypatch.setattr(nav, "load", lambda *_: loaded)
    Path("frames").mkdir()
    for k, picture in enumerate(large):
        Image.fromarray(picture).save(f"frames/{k}.png")
    said = run_ok("encode", "--run", folder, "--input", "frames", "--out", "o")
    assert "no times, taken as frames of 5 a second" in said and "its first 6 frames" in said

def test_clips_and_frames_kept_from_training_are_measured(toy):
    run_ok(*toy, "--steps", 4, "--hold-out-clips", 2, "--out", "run")
    metrics = read_json("run/metrics.json")
    clips = toy_clips().videos
    copies = [max(dB(truth, v) for v in clips[:3]) for truth in clips[3:]]
    assert metrics["videos"] == 3 and metrics["encode_psnr"] > 0
    assert metrics["encode_nearest_psnr"] == pytest.approx(np.mean(copies), abs=1e-3)
    run_ok("sample", "--run", "run", "--prior", "gaussian", "--count", 2, "--device", "cpu")
    clips = toy_clips(3, L=9)
    data_prep.save(clips, "long.npz")
    run_ok(*toy, "--dataset", "long.npz", "--steps", 4, "--every", 2, "--out", "every")
    metrics = read_json("every/metrics.json")
    means = [dB((v[0:-1:2] + v[2::2]) / 2, v[1::2]) for v in clips.videos.astype(float)]
    assert metrics["frames"] == 5 and metrics["interpolation_psnr"] > 0 < metrics["interpolation_z_psnr"]
    assert metrics["interpolation_average_psnr"] == pytest.approx(np.mean(means), abs=1e-3)
    data_prep.save(toy_clips(9, L=9, rows=LAYOUTS["3 x 3"]), "grid.npz")
    run_ok(*toy, "--dataset", "grid.npz", "--steps", 4, "--every", 2, "--hold-out", 2, "--out", "both")
    assert read_json("both/metrics.json")["exchange_nearest_psnr"] > 0
    run_ok(*"--clips 2 --every 2 --steps 1 --width 4 --device cpu --out drawn".split())
    sample = "sample --run drawn --prior gaussian --count 2 --device cpu"
    assert "training never saw" in run_ok(*sample.split())

def test_ablation_keeps_finished_rows(toy, vgg16, monkeypatch):
    ablate = ["ablate", *toy[:-2], "--steps", 2, "--generated-clips", 3, "--vgg16", vgg16, "--out", "out"]
    rows = []
    def make(s, *more, make=nav.Trainer):
        rows.append(s)
        if len(rows) == 3:
            raise KeyboardInterrupt
        return make(s, *more)
    monkeypatch.setattr(nav, "Trainer", make)
    assert run(*ablate)[0] == 130
    first = read_json("out/ablation.json")["ours"]
    assert list(first) == ["-triplet -static, seed 0", "-triplet +static, seed 0"]
    table = Path("out/ablation.md").read_text()  # of what is done
    mcs = first["-triplet +static, seed 0"]["mcs"]
    assert f"| -triplet +static | 3.82 | {mcs:.3f} | 0.85 |" in table and f"| -R |{' - |' * 6}" in table
    said = run_ok(*ablate, "--seeds", 2)
    assert [s.seed for s in rows] == [0] * 6 + [1] * 5 and Path("out/ablation.md").read_text() in said
    assert [(s.lambda_t > 0, s.lambda_s > 0, s.recurrent) for s in rows[:6]] == [
        (0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 0, 1), (1, 1, 1), (1, 1, 0)]
    ours = read_json("out/ablation.json")["ours"]
    assert len(ours) == 14 and ours | first == ours and ours["-R, seed 0"] != ours["-R, seed 1"]
    for name, paper in {"-Z": "3.96", "+Z": "3.32", "-triplet -static": "3.83", "-R": "-"}.items():
        values = [ours[f"{name}, seed {seed}"]["mcs"] for seed in (0, 1)]
        assert f"| {name} | {paper} | {np.mean(values):.3f} +- {np.std(values, ddof=1):.3f} (n=2) |" in said
    run_ok(*ablate, "--steps", 1, "--recipe", "paper")  # another table: the one before is kept
    assert read_json("out/earlier-1/ablation.json")["ours"] == ours and len(rows) == 16

def test_evaluate_scores_clips_of_other_software(toy):
    Path("made").mkdir()
    for j, clip in enumerate([*toy_clips(3, L=7, size=24).videos, toy_clips(1, L=3).videos[0]]):
        data_prep.write_clip(clip, f"made/clip{j}.gif")
    Path("made/notes.txt").write_text("no clip")
    np.savez("made.npz", clips=toy_clips(2).videos)
    evaluate = ["evaluate", "--real", toy[1], "--device", "cpu", "--out", ".", "--generated"]
    said = run_ok(*evaluate, "made")
    assert re.search("fewer than 6 frames.*clip3", said) and "notes.txt" in said and "3 clips of 6" in said
    metrics = read_json("metrics.json")
    assert (metrics["videos"], metrics["frames"]) == (3, 6) and 0 < metrics["fcs"] <= 1
    assert "2 clips of 6 frames" in run_ok(*evaluate, "made.npz")
    assert read_json("metrics.json")["fcs"] == pytest.approx(
        nav.fcs(nav.moments(nav.unit_frames(torch.from_numpy(toy_clips(2).videos)))).mean().item())

# ---- several processes -------------------------------------------------------------------------------------
def ctrl_c(at, rank=0):
    """Within it, Ctrl-C reaches process `rank` in the step after `at` steps."""
    def interrupted(trainer, step=nav.Trainer.step):
        if trainer.steps_done == at and nav.RANK == rank:
            signal.raise_signal(signal.SIGINT)
        return step(trainer)
    return mock.patch.object(nav.Trainer, "step", interrupted)

SHARED_STEPS = [("fast", "static"), ("fast", "grid"), ("fast", "both"), ("paper", "grid")]

def shared_step(recipe, layout, norms_learn=False):
    """The state after an update, and its losses. Slices of three processes: 2, 1, 1 clips; paper: 1, 0, 0."""
    batch = 4 if recipe == "fast" else 1
    trainer = trainer_of(laid_out(layout), recipe=recipe, batch=batch, per_clip=2, lambda_t=0.5)
    G = trainer.model.G.train(norms_learn)
    G.train = lambda mode: G
    losses = trainer.step()[2]
    return trainer.state(), losses

def on_each_process(folder):
    """What torchrun runs in three processes for the tests below; each leaves its results in RANK.pt."""
    nav.join_processes(CPU)
    nav.join_processes = lambda device: None
    nav.HIDDEN = 16
    found = dict(steps=[shared_step(*each) for each in SHARED_STEPS],
                 norms=shared_step("fast", "grid", True)[0])
    options = [*read_json(folder / "options.json"), "--out"]
    for more in ("whole", "half", "half --resume", "from_one --resume", "for_one", "none --resume"):
        torch.distributed.barrier()  # process 0 has written what the next run reads
        with ctrl_c(12, rank=1) if more in ("half", "for_one") else contextlib.nullcontext():
            found[more] = run(*options, *f"{folder}/{more}".split())
    found["evaluate"] = run("evaluate", "--run", folder / "whole")
    torch.save(found, folder / f"{nav.RANK}.pt")

if __name__ == "__main__":
    on_each_process(Path(sys.argv[1]))

@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three processes under torchrun, started once -> (their folder, what each found, the options)."""
    folder = tmp_path_factory.mktemp("three")
    data_prep.save(toy_clips(), folder / "toy.npz")
    options = (f"--dataset {folder}/toy.npz --width 4 --levels 3 --device cpu --precision fp32 "
               "--checkpoint-every 0 --layout static --window random --steps 40").split()
    (folder / "options.json").write_text(json.dumps(options))
    run_ok(*options, "--out", folder / "alone")
    with ctrl_c(12):
        assert run(*options, "--out", folder / "from_one")[0] == 130
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3"]
    done = subprocess.run([*torchrun, __file__, folder], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return folder, [torch.load(folder / f"{rank}.pt") for rank in range(3)], options

@pytest.mark.parametrize("k", range(len(SHARED_STEPS)), ids=map("-".join, SHARED_STEPS))
def test_gradient_of_several_processes_is_that_of_one(three, k):
    def gradients(state):  # as the optimisers' first momentum has them
        moments = {f"{i} {key}": kept.get("exp_avg", kept.get("m"))
                   for i, each in enumerate(state["optimisers"]) for key, kept in each["state"].items()}
        return moments | {name: state["model"][name] for name in ("z_s.m", "z_t.m")}
    state, losses = shared_step(*SHARED_STEPS[k])
    alone = gradients(state)
    states, all_losses = zip(*(found["steps"][k] for found in three[1]))
    assert bit_equal(states[0], states[1]) and bit_equal(states[0], states[2]) and len(alone) > 10
    assert torch.allclose(all_losses[0], losses, atol=1e-5)
    for key, grad in gradients(states[0]).items():
        most = 1e-5 * alone[key].abs().max() + 1e-7
        assert alone[key].any() and max_mean_error(grad, alone[key])[0] <= most, key

def test_norms_of_several_processes_keep_the_mean_of_all_clips(three):
    states = shared_step("fast", "grid", True)[0], *(found["norms"] for found in three[1])
    alone, *others = [state["model"]["G.layers.0.running_mean"] for state in states]
    assert alone.any() and bit_equal(others[0], others[2])
    assert torch.allclose(others[0], alone, atol=1e-7)

def test_several_processes_resume_bit_exact_and_with_another_number_keep_the_order(three):
    """Three, stopped by Ctrl-C in one of them; three resume what one began, and the other way round."""
    folder, (zero, one, _), options = three
    assert zero["whole"][1].count("step 40/40") == 1 and "3 processes" in zero["whole"][1]
    assert bit_equal(learned(folder / "whole"), learned(folder / "half"))
    for name in ("whole", "half --resume", "from_one --resume"):
        assert zero[name] == (0, zero[name][1], "") and one[name] == (0, "", "")
    stop = "nav: stopped at step 14 of 40; python nav.py --resume"  # a look at every second step
    for name in ("half", "for_one"):
        assert zero[name][0] == 130 and zero[name][2].startswith(stop) and one[name] == (130, "", "")
    run_ok(*options, "--resume", "--out", folder / "for_one")
    for name in ("whole", "half", "from_one", "for_one"):
        kept = checkpoint(folder / name)
        assert kept["steps_done"] == kept["log"][-1][0] == 40
        alone = checkpoint(folder / "alone")
        assert bit_equal(kept["batches"]["rng"], alone["batches"]["rng"])  # the same draws
    whole, alone = (folder / name for name in ("whole", "alone"))
    assert {path.name for path in whole.iterdir()} == {path.name for path in alone.iterdir()}
    assert read_json(whole / "config.json") == dict(read_json(alone / "config.json"), processes=3)

def test_several_processes_refuse_in_one_line(three):
    """Process 0 says it, the others end without a word."""
    words = {"none --resume": "checkpoint", "evaluate": "without torchrun"}
    for name, (zero, *others) in ((name, [each[name] for each in three[1]]) for name in words):
        assert zero[:2] == (2, "") and re.fullmatch(f".*{words[name]}.*\n", zero[2])
        assert others == [(2, "", "")] * 2

def test_a_killed_process_ends_the_others(toy, tmp_path):
    """Two processes without torchrun, which would end both; killed is the one where they met."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]), WORLD_SIZE="2")
    more = [os.environ | meet | dict(RANK=rank, LOCAL_RANK=rank) for rank in "01"]
    zero, one = (popen(*toy, "--steps", 400, "--out", tmp_path, env=each) for each in more)
    try:
        for _ in range(2):
            next(line for line in zero.stdout if line.startswith("step"))
        zero.kill()
        zero.communicate()
        _, said = one.communicate(timeout=30)
    finally:
        zero.kill()
        one.kill()
    assert one.returncode == 2 and "Traceback" not in said and checkpoint(tmp_path)["steps_done"] > 0
    assert said.count("nav: ") == 1 and re.search("nav: process 1 of 2 stops.*--resume", said)

# ---- the script as a user runs it --------------------------------------------------------------------------
def chosen(options="", N=5, device="cpu"):
    args = nav.parse(["--levels", "3", "--alpha", "1", *options.split()])
    return nav.choose_settings(args, toy_clips(N), torch.device(device))

@pytest.mark.parametrize("options, N, batch, per_clip, steps", [
    ("", 5, 5, 6, 2750), ("--batch 4", 5, 4, 1, 2750), ("--batch 9 --per-clip 3 --steps 5", 5, 5, 3, 5),
    ("--batch 11", 5, 5, 2, 2750), ("--every 2", 5, 5, 3, 2750), ("--batch 4 --hold-out 2", 5, 3, 1, 2750),
    ("--recipe paper --hold-out-clips 2", 5, 1, 0, 3 * 1500), ("--hold-out-clips 2", 5, 3, 6, 2750),
    ("cuda", 64, 32, 4, 2750), ("cuda", 300, 128, 1, 2750 * (300 / 64) ** 0.5), ("cuda", 5, 3, 6, 2750)])
def test_batch_and_steps_follow_the_number_of_clips(options, N, batch, per_clip, steps):
    """32 frames a step of five clips of six: all of them; what is asked for stays."""
    s = chosen("--precision fp32", N, "cuda") if options == "cuda" else chosen(options, N)
    assert (s.batch, s.per_clip, s.steps) == (batch, per_clip, round(steps))
    assert (s.lr_G, s.lr_Z) == ((6.25e-5, 12.5) if "paper" in options else (2e-3, 5e-3))

@pytest.mark.parametrize("N, batch, per_clip", [(40, 16, 2), (11, 11, 3), (8, 8, 4), (5, 5, 6)])
def test_clips_with_rows_of_their_own_are_fewer_a_step(N, batch, per_clip):
    """R runs for each clip: 32 frames a step are of half as many clips, on a GPU of as many as before."""
    args = nav.parse(["--levels", "3", "--alpha", "1", "--precision", "fp32"])
    clips = toy_clips(N, rows=(range(N), range(N)))
    s, on_gpu = (nav.choose_settings(args, clips, torch.device(device)) for device in ("cpu", "cuda"))
    assert (s.batch, s.per_clip) == (batch, per_clip)
    assert on_gpu.batch == -(-N // 2)

@pytest.mark.parametrize("can", [{}, dict(amx_bf16=True), dict(avx512_bf16=True, amx_bf16=False)])
def test_precision_is_what_the_processor_multiplies(monkeypatch, can):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    assert (chosen().precision == "bf16") == any(can.values())
    assert chosen("--recipe paper").precision == "fp32"

@pytest.mark.parametrize("kind, name, options, row", [
    ("chair", "any", "", "chair"), ("weizmann", "chair", "", "weizmann"), ("golf", "x", "", "golf"),
    ("own", "x", "", "weizmann"), ("own", "chair", "", "weizmann"), ("", "chair", "", "chair"),
    ("", "golf", "", "golf"), ("", "x", "", "weizmann"), ("chair", "x", "--table6 golf", "golf"),
    ("own", "x", "--layout static", "chair")])
def test_row_of_table_6_is_that_of_the_set(kind, name, options, row):
    """3 models x 3 sequences look like a grid, under any name. Sets without a kind are read by their name."""
    data_prep.save(replace(laid_out("3 x 3"), kind=kind), f"{name}.npz")
    args = nav.parse(f"--dataset {name}.npz --levels 3 {options}".split())
    s = nav.choose_settings(args, data_prep.find(args.dataset, None, args.layout)[0], CPU)
    assert s.table6 == row and s.D_t == nav.TABLE_6[row]["D_t"] and s.lambda_t == nav.TABLE_6[row]["lambda_t"]
    assert (s.window == "aligned") == (row == "weizmann")

def test_a_batch_of_more_clips_than_there_are_is_said(toy):
    said = run_ok(*toy[:-6], "--batch", 11, "--steps", 1, "--device", "cpu", "--out", "run")
    assert "--batch 11: of 5 clips a step takes 5, and 2 frames of each" in said

@pytest.mark.parametrize("layout, rows, rows_of_4", [
    ("static", (9, 1), (4, 1)), ("both", (9, 9), (4, 4)), ("transient", (1, 9), (1, 4)),
    ("grid", (3, 3), (2, 3)), ("file", (3, 3), (2, 3))])
def test_layouts_and_no_row_without_a_clip(tmp_path, layout, rows, rows_of_4):
    data_prep.save(laid_out("3 x 3"), tmp_path / "grid.npz")
    for count, expected in ((None, rows), (4, rows_of_4)):
        clips, path = data_prep.find(str(tmp_path / "grid.npz"), count, layout)
        assert (len(clips.static_names), len(clips.transient_names)) == expected
        assert (len(set(clips.static_id)), len(set(clips.transient_id))) == expected
        assert path == str(tmp_path / "grid.npz") and clips.grid == (layout in ("grid", "file"))

def test_bad_input_is_one_line(toy, grid_run, monkeypatch):
    for name, shape in dict(one=(6, 16, 16), short=(3, 16, 16), odd=(6, 15, 15), wide=(6, 16, 32)).items():
        grey = np.zeros((1, *shape, 3), np.uint8)
        data_prep.save(replace(toy_clips(1), videos=grey, full=None), f"{name}.npz")
    Path("half.npz").write_bytes(Path("toy.npz").read_bytes()[:999])
    Path("text.npz").write_text("not a zip")
    Path("file").write_text("kept")
    Path("empty").mkdir()
    data_prep.write_clip(toy_clips(1, L=3).videos[0], "short.gif")
    run_ok(*toy, "--steps", 2, "--layout", "transient", "--out", "one")
    Path("grid").symlink_to(grid_run[0])
    alone = {
        "--dataset half.npz": "half.npz", "--dataset text.npz": "text.npz", "--dataset none.npz": "none.npz",
        "--dataset chairs": "chairs.npz; python data_prep.py", "--dataset golf": "data_prep.py golf",
        "--unknown": "--unknown", "fly": "invalid choice: 'fly'", "--step 5": "--step",
        "sample --resume --run grid": "--resume",
        "evaluate": "--run", "evaluate --run none": "checkpoint", "sample --run .": "checkpoint",
        "evaluate --real toy.npz": "--generated", "evaluate --generated empty": "--real",
        "evaluate --real toy.npz --generated empty": "no clip", "sample --run . --count 0": "--count",
        "sample --run grid --prior gaussian --count 1000000000000000": "not enough memory",
        "sample --run grid --prior gaussian --static 0": "leave --static out",
        "evaluate --run grid --real toy.npz": "either", "sample --run grid --scale 2": "--save",
        "interpolate --run grid --fps-factor 2 --between 2": "leave --frames and --between out",
        "sample --run grid --vgg16 x": "--vgg16",
        "bench --run .": "--run", "sample --run grid --steps 5": "--steps", "train --count 5": "--count",
        "ablate --generated-clips 0": "--generated-clips", "ablate --hold-out-clips 1": "--hold-out-clips",
        "interpolate --fps-factor 1": "--fps-factor", "sample --run one --prior gaussian": "one static",
        "interpolate --run grid --frames 2 7": "1 to 6", "interpolate --run grid --frames 0 3": "1 to",
        "interpolate --run grid --clip 6": "0 to", "exchange --run one": "grid",
        "encode --run grid": "--input", "encode --run grid --input short.gif": "fewer than 6 frames: 3",
        "encode --run grid --input no.npz": "no.npz", "encode --run grid --input toy.npz": "5 clips"}
    training = {
        "--dataset short.npz": "triplet", "--dataset odd.npz": "15 x 15", "--dataset wide.npz": "16 x 32",
        "--steps 0": "--steps", "--per-clip 7": "--per-clip", "--lr-G -1": "--lr-G", "--lr-Z nan": "--lr-Z",
        "--seed -1": "--seed", "--run .": "--run", "--hold-out-clips 1 --hold-out 1": "one of the two",
        "--hold-out -1": "--hold-out", "--hold-out 1": "at most", "--hold-out-clips 5": "of 5, one must be",
        "--dataset one.npz --hold-out-clips 1": "of 1, one must be left", "--every 3": "triplet",
        "--lr-G 1e39": "--lr-G", "--levels 9000000000000000000": "--levels",
        "--steps many": "--steps", "--levels 5": "--levels", "--rank 9": "--rank", "--clips 6": "holds 5",
        "--clips 0": "at least 1", "--layout grid": "grid", "--checkpoint-every nan": "--checkpoint-every",
        "--checkpoint-every -1": "--checkpoint-every", "--out file": "file", "--out file/run": "file",
        "--out /proc/nav": "/proc", "--resume": "checkpoint", "--vgg16 text.npz": "text.npz: not VGG16",
        "--vgg16 none": "No such file"}
    cases = [(options.split(), words) for options, words in alone.items()]
    for options, words in cases + [(toy + options.split(), words) for options, words in training.items()]:
        line = run_error(*options, *([] if "--out" in options else ["--out", "run"]))
        assert words in line and not re.search(r"\(\d+\)|1 to 0", line), (options, line)
    monkeypatch.setenv("NAV_KERNELS", "tritn")
    assert "NAV_KERNELS" in run_error(*toy, "--out", "run")
    assert torch.cuda.is_available() or "cuda" in run_error("--device", "cuda")
    monkeypatch.setenv("NAV_KERNELS", "triton")
    with mock.patch.multiple(backend, triton=mock.Mock(), INTERPRETED=True):
        assert "but laplacian_l1: 2 levels" in run_error(*toy, "--levels", 2, "--out", "two")
    assert Path("file").read_text() == "kept" and not Path("run").exists()

def logged(folder):
    return np.genfromtxt(Path(folder, "log.csv"), delimiter=",", names=True)

def test_train_evaluate_sample(toy, vgg16, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no git
    out = Path("run")
    said = run_ok(*toy, "--steps", 120, "--out", out)
    assert re.search(r"step 120/120  loss \S+ +\S+ dB +\d+ frames/s +\d+ s  ETA 0:00", said)
    files = ("config.json checkpoint.pt log.csv metrics.json reconstructions.png reconstructions.gif "
             "samples.npz samples.png samples.gif curve.png .lock")
    assert {path.name for path in out.iterdir()} == set(files.split())
    metrics = read_json(out / "metrics.json")
    assert {*"source videos frames psnr psnr_min ssim fcs seconds device kernels seed".split()} <= {*metrics}
    assert [metrics[key] for key in ("standin", "steps", "mcs", "commit")] == [False, 120, None, None]
    assert [nav.spread(*nk) for nk in ((3, 8), (1, 8), (9, 3))] == [[0, 1, 2], [0], [0, 4, 8]]  # clips shown
    rows = logged(out)
    assert rows["step"].tolist() == list(range(6, 121, 6)) and rows["loss"][-1] < rows["loss"][0]
    run_ok("evaluate", "--run", out, "--device", "cpu", "--vgg16", vgg16)
    again = read_json(out / "metrics.json")
    assert again == metrics | {key: again[key] for key in ("mcs", "mcs_t")} | dict(mcs_note=None)
    assert isinstance(again["mcs"], float) and isinstance(again["mcs_t"], float)
    run_ok("sample", "--run", out, "--count", 3, "--device", "cpu")
    with Image.open(out / "samples.gif") as gif:
        assert gif.n_frames > 1 and gif.size == (32, 32)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    run_ok("evaluate", "--run", out, "--device", "cpu", "--out", "e")  # measures, and writes there only
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    assert read_json("e/metrics.json")["psnr"] == metrics["psnr"] and Path("e/reconstructions.png").is_file()
    run_ok("evaluate", "--run", out, "--device", "cpu")
    assert before["samples.npz"] == (out / "samples.npz").read_bytes()
    run_ok(*toy, "--steps", 4, "--out", out)  # a second run in the same folder: the first is kept
    assert read_json(out / "earlier-1/metrics.json")["steps"] == 120
    assert read_json(out / "metrics.json")["steps"] == 4
    picture = np.asarray(Image.open(out / "earlier-1/curve.png").convert("RGB")).astype(int)
    for panel in (picture[:260], picture[260:]):  # a title, numbers, and a line from side to side
        black = (panel.max(2) < 60).sum(1)
        blue = (panel == (31, 119, 180)).all(2).any(0).nonzero()[0]
        assert black[:30].sum() > 50 and black[30:].sum() > 50 and blue.min() < 100 and blue.max() > 600

@pytest.mark.parametrize("N", [1, 65])
def test_sets_of_one_clip_and_of_a_clip_more_than_a_part_are_measured(toy, tmp_path, N):
    data_prep.save(toy_clips(N), tmp_path / "toy.npz")
    run_ok(*toy, "--steps", 4, "--out", "run")
    assert read_json("run/metrics.json")["videos"] == N
    if N > 1:
        run_ok(*"sample --run run --prior gaussian --count 1 --device cpu".split())

def test_standins_say_so_in_every_result():
    """Then the real set is prepared: the run is measured with its own clips, and does not go on."""
    options = "--dataset chair --clips 4 --steps 3 --width 8 --device cpu".split()
    assert "STAND-INS" in run_ok(*options)
    out = Path("runs/chair")
    pictures = sorted(path.stem for path in out.glob("*-standin.*"))
    assert pictures == [f"{name}-standin" for name in ("curve", *["reconstructions"] * 2, *["samples"] * 3)]
    metrics = read_json(out / "metrics.json")
    assert metrics["standin"] is read_json(out / "config.json")["standin"] is True
    Path("data").mkdir()
    data_prep.save(toy_clips(size=64), "data/chair.npz")
    assert "does not hold the clips that runs/chair was trained on" in run_error(*options, "--resume")
    run_ok("evaluate", "--run", out, "--device", "cpu")
    assert read_json(out / "metrics.json")["psnr"] == metrics["psnr"]

def test_a_run_finds_its_clips_from_another_folder(tmp_path, monkeypatch):
    there, here = (tmp_path / name / "data/mine.npz" for name in "ab")
    for path, seed in ((here, 1), (there, 0)):
        path.parent.mkdir(parents=True)
        data_prep.save(toy_clips(seed=seed), path)
    monkeypatch.chdir(tmp_path / "a")
    run_ok("--dataset", "mine", "--steps", 2, "--width", 4, "--levels", 3, "--device", "cpu")
    monkeypatch.chdir(tmp_path / "b")
    evaluate = ["evaluate", "--run", tmp_path / "a/runs/mine", "--device", "cpu"]
    run_ok(*evaluate)
    there.rename(tmp_path / "MOVED.NPZ")
    assert f"no clips at {there}; --dataset" in run_error(*evaluate)
    run_ok(*evaluate, "--dataset", tmp_path / "MOVED.NPZ")
    assert "does not hold the clips" in run_error(*evaluate, "--dataset", "mine")

def test_killed_runs_resume_bit_exact(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(nav, "HIDDEN", 500)  # as in the processes that are killed
    options = [*toy, "--lr-Z", "0.01", "--window", "random", "--steps", "80", "--out"]
    run_ok(*options, tmp_path / "whole")
    out = tmp_path / "killed"
    for more in ([], ["--resume"]):
        process = popen(*options, out, *more)
        for _ in range(3):
            next(line for line in process.stdout if line.startswith("step"))
        assert f"{out}: another run writes there" in run_error(*options, out, *more)
        time.sleep(0.03)
        process.kill()  # and its lock is gone
        process.communicate()
    assert 12 < checkpoint(out)["steps_done"] < 80
    process = popen(*options, out, "--resume")  # | head -1
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 0 and process.stderr.read() == ""
    assert bit_equal(learned(tmp_path / "whole"), learned(out))
    assert read_json(out / "metrics.json")["steps"] == 80
    assert logged(out)["step"].tolist() == list(range(4, 81, 4)) and not list(out.glob("earlier-*"))

def test_ctrl_c_keeps_a_checkpoint(toy):
    options = [*toy, "--checkpoint-every", 1000, "--out", "run", "--steps"]
    with ctrl_c(12):
        status, _, errors = run(*options, 30)
    assert status == 130 and errors.count("\n") == 1 and "stopped at step 13 of 30" in errors
    assert "steps 30, not 20" in run_error(*options, 20, "--resume")
    run_ok(*options, 30, "--resume")
    before = learned("run")
    assert "30 steps become 40: from step 30 on, rates" in run_ok(*options, 40, "--resume")
    assert learned("run")["steps_done"] == 40 and not bit_equal(learned("run"), before)
    run_ok(*options, 81, "--resume")
    run_ok("--resume", "--out", "run", "--steps", 84, "--checkpoint-every", 1000)  # nothing else is needed
    assert checkpoint("run")["settings"]["width"] == 4
    assert (np.diff(logged("run")["seconds"]) > 0).all()

def test_threads_are_recorded_and_a_crowd_is_said(toy):
    run_ok(*toy, "--steps", 4, "--out", "run")
    assert read_json("run/metrics.json")["threads"] == torch.get_num_threads() == 1
    assert read_json("run/config.json")["trained_on"]["threads"] == 1
    assert "bit for bit" not in run_ok("--resume", "--out", "run")
    with mock.patch.object(torch, "get_num_threads", lambda: 2):
        assert "so not bit for bit; OMP_NUM_THREADS=1 before" in run_ok("--resume", "--out", "run")
        for seconds, cores in ((100, 1.4), (100, 1.6), (4, 1.4)):  # of wall time, and used of it
            with mock.patch.multiple(time, perf_counter=mock.Mock(side_effect=itertools.count(0, seconds)),
                                     process_time=mock.Mock(side_effect=[0, cores * seconds])):
                said = run_ok(*toy, "--steps", 1, "--out", "crowd", "--checkpoint-every", 1000)
            is_said = "other work is on the cores: 2 threads get 1.4 of 2" in said
            assert is_said == (seconds > 5 and cores < 1.5)

def test_a_signal_behind_the_last_look_stops_too(toy):
    save = nav.save_checkpoint
    def save_and_stop(*everything):
        save(*everything)
        signal.raise_signal(signal.SIGTERM)
    with mock.patch.object(nav, "save_checkpoint", save_and_stop):
        status, _, errors = run(*toy, "--steps", 8, "--out", "run", "--checkpoint-every", 1000)
    assert status == 143 and "stopped at step 8 of 8" in errors and not Path("run/metrics.json").exists()
    run_ok("--resume", "--out", "run")
    assert read_json("run/metrics.json")["steps"] == 8

@pytest.mark.parametrize("command, where, status", [
    ("nav.py --dataset none", "2>/dev/full", 2), ("data_prep.py folder none --name x", "2>&-", 2),
    ("data_prep.py draw chair --clips 1 --name x", ">/dev/full 2>&1", 0)])
def test_exit_status_does_not_depend_on_who_listens(command, where, status):
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT))}/{command} {where}"
    assert subprocess.run(command, shell=True, stdout=subprocess.DEVNULL).returncode == status

def test_ctrl_c_during_the_imports_leaves_no_traceback(tmp_path):
    Path("torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    process = popen(env=dict(os.environ, PYTHONPATH=str(tmp_path)))
    assert process.communicate() == ("", "") and process.returncode == -signal.SIGINT

def test_what_a_kill_left_undone_is_made_up(toy):
    """Killed behind the last checkpoint, within the move of an earlier run, and between npz and PNG."""
    out = Path("run")
    run_ok(*toy, "--steps", 8, "--out", out)
    made = {path.name for path in out.iterdir()}
    for path in out.iterdir():
        path.unlink() if path.name != "checkpoint.pt" else None
    (out / f".checkpoint.{'0' * 32}.tmp.pt").write_bytes(b"half")
    run_ok("--resume", "--out", out)
    assert {path.name for path in out.iterdir()} == made and len(logged(out)["step"]) == 8
    rename = Path.rename
    for count in range(len(made)):  # killed after so many renames, then --resume
        with mock.patch.object(Path, "rename", autospec=True) as renames:
            renames.side_effect = lambda *a: rename(*a) if renames.call_count <= count else 1 / 0
            with pytest.raises(ZeroDivisionError):
                run(*toy, "--steps", 8, "--out", out)
        if (out / "checkpoint.pt").exists():  # else the next fresh start ends the move
            run_ok("--resume", "--out", out)
            assert {path.name for path in out.iterdir()} == made
    run_ok(*toy, "--steps", 8, "--out", out)
    assert {path.name for path in (out / "earlier-1").iterdir()} == made - {".lock"}
    assert {path.name for path in out.iterdir()} == made | {"earlier-1"}
    command = "draw chair --clips 1 --size 16 --frames 4 --name x".split()
    assert run(*command, main=data_prep.main)[0] == 0
    Path("data/x.png").unlink()
    assert run(*command, main=data_prep.main)[0] == 0 and Path("data/x.png").exists()

def test_every_flipped_byte_of_a_checkpoint_is_found_or_harmless(toy):
    run_ok(*toy, "--steps", 4, "--out", "run")
    path = Path("run/checkpoint.pt")
    whole = path.read_bytes()
    kept, found = checkpoint("run"), 0
    for at in np.random.default_rng(0).integers(len(whole), size=40).tolist():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            nav.read_checkpoint("run")
        except DataError as error:
            assert "\n" not in str(error)
            found += 1
        else:  # padding, or a header that the end of the archive repeats
            assert bit_equal(checkpoint("run"), kept)
    assert found > 20

def test_checkpoints_and_tables_of_other_shapes_end_in_one_line(toy):
    run_ok(*toy, "--steps", 4, "--out", "run")
    state = checkpoint("run")
    for part in ("data", "settings", None):
        for key in state[part] if part else state:
            for value in (..., "x", 1.5, None):
                changed = dict(state[part] if part else state)
                changed.update({key: value}) if value is not ... else changed.pop(key)
                torch.save(dict(state, **{part: changed}) if part else changed, "run/checkpoint.pt")
                status, _, errors = run("--resume", "--out", "run", "--steps", 4)
                assert status in (0, 2) and errors.count("\n") <= 1, (part, key, value, errors)
    Path("runs/ablation-toy").mkdir(parents=True)
    for text in ("[1]", "nothing", "3"):
        Path("runs/ablation-toy/ablation.json").write_text(text)
        assert "no table of this script" in run_error("ablate", *toy[:-2], "--steps", 4)

def test_bad_checkpoints_are_refused_and_good_ones_kept(toy):
    run_ok(*toy, "--steps", 8, "--out", "run")
    path = Path("run/checkpoint.pt")
    again = [*toy, "--steps", 20, "--out", "run", "--resume"]
    whole = path.read_bytes()
    state = checkpoint("run")
    state["model"]["G.layers.0.weight"][0] = float("nan")
    torch.save(state, path)
    poisoned = path.read_bytes()
    line = run_error(*again)
    assert "step 9" in line and "learning rate" in line and "checkpoint" in line
    assert path.read_bytes() == poisoned
    for wild in (["--lr-G", "1e38"], ["--rank", "2", "--lr-Z", "1e38"]):
        assert "not finite at step" in run_error(*toy, "--steps", 40, "--out", "wild", *wild)
    path.write_bytes(whole)
    assert "width 4, not 8" in run_error(*again, "--width", 8)
    evil = type("Evil", (), dict(__reduce__=lambda self: (os.mkdir, ("evil",))))()
    state = checkpoint_before = checkpoint("run")
    model = state["model"] | {"z_s.z": state["model"]["z_s.z"][:2]}
    torch.save(state | dict(model=model), path)
    assert "shape" in run_error(*again) and "shape" in run_error("sample", "--run", "run")
    torch.save(state | dict(model=checkpoint_before["model"], average={"z_s.w": torch.zeros(3)}), path)
    assert "shape" in run_error("sample", "--run", "run")
    without_data = state | dict(data={})
    for bad, word in ((without_data, "dataset: str expected"), (dict(settings=evil), "not a checkpoint")):
        torch.save(bad, path)
        assert word in run_error(*again) and word in run_error("evaluate", "--run", "run")
    path.write_bytes(path.read_bytes()[:99])
    assert "not a checkpoint" in run_error(*again) and not Path("evil").exists()
    resource = pytest.importorskip("resource")
    path.write_bytes(whole)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    status, _, errors = run(*again)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 2 and re.fullmatch(f"nav: run/.*space\n", errors)
    assert path.read_bytes() == whole and not list(path.parent.glob(".*tmp*"))

@pytest.mark.parametrize("error, is_memory", [
    (MemoryError(), True), (torch.OutOfMemoryError("x"), True), (RuntimeError("allocate two buffers"), False),
    (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: you tried"), True),
    (RuntimeError("could not create a primitive"), True)])
def test_only_an_allocator_is_out_of_memory(toy, monkeypatch, error, is_memory):
    monkeypatch.setattr(nav.Trainer, "step", mock.Mock(side_effect=error))
    with contextlib.nullcontext() if is_memory else pytest.raises(RuntimeError, match="two buffers"):
        assert "not enough memory" in run_error(*toy, "--out", "run")

def test_bench_says_where_the_time_goes(toy, monkeypatch):
    timed = nav.Timer.blocked_autorange
    monkeypatch.setattr(nav.Timer, "blocked_autorange", lambda self, **_: timed(self, min_run_time=0.05))
    *table, summary, ratio = run_ok("bench", *toy[:-2], "--per-clip", 2).splitlines()
    assert any("nav: G " in line for line in table) and "2 clips x 2 frames" in summary
    whole, bare = (float(value) for value in re.findall(r"(\d+\.\d\d) ms", summary))
    assert float(re.fullmatch(r"ratio: (\d+\.\d\d)", ratio)[1]) == pytest.approx(whole / bare, rel=0.05)

# ---- data_prep: the prepared set and its pictures ----------------------------------------------------------
def prepared(*arguments, out="out"):
    """The one set in the folder `out` after data_prep.py's main was told to make it."""
    assert data_prep.main([*map(str, arguments), "--force", "--out", out]) == 0
    return data_prep.load(*Path(out).glob("*.npz"))

def same_set(a, b):
    keys = vars(a).keys() - {"source", "how"}
    return all(np.array_equal(vars(a)[key], vars(b)[key]) for key in keys)

def some_clips():
    rng = np.random.default_rng(0)
    films = [rng.integers(0, 255, (length, 16, 16, 3), np.uint8) for length in (5, 7, 5)]
    names = ["a_x", "a_y", "b_x"]
    return data_prep.from_clips(films, 5, names, list("aab"), list("xyx"), "drawn for a test", "own")

@pytest.mark.parametrize("key, change", [
    ("source", None), ("length", None), ("length", lambda v: v - [0, 0, 3]), ("full", lambda v: v[:, :8]),
    ("videos", lambda v: v[..., :2]), ("videos", lambda v: v[:0]), ("videos", lambda v: v.astype(float)),
    ("static_id", lambda v: v + 1), ("static_id", lambda v: v[:2]), ("names", lambda v: np.array([{}] * 3)),
    ("names", lambda v: v[[0, 0, 1]])])
def test_set_survives_save_and_load_and_a_bad_one_is_named(key, change):
    data_prep.save(some_clips(), "bad.npz")
    assert same_set(some_clips(), data_prep.load("bad.npz"))
    arrays = dict(np.load("bad.npz"))
    array = arrays.pop(key)
    np.savez("bad.npz", **arrays, **({key: change(array)} if change else {}))
    with pytest.raises(DataError) as error:
        data_prep.load("bad.npz")
    pickled = change and change(array).dtype == object  # is not even looked at
    assert (f"'{key}'" in str(error.value)) != bool(pickled)

def test_write_beside_is_whole_or_not_at_all(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: os.write(file, b""))  # as Windows: what is open for writing
    path = Path("file.txt")
    path.write_text("before")
    with pytest.raises(ZeroDivisionError):
        data_prep.write_beside(path, lambda temporary: temporary.write_text("half") / 0)
    assert path.read_text() == "before" and os.listdir() == ["file.txt"]
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in every container
    data_prep.write_beside(path, lambda outer: data_prep.write_beside(path, lambda inner: (
        outer.write_text("after"), inner.write_text("before"))))
    assert path.read_text() == "after"

@pytest.mark.parametrize("fps", (8, 15, 30000 / 1001, 60))
@pytest.mark.parametrize("suffix", data_prep.CLIP_SUFFIXES)
def test_written_clips_keep_time_white_and_colours(suffix, fps):
    """A clip that pauses lasts as long as another. Exact types are exact; a GIF has 50 frames a second."""
    video = np.full((12, 32, 48, 3), 255, np.uint8)
    for t in (0, 1, 2, 3, 3, 3, 3, 4, 5, 6, 7, 8):
        video[t:, 8:20] = 255
        video[t:, 8:20, 3 * t : 3 * t + 8] = (30, 90 + 20 * t, 160)
    data_prep.write_clip(video, f"a.{suffix}", fps, scale=2)
    kept = video[:: int(-(-fps // 50))] if suffix == "gif" else video
    again, rate = data_prep.read_clip(f"a.{suffix}", fps=fps * len(kept) / len(video))
    assert again.shape == (len(kept), 64, 96, 3)
    small = again.reshape(len(kept), 32, 2, 48, 2, 3)
    worst = dict(mp4=60, gif=6).get(suffix, 0)
    assert np.abs(small - kept[:, :, None, :, None].astype(int)).max() <= worst
    if suffix == "mp4":
        import av
        with av.open("a.mp4") as container:
            stream = container.streams.video[0]
            assert abs(stream.average_rate - fps) < 1e-6 and stream.frames == 12
            frame = next(container.decode(stream))
            tags = frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range
            assert tags == (6, 1, 1, 1)
        assert dB(small.mean((2, 4)), kept) > 38
    else:
        assert (small[(kept == 255).all(-1).nonzero()[0][0], 0] == 255).all()
        with Image.open(f"a.{suffix}") as image:
            times = []
            for k in range(image.n_frames):
                image.seek(k)
                image.load()
                times.append(image.info["duration"])
        assert abs(sum(times) - 1000 * 12 / fps) <= 5 and min(times) >= 16

def test_drawn_chairs():
    few, more = data_prep.draw_chairs(3, size=32), data_prep.draw_chairs(16, frames=32, size=32)
    assert np.array_equal(few.videos, more.videos[:3, :16]) and few.standin
    assert not np.array_equal(few.videos[:1], data_prep.draw_chairs(1, size=32, seed=1).videos)
    assert few.static_id.tolist() == [0, 1, 2] and few.transient_id.tolist() == [0] * 3
    assert np.array_equal(more.videos[:, 31], more.videos[:, 0])  # 31 azimuths make a turn
    videos = more.videos[:, :31]
    assert (videos[:, :, [0, -1]] == 255).all() and (videos[:, :, :, [0, -1]] == 255).all()
    spans = (videos < 250).any((1, 3, 4)).sum(1) / 32  # rows with ink in any view
    assert spans.min() >= 0.5 and np.median(spans) >= 0.72 and spans.max() <= 0.95
    assert np.abs(videos[:, 1:].astype(int) - videos[:, :-1]).mean((2, 3, 4)).min() > 0
    assert len({tuple(video[0].mean((0, 1)).astype(int)) for video in videos}) > 13  # hardly two alike

def test_drawn_people():
    clips = data_prep.draw_people(size=32)
    assert clips.videos.shape == (90, 16, 32, 32, 3) and clips.length.tolist() == [40] * 90 and clips.standin
    assert clips.names == [f"{who}_{what}" for who in clips.static_names for what in clips.transient_names]
    grid = clips.full.reshape(9, 10, 40, 32, 32, 3).astype(int)
    walkers = [clips.transient_names.index(action) for action in ("jump", "run", "side", "skip", "walk")]
    grounds = np.median(grid[:, walkers, ::3], (1, 2))
    assert np.abs(grid[..., :2, :, :] - grounds[:, None, None, :2]).max() <= 1  # still at its top
    assert all(np.abs(a - b).mean() > 4 for a, b in itertools.combinations(grounds, 2))
    assert all(np.abs(a - b).mean() > 0.5 for a, b in itertools.combinations(grid[4], 2))  # no two look alike
    for action, moving in enumerate(np.abs(grid[2, :, :26] - grounds[2]).max(-1) > 40):  # crosses, or stays
        assert (np.ptp([np.nonzero(frame)[1].mean() for frame in moving]) > 10) == (action in walkers), action
    wave = grid[:, clips.transient_names.index("wave2")]
    motion = np.abs(wave - np.median(wave, 1, keepdims=True)).mean((2, 3, 4))
    assert np.corrcoef(motion).min() < 0  # people wave at their own time

def read_clip(*arguments, **more):
    return data_prep.read_clip(*arguments, **more)[0]

def film(seed, frames=16, high=12, wide=17):
    """A small random film that is smooth enough to survive resizing: uint8 [frames, high, wide, 3]."""
    rng = np.random.default_rng(seed)
    small = [Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8)) for _ in range(frames)]
    return np.stack([np.asarray(image.resize((wide, high), Image.Resampling.BICUBIC)) for image in small])

def is_resized(got, image, side=None):
    """Whether uint8 [out, out, 3] is the centred square of that side of uint8 [H, W, 3] (or all), resized."""
    high, wide = image.shape[:2]
    box = side and ((wide - side) / 2, (high - side) / 2, (wide + side) / 2, (high + side) / 2)
    expected = Image.fromarray(image).resize(got.shape[:2], Image.Resampling.BICUBIC, box)
    return np.abs(got - np.asarray(expected, int)).max() <= 1

def encoded(kind, image, **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()

def write_moving(path, video, **options):
    first, *rest = map(Image.fromarray, video)
    first.save(path, save_all=True, append_images=rest, **options)

def write_video(path, video, codec="libx264", times=None, sound=0, rate=10, tune=None, pix_fmt=None,
                kind=None):
    """uint8 [T, H, W, 3 or 4] as a video; times: a frame's moment in ticks of 1 / rate. -> its bytes."""
    av = pytest.importorskip("av")
    alpha = video.shape[3] == 4
    options = dict(libx264={"crf": "1"}).get(codec, {})
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = pix_fmt or dict(rawvideo="bgr24").get(codec, "yuv420p")
        if tune:
            tune(stream.codec_context)
        if sound:  # seconds, of which the pictures may know nothing
            frame = av.AudioFrame(format="s16", layout="mono", samples=int(8000 * sound))
            frame.sample_rate = 8000
            container.mux(container.add_stream("pcm_s16le", rate=8000).encode(frame))
        for t, picture in enumerate(video):
            frame = av.VideoFrame.from_ndarray(picture, format="rgba" if alpha else "rgb24")
            frame.pts = t if times is None else times[t]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return Path(path).read_bytes()

def numbered(count, high=48, wide=64):
    """Frames whose bytes tell their number: 8 bars, bright where the number's bit is set."""
    video = np.full((count, high, wide, 3), 30, np.uint8)
    for k, bit in itertools.product(range(count), range(8)):
        video[k, :, wide * bit // 8:wide * (bit + 1) // 8] = 220 if k >> bit & 1 else 30
    return video

def numbers(video):
    """The numbers of frames of `numbered`, as read from the middle of each bar."""
    wide = video.shape[2]
    bars = [video[:, video.shape[1] // 2, wide * (2 * bit + 1) // 16].mean(1) > 125 for bit in range(8)]
    return sum(bar.astype(int) << bit for bit, bar in enumerate(bars)).tolist()

def test_folder_reads_every_kind(tmp_path, capsys):
    source, video = tmp_path / "clips", film(5, 16, 64, 64)
    (source / "d_run").mkdir(parents=True)
    for t, picture in enumerate(video):
        Image.fromarray(picture).save(source / "d_run" / f"frame{t}.png")  # frame10 comes after frame9
    data_prep.write_clip(video, source / "a_run.gif")
    data_prep.write_clip(video[:9], source / "h_short.gif")
    write_moving(source / "b_run.png", video)
    write_moving(source / "b_walk.png", [video[0], *video], default_image=True)
    write_moving(source / "c_run.webp", video, lossless=True)
    for name, strip in (("e_run", np.vstack(video)), ("f_run", np.hstack(video)), ("still", video[0])):
        Image.fromarray(strip).save(source / f"{name}.png")
    for name, codec in (("g_walk.avi", "rawvideo"), ("plain.avi", "rawvideo"), ("a_run.avi", "rawvideo"),
                        ("mp4_v.mp4", "libx264"), ("mkv_v.mkv", "libx264"), ("webm_v.webm", "libvpx")):
        write_video(source / name, video, codec)
    for name, text in (("i_walk.gif", "GIF89a what"), (".hidden.gif", ""), ("Thumbs.db", ""),
                       ("k_list.mp4", "ffconcat version 1.0\nfile g_walk.avi\n")):  # FFmpeg would follow it
        (source / name).write_text(text)
    (source / "j_walk.png").symlink_to(source / "e_run.png")
    clips = prepared("folder", source, "--name", "mine", "--grid", out="data")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped ")]
    for name in "a_run h_short i_walk j_walk k_list .hidden.gif Thumbs.db still plain".split():
        assert sum(name in line for line in said) == 1, (name, said)
    assert [*clips.static_names, len(clips.names)] == [*"a b c d e f g mkv mp4 webm".split(), 11]
    for name, got in zip(clips.names, clips.videos):
        off = np.abs(got.astype(int) - video)
        assert off.mean() < 12 if name[0] in "mw" else off.max() == 0, name  # H.264 and VP8 halve colours
    assert "is there: 11 clips" in run("folder", source, "--name", "mine", "--grid", main=data_prep.main)[1]

def test_folder_reads_arrays_and_crops_the_middle():
    long, short = film(1, 20, 48, 60), film(2, 18, 60, 48)
    np.savez("a.npz", b_y=short, a_x=long, wrong=np.zeros(3), text_x=np.array(["a"]))
    clips, cut, every = (prepared("folder", "a.npz", "--grid", "--size", 32, "--name", "m", *more)
                         for more in ([], ["--keep-frames", 17], ["--every", 2, "--frames", 9]))
    assert clips.names == ["b_y", "a_x"] and clips.length.tolist() == [18, 20]
    assert cut.length.tolist() == [17, 17] and np.array_equal(every.videos[0], clips.full[0:18:2])
    assert all(is_resized(*pair, 48) for pair in zip(clips.full, [*short, *long], strict=True))
    assert list(data_prep.read_clips(["out/m.npz"], [])[0]) == ["b_y", "a_x"]  # a prepared set's clips
    with zipfile.ZipFile("a.npz", "a") as archive:
        archive.writestr("__MACOSX/._a.npy.txt", "no array")
    assert len(data_prep.read_clips(["a.npz"], [])[0]) == 2
    Path("long").mkdir()
    for k in range(2):
        data_prep.write_clip(long, f"long/{'x' * 80}{k}.gif")  # alike up to their ends
    assert len(prepared("folder", "long", "--name", "l", out="two").static_names) == 2
    names = ["a1", "a02", "a10", "a" + "9" * 5000]
    assert sorted(reversed(names), key=data_prep.natural_key(names)) == names

def jitter(count):
    """A phone's 30 frames a second on a clock of 90 kHz: times are off by about half a millisecond."""
    late = np.random.default_rng(0).standard_normal(count - 1)
    return [0, *np.rint(3000 * np.arange(1, count) + 45 * late)]

@pytest.mark.parametrize("name, codec, rate, times", [
    ("phone.mp4", "libx264", 90000, jitter(40)), ("a.webm", "libvpx", 30, None),
    ("a.mkv", "libx264", 24, None),
    ("a.flv", "flv", 30, None), ("a.wmv", "wmv2", 30, None), ("b_frames.avi", "libx264", 30, None),
    ("a.mpg", "mpeg1video", 25, None), ("a.m2ts", "libx264", 30, None), ("a.m1v", "mpeg1video", 25, None)])
def test_fps_near_the_clips_own_neither_repeats_nor_loses_frames(name, codec, rate, times):
    """Also where the container rounds times to milliseconds, tells none, or tells those of decoding."""
    tune = (lambda context: setattr(context, "time_base", fractions.Fraction(1, rate))) if times else None
    kind = dict(m2ts="mpegts", m1v="mpeg1video").get(name.rpartition(".")[2])
    write_video(name, numbered(40), codec, times and list(map(int, times)), rate=rate, tune=tune, kind=kind)
    count = len(read_clip(name))  # an edit list may hide a frame
    assert count >= 39 and numbers(read_clip(name)) == list(range(count))
    own = 30 if times else rate
    assert numbers(read_clip(name, fps=own)) == list(range(count))
    assert numbers(read_clip(name, fps=own / 2)) == list(range(0, count, 2))
    assert numbers(read_clip(name, fps=2 * own))[:40] == [k // 2 for k in range(40)]
    assert data_prep.read_clip(name)[1] == pytest.approx(own, rel=0.02)
    assert data_prep.read_clip(name, every=2)[1] == pytest.approx(own / 2, rel=0.02)

def test_fps_of_gifs_joined_and_pausing_films():
    write_moving("a.gif", numbered(30), duration=[30, 30, 40] * 10)  # 30 frames a second, in steps of 10 ms
    assert numbers(read_clip("a.gif", fps=30)) == list(range(30))
    assert numbers(read_clip("a.gif", fps=15)) == list(range(0, 30, 2))
    write_moving("pause.gif", numbered(4), duration=[100, 300, 100, 200])
    assert numbers(read_clip("pause.gif", fps=10)) == [0, 1, 1, 1, 2, 3, 3]
    one = write_video("one.mpg", numbered(20), "mpeg1video", rate=25)
    Path("joined.mpg").write_bytes(one + one)  # times begin again
    assert numbers(read_clip("joined.mpg", fps=25)) == [*range(20)] * 2
    write_video("pause.mp4", numbered(20), times=[*range(10), *range(10, 30, 2)])
    assert numbers(read_clip("pause.mp4", fps=10))[:28] == [*range(10), *np.repeat(np.arange(10, 19), 2)]
    write_video("drops.avi", numbered(20), "mpeg4", times=[k + k // 4 for k in range(20)])  # empty chunks
    assert numbers(read_clip("drops.avi")) == list(range(20))
    assert numbers(read_clip("drops.avi", fps=10))[:10] == [0, 1, 2, 3, 3, 4, 5, 6, 7, 7]

@pytest.mark.parametrize("matrix", list(itertools.product((1, -1), (1, -1), (False, True))))
def test_display_matrices_turn_and_mirror(matrix):
    """All eight cases: a pixel at x, y is shown at a x + c y, b x + d y."""
    x, y, swaps = matrix
    a, b, c, d = (0, y, x, 0) if swaps else (x, 0, 0, y)
    data = bytearray(write_video("a.mp4", film(7, 4, 48, 32)))
    plain = read_clip(bytes(data))
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = np.array([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    expected = plain.transpose(0, 2, 1, 3) if swaps else plain
    assert np.array_equal(read_clip(bytes(data)), expected[:, ::y, ::x])

def test_pixels_that_are_not_square_and_fields():
    y, x = np.mgrid[:96, :128]
    disc = np.where(np.hypot(x - 64, y - 48) < 30, 255, 60).astype(np.uint8)
    disc = disc[None, ..., None].repeat(4, 0).repeat(3, 3)
    def wide(context):
        context.sample_aspect_ratio = fractions.Fraction(2)
    write_video("wide.mp4", disc[:, :, ::2], tune=wide)
    mask = read_clip("wide.mp4", size=64)[0].mean(2) > 150
    assert abs(mask.any(0).sum() - mask.any(1).sum()) <= 1 and 38 <= mask.any(0).sum() <= 42
    assert read_clip("wide.mp4").shape == (4, 96, 128, 3)
    bar = np.full((6, 96, 128, 3), 20, np.uint8)
    for k in range(6):  # the second field is 40 pixels further
        bar[k, ::2, 10 + 8 * k:14 + 8 * k] = bar[k, 1::2, 50 + 8 * k:54 + 8 * k] = 235
    def interlaced(context):
        context.flags |= 1 << 18 | 1 << 29  # ildct, ilme
    write_video("fields.mpg", bar, "mpeg2video", rate=25, tune=interlaced, kind="mpeg")
    line = read_clip("fields.mpg", size=64)[3, 32].mean(1) > 90
    assert line.sum() in (2, 3, 4) and np.ptp(np.flatnonzero(line)) < 4  # one bar

@pytest.mark.parametrize("name, codec, pix_fmt", [
    ("a.webm", "libvpx-vp9", "yuva420p"), ("a.mov", "prores_ks", "yuva444p10le"), ("b.mov", "png", "rgba")])
def test_transparent_video_is_on_white(name, codec, pix_fmt):
    video = np.zeros((4, 64, 64, 4), np.uint8)
    video[..., 2] = 255  # hidden blue
    video[:, 20:44, 20:44] = 255, 0, 0, 255
    write_video(name, video, codec, pix_fmt=pix_fmt)
    found = read_clip(name).astype(int)
    assert np.abs(found[:, 5, 5] - 255).max() <= 2 and np.abs(found[:, 32, 32] - (255, 0, 0)).max() <= 4

def test_hdr_is_toned_and_said_and_untagged_hd_is_bt_709():
    grey = np.linspace(0, 1, 8)
    light = np.where(grey <= 0.04045, grey / 12.92, ((grey + 0.055) / 1.055) ** 2.4)
    hlg = np.where(0.265 * light <= 1 / 12, np.sqrt(3 * 0.265 * light),
                   0.17883277 * np.log(np.maximum(12 * 0.265 * light - 0.28466892, 1e-9)) + 0.55991073)
    nits = (203 * light / 10000) ** 0.1593017578125
    pq = ((0.8359375 + 18.8515625 * nits) / (1 + 18.6875 * nits)) ** 78.84375
    for curve, transfer in ((hlg, data_prep.HLG), (pq, data_prep.PQ)):
        found = data_prep.to_sdr(np.rint(255 * curve)[None, :, None].repeat(3, 2).astype(np.uint8), transfer)
        assert np.abs(found[0, :, 0] - 255 * grey).max() < 8
    steps = np.rint(255 * hlg).astype(np.uint8).repeat(8)
    steps = steps[None, None, :, None].repeat(4, 0).repeat(48, 1).repeat(3, 3)
    def tagged(context):
        context.color_trc, context.color_primaries, context.colorspace = 18, 9, 9
    write_video("hlg.mp4", steps, tune=tagged)
    notes = []
    found, _ = data_prep.read_clip("hlg.mp4", notes=notes)
    assert np.abs(found[0, 24, 4::8, 0] - 255 * grey).max() < 8
    assert notes == [("toned", "from HDR to SDR", "hlg.mp4")]
    av = pytest.importorskip("av")
    for high, matrix in ((720, "ITU709"), (480, "ITU601")):
        red = np.zeros((high, 1280, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
        with av.open(f"{high}.mp4", "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height = 1280, high
            frame = av.VideoFrame.from_ndarray(red, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=matrix)
            frame.colorspace = 2  # untagged
            for number in range(4):
                frame.pts = number
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        assert np.abs(read_clip(f"{high}.mp4", size=64)[0, 32, 32] - np.array([255, 0, 0])).max() <= 3, high

def test_whole_films_are_read_and_cut_films_named():
    video = numbered(60)
    for name, codec in (("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.mov", "libx264")):
        assert len(read_clip(write_video(name, video, codec, sound=0 if codec == "libvpx" else 7.5))) == 60
    for suffix, codec in (("avi", "rawvideo"), ("mkv", "libx264"), ("webm", "libvpx"), ("flv", "flv")):
        whole = write_video(f"b.{suffix}", video, codec)
        assert len(read_clip(whole)) == 60
        with pytest.raises(DataError, match="60.*29" if suffix == "avi" else "promises"):
            read_clip(whole[: len(whole) // 2])
    data = bytearray(write_video("never.avi", video, "mpeg4"))
    for tag, ahead in ((b"avih", 24), (b"strh", 40)):  # a film that was never finished
        data[data.index(tag) + ahead:][:4] = b""
        at = data.index(tag) + ahead
        data[at:at + 4] = (1 << 30).to_bytes(4, "little")
    assert len(read_clip(bytes(data))) == 60
    ts = write_video("a.ts", video, tune=lambda context: setattr(context, "gop_size", 12))
    packets = len(ts) // 188
    begun = numbers(read_clip(ts[188 * (packets // 3):]))  # within a group of pictures
    assert 30 < len(begun) < 50 and begun == list(range(60 - len(begun), 60))

def test_the_best_stream_is_read_and_no_cover():
    av = pytest.importorskip("av")
    with av.open("a.mkv", "w") as container:
        small, large = (container.add_stream("libx264", rate=10) for _ in range(2))
        for stream, side in ((small, 32), (large, 64)):
            stream.width = stream.height = side
        for k, stream in itertools.product(range(12), (small, large)):
            frame = av.VideoFrame.from_ndarray(numbered(12, stream.height, stream.width)[k], format="rgb24")
            frame.pts = k
            container.mux(stream.encode(frame))
        for stream in (small, large):
            container.mux(stream.encode())
    assert read_clip("a.mkv").shape == (12, 64, 64, 3)
    with av.open("b.mp4", "w") as container:
        cover = container.add_stream("mjpeg", rate=10)
        film = container.add_stream("libx264", rate=10)
        cover.width = cover.height = 256
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        film.width = film.height = 64
        for stream, video in ((cover, numbered(1, 256, 256)), (film, numbered(12, 64, 64))):
            for k, picture in enumerate(video):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts = k
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    assert read_clip("b.mp4").shape == (12, 64, 64, 3)

def test_frames_come_in_numeric_order_and_two_series_are_refused():
    names = ["-2", "-1.5", "-1", "0.05", "0.1", "0.15", "2", "10", "clip-1", "clip-2", "clip-10"]
    assert sorted(reversed(names), key=data_prep.natural_key(names)) == names
    for pattern in ("walk--{:03}", "walk -{}", "Q3x_-{:04}", "v2.{}", "shot010.{}", "1.{}-a", "(a)-{}",
                    "\u0439-{}"):
        names = [pattern.format(k) for k in range(1, 21)]
        assert sorted(reversed(names), key=data_prep.natural_key(names)) == names
    times = ("t_-30 t_-29 t_-1", "-15.0 -0.3", "t_-1.50 t_-0.03", "-30 -9", "0.00 0.0500 0.100 0.150",
             "0.25 0.5 0.75 1.00", "0 0.05 0.10 0.15 0.2", "0.00 0.025 0.050 0.075 0.10")
    for names in map(str.split, times):
        assert sorted(reversed(names), key=data_prep.natural_key(names)) == names
    Path("b").mkdir()
    for name, picture in zip(["img", *(f"img({k})" for k in range(1, 12))], numbered(12)):
        Image.fromarray(picture).save(f"b/{name}.png")
    for other in ("readme_v1.10.txt", "0.50.zip", "notes-7.txt"):  # no frames: they have no say
        Path("b", other).touch()
    assert numbers(read_clip("b")) == list(range(12))
    Path("a").mkdir()
    for k, picture in enumerate(numbered(6)):
        Image.fromarray(picture).save(f"a/{k * 0.05:.2f}.png")
    assert numbers(read_clip("a")) == list(range(6))
    for k in range(6):
        Image.new("RGB", (64, 48)).save(f"a/{k * 0.05:.2f}_mask.png")
    with pytest.raises(DataError, match="two series, # and #_mask"):
        read_clip("a")

@pytest.mark.parametrize("kind, count", [
    ("moving", 20), ("photos", 1), ("pages", 1), ("wide", 1), ("strips", 20)])
def test_a_folder_holds_frames_or_clips(kind, count):
    """Animated PNGs are clips in any folder. A phone's photos with a preview inside (MPO) are frames, and so
    are TIFFs of two pages, and pictures of 4:1 unless they hold enough squares for a clip."""
    for folder in ("a", "b/c"):
        Path(folder).mkdir(parents=True)
        for k, picture in enumerate(numbered(20, 64, 256 if kind in ("wide", "strips") else 64)):
            if kind == "moving":
                write_moving(f"{folder}/{k:03}.png", numbered(5))
            elif kind == "photos":
                photo = Image.fromarray(picture)
                photo.save(f"{folder}/{k:03}.jpg", "MPO", save_all=True, append_images=[photo], quality=95)
            elif kind == "pages":
                page = Image.fromarray(picture)
                page.save(f"{folder}/{k:03}.tif", save_all=True, append_images=[page])
            else:
                Image.fromarray(picture).save(f"{folder}/{k:03}.png")
    least = 4 if kind == "strips" else 5
    clips, _ = data_prep.read_clips(["a"], [], least)
    assert len(clips) == count and (count > 1 or numbers(*clips.values()) == list(range(20)))
    clips, _ = data_prep.read_clips(["b"], [], least)
    assert len(clips) == (20 if kind == "moving" else 1)
    if kind == "photos":
        with pytest.raises(DataError, match="one picture"):
            read_clip("a/000.jpg")

def test_a_rate_is_known_for_all_clips_or_for_none():
    """Pages of a TIFF and frames in a folder have no times."""
    Path("in/frames").mkdir(parents=True)
    pages = [Image.fromarray(picture) for picture in numbered(5)]
    pages[0].save("in/pages.tiff", save_all=True, append_images=pages[1:])
    for k, page in enumerate(pages):
        page.save(f"in/frames/{k}.png")
    command = ["folder", "in", "--name", "x", "--frames", 5, "--size", 64]
    clips = prepared(*command, out="out")
    assert len(clips.names) == 2 and clips.fps == 0
    assert prepared("folder", "in/pages.tiff", *command[2:], out="pages").fps == 0
    whole = prepared(*command, "--no-crop", out="two")
    assert all(numbers(video) == [0, 1, 2, 3, 4] for video in whole.videos)
    write_video("in/a.mp4", numbered(5), rate=10)
    assert prepared(*command, out="three").fps == 0
    assert prepared("folder", "in/a.mp4", *command[2:], out="four").fps == 10

def test_names_keep_their_letters_and_clips_their_files():
    """Two names that differ in spaces alone are one; files of long and equal names do not replace others."""
    Path("in").mkdir()
    for name in ("\u30a2\u30f3\u30ca_\u6b69\u304f", "J\u00fcrgen_l\u00e4uft", "a  b_c", "a b_c",
                 "bell\a_\x9b", "y" * 200 + "_z"):
        data_prep.write_clip(numbered(5), f"in/{name}.gif")
    clips = prepared("folder", "in", "--name", "x", "--frames", 5, "--grid")
    assert {"\u30a2\u30f3\u30ca", "J\u00fcrgen", "a b", "bell\\x07"} < set(clips.static_names)
    rows = [nav.row_of(["1", "2", "3"], wanted) for wanted in (0, 1, np.int64(2), "1", "3", "0")]
    assert rows == [0, 1, 2, 0, 2, 0]  # an int is a number, a text a name if there is such a name
    for asked, name in (("Ju\u0308rgen", "J\u00fcrgen"), ("a  b", "a b"), ("bell\a", "bell\\x07")):
        assert nav.row_of(clips.static_names, asked) == clips.static_names.index(name)
    assert len(clips.names) == 5 and len(set(clips.names)) == 5
    sheets = [data_prep.draw_sheet(clips.videos[:1], row_labels=[name]) for name in ("J\u00fcrgen", "Jurgen")]
    assert sheets[0] == sheets[1]  # the font has no accents
    cells = np.full((1, 3, 40, 40, 3), 9, np.uint8)
    sheets = [data_prep.draw_sheet(cells, column_labels=[end * "w" for end in (n, n, n)]) for n in (9, 99)]
    assert sheets[0] == sheets[1]  # a label ends with its column
    assert data_prep.drawable("\u0415\u043a\u0430\u0442\u0435\u0440\u0438\u043d\u0430") != data_prep.drawable(
        "\u0415\u043a\u0430\u0442\u0435\u0440\u0438\u043d\u0431\u0443\u0440\u0433")
    statics = ["anna", "anna", "2-anna", "ANNA", "\u30a2" * 100, "\u30a2" * 100]
    data_prep.write_samples(Path("s.npz"), [numbered(3)[None]] * 6, statics, ["run"] * 6, "", 8, "png")
    names = np.load("s.npz")["names"].tolist()
    assert names[:4] == ["anna_run", "2-anna_run", "2-2-anna_run", "3-ANNA_run"]
    assert {path.name for path in Path("s").iterdir()} == {f"{name}.png" for name in names}

@pytest.mark.parametrize("array, axes, count, assumed", [
    (numbered(12)[None].repeat(3, 0), [], 3, ""),
    (numbered(12).transpose(0, 3, 1, 2)[None], [], 1, "as NTCHW, uint8"),
    (numbered(12)[..., 0][None].repeat(2, 0), [], 2, "as NTHW, uint8"),
    (numbered(12).transpose(3, 0, 1, 2), [], 1, "as CTHW, uint8"),
    (numbered(12).transpose(3, 0, 1, 2)[None], [], 1, "as NCTHW, uint8"),
    (numbered(12)[..., 0][:, None].repeat(5, 1), ["--axes", "TNHW"], 5, "as TNHW, uint8"),
    (numbered(12)[None] / 255, [], 1, "as NTHWC, floats in [0, 1]"),
    ((numbered(12)[None] / 127.5 - 1).astype(np.float32), [], 1, "as NTHWC, floats in [-1, 1]")])
def test_arrays_of_every_order_and_kind(array, axes, count, assumed):
    np.save("a.npy", array)
    command = ["folder", "a.npy", "--name", "a", "--frames", 12, *axes, "--size", 64, "--no-crop"]
    status, said, _ = run(*command, main=data_prep.main)
    clips = data_prep.load("data/a.npz")
    assert status == 0 and len(clips.names) == count and assumed in said
    assert all(numbers(video) == list(range(12)) for video in clips.videos)
    np.savez("b.npz", a=np.zeros((4, 5)), b=array.astype(int) if assumed == "" else np.zeros(3))
    rgba = np.concatenate([numbered(12), numbered(12)[..., :1]], 3)
    np.save("c.npy", rgba)
    assert "1 or 3 colours" in run("folder", "c.npy", "--name", "c", main=data_prep.main)[1]
    Path("in").mkdir()
    os.rename("c.npy", "in/c.npy")
    assert "PATH/*.npy" in run("folder", "in", "--name", "c", main=data_prep.main)[1]
    line = run("folder", "b.npz", "--name", "b", main=data_prep.main)[1]
    assert "--axes" in line and "float64 (4, 5)" in line

def test_trees_several_paths_grids_and_patterns(capsys):
    for who, what, take in itertools.product(("person01", "person02"), ("boxing", "running"), ("d1", "d2")):
        Path("kth", who).mkdir(parents=True, exist_ok=True)
        write_moving(f"kth/{who}/{who}_{what}_{take}_uncomp.gif", numbered(5))
    Path("tree/hand/wave").mkdir(parents=True)
    for k, picture in enumerate(numbered(5)):
        Image.fromarray(picture).save(f"tree/hand/wave/{k:04}.jpg")
    write_moving("tree/hand/clap.gif", numbered(5))
    clips = prepared("folder", "tree", "kth/person01", "--name", "t", "--frames", 5, out="t")
    takes = ["boxing_d1", "boxing_d2", "running_d1", "running_d2"]
    assert sorted(clips.names) == ["hand_clap", "hand_wave", *(f"person01_{take}_uncomp" for take in takes)]
    command = ["folder", "kth", "--frames", 5, "--name", "k"]
    assert "all clips have the transient name uncomp" in run_error(*command, "--grid", main=data_prep.main)
    pattern = "(?P<static>person[0-9]+)_(?P<transient>[a-z]+)_d1"
    grid = prepared(*command, "--pattern", pattern, out="k")
    said = capsys.readouterr().out
    assert (grid.static_names, grid.transient_names) == (["person01", "person02"], ["boxing", "running"])
    assert "2 static: person01, person02" in said and "4 of 4 cells are filled" in said
    assert "skipped 4: its name" in said
    assert "groups" in run_error(*command, "--pattern", "(?P<static>a)b", main=data_prep.main)

def test_a_set_remembers_how_it_was_made_and_a_used_name_is_refused():
    Path("in").mkdir()
    write_video("in/a.mp4", numbered(40, 48, 48), rate=10)
    command = ["folder", "in", "--name", "m", "--frames", 8, "--size", 16]
    assert run(*command, "--fps", 5, "--no-crop", main=data_prep.main)[0] == 0
    clips = data_prep.load("data/m.npz")
    assert clips.reading == dict(crop=False, every=1, fps=5) and clips.fps == 5
    assert "is there" in run(*command, "--fps", 5, "--no-crop", main=data_prep.main)[1]
    assert "another fps, no_crop" in run_error(*command, main=data_prep.main)
    os.rename("in", "other")
    other = run_error("folder", "other", *command[2:], "--fps", 5, "--no-crop", main=data_prep.main)
    assert "another source" in other
    for name in ("chair", "weizmann", "golf"):
        assert "the paper's sets" in run_error("folder", "other", "--name", name, main=data_prep.main)
    assert prepared("folder", "other", "--name", "e", "--every", 4, "--frames", 8, out="e").fps == 2.5

def test_workers_make_the_same_set_and_unkept_frames_are_not_converted(monkeypatch):
    Path("in").mkdir()
    for k in range(5):
        write_video(f"in/{k}.mp4", film(k, 24, 48, 64))
    one, three = (prepared("folder", "in", "--name", "m", "--workers", count, out=f"w{count}")
                  for count in (1, 3))
    assert same_set(one, three)
    shown = []
    show = data_prep.show_frame
    monkeypatch.setattr(data_prep, "show_frame", lambda *a: shown.append(1) or show(*a))
    assert len(read_clip("in/0.mp4", every=5)) == 5 and len(shown) == 5
    assert len(read_clip("in/0.mp4", most=3)) == 3 and len(shown) == 8

def test_folder_says_what_is_wrong_with_a_path(tmp_path):
    video = film(3, 16, 32, 48)
    for place in ("turned/clip", "sizes/clip"):
        Path(place).mkdir(parents=True)
        for t, frame in enumerate(video):
            orientation = Image.Exif()
            orientation[0x112] = 6 if place == "turned/clip" else 1  # to be turned by 90 degrees
            image = Image.fromarray(frame[:, : 40 if (place, t) == ("sizes/clip", 5) else 48])
            image.save(f"{place}/_{t}.jpg", exif=orientation, quality=95)
    assert np.abs(read_clip("turned/clip") - np.rot90(video, -1, (1, 2)).astype(int)).mean() < 8
    Path("one.zip").write_bytes(zip_of([("a.gif", b"")]))
    Path("empty").mkdir()
    for path, text in (("one.zip", "unpack"), ("sizes", "frame 5 is 40 x 32"), ("empty", "no usable clip"),
                       ("none", "does not exist")):
        status, out, errors = run("folder", tmp_path / path, "--name", "x", main=data_prep.main)
        assert text in out + errors and errors.count("\n") == 1 and status == 2, errors
    kept = []  # a name is free again although the error is still there
    for _ in range(2):
        with pytest.raises(DataError) as error:
            data_prep.run(data_prep.parse(["folder", "empty", "--name", "x"]))
        kept.append(error)
        assert "another data_prep.py" not in str(error.value)

def test_equal_faults_are_counted_together(monkeypatch):
    Path("in").mkdir()
    data_prep.write_clip(film(0), "in/good.gif")
    for k in range(25):
        Path(f"in/bad{k}.gif").write_bytes(b"nothing" * (k + 1))
        Image.fromarray(film(k, 1, 20 + k, 101)[0]).save(f"in/still{k}.png")
    command = "folder in --name x --force".split()
    status, said, _ = run(*command, main=data_prep.main)
    lines = [line for line in said.splitlines() if line.startswith("skipped")]
    assert status == 0 and len(lines) == 2 and all(line.startswith("skipped 25: ") for line in lines), lines
    monkeypatch.setattr(data_prep, "MAX_SET", 50 * 16 * 64 * 64 * 3)
    for more in (command, "draw chair --clips 51".split()):
        assert "51 clips" in run_error(*more, main=data_prep.main)

@pytest.mark.parametrize("error", (MemoryError(), ImportError("libav"), OSError(errno.EMFILE, "too many"),
                                   OSError(errno.EIO, "input/output")))
def test_a_fault_of_the_machine_ends_the_preparation(monkeypatch, error):
    Path("in").mkdir()
    for k in range(3):
        data_prep.write_clip(film(k), f"in/{k}.gif")
    open_picture = Image.open
    monkeypatch.setattr(Image, "open", mock.Mock(side_effect=[open_picture("in/0.gif"), error, error]))
    line = run_error("folder", "in", "--name", "x", main=data_prep.main)
    assert not Path("data/x.npz").exists() and ("memory" in line) == isinstance(error, MemoryError)

def test_two_preparations_of_one_name_do_not_meet(monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in every container
    Path("in").mkdir()
    data_prep.write_clip(film(0), "in/0.gif")
    command = "folder in --name x --force".split()
    seen = []
    save = data_prep.save
    monkeypatch.setattr(data_prep, "save", lambda *a: (
        seen.append(run_error(*command, main=data_prep.main)), save(*a)))
    assert run(*command, main=data_prep.main)[0] == 0
    assert len(seen) == 1 and "another data_prep.py makes it" in seen[0]
    data_prep.load("data/x.npz")

def test_outside_names_are_printed_on_any_terminal():
    source = os.fsdecode(b"clips \xf0\x9f\x98\x80 \xe9")  # an emoji, and latin-1's bytes
    os.mkdir(source)
    for name in (b"1\xc2\xb23.gif", b"\xe2\x91\xa01.gif", b"\xe9.gif"):  # raised and circled digits
        data_prep.write_clip(film(0), f"{source}/{os.fsdecode(name)}")
    ascii_alone = dict(os.environ, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    process = popen("folder", source, "--name", "x", script="data_prep.py", env=ascii_alone)
    assert "3 clips" in process.communicate()[0] and process.returncode == 0
    clips = data_prep.load("data/x.npz")
    assert {*clips.names} == {"1\u00b23", "\u24601", "\\udce9"}

@pytest.mark.parametrize("arguments", [
    "folder missing --name x", "folder . --name ../x", "folder .", "what", "chair --source file", "draw golf",
    "draw chair --frames 0", "draw chair --size 4", "draw chair --seed -1", "draw chair --out file",
    "draw weizmann --clips 3", "draw chair --size many", "golf --source .", "chair --source ftp://a/a.tar",
    "golf --source file:///etc/passwd", "chair --source http://", "chair --source http://127.0.0.1:1/a",
    *("folder . --name x " + more for more in ("--every 2 --fps 3", "--keep-frames 3", "--fps nan"))])
def test_bad_commands_say_one_line(arguments):
    Path("file").write_text("kept")
    run_error(*arguments.split(), main=data_prep.main)
    assert Path("file").read_text() == "kept" and not list(Path().rglob("*.npz"))

def test_a_set_that_exists_is_kept():
    Path("drawn_chair.npz").write_bytes(b"half")
    command = "draw chair --clips 1 --size 32 --frames 4".split()
    assert "--force" in run_error(*command, "--out", ".", main=data_prep.main)
    assert prepared(*command, out=".").videos.shape == (1, 4, 32, 32, 3)
    # nav.py could not train on 24 x 24.
    assert "--size" in run_error("draw", "chair", "--size", 24, main=data_prep.main)

def tar_of(entries):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, body in entries:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return file.getvalue()

def zip_of(entries):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        [archive.writestr(*entry) for entry in entries]
    return file.getvalue()

def render(model, elevation, view, side):
    image = np.full((side, side, 3), 255, np.uint8)
    x, y = side // 4 + view * side // 80, side // 3 + 7 * model
    image[y : y + side // 4, x : x + side // 5] = (40 * model % 256, 8 * view, 5 * elevation)
    return image

def chair_entries(model, side=60, above="rendered_chairs/"):
    """The chair tar's members of a model: white ground, a coloured block that moves with the view."""
    for number in range(62):
        elevation, view = (20, 30)[number // 31], number % 31
        name = f"image_{number:03d}_p{elevation:03d}_t{view * 360 // 31:03d}_r096.png"
        yield f"{above}{model:032x}/renders/{name}", encoded("PNG", render(model, elevation, view, side))

@contextlib.contextmanager
def serving(files, ranges=True, cuts=(), errors=0):
    """A server of {path: bytes}. hang: the share of a file after which it falls silent; cuts: after which one
    answer each breaks off; errors: 503s first."""
    cuts, errors = list(cuts), [503] * errors
    class Handler(http.server.BaseHTTPRequestHandler):
        log_message = staticmethod(lambda *_: None)
        def do_GET(self):
            server.asked.append(self.headers["Range"])
            if errors or self.path not in files:
                return self.send_error(errors.pop() if errors else 404)
            begin = int(self.headers["Range"][6:-1]) if ranges else 0
            body = files[self.path]
            self.send_response(206 if ranges else 200)
            self.send_header("Content-Length", str(len(body) - begin))
            self.end_headers()
            share = 1 if self.path.endswith(".txt") else cuts.pop(0) if cuts else server.hang or 1
            with contextlib.suppress(OSError):  # a client that was killed
                self.wfile.write(body[begin : int(len(body) * share)])
            time.sleep(10 if share == server.hang else 0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.url, server.asked, server.hang = f"http://127.0.0.1:{server.server_port}", [], None
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()

def test_chair(tmp_path, capsys):
    """Folder, tar, tar.gz, tar.bz2 and zip are the same; cut, order and draw are as documented."""
    entries = [*chair_entries(1, side=150), *chair_entries(2), *chair_entries(3)]
    zipfile.ZipFile(io.BytesIO(zip_of(entries))).extractall("in")
    place = Path("in", entries[-1][0]).parent
    (place / "loop").symlink_to(tmp_path)
    (place / "image_099_p020_t099_r096.png").symlink_to("/etc/passwd")
    os.mkfifo(place / "image_098_p020_t098_r096.png")
    clips = prepared("chair", "--source", "in", "--size", 32)
    assert "skipped 3: a link" in capsys.readouterr().out
    for pack in (gzip.compress, bz2.compress, lambda tar: zip_of(entries), bytes):
        Path("a").write_bytes(pack(tar_of(entries)))
        assert same_set(clips, prepared("chair", "--source", "a", "--size", 32))
    assert clips.static_id.tolist() == [0, 1, 2] * 4 and [*clips.transient_id] == sorted([*range(4)] * 3)
    for row, kind, video in zip(clips.static_id, clips.transient_id, clips.videos):
        model = int(clips.static_names[row], 16)
        side = 150 if model == 1 else 60
        for t in range(0, 16, 5):
            view = (t + 16 * (kind % 2)) % 31
            assert is_resized(video[t], render(model, (20, 30)[kind // 2], view, side), side * 2 // 3)
    small = prepared("chair", "--source", "a", "--clips", 4, "--seed", 1)
    assert small.transient_id.tolist() == [0, 0, 0, 1]
    assert small.static_names == [f"{m + 1:032x}" for m in np.random.default_rng(1).permutation(3)]

def test_weizmann(capsys):
    films = []
    for (a, action), (p, person) in itertools.product(enumerate(ACTIONS), enumerate(PERSONS)):
        for take in (1, 2) if person == "lena" and action in ("run", "skip", "walk") else (0,):
            body = write_video("a.avi", film([p, a, take], 4 + p % 3), "rawvideo")
            films.append((f"{person}_{action}{take or ''}.avi", body))
    zips = {f"/DB/{each}.zip": zip_of(entry for entry in films if f"_{each}" in entry[0]) for each in ACTIONS}
    Path("all").write_bytes(bz2.compress(tar_of(films)))
    command = ["weizmann", "--size", 16, "--frames", 4, "--source"]
    with serving(zips) as server:
        clips = prepared(*command, server.url + "/DB/", out="a")
    wide = prepared(*command, "all", "--no-crop", "--clips", 12)
    two = prepared(*command, "all", "--actions", "wave1", "bend", out="two")
    assert two.transient_names == ["bend", "wave1"] and len(two.names) == 18 and two.kind == "weizmann"
    assert "skipped 3: a person's second film" in capsys.readouterr().out
    assert same_set(clips, prepared(*command, "all")) and not os.listdir("a/downloads")
    for p, a, take in ((0, 0, 0), (1, 7, 0), (5, 4, 1), (8, 9, 0)):
        got = np.split(clips.full, clips.length.cumsum())[10 * p + a]
        assert all(is_resized(*pair, 12) for pair in zip(got, film([p, a, take], 4 + p % 3), strict=True))
    assert len(wide.videos) == 12 and is_resized(wide.videos[1, 3], film([0, 1, 0], 4)[3])

def test_golf(capsys):
    strips = [encoded("JPEG", film(k, 16, 32, 32).reshape(-1, 32, 3), quality=95) for k in range(16)]
    good = {f"frames-stable-many/{k % 8:04d}/{k:06d}.jpg": strip for k, strip in enumerate(strips)}
    bad = {"frames-stable-many/0000/short.jpg": encoded("JPEG", film(1, 7, 32, 32).reshape(-1, 32, 3)),
           "frames-stable-many/0002/broken.jpg": strips[3][:1000]}
    files = {"/golf.txt": "\n".join(good | bad).encode()}
    bad["frames-stable-many/0004/unlisted.jpg"] = strips[0]
    files["/golf.tar.bz2"] = bz2.compress(tar_of(sorted((good | bad).items())))
    for name, data in files.items():
        Path(name[1:]).write_bytes(data)
    jpeg = encoded("JPEG", np.random.default_rng(0).integers(0, 255, (64 * 16, 64, 3), dtype=np.uint8))
    files["/long/a.bz2"] = bz2.compress(tar_of((f"frames-stable-many/{k}.jpg", jpeg) for k in range(40)), 1)
    command = ["golf", "--size", 16, "--source"]
    with serving(files, cuts=(0.3, 0.7)) as server:
        whole, few, other = (prepared(*command, server.url + "/golf.tar.bz2", *more)
                             for more in ([], ["--clips", 5], ["--clips", 5, "--seed", 7]))
        said = capsys.readouterr().out
        server.hang = 0.7  # who reads on once there are enough clips fails
        assert len(prepared("golf", "--source", server.url + "/long/a.bz2", "--clips", 2).videos) == 2
    assert all(f"skipped 1: {text}" in said for text in ("fewer than 16", "cannot be", "not in the list"))
    assert same_set(few, prepared(*command, "golf.tar.bz2", "--clips", 5)) and few.names != other.names
    assert len({name.split("/")[0] for name in few.names}) == 5  # one from each of five videos
    assert [f"frames-stable-many/{name}.jpg" for name in whole.names] == sorted(good)
    for video, path in zip(whole.videos, sorted(good)):
        strip = np.asarray(Image.open(io.BytesIO(good[path])))
        assert is_resized(video[5], strip[5 * 32 : 6 * 32], 32), path

@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_cut_three_times_arrives_whole(ranges):
    data = tar_of([*chair_entries(1), *chair_entries(2)])
    with serving({"/a.tar": data}, ranges=ranges, cuts=[0.3, 0.5, 0.7], errors=1) as server:
        prepared("chair", "--source", server.url + "/a.tar", "--keep")
        begins = [int(asked[6:-1]) for asked in server.asked[1:]]
        assert len(begins) == 4 and begins == sorted(begins) and begins[-1] <= 0.7 * len(data)
        assert [path.read_bytes() == data for path in Path("out/downloads").iterdir()] == [True]
        assert "404" in run_error("chair", "--source", server.url + "/none.tar", main=data_prep.main)

def test_killed_and_hanging_downloads_go_on_where_they_were():
    data = tar_of([("rendered_chairs/all", np.random.default_rng(0).bytes(8 << 20)), *chair_entries(1)])
    here = Path("data/downloads")
    with serving({"/a.tar": data}) as server:
        command = ["chair", "--source", server.url + "/a.tar", "--keep"]
        for server.hang, end in ((0.3, signal.SIGKILL), (0.6, signal.SIGINT)):
            process = popen(*command, script="data_prep.py")
            enough = (server.hang - 0.2) * len(data)
            while process.poll() is None and sum(path.stat().st_size for path in here.glob("*")) < enough:
                time.sleep(0.02)
            process.send_signal(end)
            said = process.communicate()[1].strip()
        assert process.returncode == 130 and said and "\n" not in said
        server.hang = 0.9
        assert "at byte" in run_error(*command, main=data_prep.main)
        server.hang = server.asked.clear()
        assert run(*command, main=data_prep.main)[0] == 0 and int(server.asked[0][6:-1]) > 0.6 * len(data)
    assert next(here.iterdir()).read_bytes() == data

def special(kind, size=0):
    info = tarfile.TarInfo("x/renders/image_000_p020_t000_r096.png")
    info.type, info.size, info.linkname = kind, size, "/etc/passwd"
    return info

LINKS = b"".join(special(kind).tobuf() for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE))
BLACK = encoded("PNG", np.zeros((5000, 5000), bool))
ZEROS = zip_of([("daria_walk.avi", bytes(1 << 20))])
HOSTILE = {  # command, archive, a word of why it is skipped, usable clips
    "outside": ("chair", lambda: tar_of([*chair_entries(1, 9, "../../"), *chair_entries(2, 9, "/")]), "", 8),
    "links": ("chair", lambda: LINKS + tar_of(chair_entries(1)), "skipped 3", 4),
    "terabyte": ("chair", lambda: special(b"0", 1 << 40).tobuf(tarfile.GNU_FORMAT), "damaged", 0),
    "300 MB": ("golf", lambda: special(b"0", 300 << 20).tobuf(), "bytes", 0),
    "pax bomb": ("golf", lambda: bz2.compress(special(b"x", 1 << 28).tobuf() + bytes(1 << 28)), "bytes", 0),
    "huge png": ("chair", lambda: tar_of((name, BLACK) for name, _ in chair_entries(1)), "pixels", 0),
    "zip that lies": ("weizmann", lambda: ZEROS.replace(b"\0\0\x10\0", b"\0\0\0\xf0"), "bytes", 0)}

@pytest.mark.parametrize("command, body, why, usable", HOSTILE.values(), ids=HOSTILE)
def test_hostile(command, body, why, usable):
    """Only the set and its sheet are written; exit 0 or 2 with one line; half a gigabyte at most."""
    Path("in").write_bytes(body())
    above = os.listdir("..") + os.listdir("../..")
    code = f"""
import resource, sys, data_prep
status = data_prep.main([{command!r}, '--source', 'in', '--out', 'out', '--size', '16'])
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < {1 << 29 if sys.platform == 'darwin' else 1 << 19}
sys.exit(status)"""
    shell = ["sh", "-c", '"$@"; exit $?', "sh"]  # between, as a process begins with its parent's peak
    done = subprocess.run([*shell, sys.executable, "-c", code], capture_output=True, text=True,
                          env=dict(os.environ, PYTHONPATH=str(ROOT)), timeout=60)
    assert done.returncode == (0 if usable else 2) and done.stderr.count("\n") == (not usable), done
    assert why in done.stdout and {*os.listdir()} <= {"in", "out"}, done
    assert above == os.listdir("..") + os.listdir("../..")
    assert [len(data_prep.load(path).videos) for path in Path("out").glob("*.npz")] == [usable] * (usable > 0)

@pytest.mark.parametrize("kind", "set.npz clips.npz a.tar.bz2 a.zip clip.gif clip.mp4 clip.webp".split())
def test_damaged_bytes_end_in_one_line(kind):
    """Cut somewhere, or bytes flipped: exit 0 or 2, a line beside what was skipped, nothing half-written."""
    video = film(0, 16, 32, 32)
    data_prep.save(some_clips(), "set.npz")
    np.savez_compressed("clips.npz", a=video, b=video)
    write_moving("clip.gif", video)
    write_moving("clip.webp", video)
    write_video("clip.mp4", video, "libx264")
    films = [(f"daria_{what}.avi", write_video("a.avi", video, "rawvideo")) for what in ("run", "walk")]
    Path("a.zip").write_bytes(zip_of(films))
    Path("a.tar.bz2").write_bytes(bz2.compress(tar_of(films)))
    for seed in range(12):
        rng = np.random.default_rng(seed)
        damaged = bytearray(Path(kind).read_bytes())
        for at in rng.integers(0, len(damaged), rng.integers(1, 21) * (seed % 2)):
            damaged[at] = rng.integers(256)
        source = Path(str(seed), kind)
        source.parent.mkdir()
        source.write_bytes(damaged if seed % 2 else damaged[: rng.integers(len(damaged))])
        what = ["weizmann", "--source", source] if kind.startswith("a.") else \
            ["folder", source if kind.endswith("npz") else source.parent, "--name", "x"]
        status, _, said = run(*what, *"--out out --force --size 16 --frames 4".split(), main=data_prep.main)
        assert status in (0, 2) and said.count("\n") == (status == 2), (seed, said)
        names = {re.sub("^(chair|weizmann|x)", "NAME", path.name) for path in Path("out").iterdir()}
        assert names <= {"NAME.npz", "NAME.png", ".x.lock", ".weizmann.lock"}
        with contextlib.suppress(DataError):
            data_prep.load(source)
