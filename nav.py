"""Non-Adversarial Video Synthesis with Learned Priors (Aich et al., CVPR 2020), the paper in one script.

    python nav.py --dataset chair                        train, measure, show: all in runs/chair
    python nav.py --dataset mine                         the same on your own clips (see data_prep.py)
    python nav.py --dataset chair --resume               go on where a stopped run was
    python nav.py sample --run runs/chair --count 16     videos from random pairs of learned codes
    torchrun --nproc_per_node=2 nav.py --dataset chair   several GPUs, machines or processors

There is no encoder and no discriminator: the codes of a video are parameters. One static code z_s says what a
clip shows, L transient codes z_t say how it moves; a GRU R correlates the transient ones, a DCGAN generator G
makes frame i of [z_s ; r_i], and Eq. 6 fits codes, R and G together. N clips have L frames of H x W, a step
takes B of them and F frames of each; codes have D_s and D_t numbers, i and k are rows of z_s and z_t.
"""
import argparse
import io
import json
import math
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.profiler import profile, record_function
from torch.utils.benchmark import Timer

import data_prep
from data_prep import DataError, commit, complain, printable, take_folder, write
from fast import Muon, augment, codes_from_clips, keep_freed_memory, schedule, start_like_codes
from kernels import backend, laplacian_l1_with_grad, triplet_margin
from kernels.graph import Captured
from kernels.gru import gru
from measures import load_vgg16, mean_ssim, nearest, psnr, scores, scores_in_words
from processes import (LOCAL_RANK, RANK, WORLD, all_reduce, all_reduce_gradients, from_all, join_processes,
                       say, share_of_process, sum_shared_rows)

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # same seed, same GPU, same result
torch.backends.cudnn.deterministic = True
torch.backends.cudnn.conv.fp32_precision = "ieee"  # SSIM subtracts means that are nearly equal
torch.backends.cudnn.rnn.fp32_precision = "tf32"  # R alone

# ---- settings (Table 6) ------------------------------------------------------------------------------------
def setting(default, help, least=None, choices=None):
    """A field of Settings: its default, the help of its option, and the least value or the choices of it."""
    return field(default=default, metadata=dict(help=help, least=least, choices=choices))

@dataclass
class Settings:
    """Everything that decides what is learned. Each field is an option: lambda_t is --lambda-t."""
    D_s: int = setting(206, "numbers in a static code; a grid, golf 56 (this and the next five: Table 6)", 1)
    D_t: int = setting(50, "numbers in each transient code; a grid, golf 200", 1)
    lambda_s: float = setting(0.01, "weight of l_static in Eq. 6", 0)
    lambda_t: float = setting(0.01, "weight of l_triplet in Eq. 6; a grid 0.1", 0)
    alpha: int = setting(2, "the triplet's margin, and its radius in frames (Eq. 5)", 1)
    levels: int = setting(4, "levels of the Laplacian pyramid; a grid 3", 1)
    lr_G: float = setting(2e-3, "rate of the generator: Adam, in the fast recipe Muon too", 1e-12)
    lr_R: float = setting(2e-3, "rate of the GRU: Adam", 1e-12)
    lr_Z: float = setting(5e-3, "rate of the codes: Adam; paper: SGD with momentum 0.9", 1e-12)
    recipe: str = setting("fast", "fast: many clips a step, one backward; paper: Sec. 3.1's two stages with "
                                  "Table 6's rates and updates", choices=("fast", "paper"))
    layout: str = setting("file", "which clips share codes; file: as prepared",
                          choices=("file", "static", "grid", "both", "transient"))
    steps: int = setting(2650, "updates; a grid 3000, many clips more; paper: Table 6's for every clip", 1)
    batch: int = setting(32, "most clips in a step; on a GPU 128; paper 1", 1)
    per_clip: int = setting(1, "random frames of each clip in a step; 0 and paper: all", 0)
    width: int = setting(32, "channels of the generator before its last layer; fast, on a GPU 64", 1)
    conditional: bool = setting(False, "G takes the transient row as a label; paper, a grid: yes")
    recurrent: bool = setting(True, "--no-recurrent: without R, every frame has a free code of its own")
    hold_out: int = setting(0, "train: cells of a grid to keep from it", 0)
    hold_out_clips: int = setting(0, "train: clips to keep from it, the last ones", 0)
    every: int = setting(1, "train: on every K-th frame", 1)
    window: str = setting("first", "L frames of a longer clip; random: others in each step; aligned (fast on "
                                   "a grid): those in which people move alike",
                          choices=("first", "random", "aligned"))
    augment: bool = setting(False, "shift and recolour frames, tell G so; fast, a grid with --hold-out: yes")
    decay: float = setting(0.0, "weight decay of G's matrices, times lr_G; fast, a grid 2.5", 0)
    rank: int = setting(0, "rho of Eq. 7, for interpolation; 0: full rank", 0)
    precision: str = setting("auto", "of the generator; auto: bf16 where it is faster; paper: fp32",
                             choices=("auto", "fp32", "bf16"))
    seed: int = setting(0, "of everything that is drawn at random", 0)

TABLE_6 = {  # the codes and the losses, for both recipes
    "chair": dict(D_s=206, D_t=50, lambda_s=0.01, lambda_t=0.01, alpha=2, levels=4),
    "weizmann": dict(D_s=56, D_t=200, lambda_s=0.01, lambda_t=0.1, alpha=2, levels=3),
    "golf": dict(D_s=56, D_t=200, lambda_s=0.01, lambda_t=0.01, alpha=2, levels=4),
}
PAPER_RATES = {  # its other columns, for --recipe paper
    "chair": dict(lr_G=6.25e-5, lr_R=6.25e-5, lr_Z=12.5),
    "weizmann": dict(lr_G=6.25e-5, lr_R=6.25e-3, lr_Z=12.5),
    "golf": dict(lr_G=0.1, lr_R=0.1, lr_Z=12.5),
}
# Table 6's epochs of gamma times those of Z_V and theta, for every clip. The paper does not say how they
# nest: we read 5 rounds of 300 updates, each of both stages.
PAPER_UPDATES = {"chair": 5 * 300, "weizmann": 5 * 700, "golf": 10 * 1000}
# Fast recipe: steps, two or three minutes on two cores, for so many clips; more by the root of their number.
FAST_STEPS = {"chair": (2650, 64), "weizmann": (3000, 36), "golf": (2650, 64)}
HIDDEN = 500  # units of the GRU (Sec. 4.2)
NORM_WARMUP = 0.1  # fast recipe: G's norms use their batch in this share of the steps, at least 100
WARM_UP = 3  # steps whose time is not counted: kernels are compiled, a CUDA graph is captured
HARD_CLIP_POWER = 3.0  # fast recipe: a clip of twice the mean loss comes 2^3 times as often (Batches.choose)

# ---- codes (Sec. 3 and 3.3, Eq. 1 and 7) -------------------------------------------------------------------
def unit_ball(z):
    """z / max(1, |z|) over the last dimension (Sec. 3.3): codes stay in the unit l2 ball."""
    return z / z.norm(dim=-1, keepdim=True).clamp(min=1)

def low_rank(z, rho):
    """Eq. 7: the best rank-rho approximation of each [L, D_t] matrix in z [B, L, D_t].

    Its top rho left singular vectors are eigenvectors of z z^T, which is only L x L."""
    u = torch.linalg.eigh(z @ z.mT)[1][..., -rho:]                           # (B, L, rho)
    return u @ (u.mT @ z)

class Dictionary(nn.Module):
    """z_s or z_t of Eq. 2, all clips': z [rows, D_s] or [rows, L, D_t], an optimiser state for each row.

    Rows are read and written one by one: a step costs the same with 64 clips and 20,000. The optimiser is the
    paper's SGD with momentum 0.9 (`momentum`), or Adam with moments and a step count for each row."""

    def __init__(self, rows, *shape, momentum=False, rank=0):
        super().__init__()
        self.momentum = momentum
        self.rank = rank
        self.shared = True  # with the other processes, if there are any
        z = torch.randn(rows, *shape) / shape[-1] ** 0.5                     # Sec. 3.3's two Gaussians
        self.register_buffer("z", self.project(z))
        self.register_buffer("m", torch.zeros_like(z))
        if not momentum:
            self.register_buffer("v", torch.zeros_like(z))
            self.register_buffer("count", torch.zeros(rows, *(1 for _ in shape)))

    def project(self, z):
        """What every update ends with: rank rho (Eq. 7) where it is asked for, then the unit ball."""
        return unit_ball(low_rank(z, self.rank) if self.rank else z)

    def start_from(self, z):
        """Begin at z, of the dictionary's shape, and a little noise."""
        self.z.copy_(self.project(z + 0.02 * torch.randn_like(z)))

    def codes_of(self, ids):
        """The codes of rows ids [B], as a leaf that collects its gradient."""
        return self.z[ids].requires_grad_()

    @torch.no_grad()
    @record_function("nav: update of codes")
    def update(self, ids, grad, lr):
        """One update of rows ids [B] by grad [B, ...]; clips that share a row add up."""
        if self.shared:
            ids, grad = sum_shared_rows(ids, grad, len(self.z))
        same = ids[:, None] == ids                                           # (B, B)
        g = (same.to(grad.dtype) @ grad.flatten(1)).view_as(grad)            # the sum over a clip's row
        g = g[same.byte().argmax(1)]                                         # the same bits in all of them
        if self.momentum:
            self.m[ids] = 0.9 * self.m[ids] + g
            step = self.m[ids]
        else:
            self.m[ids] = torch.lerp(self.m[ids], g, 0.1)
            self.v[ids] = torch.lerp(self.v[ids], g * g, 0.001)
            self.count[ids] += 1
            count = self.count[ids]
            step = self.m[ids] / (1 - 0.9 ** count) / ((self.v[ids] / (1 - 0.999 ** count)).sqrt() + 1e-8)
        self.z[ids] = self.project(self.z[ids] - lr * step)

# ---- the networks R and G (Sec. 3 and 4.2, Eq. 2) ----------------------------------------------------------
class Recurrent(nn.Module):
    """R: a one-layer GRU from a zero state, then a linear map back, z_t [B, L, D_t] -> r [B, L, D_t]."""

    def __init__(self, D_t):
        super().__init__()
        self.gru = nn.GRU(D_t, HIDDEN, batch_first=True)
        self.out = nn.Linear(HIDDEN, D_t)

    @record_function("nav: R")
    def forward(self, z_t):
        return self.out(gru(self.gru, z_t))

class Generator(nn.Module):
    """G, a DCGAN: codes [M, D_s + D_t] -> frames [M, 3, size, size] in [-1, 1]; size is 4 * 2^k.

    labels > 0 makes it conditional (Mirza & Osindero): the one-hot label enters through a projection of its
    own and takes a quarter of the first layer's channels."""

    def __init__(self, D, size, width, labels=0, augment=False):
        super().__init__()
        channels = [width * 2 ** i for i in reversed(range(int(math.log2(size // 4))))]  # 64: 8w 4w 2w w
        label_channels = channels[0] // 4 if labels else 0
        self.labels = labels
        self.code = nn.Linear(D, 16 * (channels[0] - label_channels), bias=False)  # DCGAN's first layer
        if labels:
            self.label = nn.Linear(labels, 16 * label_channels, bias=False)
        layers = [nn.BatchNorm2d(channels[0]), nn.ReLU(inplace=True)]
        for c_in, c_out in zip(channels, channels[1:]):                      # each doubles the side
            layers += [nn.ConvTranspose2d(c_in, c_out, 4, 2, 1, bias=False)]
            layers += [nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(channels[-1], 3, 4, 2, 1), nn.Tanh())
        for module in self.modules():                                        # DCGAN's initialisation
            if isinstance(module, (nn.Linear, nn.ConvTranspose2d)):
                nn.init.normal_(module.weight, 0, 0.02)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1, 0.02)
        if augment:
            self.augmentation = nn.Linear(4, self.code.out_features, bias=False)
            nn.init.normal_(self.augmentation.weight, 0, 0.02)

    def forward(self, codes, label, numbers=None):                           # (M, D), (M,), (M, 4)
        x = self.code(codes)
        if numbers is not None:                                              # of augmented frames
            x = x + self.augmentation(numbers)
        x = x.view(len(codes), 4, 4, -1)                                     # (M, 4, 4, c), channels last
        if self.labels:
            one_hot = F.one_hot(label, self.labels).to(codes.dtype)
            x = torch.cat([x, self.label(one_hot).view(len(codes), 4, 4, -1)], 3)
        return self.layers(x.permute(0, 3, 1, 2))                            # (M, 3, size, size)

class Model(nn.Module):
    """Z_V, R and G of one data set: what Eq. 6 is minimised over."""

    def __init__(self, s, size, L, static_rows, transient_rows):
        super().__init__()
        momentum = s.recipe == "paper"
        self.z_s = Dictionary(static_rows, s.D_s, momentum=momentum)
        self.z_t = Dictionary(transient_rows, L, s.D_t, momentum=momentum, rank=s.rank)
        self.R = Recurrent(s.D_t) if s.recurrent else nn.Identity()
        labels = transient_rows if s.conditional else 0
        self.G = Generator(s.D_s + s.D_t, size, s.width, labels, s.augment)
        self.bf16 = s.precision == "bf16"

    @record_function("nav: G")
    def render(self, z_s, r, label, numbers=None):
        """G of Eq. 2 with r for z_t: z_s [B, D_s], r [B, T, D_t], label [B] -> [B*T, 3, H, W]."""
        B, T, _ = r.shape
        codes = torch.cat([z_s[:, None].expand(B, T, -1), r], 2).flatten(0, 1)  # (B*T, D_s + D_t)
        with torch.autocast(r.device.type, torch.bfloat16, enabled=self.bf16):
            return self.G(codes, label.repeat_interleave(T), numbers)

# ---- the objective (Sec. 3.1 to 3.3, Eq. 4 to 6) -----------------------------------------------------------
def objective(model, s, batch, z_s, r, row_of_clip):
    """Eq. 6 for one batch, forward and backward: l_rec + lambda_s l_static + lambda_t l_triplet.

    s: the Settings. batch: of Batches.gather. z_s [B, D_s]; r [rows, L, D_t]: what R makes of the transient
    codes, row_of_clip [B] says which of them is whose. Every leaf that asks for a gradient has it afterwards.
    Returns v_hat [B*F, 3, H, W], frame_loss [B*F] and [loss, l_rec, l_triplet], all detached."""
    _, label, times, v, numbers = batch                                      # label: the transient row
    B, n = times.shape                                                       # n: F frames of each clip
    # r[row_of_clip] as a product: its gradient adds up in the same order each time, on a GPU too
    one_hot = F.one_hot(row_of_clip, len(r)).float()                         # (B, rows)
    r_of_clips = (one_hot @ r.flatten(1)).unflatten(1, r.shape[1:])          # (B, L, D_t)
    r_of_frames = r_of_clips.gather(1, times[:, :, None].expand(-1, -1, r.shape[2]))  # (B, F, D_t)
    v_hat = model.render(z_s, r_of_frames, label, numbers)                   # (B*F, 3, H, W)

    weight = torch.full((B, n), 1 / n, device=r.device)                      # l_rec: mean over frames
    weight[:, 0] += s.lambda_s                                              # l_static (Eq. 4): frame k is the
    weight = weight.flatten()                                                # first that gather has drawn
    # frame_loss [B*F]: the Laplacian pyramid L1; dl_dv: the gradient of weight . frame_loss in closed form
    frame_loss, dl_dv = laplacian_l1_with_grad(v_hat, v, weight, s.levels)
    # Eq. 5, the mean over all triplets; on r, not z_t: theta receives its gradient through R
    l_triplet = one_hot @ triplet_margin(r, margin=float(s.alpha), radius=s.alpha)  # (B,)

    # Eq. 6's gradient, summed over clips: a clip's does not depend on how many share the step.
    if l_triplet.requires_grad:
        torch.autograd.backward([v_hat, s.lambda_t * l_triplet.sum()], [dl_dv, None])  # add a new term here
    else:  # stage 1, of G alone
        v_hat.backward(dl_dv)
    l_triplet = l_triplet.detach().mean()
    loss = (frame_loss * weight).sum() / B + s.lambda_t * l_triplet          # and here, for the log
    return v_hat.detach(), frame_loss, torch.stack([loss, frame_loss.mean(), l_triplet])

# ---- training (Sec. 3.1, Eq. 3) ----------------------------------------------------------------------------
def rows_for_R(transient_ids, rows, host_may_wait):
    """Rows of z_t that R runs on, and each clip's place among them [B]: the clips' rows, each once. A GPU's
    host should not wait for their number: all rows, or one for each clip where rows are more than clips."""
    B = len(transient_ids)
    if host_may_wait:
        return transient_ids.unique(return_inverse=True)
    arange = torch.arange(min(rows, B), device=transient_ids.device)
    return (arange, transient_ids) if rows <= B else (transient_ids, arange)

class Trainer:
    """Minimises Eq. 6: the model, its optimisers, the order of the clips, and how far it is.

    `state` is all of it; a trainer that takes it up with `restore` goes on bit for bit (on a CPU)."""

    def __init__(self, s, clips, device, graph=True):
        torch.manual_seed(s.seed)
        _, L, size = clips.videos.shape[:3]
        model = Model(s, size, L, len(clips.static_names), len(clips.transient_names))
        matrices = []
        if s.recipe == "fast":
            z_s, z_t = codes_from_clips(clips, s.D_s, s.D_t)
            model.z_s.start_from(z_s)
            model.z_t.start_from(z_t)
            if s.recurrent:
                start_like_codes(model.R, model.z_t.z)
            matrices = [layer.weight for layer in model.G.layers if isinstance(layer, nn.ConvTranspose2d)]
        clips, self.own_rows = share_of_process(clips, model)
        self.s = s
        self.model = model.to(device, memory_format=torch.channels_last)
        self.batches = Batches(clips, s, device)

        on_cuda = device.type == "cuda"
        rate = partial(torch.zeros, (), device=device)                       # set by step(), read by a graph
        adam = partial(torch.optim.AdamW, fused=device.type != "mps", foreach=False, capturable=on_cuda)
        others = [p for p in model.G.parameters() if all(p is not w for w in matrices)]
        groups = [dict(params=[p for p in others if p.ndim > 1], weight_decay=s.decay),
                  dict(params=[p for p in others if p.ndim == 1], weight_decay=0.0)]  # norms and biases
        self.optimisers_G = [adam(groups, lr=rate(device=device if on_cuda else "cpu"))]
        if matrices:  # G's layers behind the first
            self.optimisers_G.append(Muon(matrices, rate(), weight_decay=s.decay, bf16=model.bf16))
        self.optimiser_R = adam(list(model.R.parameters()) or [torch.zeros(1)],  # without R nothing to train
                                lr=rate(device=device if on_cuda else "cpu"), weight_decay=0.0)
        self.lr_Z = rate()
        self.steps_done = 0
        use_graph = graph and on_cuda and WORLD == 1 and not s.rank          # eigh makes the host wait
        self.captured = Captured(self.update, complain) if use_graph else None

    def step(self):
        """One update. Returns v, v_hat and [loss, l_rec, l_triplet] of its batch; the host does not wait."""
        s = self.s
        fast = s.recipe == "fast"
        rate = schedule(self.steps_done, s.steps) if fast else 1.0
        self.lr_Z.fill_(s.lr_Z * rate)
        self.optimiser_R.param_groups[0]["lr"].fill_(s.lr_R * rate)
        for group in [group for optimiser in self.optimisers_G for group in optimiser.param_groups]:
            group["lr"].fill_(s.lr_G * rate)
        norms_learn = not fast or self.steps_done < max(100, NORM_WARMUP * s.steps)
        if self.model.G.training != norms_learn:
            self.model.G.train(norms_learn)
            if self.captured:
                self.captured.drop()
        try:
            v, v_hat, losses = (self.captured or self.update)(*self.batches.choose())
        except torch.linalg.LinAlgError:  # --rank: what is not finite has no eigenvectors
            raise diverged(self.steps_done + 1, s) from None
        if fast and self.steps_done % Muon.EVERY == 0:
            self.optimisers_G[1].refresh()
        self.steps_done += 1
        return v, v_hat, losses.clone()

    def update(self, clips, rand):
        """What the device does of a step, for what Batches.choose gave."""
        s = self.s
        m = self.model
        batch = self.batches.gather(clips, rand)
        static_ids, transient_ids, _, v, _ = batch
        row_ids, row_of_clip = rows_for_R(transient_ids, len(m.z_t.z), v.device.type == "cpu")
        z_s = m.z_s.codes_of(static_ids)                                     # (B, D_s)
        z_t = m.z_t.codes_of(row_ids)                                        # (rows, L, D_t)
        # ---- BEGIN: the training step ----
        m.zero_grad()
        r = m.R(z_t)                                                         # (rows, L, D_t)
        if s.recipe == "paper":                                              # stage 1 (Eq. 3.1): gamma
            m.G.requires_grad_(True)
            objective(m, s, batch, z_s.detach(), r.detach(), row_of_clip)
            all_reduce_gradients(m)
            self.optimisers_G[0].step()
            m.zero_grad()
            m.G.requires_grad_(False)                                       # stage 2 (Eq. 3.2): Z_V and theta
        v_hat, frame_loss, losses = objective(m, s, batch, z_s, r, row_of_clip)
        all_reduce_gradients(m)
        if s.recipe == "fast":                                               # one backward serves both stages
            for optimiser in self.optimisers_G:
                optimiser.step()
        self.optimiser_R.step()
        m.z_s.update(static_ids, z_s.grad, self.lr_Z)
        first = (row_of_clip[:, None] == row_of_clip).tril(-1).logical_not().all(1)  # z_t.grad is a row's sum
        m.z_t.update(transient_ids, z_t.grad[row_of_clip] * first[:, None, None], self.lr_Z)
        # ---- END: the training step ----
        self.batches.learn(clips, frame_loss)
        return v, v_hat, losses

    def state(self):
        """All of it, the same in every process: rows that live in one process alone are brought together."""
        model = self.model.state_dict()
        for name, row_ids in self.own_rows.items():
            order = torch.cat(from_all(row_ids)).argsort()
            for key in [key for key in model if key.startswith(name)]:
                model[key] = torch.cat(from_all(model[key].cpu()))[order]
        optimisers = [optimiser.state_dict()["state"] for optimiser in (self.optimiser_R, *self.optimisers_G)]
        order = from_all(self.batches.state())
        return dict(model=model, optimisers=optimisers, batches=order, steps_done=self.steps_done)

    def restore(self, state):
        """Take up a state. Returns whether the clips go on in their order (Batches.restore).

        Raises RuntimeError, KeyError, IndexError or ValueError where the state is of another shape."""
        model = dict(state["model"])
        for name, row_ids in self.own_rows.items():
            model.update({key: model[key][row_ids] for key in model if key.startswith(name)})
        self.model.load_state_dict(model)
        for optimiser, kept in zip((self.optimiser_R, *self.optimisers_G), state["optimisers"], strict=True):
            optimiser.load_state_dict(dict(optimiser.state_dict(), state=kept))
        self.steps_done = state["steps_done"]
        return self.batches.restore(state["batches"], self.s.seed + self.steps_done)

# ---- the clips on the device, and their order --------------------------------------------------------------
class Batches:
    """The clips as bytes on the device, and the order in which training meets them."""

    def __init__(self, clips, s, device):
        self.frames = torch.from_numpy(clips.full).to(device)                # (sum of lengths, H, W, 3) uint8
        self.length = torch.from_numpy(clips.length).to(device)              # (N,)
        self.offset = self.length.cumsum(0) - self.length                    # (N,) where each clip begins
        self.static_id = torch.from_numpy(clips.static_id).to(device)
        self.transient_id = torch.from_numpy(clips.transient_id).to(device)
        self.N, self.L = clips.videos.shape[:2]
        self.B = s.batch // WORLD
        self.F = s.per_clip or self.L
        self.s = s
        self.times_met = torch.zeros(self.N, device=device)
        self.clip_loss = torch.ones(self.N, device=device)
        self.rng = torch.Generator(device)
        self.rng.manual_seed(s.seed + 1_000_003 * RANK)                      # other numbers in each process

    @record_function("nav: choose clips")
    def choose(self):
        """The clips of a step [B], no two the same, and random numbers for windows, frames and augmentation:
        [B, L + 1], with --augment [B, L + 1 + 5 F].

        The clips met least often come next, at random among equals: every pass is a new permutation. The fast
        recipe does importance sampling: a meeting counts (mean loss / the clip's loss)^HARD_CLIP_POWER, from
        1/8 to 8, so that hard clips come more often."""
        rand = partial(torch.rand, generator=self.rng, device=self.times_met.device)
        clips = (self.times_met + rand(self.N)).topk(self.B, largest=False).indices
        ease = self.clip_loss.mean() / self.clip_loss[clips].clamp(min=1e-9)
        self.times_met[clips] += (ease ** HARD_CLIP_POWER).clamp(1 / 8, 8) if self.s.recipe == "fast" else 1
        return clips, rand(self.B, self.L + 1 + (5 * self.F if self.s.augment else 0))

    @record_function("nav: gather frames")
    def gather(self, clips, rand):
        """static_id [B], transient_id [B], times [B, F], v uint8 [B*F, 3, H, W] of chosen clips: F different
        frames of each, in random order, of which the first is the k of l_static; and what `augment` gives."""
        times = rand[:, 1:self.L + 1].argsort(1)[:, :self.F]
        offset = self.offset[clips]
        if self.s.window == "random":
            offset = offset + (rand[:, 0] * (self.length[clips] - self.L + 1)).long()
        v = self.frames[offset[:, None] + times]                             # (B, F, H, W, 3)
        v = v.flatten(0, 1).permute(0, 3, 1, 2)
        numbers = None
        if self.s.augment:
            v, numbers = augment(v, rand[:, self.L + 1:].reshape(-1, 5))
        return self.static_id[clips], self.transient_id[clips], times, v, numbers

    def learn(self, clips, frame_loss):
        """Keep a running mean of each clip's loss: clips [B], frame_loss [B*F]."""
        self.clip_loss[clips] = self.clip_loss[clips].lerp(frame_loss.view(self.B, self.F).mean(1), 0.1)

    def state(self):
        return dict(times_met=self.times_met.cpu(), clip_loss=self.clip_loss.cpu(), rng=self.rng.get_state())

    def restore(self, states, seed):
        """Go on from the states of all processes -> True; or begin anew by `seed`, where other processes or
        another kind of device left them -> False. Raises KeyError or RuntimeError for anything else."""
        if len(states) != WORLD or len(states[RANK]["rng"]) != len(self.rng.get_state()):
            self.rng.manual_seed(seed + 1_000_003 * RANK)
            return False
        self.times_met.copy_(states[RANK]["times_met"])
        self.clip_loss.copy_(states[RANK]["clip_loss"])
        self.rng.set_state(states[RANK]["rng"].cpu())
        return True

# ---- videos of codes ---------------------------------------------------------------------------------------
def to_bytes(frames):
    """Frames [M, 3, H, W] in [-1, 1] -> uint8 [M, H, W, 3]."""
    return frames.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

@torch.no_grad()
def videos_of(model, z_s, z_t, label, n=16):
    """Clips of codes [K, D_s] and [K, L, D_t], label [K] -> uint8 [K, L, H, W, 3]. Puts G in eval mode."""
    model.G.eval()
    parts = zip(z_s.split(n), z_t.split(n), label.split(n))
    frames = torch.cat([to_bytes(model.render(z, model.R(t), k)) for z, t, k in parts])
    return frames.unflatten(0, z_t.shape[:2])

def videos(model, static_id, transient_id):
    """Clips of pairs of dictionary rows, int64 [K] and [K], arrays or tensors -> uint8 [K, L, H, W, 3]."""
    i, k = (torch.as_tensor(ids, device=model.z_s.z.device) for ids in (static_id, transient_id))
    return videos_of(model, model.z_s.z[i], model.z_t.z[k], k)

# ---- what is asked for: device, settings, clips ------------------------------------------------------------
def choose_device(name):
    """auto, cpu, cuda or mps -> torch.device. Raises DataError, RuntimeError for a vain NAV_KERNELS."""
    mps = torch.backends.mps.is_available() and WORLD == 1
    there = dict(cuda=torch.cuda.is_available(), mps=mps, cpu=True)
    name = next(filter(there.get, there)) if name == "auto" else name
    if not there[name]:
        raise DataError(f"--device {name}: this machine or this PyTorch has none; use --device cpu")
    if name == "cuda" and WORLD > 1:
        if LOCAL_RANK >= torch.cuda.device_count():
            raise DataError(f"{torch.cuda.device_count()} GPUs: fewer --nproc_per_node, or --device cpu")
        torch.cuda.set_device(LOCAL_RANK)
    backend(name)
    return torch.device(name)

def choose_settings(args, clips, device):
    """Table 6's row, the recipe's values, the options -> (Settings, Clips, why this precision). DataError."""
    all_N, all_L, H, W, _ = clips.videos.shape
    N = max(1, all_N - (args.hold_out or 0) - (args.hold_out_clips or 0))    # clips to train on
    name = Path(args.dataset).stem
    row = name if name in TABLE_6 else "weizmann" if clips.grid else "chair"
    steps, clips_then = FAST_STEPS[row]
    values = dict(TABLE_6[row], steps=round(steps * max(1, N / clips_then) ** 0.5))
    if args.recipe == "paper":
        values.update(PAPER_RATES[row], conditional=row == "weizmann", batch=1, per_clip=0, precision="fp32",
                      steps=PAPER_UPDATES[row] * N)  # in bf16 R may diverge at the grid's lr_R
    elif row == "weizmann":
        values.update(window="aligned", augment=bool(args.hold_out), decay=2.5)
    if args.recipe != "paper" and device.type == "cuda":
        values.update(width=64, batch=128)
    asked = {f.name: getattr(args, f.name) for f in fields(Settings)}
    s = Settings(**values | {name: value for name, value in asked.items() if value is not None})
    most = N if device.type == "cpu" else -(-N // 2)  # of few clips half, so that hard ones come more often
    if s.batch > most:  # fewer clips than a step takes: more frames of each, about as many in all
        if args.per_clip is None:
            s.per_clip = min(s.per_clip * round(s.batch / most), all_L // s.every)
        s.batch = most
    why = "asked for" if args.precision else "the recipe's"
    if s.precision == "auto":
        fast = (torch.cuda.get_device_capability(device) >= (8, 0) if device.type == "cuda" else
                torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
        s.precision = "bf16" if fast and device.type != "mps" else "fp32"
        why = "the faster here"
    L = -(-all_L // s.every)
    for wrong, text in (
        (s.hold_out and s.hold_out_clips, "--hold-out and --hold-out-clips: one run takes one of the two"),
        (s.hold_out_clips >= all_N, f"--hold-out-clips {s.hold_out_clips}: of {all_N}, one must be left"),
        (L < s.alpha + 2, f"clips of {L} frames hold no triplet of radius {s.alpha}; data_prep.py --frames"),
        (s.per_clip > L, f"--per-clip {s.per_clip}: at most {L}, or 0 for all frames of a clip"),
        (H != W or H not in data_prep.SIDES, f"frames of {H} x {W}: G makes squares of {data_prep.SIDES} "
                                             "pixels; prepare clips with data_prep.py --size 64"),
        (s.levels > math.log2(H), f"--levels {s.levels}: at most {int(math.log2(H))} for {H} pixels"),
        (s.rank > min(L, s.D_t), f"--rank {s.rank}: at most {min(L, s.D_t)} for codes of {L} x {s.D_t}"),
        (s.batch % WORLD or N < WORLD, f"--batch {s.batch}: as many for each of {WORLD} processes"),
    ):
        if wrong:
            raise DataError(text)
    return s, data_prep.aligned(clips, unseen(clips, s)) if s.window == "aligned" else clips, why

def unseen(everything, s):
    """--hold-out, --hold-out-clips -> indices of the clips that are kept from training. Raises DataError.
    Table 3: cells of the grid are drawn with the seed; every person and every action stays in some clip."""
    N = len(everything.names)
    held_out = list(range(N - s.hold_out_clips, N))
    left_i = np.bincount(everything.static_id)
    left_k = np.bincount(everything.transient_id)
    for j in np.random.default_rng(s.seed).permutation(N):
        i, k = everything.static_id[j], everything.transient_id[j]
        if len(held_out) < s.hold_out and left_i[i] > 1 and left_k[k] > 1:
            held_out.append(j)
            left_i[i] -= 1
            left_k[k] -= 1
    if len(held_out) < s.hold_out:
        raise DataError(f"--hold-out {s.hold_out}: at most {len(held_out)} of these {N} cells can stay "
                        "out with every row and column still seen; a grid has more (folder --grid)")
    return held_out

def keep_from_training(everything, s):
    """--hold-out, --hold-out-clips, --every -> (the Clips to train on, the Clips kept from it). DataError."""
    held_out = unseen(everything, s)
    if not held_out and s.every == 1:
        return everything, None
    train_set = data_prep.subset(everything, np.delete(range(len(everything.names)), held_out), s.every)
    train_set = data_prep.compact(train_set) if s.hold_out_clips else train_set
    return train_set, data_prep.subset(everything, held_out) if held_out else None

# ---- a run's folder ----------------------------------------------------------------------------------------
def packed(tensors):
    """What torch.save writes, as bytes: a full disk is then an OSError, not one of torch's own."""
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()

def read_checkpoint(folder):
    """The checkpoint of a run's folder -> dict of tensors and plain values. Raises DataError."""
    path = Path(folder, "checkpoint.pt")
    if not path.is_file():
        raise DataError(f"{path}: no checkpoint there; train first, or name another folder")
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        kept["settings"] = Settings(**kept["settings"])
        for key in ("model", "optimisers", "batches", "steps_done", "log"):
            kept[key], kept["data"]["asked_clips"]
        return kept
    except Exception as error:  # whatever damaged bytes or another version make torch raise
        raise DataError(f"{path}: not a checkpoint of this script ({printable(repr(error), 120)})") from None

def load_run(args):
    """--run and --out -> (settings, data, Model on the chosen device, log, folder to write to). DataError."""
    if not args.run:
        raise DataError(f"{args.action} needs --run DIR, the folder of a trained run")
    kept = read_checkpoint(args.run)
    s, data, log = kept["settings"], kept["data"], kept["log"]
    try:
        rows = (len(data["static_names"]), len(data["transient_names"]))
        model = Model(s, data["size"], data["frames"], *rows)
        model.load_state_dict(kept["model"])
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{args.run}/checkpoint.pt: of another shape ({printable(error, 120)})") from None
    model.to(choose_device(args.device), memory_format=torch.channels_last)
    return s, data, model, log, Path(args.out or args.run)

def clips_of_run(args, s, data):
    """All Clips that a run was given: of --dataset, or where they lay then. Raises DataError."""
    name = args.dataset or data["path"] or data["dataset"]
    drawn = not data["path"] and args.dataset in (None, data["dataset"])
    if not drawn and not data_prep.data_path(name).is_file():
        raise DataError(f"{args.run}: its clips are not at {data_prep.data_path(name).resolve()}; --dataset "
                        "PATH.npz says where they are")
    clips, _ = data_prep.find(name, data["asked_clips"], s.layout, drawn)
    clips = data_prep.aligned(clips, unseen(clips, s)) if s.window == "aligned" else clips
    if clips.fingerprint != data["fingerprint"]:
        raise DataError(f"{name} does not hold the clips that {args.run} was trained on "
                        f"({data['source'][:60]}); --dataset names those, or train afresh")
    return clips

def show(out, name, data, rows, video=None, fps=8, **more):
    """A sheet NAME.png of rows (data_prep.sheet) and NAME.gif of video uint8 [L, H, W, 3] -> the PNG's path.
    What was trained on drawn stand-ins says so in its name."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}{'-standin' if data['standin'] else ''}.png"
    if rows:
        data_prep.sheet(rows, path, **more)
    if video is not None:
        data_prep.write_gif(video, path.with_suffix(".gif"), fps)
    return path

def spread(n, k):
    """k indices spread evenly over range(n), ends included."""
    return [round(j) for j in np.linspace(0, n - 1, min(k, n))]

# ---- what was kept from training (Sec. 4.3) ----------------------------------------------------------------
def measure_exchange(model, s, train_set, held_out):
    """Table 3 and Fig. 6 as numbers: dB of pairs kept from training, and of two baselines that need no model.

    nearest: the person's training clip that is closest to the truth, as good as a copy can be. additive: the
    person's mean clip + the action's mean clip - the mean clip, pixel by pixel."""
    real = torch.from_numpy(held_out.videos[:, ::s.every])
    clips = torch.from_numpy(train_set.videos).float()
    made = videos(model, held_out.static_id, held_out.transient_id).cpu()
    found = dict(exchange_psnr=psnr(made, real), exchange_nearest_psnr=[], exchange_additive_psnr=[])
    for truth, i, k in zip(real, held_out.static_id, held_out.transient_id):
        same_person = clips[train_set.static_id == i]
        additive = same_person.mean(0) + clips[train_set.transient_id == k].mean(0) - clips.mean(0)
        found["exchange_nearest_psnr"].append(psnr(same_person, truth.expand_as(same_person)).max())
        found["exchange_additive_psnr"].append(psnr(additive.clamp(0, 255)[None], truth[None]))
    return {name: torch.as_tensor(dB).mean().item() for name, dB in found.items()}

def find_codes(model, s, clips, steps=300, lr=0.02):
    """Codes of clips never trained on, uint8 [K, L, H, W, 3] -> z_s [K, D_s], z_t [K, L, D_t], label [K].

    From the closest of up to 512 pairs of dictionary rows, Adam on l_rec, projected; G and R stay."""
    clips = clips.to(model.z_s.z.device)
    pairs = torch.cartesian_prod(torch.arange(len(model.z_s.z)), torch.arange(len(model.z_t.z)))
    some = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))[:512]
    pairs = pairs[some].to(clips.device)
    i, label = pairs[nearest(clips, videos(model, *pairs.T))[0]].T
    z_s = model.z_s.codes_of(i)
    z_t = model.z_t.codes_of(label)
    v = clips.flatten(0, 1).permute(0, 3, 1, 2)
    weight = torch.full((len(v),), 1 / clips.shape[1], device=clips.device)
    adam = torch.optim.Adam([z_s, z_t])
    for step in range(steps):
        adam.param_groups[0]["lr"] = lr * schedule(step, steps)
        v_hat = model.render(z_s, model.R(z_t), label)
        _, dl_dv = laplacian_l1_with_grad(v_hat, v, weight, s.levels)
        z_s.grad, z_t.grad = torch.autograd.grad(v_hat, (z_s, z_t), dl_dv)
        adam.step()
        with torch.no_grad():
            z_s.copy_(model.z_s.project(z_s))
            z_t.copy_(model.z_t.project(z_t))
    return z_s.detach(), z_t.detach(), label

def measure_encoding(model, s, train_set, held_out):
    """dB of clips kept from training, by codes found for them, and of the closest training clip, a copy."""
    real = torch.from_numpy(held_out.videos[:, ::s.every])
    clips = torch.from_numpy(train_set.videos)
    generated = torch.cat([videos_of(model, *find_codes(model, s, part)).cpu() for part in real.split(8)])
    copies = torch.stack([psnr(clips, truth.expand_as(clips)).max() for truth in real])
    return dict(encode_psnr=psnr(generated, real).mean().item(), encode_nearest_psnr=copies.mean().item())

@torch.no_grad()
def frames_between(model, pair, a, b, K):
    """Fig. 7: K frames between frames a and b (from 0) of the clip of a pair of dictionary rows, on the line
    between their outputs of R (the paper: z_t) -> uint8 [K + 2, H, W, 3] on the CPU, with both ends."""
    i, k = torch.as_tensor(pair, device=model.z_s.z.device)[:, None]
    model.G.eval()
    r = model.R(model.z_t.z[k])
    share = torch.linspace(0, 1, K + 2, device=r.device)[:, None]
    return to_bytes(model.render(model.z_s.z[i], (r[0, a] + share * (r[0, b] - r[0, a]))[None], k)).cpu()

def measure_interpolation(model, s, everything, train_set):
    """Trained on every K-th frame: dB of the frames between, and of the mean of their neighbours' pixels."""
    K = s.every
    dB = []
    for name, pair in zip(train_set.names, zip(train_set.static_id, train_set.transient_id)):
        v = torch.from_numpy(everything.videos[everything.names.index(name)])
        ends = range(0, len(v) - K, K)
        real = torch.cat([v[t + 1:t + K] for t in ends])
        ours = torch.cat([frames_between(model, pair, t // K, t // K + 1, K - 1)[1:-1] for t in ends])
        mean = [torch.lerp(v[t].float(), v[t + K].float(), n / K) for t in ends for n in range(1, K)]
        dB.append(psnr([ours, torch.stack(mean)], [real, real]).tolist())
    return dict(zip(("interpolation_psnr", "interpolation_average_psnr"), np.mean(dB, 0).tolist()))

# ---- train and evaluate ------------------------------------------------------------------------------------
def prepare(args):
    """What a training begins with -> (device, settings, Clips, their file or None, why this precision)."""
    device = choose_device(args.device)
    clips, path = data_prep.find(args.dataset, args.clips, args.layout)
    s, clips, why = choose_settings(args, clips, device)
    return device, s, clips, path, why

def diverged(step, s):
    return DataError(f"not finite at step {step}: most likely a learning rate too high for these clips (G "
                     f"{s.lr_G:g}, R {s.lr_R:g}, codes {s.lr_Z:g}); the checkpoint, if any, is a good one")

def take_up(out, trainer, data):
    """--resume: the trainer goes on from the checkpoint in `out`. Returns its log. Raises DataError.

    With more steps than before, the fast recipe's rates are from here on those of a run of so many."""
    s = trainer.s
    kept = read_checkpoint(out)
    before = kept["settings"]
    had = kept["data"]
    where = f"--resume: {out}/checkpoint.pt was made with"
    if had["fingerprint"] != data["fingerprint"]:
        raise DataError(f"{where} other data, {had['clips']} clips ({had['source'][:50]}); now there are "
                        f"{data['clips']} ({data['source'][:50]}): name those, or train into another --out")
    for name, value in asdict(s).items():
        was = getattr(before, name)
        if value != was and (name != "steps" or value < was):
            raise DataError(f"{where} {name} {was}, now it is {value}: repeat the first command, or train "
                            "into another --out")
    if len(set(from_all(kept["steps_done"]))) > 1:
        raise DataError("--resume: the processes found different checkpoints; --out is one folder for all")
    try:
        goes_on = trainer.restore(kept)
    except (RuntimeError, KeyError, IndexError, ValueError) as error:
        raise DataError(f"{out}/checkpoint.pt: of another shape ({printable(error, 120)})") from None
    if s.steps > before.steps and s.recipe == "fast":
        say(f"{before.steps} steps become {s.steps}: from step {trainer.steps_done} on, rates are of so many")
    if not goes_on:
        say(f"the checkpoint was made by {len(kept['batches'])} processes on {had['trained_on']['device']}: "
            "from here on the clips come in another order")
    return kept["log"]

def train(args):
    """trains, with a progress line, a log and checkpoints; then measures and shows"""
    device, s, everything, path, why = prepare(args)
    join_processes(device)
    clips, _ = keep_from_training(everything, s)
    N, L, size = clips.videos.shape[:3]
    out = Path(args.out or f"runs/{Path(args.dataset).stem}")
    data = dict(dataset=args.dataset, path=path, source=clips.source, standin=clips.standin, clips=N,
                frames=L, size=size, asked_clips=args.clips, fingerprint=everything.fingerprint,
                names=clips.names, static_names=clips.static_names, transient_names=clips.transient_names,
                pairs=np.stack([clips.static_id, clips.transient_id], 1).tolist(),
                trained_on=dict(device=str(device), kernels=backend(device), torch=str(torch.__version__),
                                commit=commit()))
    vgg16 = load_vgg16(args.vgg16, device) if RANK == 0 else None
    trainer = Trainer(s, clips, device, args.graph)
    log = take_up(out, trainer, data) if args.resume else []
    if RANK == 0:
        lock = take_folder(out, args.resume, say)  # noqa: F841 (held while it lives)
        write(out / "config.json", dict(asdict(s), **data, processes=WORLD))
    frames = s.batch * trainer.batches.F
    say(f"{clips}\n{len(clips.static_names)} static and {len(clips.transient_names)} transient codes; "
        f"{s.recipe} recipe, {s.steps} steps of {s.batch} clips x {trainer.batches.F} frames\n{device}, "
        f"{s.precision} ({why}), losses by {backend(device)}; processes: {WORLD}; writing to {out}"
        + "\nNOTE: these clips are DRAWN STAND-INS, not the real data; every result says so" * clips.standin)

    came = []  # signals: they end the run after the step at hand
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: came.append(number))
    first_step = trainer.steps_done
    seconds_before = log[-1][1] if log else 0.0
    began = saved = time.perf_counter()
    look_every = max(1, min(25, s.steps // 20))
    losses = []
    stop = 0
    while trainer.steps_done < s.steps and not stop:
        v, v_hat, loss = trainer.step()
        # All below is looking, not learning. Processes look together; the host waits only here.
        losses.append(loss)
        step = trainer.steps_done
        look = step % look_every == 0 or step == s.steps or WORLD == 1 and came
        if len(losses) == WARM_UP == step - first_step and not look:  # from here on, seconds count
            if device.type == "cuda":
                torch.cuda.synchronize()
            say(f"warm-up: {time.perf_counter() - began:.1f} s for {WARM_UP} steps, not counted below")
            first_step, began = step, time.perf_counter()
        if not look:
            continue
        values = torch.stack(losses)                                         # (steps since the last look, 3)
        losses = []
        all_reduce([values])
        values = values.cpu() / WORLD
        for number, value in enumerate(values, step + 1 - len(values)):
            if not value.isfinite().all():
                raise diverged(number, s)
        passed = time.perf_counter() - began
        rate = (step - first_step) / passed
        dB = psnr(to_bytes(v_hat)[None], v.permute(0, 2, 3, 1)[None]).item()
        log.append([step, seconds_before + passed, *values.mean(0).tolist(), dB, rate * frames])
        left = round((s.steps - step) / rate)
        say(f"step {step:{len(str(s.steps))}}/{s.steps}  loss {log[-1][2]:.4f}  {dB:5.2f} dB  "
            f"{rate * frames:6.0f} frames/s  {log[-1][1]:5.0f} s  ETA {left // 60}:{left % 60:02}")
        late = time.perf_counter() - saved >= args.checkpoint_every
        stop, late = map(max, zip(*from_all((came[0] if came else 0, late))))
        if late or stop or step == s.steps:
            save_checkpoint(out, s, data, log, trainer.state())
            saved = time.perf_counter()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if RANK == 0 and stop:
        complain(f"stopped at step {step} of {s.steps}; the checkpoint is in {out}, --resume goes on")
    elif RANK == 0:
        args.run = out
        report(args, everything, vgg16)
    return 128 + stop if stop else 0

def save_checkpoint(out, s, data, log, state):
    """checkpoint.pt, log.csv and curve.png, by process 0. Raises DataError where something is not finite."""
    if not all(value.isfinite().all() for value in state["model"].values()):
        raise diverged(state["steps_done"], s)
    if RANK == 0:
        write(out / "checkpoint.pt", packed(dict(settings=asdict(s), data=data, log=log, **state)))
        head = "step,seconds,loss,l_rec,l_triplet,psnr,frames_per_second"
        lines = [",".join(f"{value:.6g}" for value in line) for line in log]
        write(out / "log.csv", "\n".join([head, *lines]))
        _, seconds, loss, _, _, dB, _ = zip(*log)
        data_prep.chart(show(out, "curve", data, None), seconds, {
            "Loss (Eq. 6), logarithmic": (loss, True), "PSNR of the last step's frames, dB": (dB, False)})

def report(args, everything, vgg16):
    """Measure the run --run: metrics.json, reconstructions, samples. everything: all its Clips."""
    s, data, model, log, out = load_run(args)
    clips, held_out = keep_from_training(everything, s)
    real = torch.from_numpy(clips.videos).to(model.z_s.z.device)
    generated = videos(model, clips.static_id, clips.transient_id)
    dB = psnr(generated, real)
    more = dict(exchange_psnr=None)
    if s.hold_out:
        more.update(measure_exchange(model, s, clips, held_out))
    if s.hold_out_clips:
        more.update(measure_encoding(model, s, clips, held_out))
    if s.every > 1:
        more.update(measure_interpolation(model, s, everything, clips))
    metrics = dict({key: data[key] for key in ("dataset", "source", "standin", "frames")},
                   videos=data["clips"], psnr=dB.mean().item(), psnr_min=dB.min().item(),
                   ssim=mean_ssim(generated, real), **scores(generated, real, *vgg16), **more,
                   steps=log[-1][0], seconds=round(log[-1][1], 1),
                   frames_per_second=round(log[-1][-1], 1), precision=s.precision, seed=s.seed,
                   **data["trained_on"], evaluated_on=str(real.device))
    generated, real = generated.cpu().numpy(), real.cpu().numpy()
    pairs = [(j, shown) for j in spread(len(real), 8) for shown in (real, generated)]
    chosen = spread(len(real), 16)
    show(out, "reconstructions", data, [shown[j][spread(data["frames"], 8)] for j, shown in pairs],
         data_prep.side_by_side(np.concatenate([real[chosen], generated[chosen]], 2)),  # real over generated
         row_labels=[clips.names[j][:16] if shown is real else "generated" for j, shown in pairs])
    show(out, "samples", data, None, data_prep.side_by_side(generated[chosen]))
    write(out / "metrics.json", metrics)
    for name in [name for name in more if more[name] is not None]:
        say(f"{name.replace('_', ' ')}: {more[name]:.2f}")
    say(f"PSNR {dB.mean():.2f} dB mean, {dB.min():.2f} minimum; SSIM {metrics['ssim']:.3f}; "
        f"{scores_in_words(metrics)}; {log[-1][0]} steps in {log[-1][1]:.0f} s"
        f"{'; DRAWN STAND-INS' * data['standin']}; see {out}")

def evaluate(args):
    """measures a run again; with --generated and --real, scores clips of other software (Table 2)"""
    device = choose_device(args.device)
    vgg16 = load_vgg16(args.vgg16, device)
    if not (args.generated or args.real):
        s, data, *_ = load_run(args)
        return report(args, clips_of_run(args, s, data), vgg16)
    if not (args.generated and args.real):
        raise DataError("evaluate needs both --generated DIR and --real NPZ, or --run DIR")
    real = data_prep.load(args.real)
    L, size = real.videos.shape[1:3]
    skipped = {}
    found = data_prep.read_clips(args.generated, skipped, L, size=size)
    data_prep.report_skipped(skipped)
    if not found:
        raise DataError(f"--generated {args.generated}: no clip of {L} frames or more there")
    generated = np.stack([clip[:L] for clip in found.values()])
    measured = scores(*(torch.from_numpy(v).to(device) for v in (generated, real.videos)), *vgg16)
    out = Path(args.out or "runs/evaluate", "metrics.json")
    write(out, dict(dataset=args.real, source=real.source, standin=real.standin, generated=args.generated,
                    videos=len(found), frames=L, torch=torch.__version__, commit=commit(), **measured))
    say(f"{len(found)} clips of {L} frames: {scores_in_words(measured)}; see {out}")

# ---- the other actions -------------------------------------------------------------------------------------
FRAME = (220, 30, 30)  # the colour around what training never saw

def sample(args):
    """new videos: random pairs of learned codes (Sec. 1), or static codes of a Gaussian fitted to those"""
    s, data, model, _, out = load_run(args)
    rng = torch.Generator().manual_seed(args.seed or 0)
    codes = model.z_s.z.cpu().double()
    i, k = (torch.randint(len(d.z), (args.count,), generator=rng) for d in (model.z_s, model.z_t))
    z_s = codes[i]
    if args.prior == "gaussian":
        if len(codes) < 2:
            raise DataError(f"--prior gaussian: {args.run} has one static code, a Gaussian needs two or more")
        variances, axes = torch.linalg.eigh(torch.cov(codes.T))              # ascending
        normal = torch.randn(args.count, len(variances), generator=rng, dtype=codes.dtype)
        normal[:, :-max(1, len(codes) // 8)] = 0  # keep one axis for 8 codes: more tear chairs
        z_s = unit_ball(codes.mean(0) + normal * variances.clamp(min=0).sqrt() @ axes.T)
    clips = videos_of(model, z_s.to(model.z_s.z), model.z_t.z[k], k.to(model.z_t.z.device)).cpu()
    rows = clips
    labels = [f"{data['static_names'][a]} {data['transient_names'][b]}"[:20] for a, b in zip(i, k)]
    if args.prior == "gaussian":  # beside the nearest real clip: none should be its copy
        train_set, fresh = keep_from_training(clips_of_run(args, s, data), s)
        if data["dataset"] == "chair" and not data["path"] and not fresh:
            fresh = data_prep.draw_chairs(args.count, data["frames"] * s.every, data["size"], seed=1)
        real = torch.from_numpy(train_set.videos)
        index, distance = nearest(clips, real)
        say(f"new clips: {distance.mean():.3f} from the nearest training clip (rms on [0, 1]; 0 were a copy)")
        if fresh:
            distance = nearest(torch.from_numpy(fresh.videos[:, ::s.every]), real)[1]
            say(f"real clips that training never saw: {distance.mean():.3f}")
        rows = torch.stack([clips, real[index]], 1).flatten(0, 1)
        labels = ["new", "nearest real"] * args.count
    path = show(out, "samples", data, list(rows[:, spread(data["frames"], 8)].numpy()),
                data_prep.side_by_side(clips.numpy()), row_labels=labels)
    say(f"{args.count} videos: {path} and .gif")

def exchange(args):
    """Fig. 6: every static code with every transient code, three frames of each; unseen pairs are framed"""
    _, data, model, _, out = load_run(args)
    rows = range(len(model.z_s.z))
    columns = range(len(model.z_t.z))
    if min(len(rows), len(columns)) < 2 or len(rows) * len(columns) > 1024:
        raise DataError(f"exchange shows 2 x 2 to 1024 pairs; {len(rows)} x {len(columns)} codes are no grid")
    moments = [(data["frames"] - 1) * q // 4 for q in (1, 2, 3)]
    clips = [videos(model, [i] * len(columns), [*columns])[:, moments].cpu().numpy() for i in rows]
    cells = [[np.concatenate([*clip], 1) for clip in row] for row in clips]
    frames = [[None if [i, k] in data["pairs"] else FRAME for k in columns] for i in rows]
    path = show(out, "exchange", data, cells, gap=4, frames=frames, row_labels=data["static_names"],
                column_labels=data["transient_names"])
    unseen = sum(row.count(FRAME) for row in frames)
    say(f"{len(rows)} x {len(columns)} pairs, {unseen} of them unseen and framed: {path}")

def interpolate(args):
    """Fig. 7: frames between two frames of a clip; with --fps-factor, between all of its frames"""
    _, data, model, _, out = load_run(args)
    L = data["frames"]
    a, b = args.frames
    if args.clip >= data["clips"] or not (args.fps_factor or 1 <= a < b <= L):
        raise DataError(f"--clip is 0 to {data['clips'] - 1} here, --frames two in order of 1 to {L}")
    ends, K = [(a - 1, b - 1)], args.between
    if args.fps_factor:
        ends, K = [(t, t + 1) for t in range(L - 1)], args.fps_factor - 1
    parts = [frames_between(model, data["pairs"][args.clip], a, b, K).numpy() for a, b in ends]
    video = np.concatenate([part[:-1] for part in parts] + [parts[-1][-1:]])
    frames = [FRAME if t % (K + 1) else None for t in range(len(video))]
    cells, frames = ([row[t:t + 16] for t in range(0, len(video), 16)] for row in ([*video], frames))
    path = show(out, "interpolation", data, cells, video, 8 * (args.fps_factor or 1), gap=4, frames=frames)
    say(f"{data['names'][args.clip]}: {len(ends) * K} frames between, framed: {path} and .gif")

def encode(args):
    """finds the codes of a clip that was never trained on, G and R frozen"""
    s, data, model, _, out = load_run(args)
    if not args.input:
        raise DataError("encode needs --input: a video, GIF, strip, folder of frames, or an npz of one clip")
    if args.input.lower().endswith(".npz"):
        clip = next(iter(data_prep.read_clips(args.input, {}, 1, size=data["size"]).values()), ())
    else:
        clip = data_prep.read_clip(args.input, size=data["size"])
    clip = clip[::s.every][:data["frames"]]
    if len(clip) < data["frames"]:
        raise DataError(f"--input {args.input}: {len(clip)} frames (of every {s.every}); this run's clips "
                        f"have {data['frames']}")
    real = torch.from_numpy(clip.copy())[None]
    z_s, z_t, label = find_codes(model, s, real)
    made = videos_of(model, z_s, z_t, label).cpu()
    both = torch.cat([real, made])
    path = show(out, "encoded", data, list(both[:, spread(data["frames"], 8)].numpy()),
                data_prep.side_by_side(both.numpy()), row_labels=["input", "encoded"])
    write(out / "encoded.pt", packed(dict(z_s=z_s[0].cpu(), z_t=z_t[0].cpu(), label=label[0].item())))
    say(f"PSNR {psnr(made, real).item():.2f} dB from {z_s.numel() + z_t.numel()} numbers (the clip has "
        f"{real.numel()}); see {path}")

ABLATION = {  # Table 4, chairs: the paper's MCS and FCS, what a row changes; -R is not in the paper
    "-Z": (3.96, 0.75, None),  # codes that nobody learned, for the G and R of +triplet +static
    "+Z": (3.32, 0.89, None),
    "-triplet -static": (3.83, 0.77, dict(lambda_t=0.0, lambda_s=0.0)),
    "-triplet +static": (3.82, 0.85, dict(lambda_t=0.0)),
    "+triplet -static": (3.36, 0.81, dict(lambda_s=0.0)),
    "+triplet +static": (3.32, 0.89, {}),
    "-R": (None, None, dict(recurrent=False)),
}

def ablation_table(title, seeds, ours):
    """ours {"-Z, seed 0": measures.scores, ...}, of rows that are done -> markdown, mean +- spread."""
    def cell(name, key):
        values = [x for seed in seeds if (x := ours.get(f"{name}, seed {seed}", {}).get(key)) is not None]
        spread = f" +- {np.std(values):.3f}" if len(values) > 1 else ""
        return f"{np.mean(values):.3f}{spread}" if values else "-"
    lines = [f"{title}, {len(seeds)} seed(s); real FCS {next(iter(ours.values()))['fcs_bound']:.3f}", "",
             "| | MCS, paper (chairs) | MCS, ours | FCS, paper (chairs) | FCS, ours | MCS_t | PSNR |",
             "|---|---|---|---|---|---|---|"]
    for name, (mcs, fcs, _) in ABLATION.items():
        ours_are = [cell(name, key) for key in ("mcs", "fcs", "mcs_t", "psnr")]
        lines.append(f"| {name} | {mcs or '-'} | {ours_are[0]} | {fcs or '-'} | {' | '.join(ours_are[1:])} |")
    return "\n".join(lines)

def ablate(args):
    """Tables 4a and 4b, and a row without R, all at the same steps and seeds; rows that are done stay done"""
    device, base, clips, _, _ = prepare(args)
    vgg16 = load_vgg16(args.vgg16, device)
    real = torch.from_numpy(clips.videos).to(device)
    count = args.generated_clips
    seeds = range(base.seed, base.seed + args.seeds)
    out = Path(args.out or f"runs/ablation-{Path(args.dataset).stem}")
    table = dict(settings=asdict(base), clips=clips.fingerprint, generated_clips=count,
                 vgg16=args.vgg16 or vgg16[1], source=clips.source, standin=clips.standin,
                 device=str(device), torch=str(torch.__version__))
    try:
        before = json.loads((out / "ablation.json").read_text())
    except (OSError, ValueError):
        before = {}
    ours = before["ours"] if table.items() <= before.items() else {}
    lock = take_folder(out, ours, say)  # noqa: F841 (held while it lives)
    title = f"{clips.source}{', DRAWN STAND-INS' * clips.standin}; recipe {base.recipe}, {base.steps} steps"
    for seed, name in [(seed, name) for seed in seeds for name in ABLATION]:
        changes = ABLATION[name][2]
        if changes is None or f"{name}, seed {seed}" in ours:
            continue
        s = replace(base, seed=seed, **changes)
        trainer = Trainer(s, clips, device, args.graph)
        m = trainer.model
        progress = data_prep.Progress(f"seed {seed}, {name}: steps")
        for step in range(s.steps):
            _, _, loss = trainer.step()
            progress(step + 1, s.steps)
        if not loss.isfinite().all():
            raise diverged(s.steps, s)
        rng = torch.Generator().manual_seed(seed)
        i, k = (torch.randint(len(d.z), (count,), generator=rng).to(device) for d in (m.z_s, m.z_t))
        found = scores(videos(m, i, k), real, *vgg16)
        found["psnr"] = psnr(videos(m, clips.static_id, clips.transient_id), real).mean().item()
        ours[f"{name}, seed {seed}"] = found
        if not changes:
            z_s, z_t = (Dictionary(count, *d.z.shape[1:]).z.to(device) for d in (m.z_s, m.z_t))
            ours[f"-Z, seed {seed}"] = scores(videos_of(m, z_s, z_t, k), real, *vgg16)
            ours[f"+Z, seed {seed}"] = found
        write(out / "ablation.json", dict(table, commit=commit(), paper_on_chairs=ABLATION, ours=ours))
        write(out / "ablation.md", ablation_table(title, seeds, ours))
    say(f"{ablation_table(title, seeds, ours)}\nsee {out}")

def bench(args):
    """where the time of a training step goes on this device; last line: whole step over bare generator"""
    device, s, clips, _, why = prepare(args)
    s.steps = 10 ** 9                                                        # rates stay as they are
    trainer = Trainer(s, clips, device, args.graph)
    trainer.steps_done = s.steps // 2                                        # norms in eval mode, as mostly
    for _ in range(5):
        v, v_hat, _ = trainer.step()
    G = trainer.model.G.requires_grad_(True)
    codes = torch.randn(len(v), s.D_s + s.D_t, device=device, requires_grad=True)
    label = torch.zeros(len(v), dtype=torch.long, device=device)
    dl_dv = torch.randn_like(v_hat)

    def generator():
        with torch.autocast(device.type, torch.bfloat16, enabled=trainer.model.bf16):
            G(codes, label).backward(dl_dv)
        G.zero_grad()

    def milliseconds(call):
        timer = Timer("call()", globals=dict(call=call), num_threads=torch.get_num_threads())
        return 1000 * timer.blocked_autorange(min_run_time=4).median

    bare = milliseconds(generator)  # first: the paper recipe's step leaves G frozen
    whole = milliseconds(trainer.step)
    with profile() as found:
        for _ in range(Muon.EVERY):
            trainer.step()
    key = f"{'cuda' if device.type == 'cuda' else 'cpu'}_time_total"
    say(found.key_averages().table(sort_by=key, row_limit=20, max_name_column_width=40))
    say(f"{device}, {s.precision} ({why}); {s.batch} clips x {trainer.batches.F} frames a step, width "
        f"{s.width}; a step {whole:.2f} ms, the bare generator's forward and backward {bare:.2f} ms")
    say(f"ratio: {whole / bare:.2f}")

# ---- the command line --------------------------------------------------------------------------------------
ACTIONS = {f.__name__: f for f in (train, evaluate, sample, exchange, interpolate, encode, ablate, bench)}

def refuse(message):  # one line, exit status 2
    if LOCAL_RANK == 0:
        complain(f"{message}; python nav.py --help lists the options")
    sys.exit(2)

def number(kind, least):
    """An argparse type: an int or float, finite and not less than `least`."""
    def read(text):
        value = kind(text)
        if not least <= value < (2 ** 63 if kind is int else 3e38):
            raise argparse.ArgumentTypeError(f"{text}: a finite number of at least {least} is needed")
        return value
    read.__name__ = kind.__name__
    return read

def parse(argv):
    """argv -> the options. Those of Settings are its fields, None where they are not given."""
    wide = partial(argparse.RawDescriptionHelpFormatter, max_help_position=34, width=110)
    actions = "\n".join(f"  {name:12} {action.__doc__}" for name, action in ACTIONS.items())
    parser = argparse.ArgumentParser(
        usage="python nav.py [ACTION] [options]", description=__doc__.split("\n")[0],
        epilog=f"actions:\n{actions}", formatter_class=wide, allow_abbrev=False)
    parser.error = refuse
    parser.add_argument("action", nargs="?", default="train", metavar="ACTION", help="one of those below")
    whole = partial(number, int)
    belongs = {}  # which actions an option goes with

    def group(actions, title=None):
        add = parser.add_argument_group(title or actions).add_argument
        return lambda *names, **kind: belongs.update({add(*names, **kind).dest: actions})

    add = group(", ".join(ACTIONS), "most actions")
    add("--dataset", help="chair, weizmann, golf, NAME for data/NAME.npz, or PATH.npz (default: chair)")
    add("--out", metavar="DIR", help="where to write (default: runs/NAME, or --run)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="auto: cuda, mps or cpu")
    add("--vgg16", metavar="PATH", help="weights for the MCS; `download` fetches torchvision's (528 MB) once")
    add = group("evaluate, sample, exchange, interpolate, encode")
    add("--run", metavar="DIR", help="the folder of a trained run")
    add = group("train, ablate, bench", "train, ablate, bench: what is learned")
    add("--clips", type=whole(1), metavar="N", help="the first N clips, or N drawn stand-ins")
    add("--graph", action=argparse.BooleanOptionalAction, default=True, help="steps as one CUDA graph")
    for f in fields(Settings):
        kind = dict(choices=f.metadata["choices"])
        if f.type is bool:
            kind = dict(action=argparse.BooleanOptionalAction)
        elif f.type is not str:
            kind = dict(type=number(f.type, f.metadata["least"]), metavar="N" if f.type is int else "X")
        add(f"--{f.name.replace('_', '-')}", help=f"{f.metadata['help']} (default: {f.default})", **kind)
    belongs["seed"] += ", sample"
    belongs.update(hold_out="train", hold_out_clips="train", every="train", vgg16="train, evaluate, ablate",
                   dataset="train, evaluate, sample, ablate, bench")
    add = group("train")
    add("--resume", action="store_true", help="go on in --out; with more --steps, beyond the end")
    add("--checkpoint-every", type=number(float, 0), default=20, metavar="SECONDS", help="(default: 20)")
    add = group("evaluate")
    add("--generated", metavar="DIR", help="clips that other software made, a folder or an .npz")
    add("--real", metavar="NPZ", help="the prepared set that they are compared with")
    add = group("sample")
    add("--count", type=whole(1), default=16, metavar="K", help="how many videos (default: 16)")
    add("--prior", choices=("dictionary", "gaussian"), default="dictionary", help="of static codes")
    add = group("interpolate")
    add("--clip", type=whole(0), default=0, metavar="J", help="the clip's number, from 0 (default: 0)")
    add("--frames", type=int, nargs=2, default=(2, 5), metavar=("A", "B"), help="from 1 (default: 2 5)")
    add("--between", type=whole(1), default=3, metavar="K", help="frames between them (default: 3)")
    add("--fps-factor", type=whole(2), metavar="K", help="the whole clip at K times its frames")
    add = group("encode")
    add("--input", metavar="CLIP", help="a video, a GIF, a strip, a folder of frames, or an npz of one clip")
    add = group("ablate")
    add("--seeds", type=whole(1), default=1, metavar="K", help="seeds (default: 1)")
    add("--generated-clips", type=whole(1), default=500, metavar="K", help="clips of a row (default: 500)")
    args = parser.parse_args(argv)
    if args.action not in ACTIONS:
        refuse(f"no action {args.action}: {', '.join(ACTIONS)}")
    for name, actions in belongs.items():
        if getattr(args, name) != parser.get_default(name) and args.action not in actions.split(", "):
            refuse(f"--{name.replace('_', '-')} goes with {actions}, not with {args.action}")
    if args.action != "train" and WORLD > 1:
        refuse(f"{args.action} runs in one process, without torchrun")
    args.dataset = args.dataset or ("chair" if args.action in ("train", "ablate", "bench") else None)
    return args

def main(argv=None):
    args = parse(argv)
    keep_freed_memory()
    try:
        return ACTIONS[args.action](args)
    except DataError as error:
        if LOCAL_RANK == 0:  # every process finds the same fault: one line a machine
            complain(error)
    except OSError as error:
        complain(f"{error.filename or 'a file'}: {error.strerror or error}; check path, permissions, space")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "allocate" in str(error):
            complain("not enough memory: a smaller --width, --batch, --clips or --count may fit")
        elif "NAV_KERNELS" in str(error):
            complain(error)
        elif WORLD == 1:
            raise
        else:
            complain(f"process {RANK} of {WORLD} stops, most likely since another one is gone; start all of "
                     f"them again with --resume ({printable(error, 120)})")
            os._exit(2)  # the usual way out, through broken connections, may end in an abort
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    return 2

if __name__ == "__main__":
    sys.exit(main())
