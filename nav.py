"""Non-Adversarial Video Synthesis with Learned Priors (Aich et al., CVPR 2020), the whole paper in one script.

    python nav.py --dataset chair                          train, measure, show: runs/chair (chairs are drawn if there are none)
    python nav.py --dataset data/mine.npz --out runs/mine  the same on your own clips (prepare them with data_prep.py)
    python nav.py --dataset chair --resume                 go on where a stopped run was
    python nav.py evaluate --run runs/chair                measure a run again
    python nav.py sample --run runs/chair --count 16       videos from random pairs of learned codes
    python nav.py bench --dataset chair                    where the time of a training step goes
    torchrun --nproc_per_node=2 nav.py --dataset chair     several GPUs, machines or processors

A video has no encoder and no discriminator here: its codes are parameters. One static code z_s says what a clip shows,
L transient codes z_t say how it moves; a GRU R correlates the transient ones, a DCGAN generator G draws each frame from
[z_s ; r_i], and Eq. 6 fits codes, R and G together. Letters and section numbers are the paper's:
N clips, B of them in a step, L frames of H x W, F of each clip's in a step, D_s and D_t the sizes of the codes.
"""
import argparse
import ctypes
import hashlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F

import data_prep
from data_prep import DataError, one_line
from kernels import backend, laplacian_l1_with_grad, triplet_margin
from kernels.gru import gru

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # same seed, same GPU, same result
torch.backends.cudnn.deterministic = True
torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32: SSIM subtracts means that are nearly equal

# ---- settings (Table 6) ----------------------------------------------------------------------------------------------


@dataclass
class Settings:
    """Everything that decides what is learned. The first block is Table 6's columns; TABLE_6 has its rows."""
    D_s: int = 206              # numbers in a static code
    D_t: int = 50               # numbers in each transient code
    lambda_s: float = 0.01      # weight of l_static
    lambda_t: float = 0.01      # weight of l_triplet
    alpha: int = 2              # the triplet's margin, and its radius in frames
    levels: int = 4             # of the Laplacian pyramid
    lr_G: float = 2e-3          # Adam and Muon, the generator
    lr_R: float = 2e-3          # Adam, the GRU
    lr_Z: float = 5e-3          # Adam, the codes (paper: SGD with momentum 0.9)
    recipe: str = "fast"        # fast: several clips a step, one backward. paper: Sec. 3.1's two stages
    layout: str = "file"        # which clips share codes: file, static, grid, both, transient
    steps: int = 2650           # updates
    batch: int = 32             # clips a step
    per_clip: int = 1           # frames of each of them that G draws in a step, at random; 0 is all L
    width: int = 32             # channels of G before its last layer
    conditional: bool = False   # G also takes the transient row as a label (Weizmann)
    recurrent: bool = True      # False: no R, each frame has a free code of its own (GLO on frames), for the ablation
    hold_out: int = 0           # cells of a grid kept from training
    hold_out_clips: int = 0     # clips kept from training
    every: int = 1              # 2: train on every other frame
    window: str = "first"       # first: frames 1..L of a clip; random: L consecutive frames, fresh in every step
    rank: int = 0               # Eq. 7's rho; 0 leaves the transient codes their full rank
    precision: str = "fp32"
    seed: int = 0


TABLE_6 = {  # data set: the codes and losses, then the paper's own rates and its outer x inner updates per clip
    "chair": (dict(D_s=206, D_t=50, lambda_s=0.01, lambda_t=0.01, alpha=2, levels=4),
              dict(lr_G=6.25e-5, lr_R=6.25e-5, lr_Z=12.5), 5 * 300),
    "weizmann": (dict(D_s=56, D_t=200, lambda_s=0.01, lambda_t=0.1, alpha=2, levels=3),
                 dict(lr_G=6.25e-5, lr_R=6.25e-3, lr_Z=12.5), 5 * 700),
    "golf": (dict(D_s=56, D_t=200, lambda_s=0.01, lambda_t=0.01, alpha=2, levels=4),
             dict(lr_G=0.1, lr_R=0.1, lr_Z=12.5), 10 * 1000),
}
FAST_STEPS = {"chair": 2650, "weizmann": 2250, "golf": 2650}  # two to five minutes on two cores
HIDDEN = 500  # units of the GRU (Sec. 4.2)
BATCH_STATISTICS = 0.1  # fast recipe: G's norms see their batch in this share of the steps, at least 100, then keep what they know
FOCUS = 3.0  # fast recipe: a clip of twice the mean loss comes 2^FOCUS times as often (Batches)
LOG = "step,seconds,loss,l_rec,l_triplet,psnr,frames_per_second"  # psnr: of the last step's frames, among which hard clips are frequent


# ---- codes (Sec. 3, Eq. 1 and 2) -------------------------------------------------------------------------------------


def unit_ball(z):
    """z / max(1, |z|) over the last dimension (Sec. 3.3): codes stay in the unit l2 ball. Any shape, same shape back."""
    return z / z.norm(dim=-1, keepdim=True).clamp(min=1)


def low_rank(z, rho):
    """Eq. 7: the best rank-rho approximation of each [L, D_t] matrix in z [B, L, D_t], by its top rho singular vectors.

    They are the eigenvectors of z z^T, an L x L matrix; a GPU finds those of all clips at once, but its SVDs one by one."""
    u = torch.linalg.eigh(z @ z.mT)[1][..., -rho:]                                 # (B, L, rho)
    return u @ (u.mT @ z)


class Dictionary(nn.Module):
    """A dictionary of codes, [rows, D_s] or [rows, L, D_t], each row with its own optimiser state.

    Rows are read and written one by one, so a step costs the same with 64 clips and with 20,000. `momentum` keeps the
    paper's optimiser (SGD, momentum 0.9); without it a row has Adam's two moments and its own step count.
    """

    def __init__(self, rows, *shape, momentum=False, rank=0):
        super().__init__()
        self.momentum, self.rank, self.own = momentum, rank, False
        self.register_buffer("z", torch.zeros(rows, *shape))
        self.z.copy_(self.project(torch.randn(rows, *shape) / shape[-1] ** 0.5))  # Gaussians that differ by their variance
        self.register_buffer("m", torch.zeros_like(self.z))
        if not momentum:
            self.register_buffer("v", torch.zeros_like(self.z))
            self.register_buffer("count", torch.zeros(rows, *(1 for _ in shape)))

    def keep(self, rows):
        """Only rows [K] live in this process."""
        self.own = True
        for name, values in list(self.named_buffers()):
            setattr(self, name, values[rows].clone())

    def project(self, z):
        return unit_ball(low_rank(z, self.rank) if self.rank else z)

    def start_from(self, z):
        """Begin at z, of the dictionary's shape, and a little noise."""
        self.z.copy_(self.project(z + 0.02 * torch.randn_like(z)))

    def rows(self, ids):
        """The codes of rows ids [B], as a leaf that collects its gradient."""
        return self.z[ids].requires_grad_()

    @torch.no_grad()
    def update(self, ids, grad, lr):
        """One update of rows ids [B] by grad [B, ...]; clips of one step that share a row add up. lr: number or tensor."""
        same = ids[:, None] == ids                                                 # (B, B)
        g = (same.to(grad.dtype) @ grad.flatten(1)).view_as(grad)
        g = g[same.byte().argmax(1)]                                               # equal rows, equal bits
        if self.momentum:
            self.m[ids] = step = 0.9 * self.m[ids] + g
        else:
            self.count[ids] = count = self.count[ids] + 1
            self.m[ids] = m = torch.lerp(self.m[ids], g, 0.1)
            self.v[ids] = v = torch.lerp(self.v[ids], g * g, 0.001)
            step = m / (1 - 0.9 ** count) / ((v / (1 - 0.999 ** count)).sqrt() + 1e-8)
        self.z[ids] = self.project(self.z[ids] - lr * step)


# ---- the networks R and G (Sec. 3, 4.2) ------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """R(z_t): a one-layer GRU with 500 hidden units and a linear map back, [B, L, D_t] -> r [B, L, D_t], zero start state."""

    def __init__(self, D_t):
        super().__init__()
        self.gru = nn.GRU(D_t, HIDDEN, batch_first=True)
        self.out = nn.Linear(HIDDEN, D_t)

    def forward(self, z_t):
        return self.out(gru(self.gru, z_t))


class Generator(nn.Module):
    """G, a DCGAN: codes [M, D_s + D_t] -> frames [M, 3, size, size] in [-1, 1]; size is 4 * 2^k.

    labels > 0 makes it conditional (Mirza & Osindero): the one-hot label enters through a projection of its own and
    takes a quarter of the first layer's channels.
    """

    def __init__(self, D, size, width, labels=0):
        super().__init__()
        channels = [width * size // 8 >> i for i in range(int(math.log2(size // 4)))]   # 64 x 64: 8w, 4w, 2w, w
        self.labels, label_channels = labels, channels[0] // 4 if labels else 0
        self.code = nn.Linear(D, 16 * (channels[0] - label_channels), bias=False)      # a transposed convolution of 1 x 1
        if labels:
            self.label = nn.Linear(labels, 16 * label_channels, bias=False)
        layers = [Norm(channels[0]), nn.ReLU(inplace=True)]                             # Norm: batch norm, over all processes
        for c_in, c_out in zip(channels, channels[1:]):                                 # each doubles the side
            layers += [nn.ConvTranspose2d(c_in, c_out, 4, 2, 1, bias=False), Norm(c_out), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(channels[-1], 3, 4, 2, 1), nn.Tanh())
        for module in self.modules():                                                   # DCGAN's initialisation
            if isinstance(module, (nn.Linear, nn.ConvTranspose2d)):
                nn.init.normal_(module.weight, 0, 0.02)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1, 0.02)

    def forward(self, codes, label=None):
        x = self.code(codes).view(len(codes), 4, 4, -1)                                 # (M, 4, 4, 8w), as it lies in memory
        if self.labels:
            one_hot = F.one_hot(label, self.labels).to(codes.dtype)
            x = torch.cat([x, self.label(one_hot).view(len(codes), 4, 4, -1)], 3)
        return self.layers(x.permute(0, 3, 1, 2))                                       # (M, 3, size, size)


class Model(nn.Module):
    """Z_V, R and G of one data set: what Eq. 6 is minimised over."""

    def __init__(self, s, size, L, static_rows, transient_rows):
        super().__init__()
        momentum = s.recipe == "paper"
        self.z_s = Dictionary(static_rows, s.D_s, momentum=momentum)
        self.z_t = Dictionary(transient_rows, L, s.D_t, momentum=momentum, rank=s.rank)
        self.R = Recurrent(s.D_t) if s.recurrent else nn.Identity()
        self.G = Generator(s.D_s + s.D_t, size, s.width, transient_rows if s.conditional else 0)
        self.bf16 = s.precision == "bf16"

    def draw(self, z_s, r, label):
        """G([z_s ; r_i]) for every frame i (Eq. 2). z_s [B, D_s], r [B, T, D_t], label [B] -> [B * T, 3, H, W] in [-1, 1]."""
        B, T, _ = r.shape
        codes = torch.cat([z_s[:, None].expand(B, T, -1), r], 2).flatten(0, 1)          # (B*T, D_s + D_t)
        with torch.autocast(r.device.type, torch.bfloat16, enabled=self.bf16):
            return self.G(codes, label.repeat_interleave(T))

    @torch.no_grad()
    def videos(self, static_rows, transient_rows, clips_at_once=16):
        """Clips for pairs of dictionary rows, ids [K] and [K] on the model's device -> uint8 [K, L, H, W, 3] there."""
        out = []
        with self.at_rest():
            for s, t in zip(static_rows.split(clips_at_once), transient_rows.split(clips_at_once)):
                r = self.R(self.z_t.z[t])
                frames = self.draw(self.z_s.z[s], r, t)
                out.append(to_bytes(frames).unflatten(0, r.shape[:2]))
        return torch.cat(out)

    @contextmanager
    def at_rest(self):
        """G's norms keep what they know, as after training; then they do again what they did before."""
        before = self.G.training
        self.G.eval()
        try:
            yield
        finally:
            self.G.train(before)


def to_bytes(frames):
    """Frames [M, 3, H, W] in [-1, 1] -> uint8 [M, H, W, 3]."""
    return frames.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


# ---- the data on the device ------------------------------------------------------------------------------------------


class Batches:
    """The clips as bytes on the device, and the order in which training meets them.

    The clips that had the fewest turns come next, at random among equals: every epoch is a fresh permutation, drawn on
    the device, so nothing crosses the bus in a step. In the fast recipe a turn counts the less the higher a clip's loss is
    against the mean: hard clips come more often. A resumed run draws what the stopped one would have drawn.
    """

    def __init__(self, clips, s, device):
        self.frames = torch.from_numpy(clips.full).to(device)                           # (sum of lengths, H, W, 3) uint8
        self.length = torch.from_numpy(clips.length).to(device)                         # (N,)
        self.first = self.length.cumsum(0) - self.length                                # (N,) where each clip begins
        self.static_id = torch.from_numpy(clips.static_id).to(device)
        self.transient_id = torch.from_numpy(clips.transient_id).to(device)
        self.N, self.L = clips.videos.shape[:2]
        self.B, self.F, self.random_window = s.batch // ranks()[1], s.per_clip or self.L, s.window == "random"
        self.weight = torch.full((self.B, self.F), 1 / self.F, device=device)           # l_rec: the mean over frames
        self.weight[:, 0] += s.lambda_s                                                 # l_static: one of them, k
        self.weight = self.weight.flatten()
        self.turns, self.l = torch.zeros(self.N, device=device), torch.ones(self.N, device=device)
        self.focus = FOCUS if s.recipe == "fast" else 0.0
        self.rng = torch.Generator(device)
        self.start(s.seed)

    def start(self, seed):
        """Random numbers from the beginning, others in each process (a CPU's generator sees 32 bits of a seed)."""
        self.rng.manual_seed(seed + 1_000_003 * ranks()[0])

    def deal(self):
        """One step's draw: clips [B], no two the same, and random numbers [B, L + 1] in [0, 1) for their windows and frames."""
        rand = partial(torch.rand, generator=self.rng, device=self.turns.device)
        clips = (self.turns + rand(self.N)).topk(self.B, largest=False).indices
        self.turns[clips] += ((self.l.mean() / self.l[clips].clamp(min=1e-9)) ** self.focus).clamp(1 / 8, 8)
        return clips, rand(self.B, self.L + 1)

    def learn(self, clips, l):
        """Keep a running mean of each clip's loss: clips [B], l [B * F]."""
        self.l[clips] = self.l[clips].lerp(l.view(self.B, self.F).mean(1), 0.1)

    def gather(self, clips, draws):
        """What was dealt: static ids [B], transient ids [B], frame numbers [B, F], frames v uint8 [B * F, 3, H, W].

        F different frames of each clip, in random order: their mean stands for l_rec, and the first of them is the k of
        l_static. `weight` [B * F] holds the weights of both."""
        times = draws[:, 1:].argsort(1)[:, :self.F]
        first = self.first[clips]
        if self.random_window:
            first = first + (draws[:, 0] * (self.length[clips] - self.L + 1)).long()
        v = self.frames[first[:, None] + times]                                         # (B, F, H, W, 3)
        return self.static_id[clips], self.transient_id[clips], times, v.flatten(0, 1).permute(0, 3, 1, 2)

    def state(self):
        return {"turns": self.turns.cpu(), "l": self.l.cpu(), "rng": self.rng.get_state()}

    def restore(self, states, seed):
        """Go on from the states of all processes. Returns whether the order does: where other processes or another kind of
        device left them, the clips are dealt afresh by `seed`. Raises KeyError or RuntimeError for other states."""
        rank, count = ranks()
        if len(states) != count or len(states[rank]["rng"]) != len(self.rng.get_state()):
            self.start(seed)
            return False
        self.turns.copy_(states[rank]["turns"])
        self.l.copy_(states[rank]["l"])
        self.rng.set_state(states[rank]["rng"].cpu())
        return True


# ---- training (Eq. 3, 4 and 6) ---------------------------------------------------------------------------------------


def forward_and_back(model, s, weight, batch, z_s, z_t, which, triplet=True):
    """Eq. 6 for one batch, and its gradient left in every leaf that asks for one. Returns (v_hat, l [B * F] the loss of each
    frame, [loss, l_rec, l_triplet]).

    z_t [rows, L, D_t] holds each transient row of the batch once, which [B] says whose it is."""
    static_ids, transient_ids, times, v = batch
    r = model.R(z_t)                                                                    # (rows, L, D_t)
    r_of_clip = r.index_select(0, which)  # not r[which]: threads would add up its gradient in any order
    drawn = r_of_clip.gather(1, times[:, :, None].expand(-1, -1, r.shape[2]))           # (B, F, D_t)
    v_hat = model.draw(z_s, drawn, transient_ids)                                       # (B*F, 3, H, W)
    l, dl_dv = laplacian_l1_with_grad(v_hat, v, weight, s.levels)                       # (B*F,), like v_hat
    l_triplet = triplet_margin(r, float(s.alpha), s.alpha)[which]                       # (B,)
    if triplet:  # sums over clips: a clip's gradient does not depend on how many share the step
        torch.autograd.backward([v_hat, s.lambda_t * l_triplet.sum()], [dl_dv, None])
    else:
        v_hat.backward(dl_dv)
    B, l_triplet = len(z_s), l_triplet.detach().mean()
    return v_hat.detach(), l, torch.stack([(l * weight).sum() / B + s.lambda_t * l_triplet, l.mean(), l_triplet])


class Trainer:
    """Eq. 6 on its way down: the model, its optimisers, the order of the clips, and how far it is.

    Muon, the schedule and the first codes of the fast recipe stand below it, and so does what several processes share.
    `state` is all of it; a trainer that takes it up with `restore` goes on bit for bit (on CPU). Among several processes
    each has its share of the clips and of every step, and the rows of codes that no clip of another one uses."""

    def __init__(self, s, clips, device, graph=True):
        torch.manual_seed(s.seed)
        N, L, size = clips.videos.shape[:3]
        model = Model(s, size, L, len(clips.static_names), len(clips.transient_names))
        matrices = []  # of G, behind the first layer's
        if s.recipe == "fast":
            for dictionary, z in zip((model.z_s, model.z_t), codes_from_clips(clips, s.D_s, s.D_t)):
                dictionary.start_from(z)
            matrices = [m.weight for m in model.G.layers if isinstance(m, nn.ConvTranspose2d)]
        clips, self.rows = deal_out(model, clips)
        self.s, self.model = s, model.to(device, memory_format=torch.channels_last)
        on_cuda = device.type == "cuda"
        rate = partial(torch.tensor, device=device)  # rates are tensors: a CUDA graph reads them afresh
        of_adam = partial(torch.tensor, device=device if on_cuda else "cpu")
        adam = partial(torch.optim.Adam, fused=device.type != "mps", foreach=False, capturable=on_cuda)
        self.optimisers_G = [adam([p for p in model.G.parameters() if all(p is not w for w in matrices)], lr=of_adam(s.lr_G))]
        self.optimisers_G += [Muon(matrices, lr=rate(s.lr_G))] if matrices else []
        self.optimiser_R = adam(list(model.R.parameters()) or [torch.zeros(1)], lr=of_adam(s.lr_R))  # -R has nothing to train
        self.lr_Z = rate(s.lr_Z)
        self.batches = Batches(clips, s, device)
        self.each = torch.arange(self.batches.B, device=device)
        self.steps_done = 0
        self.use_graph = graph and on_cuda and ranks() == (0, 1) and not s.rank  # eigh asks the host
        self.graph = None

    def step(self):
        """One update. Returns (v, v_hat, losses [3]) of its batch, on the device; nothing waits for the host."""
        s, first = self.s, self.steps_done < max(100, BATCH_STATISTICS * self.s.steps)
        rate = schedule(self.steps_done, s.steps) if s.recipe == "fast" else 1.0
        for lr, start in [(self.lr_Z, s.lr_Z), (self.optimiser_R.param_groups[0]["lr"], s.lr_R),
                          *((o.param_groups[0]["lr"], s.lr_G) for o in self.optimisers_G)]:
            lr.fill_(start * rate)
        if s.recipe == "fast" and self.model.G.training != first:
            self.model.G.train(first)
            self.graph = None
        dealt = self.batches.deal()
        out = self.replay(dealt) if self.use_graph else self.update(*dealt)
        if self.steps_done % 8 == 0:
            for optimiser in self.optimisers_G[1:]:
                optimiser.refresh()
        self.steps_done += 1
        return out

    def update(self, clips, draws):
        """All of a step that the device does on its own, clips and draws given."""
        s, m, batch = self.s, self.model, self.batches.gather(clips, draws)
        static_rows, transient_rows, which = batch[0], batch[1], self.each
        if which.device.type == "cpu":  # R runs once for clips that share their transient codes (a GPU would have to wait)
            transient_rows, which = transient_rows.unique(return_inverse=True)
        z_s, z_t = m.z_s.rows(static_rows), m.z_t.rows(transient_rows)                  # (B, D_s), (rows, L, D_t)
        objective = partial(forward_and_back, m, s, self.batches.weight, batch)
        # ---- BEGIN: the training step ----
        if s.recipe == "paper":
            objective(z_s.detach(), z_t.detach(), which, triplet=False)            # stage 1: gamma (Eq. 3.1)
            sum_over_ranks(m)
            self.optimisers_G[0].step()
            m.zero_grad()
            m.G.requires_grad_(False)
            v_hat, l, losses = objective(z_s, z_t, which)                           # stage 2: Z_V and theta (Eq. 3.2)
            m.G.requires_grad_(True)
        else:
            v_hat, l, losses = objective(z_s, z_t, which)                           # one backward serves both stages
        codes = sum_over_ranks(m, [(m.z_s, static_rows, z_s.grad), (m.z_t, transient_rows, z_t.grad)], losses)
        if s.recipe == "fast":
            for optimiser in self.optimisers_G:
                optimiser.step()
        self.optimiser_R.step()
        m.zero_grad()
        for dictionary, rows, grad in codes:
            dictionary.update(rows, grad, self.lr_Z)
        # ---- END ----
        self.batches.learn(clips, l)
        return batch[3], v_hat, losses

    def replay(self, dealt):
        """The same as one CUDA graph: two steps without it bring all buffers into being, then it is captured and replayed."""
        if self.graph is None:
            self.graph, self.dealt, self.plain = torch.cuda.CUDAGraph(), [x.clone() for x in dealt], 2
        for here, x in zip(self.dealt, dealt):
            here.copy_(x)
        if self.plain:
            self.plain -= 1
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                out = self.update(*self.dealt)
            torch.cuda.current_stream().wait_stream(aside)
            return out
        if self.plain == 0:
            self.plain = None
            try:
                with torch.cuda.graph(self.graph):
                    self.out = self.update(*self.dealt)
            except RuntimeError as error:  # a capture computes nothing: this step is still to be done
                print(f"nav: steps without a CUDA graph, since {one_line(error)[:120]}", file=sys.stderr)
                torch.cuda.set_stream(torch.cuda.default_stream())
                self.use_graph = False
                self.model.G.requires_grad_(True)
                self.model.zero_grad()
                return self.update(*dealt)
        self.graph.replay()
        v, v_hat, losses = self.out
        return v, v_hat, losses.clone()

    def state(self):
        """All of it, the same in every process. What lives in one of them alone is brought together."""
        model = self.model.state_dict()
        places = gather_from_ranks((self.rows, {key: model[key].cpu() for key in model if key.split(".")[0] in self.rows}, self.batches.state()))
        for key in places[0][1]:
            name = key.split(".")[0]
            rows = torch.cat([rows[name] for rows, _, _ in places])
            model[key] = torch.cat([codes[key] for _, codes, _ in places])[rows.argsort()]
        return dict(model=model, optimiser_R=self.optimiser_R.state_dict(),
                    optimisers_G=[optimiser.state_dict() for optimiser in self.optimisers_G],
                    batches=[batches for _, _, batches in places], rng=torch.get_rng_state(), steps_done=self.steps_done)

    def restore(self, state):
        """Take up a state. Returns whether the clips go on in their order (Batches.restore). Raises RuntimeError, KeyError,
        IndexError or ValueError where the state is of another shape."""
        model = dict(state["model"])
        for key in model:
            if (name := key.split(".")[0]) in self.rows:
                model[key] = model[key][self.rows[name]]
        self.model.load_state_dict(model)
        for optimiser, kept in zip([self.optimiser_R, *self.optimisers_G], [state["optimiser_R"], *state["optimisers_G"]], strict=True):
            own = dict(optimiser.param_groups[0], params=kept["param_groups"][0]["params"])  # rates and flags are this device's
            optimiser.load_state_dict(dict(kept, param_groups=[own]))
        torch.set_rng_state(state["rng"].cpu())
        self.steps_done = state["steps_done"]
        return self.batches.restore(state["batches"], self.s.seed + self.steps_done)


# ---- the fast recipe's parts -----------------------------------------------------------------------------------------


def schedule(step, steps, warm_up=50):
    """The fast recipe's rates: a short linear warm-up, all of them for half the steps, then a line to zero. A factor in (0, 1]."""
    return min(1.0, (step + 1) / warm_up, 2 * (1 - step / steps))


def principal_components(x, k):
    """PCA of rows x [n, d] -> [n, k], the longest row scaled to 0.9; zeros where d < k."""
    x = (x - x.mean(0)).double()
    directions = torch.linalg.eigh(x.T @ x)[1].flip(1)[:, :k]                           # (d, k), the largest first
    y = x @ directions
    return F.pad(y * (0.9 / y.norm(dim=1).max().clamp(min=1e-9)), (0, k - y.shape[1])).float()


def codes_from_clips(clips, D_s, D_t):
    """First codes for the fast recipe: PCA of what stands still and of what moves, on frames of 8 x 8.

    z_s [rows, D_s] from the mean frame of a row's clips, z_t [rows, L, D_t] from its frames less their clip's mean: like
    clips and like frames start close together, and G need not learn a table of random codes by heart."""
    N, L, H = clips.videos.shape[:3]
    small = torch.empty(N, L, 192)
    for v, out in zip(clips.videos, small):  # clip by clip: the frames as floats may be more than the memory holds
        out.copy_(F.avg_pool2d(unit_frames(torch.from_numpy(v)), H // 8).flatten(1))
    mean = small.mean(1)                                                                # (N, 192)

    def of_rows(ids, names, values):  # the mean over the clips that share a row
        ids = torch.from_numpy(ids)
        total = torch.zeros(len(names), *values.shape[1:]).index_add_(0, ids, values)
        return total / torch.bincount(ids, minlength=len(names)).clamp(min=1).view(-1, *[1] * (values.ndim - 1))

    still = of_rows(clips.static_id, clips.static_names, mean)                          # (static rows, 192)
    moves = of_rows(clips.transient_id, clips.transient_names, small - mean[:, None])   # (transient rows, L, 192)
    return principal_components(still, D_s), principal_components(moves.flatten(0, 1), D_t).unflatten(0, (-1, L))


class Muon(torch.optim.Optimizer):
    """Momentum whose every update of a matrix has equal singular values (Jordan et al., 2024): no direction lags behind.

    For weights [c_in, c_out, 4, 4], taken as matrices [c_in, 16 * c_out]: the update is (m m^T)^(-1/2) x, of momentum m
    and the gradient x looking ahead. `refresh` finds that root anew in every eighth step only. An element moves by about
    lr (root mean square), as under Adam."""

    def __init__(self, weights, lr, momentum=0.8):
        super().__init__(weights, dict(lr=lr, momentum=momentum))
        for w in self.param_groups[0]["params"]:
            self.state[w].update(m=torch.zeros_like(w), root=torch.eye(len(w), device=w.device))

    @staticmethod
    def matrix(w):  # [c_in, 16 * c_out], as it lies in memory, scaled to norm 1
        x = w.permute(0, 2, 3, 1).flatten(1)
        return x / x.norm().clamp(min=1e-9)

    @torch.no_grad()
    def step(self):
        group = self.param_groups[0]
        for w in group["params"]:
            c_in, c_out, *kernel = w.shape
            m = self.state[w]["m"].mul_(group["momentum"]).add_(w.grad)
            x = self.state[w]["root"] @ self.matrix(w.grad + group["momentum"] * m)
            x = x.view(c_in, *kernel, c_out).permute(0, 3, 1, 2)
            w.addcmul_(x, group["lr"], value=-max(c_in, 16 * c_out) ** 0.5)

    @torch.no_grad()
    def refresh(self):
        """root = (m m^T)^(-1/2), m scaled to norm 1, by three Newton-Schulz steps: polynomials of the small matrix m m^T."""
        for w in self.param_groups[0]["params"]:
            x, one = self.matrix(self.state[w]["m"]), torch.eye(len(w), device=w.device)
            gram, root = x @ x.T, one
            for _ in range(3):
                p = 3.4445 * one - 4.7750 * gram + 2.0315 * gram @ gram
                root, gram = root @ p, gram @ p @ p
            self.state[w]["root"].copy_(root)


# ---- several processes (torchrun) ------------------------------------------------------------------------------------


def join_ranks(device):
    """Meet the processes that torchrun started beside this one: over NCCL on GPUs, gloo on CPUs. Nothing to do without them."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        if device.type == "mps":
            raise RunError("several processes run on cuda or cpu: add --device cpu")
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=5))
        except (ValueError, RuntimeError) as error:
            raise RunError(f"the processes did not meet ({one_line(error)[:120]}); start them with torchrun") from None


def ranks():
    """(number of this process, how many there are): (0, 1) unless torchrun started it."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def deal_out(model, clips):
    """This process's clips, every K-th of them, and what lives here: {"z_s": rows} where each clip has a row of its own.

    Cuts the model's dictionaries down to these rows: a device holds the codes of its own clips alone."""
    (rank, count), N, own = ranks(), len(clips.names), {}
    if count == 1:
        return clips, own
    for tensor in model.state_dict().values():  # the same start everywhere, to the bit, on other processors too
        dist.broadcast(tensor, 0)
    alone = [kind for kind in ("static", "transient") if len(set(getattr(clips, f"{kind}_id"))) == len(getattr(clips, f"{kind}_names")) == N]
    clips = subset(clips, range(rank, N, count))
    for kind in alone:
        if kind == "static" or not model.G.labels:  # a label is the number of its row among all
            own[f"z_{kind[0]}"] = torch.from_numpy(np.unique(getattr(clips, f"{kind}_id")))
            clips = compact(clips, [kind])
    for name, rows in own.items():
        getattr(model, name).keep(rows)
    return clips, own


def sum_over_ranks(model, codes=(), losses=None):
    """Adds up, in one message, what the processes found in their shares of a step: gradients, in place, and codes
    [(dictionary, rows, grad)], returned; losses become their mean."""
    _, count = ranks()
    if count == 1:
        return codes
    sums = [p.grad for p in model.parameters() if p.grad is not None]
    tables = {}  # rows that several processes use: a table of all of them, and how many used each
    for dictionary, rows, grad in codes:
        if not dictionary.own:
            table = grad.new_zeros(len(dictionary.z), grad[0].numel() + 1)
            tables[dictionary] = table.index_add_(0, rows, F.pad(grad.flatten(1), (0, 1), value=1.0))
    parts = [*sums, *tables.values(), *([] if losses is None else [losses])]
    total = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(total)
    for part, value in zip(parts, total.split([part.numel() for part in parts])):
        part.copy_(value.view(part.shape))
    if losses is not None:
        losses.div_(count)
    summed = []
    for dictionary, rows, grad in codes:
        if dictionary in tables:
            rows = tables[dictionary][:, -1].nonzero().flatten()
            grad = tables[dictionary][rows, :-1].unflatten(1, grad.shape[1:])
        summed.append((dictionary, rows, grad))
    return summed


def gather_from_ranks(thing):
    """[the thing of process 0, of 1, ...] in every process."""
    things = [thing]
    if ranks()[1] > 1:
        dist.all_gather_object(things := [None] * ranks()[1], thing)
    return things


class SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over the processes; so is the gradient's way back."""

    @staticmethod
    def forward(ctx, x):
        dist.all_reduce(total := x.clone())
        return total

    @staticmethod
    def backward(ctx, grad):
        return SumOverRanks.forward(ctx, grad)


class Norm(nn.BatchNorm2d):
    """Batch norm over the frames of all processes (each has equally many; PyTorch's own is for GPUs only)."""

    def forward(self, x):
        count = ranks()[1]
        if not self.training or count == 1:
            return super().forward(x)
        y = x.float()
        mean, square = SumOverRanks.apply(torch.stack([y.mean((0, 2, 3)), y.square().mean((0, 2, 3))])) / count
        var, n = (square - mean * mean).clamp(min=0), count * x.numel() // x.shape[1]
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * n / (n - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (var + self.eps).rsqrt()
        return (y * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]).to(x.dtype)


# ---- measures (Sec. 4.2) ---------------------------------------------------------------------------------------------


def psnr(generated, real):
    """dB of each clip, peak 1 on frames in [0, 1], one mean squared error a clip. uint8 [K, L, H, W, 3] twice -> [K].

    A perfect clip counts 100 dB."""
    mse = torch.stack([((g.float() - r.float()) / 255).square().mean() for g, r in zip(generated, real)])
    return -10 * mse.clamp(min=1e-10).log10()


def ssim(x, y):
    """SSIM of frames, float [M, C, H, W] in [0, 1] twice -> [M]: Gaussian 11 x 11, sigma 1.5, biased covariance, range 1.

    As scikit-image's structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1),
    averaged over colours; the border of 5 pixels is left out, as there. Sides of at least 11."""
    taps = torch.exp(-torch.arange(-5, 6, dtype=x.dtype, device=x.device).square() / (2 * 1.5 ** 2))
    taps = taps / taps.sum()
    side, (M, C) = len(taps), x.shape[:2]

    def mean(v):  # the local mean, one axis after the other
        v = F.conv2d(v.flatten(0, 1)[:, None], taps.view(1, 1, side, 1))
        return F.conv2d(v, taps.view(1, 1, 1, side)).view(M, C, v.shape[2], -1)

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = 0.01 ** 2, 0.03 ** 2
    s = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return s.mean((1, 2, 3))


def unit_frames(video):
    """uint8 [L, H, W, 3] -> float [L, 3, H, W] in [0, 1]."""
    return video.permute(0, 3, 1, 2).float() / 255


def fcs(videos):
    """Frame Consistency Score: SSIM of a clip's first frame against all its frames, mean over frames, then over clips.

    uint8 [K, L, H, W, 3] -> a number, higher is better."""
    scores = [ssim(v[:1].expand_as(v), v).mean() for v in map(unit_frames, videos)]
    return torch.stack(scores).mean().item()


class VGG16(nn.Module):
    """phi of the MCS: VGG16 up to relu3_3. uint8 [M, H, W, 3] -> [M, 256, H / 4, W / 4], with torchvision's normalisation.

    `weights`: a dict with torchvision's keys features.K.weight and features.K.bias; those of later layers are left aside."""
    LAYERS = (0, 2, "pool", 5, 7, "pool", 10, 12, 14)
    ADDRESS = "https://download.pytorch.org/models/vgg16-397923af.pth"

    def __init__(self, weights):
        super().__init__()
        self.features = nn.ModuleDict()
        for layer in (layer for layer in self.LAYERS if layer != "pool"):
            w, b = weights[f"features.{layer}.weight"], weights[f"features.{layer}.bias"]
            self.features[str(layer)] = nn.Conv2d(w.shape[1], w.shape[0], 3, padding=1)
            self.features[str(layer)].load_state_dict({"weight": w, "bias": b})
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))

    @torch.no_grad()
    def forward(self, frames):
        x = (unit_frames(frames) - self.mean) / self.std
        for layer in self.LAYERS:
            x = F.max_pool2d(x, 2) if layer == "pool" else F.relu(self.features[str(layer)](x))
        return x


def load_vgg16(where, device):
    """(VGG16, None), or (None, why there is none). where: --vgg16's path, `download`, or None for the cache alone.

    Raises RunError where a file or a download that was asked for is of no use."""
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(VGG16.ADDRESS).name)
    if not where and not cached.is_file():
        return None, "no VGG16 weights: --vgg16 download fetches them (528 MB), --vgg16 PATH reads them"
    try:
        if where == "download" or not where:
            weights = torch.hub.load_state_dict_from_url(VGG16.ADDRESS, map_location="cpu", check_hash=True, weights_only=True)
        else:
            weights = torch.load(where, map_location="cpu", weights_only=True)
        return VGG16(weights).to(device), None
    except Exception as error:  # no network, a wrong hash, no such file, damaged bytes, other layers
        raise RunError(f"--vgg16 {where or cached}: no VGG16 weights there ({one_line(error)[:120]})") from None


def motion(phi, videos):
    """f of the MCS: the mean over clips and t of phi(v_{t+1}) - phi(v_t). uint8 [K, L, H, W, 3] -> [256, H / 4, W / 4].

    The sum over t telescopes: a clip's mean is (phi(v_L) - phi(v_1)) / (L - 1)."""
    total = sum(phi(v[[-1]]) - phi(v[[0]]) for v in videos)
    return total[0] / (len(videos) * (videos.shape[1] - 1))


def mcs(phi, generated, real):
    """Motion Consistency Score: log10 |f - f^|^2, lower is better; minus infinity for equal clips. uint8 clips as in motion."""
    distance = (motion(phi, generated) - motion(phi, real)).square().sum().item()
    return math.log10(distance) if distance else -math.inf


def scores(generated, real, phi, why_not):
    """The paper's two scores (Table 2) for any clips, uint8 [K, L, H, W, 3] and [K', L', H, W, 3] on one device -> dict.

    JSON knows no infinity: an MCS of minus infinity is null, and mcs_note says it."""
    value = mcs(phi, generated, real) if phi else None
    if value == -math.inf:
        value, why_not = None, "-inf: the generated clips move exactly like the real ones"
    return dict(fcs=fcs(generated), fcs_bound=fcs(real), mcs=value, mcs_note=why_not)


def measure(model, clips, device, vgg16):
    """Every number of metrics.json that can be read off the clips and their reconstructions, and those clips
    uint8 [N, L, H, W, 3] on the CPU. vgg16: what load_vgg16 gave."""
    generated = model.videos(*(torch.from_numpy(ids).to(device) for ids in (clips.static_id, clips.transient_id)))
    real = torch.from_numpy(clips.videos).to(device)
    dB = psnr(generated, real)
    similarity = torch.stack([ssim(unit_frames(g), unit_frames(r)).mean() for g, r in zip(generated, real)])
    return dict(psnr=dB.mean().item(), psnr_min=dB.min().item(), ssim=similarity.mean().item(),
                **scores(generated, real, *vgg16), exchange_psnr=None), generated.cpu()


# ---- runs: what is set, kept and taken up again ----------------------------------------------------------------------


class RunError(ValueError):
    """A run that cannot be done as asked. One line: what is wrong, where, what to do. main() prints it and exits 2."""


def choose_device(name):
    """auto, cpu, cuda or mps -> torch.device. Raises RunError where the device is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, is_there in there.items() if is_there)
    if not there[name]:
        raise RunError(f"--device {name}: this machine or this PyTorch has none; use --device cpu, or leave it out")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        k = int(os.environ["LOCAL_RANK"])
        processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", k + 1)), torch.cuda.device_count()
        if processes > gpus:  # all processes see it, and one says it
            raise RunError(f"{processes} processes on a machine of {gpus} GPU{'s'[:gpus != 1]}: --nproc_per_node={gpus}, or --device cpu")
        torch.cuda.set_device(k)
    return torch.device(name)


def which_kernels(device):
    """The word for what computes the losses, "triton" or "torch: why". Raises RunError where NAV_KERNELS asks for the impossible."""
    try:
        return backend(device)
    except RuntimeError as error:
        raise RunError(str(error)) from None


def choose_precision(asked, device):
    """(precision of G, why). bf16 pays where the processor multiplies it in hardware, and halves the speed elsewhere."""
    if asked != "auto":
        return asked, "asked for"
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
        return ("bf16", "tensor cores") if fast else ("fp32", "no bf16 tensor cores before sm_80")
    if device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        return "bf16", "the processor multiplies it"
    return "fp32", "the processor does not multiply bf16" if device.type == "cpu" else "MPS"


def find_clips(args):
    """--dataset and --clips -> (Clips, the row of TABLE_6). Draws stand-ins where a named set is not prepared."""
    name = args.dataset
    if name not in TABLE_6:
        if not name.endswith(".npz"):
            raise RunError(f"--dataset {name}: neither chair, weizmann or golf nor an .npz; data_prep.py makes one of your clips")
        clips = data_prep.load(name)
    elif Path("data", f"{name}.npz").exists():
        clips = data_prep.load(Path("data", f"{name}.npz"))
    elif name == "chair":
        clips = data_prep.draw_chairs(max(1, args.clips or 64))
    elif name == "weizmann":
        clips = data_prep.draw_people()
    else:
        raise RunError(f"--dataset {name}: data/{name}.npz is not there: run python data_prep.py {name}")
    if args.clips is not None:
        if not 1 <= args.clips <= len(clips.videos):
            raise RunError(f"--clips {args.clips}: {name} holds {len(clips.videos)}; 1 to {len(clips.videos)}")
        clips = compact(subset(clips, range(args.clips)))
    if Path(name).stem in TABLE_6:
        return clips, Path(name).stem
    is_grid = 1 < len(clips.transient_names) < len(clips.names) and 1 < len(clips.static_names) < len(clips.names)
    return clips, "weizmann" if is_grid else "chair"


def subset(clips, keep, every=1):
    """The clips of indices `keep`, every `every`-th frame of them -> Clips with the same dictionaries."""
    keep, ends = list(keep), clips.length.cumsum()
    pieces = [clips.full[ends[j] - clips.length[j]:ends[j]][::every] for j in keep]
    return replace(clips, videos=clips.videos[keep, ::every], static_id=clips.static_id[keep], transient_id=clips.transient_id[keep],
                   names=[clips.names[j] for j in keep], full=np.concatenate(pieces), length=np.array([len(piece) for piece in pieces]))


def compact(clips, kinds=("static", "transient")):
    """The same clips without the dictionary rows that none of them uses: what is not seen has no codes."""
    for kind in kinds:
        rows, ids = np.unique(getattr(clips, f"{kind}_id"), return_inverse=True)
        names = getattr(clips, f"{kind}_names")
        clips = replace(clips, **{f"{kind}_id": ids, f"{kind}_names": [names[row] for row in rows]})
    return clips


def keep_from_training(clips, s):
    """--hold-out, --hold-out-clips and --every: (the Clips to train on, the Clips kept from it or None). Raises RunError.

    Table 3: cells of the grid are drawn with the seed, and every person and every action stays in at least one clip."""
    N, held = len(clips.names), []
    if s.hold_out:
        seen_s, seen_t = np.bincount(clips.static_id), np.bincount(clips.transient_id)
        for j in np.random.default_rng(s.seed).permutation(N):
            if len(held) < s.hold_out and seen_s[clips.static_id[j]] > 1 and seen_t[clips.transient_id[j]] > 1:
                held.append(j)
                seen_s[clips.static_id[j]] -= 1
                seen_t[clips.transient_id[j]] -= 1
        if len(held) < s.hold_out:
            raise RunError(f"--hold-out {s.hold_out}: of this grid's {N} cells at most {len(held)} can be kept from training with every row "
                           "and column still seen")
    elif s.hold_out_clips:
        if not 0 < s.hold_out_clips < N:
            raise RunError(f"--hold-out-clips {s.hold_out_clips}: 1 to {N - 1} of {N} clips")
        held = list(range(N - s.hold_out_clips, N))
    elif s.every == 1:
        return clips, None
    seen = subset(clips, [j for j in range(N) if j not in set(held)], s.every)
    if s.hold_out_clips:
        seen = compact(seen)
    return seen, subset(clips, held) if held else None


def lay_out(clips, layout):
    """Fig. 2 and Sec. 4.1: which clips share a static and which a transient row. Changes clips in place."""
    N, names = len(clips.names), clips.names
    if layout in ("static", "both", "transient"):
        each, shared = np.arange(N), np.zeros(N, np.int64)
        clips.static_id, clips.static_names = (shared, ["all"]) if layout == "transient" else (each, names)
        clips.transient_id, clips.transient_names = (shared, ["all"]) if layout == "static" else (each, names)
    elif layout == "grid" and min(len(clips.static_names), len(clips.transient_names)) < 2:
        raise RunError(f"--layout grid: {len(clips.static_names)} static and {len(clips.transient_names)} transient names make "
                       "no grid; prepare the clips with data_prep.py folder --grid")


def choose_settings(args, row, clips, device):
    """Table 6's row, then the recipe's values, then the options, checked -> (Settings, why this precision). Raises RunError."""
    codes, paper_rates, updates = TABLE_6[row]
    N = max(1, len(clips.names) - (args.hold_out or 0) - (args.hold_out_clips or 0))    # clips to train on
    values = dict(codes, conditional=row == "weizmann", steps=FAST_STEPS[row])
    if args.recipe == "paper":
        values.update(paper_rates, batch=1, per_clip=0, steps=updates * N)
    elif device.type == "cuda":
        values.update(width=64, batch=128)
    values.update({f.name: getattr(args, f.name) for f in fields(Settings) if getattr(args, f.name, None) is not None})
    values["precision"], why = choose_precision(args.precision, device)
    s = Settings(**values)
    if s.batch > N:  # fewer clips than a step takes: more frames of each, about as many in all
        s.per_clip = s.per_clip if args.per_clip is not None else min(s.per_clip * round(s.batch / N), clips.videos.shape[1] // max(1, s.every))
        s.batch = N
    check_settings(s, clips)
    return s, why


def check_settings(s, clips):
    """Everything that would fail later, before any work. Raises RunError."""
    _, L, H, W, _ = clips.videos.shape
    L = -(-L // max(1, s.every))
    for name in ("levels", "steps", "batch", "width", "every"):
        if getattr(s, name) < 1:
            raise RunError(f"--{name} {getattr(s, name)}: at least 1 is needed")
    for name in ("lr_G", "lr_R", "lr_Z"):
        if not 0 < getattr(s, name) < math.inf:
            raise RunError(f"--{name.replace('_', '-')} {getattr(s, name)}: a finite number above 0 is needed")
    if s.hold_out < 0 or s.hold_out_clips < 0 or (s.hold_out and s.hold_out_clips):
        raise RunError("--hold-out and --hold-out-clips take a number of at least 1, and one run takes one of the two")
    if L < s.alpha + 2:
        raise RunError(f"clips of {L} frames hold no triplet of radius {s.alpha}: at least {s.alpha + 2} frames are needed; "
                       "prepare longer clips (data_prep.py --frames)")
    if not 0 <= s.per_clip <= L:
        raise RunError(f"--per-clip {s.per_clip}: 1 to {L}, or 0 for all {L} frames of a clip")
    if H != W or H not in (16, 32, 64, 128, 256):
        raise RunError(f"frames of {H} x {W} pixels: G draws squares of 16, 32, 64, 128 or 256; prepare with data_prep.py --size 64")
    if H < 2 ** s.levels:
        raise RunError(f"frames of {H} pixels are too small for {s.levels} pyramid levels: use --levels {int(math.log2(H))} or less")
    count = ranks()[1]
    if count > 1 and (s.batch % count or len(clips.names) - s.hold_out - s.hold_out_clips < count):
        raise RunError(f"{count} processes: --batch {s.batch} must be a multiple of it, and each needs a clip to train on")
    if s.rank and not 1 <= s.rank <= min(L, s.D_t):
        raise RunError(f"--rank {s.rank}: 1 to {min(L, s.D_t)} for transient codes of {L} x {s.D_t}")


def fingerprint(clips):
    """SHA-256 of the bytes that training sees: a checkpoint goes on only with the clips it was made with."""
    digest = hashlib.sha256()
    for array in (clips.full, clips.length, clips.static_id, clips.transient_id):
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)  # no copy: it may be all the memory there is
    return digest.hexdigest()


def folder(path):
    """The folder of this name, made if it is not there."""
    (path := Path(path)).mkdir(parents=True, exist_ok=True)
    return path


def write_text(path, text):
    data_prep.write_beside(path, lambda temporary: temporary.write_text(text + "\n"))


def write_json(path, content):
    write_text(path, json.dumps(content, indent=1))


def write_tensors(path, content):
    buffer = io.BytesIO()  # a full disk is then an OSError, as everywhere, not one of torch's own
    torch.save(content, buffer)
    data_prep.write_beside(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


def commit():
    """The commit of this script, or None outside a clone or without git."""
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return None
    return git.stdout.strip() or None


def read_checkpoint(folder, device="cpu"):
    """The checkpoint of a run folder -> dict of tensors and plain values. Raises RunError."""
    path = Path(folder, "checkpoint.pt")
    if not path.is_file():
        raise RunError(f"{path}: no checkpoint there; train first, or name another folder with --run")
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
        checkpoint["settings"] = Settings(**checkpoint["settings"])
        for key in ("model", "batches", "log", "data"):
            checkpoint[key]
        for key in ("fingerprint", "all_clips", "pairs", "names", "trained_on"):
            checkpoint["data"][key]
        return checkpoint
    except Exception as error:  # whatever damaged bytes or another version's keys make zip, pickle, torch and dict raise
        raise RunError(f"{path}: not a checkpoint of this script ({one_line(repr(error))[:120]})") from None


def open_run_folder(out, resume):
    """Make the run folder; what an earlier run left there is moved into earlier-1, earlier-2, ... Raises RunError."""
    folder(out)
    left = [out / name for name in ("config.json", "checkpoint.pt", "log.csv", "metrics.json", "encoded.pt", "ablation.md", "ablation.json")]
    left += [path for name in ("reconstructions", "samples", "exchange", "encoded", "interpolation")
             for path in out.glob(f"{name}*.[pg][ni][gf]")]
    left = [path for path in left if path.exists()]
    if resume or not left:
        return
    shelf = next(path for i in range(1, 10 ** 6) if not (path := out / f"earlier-{i}").exists())
    shelf.mkdir()
    for path in left:
        path.rename(shelf / path.name)
    print(f"{out} held a run: moved to {shelf}")


# ---- pictures --------------------------------------------------------------------------------------------------------


def picture(out, name, standin):
    """Where a picture goes; what was trained on drawn stand-ins says so in its name."""
    stem, suffix = name.split(".")
    return out / (f"{stem}-standin.{suffix}" if standin else name)


def spread(n, k):
    """k indices spread evenly over range(n), ends included."""
    return [round(i * (n - 1) / max(1, k - 1)) for i in range(min(k, n))]


def show_reconstructions(path, real, generated, names, clips=8, frames=8):
    """A sheet: real over generated, for clips and frames spread over the set. uint8 [N, L, H, W, 3] twice."""
    rows, labels, columns = [], [], spread(real.shape[1], frames)
    for j in spread(len(real), clips):
        rows += [real[j][columns].numpy(), generated[j][columns].numpy()]
        labels += [names[j][:16], "generated"]
    data_prep.sheet(rows, path, row_labels=labels)


def show_gif(path, videos):
    """All of videos uint8 [K, L, H, W, 3] side by side, moving."""
    across = math.ceil(len(videos) ** 0.5)
    blank = torch.full_like(videos[:1], 255).expand(-len(videos) % across, -1, -1, -1, -1)
    tiles = torch.cat([videos, blank]).unflatten(0, (-1, across))                       # (rows, across, L, H, W, 3)
    rows, _, L, H, W, _ = tiles.shape
    data_prep.write_gif(tiles.permute(2, 0, 3, 1, 4, 5).reshape(L, rows * H, across * W, 3).numpy(), path)


# ---- experiments (Sec. 4.3, 4.4) -------------------------------------------------------------------------------------


def ids_on(device, *ids):
    return [torch.as_tensor(np.asarray(each)).to(device) for each in ids]


def measure_exchange(model, seen, unseen, device):
    """Table 3 and Fig. 6 as a number: dB on the pairs kept from training, and two baselines that need no model.

    nearest: of the same person's seen clips, the one closest to the truth (chosen with the truth in hand, so as good as a
    copy can be). additive: the person's mean clip + the action's mean clip - the mean clip, pixel by pixel."""
    real = torch.from_numpy(unseen.videos)
    generated = model.videos(*ids_on(device, unseen.static_id, unseen.transient_id)).cpu()
    videos = torch.from_numpy(seen.videos).float()
    nearest, additive = [], []
    for truth, i, k in zip(real, unseen.static_id, unseen.transient_id):
        same_person = videos[torch.from_numpy(seen.static_id == i)]
        nearest.append(psnr(same_person, truth.expand(len(same_person), *truth.shape)).max())
        guess = same_person.mean(0) + videos[torch.from_numpy(seen.transient_id == k)].mean(0) - videos.mean(0)
        additive.append(psnr(guess.clamp(0, 255)[None], truth[None])[0])
    return dict(exchange_psnr=psnr(generated, real).mean().item(), exchange_nearest_psnr=torch.stack(nearest).mean().item(),
                exchange_additive_psnr=torch.stack(additive).mean().item())


def find_codes(model, s, videos, steps=300, lr=0.02):
    """Codes of clips that were never trained on, G and R frozen: uint8 [K, L, H, W, 3] -> z_s [K, D_s], z_t [K, L, D_t], label [K].

    From the closest of up to 512 pairs of dictionary rows, Adam on l_rec with the projection after every update."""
    device = model.z_s.z.device
    K, L = videos.shape[:2]
    pairs = torch.cartesian_prod(torch.arange(len(model.z_s.z)), torch.arange(len(model.z_t.z)))
    pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))[:512]].to(device)
    far = torch.full((K,), math.inf, device=device)
    best = torch.zeros(K, dtype=torch.long, device=device)
    targets = videos.to(device)
    for at in range(0, len(pairs), 16):
        drawn = model.videos(pairs[at:at + 16, 0], pairs[at:at + 16, 1]).float().flatten(1)
        near, which = torch.cdist(targets.float().flatten(1), drawn).min(1)
        best, far = torch.where(near < far, at + which, best), torch.minimum(near, far)
    label = pairs[best, 1]
    z = [model.z_s.z[pairs[best, 0]].clone().requires_grad_(), model.z_t.z[label].clone().requires_grad_()]
    v, weight = targets.flatten(0, 1).permute(0, 3, 1, 2), torch.full((K * L,), 1 / L, device=device)
    adam = torch.optim.Adam(z, lr=lr)
    model.requires_grad_(False)
    for step in range(steps):
        adam.param_groups[0]["lr"] = lr * schedule(step, steps)
        with model.at_rest():
            v_hat = model.draw(z[0], model.R(z[1]), label)
        _, dl_dv = laplacian_l1_with_grad(v_hat, v, weight, s.levels)
        adam.zero_grad()
        v_hat.backward(dl_dv)
        adam.step()
        with torch.no_grad():
            z[0].copy_(model.z_s.project(z[0]))
            z[1].copy_(model.z_t.project(z[1]))
    model.requires_grad_(True)
    return z[0].detach(), z[1].detach(), label


@torch.no_grad()
def draw_codes(model, z_s, z_t, label):
    """Clips of codes that need not be in the dictionaries -> uint8 [K, L, H, W, 3] on the CPU."""
    with model.at_rest():
        frames = model.draw(z_s, model.R(z_t), label)
    return to_bytes(frames).unflatten(0, z_t.shape[:2]).cpu()


def measure_encoding(model, s, seen, unseen, device):
    """dB of clips kept from training from codes found for them, and of the closest training clip, as a copy would have."""
    real = torch.from_numpy(unseen.videos[:, ::s.every])
    generated = torch.cat([draw_codes(model, *find_codes(model, s, part)) for part in real.split(8)])
    copies = torch.stack([psnr(torch.from_numpy(seen.videos), v.expand(len(seen.videos), *v.shape)).max() for v in real])
    return dict(encode_psnr=psnr(generated, real).mean().item(), encode_nearest_psnr=copies.mean().item())


@torch.no_grad()
def between(model, z_s, z_t, label, a, b, K):
    """Fig. 7: K frames between frames a and b of one clip, on the straight line between what R makes of their codes.

    z_s [1, D_s], z_t [1, L, D_t], label [1] -> uint8 [K + 2, H, W, 3] with both ends."""
    r = model.R(z_t)
    share = torch.linspace(0, 1, K + 2, device=r.device)[:, None]
    with model.at_rest():
        frames = model.draw(z_s, (r[0, a] + share * (r[0, b] - r[0, a]))[None], label)
    return to_bytes(frames)


def measure_interpolation(model, s, whole, device):
    """What Fig. 7 leaves open: trained on every `every`-th frame, dB of the frames between, and of their neighbours' pixel mean."""
    seen, _ = keep_from_training(whole, s)
    full, ours, means = subset(whole, [whole.names.index(name) for name in seen.names]).videos, [], []
    for v, i, k in zip(full, *ids_on(device, seen.static_id, seen.transient_id)):
        made, mean, real = [], [], []
        for t in range(len(v[::s.every]) - 1):
            made.append(between(model, model.z_s.z[i][None], model.z_t.z[k][None], k[None], t, t + 1, s.every - 1)[1:-1].cpu())
            ends = torch.from_numpy(v[[t * s.every, (t + 1) * s.every]]).float()
            mean += [torch.lerp(ends[0], ends[1], n / s.every) for n in range(1, s.every)]
            real.append(torch.from_numpy(v[t * s.every + 1:(t + 1) * s.every]))
        ours.append(psnr(torch.cat(made)[None], torch.cat(real)[None]))
        means.append(psnr(torch.stack(mean)[None], torch.cat(real)[None]))
    return dict(interpolation_psnr=torch.cat(ours).mean().item(), interpolation_average_psnr=torch.cat(means).mean().item())


# ---- commands --------------------------------------------------------------------------------------------------------


def train(args):
    """Trains, with a progress line, a log and checkpoints; then measures and shows."""
    device = choose_device(args.device)
    join_ranks(device)
    losses_by = which_kernels(device)
    whole, row = find_clips(args)
    lay_out(whole, args.layout)
    s, why = choose_settings(args, row, whole, device)
    clips, unseen = keep_from_training(whole, s)
    N, L, size = clips.videos.shape[:3]
    out = Path(args.out or f"runs/{Path(args.dataset).stem}")
    data = dict(dataset=args.dataset, source=clips.source, standin=clips.standin, clips=N, all_clips=len(whole.names),
                L=L, size=size, fingerprint=fingerprint(whole), static_names=clips.static_names,
                transient_names=clips.transient_names, names=clips.names, pairs=np.stack([clips.static_id, clips.transient_id], 1).tolist(),
                trained_on=dict(device=str(device), kernels=losses_by, torch=str(torch.__version__), commit=commit()))
    vgg16 = load_vgg16(args.vgg16, device) if ranks()[0] == 0 else None
    trainer, log, (rank, count) = Trainer(s, clips, device, args.graph), [], ranks()
    say = partial(print, flush=True) if rank == 0 else lambda text: None
    if args.resume:
        log = resume(out, trainer, data, say)
    if rank == 0:
        open_run_folder(out, args.resume)
        write_json(out / "config.json", dict(asdict(s), dataset=args.dataset, source=clips.source, standin=clips.standin, clips=N, frames=L,
                                             size=size, processes=count, device=str(device), torch=torch.__version__, commit=commit()))
    say(f"{clips.source}\n{N} clips of {L} frames, {size} x {size}; {len(clips.static_names)} static and {len(clips.transient_names)} "
          f"transient codes; {s.recipe} recipe, {s.steps} steps of {s.batch} clips x {trainer.batches.F} frames\n{device}, {s.precision} ({why}), "
          f"losses by {losses_by}{f'; {count} processes' if count > 1 else ''}; writing to {out}")
    if clips.standin:
        say(f"NOTE: these clips are DRAWN STAND-INS, not the real {row} data; every result says so")

    first_step, seconds_before = trainer.steps_done, log[-1][1] if log else 0.0
    began = saved = time.perf_counter()
    losses, every, asked = [], max(1, min(25, s.steps // 20)), 0
    with Stop() as stop:
        while trainer.steps_done < s.steps and not asked:
            try:
                v, v_hat, loss = trainer.step()
            except torch.linalg.LinAlgError:  # --rank: what is not finite has no eigenvectors
                raise RunError(diverged(trainer.steps_done + 1, s, out)) from None
            losses.append(loss)
            step = trainer.steps_done
            # All below is looking, not learning. The host waits for the device only here; processes look together.
            if step % every and step < s.steps and (count > 1 or not stop.asked):
                continue
            values = torch.stack(losses).cpu()                                          # (steps since the last look, 3)
            for i in range(len(losses)):
                if not values[i].isfinite().all():
                    raise RunError(diverged(step - len(losses) + 1 + i, s, out))
            passed, losses = time.perf_counter() - began, []
            dB = psnr(to_bytes(v_hat)[None], v.permute(0, 2, 3, 1)[None]).item()
            frames_a_second = (step - first_step) * s.batch * trainer.batches.F / passed
            log.append([step, seconds_before + passed, *values.mean(0).tolist(), dB, frames_a_second])
            say(progress(log[-1], s.steps, passed / (step - first_step)))
            late = time.perf_counter() - saved >= args.checkpoint_every
            asked, late = map(max, zip(*gather_from_ranks((stop.asked, late))))
            if late or step == s.steps or asked:
                state = trainer.state()
                if rank == 0:
                    save_checkpoint(out, s, data, log, state)
                saved = time.perf_counter()
    if asked:
        if rank == 0:
            print(f"nav: stopped at step {trainer.steps_done} of {s.steps}; the checkpoint is in {out}, --resume goes on", file=sys.stderr)
        return 128 + asked
    weights = trainer.state()["model"]  # of all processes
    return report(out, model_from(s, data, weights, device), s, data, whole, device, log, vgg16) if rank == 0 else 0


def diverged(step, s, out):
    return (f"not finite at step {step}: most likely a learning rate too high for these clips (G {s.lr_G:g}, R {s.lr_R:g}, codes "
            f"{s.lr_Z:g}); " + (f"the last good checkpoint is {out}/checkpoint.pt" if (out / "checkpoint.pt").exists() else "no checkpoint yet"))


def progress(line, steps, seconds_a_step):
    """The status line for one line of the log."""
    step, seconds, loss, _, _, dB, rate = line
    left = (steps - step) * seconds_a_step
    return (f"step {step:{len(str(steps))}}/{steps}  loss {loss:.4f}  {dB:5.2f} dB  {rate:6.0f} frames/s  "
            f"{seconds:5.0f} s  ETA {left // 60:.0f}:{left % 60:02.0f}")


class Stop:
    """Ctrl-C and SIGTERM end a run after the step at hand, not in its middle. `asked` is the signal's number, 0 before."""

    def __enter__(self):
        self.asked = 0
        self.before = {number: signal.signal(number, self.ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def ask(self, number, frame):
        self.asked = number

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def save_checkpoint(out, s, data, log, state):
    """checkpoint.pt and log.csv, each whole or not at all. Raises RunError where something to be kept is not finite."""
    if not all(value.isfinite().all() for value in state["model"].values()):
        raise RunError(diverged(state["steps_done"], s, out))
    write_tensors(out / "checkpoint.pt", dict(settings=asdict(s), data=data, log=log, **state))
    write_text(out / "log.csv", "\n".join([LOG] + [",".join(f"{value:.6g}" for value in line) for line in log]))


def resume(out, trainer, data, say):
    """Fill the trainer from the checkpoint in `out`; returns its log. Raises RunError where the two do not fit."""
    kept = read_checkpoint(out)
    asked, had = dict(asdict(trainer.s), clips=data["fingerprint"]), dict(asdict(kept["settings"]), clips=kept["data"]["fingerprint"])
    for name in asked:
        if asked[name] != had[name]:
            repeat = "repeat the first command"
            if name in ("width", "batch", "per_clip", "precision"):  # the same command means others on a GPU
                repeat += f", with --{name.replace('_', '-')} {had[name]}"
            raise RunError(f"--resume: {out}/checkpoint.pt was made with {name} {str(had[name])[:12]}, now it is {str(asked[name])[:12]}: "
                           f"{repeat}, or train afresh with another --out")
    try:
        if not trainer.restore(kept):
            say(f"the checkpoint was made by {len(kept['batches'])} processes on {kept['data']['trained_on']['device']}: from here on the "
                "clips come in another order")
    except (RuntimeError, KeyError, IndexError, ValueError) as error:
        raise RunError(f"{out}/checkpoint.pt: of another shape ({one_line(error)[:120]})") from None
    return kept["log"]


def report(out, model, s, data, whole, device, log, vgg16):
    """Measure, show, and write metrics.json. whole: the Clips before any were kept from training. Returns the exit status."""
    clips, unseen = keep_from_training(whole, s)
    numbers, generated = measure(model, clips, device, vgg16)
    if s.hold_out:
        numbers.update(measure_exchange(model, clips, unseen, device))
    if s.hold_out_clips:
        numbers.update(measure_encoding(model, s, clips, unseen, device))
    if s.every > 1:
        numbers.update(measure_interpolation(model, s, whole, device))
    steps, seconds, rate = int(log[-1][0]), log[-1][1], log[-1][-1]
    metrics = dict(dataset=data["dataset"], source=clips.source, standin=clips.standin, videos=data["clips"], frames=data["L"], **numbers,
                   steps=steps, seconds=round(seconds, 1), frames_per_second=round(rate, 1), precision=s.precision,
                   seed=s.seed, **data["trained_on"], evaluated_on=str(device))
    show_reconstructions(picture(out, "reconstructions.png", clips.standin), torch.from_numpy(clips.videos), generated, clips.names)
    show_gif(picture(out, "samples.gif", clips.standin), generated[spread(len(generated), 16)])
    write_json(out / "metrics.json", metrics)
    for name in sorted(numbers.keys() - {"psnr", "psnr_min", "ssim", "fcs", "fcs_bound", "mcs", "mcs_note"}):
        if numbers[name] is not None:
            print(f"{name.replace('_', ' ')}: {numbers[name]:.2f}")
    print(f"PSNR {metrics['psnr']:.2f} dB mean, {metrics['psnr_min']:.2f} minimum; SSIM {metrics['ssim']:.3f}; FCS {metrics['fcs']:.3f} "
          f"(bound {metrics['fcs_bound']:.3f}); MCS {metrics['mcs_note'] or format(metrics['mcs'], '.2f')}; {steps} steps in {seconds:.0f} s"
          + ("; DRAWN STAND-INS" if clips.standin else "") + f"; see {out}")
    return 0


def model_from(s, data, weights, device):
    """The Model of a run, with its kept weights, on the device. Raises RuntimeError, KeyError or ValueError where they do not fit."""
    model = Model(s, data["size"], data["L"], len(data["static_names"]), len(data["transient_names"]))
    model.load_state_dict(weights)
    return model.to(device, memory_format=torch.channels_last)


def load_run(args):
    """--run -> (its checkpoint, its Model on the chosen device, the device). Raises RunError."""
    if not args.run:
        raise RunError(f"{args.action} needs --run DIR, the folder of a trained run")
    device = choose_device(args.device)
    kept = read_checkpoint(args.run)
    try:
        return kept, model_from(kept["settings"], kept["data"], kept["model"], device), device
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise RunError(f"{args.run}/checkpoint.pt: of another shape ({one_line(error)[:120]})") from None


def clips_of_run(args, kept):
    """The Clips that a run was given, those kept from training included. Raises RunError where they are no longer there."""
    args.dataset, args.clips = kept["data"]["dataset"], kept["data"]["all_clips"]
    clips, _ = find_clips(args)
    lay_out(clips, kept["settings"].layout)
    if fingerprint(clips) != kept["data"]["fingerprint"]:
        raise RunError(f"{args.run}: {args.dataset} no longer holds the clips that this run was trained on; prepare them again, or train afresh")
    return clips


def read_generated(path, size=None):
    """Clips that other software made -> list of uint8 [T, H, W, 3]: an npz of arrays, or a folder of GIFs, strips or frame folders."""
    path = Path(path)
    if path.suffix == ".npz":
        with open(path, "rb") as file, data_prep.open_zip(file, str(path)) as archive:
            arrays = [data_prep.read_npy(archive, member, f"{path}: {member.filename}") for member in archive.infolist()]
        found = [clip for array in arrays for clip in (array if array.ndim == 5 else array[None])]
        if any(clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[3] != 3 for clip in found):
            raise RunError(f"--generated {path}: every array must be uint8 [T, H, W, 3] or [K, T, H, W, 3]")
    elif path.is_dir():
        found = [data_prep.read_clip(entry, size=size) for entry in sorted(path.iterdir()) if not entry.name.startswith(".")]
    else:
        raise RunError(f"--generated {path}: neither a folder of clips nor an .npz")
    if not found:
        raise RunError(f"--generated {path}: holds no clip")
    return found


def evaluate(args):
    """Measures a run again; or, with --generated and --real, scores clips that other software made (a row of Table 2)."""
    if args.generated or args.real:
        if not (args.generated and args.real):
            raise RunError("evaluate needs both --generated DIR and --real NPZ, or --run DIR")
        device = choose_device(args.device)
        vgg16, real = load_vgg16(args.vgg16, device), data_prep.load(args.real)
        found = read_generated(args.generated, real.videos.shape[2])
        L = min([len(clip) for clip in found] + [real.videos.shape[1]])
        if L < 2 or {clip.shape[1:] for clip in found} != {real.videos.shape[2:]}:
            raise RunError(f"--generated {args.generated}: clips of at least 2 frames of {real.videos.shape[2:]} are needed, as in {args.real}")
        generated = torch.from_numpy(np.stack([clip[:L] for clip in found])).to(device)
        metrics = dict(dataset=args.real, source=real.source, standin=real.standin, generated=args.generated, videos=len(found), frames=L,
                       **scores(generated, torch.from_numpy(real.videos[:, :L]).to(device), *vgg16), torch=torch.__version__, commit=commit())
        out = folder(args.out or "runs/evaluate")
        write_json(out / "metrics.json", metrics)
        print(f"{len(found)} clips of {L} frames: MCS {metrics['mcs_note'] or format(metrics['mcs'], '.2f')}, FCS {metrics['fcs']:.3f} "
              f"(bound {metrics['fcs_bound']:.3f}); see {out / 'metrics.json'}")
        return 0
    kept, model, device = load_run(args)
    clips = clips_of_run(args, kept)
    vgg16, out = load_vgg16(args.vgg16, device), folder(args.out or args.run)
    return report(out, model, kept["settings"], kept["data"], clips, device, kept["log"], vgg16)


def sample(args):
    """New videos: random pairs of learned codes (Sec. 1), or static codes drawn from a Gaussian fitted to the dictionary's."""
    kept, model, device = load_run(args)
    if args.count < 1:
        raise RunError(f"--count {args.count}: at least 1 is needed")
    data, rng = kept["data"], torch.Generator().manual_seed(args.seed or 0)
    s, t = (torch.randint(len(data[names]), (args.count,), generator=rng) for names in ("static_names", "transient_names"))
    out, columns = Path(args.out or args.run), spread(data["L"], 8)
    if args.prior == "dictionary":
        videos = model.videos(s.to(device), t.to(device)).cpu()
        rows, labels = list(videos[:, columns].numpy()), [f"{data['static_names'][i]} {data['transient_names'][j]}"[:20] for i, j in zip(s, t)]
    else:
        z = model.z_s.z.cpu().double()
        if len(z) < 2:
            raise RunError(f"--prior gaussian: {args.run} has one static code, a Gaussian needs two or more")
        values, axes = torch.linalg.eigh(torch.cov(z.T))                                # full covariance, of any rank
        z = z.mean(0) + torch.randn(args.count, len(values), generator=rng, dtype=z.dtype) * values.clamp(min=0).sqrt() @ axes.T
        videos = draw_codes(model, unit_ball(z).float().to(device), model.z_t.z[t.to(device)], t.to(device))
        real = torch.from_numpy(keep_from_training(clips_of_run(args, kept), kept["settings"])[0].videos)
        nearest = torch.cdist(videos.float().flatten(1), real.float().flatten(1)).argmin(1)
        rows = [row for v, j in zip(videos, nearest) for row in (v[columns].numpy(), real[j][columns].numpy())]
        labels = ["new", "nearest real"] * args.count
    folder(out)
    data_prep.sheet(rows, picture(out, "samples.png", data["standin"]), row_labels=labels)
    show_gif(picture(out, "samples.gif", data["standin"]), videos)
    print(f"{args.count} videos: {picture(out, 'samples.png', data['standin'])} and .gif")
    return 0


def exchange(args):
    """Fig. 6: every static code with every transient code, three frames of each; pairs unseen in training are framed."""
    kept, model, device = load_run(args)
    data, (rows, columns) = kept["data"], (model.z_s.z.shape[0], model.z_t.z.shape[0])
    if min(rows, columns) < 2:
        raise RunError(f"exchange needs a grid; {args.run} has {rows} static and {columns} transient codes")
    if rows * columns > 1024:
        raise RunError(f"exchange: a sheet of {rows} x {columns} clips is too large to look at; train on fewer with --clips")
    seen = {tuple(pair) for pair in data["pairs"]}
    grid = [[(i, k) for k in range(columns)] for i in range(rows)]
    moments = [(data["L"] - 1) * q // 4 for q in (1, 2, 3)]
    cells = [[np.concatenate(list(video[moments].numpy()), 1) for video in model.videos(*ids_on(device, *zip(*row))).cpu()] for row in grid]
    frames = [[None if pair in seen else (220, 30, 30) for pair in row] for row in grid]
    out = folder(args.out or args.run)
    path = picture(out, "exchange.png", data["standin"])
    data_prep.sheet(cells, path, gap=4, frames=frames, row_labels=data["static_names"], column_labels=data["transient_names"])
    print(f"{rows} x {columns} pairs, {sum(frame is not None for row in frames for frame in row)} of them unseen and framed: {path}")
    return 0


def interpolate(args):
    """Fig. 7: frames between two frames of a clip; or, with --fps-factor, between all of its frames."""
    kept, model, device = load_run(args)
    data, L = kept["data"], kept["data"]["L"]
    if not 0 <= args.clip < data["clips"]:
        raise RunError(f"--clip {args.clip}: 0 to {data['clips'] - 1}")
    a, b = args.frames
    if not args.fps_factor and not (1 <= a < b <= L):
        raise RunError(f"--frames {a} {b}: two frames in order, 1 to {L}")
    if args.between < 1 or (args.fps_factor is not None and args.fps_factor < 2):
        raise RunError("--between needs at least 1 and --fps-factor at least 2")
    i, k = ids_on(device, *data["pairs"][args.clip])
    line = partial(between, model, model.z_s.z[i][None], model.z_t.z[k][None], k[None])
    if args.fps_factor:
        video = torch.cat([line(t, t + 1, args.fps_factor - 1)[:-1] for t in range(L - 1)] + [line(0, L - 1, 0)[-1:]]).cpu()
        marks = [t % args.fps_factor != 0 for t in range(len(video))]
    else:
        video = line(a - 1, b - 1, args.between).cpu()
        marks = [0 < t < len(video) - 1 for t in range(len(video))]
    out = folder(args.out or args.run)
    path, across = picture(out, "interpolation.png", data["standin"]), min(len(video), 16)
    rows = [[*video[t:t + across].numpy()] + [None] * (across - len(video[t:t + across])) for t in range(0, len(video), across)]
    frames = [[(220, 30, 30) if mark else None for mark in marks[t:t + across]] + [None] * (across - len(marks[t:t + across]))
              for t in range(0, len(video), across)]
    data_prep.sheet(rows, path, gap=4, frames=frames)
    data_prep.write_gif(video.numpy(), path.with_suffix(".gif"), fps=8 * (args.fps_factor or 1))
    print(f"{data['names'][args.clip]}: {sum(marks)} frames between, framed: {path} and .gif")
    return 0


def encode(args):
    """Codes for a clip that was never trained on, G and R frozen."""
    kept, model, device = load_run(args)
    data, s = kept["data"], kept["settings"]
    if not args.input:
        raise RunError("encode needs --input, a GIF, an animated PNG or WebP, a strip or a folder of frames")
    clip = data_prep.read_clip(args.input)
    if clip.shape[1:3] != (data["size"], data["size"]):
        raise RunError(f"--input {args.input}: frames of {clip.shape[1]} x {clip.shape[2]}; this run's are {data['size']} x {data['size']}: "
                       "crop and resize the clip first")
    clip = clip[::s.every]
    if len(clip) < data["L"]:
        raise RunError(f"--input {args.input}: {len(clip)} frames; this run's clips have {data['L']}" + f" (every {s.every}th)" * (s.every > 1))
    real = torch.from_numpy(clip[None, :data["L"]].copy())
    z_s, z_t, label = find_codes(model, s, real)
    made = draw_codes(model, z_s, z_t, label)
    out = folder(args.out or args.run)
    write_tensors(out / "encoded.pt", dict(z_s=z_s[0].cpu(), z_t=z_t[0].cpu(), label=label[0].item()))
    path, columns = picture(out, "encoded.png", data["standin"]), spread(data["L"], 8)
    data_prep.sheet([real[0][columns].numpy(), made[0][columns].numpy()], path, row_labels=["input", "encoded"])
    data_prep.write_gif(torch.cat([real[0], made[0]], 2).numpy(), path.with_suffix(".gif"))
    numbers = z_s.numel() + z_t.numel()
    print(f"PSNR {psnr(made, real).item():.2f} dB from {numbers} numbers ({4 * numbers} bytes; the clip has {real.numel()}); see {path}")
    return 0


def refuse_parts(args):
    """ablate and bench measure all of a set. Raises RunError where a part of it is asked for."""
    if args.hold_out or args.hold_out_clips or (args.every or 1) > 1:
        raise RunError(f"{args.action} trains on all clips and frames: leave out --hold-out, --hold-out-clips and --every")


# Tables 2 and 4, Chair-CAD: MCS and FCS of the paper, and what a row changes in Settings
ABLATION = {
    "-triplet -static": ((3.83, 0.77), dict(lambda_t=0.0, lambda_s=0.0)),
    "-triplet +static": ((3.82, 0.85), dict(lambda_t=0.0)),
    "+triplet -static": ((3.36, 0.81), dict(lambda_s=0.0)),
    "+triplet +static": ((3.32, 0.89), {}),
    "-R": ((None, None), dict(recurrent=False)),
}
ORDERINGS = [("mcs", "+Z", "-Z"), ("mcs", "+triplet +static", "-triplet -static"), ("mcs", "+triplet -static", "-triplet -static"),
             ("mcs", "+triplet +static", "-triplet +static"), ("fcs", "+Z", "-Z"), ("fcs", "+triplet +static", "-triplet -static"),
             ("fcs", "+triplet +static", "+triplet -static"), ("fcs", "-triplet +static", "-triplet -static")]


def ablate(args):
    """Tables 4a and 4b, and -R, a row that the paper lacks: each variant at the same seed and steps, 500 generated clips."""
    device = choose_device(args.device)
    clips, row = find_clips(args)
    lay_out(clips, args.layout)
    base, _ = choose_settings(args, row, clips, device)
    if args.seeds < 1:
        raise RunError(f"--seeds {args.seeds}: at least 1 is needed")
    if args.generated_clips < 1:
        raise RunError(f"--generated-clips {args.generated_clips}: at least 1 is needed")
    refuse_parts(args)
    vgg16, out = load_vgg16(args.vgg16, device), folder(args.out or f"runs/ablation-{Path(args.dataset).stem}")
    real, results = torch.from_numpy(clips.videos).to(device), {}
    for run in range(args.seeds):
        for name, (_, changes) in ABLATION.items():
            s = replace(base, seed=base.seed + run, **changes)
            trainer, began = Trainer(s, clips, device, args.graph), time.perf_counter()
            for step in range(s.steps):
                *_, loss = trainer.step()
                if (step + 1) % max(1, s.steps // 10) == 0:
                    left = (time.perf_counter() - began) / (step + 1) * (s.steps - step - 1)
                    print(f"seed {s.seed}  {name}  step {step + 1}/{s.steps}  loss {loss[0].item():.4f}  ETA of this row {left:.0f} s",
                          flush=True)
            if not loss.isfinite().all():
                raise RunError(f"ablate, {name}: " + diverged(s.steps, s, out))
            rng = torch.Generator().manual_seed(s.seed)
            m, count = trainer.model, args.generated_clips
            i, k = (torch.randint(len(d.z), (count,), generator=rng).to(device) for d in (m.z_s, m.z_t))
            own = m.videos(*ids_on(device, clips.static_id, clips.transient_id))
            found = dict(scores(m.videos(i, k), real, *vgg16), psnr=psnr(own, real).mean().item())
            results.setdefault(name, []).append(found)
            if not changes:  # Table 4a: the same G and R, with codes that nobody learned
                fresh = [unit_ball(torch.randn(count, *d.z.shape[1:], generator=rng) / d.z.shape[-1] ** 0.5).to(device) for d in (m.z_s, m.z_t)]
                made = torch.cat([draw_codes(m, *part) for part in zip(fresh[0].split(16), fresh[1].split(16), k.split(16))]).to(device)
                results.setdefault("-Z", []).append(scores(made, real, *vgg16))
                results.setdefault("+Z", []).append(found)
            write_json(out / "ablation-so-far.json", results)  # a row takes as long as a run: none is lost
    paper = dict({name: values for name, (values, _) in ABLATION.items()}, **{"-Z": (3.96, 0.75), "+Z": (3.32, 0.89)})
    if row != "chair":  # the paper's Table 4 is of chairs
        paper = dict.fromkeys(paper, (None, None))

    def mean_and_spread(name, key):
        values = [found[key] for found in results[name] if found.get(key) is not None]
        return (None, None) if not values else (float(np.mean(values)), float(np.std(values)))

    def cell(value, digits=2):
        return "-" if value is None else f"{value:.{digits}f}"

    lines = [f"{clips.source}; {base.steps} steps, {args.seeds} seed(s), {args.generated_clips} generated clips a row; "
             f"FCS bound {results['+Z'][0]['fcs_bound']:.2f} (paper's chairs: 0.91){'; DRAWN STAND-INS' if clips.standin else ''}",
             "", "| | MCS, paper | MCS, ours | FCS, paper | FCS, ours | PSNR |", "|---|---|---|---|---|---|"]
    for name in ("-Z", "+Z", *ABLATION):
        (m, m_spread), (f, f_spread), (dB, _) = (mean_and_spread(name, key) for key in ("mcs", "fcs", "psnr"))
        spreads = [f" +- {value:.2f}" if args.seeds > 1 and value is not None else "" for value in (m_spread, f_spread)]
        theirs = [cell(value) for value in paper[name]]
        lines.append(f"| {name} | {theirs[0]} | {cell(m)}{spreads[0]} | {theirs[1]} | {cell(f, 3)}{spreads[1]} | {cell(dB)} |")
    verdicts = []
    for key, better, worse in ORDERINGS if row == "chair" else []:
        pairs = [(a.get(key), b.get(key)) for a, b in zip(results[better], results[worse])]  # seed by seed
        found = {None if a is None else a < b if key == "mcs" else a > b for a, b in pairs}
        holds = found.pop() if len(found) == 1 else "seeds disagree"
        verdicts.append(dict(measure=key, better=better, worse=worse, holds=holds))
        said = {None: "not measured", True: "so have we", False: "we have not"}.get(holds, "our seeds disagree")
        lines += [""] * (len(verdicts) == 1) + [f"- {key.upper()}: the paper has {better} better than {worse}; {said}"]
    text = "\n".join(lines)
    write_text(out / "ablation.md", text)
    write_json(out / "ablation.json", dict(source=clips.source, standin=clips.standin, settings=asdict(base), seeds=args.seeds,
                                           ours=results, paper=paper, orderings=verdicts, device=str(device), torch=str(torch.__version__),
                                           commit=commit()))
    (out / "ablation-so-far.json").unlink()
    print(f"{text}\nsee {out}")
    return 0


def bench(args):
    """Where the time of a training step goes on this device; with --seconds S, what both recipes reach in S seconds."""
    device = choose_device(args.device)
    clips, row = find_clips(args)
    lay_out(clips, args.layout)
    refuse_parts(args)
    if args.seconds is not None:
        return bench_recipes(args, clips, row, device)
    s, why = choose_settings(args, row, clips, device)
    s.steps = max(s.steps, 400)                                                         # G's norms rest by the middle
    trainer = Trainer(s, clips, device, args.graph)
    m, batches, wait = trainer.model, trainer.batches, torch.accelerator.synchronize if device.type != "cpu" else lambda: None
    for _ in range(10):
        v, v_hat, _ = trainer.step()
    trainer.steps_done = s.steps // 2                                                   # G's norms as in most steps
    trainer.step()
    static_ids, transient_ids, times, v = batches.gather(*batches.deal())
    rows = transient_ids.unique() if device.type == "cpu" else transient_ids
    codes = torch.randn(len(v), s.D_s + s.D_t, device=device, requires_grad=True)
    label, dl_dv, grads = transient_ids.repeat_interleave(batches.F), torch.randn_like(v_hat), {p: torch.randn_like(p) for p in m.parameters()}
    r = m.R(m.z_t.rows(rows)).detach().requires_grad_()

    def generator():
        with torch.autocast(device.type, torch.bfloat16, enabled=m.bf16):
            v_hat = m.G(codes, label)
        v_hat.backward(dl_dv.to(v_hat.dtype))
        m.zero_grad()

    def recurrent():
        z_t = m.z_t.rows(rows)
        m.R(z_t).backward(r.detach())
        m.zero_grad()

    def losses():
        laplacian_l1_with_grad(v_hat, v, batches.weight, s.levels)
        triplet_margin(r, float(s.alpha), s.alpha).sum().backward()

    def updates():
        for p, grad in grads.items():
            p.grad = grad
        for optimiser in (*trainer.optimisers_G, trainer.optimiser_R):
            optimiser.step()
        m.zero_grad()
        m.z_s.update(static_ids, m.z_s.z[static_ids], trainer.lr_Z)
        m.z_t.update(rows, m.z_t.z[rows], trainer.lr_Z)

    def refresh():
        for optimiser in trainer.optimisers_G[1:]:
            optimiser.refresh()

    def on_device(part):  # what the step's graph would launch
        if not trainer.use_graph:
            return part
        for _ in range(3):
            part()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            part()
        return graph.replay

    parts = {"step": trainer.step, "generator": on_device(generator), "GRU": on_device(recurrent), "losses": on_device(losses),
             "updates": on_device(updates), "refresh": refresh, "gather": lambda: batches.gather(*batches.deal())}
    took = {name: [] for name in parts}
    for turn in range(40):  # in turn, so that a slow moment of the machine meets all of them
        for name, part in parts.items():
            wait()
            began = time.perf_counter()
            part()
            wait()
            took[name].append(time.perf_counter() - began)
    ms = {name: 1000 * float(np.median(values[5:])) for name, values in took.items()}
    every_eighth = ms.pop("refresh") / 8
    ms["updates"], ms["step"] = ms["updates"] + every_eighth, ms["step"] + every_eighth
    ms["the rest"] = ms["step"] - sum(ms[name] for name in ms if name != "step")
    print(f"{device}, {s.precision} ({why}); {s.batch} clips x {batches.F} frames a step, width {s.width}; medians of {turn + 1 - 5} turns")
    for name, value in ms.items():
        print(f"{name:10} {value:8.2f} ms  {value / ms['step']:5.0%}")
    print(f"ratio: {ms['step'] / ms['generator']:.2f}")
    return 0


def bench_recipes(args, clips, row, device, looks=16):
    """dB over the seconds of training, fast recipe and paper recipe, as a table, bench.csv and bench.png."""
    if not 1 <= args.seconds <= 10 ** 6:
        raise RunError(f"--seconds {args.seconds:g}: 1 to 1,000,000")
    shown = spread(len(clips.names), 64)
    real, ids = torch.from_numpy(clips.videos[shown]).to(device), ids_on(device, clips.static_id[shown], clips.transient_id[shown])
    out, curves, lines = folder(args.out or f"runs/bench-{Path(args.dataset).stem}"), {}, ["recipe,seconds,steps,psnr"]
    for recipe in ("fast", "paper"):
        s, _ = choose_settings(argparse.Namespace(**{**vars(args), "recipe": recipe}), row, clips, device)
        if recipe == "fast" and args.steps is None:  # as many steps as its schedule has time for
            trial, took = Trainer(s, clips, device, args.graph), []
            trial.steps_done = s.steps // 2
            for _ in range(30):
                began = time.perf_counter()
                trial.step()[2].cpu()
                took.append(time.perf_counter() - began)
            s = replace(s, steps=max(1, int(args.seconds / np.median(took[5:]))))
        trainer, seconds, curve = Trainer(s, clips, device, args.graph), 0.0, curves.setdefault(recipe, ([], []))
        for look in range(1, looks + 1):
            began = time.perf_counter() - seconds
            while time.perf_counter() - began < args.seconds * look / looks and trainer.steps_done < s.steps:
                trainer.step()[2].cpu()
            seconds = time.perf_counter() - began
            curve[0].append(seconds)
            curve[1].append(psnr(trainer.model.videos(*ids), real).mean().item())
            lines.append(f"{recipe},{seconds:.1f},{trainer.steps_done},{curve[1][-1]:.2f}")
            print(f"{recipe:5}  {seconds:6.1f} s  {trainer.steps_done:6} updates  {trainer.steps_done / seconds:6.1f} a second  "
                  f"{curve[1][-1]:5.2f} dB", flush=True)
            if trainer.steps_done == s.steps:
                break
    write_text(out / "bench.csv", "\n".join(lines))
    data_prep.chart(picture(out, "bench.png", clips.standin), curves, f"seconds of training; {clips.source.split(':')[0][:60]}", "PSNR, dB")
    print(f"{device}: {picture(out, 'bench.png', clips.standin)} and bench.csv")
    return 0


# ---- the command line ------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    def error(self, message):  # one line, exit status 2
        self.exit(2, f"nav: {message}; python nav.py --help lists the options\n")


def parse(argv):
    parser = Parser(description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("action", nargs="?", default="train", choices=ACTIONS, help="what to do")
    add("--dataset", default="chair", help="chair, weizmann, golf, or a prepared PATH.npz")
    add("--run", help="the folder of a trained run, for every action but train")
    add("--out", help="where to write (default: runs/NAME, or --run)")
    add("--recipe", choices=("fast", "paper"), default="fast", help="ours, or Table 6 to the letter")
    add("--layout", choices=("file", "static", "grid", "both", "transient"), default="file", help="which clips share codes; file: as prepared")
    add("--window", choices=("first", "random"), default="first", help="frames of a longer clip")
    add("--rank", type=int, help="rho of Eq. 7, for interpolation (default: full)")
    add("--clips", type=int, help="use the first N clips; draw N stand-ins")
    add("--steps", type=int, help="updates (default: 2650, a grid 2250; paper recipe: Table 6's updates a clip)")
    add("--batch", type=int, help="clips a step (default: 32, on a GPU 128; paper: 1)")
    add("--per-clip", type=int, metavar="F", help="frames of each clip in a step, at random (default: 1; paper and 0: all)")
    add("--width", type=int, help="channels of the generator (default: 32, on a GPU 64)")
    add("--levels", type=int, help="of the Laplacian pyramid (default: Table 6)")
    add("--lr-G", type=float, help="rate of the generator")
    add("--lr-R", type=float, help="rate of the GRU")
    add("--lr-Z", type=float, help="rate of the codes")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="auto: cuda, then mps, then cpu")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of the generator; auto: bf16 where it is faster")
    add("--seed", type=int, help="of everything drawn at random (default: 0)")
    add("--no-graph", dest="graph", action="store_false",
        help="on a GPU: launch a step's kernels one by one, not as one CUDA graph (as with --rank and among processes)")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    add("--checkpoint-every", type=float, default=20, metavar="SECONDS", help="between checkpoints")
    add("--vgg16", metavar="PATH", help="weights for the MCS; `download` fetches torchvision's (528 MB); default: torch hub's cache")
    add("--no-conditional", dest="conditional", action="store_const", const=False, help="a grid's generator without the action as a label")
    add("--hold-out", type=int, metavar="K", help="keep K cells of a grid from training")
    add("--hold-out-clips", type=int, metavar="K", help="keep the last K clips from training")
    add("--every", type=int, metavar="K", help="train on every K-th frame")
    add("--count", type=int, default=16, help="sample: how many videos")
    add("--prior", choices=("dictionary", "gaussian"), default="dictionary", help="sample: where static codes come from")
    add("--clip", type=int, default=0, help="interpolate: the clip's number, from 0")
    add("--frames", type=int, nargs=2, default=(2, 5), metavar=("A", "B"), help="interpolate: between these frames, from 1")
    add("--between", type=int, default=3, help="interpolate: how many frames")
    add("--fps-factor", type=int, metavar="K", help="interpolate: the whole clip at K times its frames")
    add("--input", metavar="CLIP", help="encode: the clip")
    add("--generated", metavar="DIR", help="evaluate: clips that other software made, a folder or an .npz")
    add("--real", metavar="NPZ", help="evaluate: the prepared set they are compared with")
    add("--seeds", type=int, default=1, help="ablate: how many seeds")
    add("--seconds", type=float, metavar="S", help="bench: train with both recipes for S seconds each; other options hold for both")
    add("--generated-clips", type=int, default=500, help="ablate: clips that each row generates")
    return parser.parse_args(argv)


ACTIONS = {action.__name__: action for action in (train, evaluate, sample, exchange, interpolate, encode, ablate, bench)}


def keep_freed_memory():
    """Linux: what a step frees stays with the process. glibc hands large blocks back, and the next step faults the same pages in again."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):  # musl has none
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
        mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)


def main(argv=None):
    args = parse(argv)
    keep_freed_memory()
    try:
        if args.seed is not None and not 0 <= args.seed < 2 ** 63:
            raise RunError(f"--seed {args.seed}: 0 or more, under 2^63")
        if args.run and args.action in ("train", "ablate", "bench"):
            raise RunError(f"--run names a trained run; {args.action} writes to --out")
        if args.resume and args.action != "train":
            raise RunError(f"--resume goes with train, not with {args.action}")
        if args.action != "train" and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise RunError(f"{args.action} runs in one process, without torchrun")
        return ACTIONS[args.action](args)
    except (RunError, DataError) as error:
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:  # every process finds the same fault: one line a machine
            print(f"nav: {error}", file=sys.stderr)
    except OSError as error:
        print(f"nav: {error.filename or 'a file'}: {error.strerror or error}; check the path, its permissions and the free space",
              file=sys.stderr)
    except KeyboardInterrupt:
        print("nav: interrupted", file=sys.stderr)
        return 130
    except RuntimeError as error:
        rank, count = ranks()
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        print(f"nav: process {rank} of {count} stops, since another one is gone; start all of them again with --resume "
              f"({one_line(error)[:120]})", file=sys.stderr, flush=True)
        os._exit(2)  # the way out through the broken connections may end in an abort
    return 2


if __name__ == "__main__":
    sys.exit(main())
