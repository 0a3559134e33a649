"""Tests of nav, in the order of nav.py, then kernels/ and data_prep.py. They need no GPU and no network; `pytest` runs them all.

Where a number is compared, the other side is an independent formula: float64, loops, PyTorch's own optimiser, or
scikit-image's values. The commands are run as a user runs them, on small clips.
"""
import bz2
import contextlib
import copy
import csv
import functools
import gzip
import hashlib
import http.server
import io
import json
import math
import os
import platform
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import warnings
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if not torch.cuda.is_available():  # before kernels are imported: Triton's interpreter runs them on the CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")

import data_prep
import kernels
import nav
from kernels import backend, laplacian_l1, laplacian_l1_with_grad, triplet_margin
from kernels.bench import plain_laplacian, plain_triplet, with_backward
from kernels.gru import gru

ROOT = Path(__file__).resolve().parent
SHARED = ROOT.parent / "shared" / "data"


def toy_clips(N=5, L=6, size=16, rows=None, seed=0):
    """Small moving squares on coloured grounds, as Clips."""
    rng = np.random.default_rng(seed)
    videos = np.empty((N, L, size, size, 3), np.uint8)
    for j in range(N):
        videos[j] = rng.integers(0, 256, 3)
        for t in range(L):
            videos[j, t, size // 4:size // 2, t % size:t % size + 4] = rng.integers(0, 256, 3) if t == 0 else videos[j, 0, size // 4, 0]
    static, transient = rows or (list(range(N)), [0] * N)
    names = [f"s{s}_t{t}" for s, t in zip(static, transient)]
    return data_prep.Clips(videos, np.array(static), np.array(transient), [f"s{i}" for i in range(max(static) + 1)],
                           [f"t{i}" for i in range(max(transient) + 1)], names, "toy clips of the tests")


@pytest.fixture
def toy(tmp_path):
    """A prepared set of 5 toy clips, and the options that train on it in a moment."""
    data_prep.save(toy_clips(), tmp_path / "toy.npz")
    return ["--dataset", str(tmp_path / "toy.npz"), "--width", "4", "--levels", "3", "--batch", "2", "--device", "cpu",
            "--precision", "fp32", "--checkpoint-every", "0"]


def run(*options, process=False, **more):
    """nav.py as a user runs it, -> returncode, stdout, stderr: in this process, or in one of its own (slow: it imports PyTorch)."""
    if process or more:
        return subprocess.run([sys.executable, str(ROOT / "nav.py"), *map(str, options)], capture_output=True, text=True, timeout=240,
                              env=dict(os.environ, OMP_NUM_THREADS="1", TORCH_HOME=os.devnull), **more)
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            status = nav.main([str(option) for option in options])
        except SystemExit as stop:
            status = stop.code
    return subprocess.CompletedProcess(options, status, out.getvalue(), errors.getvalue())


@pytest.fixture(autouse=True)
def one_thread_and_no_cache(monkeypatch):
    """A toy run is faster on one thread, and as reproducible as a process of its own; VGG16 weights in a cache stay out of it."""
    torch.set_num_threads(1)
    monkeypatch.setenv("TORCH_HOME", os.devnull)


def checkpoint(folder):
    return torch.load(Path(folder, "checkpoint.pt"), weights_only=True)


def same(a, b):
    """Equal bit for bit, through dicts and lists."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


def learned(folder):
    """What a checkpoint learned and would go on from: all but the log and its clock."""
    return {key: value for key, value in checkpoint(folder).items() if key not in ("log", "data")}


# ---- nav: settings and codes -----------------------------------------------------------------------------------------


def test_table_6_is_the_papers():
    table = """chair 206 50 0.01 0.01 2 6.25e-5 6.25e-5 12.5 1500 4
               weizmann 56 200 0.01 0.1 2 6.25e-5 6.25e-3 12.5 3500 3
               golf 56 200 0.01 0.01 2 0.1 0.1 12.5 10000 4"""
    for line in table.splitlines():
        name, *numbers = line.split()
        codes, rates, updates = nav.TABLE_6[name]
        ours = [codes[k] for k in ("D_s", "D_t", "lambda_s", "lambda_t", "alpha")] + list(rates.values()) + [updates, codes["levels"]]
        assert ours == [float(n) for n in numbers]


def test_codes_stay_in_the_unit_ball():
    z = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    assert torch.allclose(nav.unit_ball(z), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))
    dictionary = nav.Dictionary(3, 4, 5)
    dictionary.update(torch.tensor([0, 2]), torch.randn(2, 4, 5), 10.0)
    assert dictionary.z.norm(dim=-1).max() <= 1 + 1e-6


@pytest.mark.parametrize("momentum", [False, True])
def test_rows_learn_as_torchs_optimisers_would_teach_them(momentum):
    """A row seen in every step follows torch.optim (Adam, or SGD with momentum 0.9); others do not move."""
    torch.manual_seed(0)
    dictionary = nav.Dictionary(4, 6, momentum=momentum)
    before = dictionary.z.clone()
    code = torch.nn.Parameter(dictionary.z[2].double())
    optimiser = (torch.optim.SGD if momentum else torch.optim.Adam)([code], lr=0.01, **({"momentum": 0.9} if momentum else {}))
    for _ in range(5):
        g = torch.randn(3, 6)
        dictionary.update(torch.tensor([2, 1, 2]), g, 0.01)  # two clips share row 2: their gradients add up
        code.grad = (g[0] + g[2]).double()
        optimiser.step()
        with torch.no_grad():
            code /= max(1.0, code.norm().item())
    assert torch.allclose(dictionary.z[2].double(), code, atol=1e-6)
    assert torch.equal(dictionary.z[[0, 3]], before[[0, 3]]) and not torch.equal(dictionary.z[1], before[1])


def test_low_rank_is_the_best_approximation():
    torch.manual_seed(0)
    z = torch.randn(2, 8, 5)
    for rho in (1, 2, 5):
        left = nav.low_rank(z, rho)
        singular = torch.linalg.svdvals(left)
        assert (singular[:, rho:] < 1e-5).all()
        expected = torch.linalg.svdvals(z)[:, rho:].square().sum(1)  # Eckart-Young
        assert torch.allclose((z - left).square().sum((1, 2)), expected, atol=1e-5)
    dictionary = nav.Dictionary(2, 8, 5, rank=2)
    dictionary.update(torch.tensor([0, 1]), torch.randn(2, 8, 5), 0.3)
    assert (torch.linalg.svdvals(dictionary.z)[:, 2:] < 1e-5).all() and dictionary.z.norm(dim=-1).max() <= 1 + 1e-6


@pytest.mark.parametrize("layout, static, transient", [("static", 6, 1), ("both", 6, 6), ("transient", 1, 6), ("grid", 2, 3), ("file", 2, 3)])
def test_layouts(layout, static, transient):
    clips = toy_clips(6, rows=([0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]))
    nav.lay_out(clips, layout)
    assert (len(clips.static_names), len(clips.transient_names)) == (static, transient)
    assert len(set(clips.static_id)) == static and len(set(clips.transient_id)) == transient


def test_a_grid_takes_weizmanns_settings(tmp_path):
    data_prep.save(toy_clips(6, rows=([0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2])), tmp_path / "grid.npz")
    assert run("--dataset", tmp_path / "grid.npz", "--steps", 2, "--width", 4, "--device", "cpu", "--out", tmp_path / "run").returncode == 0
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["D_s"], config["D_t"], config["levels"], config["lambda_t"], config["conditional"]) == (56, 200, 3, 0.1, True)


# ---- nav: networks and objective -------------------------------------------------------------------------------------


def test_the_gru_recurs():
    """r_i depends on z_1..z_i and on nothing after it."""
    torch.manual_seed(0)
    R, z = nav.Recurrent(5), torch.randn(1, 6, 5, requires_grad=True)
    R(z)[0, 3].sum().backward()
    reach = z.grad[0].abs().sum(1)
    assert (reach[:4] > 0).all() and (reach[4:] == 0).all()


@pytest.mark.parametrize("B, T, D", [(1, 1, 3), (3, 7, 5)])
def test_our_gru_is_torchs(B, T, D):
    torch.manual_seed(0)
    layer, x = torch.nn.GRU(D, 11, batch_first=True).double(), torch.randn(B, T, D, dtype=torch.double, requires_grad=True)
    upstream = torch.randn(B, T, 11, dtype=torch.double)
    ours, theirs = gru(layer, x), layer(x)[0]
    assert torch.allclose(ours, theirs, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(out, [x, *layer.parameters()], upstream) for out in (ours, theirs))):
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_generator_draws_every_size(size):
    frames = nav.Generator(9, size, 8)(torch.randn(2, 9))
    assert frames.shape == (2, 3, size, size) and frames.abs().max() <= 1
    conditional = nav.Generator(9, size, 8, labels=4).eval()
    codes = torch.randn(2, 9)
    assert not torch.equal(conditional(codes, torch.tensor([0, 1])), conditional(codes, torch.tensor([0, 2])))


def settings(**changes):
    return nav.Settings(**{**dict(D_s=7, D_t=5, levels=3, width=8, batch=2, per_clip=0, steps=10), **changes})


@pytest.mark.parametrize("frames", [6, 2])
def test_gradient_is_that_of_equation_6(frames):
    """forward_and_back against autograd through the sum over clips of Eq. 6, in plain words."""
    s = settings(lambda_s=0.3, lambda_t=0.5, per_clip=frames)
    trainer = nav.Trainer(s, toy_clips(), torch.device("cpu"))
    m, batch, weight = trainer.model, trainer.batches.gather(*trainer.batches.deal()), trainer.batches.weight
    static_ids, transient_ids, times, v = batch
    z_s, z_t = m.z_s.rows(static_ids), m.z_t.rows(transient_ids)
    _, _, losses = nav.forward_and_back(m, s, weight, batch, z_s, z_t, torch.arange(2))
    ours = [z_s.grad, z_t.grad, *(p.grad.clone() for p in m.parameters())]

    m.zero_grad()
    a, b = m.z_s.rows(static_ids), m.z_t.rows(transient_ids)
    r = m.R(b)
    drawn = torch.stack([r[j, times[j]] for j in range(2)])
    l = kernels.laplacian_l1(m.draw(a, drawn, transient_ids), v, 3).view(2, frames)
    loss = (l.mean(1) + 0.3 * l[:, 0] + 0.5 * kernels.triplet_margin(r)).sum()
    loss.backward()
    assert torch.allclose(losses[0], loss / 2, atol=1e-5)
    for mine, theirs in zip(ours, [a.grad, b.grad, *(p.grad for p in m.parameters())]):
        assert torch.allclose(mine, theirs, atol=1e-5, rtol=1e-4)


def test_a_clips_gradient_does_not_depend_on_its_company():
    s = settings()
    trainer = nav.Trainer(s, toy_clips(), torch.device("cpu"))
    m, batch, weight = trainer.model.eval(), trainer.batches.gather(*trainer.batches.deal()), trainer.batches.weight  # eval: batch norm mixes clips
    alone = [part[:1] for part in batch[:3]] + [batch[3][:6]]
    z_s, z_t = m.z_s.rows(batch[0]), m.z_t.rows(batch[1])
    nav.forward_and_back(m, s, weight, batch, z_s, z_t, torch.arange(2))
    alone_s, alone_t = m.z_s.rows(alone[0]), m.z_t.rows(alone[1])
    nav.forward_and_back(m, s, weight[:6], alone, alone_s, alone_t, torch.arange(1))
    assert torch.allclose(z_s.grad[:1], alone_s.grad, atol=1e-7, rtol=1e-4) and torch.allclose(z_t.grad[:1], alone_t.grad, atol=1e-7, rtol=1e-4)


def test_paper_recipe_against_a_reference_of_a_few_lines():
    """Two steps of Sec. 3.1: Adam on gamma; then, with the new gamma, Adam on theta and SGD with momentum on the codes."""
    s = settings(recipe="paper", batch=1, lr_G=1e-3, lr_R=2e-3, lr_Z=0.5, lambda_s=0.1, lambda_t=0.2)
    clips = toy_clips()
    trainer, twin = (nav.Trainer(s, clips, torch.device("cpu")) for _ in range(2))
    G, R = twin.model.G, twin.model.R
    z_s, z_t = twin.model.z_s.z.clone(), twin.model.z_t.z.clone()
    buffers = [torch.zeros_like(z_s), torch.zeros_like(z_t)]
    adam_G, adam_R = torch.optim.Adam(G.parameters(), lr=1e-3), torch.optim.Adam(R.parameters(), lr=2e-3)

    def equation_6(a, b, times, v):
        r = R(b[None])
        l = kernels.laplacian_l1(G(torch.cat([a.expand(6, -1), r[0, times]], 1)), v, 3)
        return l.mean() + 0.1 * l[0], kernels.triplet_margin(r).sum()

    for _ in range(2):
        static_id, transient_id, times, v = twin.batches.gather(*twin.batches.deal())
        rec, _ = equation_6(z_s[static_id[0]], z_t[transient_id[0]], times[0], v)
        adam_G.zero_grad()
        rec.backward()
        adam_G.step()  # stage 1: min over gamma
        a, b = z_s[static_id[0]].requires_grad_(), z_t[transient_id[0]].requires_grad_()
        rec, triplet = equation_6(a, b, times[0], v)
        adam_R.zero_grad()
        (rec + 0.2 * triplet).backward()
        adam_R.step()  # stage 2: min over theta and the codes
        for z, row, leaf, buffer in ((z_s, static_id[0], a, buffers[0]), (z_t, transient_id[0], b, buffers[1])):
            buffer[row] = 0.9 * buffer[row] + leaf.grad
            new = leaf.detach() - 0.5 * buffer[row]
            z[row] = new / new.norm(dim=-1, keepdim=True).clamp(min=1)
        trainer.step()
    ours = trainer.model
    assert torch.allclose(ours.z_s.z, z_s, atol=1e-6) and torch.allclose(ours.z_t.z, z_t, atol=1e-6)
    for net, twin_net in ((ours.G, G), (ours.R, R)):
        for p, q in zip(net.parameters(), twin_net.parameters()):
            assert torch.allclose(p, q, atol=1e-5)  # an update moves by 1e-3; where a gradient is near 0 its rounding shows


def test_paper_recipe_runs_with_table_6s_rates(toy, tmp_path):
    done = run(*toy[:2], "--recipe", "paper", "--steps", 5, "--width", 4, "--levels", 3, "--device", "cpu", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert [config[k] for k in ("batch", "lr_G", "lr_R", "lr_Z", "steps")] == [1, 6.25e-5, 6.25e-5, 12.5, 5]


def test_rates_rise_stay_and_fall_to_zero():
    rates = [nav.schedule(step, 1000) for step in range(1000)]
    assert rates[0] == 1 / 50 and rates[49:501] == [1.0] * 452 and rates[750] == 0.5 and 0 < rates[-1] < 0.003
    assert all(a <= b for a, b in zip(rates[:50], rates[1:50])) and all(a > b for a, b in zip(rates[500:], rates[501:]))
    assert all(0 < nav.schedule(step, steps) <= 1 for steps in (1, 2, 30) for step in range(steps))


@pytest.mark.parametrize("options, expected", [([], (5, 6)), (["--batch", "4"], (4, 1)), (["--batch", "9", "--per-clip", "3"], (5, 3)),
                                               (["--batch", "11"], (5, 2)), (["--hold-out-clips", "2"], (3, 6)),
                                               (["--batch", "4", "--hold-out", "2"], (3, 1)), (["--recipe", "paper"], (1, 0))])
def test_few_clips_give_more_frames_each(options, expected):
    """32 frames a step of five clips of six frames: all of them; what is asked for stays; what is not trained on is not dealt."""
    args = nav.parse(["--levels", "3", *options])
    s, _ = nav.choose_settings(args, "chair", toy_clips(5), torch.device("cpu"))
    assert (s.batch, s.per_clip) == expected


def test_paper_recipe_counts_the_updates_of_the_clips_it_trains_on():
    args = nav.parse(["--levels", "3", "--recipe", "paper", "--hold-out-clips", "2"])
    assert nav.choose_settings(args, "chair", toy_clips(5), torch.device("cpu"))[0].steps == 3 * 1500


# ---- nav: batches ----------------------------------------------------------------------------------------------------


def test_every_epoch_meets_every_clip_once():
    clips = toy_clips(5)
    batches = nav.Batches(clips, settings(recipe="paper", batch=2, per_clip=4, lambda_s=0.5), torch.device("cpu"))
    seen, static_frames = [], set()
    for _ in range(60):
        static_ids, transient_ids, times, v = batches.gather(*batches.deal())
        seen += static_ids.tolist()
        static_frames |= set(times[:, 0].tolist())
        for j, drawn, frames in zip(static_ids, times, v.unflatten(0, (2, 4))):
            assert len(set(drawn.tolist())) == 4
            assert np.array_equal(frames.permute(0, 2, 3, 1).numpy(), clips.videos[j][drawn])
    epochs = [tuple(seen[i:i + 5]) for i in range(0, 120, 5)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs) and len(set(epochs)) > 15
    assert static_frames == set(range(6)) and batches.weight.tolist() == [0.75, 0.25, 0.25, 0.25] * 2


def test_hard_clips_come_more_often_and_none_is_forgotten():
    """The fast recipe: over many steps a clip's turns are as (its loss / the mean)^FOCUS, at most 8 times and at least an eighth."""
    loss = torch.tensor([1.0, 1.2, 0.9, 1.1, 1.0, 0.8, 1e3, 0.0])
    batches, times = nav.Batches(toy_clips(8), settings(batch=1, per_clip=2), CPU), torch.zeros(8)
    for step in range(6000):
        clips, _ = batches.deal()
        batches.learn(clips, torch.stack([0.5 * loss[clips], 1.5 * loss[clips]], 1).flatten())
        times[clips] += step >= 2000                                   # by then it knows all losses
    assert torch.allclose(batches.l, loss, rtol=1e-3, atol=1e-3)
    weight = (batches.l / batches.l.mean()) ** nav.FOCUS
    expected = weight.clamp(1 / 8, 8)
    assert torch.allclose(times / times.sum(), expected / expected.sum(), atol=0.003) and times.min() > 0

    batches = nav.Batches(toy_clips(5), settings(batch=4, per_clip=2), CPU)
    for _ in range(50):
        clips, _ = batches.deal()
        batches.learn(clips, 1.0 + 9.0 * (clips == 3).repeat_interleave(2))
        assert len(set(clips.tolist())) == 4                           # each at most once in a step


@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_a_step_keeps_the_loss_of_each_of_its_clips(recipe):
    trainer = nav.Trainer(settings(recipe=recipe, per_clip=3), toy_clips(5), CPU)
    v, v_hat, _ = trainer.step()
    b, l = trainer.batches, kernels.laplacian_l1(v_hat, v, 3).view(2, 3).mean(1)
    met = b.turns.nonzero().flatten()
    assert len(met) == 2 and (b.l == 1).sum() == 3
    assert torch.allclose(b.l[met].sort()[0], (0.9 + 0.1 * l).sort()[0], atol=1e-6)
    trainer.step()
    assert ((b.turns > 0).sum() == 4) and ((b.turns[b.turns > 0] == 1).all() == (recipe == "paper"))


def test_random_windows_are_consecutive_and_reach_both_ends():
    clips = toy_clips(2, L=6)
    clips.length = np.array([6, 9])
    clips.full = np.arange(15, dtype=np.uint8)[:, None, None, None] * np.ones((1, 16, 16, 3), np.uint8)
    batches = nav.Batches(clips, settings(window="random"), torch.device("cpu"))
    begins = {0: set(), 1: set()}
    for _ in range(60):
        static_ids, _, times, v = batches.gather(*batches.deal())
        for j, order, values in zip(static_ids.tolist(), times, v[:, 0, 0, 0].view(2, 6).int()):
            values = values[order.argsort()]
            assert (values.diff() == 1).all()
            begins[j].add(values[0].item())
    assert begins == {0: {0}, 1: {6, 7, 8, 9}}


# ---- nav: measures ---------------------------------------------------------------------------------------------------

# scikit-image 0.26.0: structural_similarity(x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1,
# channel_axis=-1) of the images that `waves` makes
SKIMAGE = {(0, 64, 64, 0.1): 0.829659351564758, (1, 33, 47, 0.3): 0.4269317132754757, (2, 16, 16, 0.02): 0.9925284091078406}


def waves(seed, height, width, noise):
    rng = np.random.default_rng(seed)
    i, j = np.mgrid[:height, :width]
    x = np.stack([0.5 + 0.5 * np.sin((c + 1) * i / 7 + j / 5) for c in range(3)], -1)
    return x, np.clip(x + noise * rng.standard_normal(x.shape), 0, 1)


@pytest.mark.parametrize("case", SKIMAGE)
def test_ssim_agrees_with_scikit_image(case):
    x, y = (torch.from_numpy(v).permute(2, 0, 1)[None] for v in waves(*case))
    assert nav.ssim(x, y).item() == pytest.approx(SKIMAGE[case], abs=1e-6)
    assert nav.ssim(x.float(), y.float()).item() == pytest.approx(SKIMAGE[case], abs=1e-4)


def test_psnr_and_fcs_by_hand():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 3, 4, 16, 16, 3), dtype=np.uint8)
    expected = [10 * math.log10(255 ** 2 / np.mean((x.astype(float) - y) ** 2)) for x, y in zip(a, b)]
    assert nav.psnr(torch.from_numpy(a), torch.from_numpy(b)).tolist() == pytest.approx(expected, abs=1e-4)
    assert nav.psnr(torch.from_numpy(a), torch.from_numpy(a)).tolist() == [100.0] * 3

    def ssim_by_loops(x, y):
        taps = np.exp(-np.arange(-5, 6) ** 2 / 4.5)
        window = np.outer(taps, taps) / taps.sum() ** 2
        values = []
        for c in range(3):
            for i in range(6):
                for j in range(6):
                    p, q = x[i:i + 11, j:j + 11, c], y[i:i + 11, j:j + 11, c]
                    mp, mq = (window * p).sum(), (window * q).sum()
                    vp, vq, vpq = (window * p * p).sum() - mp ** 2, (window * q * q).sum() - mq ** 2, (window * p * q).sum() - mp * mq
                    values.append((2 * mp * mq + 1e-4) * (2 * vpq + 9e-4) / ((mp ** 2 + mq ** 2 + 1e-4) * (vp + vq + 9e-4)))
        return np.mean(values)

    expected = np.mean([ssim_by_loops(clip[0] / 255, frame / 255) for clip in a for frame in clip])
    assert nav.fcs(torch.from_numpy(a)) == pytest.approx(expected, abs=1e-5)


def random_vgg(channels=(4, 4, 5, 5, 6, 6, 6)):
    """A tiny VGG of the same shape with random weights."""
    rng, weights, c_in = np.random.default_rng(0), {}, 3
    for layer, c in zip((0, 2, 5, 7, 10, 12, 14), channels):
        weights[f"features.{layer}.weight"] = torch.from_numpy(rng.normal(0, 0.3, (c, c_in, 3, 3))).float()
        weights[f"features.{layer}.bias"] = torch.from_numpy(rng.normal(0, 0.3, c)).float()
        c_in = c
    return weights


def mcs_by_loops(weights, generated, real):
    """log10 |f - f^|^2 in numpy, frame by frame, float64."""
    def relu3_3(frame):
        x = ((frame / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)
        for block in ((0, 2), (5, 7), (10, 12, 14)):
            for layer in block:
                w, b = (weights[f"features.{layer}.{kind}"].double().numpy() for kind in ("weight", "bias"))
                padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
                x = sum(np.tensordot(w[:, :, i, j], padded[:, i:i + x.shape[1], j:j + x.shape[2]], 1) for i in range(3) for j in range(3))
                x = np.maximum(x + b[:, None, None], 0)
            if block[0] != 10:
                x = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2).max((2, 4))
        return x

    def f(videos):
        return np.mean([np.mean([relu3_3(v[t + 1]) - relu3_3(v[t]) for t in range(len(v) - 1)], 0) for v in videos], 0)

    return math.log10(((f(generated) - f(real)) ** 2).sum())


def test_mcs_by_loops():
    rng, weights = np.random.default_rng(1), random_vgg()
    a, b = rng.integers(0, 256, (2, 3, 4, 16, 16, 3), dtype=np.uint8)
    phi = nav.VGG16(weights)
    assert nav.mcs(phi, torch.from_numpy(a), torch.from_numpy(b[:2])) == pytest.approx(mcs_by_loops(weights, a, b[:2]), abs=1e-4)
    same_clips = nav.scores(torch.from_numpy(a), torch.from_numpy(a), phi, None)
    assert same_clips["mcs"] is None and "-inf" in same_clips["mcs_note"] and same_clips["fcs"] == same_clips["fcs_bound"]


@pytest.mark.skipif(not (SHARED / "vgg16_relu3_3.pth").exists(), reason="needs the VGG16 weights")
def test_mcs_with_the_real_weights():
    weights = torch.load(SHARED / "vgg16_relu3_3.pth", weights_only=True)
    a, b = (toy_clips(2, 3, 32, seed=seed).videos for seed in (0, 1))
    phi, why = nav.load_vgg16(str(SHARED / "vgg16_relu3_3.pth"), torch.device("cpu"))
    assert why is None and nav.mcs(phi, torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(mcs_by_loops(weights, a, b), abs=1e-3)


# ---- nav: experiments ------------------------------------------------------------------------------------------------


def grid_clips(people=3, actions=3, **more):
    pairs = [(i, k) for i in range(people) for k in range(actions)]
    return toy_clips(len(pairs), rows=tuple(map(list, zip(*pairs))), **more)


@pytest.fixture(scope="module")
def grid_run(tmp_path_factory):
    """A run on a 3 x 3 grid with 3 cells kept from training, of rank 2: (its folder, its npz)."""
    folder = tmp_path_factory.mktemp("grid")
    data_prep.save(grid_clips(), folder / "grid.npz")
    assert nav.main(["--dataset", str(folder / "grid.npz"), "--width", "8", "--steps", "150", "--device", "cpu", "--precision", "fp32",
                     "--hold-out", "3", "--rank", "2", "--out", str(folder / "run")]) == 0
    return folder / "run", folder / "grid.npz"


@pytest.mark.parametrize("K", range(1, 5))
def test_held_out_cells_leave_every_row_and_column(K):
    for seed in range(5):
        seen, unseen = nav.keep_from_training(grid_clips(), settings(hold_out=K, seed=seed))
        assert len(unseen.names) == K and sorted(seen.names + unseen.names) == sorted(grid_clips().names)
        assert set(seen.static_id) == set(seen.transient_id) == {0, 1, 2}
        whole = dict(zip(grid_clips().names, grid_clips().videos))
        assert all(np.array_equal(whole[name], video) for name, video in zip(seen.names, seen.videos))
    with pytest.raises(nav.RunError, match="at most"):
        nav.keep_from_training(grid_clips(), settings(hold_out=7))


def test_held_out_clips_have_no_codes():
    seen, unseen = nav.keep_from_training(toy_clips(5), settings(hold_out_clips=2))
    assert (seen.names, unseen.names) == (["s0_t0", "s1_t0", "s2_t0"], ["s3_t0", "s4_t0"])
    assert seen.static_id.tolist() == [0, 1, 2] and seen.static_names == ["s0", "s1", "s2"] and seen.transient_names == ["t0"]


def test_fewer_clips_leave_no_row_without_one(tmp_path):
    """A grid of persons x actions cut to its first 4 clips: 2 persons and 3 actions remain, and each has its codes."""
    data_prep.save(grid_clips(), tmp_path / "grid.npz")
    clips, _ = nav.find_clips(nav.parse(["--dataset", str(tmp_path / "grid.npz"), "--clips", "4"]))
    assert (clips.static_names, clips.transient_names) == (["s0", "s1"], ["t0", "t1", "t2"])
    assert clips.static_id.tolist() == [0, 0, 0, 1] and clips.transient_id.tolist() == [0, 1, 2, 0]


def test_what_cannot_be_forced_is_one_line(capsys, toy, tmp_path, monkeypatch):
    monkeypatch.setenv("NAV_KERNELS", "tritn")
    assert "NAV_KERNELS" in refused(capsys, *toy, "--out", tmp_path / "run") and not (tmp_path / "run").exists()
    monkeypatch.delenv("NAV_KERNELS")
    monkeypatch.setenv("PATH", "")  # no git: a run goes on without its commit
    assert nav.main([*toy, "--steps", "2", "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run/metrics.json").read_text())["commit"] is None


def test_every_other_frame():
    clips = toy_clips(2, L=9)
    seen, _ = nav.keep_from_training(clips, settings(every=2))
    assert np.array_equal(seen.videos, clips.videos[:, [0, 2, 4, 6, 8]]) and seen.length.tolist() == [5, 5]
    assert np.array_equal(seen.full.reshape(seen.videos.shape), seen.videos)


def test_exchange_baselines_by_loops():
    seen, unseen = nav.keep_from_training(grid_clips(), settings(hold_out=2))
    trainer = nav.Trainer(settings(), seen, torch.device("cpu"))
    found = nav.measure_exchange(trainer.model, seen, unseen, torch.device("cpu"))

    def dB(a, b):
        return 10 * math.log10(255 ** 2 / np.mean((a.astype(float) - b) ** 2))

    nearest, additive = [], []
    for truth, i, k in zip(unseen.videos, unseen.static_id, unseen.transient_id):
        person = [v.astype(float) for v, j in zip(seen.videos, seen.static_id) if j == i]
        action = [v.astype(float) for v, j in zip(seen.videos, seen.transient_id) if j == k]
        nearest.append(max(dB(truth, v) for v in person))
        additive.append(dB(truth, np.clip(np.mean(person, 0) + np.mean(action, 0) - seen.videos.mean(0), 0, 255)))
    assert found["exchange_nearest_psnr"] == pytest.approx(np.mean(nearest), abs=1e-3)
    assert found["exchange_additive_psnr"] == pytest.approx(np.mean(additive), abs=1e-3)


def test_exchange_and_rank_in_a_run(grid_run, capsys):
    run_folder, _ = grid_run
    metrics = json.loads((run_folder / "metrics.json").read_text())
    assert metrics["videos"] == 6 and {"exchange_psnr", "exchange_nearest_psnr", "exchange_additive_psnr"} <= {k for k, v in metrics.items() if v}
    z_t = checkpoint(run_folder)["model"]["z_t.z"]
    assert (torch.linalg.svdvals(z_t)[:, 2:] < 1e-5).all()
    assert nav.main(["exchange", "--run", str(run_folder), "--device", "cpu"]) == 0
    assert "3 of them unseen" in capsys.readouterr().out
    with data_prep.Image.open(run_folder / "exchange.png") as image:
        reds = (np.asarray(image.convert("RGB")) == (220, 30, 30)).all(2).sum()
    assert reds >= 3 * 2 * (16 + 48) * 2


def test_interpolation_starts_and_ends_on_the_clips_own_frames(grid_run, capsys):
    run_folder, _ = grid_run
    kept, model, device = nav.load_run(nav.parse(["interpolate", "--run", str(run_folder), "--device", "cpu"]))
    zero = torch.zeros(1, dtype=torch.long)
    clip = model.videos(zero, zero)[0]
    line = nav.between(model, model.z_s.z[:1], model.z_t.z[:1], zero, 1, 4, 3)
    assert line.shape == (5, 16, 16, 3) and torch.equal(line[[0, -1]], clip[[1, 4]])
    assert nav.main(["interpolate", "--run", str(run_folder), "--clip", "1", "--frames", "2", "5", "--between", "3", "--device", "cpu"]) == 0
    assert nav.main(["interpolate", "--run", str(run_folder), "--fps-factor", "3", "--device", "cpu"]) == 0
    with data_prep.Image.open(run_folder / "interpolation.gif") as gif:
        assert gif.n_frames >= 2


def test_encoding_comes_closer_than_any_known_clip(grid_run, tmp_path):
    run_folder, _ = grid_run
    kept, model, device = nav.load_run(nav.parse(["encode", "--run", str(run_folder), "--device", "cpu"]))
    real = torch.from_numpy(toy_clips(2, seed=9).videos)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    z_s, z_t, label = nav.find_codes(model, kept["settings"], real, steps=60)
    made = nav.draw_codes(model, z_s, z_t, label)
    known = model.videos(*torch.cartesian_prod(torch.arange(3), torch.arange(3)).T)

    def l_rec(videos, v):  # what it goes down by
        frames, v = (x.flatten(0, 1).permute(0, 3, 1, 2) for x in (videos, v.expand_as(videos)))
        return kernels.laplacian_l1(frames / 127.5 - 1, v, kept["settings"].levels).view(len(videos), -1).mean(1)

    ratios = torch.stack([l_rec(clip[None], v)[0] / l_rec(known, v).min() for v, clip in zip(real, made)])
    assert ratios.max() < 0.99 and ratios.mean() < 0.9, ratios  # G of nine toy clips cannot draw every one
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert z_s.norm(dim=-1).max() <= 1 + 1e-5 and z_t.norm(dim=-1).max() <= 1 + 1e-5
    data_prep.write_gif(real[0].numpy(), tmp_path / "clip.gif")
    assert nav.main(["encode", "--run", str(run_folder), "--input", str(tmp_path / "clip.gif"), "--device", "cpu"]) == 0
    assert torch.load(run_folder / "encoded.pt", weights_only=True)["z_t"].shape == (6, 200)


def test_clips_and_frames_kept_from_training_are_measured(toy, tmp_path):
    out = tmp_path / "run"
    assert nav.main([*toy, "--steps", "4", "--hold-out-clips", "2", "--out", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["videos"] == 3 and metrics["encode_psnr"] and metrics["encode_nearest_psnr"]
    assert nav.main(["sample", "--run", str(out), "--prior", "gaussian", "--count", "2", "--device", "cpu"]) == 0

    data_prep.save(toy_clips(3, L=9), tmp_path / "long.npz")
    assert nav.main([*toy, "--dataset", str(tmp_path / "long.npz"), "--steps", "4", "--every", "2", "--out", str(tmp_path / "every")]) == 0
    metrics = json.loads((tmp_path / "every/metrics.json").read_text())
    videos = toy_clips(3, L=9).videos.astype(float)
    means = [10 * math.log10(255 ** 2 / np.mean(((v[0:-1:2] + v[2::2]) / 2 - v[1::2]) ** 2)) for v in videos]
    assert metrics["frames"] == 5 and metrics["interpolation_average_psnr"] == pytest.approx(np.mean(means), abs=1e-3)


def test_ablation_has_the_papers_rows_and_verdicts(toy, tmp_path):
    torch.save(random_vgg(), tmp_path / "vgg.pth")
    assert nav.main(["ablate", *toy, "--steps", "2", "--generated-clips", "3", "--seeds", "2", "--vgg16", str(tmp_path / "vgg.pth"),
                     "--out", str(tmp_path / "ablation")]) == 0
    text, found = (tmp_path / "ablation/ablation.md").read_text(), json.loads((tmp_path / "ablation/ablation.json").read_text())
    for name, paper in (("-Z", "3.96"), ("+Z", "3.32"), ("-triplet -static", "3.83"), ("+triplet -static", "3.36"), ("-R", "-")):
        assert re.search(rf"^\| {re.escape(name)} \| {re.escape(paper)} \| -?\d", text, re.M), name
        assert len(found["ours"][name]) == 2
    assert all(verdict["holds"] in (True, False) for verdict in found["orderings"])


def test_other_softwares_clips_get_their_row(toy, tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    for j, clip in enumerate(toy_clips(3, L=4).videos):
        data_prep.write_gif(clip, folder / f"{j}.gif")
    options = ["evaluate", "--real", toy[1], "--device", "cpu", "--out", str(tmp_path / "score")]
    assert nav.main([*options, "--generated", str(folder)]) == 0
    metrics = json.loads((tmp_path / "score/metrics.json").read_text())
    assert (metrics["videos"], metrics["frames"]) == (3, 4) and 0 < metrics["fcs"] <= 1
    np.savez(tmp_path / "made.npz", clips=toy_clips(2).videos)
    assert nav.main([*options, "--generated", str(tmp_path / "made.npz")]) == 0


def test_actions_refuse_runs_that_cannot_serve_them(capsys, toy, grid_run, tmp_path):
    run_folder, _ = grid_run
    assert nav.main([*toy, "--steps", "2", "--out", str(tmp_path / "one")]) == 0
    (tmp_path / "empty").mkdir()
    data_prep.write_gif(toy_clips(1, size=32).videos[0], tmp_path / "large.gif")
    data_prep.write_gif(toy_clips(1, L=3).videos[0], tmp_path / "short.gif")
    capsys.readouterr()
    for options, word in [
        (["exchange", "--run", tmp_path / "one"], "grid"), (["interpolate", "--run", run_folder, "--frames", "2", "7"], "--frames"),
        (["interpolate", "--run", run_folder, "--frames", "0", "3"], "--frames"), (["interpolate", "--run", run_folder, "--clip", "6"], "--clip"),
        (["interpolate", "--run", run_folder, "--fps-factor", "1"], "--fps-factor"), (["encode", "--run", run_folder], "--input"),
        (["encode", "--run", run_folder, "--input", tmp_path / "large.gif"], "32 x 32"),
        (["encode", "--run", run_folder, "--input", tmp_path / "short.gif"], "3 frames"),
        (["evaluate", "--real", toy[1], "--generated", tmp_path / "empty"], "no clip"), (["evaluate", "--real", toy[1]], "--generated"),
        (["sample", "--run", run_folder, "--count", "0"], "--count"), ([*toy, "--hold-out", "1"], "--hold-out"),
        ([*toy, "--hold-out-clips", "5"], "--hold-out-clips"), ([*toy, "--every", "3"], "triplet"), (["ablate", *toy, "--hold-out-clips", "1"], "--hold-out-clips"),
    ]:
        assert word in refused(capsys, *options, "--out", tmp_path / "none"), options
    assert not (tmp_path / "none").exists()


# ---- nav: runs, as a user makes them ---------------------------------------------------------------------------------


def test_train_evaluate_sample(toy, tmp_path):
    out = tmp_path / "run"
    done = run(*toy, "--steps", 120, "--out", out, process=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"step 120/120  loss \S+ +\S+ dB +\d+ frames/s +\d+ s  ETA 0:00", done.stdout)
    assert {p.name for p in out.iterdir()} == {"config.json", "checkpoint.pt", "log.csv", "metrics.json", "reconstructions.png", "samples.gif"}
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics) >= set("dataset source standin videos frames psnr psnr_min ssim fcs fcs_bound mcs mcs_note exchange_psnr steps seconds "
                               "frames_per_second device precision kernels torch seed commit".split())
    assert metrics["standin"] is False and metrics["steps"] == 120 and metrics["mcs"] is None and "--vgg16" in metrics["mcs_note"]
    rows = list(csv.DictReader((out / "log.csv").open()))
    assert int(rows[-1]["step"]) == 120 and float(rows[-1]["loss"]) < float(rows[0]["loss"])

    os.remove(out / "metrics.json")
    torch.save(random_vgg(), tmp_path / "vgg.pth")
    assert run("evaluate", "--run", out, "--device", "cpu", "--vgg16", tmp_path / "vgg.pth").returncode == 0
    again = json.loads((out / "metrics.json").read_text())
    assert isinstance(again["mcs"], float)
    assert all(again[key] == metrics[key] for key in ("psnr", "psnr_min", "ssim", "fcs", "fcs_bound", "steps"))

    assert run("sample", "--run", out, "--count", 3, "--device", "cpu").returncode == 0
    with data_prep.Image.open(out / "samples.gif") as gif:
        assert gif.n_frames > 1 and gif.size == (32, 32)

    done = run(*toy, "--steps", 4, "--out", out)  # a second run in the same folder: the first is kept
    assert done.returncode == 0 and json.loads((out / "earlier-1/metrics.json").read_text())["steps"] == 120


def test_without_data_chairs_are_drawn_and_every_result_says_so(tmp_path):
    done = run("--dataset", "chair", "--clips", 4, "--steps", 3, "--width", 8, "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "runs/chair"
    assert "STAND-INS" in done.stdout and (out / "reconstructions-standin.png").exists() and (out / "samples-standin.gif").exists()
    for name in ("config.json", "metrics.json"):
        assert json.loads((out / name).read_text())["standin"] is True


def test_same_seed_same_checkpoint(toy, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert run(*toy, "--steps", 8, "--seed", seed, "--out", tmp_path / name).returncode == 0
    assert same(learned(tmp_path / "a"), learned(tmp_path / "b"))
    assert not same(learned(tmp_path / "a")["model"], learned(tmp_path / "c")["model"])


@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_a_trainer_goes_on_bit_for_bit(tmp_path, recipe):
    make = functools.partial(nav.Trainer, settings(recipe=recipe, window="random", lr_Z=0.01), toy_clips(), torch.device("cpu"))
    straight, stopped, resumed = make(), make(), make()
    for _ in range(13):
        straight.step()
    for _ in range(6):
        stopped.step()
    torch.save(stopped.state(), tmp_path / "state.pt")
    assert resumed.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(7):
        resumed.step()
    assert same(straight.state(), resumed.state())


@pytest.mark.parametrize("layout", ["static", "grid", "both"])
def test_two_threads_give_the_same_bits_again(layout):
    """Codes large enough for PyTorch to share the work out: clips of one row add up in the same order each time."""
    torch.set_num_threads(2)
    states = []
    for _ in range(2):
        trainer = nav.Trainer(settings(D_t=1000, batch=6, per_clip=1), laid_out(layout), torch.device("cpu"))
        for _ in range(4):
            trainer.step()
        states.append(trainer.state())
    assert same(*states)


def test_killed_at_random_moments_and_resumed_bit_for_bit(toy, tmp_path):
    times = 2
    options = [*toy, "--lr-Z", "0.01", "--window", "random", "--steps", "80"]
    assert run(*options, "--out", tmp_path / "whole").returncode == 0
    command = [sys.executable, str(ROOT / "nav.py"), *options, "--out", str(tmp_path / "killed")]
    dice, kills = random.Random(0), 0
    while kills < times:
        process = subprocess.Popen(command + ["--resume"] * (kills > 0), stdout=subprocess.PIPE, text=True, env=dict(os.environ, OMP_NUM_THREADS="1"))
        lines = 0
        for line in process.stdout:  # killed a random moment after a random progress line
            lines += line.startswith("step")
            if lines == 3:
                time.sleep(dice.uniform(0, 0.1))
                break
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL and (tmp_path / "killed/checkpoint.pt").exists()
        kills += 1
    assert 0 < checkpoint(tmp_path / "killed")["steps_done"] < 80
    assert run(*options, "--out", tmp_path / "killed", "--resume").returncode == 0
    assert same(learned(tmp_path / "whole"), learned(tmp_path / "killed"))
    steps = [int(row["step"]) for row in csv.DictReader((tmp_path / "killed/log.csv").open())]
    assert steps == sorted(set(steps)) and steps[-1] == 80


def test_a_kill_in_the_middle_of_a_write_leaves_the_checkpoint_before(toy, tmp_path):
    """The second checkpoint is half written when the process is gone."""
    script = f"""
import os, pathlib, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import nav
whole, calls = pathlib.Path.write_bytes, []
def half(path, content):
    calls.append(path)
    whole(path, content[:len(content) // len(calls)])
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path.write_bytes = half
nav.main({[*toy, '--steps', '40', '--out', str(tmp_path / 'run')]!r})
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert checkpoint(tmp_path / "run")["steps_done"] == 2
    assert run(*toy, "--steps", 40, "--out", tmp_path / "run", "--resume").returncode == 0


def test_ctrl_c_keeps_a_checkpoint_and_exits_130(toy, tmp_path):
    options = [*toy, "--steps", "100000", "--out", str(tmp_path / "run"), "--checkpoint-every", "1000"]
    process = subprocess.Popen([sys.executable, str(ROOT / "nav.py"), *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.count("\n") == 1 and "--resume" in errors
    assert checkpoint(tmp_path / "run")["steps_done"] > 0


def test_a_loss_that_is_not_finite_stops_the_run(toy, tmp_path):
    assert run(*toy, "--steps", 8, "--out", tmp_path / "run").returncode == 0
    good = (tmp_path / "run/checkpoint.pt").read_bytes()
    state = checkpoint(tmp_path / "run")
    state["model"]["G.layers.0.weight"][0] = float("nan")
    state["settings"]["steps"], state["steps_done"] = 20, 8
    torch.save(state, tmp_path / "run/checkpoint.pt")
    poisoned = (tmp_path / "run/checkpoint.pt").read_bytes()
    done = run(*toy, "--steps", 20, "--out", tmp_path / "run", "--resume")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "step 9" in done.stderr and "learning rate" in done.stderr
    assert (tmp_path / "run/checkpoint.pt").read_bytes() == poisoned != good
    for wild in (["--lr-G", "1e38"], ["--rank", "2", "--lr-Z", "1e38"]):
        done = run(*toy, "--steps", 40, "--out", tmp_path / "wild", *wild)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "not finite at step" in done.stderr


@pytest.mark.parametrize("amx, avx512, precision", [(False, False, "fp32"), (True, False, "bf16"), (False, True, "bf16")])
def test_precision_is_what_the_processor_multiplies(monkeypatch, amx, avx512, precision):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert nav.choose_precision("auto", torch.device("cpu"))[0] == precision
    assert nav.choose_precision("fp32", torch.device("cpu"))[0] == "fp32"


# ---- nav: bad input --------------------------------------------------------------------------------------------------


def refused(capsys, *options):
    """main() must print one line on standard error and return 2; returns the line."""
    try:
        status = nav.main([str(option) for option in options])
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr()
    assert status == 2 and said.err.count("\n") == 1 and "Traceback" not in said.err, (options, said.err)
    return said.err


def npz(path, **changes):
    clips = toy_clips()
    arrays = dict(videos=clips.videos, static_id=clips.static_id, transient_id=clips.transient_id, static_names=np.array(clips.static_names),
                  transient_names=np.array(clips.transient_names), names=np.array(clips.names), source=np.array("toy"))
    np.savez(path, **{key: value for key, value in {**arrays, **changes}.items() if value is not None})
    return path


BAD_SETS = {
    "wrong dtype": (dict(videos=np.zeros((5, 6, 16, 16, 3), np.float32)), "videos"),
    "wrong rank": (dict(videos=np.zeros((5, 16, 16, 3), np.uint8)), "videos"),
    "no colour": (dict(videos=np.zeros((5, 6, 16, 16, 1), np.uint8)), "videos"),
    "zero clips": (dict(videos=np.zeros((0, 6, 16, 16, 3), np.uint8), static_id=np.zeros(0, int), transient_id=np.zeros(0, int)), "videos"),
    "one frame": (dict(videos=np.zeros((5, 1, 16, 16, 3), np.uint8)), "triplet"),
    "three frames": (dict(videos=np.zeros((5, 3, 16, 16, 3), np.uint8)), "triplet"),
    "15 pixels": (dict(videos=np.zeros((5, 6, 15, 15, 3), np.uint8)), "15 x 15"),
    "not square": (dict(videos=np.zeros((5, 6, 16, 32, 3), np.uint8)), "16 x 32"),
    "id out of range": (dict(static_id=np.array([0, 1, 2, 3, 5])), "static_id"),
    "negative id": (dict(transient_id=np.array([0, 0, 0, 0, -1])), "transient_id"),
    "missing key": (dict(source=None), "source"),
    "objects": (dict(names=np.array([{}] * 5, dtype=object)), "names"),
}


@pytest.mark.parametrize("case", BAD_SETS)
def test_bad_sets_are_refused_in_one_line(capsys, tmp_path, case):
    changes, word = BAD_SETS[case]
    line = refused(capsys, "--dataset", npz(tmp_path / "bad.npz", **changes), "--out", tmp_path / "run", "--levels", 4)
    assert word in line and not (tmp_path / "run").exists()


def test_bad_files_and_options_are_refused_in_one_line(capsys, tmp_path, toy):
    whole = npz(tmp_path / "whole.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[:len(whole) // 2])
    (tmp_path / "text.npz").write_text("not a zip")
    (tmp_path / "file").write_text("kept")
    toy = [*toy, "--steps", "2"]
    for options, word in [
        (["--dataset", tmp_path / "half.npz"], "half.npz"), (["--dataset", tmp_path / "text.npz"], "text.npz"),
        (["--dataset", tmp_path / "none.npz"], "none.npz"), (["--dataset", "chairs"], "chairs"), (["--dataset", "golf"], "data_prep.py golf"),
        (["--unknown"], "--unknown"), (["fly"], "fly"), ([*toy, "--steps", "0"], "steps"), ([*toy, "--per-clip", "7"], "--per-clip"),
        ([*toy, "--hold-out", "-1"], "--hold-out"), ([*toy, "--lr-G", "-1"], "--lr-G"), ([*toy, "--lr-Z", "nan"], "--lr-Z"),
        ([*toy, "--seed", "-1"], "--seed"), ([*toy, "--run", tmp_path], "--run"), (["sample", "--resume"], "--resume"),
        ([*toy, "--hold-out-clips", "1", "--hold-out", "1"], "one of the two"), (["ablate", *toy, "--generated-clips", "0"], "--generated-clips"), ([*toy, "--steps", "many"], "steps"),
        ([*toy, "--levels", "5"], "--levels"), ([*toy, "--rank", "9"], "--rank"), ([*toy, "--clips", "6"], "--clips"),
        ([*toy, "--clips", "0"], "--clips"), ([*toy, "--layout", "grid"], "grid"), ([*toy, "--out", tmp_path / "file"], "file"),
        ([*toy, "--out", tmp_path / "file/run"], "file"), ([*toy, "--out", "/proc/nav"], "/proc"), ([*toy, "--resume"], "checkpoint"),
        ([*toy, "--vgg16", tmp_path / "text.npz"], "vgg16"), ([*toy, "--vgg16", tmp_path / "none"], "vgg16"),
        (["evaluate"], "--run"), (["evaluate", "--run", tmp_path / "none"], "checkpoint"), (["sample", "--run", tmp_path], "checkpoint"),
    ]:
        out = [] if "--out" in options else ["--out", tmp_path / "run"]
        line = refused(capsys, *options, *out)
        assert word in line, (options, line)
    if not torch.cuda.is_available():
        assert "cuda" in refused(capsys, *toy[:2], "--device", "cuda")
    assert (tmp_path / "file").read_text() == "kept" and not (tmp_path / "run").exists()


def test_checkpoints_of_something_else_are_refused(capsys, tmp_path, toy):
    out = tmp_path / "run"
    assert nav.main([*toy, "--steps", "2", "--out", str(out)]) == 0
    kept = (out / "checkpoint.pt").read_bytes()
    data_prep.save(toy_clips(seed=1), tmp_path / "other.npz")
    capsys.readouterr()
    again = [*toy, "--steps", "2", "--out", out, "--resume"]
    assert "clips" in refused(capsys, *again, "--dataset", tmp_path / "other.npz")
    assert "width" in refused(capsys, *again, "--width", 8)
    assert (out / "checkpoint.pt").read_bytes() == kept
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    state["model"]["z_s.z"] = state["model"]["z_s.z"][:2]
    torch.save(state, out / "checkpoint.pt")
    assert "shape" in refused(capsys, *again) and "shape" in refused(capsys, "sample", "--run", out)
    del state["data"]["trained_on"]  # an earlier version's
    torch.save(state, out / "checkpoint.pt")
    assert "trained_on" in refused(capsys, "evaluate", "--run", out)
    (out / "checkpoint.pt").write_bytes(kept[:len(kept) // 2])
    assert "checkpoint" in refused(capsys, *again)

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    torch.save({"settings": Evil()}, out / "checkpoint.pt")
    assert "checkpoint" in refused(capsys, *again) and not (tmp_path / "evil").exists()


def test_no_space_is_one_line_and_keeps_the_checkpoint(toy, tmp_path):
    resource = pytest.importorskip("resource")
    out = tmp_path / "run"
    assert run(*toy, "--steps", 8, "--out", out).returncode == 0
    kept = (out / "checkpoint.pt").read_bytes()
    state = checkpoint(out)
    state["settings"]["steps"] = 16
    torch.save(state, out / "checkpoint.pt")
    kept = (out / "checkpoint.pt").read_bytes()
    done = run(*toy, "--steps", 16, "--out", out, "--resume", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "space" in done.stderr, done.stderr
    assert (out / "checkpoint.pt").read_bytes() == kept and not list(out.glob(".*tmp*"))


def test_arrows_run_one_way():
    for path in [ROOT / "data_prep.py", *(ROOT / "kernels").glob("*.py")]:
        other = r"nav|test_nav|kernels" if path.name == "data_prep.py" else r"nav|test_nav|data_prep"
        assert not re.search(rf"^\s*(from|import)\s+({other})\b", path.read_text(), re.M), path


# ---- nav: several processes, the step, bench -------------------------------------------------------------------------


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_a_step_does_not_ask_the_kernel_for_memory_again():
    resource = pytest.importorskip("resource")
    nav.keep_freed_memory()

    def faults(rounds):  # in each, 32 blocks of 4 MB, as of the frames in G, are taken and freed
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(rounds):
            [torch.ones(2 ** 20) for _ in range(32)]
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults(3)
    assert faults(5) < 1000  # of 160,000


def test_more_processes_than_gpus_is_an_error_in_all_of_them(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for rank in "01":
        monkeypatch.setenv("LOCAL_RANK", rank)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        with pytest.raises(nav.RunError, match="2 processes on a machine of 1 GPU: --nproc_per_node=1"):
            nav.choose_device("auto")


def test_g_returns_from_rest_after_an_error():
    model = nav.Trainer(settings(), toy_clips(), torch.device("cpu")).model
    with pytest.raises(ZeroDivisionError), model.at_rest():
        assert not model.G.training
        1 / 0
    assert model.G.training

CPU = torch.device("cpu")
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def laid_out(layout, **more):
    """Six toy clips, two persons by three actions."""
    clips = toy_clips(6, rows=([0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]), **more)
    nav.lay_out(clips, layout)
    return clips


def recorded_update(trainer, clips, draws):
    """One update, clips and draws given -> the gradients each optimiser was given, the codes' in a table of all rows, the losses."""
    grads, tables, model = [], {}, trainer.model
    for optimiser in (*trainer.optimisers_G, trainer.optimiser_R):
        optimiser.register_step_pre_hook(lambda o, *_: grads.extend(p.grad.clone() for p in o.param_groups[0]["params"]))
    for name in ("z_s", "z_t"):
        def update(rows, grad, lr, name=name, teach=getattr(model, name).update, count=len(getattr(model, name).z)):
            tables[name] = grad.new_zeros(count, *grad.shape[1:]).index_add_(0, rows, grad)
            teach(rows, grad, lr)
        getattr(model, name).update = update
    losses = trainer.update(clips, draws)[2]
    return dict(grads=grads, **tables, losses=losses.clone(), norms=[b.clone() for b in model.G.buffers()])


def settle(G):
    """G's norms as they are in most steps: they know what they saw, here of random codes, and keep it, whatever clips a step has."""
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(30):
            G.train()(0.3 * torch.randn(32, 12))
    G.eval()


SHARED_STEPS = [("fast", "static"), ("fast", "grid"), ("fast", "both"), ("paper", "grid")]


def shared_step(recipe, layout):
    """A step of clips 0 to 3, dealt to the processes -> what recorded_update found."""
    trainer = nav.Trainer(settings(recipe=recipe, batch=4, per_clip=2, lambda_t=0.5), laid_out(layout), CPU)
    settle(trainer.model.G)
    rank, count = nav.ranks()
    draws = torch.rand(4, 7, generator=torch.Generator().manual_seed(1))[rank::count]
    return dict(recorded_update(trainer, torch.arange(4 // count), draws), rows=trainer.rows)


def short_run():
    """dB before and after 150 steps on eight clips, all of them in every step."""
    clips = toy_clips(8)
    nav.lay_out(clips, "static")
    s = settings(width=8, batch=8, steps=200)
    trainer, dB = nav.Trainer(s, clips, CPU), []
    for steps in (0, 150):
        for _ in range(steps):
            trainer.step()
        model = nav.Model(s, 16, 6, 8, 1)
        model.load_state_dict(trainer.state()["model"])
        dB.append(nav.psnr(model.videos(*nav.ids_on(CPU, clips.static_id, clips.transient_id)), torch.from_numpy(clips.videos)).mean().item())
    return dB


def copying(*folders):
    """nav.save_checkpoint that also leaves the first checkpoint of step 20, half of a run, in `folders`."""
    save, folders = nav.save_checkpoint, list(folders)

    def save_and_copy(out, s, data, log, state):
        save(out, s, data, log, state)
        if state["steps_done"] == 20:
            for folder in folders:
                folder.mkdir()
                (folder / "checkpoint.pt").write_bytes((out / "checkpoint.pt").read_bytes())
            folders.clear()

    return save_and_copy


def on_each_rank(folder):
    """What torchrun runs in two processes for the tests below; each leaves what it found in RANK.pt."""
    nav.join_ranks(CPU)
    nav.join_ranks, nav.HIDDEN = lambda device: None, 16
    (rank, _), found = nav.ranks(), {}
    for layout in ("static", "grid"):
        trainer = nav.Trainer(settings(batch=4, per_clip=2, steps=50), laid_out(layout), CPU)
        start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        for _ in range(50):
            trainer.step()
        found[layout] = dict(start=start, end=trainer.model.state_dict(), rows=trainer.rows, whole=trainer.state()["model"])
    found["steps"] = [shared_step(*each) for each in SHARED_STEPS]
    found["psnr"] = short_run()

    nav.save_checkpoint = copying(folder / "half", folder / "for_one")
    options = json.loads((folder / "options.json").read_text())
    found["said"] = []
    for more in (["--out", folder / "whole"], ["--resume", "--out", folder / "half"], ["--resume", "--out", folder / "from_one"],
                 ["--batch", 3], ["--clips", 3, "--hold-out-clips", 2], ["--resume", "--out", folder / "none"]):
        done = run(*options, *more)
        found["said"].append((done.returncode, done.stdout, done.stderr))
    plain_step = nav.Trainer.step

    def interrupted(trainer):  # Ctrl-C reaches one process alone
        if trainer.steps_done == 12 and rank == 1:
            signal.raise_signal(signal.SIGINT)
        return plain_step(trainer)

    nav.Trainer.step = interrupted
    done = run(*options, "--out", folder / "stopped")
    found["stopped"] = done.returncode, done.stdout, done.stderr
    nav.Trainer.step = plain_step
    done = run("evaluate", "--run", folder / "half")
    found["said"].append((done.returncode, done.stdout, done.stderr))
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture
def small_gru(monkeypatch):
    monkeypatch.setattr(nav, "HIDDEN", 16)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two processes under torchrun, started once -> (their folder, what each found, the options of their runs)."""
    folder = tmp_path_factory.mktemp("two")
    data_prep.save(toy_clips(), folder / "toy.npz")
    options = ["--dataset", str(folder / "toy.npz"), "--layout", "static", "--width", "4", "--levels", "3", "--batch", "2", "--device", "cpu",
               "--precision", "fp32", "--checkpoint-every", "0", "--window", "random", "--steps", "40"]
    (folder / "options.json").write_text(json.dumps(options))
    with pytest.MonkeyPatch.context() as patch:  # a checkpoint of one process, for two to go on with
        patch.setattr(nav, "HIDDEN", 16)
        patch.setattr(nav, "save_checkpoint", copying(folder / "from_one"))
        assert run(*options, "--out", folder / "alone").returncode == 0
    (folder / "ranks.py").write_text(f"import sys\nfrom pathlib import Path\nsys.path.insert(0, {str(ROOT)!r})\nimport test_nav\n"
                                     f"test_nav.on_each_rank(Path({str(folder)!r}))\n")
    done = subprocess.run([sys.executable, *TWO, str(folder / "ranks.py")], capture_output=True, text=True, timeout=240,
                          env=dict(os.environ, OMP_NUM_THREADS="1", TORCH_HOME=os.devnull))
    assert done.returncode == 0, done.stderr
    return folder, [torch.load(folder / f"{rank}.pt") for rank in (0, 1)], options


@pytest.mark.parametrize("layout", ["static", "grid"])
def test_two_processes_learn_the_same_networks_and_each_its_own_rows(two, small_gru, layout):
    _, found, _ = two
    zero, one = (each[layout] for each in found)
    alone = nav.Trainer(settings(batch=4, per_clip=2, steps=50), laid_out(layout), CPU).model.state_dict()
    own = {"z_s": [torch.tensor([0, 2, 4]), torch.tensor([1, 3, 5])]} if layout == "static" else {}
    assert same([zero["rows"], one["rows"]], [{name: rows[rank] for name, rows in own.items()} for rank in (0, 1)])
    assert same(zero["whole"], one["whole"]) and zero["whole"].keys() == alone.keys()
    for key in alone:
        name = key.split(".")[0]
        assert alone[key].shape == zero["whole"][key].shape
        for rank, here in enumerate((zero, one)):
            rows = own[name][rank] if name in own else ...
            assert torch.equal(here["start"][key], alone[key][rows]), key                # a start that no process changes
            assert torch.equal(here["end"][key], here["whole"][key][rows]), key          # and what a checkpoint keeps of it
        if not key.endswith("num_batches_tracked"):
            assert not torch.equal(zero["whole"][key], alone[key]), key
    for name in ("z_s", "z_t"):
        assert all(len(one["end"][f"{name}.{part}"]) == (3 if name in own else len(alone[f"{name}.z"])) for part in ("z", "m", "v", "count"))
        assert (zero["whole"][f"{name}.count"] > 0).all()


@pytest.mark.parametrize("k", range(len(SHARED_STEPS)), ids=map("-".join, SHARED_STEPS))
def test_two_processes_gradient_is_that_of_one(two, small_gru, k):
    alone = shared_step(*SHARED_STEPS[k])
    assert len(alone["grads"]) > 10
    for here in (each["steps"][k] for each in two[1]):
        for mine, theirs in zip([*here["grads"], *here["norms"], here["losses"]], [*alone["grads"], *alone["norms"], alone["losses"]], strict=True):
            assert off(mine, theirs)[0] <= min(1e-5, 1e-3 * theirs.abs().max().item() + 1e-7)
        for name in ("z_s", "z_t"):
            rows = here["rows"].get(name, slice(None))
            assert here[name].any() and off(here[name], alone[name][rows])[0] <= min(1e-5, 1e-3 * alone[name].abs().max().item())


def test_two_processes_reach_the_psnr_of_one(two, small_gru):
    (start, end), (start_two, end_two) = short_run(), two[1][0]["psnr"]
    assert two[1][1]["psnr"] == [start_two, end_two] and start == start_two
    assert abs(end - end_two) <= 0.5 and end > start + 1


def test_two_processes_go_on_bit_for_bit_and_with_another_number(two, small_gru):
    folder, found, options = two
    for rank, each in enumerate(found):
        for status, out, errors in each["said"][:3]:
            assert (status, errors) == (0, "") and bool(out) == (rank == 0)
    assert same(learned(folder / "whole"), learned(folder / "half")) and len(checkpoint(folder / "whole")["batches"]) == 2
    assert "made by 1 processes" in found[0]["said"][2][1] and "made by" not in found[0]["said"][1][1]
    done = run(*options, "--resume", "--out", folder / "for_one")
    assert done.returncode == 0, done.stderr
    assert "made by 2 processes" in done.stdout
    for name, count in (("from_one", 2), ("for_one", 1)):
        kept = checkpoint(folder / name)
        assert kept["steps_done"] == kept["log"][-1][0] == 40 and len(kept["batches"]) == count
        assert not same(kept["model"], checkpoint(folder / "whole")["model"])
        steps = [line[0] for line in kept["log"]]
        assert steps == sorted(set(steps)) and (folder / name / "metrics.json").exists()


def test_two_processes_refuse_in_one_line(two):
    """Process 0 says it, the other ends without a word."""
    (zero, one) = (each["said"][3:] for each in two[1])
    for (status, out, errors), word in zip(zero, ["--batch 3", "each needs a clip", "checkpoint", "without torchrun"], strict=True):
        assert status == 2 and out == "" and errors.startswith("nav: ") and errors.count("\n") == 1 and word in errors
    assert one == [(2, "", "")] * 4


def test_two_processes_leave_the_files_of_one(two, small_gru):
    folder, found, _ = two
    said = found[0]["said"][0][1]
    assert said.count("step 40/40") == 1 and "2 processes" in said
    files, log, config, metrics = zip(*(({p.name for p in out.iterdir()}, (out / "log.csv").read_text().splitlines(),
                                         *(json.loads((out / f"{name}.json").read_text()) for name in ("config", "metrics")))
                                        for out in (folder / "whole", folder / "alone")))
    assert files[0] == files[1] and len(log[0]) == len(log[1]) and metrics[0].keys() == metrics[1].keys()
    assert config[0] == dict(config[1], processes=2) and config[1]["processes"] == 1
    assert run("evaluate", "--run", folder / "whole", "--out", folder / "again", "--device", "cpu").returncode == 0
    assert json.loads((folder / "again/metrics.json").read_text())["psnr"] == metrics[0]["psnr"]


@contextlib.contextmanager
def two_by_hand(tmp_path, *options):
    """Two processes without torchrun, which would end both; given back after two progress lines, each's standard error in RANK.txt."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    try:
        for rank in ("0", "1"):
            with open(tmp_path / f"{rank}.txt", "w") as errors:
                started.append(subprocess.Popen(
                    [sys.executable, str(ROOT / "nav.py"), *options], stdout=subprocess.PIPE if rank == "0" else subprocess.DEVNULL,
                    stderr=errors, text=True, env=dict(os.environ, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                                                       MASTER_PORT=str(port), OMP_NUM_THREADS="1", TORCH_HOME=os.devnull)))
        lines = (line for line in started[0].stdout if line.startswith("step"))
        assert [next(lines, None) for _ in range(2)][-1], [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
        threading.Thread(target=lambda: list(lines), daemon=True).start()  # a full pipe would stop it
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_a_killed_process_ends_the_other_within_30_seconds(toy, tmp_path):
    killed = 0  # the one where the processes met: the harder case
    with two_by_hand(tmp_path, *toy, "--steps", "400", "--out", str(tmp_path / "run")) as started:
        started[killed].kill()
        assert started[1 - killed].wait(timeout=30) == 2
    said = (tmp_path / f"{1 - killed}.txt").read_text()
    line, = (line for line in said.splitlines() if line.startswith("nav:"))
    assert f"process {1 - killed} of 2" in line and "--resume" in line and "Traceback" not in said
    assert checkpoint(tmp_path / "run")["steps_done"] > 0


def test_ctrl_c_in_one_process_stops_both_at_one_step(two):
    folder, found, _ = two
    assert [each["stopped"][0] for each in found] == [130, 130] and found[1]["stopped"][2] == ""
    step = checkpoint(folder / "stopped")["steps_done"]
    assert 12 < step < 40 and step % 2 == 0  # a look at every second step
    assert found[0]["stopped"][2].startswith(f"nav: stopped at step {step} of 40") and found[0]["stopped"][2].count("\n") == 1


class Operations(TorchDispatchMode):
    """Every operation that runs under it: `seen` has (its name, what it reads, what it writes)."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        read, written = ([x for x in tree_leaves(part) if torch.is_tensor(x)] for part in ((args, kwargs), out))
        self.seen.append((func.overloadpacket.__name__, func._overloadname, read, written))
        return out


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """R runs for every clip of a step, whether or not it shares its transient codes; and labels are not checked, which would read them."""
    monkeypatch.setattr(torch.Tensor, "unique", lambda rows, return_inverse: (rows, torch.arange(len(rows))))
    monkeypatch.setattr(torch.nn.functional, "one_hot", lambda label, count: (label[:, None] == torch.arange(count)).long())


@pytest.mark.parametrize("recipe, window", [("fast", "first"), ("fast", "random"), ("paper", "random")])
def test_a_step_never_waits_for_the_host(as_on_a_gpu, recipe, window):
    """Nothing is read back and no shape depends on values: what a CUDA graph could not capture."""
    trainer = nav.Trainer(settings(recipe=recipe, window=window, batch=4, per_clip=2, conditional=True), laid_out("grid"), CPU)
    trainer.step()  # as before a capture: what a process finds out once
    with Operations() as operations:
        for _ in range(8):  # the eighth refreshes Muon's roots
            trainer.step()
    names = {name for name, *_ in operations.seen}
    assert {"index", "index_put_", "_fused_adam_", "convolution_backward"} <= names
    assert not names & {"_local_scalar_dense", "item", "nonzero", "nonzero_static", "masked_select", "masked_scatter", "is_nonzero", "equal",
                        "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount"}
    for name, overload, read, _ in operations.seen:
        assert (name, overload) != ("repeat_interleave", "Tensor")  # as many as a tensor says
        assert name not in ("index", "index_put_", "index_put") or not any(x.dtype in (torch.bool, torch.uint8) for x in read[1:2])


@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_a_row_for_every_clip_moves_as_a_row_once(request, recipe):
    """What a GPU does, R for every clip, and what a CPU does, R for every row: the same update."""
    clips, draws = torch.tensor([0, 3, 1, 5]), torch.rand(4, 7)  # actions 0, 0, 1, 2

    def update():
        trainer, rows = nav.Trainer(settings(recipe=recipe, batch=4, per_clip=2, lambda_t=0.5), laid_out("grid"), CPU), []
        trainer.model.R.register_forward_pre_hook(lambda R, z: rows.append(len(z[0])))
        found = recorded_update(trainer, clips, draws)
        return rows, [*found["grads"], *(found[name] for name in ("z_s", "z_t", "losses")), trainer.model.z_s.z, trainer.model.z_t.z]

    rows, found = update()
    request.getfixturevalue("as_on_a_gpu")
    rows_gpu, found_gpu = update()
    assert set(rows) == {3} and set(rows_gpu) == {4}
    assert all(torch.allclose(mine, theirs, atol=1e-5, rtol=1e-5) for mine, theirs in zip(found, found_gpu, strict=True))


@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_replayed_steps_are_those_without_a_graph(monkeypatch, recipe):
    """torch.cuda's graphs in a few lines: while one is captured nothing runs, and its replay does what the capture saw."""
    def trainer():
        made = nav.Trainer(settings(recipe=recipe, batch=4, per_clip=2, steps=120), laid_out("grid"), CPU)
        made.steps_done = 94
        return made

    plain, graphed = trainer(), trainer()
    graphed.use_graph, update, ran = True, graphed.update, []

    class Graph:
        def replay(self):
            ran.append("replay")
            mode = graphed.model.G.training
            graphed.model.G.train(self.training)
            for here, x in zip(self.out, update(*self.dealt)):
                here.copy_(x)
            graphed.model.G.train(mode)

    class Stream:
        def wait_stream(self, other):
            pass

    def run_or_capture(*dealt):
        if capturing:
            graph = capturing[0]
            graph.dealt, graph.training, graph.out = dealt, graphed.model.G.training, [torch.zeros_like(x) for x in like]
            return tuple(graph.out)
        ran.append("plain")
        like[:] = update(*dealt)
        return tuple(like)

    @contextlib.contextmanager
    def capture(graph):
        ran.append("capture")
        capturing.append(graph)
        yield
        capturing.clear()

    capturing, like, graphed.update = [], [], run_or_capture
    for name, fake in dict(CUDAGraph=Graph, graph=capture, Stream=Stream, current_stream=Stream, stream=contextlib.nullcontext).items():
        monkeypatch.setattr(torch.cuda, name, fake)
    outs = [[made.step() for _ in range(14)] for made in (plain, graphed)]
    assert same([losses for _, _, losses in outs[0]], [losses for _, _, losses in outs[1]])  # each step's own, though the graph has one place
    assert same(list(outs[0][-1]), list(outs[1][-1])) and same(plain.state(), graphed.state())
    until_100 = ["plain"] * 2 + ["capture"] + ["replay"] * 4
    after = ["plain"] * 2 + ["capture"] + ["replay"] * 6 if recipe == "fast" else ["replay"] * 8
    assert ran == until_100 + after  # captured anew when G's norms stop following their batch


@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_a_graph_that_cannot_be_captured_is_said_once_and_no_step_is_lost(monkeypatch, capsys, recipe):
    class Stream:
        def wait_stream(self, other):
            pass

    @contextlib.contextmanager
    def capture(graph):
        kept = copy.deepcopy(trainer.state())
        captured.append(0)
        try:
            yield
        finally:
            captured[:] = [captured.pop() > 0]
            trainer.restore(kept)  # a capture computes nothing

    def fails(call, at):  # while it is captured, the at-th call
        def instead(*args):
            if captured and captured[-1] is not True:
                captured[-1] += 1
                if captured[-1] == at:
                    raise RuntimeError("operation not permitted\nwhen stream is capturing")
            return call(*args)
        return instead

    captured = []
    plain, trainer = (nav.Trainer(settings(recipe=recipe, batch=2), laid_out("grid"), CPU) for _ in range(2))
    if recipe == "fast":  # gradients are there
        trainer.optimiser_R.step = fails(trainer.optimiser_R.step, 1)
    else:  # stage 2, G is frozen
        monkeypatch.setattr(nav, "triplet_margin", fails(nav.triplet_margin, 2))
    trainer.use_graph = True
    for name, fake in dict(CUDAGraph=object, graph=capture, Stream=Stream, current_stream=Stream, default_stream=Stream, set_stream=lambda stream: None,
                           stream=contextlib.nullcontext).items():
        monkeypatch.setattr(torch.cuda, name, fake)
    assert same([plain.step()[2] for _ in range(6)], [trainer.step()[2] for _ in range(6)]) and same(plain.state(), trainer.state())
    said = capsys.readouterr().err
    assert captured == [True] and said.count("\n") == 1 and "without a CUDA graph" in said and "not permitted when" in said


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_graph_and_single_kernels_agree_on_a_gpu(recipe):
    found = []
    for graph in (True, False):
        trainer = nav.Trainer(settings(recipe=recipe, batch=4, per_clip=2, steps=110), laid_out("grid"), torch.device("cuda"), graph)
        found.append(torch.stack([trainer.step()[2] for _ in range(110)]).cpu())
    assert torch.allclose(*found, atol=1e-4)


def muon(c_in, c_out, lr=0.01):
    w = torch.nn.Parameter((0.02 * torch.randn(c_in, c_out, 4, 4)).to(memory_format=torch.channels_last))
    return w, nav.Muon([w], lr=torch.tensor(lr))


MUON = [(16, 8), (64, 3), (48, 3)]  # fewer, more and as many rows as columns


@pytest.mark.parametrize("c_in, c_out", MUON)
def test_muon_moves_all_directions_alike(c_in, c_out):
    """Against the SVD: an update has the directions of the momentum, singular values of about one size, and elements of about lr."""
    torch.manual_seed(0)
    w, optimiser = muon(c_in, c_out)
    before, k = w.detach().clone(), min(c_in, 16 * c_out)
    u, v = (torch.linalg.qr(torch.randn(n, k, dtype=torch.double))[0] for n in (c_in, 16 * c_out))
    w.grad = (u * torch.linspace(0.3, 1.5, k) @ v.T).float().view(c_in, c_out, 4, 4)                # condition number 5
    optimiser.step()
    g = w.grad / w.grad.norm()                                                         # no root yet: the gradient, scaled
    assert torch.allclose(before - w, 0.01 * max(c_in, 16 * c_out) ** 0.5 * g, atol=1e-6)
    optimiser.refresh()
    before = w.detach().clone()
    optimiser.step()
    step = ((before - w) / 0.01).detach().double().flatten(1)
    singular = torch.linalg.svdvals(step)[:k] / max(c_in, 16 * c_out) ** 0.5
    assert 0.6 < singular.min() and singular.max() < 1.3, singular
    assert 0.6 < step.square().mean().sqrt() < 1.3
    turned = u.T @ step @ v / max(c_in, 16 * c_out) ** 0.5                             # in the momentum's own directions: a diagonal
    assert (turned - turned.diagonal().diag()).abs().max() < 1e-4 and turned.diagonal().min() > 0.6
    assert w.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("c_in, c_out", MUON)
def test_muon_goes_on_from_its_state(c_in, c_out):
    torch.manual_seed(0)
    w, optimiser = muon(c_in, c_out)
    grads = torch.randn(5, *w.shape)
    for g in grads[:3]:
        w.grad = g
        optimiser.step()
        optimiser.refresh()
    kept = io.BytesIO()
    torch.save((w.detach(), optimiser.state_dict()), kept)
    kept.seek(0)
    z, state = torch.load(kept, weights_only=True)
    z = torch.nn.Parameter(z)
    twin = nav.Muon([z], lr=torch.tensor(0.01))
    twin.load_state_dict(state)
    for g in grads[3:]:
        w.grad = z.grad = g
        optimiser.step(), twin.step()
    assert torch.equal(w, z) and z.is_contiguous(memory_format=torch.channels_last) and same(optimiser.state_dict(), twin.state_dict())


def many_clips(N, L=6):
    """N random clips of one motion."""
    videos = np.random.default_rng(0).integers(0, 256, (N, L, 16, 16, 3), np.uint8)
    return data_prep.Clips(videos, np.arange(N), np.zeros(N, int), [f"s{i}" for i in range(N)], ["t"], [f"c{i}" for i in range(N)], "toy")


@pytest.mark.parametrize("recipe, layout", [("fast", "static"), ("fast", "both"), ("paper", "both")])
def test_a_step_costs_the_same_with_more_clips(recipe, layout):
    """The same operations on as many numbers with 64 and with 8,192 clips; what holds all of them is only indexed."""
    costs = []
    for N in (64, 8192):
        clips = many_clips(64)
        nav.lay_out(clips, layout)
        trainer = nav.Trainer(settings(recipe=recipe, batch=4, per_clip=2), clips, CPU)
        if N > 64:
            m, b = trainer.model, trainer.batches
            for dictionary in (m.z_s, m.z_t):
                if len(dictionary.z) == 64:
                    for name, values in list(dictionary.named_buffers()):
                        setattr(dictionary, name, values.repeat(N // 64, *[1] * (values.ndim - 1)))
            b.frames, b.length, b.first = b.frames.repeat(N // 64, 1, 1, 1), b.length.repeat(N // 64), b.length.repeat(N // 64).cumsum(0) - 6
            b.l = b.l.repeat(N // 64)
            b.static_id, b.transient_id = torch.arange(N), torch.arange(N) if layout == "both" else b.transient_id.repeat(N // 64)
        trainer.update(torch.arange(4), torch.rand(4, 7))                              # what a process finds out once
        with Operations() as operations:
            trainer.update(torch.tensor([0, 9, N // 2, N - 1]), torch.rand(4, 7))
        cost = []
        for name, overload, read, written in operations.seen:
            if name in ("index", "index_put_"):                                        # reads or writes the rows named, whatever lies beside them
                read = read[1:]
                written = [] if name == "index_put_" else written
            cost.append((name, sum(x.numel() for x in (*read, *written))))
        assert {"index", "index_put_"} <= {name for name, _ in cost}
        costs.append(cost)
    assert costs[0] == costs[1]


def all_tensors(thing, seen):
    """Every tensor that a trainer holds, by where its memory begins: {address: bytes}."""
    if torch.is_tensor(thing):
        storage = thing.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        if thing.grad is not None:
            all_tensors(thing.grad, seen)
    elif isinstance(thing, dict):
        for each in (*thing.keys(), *thing.values()):
            all_tensors(each, seen)
    elif isinstance(thing, (list, tuple, set)):
        for each in thing:
            all_tensors(each, seen)
    elif isinstance(thing, (torch.nn.Module, torch.optim.Optimizer, nav.Trainer, nav.Batches)):
        all_tensors(vars(thing), seen)
    return seen


@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_more_clips_take_their_bytes_and_codes_and_no_more(recipe):
    def held(N):
        clips = many_clips(N)
        nav.lay_out(clips, "both")
        trainer = nav.Trainer(settings(recipe=recipe, batch=2, per_clip=2), clips, CPU)
        trainer.step()
        return sum(all_tensors(trainer, {}).values())

    frames, numbers = 6 * 16 * 16 * 3, 4 * 8                           # where it lies, how long it is, its row, its turns and its loss
    codes, counts = 4 * (7 + 6 * 5), 0 if recipe == "paper" else 2 * 4  # a static and six transient codes
    assert held(40) - held(8) == 32 * (frames + numbers + codes * (2 if recipe == "paper" else 3) + counts)


def test_bench_says_where_the_time_goes(toy):
    done = run("bench", *toy, "--per-clip", 2)
    assert done.returncode == 0, done.stderr
    head, *parts, ratio = done.stdout.splitlines()
    assert "2 clips x 2 frames" in head and re.search(r"^ratio: \d+\.\d\d$", ratio)
    assert [line[:10].strip() for line in parts] == ["step", "generator", "GRU", "losses", "updates", "gather", "the rest"]
    took = {line[:10].strip(): float(line[10:].split()[0]) for line in parts}
    assert all(re.fullmatch(r".{10} +-?\d+\.\d\d ms +-?\d+%", line) for line in parts)
    assert abs(took["step"] - sum(value for name, value in took.items() if name != "step")) < 0.05
    assert abs(took["step"] / took["generator"] - float(ratio.split()[1])) < 0.1


def test_bench_draws_both_recipes_over_the_seconds(toy, tmp_path):
    data_prep.save(replace(toy_clips(), source="drawn toys"), tmp_path / "toy.npz")
    done = run("bench", *toy, "--seconds", 1.5, "--out", tmp_path / "bench")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "bench").iterdir()} == {"bench.csv", "bench-standin.png"}
    rows = list(csv.DictReader((tmp_path / "bench/bench.csv").open()))
    assert list(rows[0]) == ["recipe", "seconds", "steps", "psnr"] and [row["recipe"] for row in rows] == sorted(row["recipe"] for row in rows)
    for recipe in ("fast", "paper"):
        seconds, steps, dB = ([float(row[name]) for row in rows if row["recipe"] == recipe] for name in ("seconds", "steps", "psnr"))
        assert len(seconds) > 2 and seconds == sorted(seconds) and steps == sorted(steps) and all(0 < value < 100 for value in dB)
        assert sum(line.startswith(f"{recipe:5}  ") for line in done.stdout.splitlines()) == len(seconds)
    picture = np.asarray(Image.open(tmp_path / "bench/bench-standin.png"))[24:]
    assert all((picture == colour).all(2).sum() > 20 for colour in ((31, 119, 180), (214, 80, 40)))


def test_bench_refuses_in_one_line(capsys, toy, tmp_path):
    for seconds in (0, "nan", -1, "inf", 0.5):
        assert "--seconds" in refused(capsys, "bench", *toy, "--seconds", seconds, "--out", tmp_path / "bench")
    assert "--run" in refused(capsys, "bench", *toy, "--run", tmp_path)
    assert not (tmp_path / "bench").exists()


def test_chart_puts_points_where_they_belong(tmp_path):
    lines = {"up": ([0, 10], [0, 9.5]), "flat": ([2, 10], [7.0, 7.0]), "down": ([0, 5, 10], [4, 2, 2])}
    data_prep.chart(tmp_path / "chart.png", lines, "seconds", "dB")
    picture = np.asarray(Image.open(tmp_path / "chart.png").convert("RGB")).astype(int)
    black = (picture == 0).all(2)
    left, bottom = black.sum(0).argmax(), black.sum(1).argmax()                            # the axes
    top, right = np.flatnonzero(black[:, left])[0], np.flatnonzero(black[bottom])[-1]
    assert right - left > 500 and bottom - top > 250

    def near(x, y, colour):  # y runs from 0 to 10, the whole numbers around all values
        column, row = left + (right - left) * x / 10, bottom - (bottom - top) * y / 10
        around = picture[round(row) - 1:round(row) + 2, round(column) - 1:round(column) + 2].reshape(-1, 3)
        return (around == colour).all(1).any()

    for colour, points in (((31, 119, 180), [(1, 0.95), (5, 4.75), (9, 8.55)]), ((214, 80, 40), [(2.1, 7), (6, 7), (9.9, 7)]),
                           ((44, 140, 60), [(0.1, 3.96), (2.5, 3), (5, 2), (9, 2)])):
        assert all(near(*point, colour) for point in points), colour
    assert not near(1, 7, (214, 80, 40)) and not near(5, 7, (31, 119, 180)) and not near(9, 4, (44, 140, 60))


@pytest.mark.parametrize("lines", [{"a": ([1, 2], [20.0, 20.0])}, {"a": ([1], [20.3]), "b": ([2], [20.0])}, {"a": ([0.5], [7.0])},
                                   {"a": ([1, 2], [-3.5, 100.0])}, {"a": ([1e6], [0.0])}])
def test_chart_of_few_points(tmp_path, lines):
    data_prep.chart(tmp_path / "chart.png", lines, "seconds", "dB")
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.size == (640, 400)


# ---- kernels ---------------------------------------------------------------------------------------------------------


def brute_laplacian(d, levels):
    """The formula to the letter on one difference [C, H, W], in float64, a pixel at a time."""
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
    """The definition to the letter on one clip [T, D], in float64, a triplet at a time."""
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
        pred = (target.cpu() / 127.5 - 1).to(device)  # a GPU divides by way of the reciprocal
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


def test_a_gpu_where_triton_cannot_compile_takes_pytorch(monkeypatch):
    monkeypatch.delenv("NAV_KERNELS", raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(kernels, "_HAS_TRITON", True)
    monkeypatch.setattr(kernels, "_INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(kernels.shutil, "which", {"gcc": "/usr/bin/gcc"}.get)
    for exists, said in ((True, "triton"), (False, "torch: triton needs Python's headers (python3-dev)")):
        kernels._cannot_launch.cache_clear()
        monkeypatch.setattr(kernels.os.path, "exists", lambda path: exists)
        assert backend("cuda") == said
    kernels._cannot_launch.cache_clear()
    monkeypatch.setattr(kernels.shutil, "which", {}.get)
    assert backend("cuda") == "torch: triton needs a C compiler (gcc or clang)"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "8.0" in backend("cuda")
    kernels._cannot_launch.cache_clear()


def test_kernels_import_without_triton():
    code = ("import sys; sys.modules['triton'] = None; import torch, kernels; print(kernels.backend('cpu')); "
            "print(kernels.triplet_margin(torch.zeros(1, 4, 2)).item())")
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.split("\n")[:2] == ["torch: triton is not installed", "2.0"], run.stderr


@pytest.mark.skipif(kernels.laplacian.triton is None, reason="triton is not installed")
def test_no_register_spills_where_it_trains():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, "-m", "kernels.bench", "--compile", "--arch", "sm_90", "--kernel",
                          "laplacian_grad"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    header, *lines = (line.split() for line in run.stdout.splitlines())
    assert header == "kernel arch dtype levels side warps registers spill shared".split()
    rows = {(kernel, dtype, levels): int(spill) for kernel, _, dtype, levels, _, _, _, spill, _ in lines}
    assert rows == {("laplacian_grad", dtype, levels): 0 for dtype in ("bf16", "fp32") for levels in "34"}


# ---- data_prep -------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(data_prep, "BACKOFF", 0.02)


def prepare(*arguments):
    """data_prep.py's main in this process -> exit status."""
    try:
        return data_prep.main([str(argument) for argument in arguments])
    except SystemExit as end:
        return end.code


def one_line(capsys):
    """What was said on standard error: one line."""
    text = capsys.readouterr().err.strip()
    assert text and "\n" not in text and "Traceback" not in text, text
    return text


def weights(count, begin, side, out):
    """[count, out]: the antialiased bicubic (a = -1/2) that takes begin..begin + side of `count` pixels to `out`."""
    scale = side / out
    centre = begin + (np.arange(out) + 0.5) * scale
    x = np.abs(np.arange(count)[:, None] + 0.5 - centre) / max(scale, 1)
    w = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
    return w / w.sum(0)


def resized(image, out, side=None):
    """An independent crop-and-resize of uint8 [H, W, 3]: a centred square of that side, or the whole picture."""
    high, wide = image.shape[:2]
    rows, columns = (weights(count, (count - (side or count)) / 2, side or count, out) for count in (high, wide))
    narrow = np.clip(np.tensordot(image.astype(float), columns, (1, 0)), 0, 255)  # [H, 3, out]
    return np.clip(np.tensordot(rows.T, narrow, (1, 0)), 0, 255).transpose(0, 2, 1)


def close(prepared, expected, most=2.0):
    return np.abs(prepared.astype(float) - expected).max() <= most


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def avi(video, promised=None, bits=24, codec=b"\0\0\0\0", flip=True, sizes=None, size=None):
    """uint8 [T, H, W, 3] as the Weizmann films have it: RIFF, uncompressed, BGR, bottom-up, rows padded to 4 bytes."""
    high, wide = size or video.shape[1:3]

    def chunk(tag, body):
        return tag + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)

    def rows(frame):
        frame = frame[:: -1 if flip else 1, :, ::-1]
        return np.pad(frame.reshape(len(frame), -1), ((0, 0), (0, -3 * frame.shape[1] % 4))).tobytes()

    count = len(video) if promised is None else promised
    main = struct.pack("<14I", 40000, 0, 0, 0x10, count % 2**32, 0, 1, 0, wide % 2**32, high % 2**32, 0, 0, 0, 0)
    form = struct.pack("<IiiHH4sIiiII", 40, wide, high if flip else -high, 1, bits, codec, 0, 0, 0, 0, 0)
    head = chunk(b"avih", main) + chunk(b"LIST", b"strl" + chunk(b"strh", b"vids" + bytes(52)) + chunk(b"strf", form))
    bodies = [rows(frame) for frame in video]
    if sizes:
        bodies = [body[: sizes.get(t, len(body))] for t, body in enumerate(bodies)]
    movi = b"movi" + b"".join(chunk(b"00db", body) for body in bodies)
    body = b"AVI " + chunk(b"LIST", b"hdrl" + head) + chunk(b"JUNK", bytes(11)) + chunk(b"LIST", movi)
    body += chunk(b"idx1", bytes(16))
    return b"RIFF" + struct.pack("<I", len(body)) + body


def film(seed, frames=18, high=28, wide=37):
    """A small random film that is smooth enough to survive resizing: uint8 [frames, high, wide, 3]."""
    rng = np.random.default_rng(seed)
    small = [Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8)) for _ in range(frames)]
    return np.stack([np.asarray(image.resize((wide, high), Image.Resampling.BICUBIC)) for image in small])


def tar_of(entries, mode="w"):
    """A tar of (name, bytes) or ready TarInfo entries."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, body in entries:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if body is not None:
                info.size = len(body)
            archive.addfile(info, io.BytesIO(body or b""))
    return file.getvalue()


def zip_of(entries, method=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method) as archive:
        warnings.simplefilter("ignore")  # of names that come twice
        for name, body in entries:
            archive.writestr(name, body)
    return file.getvalue()


def render(model, elevation, view, side=600):
    """A stand-in for one render: white ground, a coloured block that moves with the view."""
    image = np.full((side, side, 3), 255, np.uint8)
    x, y = side // 4 + view * side // 80, side // 3 + 7 * model
    image[y : y + side // 4, x : x + side // 5] = (40 * model % 256, 8 * view, 5 * elevation)
    image[y : y + side // 8, x : x + 9] = 0
    return image


def chair_entries(models, side=600, views=31):
    """The chair tar's members: rendered_chairs/<hash>/renders/..., and the list of names, which is no render."""
    entries = [("rendered_chairs/all_chair_names.mat", b"MATLAB 5.0 MAT-file" + bytes(200))]
    for model in models:
        for elevation in (20, 30):
            for view in range(views):
                number = view + (0 if elevation == 20 else views)
                name = f"image_{number:03d}_p{elevation:03d}_t{view * 360 // 31:03d}_r096.png"
                body = png(render(model, elevation, view, side))
                entries.append((f"rendered_chairs/{model:032x}/renders/{name}", body))
    return entries


@pytest.fixture(scope="session")
def chair_tar():
    """Three models of 62 renders; one of 600 x 600, the size of the real ones."""
    return tar_of(chair_entries([1]) + chair_entries([2, 3], side=90))


@pytest.fixture(scope="session")
def weizmann_zips():
    """{action: zip} of 9 persons x 10 actions, lena with two runs, skips and walks."""
    zips = {}
    for a, action in enumerate(data_prep.ACTIONS):
        entries = []
        for p, person in enumerate(data_prep.PERSONS):
            double = person == "lena" and action in ("run", "skip", "walk")
            for take in (1, 2) if double else ("",):
                entries.append((f"{person}_{action}{take}.avi", avi(film([p, a, take or 0], frames=16 + p % 3))))
        zips[action] = zip_of(entries)
    return zips


def strips(count, folders, frames=16, side=128):
    """Golf strips: (name in the archive, jpeg bytes)."""
    films = [film(index, frames, side, side).reshape(-1, side, 3) for index in range(count)]
    return [(f"frames-stable-many/{k % folders:04d}/{k:06d}.jpg", jpeg(strip)) for k, strip in enumerate(films)]


class Server:
    """A loopback HTTP server of {path: bytes}. cuts: (end of a path, share of the file after which one answer breaks
    off); hang: send that share, then nothing; slow: seconds for every 16 KiB; errors: how many 503s come first."""

    def __init__(self, files, ranges=True, cuts=(), hang=None, slow=0.0, moved=None, errors=0, tag='"one"'):
        self.files, self.ranges, self.cuts, self.hang, self.slow = files, ranges, list(cuts), hang, slow
        self.moved, self.errors, self.tag, self.asked, self.sent = moved or {}, errors, tag, [], 0
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                owner.asked.append((self.path, self.headers.get("Range")))
                if self.path in owner.moved:
                    self.send_response(302)
                    self.send_header("Location", owner.moved[self.path])
                    self.end_headers()
                    return
                if owner.errors:
                    owner.errors -= 1
                    self.send_error(503)
                    return
                if self.path not in owner.files:
                    self.send_error(404)
                    return
                body, begin = owner.files[self.path], 0
                if owner.ranges and self.headers.get("Range"):
                    begin = int(self.headers["Range"][6:-1])
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
                else:
                    self.send_response(200)
                if owner.tag:
                    self.send_header("ETag", owner.tag)
                self.send_header("Content-Length", str(len(body) - begin))
                self.end_headers()
                end = len(body)
                if owner.cuts and self.path.endswith(owner.cuts[0][0]):
                    end = int(len(body) * owner.cuts.pop(0)[1])
                hangs = owner.hang is not None and not self.path.endswith(".txt")
                if hangs:
                    end = int(len(body) * owner.hang)
                with contextlib.suppress(OSError):
                    for at in range(begin, end, 1 << 14):
                        self.wfile.write(body[at : min(at + (1 << 14), end)])
                        owner.sent += min(1 << 14, end - at)
                        time.sleep(owner.slow)
                    self.wfile.flush()
                    if hangs:
                        owner.stop.wait(10)
                self.close_connection = True

        self.stop = threading.Event()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.server.shutdown()
        self.server.server_close()


def same_set(a, b):
    """Two Clips hold the same."""
    arrays = ("videos", "static_id", "transient_id", "full", "length")
    return all(np.array_equal(getattr(a, key), getattr(b, key)) for key in arrays) \
        and (a.names, a.static_names, a.transient_names) == (b.names, b.static_names, b.transient_names)


def trains(npz, tmp_path):
    """nav.py takes 20 steps on a set."""
    done = run("--dataset", npz, "--steps", 20, "--clips", 4, "--width", 4, "--batch", 2, "--device", "cpu", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "metrics.json").exists()


# The prepared set


def some_clips(longer=False):
    videos = np.random.default_rng(0).integers(0, 255, (3, 5, 16, 16, 3), dtype=np.uint8)
    full = np.concatenate([videos[0], videos[1], videos[1][:2], videos[2]]) if longer else None
    length = np.array([5, 7, 5]) if longer else None
    return data_prep.Clips(videos, np.array([0, 0, 1]), np.array([0, 1, 0]), ["a", "b"], ["x", "y"],
                           ["a_x", "a_y", "b_x"], "drawn for a test", full, length)


@pytest.mark.parametrize("longer", [False, True])
def test_set_survives_save_and_load(tmp_path, longer):
    clips = some_clips(longer)
    data_prep.save(clips, tmp_path / "set.npz")
    again = data_prep.load(tmp_path / "set.npz")
    assert same_set(clips, again) and again.standin and again.source == clips.source
    with np.load(tmp_path / "set.npz", allow_pickle=False) as arrays:
        assert ("full" in arrays) == longer
    assert os.listdir(tmp_path) == ["set.npz"]


def damage(**changes):
    def write(path):
        data_prep.save(some_clips("length" in changes or "full" in changes), path)
        with np.load(path) as arrays:
            arrays = dict(arrays)
        for key, value in changes.items():
            if value is None:
                del arrays[key]
            else:
                arrays[key] = value(arrays[key]) if callable(value) else value
        np.savez_compressed(path, **arrays)

    return write


def cut_file(path):
    data_prep.save(some_clips(), path)
    path.write_bytes(path.read_bytes()[:-900])


def flip_bytes(path):
    data_prep.save(some_clips(), path)
    data = bytearray(path.read_bytes())
    data[400:500] = bytes(100)
    path.write_bytes(data)


def huge(shape, body=b""):
    """An npz whose `videos` promises a huge array and holds `body`."""
    def write(path):
        data_prep.save(some_clips(), path)
        with zipfile.ZipFile(path) as old:
            rest = {name: old.read(name) for name in old.namelist() if name != "videos.npy"}
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, dict(descr="|u1", fortran_order=False, shape=shape))
        path.write_bytes(zip_of([("videos.npy", header.getvalue() + body), *rest.items()]))

    return write


def fortran_bomb(path):
    """Declares 2^33 bytes, and does hold 2^27 zeros."""
    huge((2, 16, 16384, 16384, 3), bytes(1 << 24))(path)


DAMAGED_SETS = [
    (lambda path: None, "cannot be read"),
    (lambda path: path.write_bytes(b""), "not a whole zip"),
    (lambda path: path.write_bytes(b"PK" * 500), "not a whole zip"),
    (cut_file, "truncated"),
    (flip_bytes, "damaged"),
    (damage(videos=None), "'videos' is missing"),
    (damage(static_id=None), "'static_id' is missing"),
    (damage(source=None), "'source' is missing"),
    (damage(length=None), "'length' is missing"),
    (damage(videos=lambda v: v.astype(np.float32)), "'videos' is float32, uint8 expected"),
    (damage(videos=lambda v: v[0]), "'videos' has shape (5, 16, 16, 3), 5 dimensions"),
    (damage(videos=lambda v: v[..., :2]), "'videos' has shape"),
    (damage(**dict.fromkeys(("videos", "static_id", "transient_id", "names"), lambda v: v[:0])), "holds no clip"),
    (damage(videos=lambda v: v[:, :0]), "'videos' has shape"),
    (damage(static_id=lambda v: v + 1), "'static_id' runs from 1 to 2, 0 to 1 expected"),
    (damage(transient_id=lambda v: v - 1), "'transient_id' runs from -1 to 0"),
    (damage(static_id=lambda v: v[:2]), "'static_id' has 2 entries"),
    (damage(static_id=lambda v: v.astype(np.int32)), "'static_id' is int32, int64 expected"),
    (damage(static_id=lambda v: v.astype(float)), "'static_id' is float64, int64 expected"),
    (damage(static_id=lambda v: v[:, None]), "'static_id' has shape (3, 1), 1 dimensions"),
    (damage(names=lambda v: v[:1]), "'names' has 1 entries"),
    (damage(names=lambda v: np.array([1, 2, 3])), "'names' is int64, str expected"),
    (damage(names=lambda v: np.array(["a", 1, {}], object)), "'names': holds Python objects"),
    (damage(source=lambda v: np.array(["a", "b"])), "'source' has shape (2,), 0 dimensions"),
    (damage(static_names=lambda v: v[:0]), "'static_id' runs from"),
    (damage(length=lambda v: v - [0, 0, 3]), "'length' adds up to"),
    (damage(length=lambda v: np.array([2**62, 2**62, 2**62])), "'length' adds up to"),
    (damage(full=lambda v: v[:, :8]), "'full' has frames of"),
    (damage(full=lambda v: v[:-1]), "'length' adds up to"),
    (huge((2**40, 16, 64, 64, 3)), "at most"),
    (huge((2**62, 2**62, 2**62, 1, 3)), "at most"),
    (huge((-1, 16, 64, 64, 3)), "'videos'"),
    (huge((4, 16, 64, 64, 3)), "promises"),
    (fortran_bomb, "at most"),
]


@pytest.mark.parametrize("case", range(len(DAMAGED_SETS)))
def test_bad_set_is_named(tmp_path, case):
    write, text = DAMAGED_SETS[case]
    write(tmp_path / "bad.npz")
    with pytest.raises(data_prep.DataError) as error:
        data_prep.load(tmp_path / "bad.npz")
    assert text in str(error.value) and "\n" not in str(error.value), error.value


def test_write_beside_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("before")

    def fail(temporary):
        assert temporary.parent == tmp_path and temporary.suffix == ".txt"
        temporary.write_text("half")
        raise OSError("no space left")

    with pytest.raises(OSError):
        data_prep.write_beside(path, fail)
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["file.txt"]
    data_prep.write_beside(path, lambda temporary: temporary.write_text("after"))
    assert path.read_text() == "after" and os.listdir(tmp_path) == ["file.txt"]


def test_sheet_places_cells(tmp_path):
    rows = np.random.default_rng(0).integers(0, 255, (2, 3, 8, 6, 3), dtype=np.uint8)
    data_prep.sheet(rows, tmp_path / "a.png", scale=2, gap=3)
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    assert picture.shape == (3 + 2 * 19, 3 + 3 * 15, 3)
    for r in range(2):
        for k in range(3):
            cell = picture[3 + r * 19 : 19 + r * 19, 3 + k * 15 : 15 + k * 15]
            assert np.array_equal(cell, rows[r, k].repeat(2, 0).repeat(2, 1))
    data_prep.sheet([[rows[0, 0], None]], tmp_path / "b.png", frames=[[(255, 0, 0), None]], row_labels=["one"],
                    column_labels=["a", "b"])
    picture = np.asarray(Image.open(tmp_path / "b.png"))
    assert (picture == (255, 0, 0)).all(2).sum() == 12 * 10 - 8 * 6
    assert (picture == rows[0, 0][0, 0]).all(2).any()


def test_gif_keeps_frames_and_still_ground(tmp_path):
    video = np.full((6, 32, 32, 3), 230, np.uint8)
    for t in range(6):
        video[t, 8:20, 3 * t : 3 * t + 8] = (30, 90 + 20 * t, 160)
    data_prep.write_gif(video, tmp_path / "a.gif", fps=10)
    again = data_prep.read_clip(tmp_path / "a.gif")
    assert again.shape == video.shape and np.abs(again.astype(int) - video).max() <= 6
    with Image.open(tmp_path / "a.gif") as image:
        assert image.info["loop"] == 0 and image.info["duration"] == 100


# Drawings


def test_chairs_are_the_same_chairs_whatever_the_count():
    few, more = data_prep.draw_chairs(3), data_prep.draw_chairs(5)
    assert few.videos.shape == (3, 16, 64, 64, 3) and few.standin
    assert np.array_equal(few.videos, more.videos[:3])
    assert not np.array_equal(few.videos, data_prep.draw_chairs(3, seed=1).videos)
    assert few.static_id.tolist() == [0, 1, 2] and not few.transient_id.any() and len(few.transient_names) == 1


def test_chairs_fill_the_frame_and_never_touch_the_border():
    videos = data_prep.draw_chairs(24, frames=31, size=32, seed=3).videos
    assert (videos[:, :, [0, -1]] == 255).all() and (videos[:, :, :, [0, -1]] == 255).all()
    inked = (videos < 250).any(4)
    spans = inked.any((1, 3)).sum(1) / 32  # rows with ink in any view
    assert spans.min() >= 0.5 and np.median(spans) >= 0.72 and spans.max() <= 0.95
    assert (inked.mean((1, 2, 3)) > 0.04).all()
    turned = np.abs(videos[:, 1:].astype(int) - videos[:, :-1]).mean((2, 3, 4))
    assert turned.min() > 0  # it turns in every step
    assert len({tuple(video[0].mean((0, 1)).astype(int)) for video in videos}) > 20  # no two alike


def first_met(parts, k, rays):
    """What rays from camera k meet first, by intersecting every convex piece, without any sorting.

    rays: points [R, 3] that the rays go through -> piece or -1 [R], how far the runner-up is behind [R]."""
    corners = np.concatenate([piece.reshape(-1, 3) for piece, _ in parts])
    middle = (corners.min(0) + corners.max(0)) / 2
    distance = 5 * np.linalg.norm(corners - middle, axis=1).max()
    a, e = 2 * np.pi * k / 31, np.radians(20)
    eye = middle + distance * np.array([np.sin(a) * np.cos(e), np.cos(a) * np.cos(e), np.sin(e)])
    nearest, owner, margin = np.full(len(rays), np.inf), np.full(len(rays), -1), np.full(len(rays), np.inf)
    for index, (piece, _) in enumerate(parts):
        _, normals, offsets = data_prep.faces_of(piece)
        toward, gap = (rays - eye) @ normals.T, offsets - eye @ normals.T
        with np.errstate(divide="ignore", invalid="ignore"):
            t = gap / toward
        enter = np.where(toward < 0, t, -np.inf).max(1)
        leave = np.where(toward > 0, t, np.inf).min(1)
        hit = (enter < leave - 1e-3) & (enter > 0)
        margin = np.where(hit, np.minimum(margin, np.abs(enter - nearest)), margin)
        closer = hit & (enter < nearest)
        nearest, owner = np.where(closer, enter, nearest), np.where(closer, index, owner)
    return owner, margin


def test_nothing_hidden_is_painted(monkeypatch):
    """The painter's order agrees with rays: what a ray to a point inside piece b meets first is painted after b."""
    orders, sort = [], data_prep.in_order
    monkeypatch.setattr(data_prep, "in_order", lambda *arguments: orders.append(sort(*arguments)) or orders[-1])
    wrong = seen = 0
    for index in range(4):
        parts = data_prep.make_chair(np.random.default_rng([9, index]))
        orders.clear()
        data_prep.render_chair(parts, 31, 8, 0.8)
        rng = np.random.default_rng(index)
        for k in (0, 3, 7, 12, 19, 26):
            for b, (piece, _) in enumerate(parts):
                rays = rng.dirichlet(np.ones(2 * piece.shape[1]), 40) @ piece.reshape(-1, 3)
                owner, margin = first_met(parts, k, rays)
                for other in owner[(owner >= 0) & (owner != b) & (margin > 1e-3)]:
                    seen += 1
                    wrong += orders[k].index(b) > orders[k].index(other)
    assert seen > 2500 and not wrong, (wrong, seen)


def test_people_are_persons_times_actions():
    clips = data_prep.draw_people(size=32)
    assert clips.videos.shape == (90, 16, 32, 32, 3) and clips.standin
    assert clips.length.tolist() == [28] * 90 and clips.full.shape == (90 * 28, 32, 32, 3)
    assert (len(clips.static_names), len(clips.transient_names)) == (9, 10) and len(set(clips.names)) == 90
    for name, i, j in zip(clips.names, clips.static_id, clips.transient_id):
        assert name == f"{clips.static_names[i]}_{clips.transient_names[j]}"
    grid = clips.videos.reshape(9, 10, 16, 32, 32, 3).astype(int)
    walkers = [clips.transient_names.index(action) for action in ("jump", "run", "side", "skip", "walk")]
    grounds = [np.median(person[walkers, ::3].reshape(-1, 32, 32, 3), 0) for person in grid]  # walkers show all of it
    for person, ground in zip(grid, grounds):
        assert np.abs(person[:, :, :2] - ground[:2]).max() <= 1  # one still background; nobody reaches its top
    assert all(np.abs(grounds[a] - grounds[b]).mean() > 4 for a in range(9) for b in range(a))
    for index, action in enumerate(clips.transient_names):  # what differs from the ground crosses the frame, or stays
        moving = (np.abs(grid[2, index] - grounds[2]).max(3) > 40)[:, :26]
        centre = [np.nonzero(frame)[1].mean() / 32 for frame in moving]
        span = max(centre) - min(centre)
        assert span > 0.5 if index in walkers else span < 0.2, (action, span)
    # No two actions look alike, and an action is the same for everybody: poses do not depend on the person.
    for a in range(10):
        for b in range(a):
            assert np.abs(grid[4, a] - grid[4, b]).mean() > 0.5, (a, b)


# Clips of anybody


def test_folder_reads_every_kind(tmp_path, capsys):
    source, video = tmp_path / "clips", film(5, frames=16, high=64, wide=64)
    source.mkdir()
    data_prep.write_gif(video, source / "a_run.gif")
    images = [Image.fromarray(frame) for frame in video]
    images[0].save(source / "b_run.png", save_all=True, append_images=images[1:])
    images[0].save(source / "c_run.webp", save_all=True, append_images=images[1:], lossless=True)
    (source / "d_run").mkdir()
    for t, image in enumerate(images):
        image.save(source / "d_run" / f"frame{t}.png")  # frame10 comes after frame9
    Image.fromarray(np.concatenate(video, 0)).save(source / "e_run.png")
    Image.fromarray(np.concatenate(video, 1)).save(source / "f_walk.png")
    (source / "g_walk.avi").write_bytes(avi(video))
    data_prep.write_gif(video[:9], source / "h_short.gif")
    (source / "i_walk.gif").write_bytes(b"GIF89a what")
    (source / "j_walk.png").symlink_to(source / "e_run.png")
    (source / "README.txt").write_text("not a clip")
    Image.fromarray(video[0]).save(source / "still_one.png")
    (source / "plain.avi").write_bytes(avi(video))
    (source / "a_run.avi").write_bytes(avi(video))
    assert prepare("folder", source, "--name", "mine", "--grid", "--out", tmp_path / "data") == 0
    said = capsys.readouterr().out
    for text in ("fewer than 16 frames: h_short", "cannot be decoded", "a link, which is not followed: j_walk.png",
                 "README.txt", "is no strip", "no such name: plain", "two clips of one name: a_run",
                 "7 clips x 16 frames x 64 x 64"):
        assert text in said, (text, said)
    clips = data_prep.load(tmp_path / "data" / "mine.npz")
    assert (tmp_path / "data" / "mine.png").exists() and not clips.standin
    assert clips.static_names == list("abcdefg") and clips.transient_names == ["run", "walk"]
    assert clips.transient_id.tolist() == [0, 0, 0, 0, 0, 1, 1]
    for name, got in zip(clips.names, clips.videos):
        most = 40 if name == "a_run" else 0  # the first of a name is kept, here the avi; GIF has 256 colours
        assert np.abs(got.astype(int) - video).max() <= most, name
    assert prepare("folder", source, "--name", "mine", "--out", tmp_path / "data") == 0
    assert "is there: 7 clips" in capsys.readouterr().out


def test_folder_reads_arrays_and_crops_the_middle(tmp_path):
    long, short = film(1, 20, 48, 60), film(2, 18, 60, 48)
    source = tmp_path / "arrays.npz"
    np.savez(source, b_y=short, a_x=long, wrong=np.zeros(3), float_x=long / 255.0)
    assert prepare("folder", source, "--name", "arrays", "--grid", "--out", tmp_path) == 2  # the source itself: no set
    assert prepare("folder", source, "--name", "two", "--grid", "--size", 24, "--out", tmp_path) == 0
    clips = data_prep.load(tmp_path / "two.npz")
    assert clips.names == ["a_x", "b_y"] and clips.length.tolist() == [20, 18] and len(clips.full) == 38
    for t in range(16):
        assert close(clips.videos[0, t], resized(long[t], 24, 48))
        assert close(clips.videos[1, t], resized(short[t], 24, 48))
    assert np.array_equal(clips.full[:16], clips.videos[0]) and np.array_equal(clips.full[20:36], clips.videos[1])


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
def test_folder_reads_the_real_films(tmp_path):
    assert prepare("folder", SHARED / "weizmann4_64.npz", "--name", "w4", "--grid", "--out", tmp_path) == 0
    clips = data_prep.load(tmp_path / "w4.npz")
    assert clips.videos.shape == (36, 16, 64, 64, 3) and (len(clips.static_names), len(clips.transient_names)) == (9, 4)
    with np.load(SHARED / "weizmann4_64.npz") as arrays:
        for j, name in enumerate(clips.names):
            begin = clips.length[:j].sum()
            assert np.array_equal(clips.full[begin : begin + 40], arrays[name])


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
def test_the_real_avi(tmp_path):
    data = (SHARED / "eli_jack.avi").read_bytes()
    frames = data_prep.read_avi(data, "eli_jack.avi")
    assert len(frames) == 51 and frames[0].shape == (144, 180, 3)
    at = data.index(b"movi00db") + 12
    assert data[at : at + 3] == bytes(frames[0][143, 0, ::-1])  # the file begins with the lowest row, in BGR
    wall, shirt = frames[0][5:30, 30:60].mean((0, 1)), frames[0][42:60, 76:84].mean((0, 1))
    assert wall[0] > wall[2] and shirt[2] > shirt[0]  # a reddish wall above, a blue shirt
    assert data_prep.read_clip(SHARED / "eli_jack.avi", 20, 64).shape == (20, 64, 64, 3)


def test_read_clip_sizes(tmp_path):
    video = film(3, 5, 30, 44)
    (tmp_path / "a.avi").write_bytes(avi(video))
    assert np.array_equal(data_prep.read_clip(tmp_path / "a.avi"), video)
    assert data_prep.read_clip(tmp_path / "a.avi", 3, 16).shape == (3, 16, 16, 3)
    (tmp_path / "down.avi").write_bytes(avi(video, flip=False))
    assert np.array_equal(data_prep.read_clip(tmp_path / "down.avi"), video)
    clear = Image.new("RGBA", (8, 16), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert (data_prep.read_clip(tmp_path / "clear.png") == 255).all()
    for arguments in ((tmp_path / "a.avi", 6), (tmp_path / "none.gif",), (tmp_path,)):
        with pytest.raises(data_prep.DataError):
            data_prep.read_clip(*arguments)


@pytest.mark.parametrize("arguments", [
    "folder missing --name x", "folder . --name ../x", "folder . --name .x", "folder .", "what",
    "draw chair --frames 0", "draw chair --clips 0", "draw chair --size 4", "draw chair --seed -1", "draw golf",
    "draw chair --out file", "draw chair --out file/below", "draw weizmann --clips 3", "draw chair --size many",
    "chair --source missing.tar", "chair --source ftp://127.0.0.1/a.tar", "golf --source file:///etc/passwd",
    "chair --source http://", "chair --source http://[/a.tar", "weizmann --source . --sha256 00",
    "golf --source http://127.0.0.1:1/golf.tar.bz2 --sha256 " + "0" * 64, "chair --source . --sha256 " + "0" * 64,
    "chair --source http://127.0.0.1:1/a.tar --retries 0 --timeout 1", "chair --source http://127.0.0.1:x/a.tar",
    "chair --source . --timeout -1", "chair --source . --retries -1", "golf --source .", "chair --source file",
])
def test_bad_commands_say_one_line(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    assert prepare(*arguments.split()) == 2
    one_line(capsys)
    assert (tmp_path / "file").read_text() == "kept" and not list(tmp_path.rglob("*.npz"))


def test_a_damaged_set_is_not_taken_for_whole(tmp_path, capsys):
    (tmp_path / "drawn_chair.npz").write_bytes(b"half")
    assert prepare("draw", "chair", "--clips", 1, "--out", tmp_path) == 2
    assert "--force" in one_line(capsys)
    assert prepare("draw", "chair", "--clips", 1, "--out", tmp_path, "--force") == 0
    assert data_prep.load(tmp_path / "drawn_chair.npz").videos.shape == (1, 16, 64, 64, 3)


# The paper's three sets, served over loopback


def test_chair(tmp_path, chair_tar, capsys):
    with Server({"/rendered_chairs.tar": chair_tar}) as server:
        command = ["chair", "--source", server.url + "/rendered_chairs.tar", "--out", tmp_path]
        assert prepare(*command) == 0
        said = capsys.readouterr().out
        assert "SHA-256 " + hashlib.sha256(chair_tar).hexdigest() in said
        clips, asked = data_prep.load(tmp_path / "chair.npz"), len(server.asked)
        assert prepare(*command) == 0 and "is there: 12 clips" in capsys.readouterr().out and len(server.asked) == asked
        assert prepare(*command, "--force", "--clips", 4, "--seed", 1, "--keep") == 0 and len(server.asked) == asked + 1
    assert sorted(path.name.split("-")[-1] for path in tmp_path.rglob("*") if path.is_file()) == \
        ["chair.npz", "chair.png", "rendered_chairs.tar"]
    assert clips.videos.shape == (12, 16, 64, 64, 3)
    assert sorted(clips.static_names) == [f"{model:032x}" for model in (1, 2, 3)]
    assert clips.static_id.tolist() == [0, 1, 2] * 4
    assert clips.transient_id.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    for name, row, kind, video in zip(clips.names, clips.static_id, clips.transient_id, clips.videos):
        model = int(clips.static_names[row], 16)
        side = 600 if model == 1 else 90
        for t in range(0, 16, 5):
            view = t + 16 * (kind % 2)
            expected = resized(render(model, (20, 30)[kind // 2], view % 31, side), 64, side * 2 // 3)
            assert close(video[t], expected), (name, t)
    small = data_prep.load(tmp_path / "chair.npz")
    assert len(small.videos) == 4 and small.transient_id.tolist() == [0, 0, 0, 1]
    assert small.static_names == [f"{m + 1:032x}" for m in np.random.default_rng(1).permutation(3)]


def test_chair_from_folder_archive_and_compressed_archive_are_the_same(tmp_path, capsys):
    entries = chair_entries([1, 2, 3], side=60)
    data = tar_of(entries)
    folder = tmp_path / "unpacked"
    for name, body in entries:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)
    sources = [folder, folder / "rendered_chairs"]
    for name, packed in (("a.tar", data), ("b.tar.gz", gzip.compress(data)), ("c.tar.bz2", bz2.compress(data)),
                         ("d.zip", zip_of(entries))):
        (tmp_path / name).write_bytes(packed)
        sources.append(tmp_path / name)
    sets = []
    for index, source in enumerate(sources):
        assert prepare("chair", "--source", source, "--out", tmp_path / f"out{index}", "--size", 16) == 0
        sets.append(data_prep.load(tmp_path / f"out{index}" / "chair.npz"))
    assert all(same_set(sets[0], other) for other in sets[1:]) and len(sets[0].videos) == 12


def test_weizmann(tmp_path, weizmann_zips, capsys):
    files = {f"/DB/{action}.zip": data for action, data in weizmann_zips.items()}
    with Server(files) as server:
        assert prepare("weizmann", "--source", server.url + "/DB/", "--out", tmp_path, "--size", 32) == 0
        assert "skipped 3: a person's second film of an action" in capsys.readouterr().out
        assert sorted(os.listdir(tmp_path / "downloads")) == []
        assert prepare("weizmann", "--source", server.url + "/DB", "--out", tmp_path / "wide", "--no-crop", "--keep",
                       "--clips", 12, "--size", 32) == 0
    assert len(os.listdir(tmp_path / "wide" / "downloads")) == 10
    clips, wide = data_prep.load(tmp_path / "weizmann.npz"), data_prep.load(tmp_path / "wide" / "weizmann.npz")
    assert clips.videos.shape == (90, 16, 32, 32, 3) and len(wide.videos) == 12
    assert clips.static_names == list(data_prep.PERSONS) and clips.transient_names == list(data_prep.ACTIONS)
    assert clips.length.tolist() == [16 + p % 3 for p in range(9) for _ in range(10)]
    begin = np.cumsum(clips.length) - clips.length
    for j in (0, 17, 54, 89):
        p, a = divmod(j, 10)
        double = data_prep.PERSONS[p] == "lena" and data_prep.ACTIONS[a] in ("run", "skip", "walk")
        source = film([p, a, int(double)], 16 + p % 3)
        for t in (0, 8, len(source) - 1):
            assert close(clips.full[begin[j] + t], resized(source[t], 32, 28))
    assert close(wide.videos[1, 3], resized(film([0, 1, 0], 16)[3], 32))


@pytest.fixture(scope="session")
def golf_files():
    """A tar.bz2 of 16 good strips in 8 folders and a few bad ones, and the list."""
    good = strips(16, 8)
    bad = [("frames-stable-many/0000/short.jpg", jpeg(film(1, 7, 128, 128).reshape(-1, 128, 3))),
           ("frames-stable-many/0001/odd.jpg", jpeg(film(1, 17, 128, 128).reshape(-1, 128, 3)[:-30])),
           ("frames-stable-many/0002/broken.jpg", good[3][1][:2000]),
           ("frames-stable-many/0003/wide.jpg", jpeg(np.zeros((128, 2304, 3), np.uint8)))]
    entries = sorted(good + bad)
    listed = "\n".join(name for name, _ in entries).encode()
    entries.append(("frames-stable-many/0004/unlisted.jpg", good[0][1]))
    return {"/videogan/golf.tar.bz2": bz2.compress(tar_of(entries)), "/videogan/golf.txt": listed}


def test_golf(tmp_path, golf_files, capsys):
    with Server(golf_files) as server:
        source = server.url + "/videogan/golf.tar.bz2"
        assert prepare("golf", "--source", source, "--out", tmp_path) == 0
        said = capsys.readouterr().out
        for text in ("fewer than 16 frames", "must be a multiple", "cannot be decoded", "not a vertical strip",
                     "not in the list"):
            assert sum(line.startswith("skipped 1: ") and text in line for line in said.splitlines()) == 1, (text, said)
        assert prepare("golf", "--source", source, "--out", tmp_path / "few", "--clips", 5) == 0
        assert prepare("golf", "--source", source, "--out", tmp_path / "again", "--clips", 5) == 0
        assert prepare("golf", "--source", source, "--out", tmp_path / "other", "--clips", 5, "--seed", 7) == 0
    clips = data_prep.load(tmp_path / "golf.npz")
    assert clips.videos.shape == (16, 16, 64, 64, 3) and len(clips.static_names) == len(clips.transient_names) == 16
    bodies = {name[19:-4]: body for name, body in strips(16, 8)}
    for name, video in zip(clips.names, clips.videos):
        strip = np.asarray(Image.open(io.BytesIO(bodies[name])))
        assert close(video[5], resized(strip[5 * 128 : 6 * 128], 64, 128)), name
    few, again, other = (data_prep.load(tmp_path / name / "golf.npz") for name in ("few", "again", "other"))
    assert len(few.videos) == 5 and same_set(few, again) and few.names != other.names
    assert len({name.split("/")[0] for name in few.names}) == 5  # a clip from each of five folders


def test_golf_stops_reading(tmp_path):
    noise = jpeg(np.random.default_rng(0).integers(0, 255, (64 * 16, 64, 3), dtype=np.uint8))  # 0.2 MB, do not shrink
    entries = [(f"frames-stable-many/{k:04d}.jpg", noise) for k in range(40)]
    data = bz2.compress(tar_of(entries), 1)
    with Server({"/golf.tar.bz2": data}, slow=0.003) as server:
        assert prepare("golf", "--source", server.url + "/golf.tar.bz2", "--out", tmp_path, "--clips", 2) == 0
        time.sleep(0.2)
        assert server.sent < 0.8 * len(data) and len(data_prep.load(tmp_path / "golf.npz").videos) == 2


@pytest.mark.parametrize("name", ["chair", "weizmann", "golf"])
def test_prepared_sets_train(tmp_path, name, weizmann_zips, golf_files):
    files = {"chair": {"a.tar": tar_of(chair_entries([1, 2], side=60))},
             "weizmann": {f"{action}.zip": data for action, data in weizmann_zips.items()},
             "golf": {path.rpartition("/")[2]: data for path, data in golf_files.items()}}[name]
    (tmp_path / "in").mkdir()
    for path, data in files.items():
        (tmp_path / "in" / path).write_bytes(data)
    source = {"chair": "in/a.tar", "weizmann": "in", "golf": "in/golf.tar.bz2"}[name]
    assert prepare(name, "--source", tmp_path / source, "--out", tmp_path / "data") == 0
    trains(tmp_path / "data" / f"{name}.npz", tmp_path)


# Connections that break


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("keep", [True, False])
def test_a_cut_connection_is_taken_up(tmp_path, ranges, keep, capsys):
    data = tar_of(chair_entries([1, 2], side=60))
    with Server({"/a.tar": data}) as server:
        assert prepare("chair", "--source", server.url + "/a.tar", "--out", tmp_path / "whole") == 0
    with Server({"/a.tar": data}, ranges=ranges, cuts=[("a.tar", 0.3), ("a.tar", 0.7)]) as server:
        command = ["chair", "--source", server.url + "/a.tar", "--out", tmp_path / "cut"] + ["--keep"] * keep
        assert prepare(*command, "--sha256", hashlib.sha256(data).hexdigest().upper()) == 0
        begins = [int(asked[1][6:-1]) if asked[1] else 0 for asked in server.asked]
        assert len(begins) == 3 and 0 == begins[0] < begins[1] <= 0.3 * len(data) < begins[2] <= 0.7 * len(data)
    assert same_set(data_prep.load(tmp_path / "whole" / "chair.npz"), data_prep.load(tmp_path / "cut" / "chair.npz"))
    if keep:
        assert [path.read_bytes() == data for path in (tmp_path / "cut" / "downloads").iterdir()] == [True]


def test_golf_and_weizmann_over_cut_connections(tmp_path, golf_files, weizmann_zips):
    files = {"/walk.zip": weizmann_zips["walk"], **golf_files}
    cuts = [("walk.zip", 0.3), ("walk.zip", 0.7), ("golf.txt", 0.5), ("bz2", 0.3), ("bz2", 0.7)]
    with Server(files, cuts=cuts) as server:
        assert prepare("weizmann", "--source", server.url + "/walk.zip", "--out", tmp_path) == 0
        assert prepare("golf", "--source", server.url + "/videogan/golf.tar.bz2", "--out", tmp_path) == 0
        assert len(server.asked) == 8
    with Server(files) as server:
        assert prepare("weizmann", "--source", server.url + "/walk.zip", "--out", tmp_path / "b") == 0
        assert prepare("golf", "--source", server.url + "/videogan/golf.tar.bz2", "--out", tmp_path / "b") == 0
    for name in ("weizmann", "golf"):
        assert same_set(data_prep.load(tmp_path / f"{name}.npz"), data_prep.load(tmp_path / "b" / f"{name}.npz"))


@pytest.mark.parametrize("name", ["chair", "weizmann", "golf"])
def test_a_hanging_server_and_the_next_call(tmp_path, capsys, name, golf_files, weizmann_zips):
    tar = tar_of(chair_entries([1, 2, 3], side=60))
    files = {"/a.tar": tar, "/walk.zip": weizmann_zips["walk"], **golf_files}
    path = {"chair": "/a.tar", "weizmann": "/walk.zip", "golf": "/videogan/golf.tar.bz2"}[name]
    with Server(files) as server:
        assert prepare(name, "--source", server.url + path, "--out", tmp_path / "whole", "--clips", 9) == 0
        command = [name, "--source", server.url + path, "--out", tmp_path / "data", "--clips", 9, "--timeout", 0.5,
                   "--retries", 0]
        server.hang = 0.6
        capsys.readouterr()
        begin = time.monotonic()
        assert prepare(*command) == 2 and time.monotonic() - begin < 5
        assert "no answer for 0.5 s" in one_line(capsys)
        assert not (tmp_path / "data" / f"{name}.npz").exists()
        server.hang = None
        server.asked.clear()
        assert prepare(*command) == 0
        if name != "golf":  # goes on in the middle; a bz2 stream cannot
            assert int(server.asked[0][1][6:-1]) > 0.3 * len(files[path])
    assert same_set(data_prep.load(tmp_path / "whole" / f"{name}.npz"), data_prep.load(tmp_path / "data" / f"{name}.npz"))


def test_servers_that_answer_otherwise(tmp_path, capsys):
    data = tar_of(chair_entries([1], side=60))
    moved = {"/there": "/a.tar", "/file": "file:///etc/passwd", "/ftp": "ftp://127.0.0.1/a.tar"}
    with Server({"/a.tar": data}, moved=moved) as server:
        assert prepare("chair", "--source", server.url + "/there", "--out", tmp_path / "moved") == 0
        capsys.readouterr()
        for path, text in (("/file", "not allowed"), ("/ftp", "is not followed"), ("/none.tar", "404")):
            assert prepare("chair", "--source", server.url + path, "--out", tmp_path / "no") == 2
            assert text in one_line(capsys)
        server.errors = 1  # a 503 is tried again
        assert prepare("chair", "--source", server.url + "/a.tar", "--out", tmp_path / "busy") == 0
        capsys.readouterr()
        assert prepare("chair", "--source", server.url + "/a.tar", "--out", tmp_path / "no", "--sha256", "0" * 64) == 2
        assert "SHA-256" in one_line(capsys) and not (tmp_path / "no" / "chair.npz").exists()
        # Another file under the same address: the half that is here is not glued to it.
        command = ["chair", "--source", server.url + "/a.tar", "--out", tmp_path / "new", "--keep", "--timeout", 0.5,
                   "--retries", 0]
        server.hang = 0.6
        assert prepare(*command) == 2
        server.hang, server.tag = None, '"two"'
        capsys.readouterr()
        assert prepare(*command) == 2 and "another file" in one_line(capsys)
        assert prepare(*command, "--force") == 0


@pytest.mark.parametrize("name", ["chair", "golf"])
def test_killed_in_the_middle(tmp_path, name, golf_files):
    files = {"/a.tar": tar_of(chair_entries(list(range(1, 9)), side=60)), **golf_files}
    path = {"chair": "/a.tar", "golf": "/videogan/golf.tar.bz2"}[name]
    with Server(files) as server:
        command = [sys.executable, "data_prep.py", name, "--source", server.url + path, "--clips", "20", "--size", "32",
                   "--out"]
        assert subprocess.run([*command, tmp_path / "whole"], cwd=ROOT, capture_output=True).returncode == 0
        for server.hang in (0.4, 0.8):
            asked = len(server.asked)
            quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            running = subprocess.Popen([*command, tmp_path / "data"], cwd=ROOT, **quiet)
            while len(server.asked) == asked or not server.asked[-1][0].endswith(path):
                time.sleep(0.02)
            time.sleep(0.5)
            running.send_signal(signal.SIGKILL)
            running.wait()
            assert not (tmp_path / "data" / f"{name}.npz").exists()
        (tmp_path / "data").mkdir(exist_ok=True)
        # What a kill leaves in the middle of the last write:
        (tmp_path / "data" / f".{name}.999999999.tmp.npz").write_bytes(b"half")
        server.hang = None
        assert subprocess.run([*command, tmp_path / "data"], cwd=ROOT, capture_output=True).returncode == 0
    assert same_set(data_prep.load(tmp_path / "whole" / f"{name}.npz"), data_prep.load(tmp_path / "data" / f"{name}.npz"))
    assert sorted(os.listdir(tmp_path / "data")) == [f"{name}.npz", f"{name}.png"]


def test_control_c_says_one_line(tmp_path):
    with Server({"/a.tar": tar_of(chair_entries([1, 2], side=60))}, hang=0.5) as server:
        command = [sys.executable, "data_prep.py", "chair", "--source", server.url + "/a.tar", "--out", tmp_path]
        running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True,
                                   preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        while not server.asked:
            time.sleep(0.05)
        time.sleep(0.3)
        running.send_signal(signal.SIGINT)
        error = running.communicate()[1].strip()
    assert running.returncode == 130 and "interrupted" in error and "\n" not in error


# Hostile archives: what each of them must not do is in test_hostile


def link(name, kind, target="/etc/passwd"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, None


def one_chair(name="rendered_chairs/good/renders"):
    return [(f"{name}/image_{k:03d}_p020_t{k:03d}_r096.png", png(render(1, 20, k, 30))) for k in range(16)]


def png_header(side):
    """A PNG that promises side x side pixels and has none."""
    def chunk(tag, body):
        return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)) + \
        chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def zip_lies(declared, body=bytes(1 << 20)):
    """A zip whose directory declares another size than its one member has."""
    data = bytearray(zip_of([("daria_walk.avi", body)]))
    for mark, at in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        at += data.index(mark)
        data[at : at + 4] = struct.pack("<I", declared)
    return bytes(data)


def zip_bomb(megabytes):
    """A zip whose one member says that it inflates to that much, and does."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    once = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    packed = once * megabytes + packer.flush()
    data = bytearray(zip_of([("daria_walk.avi", packed)], zipfile.ZIP_STORED))
    for mark, at in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        at += data.index(mark)
        data[at : at + 2] = struct.pack("<H", zipfile.ZIP_DEFLATED)
        data[at + 14 : at + 18] = struct.pack("<I", megabytes << 20)
    return bytes(data)


def tar_size(entries, size, text=None):
    """A tar whose first member declares `size` bytes (or that text)."""
    data = bytearray(tar_of(entries))
    data[124:136] = text or (b"\x80" + size.to_bytes(11, "big"))
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


def big_member(kind, size=1 << 33):
    """The header of a member of that kind and size, e.g. a name of 8 GB, and a little of it."""
    info = tarfile.TarInfo("long")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 16)


def bz2_bomb():
    """Endless zeros in a tar member: 300 MB in 15 kB."""
    info = tarfile.TarInfo("zeros.jpg")
    info.size = 300 << 20
    return bz2.compress(info.tobuf()) + 300 * bz2.compress(bytes(1 << 20))  # streams in a row are one


def gif_of_many(count):
    file = io.BytesIO()
    images = [Image.new("RGB", (8, 8), (255 * (k % 2),) * 3) for k in range(count)]
    images[0].save(file, "GIF", save_all=True, append_images=images[1:])
    return file.getvalue()


PLAIN = film(0, 16, 8, 8)
STRIP = jpeg(film(0, 16, 16, 16).reshape(-1, 16, 3))
SMALL_RENDER = png(render(1, 20, 1, 12))
CHAIR_TAR = tar_of(one_chair())
FILM_ZIP = zip_of([("daria_walk.avi", avi(film(1, 16, 30, 30)))])
STRIPS = [(f"frames-stable-many/{k}.jpg", STRIP) for k in range(3)]

LOOSE, SPECIAL = "x/renders/image_000_p020_t000_r096.png", "a link, a device or another special member"


def chairs(*entries):
    return "chair", "a.tar", tar_of([entry for part in entries for entry in part])


def renders_of(body):
    """One chair whose renders are all `body`, or what it makes of a render."""
    return chairs([(name, body(render) if callable(body) else body) for name, render in one_chair()])


def strips_of(entries):
    return "golf", "golf.tar", tar_of(entries)


def films_of(*entries):
    return "weizmann", "a.zip", zip_of(entries)


def one_film(body=PLAIN, **options):
    """The zip of one film, daria_walk.avi: bytes, or frames with options of `avi`."""
    return films_of(("daria_walk.avi", body if isinstance(body, bytes) else avi(body, **options)))


# name: (command, the file's name, its bytes, usable clips or 0, what the line says)
HOSTILE = {
    "tar-dotdot": (*chairs(one_chair("../../evil/renders"), one_chair()), 2, "unsafe name"),
    "tar-dotdot-only": (*chairs(one_chair("../../evil/renders")), 0, "unsafe name"),
    "tar-absolute": (*chairs(one_chair("/evil/renders")), 0, "unsafe name"),
    "tar-symlink": (*chairs([link(LOOSE, tarfile.SYMTYPE)], one_chair()), 2, SPECIAL),
    "tar-symlink-folder": (*chairs([link("rendered_chairs", tarfile.SYMTYPE, "/tmp")], one_chair()), 2, SPECIAL),
    "tar-hard-link": (*chairs([link(LOOSE, tarfile.LNKTYPE, "../../etc/passwd")]), 0, SPECIAL),
    "tar-device": (*chairs([link("a", tarfile.CHRTYPE), link("b", tarfile.BLKTYPE), link("c", tarfile.FIFOTYPE)]), 0,
                   "skipped 3: " + SPECIAL),
    "tar-newline": (*chairs(one_chair("a\nb/renders"), one_chair("a\x1b[31m/renders")), 0, "unsafe name"),
    "tar-twice": (*chairs(one_chair(), one_chair("x/renders"), one_chair()), 4, "a model that comes twice"),
    "tar-render-twice": (*chairs(one_chair(), one_chair()), 2, "one render too many"),
    "tar-many-renders": (*chairs([(LOOSE.replace("000_p", f"{k}_p"), SMALL_RENDER) for k in range(300)]), 2,
                         "skipped 100: one render too many"),
    "tar-huge-size": ("chair", "a.tar", tar_size(one_chair(), 1 << 60), 0, "declares"),
    "tar-negative-size": ("chair", "a.tar", tar_size(one_chair(), 0, b"-0000000001\0"), 0, "declares"),
    "tar-no-size": ("chair", "a.tar", tar_size(one_chair(), 0, b"what is it?\0"), 0, "no tar header"),
    "tar-truncated": ("chair", "a.tar", CHAIR_TAR[: len(CHAIR_TAR) // 3], 0, "truncated"),
    "tar-truncated-late": ("chair", "a.tar", tar_of(one_chair() + one_chair("x/renders"))[:-12000], 2, "truncated"),
    "tar-truncated-header": ("chair", "a.tar", CHAIR_TAR[:300], 0, "truncated"),
    "tar-empty": ("chair", "a.tar", b"", 0, "truncated"),
    "tar-garbage": ("chair", "a.tar", random.Random(0).randbytes(5000), 0, "no tar header"),
    "tar-long-name-8GB": ("chair", "a.tar", big_member(tarfile.GNUTYPE_LONGNAME), 0, "declares"),
    "tar-long-name-900MB": ("chair", "a.tar", big_member(tarfile.GNUTYPE_LONGNAME, 900 << 20), 0, "a member's name of"),
    "tar-pax-900MB": ("chair", "a.tar", big_member(tarfile.XHDTYPE, 900 << 20), 0, "a member's name of"),
    "tar-pax-path": (*chairs([("x" * 150 + "/../../" + LOOSE, b"")]), 0, "unsafe name"),
    "png-40000": (*renders_of(png_header(40000)), 0, "cannot be decoded"),
    "png-12000": (*renders_of(png_header(12000)), 0, "12000 x 12000 pixels"),
    "png-truncated": (*renders_of(lambda body: body[:-40]), 0, "cannot be decoded"),
    "png-is-text": (*renders_of(b"what"), 0, "cannot be decoded"),
    "png-is-eps": (*renders_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), 0, "cannot be decoded"),
    "bz2-bomb": ("golf", "golf.tar.bz2", bz2_bomb(), 0, "zip bomb"),
    "bz2-truncated": ("golf", "golf.tar.bz2", bz2.compress(tar_of(STRIPS))[:-300], 0, "the rest of the archive"),
    "bz2-damaged": ("golf", "golf.tar.bz2", b"BZh9" + bytes(500), 0, "damaged"),
    "gz-truncated": ("golf", "golf.tar.gz", gzip.compress(tar_of(STRIPS), 0)[:-9000], 2, "the rest of the archive"),
    "strip-endless": (*strips_of([("a.png", png(np.zeros((30000, 1, 3), np.uint8)))]), 0, "a strip of 30000 frames"),
    "strip-square": (*strips_of([("a.png", png(np.zeros((64, 64, 3), np.uint8)))]), 0, "not a vertical strip"),
    "strip-twice": (*strips_of(STRIPS + STRIPS[:1]), 3, "two clips of one name"),
    "strip-dotdot": (*strips_of([("../frames-stable-many/../x.jpg", STRIP)] + STRIPS), 3, "unsafe name"),
    "zip-dotdot": (*films_of(("../daria_walk.avi", avi(PLAIN))), 0, "unsafe name"),
    "zip-absolute": (*films_of(("/daria_walk.avi", avi(PLAIN)), ("daria_run.avi", avi(PLAIN))), 1, "unsafe name"),
    "zip-twice": (*films_of(("daria_walk.avi", avi(PLAIN)), ("x/daria_walk.avi", avi(PLAIN))), 1, "two clips of one"),
    "zip-nameless": (*films_of((zipfile.ZipInfo(""), avi(PLAIN)), ("daria_run.avi", avi(PLAIN))), 1, "unsafe name"),
    "zip-bomb-declared": ("weizmann", "a.zip", zip_bomb(300), 0, "zip bomb"),
    "zip-bomb-undeclared": ("weizmann", "a.zip", zip_lies(1000, bytes(8 << 20)), 0, "cannot be unpacked"),
    "zip-bomb-inflated": ("weizmann", "a.zip", zip_lies(4_000_000_000), 0, "zip bomb"),
    "zip-lzma": ("weizmann", "a.zip", zip_of([("daria_walk.avi", bytes(1 << 20))], zipfile.ZIP_LZMA), 0, "another way"),
    "zip-truncated": ("weizmann", "a.zip", FILM_ZIP[:-30], 0, "not a whole zip"),
    "zip-half": ("weizmann", "a.zip", FILM_ZIP[: len(FILM_ZIP) // 2], 0, "not a whole zip"),
    "zip-directory-lies": ("weizmann", "a.zip", FILM_ZIP[:-10] + struct.pack("<I", 1 << 31) + FILM_ZIP[-6:], 0,
                           "a zip directory of"),
    "avi-promises-2^31": (*one_film(promised=2**31), 0, "promises 2147483648 frames"),
    "avi-0-byte-frame": (*one_film(sizes={3: 0}), 0, "frame 3 holds 0 bytes"),
    "avi-short-frame": (*one_film(sizes={3: 50}), 0, "frame 3 holds 50 bytes"),
    "avi-no-frame": (*one_film(PLAIN[:0], size=(8, 8)), 0, "holds no frame"),
    "avi-too-wide": (*one_film(size=(2**31 - 1, 2**31 - 1)), 0, "pixels, at most"),
    "avi-no-width": (*one_film(size=(8, 0)), 0, "0 x 8 pixels"),
    "avi-codec": (*one_film(codec=b"DIVX"), 0, "codec DIVX"),
    "avi-8-bit": (*one_film(bits=8), 0, "uncompressed, 8 bits"),
    "avi-truncated": (*one_film(avi(PLAIN)[:-600]), 0, "truncated"),
    "avi-header-only": (*one_film(avi(PLAIN)[:130]), 0, "daria_walk.avi"),
    "avi-is-text": (*one_film(b"what"), 0, "not an avi"),
    "avi-too-short": (*one_film(PLAIN[:5]), 0, "fewer than 16 frames"),
    "npz-object": ("folder", "a.npz", None, 0, "Python objects"),
    "npz-huge": ("folder", "a.npz", None, 0, "at most"),
    "gif-endless": ("folder", "clips/a.gif", gif_of_many(1500), 1, ""),
    "gif-truncated": ("folder", "clips/a.gif", gif_of_many(20)[:100], 0, "no usable clip"),
    "webp-truncated": ("folder", "clips/a.webp", b"RIFF\x10\0\0\0WEBPVP8X", 0, "cannot be decoded"),
    "png-16-bit": ("folder", "clips/a.png", None, 0, "more than 8 bits"),
}


def hostile_source(name, folder):
    """Write the case's file -> the path that the command gets."""
    command, file, body, *_ = HOSTILE[name]
    path = folder / "in" / file
    path.parent.mkdir(parents=True)
    if name == "npz-object":
        np.savez(path, a_b=np.array([{}], object))
    elif name == "npz-huge":
        huge((2**34,))(path)
        with zipfile.ZipFile(path) as archive:
            path.write_bytes(zip_of([("a_b.npy", archive.read("videos.npy"))]))
    elif name == "png-16-bit":
        Image.fromarray(np.zeros((256, 16), np.uint16)).save(path)
    else:
        path.write_bytes(body)
    return path if file.startswith(("a.", "golf")) else path.parent


def hostile_command(name, folder):
    source = hostile_source(name, folder)
    command = HOSTILE[name][0]
    how = ["folder", source, "--name", "mine"] if command == "folder" else [command, "--source", source]
    return [*how, "--out", folder / "out", "--size", 16]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(tmp_path, capsys, name):
    """Nothing but the set and its sheet is written; what was wrong is said; without a usable clip it exits 2."""
    command, before = hostile_command(name, tmp_path), {path for path in Path("/tmp").iterdir()}
    status, clips, text = prepare(*command), HOSTILE[name][3], HOSTILE[name][4]
    said = capsys.readouterr()
    assert status == (0 if clips else 2), said
    assert text in said.out + said.err and "Traceback" not in said.err, said
    assert all(line.isprintable() for line in said.out.splitlines() + said.err.splitlines())
    if not clips:
        assert said.err.count("\n") == 1
    npz = list((tmp_path / "out").glob("*.npz"))
    assert len(npz) == bool(clips) and all(len(data_prep.load(path).videos) == clips for path in npz)
    written = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parts[0] for path in written} <= {"in", "out"}, written
    assert not {path.name for path in set(Path("/tmp").iterdir()) - before} & {"evil", "daria_walk.avi"}


def test_hostile_folder(tmp_path, capsys):
    """An unpacked folder: links out of it are not followed, pipes do not block."""
    good = tmp_path / "in" / "good" / "renders"
    good.mkdir(parents=True)
    for name, body in one_chair():
        (good / name.rpartition("/")[2]).write_bytes(body)
    (tmp_path / "in" / "loop").symlink_to(tmp_path)
    (tmp_path / "in" / "linked").symlink_to(good.parent)
    (good / "image_099_p020_t099_r096.png").symlink_to("/etc/passwd")
    os.mkfifo(good / "image_098_p020_t098_r096.png")
    assert prepare("chair", "--source", tmp_path / "in", "--out", tmp_path / "out") == 0
    assert "skipped 4: a link" in capsys.readouterr().out
    assert data_prep.load(tmp_path / "out" / "chair.npz").static_names == ["good"]


def test_hostile_archives_stay_under_a_gigabyte(tmp_path):
    """All of them in one process, whose largest memory is asked at the end."""
    for name in HOSTILE:
        (tmp_path / name).mkdir()
    commands = [[str(argument) for argument in hostile_command(name, tmp_path / name)] for name in HOSTILE]
    code = "import sys, json, resource, data_prep\nfor c in json.load(sys.stdin): data_prep.main(c)\n" \
           "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    run = subprocess.run([sys.executable, "-c", code], input=json.dumps(commands), cwd=ROOT, capture_output=True,
                         text=True)
    peak = int(run.stdout.rpartition("peak ")[2]) * (1 if sys.platform == "darwin" else 1024)
    assert run.returncode == 0 and peak < 1 << 30, peak
