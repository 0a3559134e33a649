"""Tests of nav, in the order of nav.py, then kernels/ and data_prep.py. They need no GPU and no network; `pytest` runs them all.

Where a number is compared, the other side is an independent formula: float64, loops, PyTorch's own optimiser, or
scikit-image's values. The commands are run as a user runs them, on small clips.
"""
import csv
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():  # before kernels are imported: Triton's interpreter runs them on the CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")

import data_prep
import kernels
import nav
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


def run(*options, **more):
    """nav.py as a user runs it; one thread, so that a toy run does not wait for its own threads."""
    return subprocess.run([sys.executable, str(ROOT / "nav.py"), *map(str, options)], capture_output=True, text=True, timeout=240,
                          env=dict(os.environ, OMP_NUM_THREADS="1", TORCH_HOME=os.devnull), **more)


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
    m, batch, weight = trainer.model, trainer.batches.next(), trainer.batches.weight
    static_ids, transient_ids, times, v = batch
    z_s, z_t = m.z_s.rows(static_ids), m.z_t.rows(transient_ids)
    _, losses = nav.forward_and_back(m, s, weight, batch, z_s, z_t, torch.arange(2))
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
    m, batch, weight = trainer.model.eval(), trainer.batches.next(), trainer.batches.weight  # eval: batch norm mixes clips
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
        static_id, transient_id, times, v = twin.batches.next()
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
            assert torch.allclose(p, q, atol=1e-6)


def test_paper_recipe_runs_with_table_6s_rates(toy, tmp_path):
    done = run(*toy[:2], "--recipe", "paper", "--steps", 5, "--width", 4, "--levels", 3, "--device", "cpu", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert [config[k] for k in ("batch", "lr_G", "lr_R", "lr_Z", "steps")] == [1, 6.25e-5, 6.25e-5, 12.5, 5]


# ---- nav: batches ----------------------------------------------------------------------------------------------------


def test_every_epoch_meets_every_clip_once():
    clips = toy_clips(5)
    batches = nav.Batches(clips, settings(batch=2, per_clip=4, lambda_s=0.5), torch.device("cpu"))
    seen, static_frames = [], set()
    for _ in range(60):
        static_ids, transient_ids, times, v = batches.next()
        seen += static_ids.tolist()
        static_frames |= set(times[:, 0].tolist())
        for j, drawn, frames in zip(static_ids, times, v.unflatten(0, (2, 4))):
            assert len(set(drawn.tolist())) == 4
            assert np.array_equal(frames.permute(0, 2, 3, 1).numpy(), clips.videos[j][drawn])
    assert all(sorted(seen[i:i + 5]) == list(range(5)) for i in range(0, 120, 5)) and seen[:5] != seen[5:10]
    assert static_frames == set(range(6)) and batches.weight.tolist() == [0.75, 0.25, 0.25, 0.25] * 2


def test_random_windows_are_consecutive_and_reach_both_ends():
    clips = toy_clips(2, L=6)
    clips.length = np.array([6, 9])
    clips.full = np.arange(15, dtype=np.uint8)[:, None, None, None] * np.ones((1, 16, 16, 3), np.uint8)
    batches = nav.Batches(clips, settings(window="random"), torch.device("cpu"))
    begins = {0: set(), 1: set()}
    for _ in range(60):
        static_ids, _, times, v = batches.next()
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
    best = torch.stack([nav.psnr(known, v.expand_as(known)).max() for v in real])
    assert (nav.psnr(made, real) > best).all()
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
    done = run(*toy, "--steps", 120, "--out", out)
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
def test_killed_three_times_and_resumed_bit_for_bit(toy, tmp_path, recipe):
    options = [*toy, "--recipe", recipe, "--lr-Z", "0.01", "--window", "random", "--steps", "80"]
    assert run(*options, "--out", tmp_path / "whole").returncode == 0
    command = [sys.executable, str(ROOT / "nav.py"), *options, "--out", str(tmp_path / "killed")]
    dice, kills = random.Random(recipe), 0
    while kills < 3:
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
    done = run(*toy, "--steps", 40, "--out", tmp_path / "wild", "--lr-G", "1e38")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "not finite at step" in done.stderr


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
        (["--unknown"], "--unknown"), (["fly"], "fly"), ([*toy, "--steps", "0"], "steps"), ([*toy, "--per-clip", "7"], "--per-clip"), ([*toy, "--steps", "many"], "steps"),
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
