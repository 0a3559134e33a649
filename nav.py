"""Non-Adversarial Video Synthesis with Learned Priors (Aich et al., CVPR 2020), the paper in one script.

    python nav.py --dataset chair                        train, measure, show: results in runs/chair
    python nav.py --dataset chair --recipe paper         the paper's two stages and rates; ours is far faster
    python nav.py --dataset mine                         your own clips (data_prep.py prepares them)
    python nav.py sample --run runs/chair --count 16     videos from random pairs of learned codes
    torchrun --nproc_per_node=2 nav.py --dataset chair   several GPUs, machines or processors

There is no encoder and no discriminator: the codes of a clip are parameters. A static code z_s describes the
clip's content, L transient codes z_t its motion. A GRU R correlates the transient codes, a DCGAN generator G
makes frame i of [z_s ; r_i], and Eq. 6 fits codes, R and G together. Where the paper is:

    Eq. 1, 2   codes, rendering     Dictionary, Model.render     Sec. 1    the sampler     sample, videos
    Eq. 3      two stages           Trainer.step                 Table 2   MCS, FCS        motion, fcs, scores
    Eq. 4, 6   l_static, objective  objective, Batches.gather    Table 3   unseen pairs    measure_exchange
    Eq. 5      l_triplet            kernels: plain_triplet       Table 4   ablation        ABLATION, ablate
    Sec. 4.2   l(v^, v)             kernels: plain_laplacian     Table 6   settings        TABLE_6, PAPER
    Eq. 7      low rank             low_rank                     Fig. 6    exchange        exchange
    App. B     optimisers           Dictionary.update, adam      Fig. 7    interpolation   interpolate, line

Shapes: N clips have L frames of H x W. A step takes B clips, with n rows of z_s and n' rows of z_t, and T
frames of each clip, M = B T frames in all. Process RANK of WORLD renders B' of the B clips.
"""
import signal

if __name__ == "__main__":  # Ctrl-C while modules are imported: no traceback (exit status 130)
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import difflib
import io
import json
import math
import os
import shlex
import sys
import time
import zipfile
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.profiler import profile, record_function
from torch.utils.benchmark import Timer

import data_prep
from data_prep import DataError, between, commit, printable, take_folder, warn, write
from kernels import GRU, ToColours, keep_freed_memory, laplacian_l1_with_grad, name_backend, triplet_margin

# The same seed gives the same result, with the same device and number of threads. TF32 is too coarse for
# SSIM; R tolerates TF32.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
torch.backends.cudnn.deterministic = True
torch.backends.cudnn.conv.fp32_precision = "ieee"
torch.backends.cudnn.rnn.fp32_precision = "tf32"

# ---- settings (Table 6) ------------------------------------------------------------------------------------
def setting(default, help, least=None, expert=False):
    """A field of Settings. default: a value, or a tuple of choices with the default first."""
    choices = default if isinstance(default, tuple) else None
    metadata = dict(help=help, least=least, choices=choices, expert=expert)
    return field(default=choices[0] if choices else default, metadata=metadata)

expert_setting = partial(setting, expert=True)

@dataclass
class Settings:
    """The settings of a training. Every field is an option: lambda_t is --lambda-t."""
    recipe: str = setting(("fast", "paper"), "paper: Sec. 3.1's two stages with Table 6's rates and updates")
    steps: int = setting(2750, "updates (2750, weizmann 3000, many clips more; paper: Table 6 x clips)", 1)
    layout: str = setting(("file", "static", "grid", "both", "transient"), "which clips share codes. "
                          "static: a static code each, transient codes of all; transient: the reverse; both: "
                          "codes of their own; grid: as the names static_transient; file: as prepared")
    window: str = setting(("first", "random", "aligned"), "which L frames of a longer clip. random: drawn in "
                          "each step (paper, not chair); aligned: clips of an action in phase (weizmann)")
    hold_out: int = setting(0, "keep N cells of a grid from training, and measure them", 0)
    hold_out_clips: int = setting(0, "keep the last N clips from training, and encode them", 0)
    every: int = setting(1, "train on every N-th frame, and measure the frames between", 1)
    augment: bool = setting(False, "shift and recolour frames, tell G (weizmann with --hold-out: yes)")
    rank: int = setting(0, "rho of Eq. 7, for interpolation, 0: full rank (0)", 0)
    conditional: bool = setting(False, "G takes the transient row as a label (paper, weizmann: yes)")
    recurrent: bool = setting(True, "--no-recurrent: without R, every frame has a free code of its own")
    width: int = setting(32, "channels of G before its last layer (32; CUDA, and paper: DCGAN's 64)", 1)
    batch: int = setting(32, "clips a step, at most (32; CUDA 128; CPU, a transient code for each clip: 16; "
                             "paper 1)", 1)
    per_clip: int = setting(1, "random frames of each clip in a step, 0: all (1; where batch is 16: 2; few "
                               "clips: more; paper 0)", 0)
    precision: str = setting(("auto", "fp32", "bf16"), "of G, and in training of R on a CPU; auto: bf16 "
                             "where it is faster (paper fp32)")
    seed: int = setting(0, "of every random draw", 0)
    table6: str = setting(("chair", "weizmann", "golf"), "row of Table 6 (the set's; own grids: weizmann)")
    D_s: int = expert_setting(206, "numbers in a static code (Table 6: 206; weizmann, golf 56)", 1)
    D_t: int = expert_setting(50, "numbers in a transient code (50; weizmann, golf 200)", 1)
    lambda_s: float = expert_setting(0.01, "weight of l_static in Eq. 6 (0.01)", 0)
    lambda_t: float = expert_setting(0.01, "weight of l_triplet in Eq. 6 (0.01; weizmann 0.1)", 0)
    alpha: int = expert_setting(2, "margin of the triplet loss, and its radius in frames (2)", 1)
    levels: int = expert_setting(4, "levels of the Laplacian pyramid (4; weizmann 3)", 1)
    lr_G: float = expert_setting(2e-3, "learning rate of G (0.002; paper: Table 6's)", 1e-12)
    lr_R: float = expert_setting(2e-3, "learning rate of R (0.002; paper: Table 6's)", 1e-12)
    lr_Z: float = expert_setting(5e-3, "learning rate of the codes (0.005; paper: Table 6's)", 1e-12)
    decay: float = expert_setting(0.0, "weight decay of G's matrices, times lr_G (0; fast, weizmann 2.5)", 0)

TABLE_6 = {  # codes and losses, for both recipes
    "chair": dict(D_s=206, D_t=50, lambda_s=0.01, lambda_t=0.01, alpha=2, levels=4),
    "weizmann": dict(D_s=56, D_t=200, lambda_s=0.01, lambda_t=0.1, alpha=2, levels=3),
    "golf": dict(D_s=56, D_t=200, lambda_s=0.01, lambda_t=0.01, alpha=2, levels=4),
}
# Its other columns, for --recipe paper. steps: of a clip, epochs of gamma times epochs of Z_V and theta. The
# paper does not say how they nest: we read 5 rounds of 300 passes, and an update does both stages.
PAPER = {
    "chair": dict(lr_G=6.25e-5, lr_R=6.25e-5, lr_Z=12.5, steps=5 * 300),
    "weizmann": dict(lr_G=6.25e-5, lr_R=6.25e-3, lr_Z=12.5, steps=5 * 700),
    "golf": dict(lr_G=0.1, lr_R=0.1, lr_Z=12.5, steps=10 * 1000),
}
# Fast recipe: (steps, clips). With more clips the number of steps grows with the square root.
FAST_STEPS = {"chair": (2750, 64), "weizmann": (3000, 36), "golf": (2750, 64)}
HIDDEN = 500  # units of the GRU (Sec. 4.2)
HARD_CLIP_POWER = 3.0  # fast recipe: a clip of twice the mean loss is drawn 2^3 times as often
NORM_WARM_UP = 0.1  # fast recipe: share of the steps, at least 100, in which G's norms use batch statistics

# ---- codes (Sec. 3 and 3.3, Eq. 1, 2 and 7) ----------------------------------------------------------------
def unit_ball(z):
    """z / max(1, |z|) over the last dimension (Sec. 3.3): codes stay in the unit ball, frame by frame."""
    return z / z.norm(dim=-1, keepdim=True).clamp(min=1)

def low_rank(z, rho):
    """Eq. 7: the best rank-rho approximation of each [L, D_t] matrix in z [B, L, D_t].
    The top rho left singular vectors of z are the top eigenvectors of z z^T, which is only L x L."""
    u = torch.linalg.eigh(z @ z.mT)[1][..., -rho:]  # (B, L, rho)
    return u @ (u.mT @ z)

class Dictionary(nn.Module):
    """A code table, z_s [rows, D_s] or z_t [rows, L, D_t], with an optimiser state for each row.
    Clips that share a code share a row. An update reads and writes only the rows of its batch: it costs the
    same with 64 clips and 20,000. The optimiser is SGD with momentum 0.9 (App. B, `momentum`), or Adam."""
    def __init__(self, rows, *shape, momentum=False, rank=0):
        super().__init__()
        self.momentum = momentum
        self.rank = rank
        # Sec. 3.3's two Gaussians; the variances are ours. (The fast recipe: start_from_clips.)
        z = torch.randn(rows, *shape) / shape[-1] ** 0.5
        self.register_buffer("z", self.project(z))
        self.register_buffer("m", torch.zeros_like(z))
        if not momentum:
            self.register_buffer("v", torch.zeros_like(z))
            self.register_buffer("count", torch.zeros(rows, *(1 for _ in shape)))

    def project(self, z):
        """The end of every update: rank rho (Eq. 7) if asked for, then the unit ball."""
        return unit_ball(low_rank(z, self.rank) if self.rank else z)

    def codes_of(self, rows):
        """The codes of rows [n], as a leaf that collects a gradient."""
        codes = self.z[rows].requires_grad_()
        codes.grad = torch.zeros_like(codes)
        return codes

    @torch.no_grad()
    @record_function("nav: update of codes")
    def update(self, rows, grad, lr):
        """One update of rows [n], no two the same, by grad [n, ...]; the other rows stay as they are."""
        if self.momentum:
            step = 0.9 * self.m[rows] + grad
            self.m[rows] = step
        else:
            m = torch.lerp(self.m[rows], grad, 0.1)
            v = torch.lerp(self.v[rows], grad * grad, 0.001)
            count = self.count[rows] + 1
            step = m / (1 - 0.9 ** count) / ((v / (1 - 0.999 ** count)).sqrt() + 1e-8)
            self.m[rows] = m
            self.v[rows] = v
            self.count[rows] = count
        self.z[rows] = self.project(self.z[rows] - lr * step)

def pick(rows, of_clip):
    """rows [n, ...] -> rows[of_clip] [B, ...]. A matrix product, because its gradient sums the clips of a row
    in a fixed order, on a GPU too."""
    one_hot = F.one_hot(of_clip, len(rows)).float()  # (B, n)
    return (one_hot @ rows.reshape(len(rows), -1)).view(-1, *rows.shape[1:])

# ---- the networks R and G (Sec. 3 and 4.2, Eq. 2) ----------------------------------------------------------
class Recurrent(nn.Module):
    """R: a one-layer GRU from a zero state, then a linear map back, z_t [n, L, D_t] -> r [n, L, D_t].
    length [n]: the frames that are needed of each row, None: all. Of the others r says nothing."""
    def __init__(self, D_t, bf16=False):
        super().__init__()
        self.gru = GRU(D_t, HIDDEN, bf16)
        self.out = nn.Linear(HIDDEN, D_t)

    @record_function("nav: R")
    def forward(self, z_t, length=None):
        return self.out(self.gru(z_t, length))

class Generator(nn.Module):
    """G, a DCGAN: codes [M, D_s + D_t] -> frames [M, 3, size, size] in [-1, 1]; size is 4 * 2^k.
    labels > 0 makes G conditional (Mirza & Osindero): the one-hot label enters through its own projection and
    takes a quarter of the first layer's channels."""
    def __init__(self, D, size, width, labels=0, augment=False):
        super().__init__()
        channels = [width * 2 ** i for i in reversed(range(int(math.log2(size // 4))))]  # 64: 8w 4w 2w w
        label_channels = max(1, channels[0] // 4) if labels else 0
        self.labels = labels
        # DCGAN's first layer makes 4 x 4 pixels, each further layer doubles the side.
        self.code = nn.Linear(D, 16 * (channels[0] - label_channels), bias=False)
        if labels:
            self.label = nn.Linear(labels, 16 * label_channels, bias=False)
        layers = [nn.BatchNorm2d(channels[0]), nn.ReLU(inplace=True)]
        for c_in, c_out in zip(channels, channels[1:]):
            layers += [nn.ConvTranspose2d(c_in, c_out, 4, 2, 1, bias=False), nn.BatchNorm2d(c_out)]
            layers.append(nn.ReLU(inplace=True))
        self.layers = nn.Sequential(*layers, ToColours(channels[-1]), nn.Tanh())
        for module in self.modules():  # DCGAN's initialisation
            if isinstance(module, (nn.Linear, nn.ConvTranspose2d)):
                nn.init.normal_(module.weight, 0, 0.02)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1, 0.02)
        if augment:
            self.augmentation = nn.Linear(4, self.code.out_features, bias=False)
            nn.init.normal_(self.augmentation.weight, 0, 0.02)

    def forward(self, codes, label, augmentation=None):  # (M, D), (M,), (M, 4)
        x = self.code(codes)
        if augmentation is not None:
            x = x + self.augmentation(augmentation)
        x = x.view(len(codes), 4, 4, -1)  # (M, 4, 4, c), channels last
        if self.labels:
            one_hot = F.one_hot(label, self.labels).to(codes.dtype)
            x = torch.cat([x, self.label(one_hot).view(len(codes), 4, 4, -1)], 3)
        return self.layers(x.permute(0, 3, 1, 2))  # (M, 3, size, size)

class Model(nn.Module):
    """Z_V, R and G of a data set: everything that Eq. 6 is minimised over."""
    def __init__(self, s, size, L, static_rows, transient_rows):
        super().__init__()
        momentum = s.recipe == "paper"
        self.z_s = Dictionary(static_rows, s.D_s, momentum=momentum)
        self.z_t = Dictionary(transient_rows, L, s.D_t, momentum=momentum, rank=s.rank)
        self.bf16 = s.precision == "bf16"
        self.R = Recurrent(s.D_t, self.bf16) if s.recurrent else nn.Identity()
        labels = transient_rows if s.conditional else 0
        self.G = Generator(s.D_s + s.D_t, size, s.width, labels, s.augment)

    @record_function("nav: G")
    def render(self, z_s, r, label, augmentation=None):
        """G of Eq. 2 with r for z_t: z_s [B, D_s], r [B, T, D_t], label [B] -> [B*T, 3, H, W]."""
        B, T, _ = r.shape
        codes = torch.cat([z_s[:, None].expand(B, T, -1), r], 2).flatten(0, 1)  # (B*T, D_s + D_t)
        with torch.autocast(r.device.type, torch.bfloat16, enabled=self.bf16):
            return self.G(codes, label.repeat_interleave(T), augmentation)

# ---- the objective (Sec. 3.1 to 3.3, Eq. 4 to 6) -----------------------------------------------------------
def objective(model, s, batch, z_s, r):
    """Eq. 6 for a batch, forward and backward: l_rec + lambda_s l_static + lambda_t l_triplet.
    s: the Settings. z_s [n, D_s] and r [n', L, D_t]: the static codes and R's outputs of the batch's rows.
    With several processes B is this process's B'.
    Adds to the gradients of z_s, z_t and of the weights that are trained. Returns, detached, v_hat [M, 3, H,
    W], the losses of the frames [B, T], and [loss, l_rec, l_triplet] summed over the clips."""
    B, T = batch.times.shape
    if B == 0:  # more processes than clips: nothing to render in this process
        return batch.v, torch.zeros(0, T, device=r.device), torch.zeros(3, device=r.device)  # empty, empty, 0
    static_code = pick(z_s, batch.static_of_clip)  # (B, D_s)
    r_of_clip = pick(r, batch.transient_of_clip)  # (B, L, D_t)
    r_of_frame = r_of_clip.gather(1, batch.times[:, :, None].expand(-1, -1, r.shape[2]))  # (B, T, D_t)
    label = batch.transient_rows[batch.transient_of_clip]
    v_hat = model.render(static_code, r_of_frame, label, batch.augmentation)

    # l_rec is the mean over a clip's T frames, l_static (Eq. 4) is the loss of the first drawn frame, k. With
    # T = 1 they are the same loss, and lambda_s only scales it.
    weight = torch.full((B, T), 1 / T, device=r.device)
    weight[:, 0] += s.lambda_s
    # The losses of the frames, and the gradient of weight . losses by v_hat in closed form.
    losses, dl_dv = laplacian_l1_with_grad(v_hat, batch.v, weight.flatten(), s.levels)
    losses = losses.view(B, T)
    l_rec = losses.mean(1)  # (B,)
    l_static = losses[:, 0]
    # Eq. 5 is written for z_t; here it is of r = R(z_t), because Sec. 3.3 trains theta with it too.
    l_triplet = triplet_margin(r, margin=float(s.alpha), radius=s.alpha)  # (n',)
    # The rows that R ran to the end stand for all rows (see how_far).
    is_whole = (batch.length == r.shape[1]).float()  # (n',)
    l_triplet = l_triplet * is_whole * (len(r) / is_whole.sum())
    l_triplet = pick(l_triplet, batch.transient_of_clip)  # (B,)

    # Backward of the sum over clips: a clip's gradient does not depend on how many clips share the step.
    if l_triplet.requires_grad:
        torch.autograd.backward([v_hat, s.lambda_t * l_triplet.sum()], [dl_dv, None])
    else:  # stage 1, of G alone
        v_hat.backward(dl_dv)
    l_triplet = l_triplet.detach()
    loss = l_rec + s.lambda_s * l_static + s.lambda_t * l_triplet  # Eq. 6
    return v_hat.detach(), losses, torch.stack([loss.sum(), l_rec.sum(), l_triplet.sum()])

# ---- training (Sec. 3.1, Eq. 3) ----------------------------------------------------------------------------
class Trainer:
    """Minimises Eq. 6. A trainer that restores the `state` of another continues bit for bit (on a CPU)."""
    def __init__(self, s, clips, device):
        torch.manual_seed(s.seed)
        _, L, size = clips.videos.shape[:3]
        self.s = s
        self.model = Model(s, size, L, len(clips.static_names), len(clips.transient_names))
        if s.recipe == "fast":
            start_from_clips(self.model, clips)
        self.model.to(device, memory_format=torch.channels_last)
        same_in_all_processes(self.model)
        self.batches = Batches(clips, s, device)
        self.optimisers_G = optimisers_of_G(self.model.G, s, device)
        self.optimiser_R = adam([dict(params=list(self.model.R.parameters()))], device)
        self.average = {}  # of weights and codes (see follow): what an unfinished run shows
        self.steps_done = 0
        self.stop = False  # whether this process asks all processes to stop

    def step(self):
        """One update -> v uint8 and v_hat [B' T, 3, H, W], this process's real and rendered frames, and terms
        [4]: mean loss, l_rec and l_triplet of a clip, and how many processes ask to stop."""
        s, m = self.s, self.model
        is_fast = s.recipe == "fast"
        rate = schedule(self.steps_done, s.steps) if is_fast else 1.0
        # Norms use batch statistics: always in the paper's recipe, at the start in the fast recipe.
        m.G.train(not is_fast or self.steps_done < max(100, NORM_WARM_UP * s.steps))
        batch = self.batches.gather(*self.batches.choose())
        z_s = m.z_s.codes_of(batch.static_rows)  # (n, D_s)
        z_t = m.z_t.codes_of(batch.transient_rows)  # (n', L, D_t)
        # ---- BEGIN: the training step ----
        m.zero_grad()
        r = m.R(z_t, batch.length) if s.recurrent else z_t  # (n', L, D_t)
        if s.recipe == "paper":  # stage 1 (Eq. 3.1): gamma
            m.G.requires_grad_(True)
            objective(m, s, batch, z_s.detach(), r.detach())
            sum_over_processes(m, batch)
            take_step(self.optimisers_G, s.lr_G)
            m.zero_grad()
            m.G.requires_grad_(False)  # stage 2 (Eq. 3.2): Z_V and theta
        v_hat, losses, terms = objective(m, s, batch, z_s, r)
        losses = among_all_clips(batch, losses)  # (B, T)
        terms = F.pad(terms / len(batch.clips), (0, 1), value=float(self.stop))  # (4,)
        sum_over_processes(m, batch, z_s.grad, z_t.grad, losses, terms)
        if is_fast:  # a single backward serves both stages
            take_step(self.optimisers_G, s.lr_G * rate)
        take_step([self.optimiser_R], s.lr_R * rate)
        m.z_s.update(batch.static_rows, z_s.grad, s.lr_Z * rate)
        m.z_t.update(batch.transient_rows, z_t.grad, s.lr_Z * rate)
        # ---- END: the training step ----
        self.batches.update_losses(batch.clips, losses)
        self.steps_done += 1
        if is_fast:
            follow(self.average, m, self.steps_done, s.steps, rate)
        return batch.v, v_hat, terms

    def state(self):
        optimisers = [optimiser.state_dict() for optimiser in (self.optimiser_R, *self.optimisers_G)]
        return dict(model=self.model.state_dict(), average=self.average, optimisers=optimisers,
                    batches=self.batches.state(), steps_done=self.steps_done)

    def restore(self, state):
        """Continue from a state. Raises RuntimeError, KeyError, TypeError, ValueError or AttributeError for
        another shape."""
        self.model.load_state_dict(state["model"] | state["average"])  # checks the shapes of the average
        self.average = {name: self.model.state_dict()[name].clone() for name in state["average"]}
        self.model.load_state_dict(state["model"])
        for optimiser, kept in zip((self.optimiser_R, *self.optimisers_G), state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self.batches.restore(state["batches"])
        self.steps_done = state["steps_done"]

def adam(groups, device):
    """Adam (App. B); the weight_decay of a group is decoupled."""
    return torch.optim.AdamW(groups, weight_decay=0.0, fused=device.type != "mps")

def take_step(optimisers, lr):
    """A step of the optimisers at the learning rate lr, a float32 tensor as their weights are."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = torch.tensor(lr)
        optimiser.step()

# ---- the clips on the device, and their order --------------------------------------------------------------
@dataclass
class Batch:
    """The clips of a step: all processes draw the same B clips, and a process renders B' of them."""
    clips: torch.Tensor  # (B,) indices
    static_rows: torch.Tensor  # (n,) rows of z_s, without duplicates
    transient_rows: torch.Tensor  # (n',) rows of z_t
    static_of_clip: torch.Tensor  # (B',) the place of a clip's row in static_rows
    transient_of_clip: torch.Tensor  # (B',) and in transient_rows
    length: torch.Tensor  # (n',) the frames of each row that R has to make
    times: torch.Tensor  # (B', T) frames of each clip
    v: torch.Tensor  # (B'*T, 3, H, W) uint8
    augmentation: torch.Tensor  # (B'*T, 4), or None

class Batches:
    """The clips as bytes on the device, and the order in which training visits them."""
    def __init__(self, clips, s, device):
        self.s = s
        self.N, self.L = clips.videos.shape[:2]
        self.T = s.per_clip or self.L
        self.frames = torch.from_numpy(clips.full).to(device)  # (sum of lengths, H, W, 3) uint8
        self.length = torch.from_numpy(clips.length).to(device)  # (N,)
        self.begin = self.length.cumsum(0) - self.length  # (N,) first frame of each clip
        self.static_id = torch.from_numpy(clips.static_id).to(device)
        self.transient_id = torch.from_numpy(clips.transient_id).to(device)
        self.visits = torch.zeros(self.N, device=device)
        self.clip_loss = torch.ones(self.N, device=device)
        self.rng = torch.Generator().manual_seed(s.seed)

    @record_function("nav: choose clips")
    def choose(self):
        """The clips of a step [B], no two equal, and random numbers [B, L + 1], with --augment 5 T more.
        The clips with the fewest visits come next, by visits plus a random number below 1. The paper's recipe
        counts a visit as 1: all clips come once before any clip comes again. The fast recipe counts it as
        (mean loss / the clip's loss)^3, from 1/8 to 8: a clip of twice the mean loss comes eight times as
        often, and so weighs more than in Eq. 6."""
        s = self.s
        ties = torch.rand(self.N, generator=self.rng).to(self.visits.device)
        clips = (self.visits + ties).topk(s.batch, largest=False).indices
        visit = 1
        if s.recipe == "fast":
            ease = self.clip_loss.mean() / self.clip_loss[clips].clamp(min=1e-9)
            visit = (ease ** HARD_CLIP_POWER).clamp(1 / 8, 8)
        self.visits[clips] += visit
        count = self.L + 1 + (5 * self.T if s.augment else 0)
        numbers = torch.rand(s.batch, count, generator=self.rng)
        return clips, numbers.to(clips.device)

    @record_function("nav: gather frames")
    def gather(self, clips, numbers):
        """The Batch of chosen clips [B]: T different frames of each, in random order, and their rows."""
        L = self.L
        static_rows, static_of_clip = self.static_id[clips].unique(return_inverse=True)
        transient_rows, transient_of_clip = self.transient_id[clips].unique(return_inverse=True)
        times = numbers[:, 1:L + 1].argsort(1)[:, :self.T]  # (B, T)
        length = how_far(times, transient_of_clip, len(transient_rows), L)
        mine = slice(RANK, None, WORLD)  # the clips that this process renders
        numbers = numbers[mine]
        times = times[mine]  # (B', T)
        begin = self.begin[clips[mine]]
        if self.s.window == "random":
            begin = begin + (numbers[:, 0] * (self.length[clips[mine]] - L + 1)).long()
        v = self.frames[begin[:, None] + times]  # (B', T, H, W, 3)
        v = v.flatten(0, 1).permute(0, 3, 1, 2)
        augmentation = None
        if self.s.augment:
            v, augmentation = augment(v, numbers[:, L + 1:].reshape(-1, 5))
        return Batch(clips, static_rows, transient_rows, static_of_clip[mine], transient_of_clip[mine],
                     length, times, v, augmentation)

    def update_losses(self, clips, losses):
        """Keep a running mean of each clip's loss: clips [B], losses [B, T]."""
        self.clip_loss[clips] = self.clip_loss[clips].lerp(losses.mean(1), 0.1)

    def state(self):
        return dict(visits=self.visits.cpu(), clip_loss=self.clip_loss.cpu(), rng=self.rng.get_state())

    def restore(self, state):
        self.visits.copy_(state["visits"])
        self.clip_loss.copy_(state["clip_loss"])
        self.rng.set_state(state["rng"])

def how_far(times, row_of_clip, rows, L):
    """The frames that R has to make of each row, int64 [rows], where times [B, T] are rendered.
    R's cost grows with its frames. Where every clip of the batch has a row of its own, only l_triplet needs
    the frames behind a row's last rendered frame. So at least a quarter of the rows, with the latest rendered
    frames, run to the end, and the other rows stop there. Rendered frames are random, so every row is among
    the whole rows equally often: their l_triplet, times rows / whole rows, has the expectation of the sum
    over all rows. With a shared row, and on a GPU, all rows are whole."""
    length = torch.full((rows,), L, device=times.device)
    if rows == len(times) and times.device.type == "cpu":
        length[row_of_clip] = times.max(1).values + 1
        length[length >= length.topk(-(-rows // 4)).values[-1]] = L
    return length

# ============================================================================================================
# The paper's method ends here. Below: the sampler, our fast recipe, its measures and experiments, the shell.
# ============================================================================================================

# ---- the sampler: videos of codes (Sec. 1; Fig. 6 and 7) ---------------------------------------------------
FRAME = (220, 30, 30)  # the colour around pairs and frames that training never saw
def to_bytes(frames):
    """Frames [M, 3, H, W] in [-1, 1] -> uint8 [M, H, W, 3]."""
    return frames.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

@torch.no_grad()
def videos_of(model, z_s, z_t, label):
    """Clips of codes [K, D_s] and [K, L, D_t], label [K] -> uint8 [K, L, H, W, 3]. Puts G in eval mode."""
    model.G.eval()
    frames = []
    for z, t, k in zip(z_s.split(16), z_t.split(16), label.split(16)):
        t, of_clip = t.unique(dim=0, return_inverse=True)  # R runs once for clips that share their codes
        frames.append(to_bytes(model.render(z, model.R(t)[of_clip], k)))
    return torch.cat(frames).unflatten(0, z_t.shape[:2])

def videos(model, static_row, transient_row):
    """Clips of pairs of dictionary rows, int64 [K] and [K], arrays or tensors -> uint8 [K, L, H, W, 3]."""
    i, k = (torch.as_tensor(rows, device=model.z_s.z.device) for rows in (static_row, transient_row))
    return videos_of(model, model.z_s.z[i], model.z_t.z[k], k)

@torch.no_grad()
def frames_between(model, pair, weights, on="r"):
    """Frames of the clip of a pair of dictionary rows, weights [n, L] -> uint8 [n, H, W, 3] on the CPU.
    Frame j is G of the mean of R's outputs with weights[j]; on "z", R runs over the means of the codes."""
    i, k = torch.as_tensor(pair, device=model.z_s.z.device)[:, None]
    model.G.eval()
    z_t = model.z_t.z[k]  # (1, L, D_t)
    weights = weights.to(z_t)
    r = model.R(weights @ z_t) if on == "z" else weights @ model.R(z_t)
    return to_bytes(model.render(model.z_s.z[i], r, k)).cpu()

def line(L, ends, K):
    """Weights [n, L] of frames `ends`, from 0, and of K frames between neighbouring ends (Fig. 7).
    With the paper's n/k the last frame between would be the end itself."""
    weights = torch.eye(L)[ends]
    share = torch.arange(K + 1)[:, None] / (K + 1)
    between = [(1 - share) * a + share * b for a, b in zip(weights, weights[1:])]
    return torch.cat([*between, weights[-1:]])

def gaussian_codes(codes, count, rng):
    """New static codes [count, D_s] from a Gaussian fitted to codes [rows, D_s], float64."""
    variances, axes = torch.linalg.eigh(torch.cov(codes.T))  # ascending
    normal = torch.randn(count, len(variances), generator=rng, dtype=codes.dtype)
    # An axis for 8 codes: with more of the principal axes chairs fall apart (docs/results.md, New chairs).
    normal[:, :-max(1, len(codes) // 8)] = 0
    return unit_ball(codes.mean(0) + normal * variances.clamp(min=0).sqrt() @ axes.T)

def row_of(names, wanted):
    """A name, or the number of a row from 0 -> the row. A text that is both is a name, an int is a number.
    Raises DataError with the nearest names."""
    name = data_prep.one_line(wanted)
    if name in names and not isinstance(wanted, (int, np.integer)):
        return names.index(name)
    if str(wanted).isdecimal() and int(wanted) < len(names):
        return int(wanted)
    near = ", ".join(difflib.get_close_matches(str(wanted), names, 5, 0))
    raise DataError(f"{wanted}: no such name, and no row of 0 to {len(names) - 1}; nearest: {near}")

def choose_codes(run, prior, count, rng, static, transient):
    """The codes of `sample` -> z_s [K, D_s], transient rows [K], static names [K], and a text about them.
    `count` random pairs of the named rows, or of all rows; without a count all pairs. unseen: pairs that
    training never saw. gaussian: static codes that nobody learned. Raises DataError."""
    codes, data = run.model.z_s.z, run.data
    i, k = (torch.tensor([row_of(names, name) for name in some]) if some else torch.arange(len(names))
            for names, some in ((run.static_names, static), (run.transient_names, transient)))
    if prior == "gaussian" and static:
        raise DataError("--prior gaussian draws new static codes: leave --static out")
    if count:  # of a thousand rows each: all pairs of 20,000 clips would not fit into the memory
        i, k = (rows[torch.randperm(len(rows), generator=rng)[:1000]] if len(rows) > 1000 else rows
                for rows in (i, k))
    pairs = torch.cartesian_prod(i, k)  # (pairs, 2), in the order in which they are named
    words = "pairs of learned codes"
    if prior == "unseen":
        seen = {tuple(pair) for pair in data["pairs"]}
        pairs = pairs[torch.tensor([tuple(pair) not in seen for pair in pairs.tolist()])]
        words = f"of the {len(pairs)} pairs that training never saw"
        if len(run.transient_names) == data["clips"]:
            words += "; each clip has its own transient code: new pairs are mixtures"
    if len(pairs) == 0:
        raise DataError(f"--prior unseen: {run.folder} was trained on all of these pairs")
    if count and count > len(pairs) and prior != "gaussian":  # no pair twice; new static codes all differ
        count = len(pairs)
        words = words if prior == "unseen" else f"all {count} pairs of learned codes"
    if count:
        pairs = pairs[torch.randperm(len(pairs), generator=rng).repeat(-(-count // len(pairs)))[:count]]
    i, k = pairs.T
    if prior != "gaussian":
        return codes[i.to(codes.device)], k, [run.static_names[row] for row in i], words
    if len(codes) < 2:
        raise DataError(f"--prior gaussian: {run.folder} has one static code, a Gaussian needs two or more")
    z_s = gaussian_codes(codes.cpu().double(), len(k), rng).to(codes)
    return z_s, k, [f"new{j}" for j in range(len(k))], "new static codes"

def sample(args):
    """sample --run runs/chair --count 16 --save mp4: new videos, as arrays (samples.npz) and as files"""
    if args.scale and not args.save:
        raise DataError("--scale is of the files of --save: give both")
    run = load(args.run, args.device)
    everything = clips_of_run(run, args.dataset) if args.prior == "gaussian" else None
    count = args.count or (None if args.static or args.transient else 16)
    write_samples(run, everything, args.prior, count, args.seed, args.static, args.transient, args.out,
                  args.fps, save=args.save, scale=args.scale)

def write_samples(run, everything, prior, count, seed, static=None, transient=None, out=None, fps=None,
                  **save):
    """Videos of codes as choose_codes draws them: samples.npz, .png, .gif and a file a clip, as `save` says
    (data_prep.write_samples). everything: all Clips of the run, for prior `gaussian`. Raises DataError."""
    model, data = run.model, run.data
    rng = torch.Generator().manual_seed(seed)
    z_s, k, statics, words = choose_codes(run, prior, count, rng, static, transient)
    transients = [run.transient_names[row] for row in k]
    parts = (videos_of(model, z, model.z_t.z[rows], rows).cpu().numpy()
             for z, rows in zip(z_s.split(16), k.to(z_s.device).split(16)))
    path = named(out or run.folder, "samples.npz", data)
    fps = fps or speed(data)
    shown = data_prep.write_samples(path, parts, statics, transients, words, fps, **save)
    rows, labels = shown, [f"{a}\n{b}" for a, b in zip(statics[:16], transients)]
    if prior == "gaussian":
        rows, labels = beside_nearest(run, shown, everything)
    show(path.parent, "samples", data, rows, data_prep.side_by_side(shown), fps, row_labels=labels,
         title=f"{len(shown)} of {len(k)}: {words}")
    files = f", and {path.with_suffix('')}" if save.get("save") else ""
    say(f"{len(k)} videos, {words}: {path}, .png and .gif{files}")

def honest_prior(data):
    """The prior of the samples after training: nothing that training saw, if there is anything else."""
    n_static, n_transient = len(data["static_names"]), len(data["transient_names"])
    if len({tuple(pair) for pair in data["pairs"]}) < n_static * n_transient:
        return "unseen"
    return "gaussian" if n_static > 1 else "dictionary"

def beside_nearest(run, clips, everything):
    """New clips [K, L, H, W, 3], each over its nearest training clip: rows [2 K, ...] and their labels.
    Says how far the new clips, and real clips that training never saw, are from training clips."""
    every, data = run.settings.every, run.data
    train_set, held_out = keep_from_training(everything, run.settings)
    if not held_out and data["dataset"] == "chair" and not data["path"]:
        held_out = data_prep.draw_chairs(len(clips), data["frames"] * every, data["size"], seed=1)
    real = thumbnails(torch.from_numpy(train_set.videos))
    index, distance = nearest(torch.from_numpy(clips), real)
    say(f"new clips: {distance.mean():.3f} from the nearest training clip (rms on [0, 1]; 0 is a copy)")
    if held_out:
        _, distance = nearest(torch.from_numpy(held_out.videos[:, ::every]), real)
        say(f"real clips that training never saw: {distance.mean():.3f}")
    rows = np.stack([clips, train_set.videos[index.numpy()]], 1).reshape(-1, *clips.shape[1:])
    return rows, ["new", "nearest real"] * len(clips)

def exchange(args):
    """exchange --run runs/weizmann: Fig. 6, all static x all transient codes, unseen pairs framed"""
    run = load(args.run, args.device)
    data, L = run.data, run.data["frames"]
    rows, columns = run.static_names, run.transient_names
    size = f"{len(rows)} x {len(columns)}"
    if min(len(rows), len(columns)) < 2 or len(rows) * len(columns) > 1024:
        raise DataError(f"exchange shows 2 x 2 to 1024 pairs; {size} codes are no grid")
    if len(rows) == len(columns) == data["clips"]:
        warn("these clips are no grid: each has its own transient code, and all other pairs are mixtures")
    cells = np.stack([videos(run.model, [i] * len(columns), range(len(columns))).cpu().numpy()
                      for i in range(len(rows))])  # (rows, columns, L, H, W, 3)
    frames = [[None if [i, k] in data["pairs"] else FRAME for k in range(len(columns))]
              for i in range(len(rows))]
    how = dict(gap=4, frames=frames, row_labels=rows, column_labels=columns)
    film = np.stack([data_prep.draw_sheet(cells[:, :, t], **how) for t in range(L)])
    three = np.concatenate([cells[:, :, (L - 1) * quarter // 4] for quarter in (1, 2, 3)], 3)
    fps = args.fps or speed(data)
    path = show(args.out or run.folder, "exchange", data, three, film, fps, **how)
    data_prep.write_clip(film, path.with_suffix(".mp4"), fps, max(1, 1600 // max(film.shape)))
    say(f"{size} pairs, {sum(row.count(FRAME) for row in frames)} of them unseen and framed: {path}, "
        ".gif and .mp4")

def interpolate(args):
    """interpolate --run runs/weizmann --clip 3: Fig. 7, frames between two or all frames of a clip"""
    run = load(args.run, args.device)
    data, L = run.data, run.data["frames"]
    a, b = args.frames or (2, min(5, L))
    ends, K = [a - 1, b - 1], args.between or 3
    if args.fps_factor and (args.frames or args.between):
        raise DataError("--fps-factor takes the whole clip: leave --frames and --between out")
    if args.fps_factor:
        ends, K = list(range(L)), args.fps_factor - 1
    elif not 1 <= a < b <= L:
        raise DataError(f"--frames {a} {b}: two frames in order of 1 to {L} expected")
    if args.clip >= data["clips"]:
        raise DataError(f"--clip {args.clip}: this run has clips 0 to {data['clips'] - 1}")
    weights = torch.cat([torch.eye(L)[: ends[0]], line(L, ends, K)])  # R begins with the clip's first frame
    video = frames_between(run.model, data["pairs"][args.clip], weights, args.on).numpy()[ends[0] :]
    frames = [FRAME if t % (K + 1) else None for t in range(len(video))]
    rows, frames = ([each[t:t + 16] for t in range(0, len(video), 16)] for each in (list(video), frames))
    fps = args.fps or min(speed(data) * (args.fps_factor or 1), data_prep.GIF_FPS)  # the GIF has all frames
    path = show(args.out or run.folder, "interpolation", data, rows, video, fps, gap=4, frames=frames)
    say(f"{data['names'][args.clip]}: {(len(ends) - 1) * K} frames between, framed: {path} and .gif")

# ---- our recipe: rates, first codes, Muon, augmentation ----------------------------------------------------
def schedule(step, steps, warm_up=50):
    """The fast recipe's rates, in (0, 1]: a short linear warm-up, full rates, linear to zero from 0.3 on."""
    return min(1.0, (step + 1) / warm_up, (1 - step / steps) / 0.7)

@torch.no_grad()
@record_function("nav: average")
def follow(average, model, step, steps, rate, every=4):
    """Every fourth step: move the average, a dict like the model's state, towards weights and codes.
    An unfinished run shows the average. At full rates the model's weights are noisy, and the average has up
    to 1.7 dB more. It is exponential, over min(step / 8, rate * steps / 25) steps: the reach grows at first
    and shrinks with the rates, so after the last step average and model are the same. The average of codes of
    rank rho (--rank) is not of rank rho."""
    if step % every and step < steps:
        return
    reach = min(step / 8, rate * steps / 25)
    share = every / max(every, reach)
    for name, values in model.state_dict().items():
        if name.endswith((".m", ".v", ".count")):  # the state of the codes' optimiser
            continue
        if values.is_floating_point():
            average.setdefault(name, values.clone()).lerp_(values, share)
        else:
            average[name] = values.clone()

def optimisers_of_G(G, s, device):
    """Adam for gamma (App. B). In the fast recipe Muon trains G's layers behind the first."""
    is_fast = s.recipe == "fast"
    convolutions = [p for p in G.parameters() if p.ndim == 4 and is_fast]  # for Muon
    matrices = [p for p in G.parameters() if p.ndim == 2 or p.ndim == 4 and not is_fast]
    norms_and_biases = [p for p in G.parameters() if p.ndim == 1]
    optimisers = [adam([dict(params=matrices, weight_decay=s.decay), dict(params=norms_and_biases)], device)]
    if convolutions:
        optimisers.append(Muon(convolutions, s.decay, bf16=s.precision == "bf16"))
    return optimisers

def principal_components(x, k):
    """PCA of rows x [n, d] -> [n, k] float32, the longest row scaled to 0.9; columns of zeros if d < k."""
    x = (x - x.mean(0)).double()
    y = x @ torch.linalg.eigh(x.T @ x)[1].flip(1)[:, :k]  # the largest axes first
    y = y * (0.9 / y.norm(dim=1).max().clamp(min=1e-9))
    return F.pad(y, (0, k - y.shape[1])).float()

def mean_of_rows(row_of_clip, n_rows, values):
    """The mean of values [N, ...] over the clips of each row -> [n_rows, ...]; zeros where no clip is."""
    row_of_clip = torch.from_numpy(row_of_clip)
    total = torch.zeros(n_rows, *values.shape[1:]).index_add_(0, row_of_clip, values)
    count = torch.bincount(row_of_clip, minlength=n_rows).clamp(min=1)
    return (total.flatten(1) / count[:, None]).view(total.shape)

@torch.no_grad()
def start_from_clips(model, clips):
    """First codes, by PCA of frames of 8 x 8: similar clips and similar frames start close together.
    z_s comes from a static row's mean frame, z_t from the frames less that mean, both with a little noise. R
    starts close to the identity on z_t: PyTorch's first R shrinks the variation of r to a sixth of a static
    code's norm, so that G would start nearly blind to motion."""
    N, L, H = clips.videos.shape[:3]
    frames = torch.empty(N, L, 192)
    for video, small in zip(clips.videos, frames):  # clip by clip: all as floats may not fit into the memory
        small.copy_(F.avg_pool2d(unit_frames(torch.from_numpy(video)), H // 8).flatten(1))
    still = mean_of_rows(clips.static_id, len(clips.static_names), frames.mean(1))  # (static rows, 192)
    frames -= still[clips.static_id][:, None]
    moving = mean_of_rows(clips.transient_id, len(clips.transient_names), frames)  # (transient rows, L, 192)
    for codes, features in ((model.z_s, still), (model.z_t, moving.flatten(0, 1))):
        first = principal_components(features, codes.z.shape[-1]).view(codes.z.shape)
        codes.z.copy_(codes.project(first + 0.02 * torch.randn_like(first)))
    if not isinstance(model.R, nn.Identity):
        start_as_identity(model.R, model.z_t.z)

@torch.no_grad()
def start_as_identity(R, z_t, rows=256):
    """Fit R's linear map by ridge regression, so that R(z_t) starts close to z_t [rows, L, D_t]."""
    z = z_t[:rows].flatten(0, 1).double()
    h = F.pad(R.gru(z_t[:rows]).flatten(0, 1).double(), (0, 1), value=1.0)  # (rows * L, HIDDEN + 1)
    square = h.T @ h
    square.diagonal().add_(1e-3 * square.diagonal().mean())
    fitted = torch.linalg.solve(square, h.T @ z)  # (HIDDEN + 1, D_t)
    R.out.weight.copy_(fitted[:-1].T)
    R.out.bias.copy_(fitted[-1])

class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose updates of a matrix have similar singular values, with decoupled weight decay.
    Weights [c_in, c_out, 4, 4] are matrices [c_in, 16 * c_out]. The update is (m m^T)^(-1/2) x, with m the
    momentum and x Nesterov's gradient; the inverse root of every eighth step is enough. An element moves by
    about lr (root mean square), as under Adam. bf16: the precision of that product."""
    EVERY = 8

    def __init__(self, weights, weight_decay=0.0, bf16=False):
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        super().__init__(weights, dict(lr=torch.zeros(()), momentum=0.8, weight_decay=weight_decay))
        for w in weights:
            self.state[w].update(m=torch.zeros_like(w), root=torch.eye(len(w), device=w.device), steps=0)

    @torch.no_grad()
    @record_function("nav: Muon")
    def step(self):
        group = self.param_groups[0]
        for w in group["params"]:
            lr = group["lr"].to(w.device)
            state = self.state[w]
            c_in, c_out, *kernel = w.shape
            m = state["m"].mul_(group["momentum"]).add_(w.grad)
            x = as_matrix(torch.add(w.grad, m, alpha=group["momentum"]))
            root = state["root"] * (-lr * max(c_in, 16 * c_out) ** 0.5 / x.norm().clamp(min=1e-9))
            x = root.to(self.dtype) @ x.to(self.dtype)
            w.mul_(1 - group["weight_decay"] * lr)
            w.add_(x.view(c_in, *kernel, c_out).permute(0, 3, 1, 2))
            if state["steps"] % self.EVERY == 0:
                state["root"].copy_(inverse_root(m))
            state["steps"] += 1

def as_matrix(w):
    """w [c_in, c_out, 4, 4] -> [c_in, 16 * c_out], as it lies in memory."""
    return w.permute(0, 2, 3, 1).flatten(1)

def inverse_root(m):
    """(m m^T)^(-1/2) of as_matrix(m), scaled to norm 1, by three Newton-Schulz steps on the small m m^T."""
    x = as_matrix(m)
    gram = x @ x.T / x.square().sum().clamp(min=1e-18)
    one = torch.eye(len(m), device=m.device)
    root = one
    for _ in range(3):
        p = 3.4445 * one - 4.7750 * gram + 2.0315 * gram @ gram
        root = root @ p
        gram = gram @ p @ p
    return root

def augment(v, rand, most=4):
    """Conditional augmentation (Karras et al., 2022): frames are changed, and G is told how.
    Frames v uint8 [M, 3, H, H] and rand [M, 5] in [0, 1) -> frames like v and numbers [M, 4] for G, 0 for an
    untouched frame, as at generation. Half of the frames are shifted by up to `most` pixels, edges repeated;
    half have their colours turned about the grey axis: white stays white."""
    M, _, H, _ = v.shape
    moved, turned = (rand[:, :2] < 0.5).float().unbind(1)  # (M,), (M,)
    shift = ((rand[:, 2:4] * (2 * most + 1)).floor() - most) * moved[:, None]  # (M, 2) right, down
    angle = (2 * rand[:, 4] - 1) * math.pi * turned  # (M,)
    centres = (2 * torch.arange(H, device=v.device) + 1) / H - 1  # (H,) of pixels, in [-1, 1]
    x, y = (centres - 2 * shift[:, :, None] / H).unbind(1)  # (M, H): the places that pixels come from
    grid = torch.stack([x[:, None].expand(M, H, H), y[:, :, None].expand(M, H, H)], 3)
    out = F.grid_sample(v.float(), grid, padding_mode="border", align_corners=False)
    # The rotation about the grey axis, by Rodrigues' formula.
    cos = angle.cos()[:, None, None]  # (M, 1, 1)
    sin = angle.sin()[:, None, None]
    one = torch.eye(3, device=v.device)
    cross = (one.roll(1, 0) - one.roll(-1, 0)) / 3 ** 0.5
    out = (one * cos + (1 - cos) / 3 + cross * sin) @ out.flatten(2)  # (M, 3, H * H)
    numbers = torch.cat([shift / most, cos[:, 0] - 1, sin[:, 0]], 1)
    return out.view(v.shape).round().clamp(0, 255).to(torch.uint8), numbers

# ---- the measures of Sec. 4.2, and more: clips are uint8 [K, L, H, W, 3] -----------------------------------
VGG16 = "https://download.pytorch.org/models/vgg16-397923af.pth"
def unit_frames(clips):
    """uint8 [..., H, W, 3] -> float [..., 3, H, W] in [0, 1]."""
    return clips.movedim(-1, -3).contiguous().float().div_(255)

def psnr(generated, real):
    """dB of each clip, by its mean squared error on [0, 1], at most 100. uint8 [K, L, H, W, 3] -> [K]."""
    mse = torch.stack([(g.float() - r).div_(255).square_().mean() for g, r in zip(generated, real)])
    return -10 * mse.clamp(min=1e-10).log10()

PIXELS_AT_ONCE = 2 ** 18  # of clips that are scored together: so many stay in a processor's cache
def local_mean(v):
    """Means under a Gaussian of 11 x 11, sigma 1.5, where it fits, sides of at least 11 (else RuntimeError).
    float [..., H, W] -> [..., H - 10, W - 10]. Every plane is a channel: a few channels take far longer."""
    taps = torch.exp(-torch.arange(-5, 6, dtype=v.dtype, device=v.device).square() / (2 * 1.5 ** 2))
    planes = v.reshape(1, -1, *v.shape[-2:])
    n = planes.shape[1]
    taps = (taps / taps.sum()).expand(n, 1, 11)
    planes = F.conv2d(F.conv2d(planes, taps[:, :, :, None], groups=n), taps[:, :, None], groups=n)
    return planes.view(*v.shape[:-2], *planes.shape[-2:])

def moments(frames):
    """Frames, float [..., C, H, W] in [0, 1] -> frames, and of each colour local means, their squares, and
    local variances."""
    mean = local_mean(frames)
    square = mean * mean
    return frames, mean, square, local_mean(frames * frames).sub_(square)

def ssim(moments_x, moments_y):
    """SSIM of frames x and y [..., C, H, W], both given by their moments -> float [...], broadcast.
    As scikit-image's structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    data_range=1), averaged over colours; a border of 5 pixels is left out, as there."""
    x, mean_x, square_x, variance_x = moments_x
    y, mean_y, square_y, variance_y = moments_y
    product = mean_x * mean_y
    # Every sum in the memory of its first term: new memory takes longer than the sums.
    covariance = local_mean(x * y).sub_(product)
    numerator = product.mul_(2).add_(1e-4).mul_(covariance.mul_(2).add_(9e-4))
    denominator = (square_x + square_y).add_(1e-4).mul_((variance_x + variance_y).add_(9e-4))
    return numerator.div_(denominator).mean((-3, -2, -1))

def fcs(moments_of_clips):
    """Frame Consistency Score: mean SSIM of each clip's first frame with all its frames, itself included.
    Moments of frames [K, L, C, H, W] -> float [K], at most 1."""
    first = [v[:, :1] for v in moments_of_clips]
    return ssim(first, moments_of_clips).mean(1)

def load_vgg16(where, device):
    """(phi of the MCS, None), or (None, the reason). where: PATH, `download`, or None for the cache.
    phi is VGG16 up to relu3_3: normalised frames [M, 3, H, W] -> [M, 256, H / 4, W / 4]. Raises DataError."""
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(VGG16).name)
    if not where and not cached.is_file():
        return None, "no VGG16 weights: --vgg16 download fetches them (528 MB), --vgg16 PATH reads them"
    layers = []
    for block in ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256)):
        for c_in, c_out in zip(block, block[1:]):
            layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    phi = nn.Sequential(*layers[:-1])
    try:
        if where in (None, "download"):
            weights = torch.hub.load_state_dict_from_url(VGG16, map_location="cpu", check_hash=True)
        else:
            weights = torch.load(where, map_location="cpu", weights_only=True)
        phi.load_state_dict({key: weights[f"features.{key}"] for key in phi.state_dict()})
    except Exception as error:  # no network, a wrong hash, no such file, damaged bytes, other layers
        if data_prep.is_of_machine(error):
            raise
        reason = printable(error) if isinstance(error, OSError) else type(error).__name__
        raise DataError(f"--vgg16 {where or cached}: not VGG16 with torchvision's names ({reason})") from None
    return phi.to(device).requires_grad_(False), None

def motion(phi, clip):
    """phi(v_{t+1}) - phi(v_t) of a clip, uint8 [L, H, W, 3] -> float [L - 1, 256, H / 4, W / 4]."""
    mean = torch.tensor([0.485, 0.456, 0.406], device=clip.device)[:, None, None]  # torchvision's
    std = torch.tensor([0.229, 0.224, 0.225], device=clip.device)[:, None, None]
    return phi((unit_frames(clip) - mean) / std).diff(dim=0)

def thumbnails(clips):
    """uint8 [K, L, H, W, 3] -> float [K, L * 3 * 16 * 16] in [0, 1], frames of 16 x 16."""
    K, L = clips.shape[:2]
    small = torch.empty(K, L, 3, 16, 16, device=clips.device)
    for frames, video in zip(small, clips):
        frames.copy_(F.adaptive_avg_pool2d(unit_frames(video), 16))
    return small.flatten(1)

def nearest(clips, real):
    """The nearest of real clips, given as thumbnails [N, d]. uint8 [K, L, H, W, 3] -> index [K], and distance
    [K]: root mean square on [0, 1]."""
    small = thumbnails(clips)
    # |a - b|^2 but for |a|^2. The norm makes no second array of the size of `real`.
    index = (real.norm(dim=1).square() - 2 * small @ real.T).argmin(1)
    return index, (small - real[index]).square().mean(1).sqrt()

class Sums:
    """FCS and `motion`, summed over clips that come in parts. phi: of load_vgg16, or None."""
    def __init__(self, phi):
        self.phi = phi
        self.count = 0
        self.fcs = 0.0
        self.motion = 0.0  # with phi a tensor [L - 1, 256, H / 4, W / 4]

    def add(self, clips):
        """Count in clips, uint8 [K, L, H, W, 3] -> the moments of their frames."""
        part = moments(unit_frames(clips))
        self.count += len(clips)
        self.fcs += fcs(part).sum().item()
        if self.phi:
            for clip in clips:  # one by one: the same clips have the same sum in whatever parts they come
                self.motion = self.motion + motion(self.phi, clip)
        return part

def scores(generated, real, phi, reason, pairs=False):
    """Table 2's two scores of clips, and two more. Clips are uint8 [K, L, H, W, 3] and [N, L, H, W, 3] on one
    device, the generated clips in parts, of which the memory holds one at a time.
    mcs is the paper's log10 |f - f^|^2. Averaging `motion` over t telescopes to (last - first) / (L - 1), so
    mcs ignores everything in between; mcs_t is the log10 of the mean over t of |f_t - f^_t|^2. Lower is
    better. Both are None without phi, and for equal motion (JSON has no infinity). fcs_bound is the FCS of
    the real clips. distinct_nearest: the number of real clips that are nearest to a generated clip.
    pairs: there are as many generated clips as real ones, and clip j redraws real clip j; psnr, psnr_min and
    ssim say how well."""
    small = thumbnails(real)
    few = max(1, PIXELS_AT_ONCE // real[0, ..., 0].numel())  # clips
    made = Sums(phi)
    truth = Sums(phi)
    nearest_clips = set()
    # Results go into memory that is there before: small tensors between large ones make a process grow.
    dB = torch.full((len(real),), math.nan)
    similarity = torch.full(real.shape[:2], math.nan)
    for part in generated:
        nearest_clips.update(nearest(part, small)[0].tolist())
        for clips in part.split(few):
            j = slice(made.count, made.count + len(clips))
            moments_made = made.add(clips)
            if pairs:
                dB[j] = psnr(clips, real[j]).cpu()
                similarity[j] = ssim(moments_made, truth.add(real[j])).cpu()
    if not pairs:
        for clips in real.split(few):
            truth.add(clips)
    found = dict(fcs=made.fcs / made.count, fcs_bound=truth.fcs / truth.count, mcs=None, mcs_t=None,
                 mcs_note=reason, distinct_nearest=len(nearest_clips))
    if pairs:
        found.update(psnr=dB.mean().item(), psnr_min=dB.min().item(), ssim=similarity.mean().item())
    if phi:
        difference = made.motion / made.count - truth.motion / truth.count  # (L - 1, 256, H / 4, W / 4)
        square = difference.mean(0).square().sum()
        square_t = difference.square().sum((1, 2, 3)).mean()
        found["mcs"] = square.log10().item() if square else None
        found["mcs_t"] = square_t.log10().item() if square_t else None
        if not square:
            found["mcs_note"] = "MCS -inf: from first to last frame generated and real clips move alike"
    return found

def scores_in_words(found):
    mcs = found["mcs_note"] or f"MCS {found['mcs']:.2f}"
    if found["mcs_t"] is not None:
        mcs += f", MCS_t {found['mcs_t']:.2f}"
    return f"FCS {found['fcs']:.3f} (real clips {found['fcs_bound']:.3f}: the closer the better); {mcs}"

# ---- unseen pairs (Sec. 4.3, Table 3), and interpolation as a number ---------------------------------------
def held_out_clips(everything, s):
    """--hold-out, --hold-out-clips -> indices of the clips that are kept from training. Raises DataError.
    Table 3: cells of the grid are drawn with the seed; every person and every action stays in some clip."""
    N = len(everything.names)
    held_out = list(range(N - s.hold_out_clips, N))
    of_person = np.bincount(everything.static_id)
    of_action = np.bincount(everything.transient_id)
    for j in np.random.default_rng(s.seed).permutation(N):
        i, k = everything.static_id[j], everything.transient_id[j]
        if len(held_out) < s.hold_out and of_person[i] > 1 and of_action[k] > 1:
            held_out.append(j)
            of_person[i] -= 1
            of_action[k] -= 1
    if len(held_out) < s.hold_out:
        raise DataError(f"--hold-out {s.hold_out}: at most {len(held_out)} of these {N} cells can stay "
                        "out with every row and column still seen; a grid has more (folder --grid)")
    return held_out

def keep_from_training(everything, s):
    """--hold-out, --hold-out-clips, --every -> (the Clips to train on, the Clips kept from it). DataError."""
    held_out = held_out_clips(everything, s)
    if not held_out and s.every == 1:
        return everything, None
    train_set = data_prep.subset(everything, np.delete(range(len(everything.names)), held_out), s.every)
    if s.hold_out_clips:
        train_set = data_prep.compact(train_set)
    return train_set, data_prep.subset(everything, held_out) if held_out else None

def measure_exchange(model, s, train_set, held_out):
    """Table 3 and Fig. 6 as numbers: dB of pairs kept from training, and of two baselines that need no model.
    nearest: the person's training clip closest to the truth, an upper bound for copies. additive:
    the person's mean clip + the action's mean clip - the mean clip, pixel by pixel."""
    real = torch.from_numpy(held_out.videos[:, ::s.every])
    clips = torch.from_numpy(train_set.videos).float()
    generated = videos(model, held_out.static_id, held_out.transient_id).cpu()
    dB_nearest, dB_additive = [], []
    for truth, i, k in zip(real, held_out.static_id, held_out.transient_id):
        person = clips[train_set.static_id == i]
        action = clips[train_set.transient_id == k]
        additive = (person.mean(0) + action.mean(0) - clips.mean(0)).clamp(0, 255)
        dB_nearest.append(psnr(person, truth.expand_as(person)).max())
        dB_additive.append(psnr([additive], [truth]))
    return dict(exchange_psnr=psnr(generated, real).mean().item(),
                exchange_nearest_psnr=torch.stack(dB_nearest).mean().item(),
                exchange_additive_psnr=torch.cat(dB_additive).mean().item())

def measure_interpolation(model, s, everything, train_set):
    """Trained on every K-th frame: dB of the frames between, by lines between outputs of R and between codes
    z_t (interpolation_z), and of the mean of their neighbours' pixels."""
    K, L = s.every, train_set.videos.shape[1]
    weights = line(L, list(range(L)), K - 1)
    between = torch.arange(len(weights)) % K > 0
    found = []
    whole = np.delete(everything.videos, held_out_clips(everything, s), 0)
    for video, pair in zip(whole, zip(train_set.static_id, train_set.transient_id)):
        real = torch.from_numpy(video[: len(weights)])
        average = (weights @ real[::K].flatten(1).float()).view(real.shape)
        ways = (*(frames_between(model, pair, weights, on) for on in "rz"), average)
        found.append([psnr([frames[between]], [real[between]]).item() for frames in ways])
    names = ("interpolation_psnr", "interpolation_z_psnr", "interpolation_average_psnr")
    return dict(zip(names, np.mean(found, 0).tolist()))

# ---- ablation (Table 4) ------------------------------------------------------------------------------------
ABLATION = {  # chairs: the paper's MCS and FCS, and the settings that a row changes; -R is not in the paper
    "-Z": (3.96, 0.75, None),  # codes that nobody learned, for the G and R of +triplet +static
    "+Z": (3.32, 0.89, None),
    "-triplet -static": (3.83, 0.77, dict(lambda_t=0.0, lambda_s=0.0)),
    "-triplet +static": (3.82, 0.85, dict(lambda_t=0.0)),
    "+triplet -static": (3.36, 0.81, dict(lambda_s=0.0)),
    "+triplet +static": (3.32, 0.89, {}),
    "-R": (None, None, dict(recurrent=False)),
}

def ablation_table(title, seeds, ours):
    """ours {"-Z, seed 0": scores, ...} of finished rows -> markdown, mean +- sample deviation of n seeds."""
    def cell(name, key):
        rows = [ours.get(f"{name}, seed {seed}", {}) for seed in seeds]
        values = [row[key] for row in rows if row.get(key) is not None]
        if len(values) < 2:
            return f"{values[0]:.3f}" if values else "-"
        return f"{np.mean(values):.3f} +- {np.std(values, ddof=1):.3f} (n={len(values)})"
    bound = next(iter(ours.values()))["fcs_bound"]
    lines = [f"{title}, {len(seeds)} seed(s), +- the sample deviation; real FCS {bound:.3f}", "",
             "| | MCS, paper (chairs) | MCS, ours | FCS, paper (chairs) | FCS, ours | MCS_t | PSNR |",
             "|---|---|---|---|---|---|---|"]
    for name, (paper_mcs, paper_fcs, _) in ABLATION.items():
        lines.append(f"| {name} | {paper_mcs or '-'} | {cell(name, 'mcs')} | {paper_fcs or '-'} | "
                     f"{cell(name, 'fcs')} | {cell(name, 'mcs_t')} | {cell(name, 'psnr')} |")
    return "\n".join(lines)

def ablate(args):
    """ablate --dataset chair --seeds 3: Tables 4a and 4b, and a row without R; finished rows are kept"""
    device, base, clips, data = prepare(args)
    vgg16 = load_vgg16(args.vgg16, device)
    if vgg16[1]:
        say(f"no MCS: {vgg16[1]}")
    seeds = range(base.seed, base.seed + args.seeds)
    out = Path(args.out or f"runs/ablation-{Path(args.dataset).stem}")
    table = dict(data, settings=asdict(base), generated_clips=args.generated_clips, device=str(device),
                 vgg16=args.vgg16 or vgg16[1], torch=str(torch.__version__))
    path = out / "ablation.json"
    before = {}
    if path.is_file():
        with data_prep.reading(path, "no table of this script; move it away"):
            before = dict(json.loads(path.read_text()))
    is_same_table = all(before.get(key) == value for key, value in table.items())
    ours = before.get("ours", {}) if is_same_table else {}
    folder_lock = take_folder(out, is_same_table, say)
    title = f"{clips.source}; recipe {base.recipe}, {base.steps} steps"
    for seed in seeds:
        for name, (_, _, changes) in ABLATION.items():
            if changes is None or f"{name}, seed {seed}" in ours:
                continue
            s = replace(base, seed=seed, **changes)
            trainer = Trainer(s, clips, device)
            progress = data_prep.Progress(f"seed {seed}, {name}: steps")
            for step in range(s.steps):
                _, _, terms = trainer.step()
                progress(step + 1, s.steps)
            if not terms.isfinite().all():
                raise diverged(s.steps, s)
            learned, unlearned = measure_row(trainer.model, clips, seed, args.generated_clips, vgg16)
            ours[f"{name}, seed {seed}"] = learned
            if name == "+triplet +static":
                ours.update({f"-Z, seed {seed}": unlearned, f"+Z, seed {seed}": learned})
            write(path, dict(table, commit=commit(), paper_on_chairs=ABLATION, ours=ours))
            write(out / "ablation.md", ablation_table(title, seeds, ours))
    folder_lock.release()
    say(f"{ablation_table(title, seeds, ours)}\nsee {out}")

def measure_row(model, clips, seed, count, vgg16):
    """Scores of `count` random pairs of learned codes, and of codes that nobody learned -> two dicts."""
    device = model.z_s.z.device
    real = torch.from_numpy(clips.videos).to(device)
    rng = torch.Generator().manual_seed(seed)
    i, k = (torch.randint(len(rows.z), (count,), generator=rng) for rows in (model.z_s, model.z_t))
    learned = scores(videos(model, i, k).split(16), real, *vgg16)
    learned["psnr"] = psnr(videos(model, clips.static_id, clips.transient_id), real).mean().item()
    z_s, z_t = (Dictionary(count, *codes.z.shape[1:]).z.to(device) for codes in (model.z_s, model.z_t))
    unlearned = videos_of(model, z_s, z_t, k.to(device))
    return learned, scores(unlearned.split(16), real, *vgg16)

# ---- encoding: codes of clips that were never trained on ---------------------------------------------------
def find_codes(model, s, clips, steps=300, lr=0.02):
    """Codes of clips never trained on, uint8 [K, L, H, W, 3] -> z_s [K, D_s], z_t [K, L, D_t], label [K].
    G and R are fixed. Starts at the nearest of at most 512 pairs of rows, and minimises l_rec by Adam."""
    device = model.z_s.z.device
    clips = clips.to(device)
    columns = len(model.z_t.z)
    count = len(model.z_s.z) * columns  # pair j: static row j // columns, transient row j % columns
    rng = torch.Generator().manual_seed(0)
    pairs = torch.arange(count) if count <= 512 else torch.randint(count, (512,), generator=rng)
    index, _ = nearest(clips, thumbnails(videos(model, pairs // columns, pairs % columns)))
    pairs = pairs.to(device)[index]
    static_row, label = pairs // columns, pairs % columns
    z_s, z_t = model.z_s.codes_of(static_row), model.z_t.codes_of(label)
    v = clips.flatten(0, 1).permute(0, 3, 1, 2)
    weight = torch.full((len(v),), 1 / clips.shape[1], device=device)
    optimiser = torch.optim.Adam([z_s, z_t])
    progress = data_prep.Progress("encoding: steps")
    for step in range(steps):
        progress(step, steps)
        optimiser.param_groups[0]["lr"] = lr * schedule(step, steps)
        v_hat = model.render(z_s, model.R(z_t), label)
        _, dl_dv = laplacian_l1_with_grad(v_hat, v, weight, s.levels)
        z_s.grad, z_t.grad = torch.autograd.grad(v_hat, (z_s, z_t), dl_dv)
        optimiser.step()
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

def encode(args):
    """encode --run runs/chair --input clip.gif: codes of a clip that was never trained on"""
    run = load(args.run, args.device)
    s, size = run.settings, run.data["size"]
    count = (run.data["frames"] - 1) * s.every + 1
    how = dict(run.data["reading"])
    if args.input.lower().endswith((".npz", ".npy")):
        notes = []
        found, _ = data_prep.read_clips([args.input], notes, count, size=size, crop=how["crop"])
        data_prep.report(notes)
        clips = list(found.values())
    else:
        if how["fps"] and os.path.isdir(args.input):
            say(f"{args.input}: a folder has no times, taken as frames of {how.pop('fps'):g} a second")
        clips = [data_prep.read_clip(args.input, count, count + 1, size, **how)[0]]
    if len(clips) != 1:
        raise DataError(f"--input {args.input}: {len(clips)} clips of {count} frames there, 1 expected")
    if len(clips[0]) > count:
        say(f"{args.input} is longer: encoded are its first {count} frames")
    real = clips[0][:count:s.every]
    found = run.encode(real)
    both = np.stack([real, found["video"]])
    path = show(args.out or run.folder, "encoded", run.data, both, data_prep.side_by_side(both),
                args.fps or speed(run.data), row_labels=["input", "encoded"])
    write(path.with_name("encoded.pt"), serialise({key: found[key] for key in ("z_s", "z_t", "label")}))
    dB = psnr(*torch.from_numpy(both[:, None])).item()
    say(f"PSNR {dB:.2f} dB from {found['z_s'].numel() + found['z_t'].numel()} numbers (the clip has "
        f"{real.size}); see {path}")

# ---- several processes (torchrun) --------------------------------------------------------------------------
# All processes hold all clips and codes, draw the same batch with the same seed, and render their clips of
# the batch. One message sums the gradients; then all processes make the same update.
RANK = int(os.environ.get("RANK", 0))
WORLD = int(os.environ.get("WORLD_SIZE", 1))
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))

def say(text):
    """Print a text in process 0. A reader who stops (`| head`) does not stop the run."""
    if RANK == 0:
        data_prep.say(text)

def join_processes(device):
    """Meet the processes that torchrun started: over NCCL on GPUs, gloo on CPUs. Raises DataError."""
    if WORLD == 1:
        return
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    except (ValueError, RuntimeError) as error:
        raise DataError(f"the processes did not meet; use torchrun ({printable(error, 90)})") from None

def same_in_all_processes(model):
    """Start from the codes and weights of process 0, to the bit."""
    for tensor in model.state_dict().values() if WORLD > 1 else ():
        dist.broadcast(tensor, 0)

def among_all_clips(batch, losses):
    """The losses [B', T] of this process's clips -> [B, T], zeros for the clips of other processes."""
    everyone = losses.new_zeros(len(batch.clips), losses.shape[1])
    everyone[RANK::WORLD] = losses
    return everyone

def sum_over_processes(model, batch, *tensors):
    """Sum the gradients and some tensors over the processes, in place, by one message.
    G's norms see the clips of their process; their running statistics become the mean over all clips."""
    if WORLD == 1:
        return
    learning = [p for p in model.parameters() if p.requires_grad]
    for p in learning:
        if p.grad is None:  # this process has no clip of the batch
            p.grad = torch.zeros_like(p)
    statistics = [b for b in model.G.buffers() if b.is_floating_point()] if model.G.training else []
    for values in statistics:
        values *= len(batch.times) / len(batch.clips)
    summands = [*(p.grad for p in learning), *statistics, *tensors]
    total = torch.cat([values.flatten() for values in summands])
    dist.all_reduce(total)
    for values, summed in zip(summands, total.split([values.numel() for values in summands])):
        values.copy_(summed.view_as(values))

# ---- the shell: device, settings, clips --------------------------------------------------------------------
def choose_device(name):
    """auto, cpu, cuda or mps -> torch.device. Raises DataError, or RuntimeError (NAV_KERNELS)."""
    is_there = dict(cuda=torch.cuda.is_available(), mps=torch.mps.is_available() and WORLD == 1, cpu=True)
    if name == "auto":
        name = next(name for name in is_there if is_there[name])
    if not is_there[name]:
        raise DataError(f"--device {name}: this machine or this PyTorch has none; use --device cpu")
    if name == "cuda" and WORLD > 1:
        if LOCAL_RANK >= torch.cuda.device_count():
            raise DataError(f"{torch.cuda.device_count()} GPUs: fewer --nproc_per_node, or --device cpu")
        torch.cuda.set_device(LOCAL_RANK)
    name_backend(name)
    return torch.device(name)

def has_fast_bf16(device):
    """Whether the device multiplies bf16 faster than fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    can = torch.cpu.get_capabilities()
    return device.type == "cpu" and (can.get("amx_bf16") or can.get("avx512_bf16"))

def choose_settings(args, clips, device):
    """Table 6's row, the recipe's values, then the given options -> Settings. Raises DataError.
    The fast recipe takes 32 clips x 1 frame a step with G of width 32; CUDA 128 x 1, width 64; a CPU 16 x 2
    if each clip has a transient code of its own. fit_batch changes that for few clips."""
    requested = {f.name: getattr(args, f.name, None) for f in fields(Settings)}
    requested = {name: value for name, value in requested.items() if value is not None}
    row = requested.get("table6", clips.kind or Path(args.dataset).stem)  # older sets record no kind
    if row not in TABLE_6:
        row = "weizmann" if clips.grid else "chair"
    N = max(1, len(clips.names) - requested.get("hold_out", 0) - requested.get("hold_out_clips", 0))
    steps, usual_N = FAST_STEPS[row]
    values = dict(TABLE_6[row], steps=round(steps * max(1, N / usual_N) ** 0.5))
    if requested.get("recipe") == "paper":
        # DCGAN's width. fp32: gradients of G in bf16 can make R diverge at weizmann's lr_R.
        # Appendix A: chairs have their first 16 frames, Weizmann random windows; of golf it does not say.
        values.update(PAPER[row], conditional=row == "weizmann", batch=1, per_clip=0, width=64,
                      window="first" if row == "chair" else "random", precision="fp32")
        values["steps"] *= N
    else:
        if row == "weizmann":
            values.update(window="aligned", augment=requested.get("hold_out", 0) > 0, decay=2.5)
        if device.type == "cuda":
            values.update(width=64, batch=128)
        elif device.type == "cpu" and len(clips.transient_names) == len(clips.names):
            values.update(batch=16, per_clip=2)  # R runs for each clip: half as many clips
    s = Settings(**values | requested | dict(table6=row))
    if s.precision == "auto":
        s.precision = "bf16" if has_fast_bf16(device) else "fp32"
    fit_batch(s, N, -(-clips.videos.shape[1] // s.every), requested, device)
    check_settings(s, clips)
    return s

def fit_batch(s, N, L, requested, device):
    """If there are fewer clips than a step takes, it takes all of them, on a GPU half, so that hard clips can
    be drawn more often, and more frames of each, about as many in all."""
    most = N if device.type == "cpu" else -(-N // 2)
    if s.batch <= most:
        return
    if "per_clip" not in requested:
        s.per_clip = min(round(s.per_clip * s.batch / most), L)
    if "batch" in requested:
        say(f"--batch {s.batch}: of {N} clips a step takes {most}, and {s.per_clip or L} frames of each")
    s.batch = most

def check_settings(s, clips):
    """Raises DataError for settings that these clips cannot be trained with."""
    N, L, H, W, _ = clips.videos.shape
    L = -(-L // s.every)
    faults = (
        (s.hold_out and s.hold_out_clips, "--hold-out and --hold-out-clips: one run takes one of the two"),
        (s.hold_out_clips >= N, f"--hold-out-clips {s.hold_out_clips}: of {N}, one must be left"),
        (L < s.alpha + 2, f"clips of {L} frames hold no triplet of radius {s.alpha}; data_prep.py --frames"),
        (s.per_clip > L, f"--per-clip {s.per_clip}: at most {L}, or 0 for all frames of a clip"),
        (H != W or H not in data_prep.SIDES, f"frames of {H} x {W}: G makes squares of {data_prep.SIDES} "
                                             "pixels; prepare clips with data_prep.py --size 64"),
        (s.levels > math.log2(H), f"--levels {s.levels}: at most {int(math.log2(H))} for {H} pixels"),
        (s.rank > min(L, s.D_t), f"--rank {s.rank}: at most {min(L, s.D_t)} for codes of {L} x {s.D_t}"),
    )
    for is_fault, text in faults:
        if is_fault:
            raise DataError(text)

def prepare(args):
    """The device, the Settings, the Clips in their windows, and data: what the checkpoint tells of them.
    The Clips are called `everything`; keep_from_training parts them into train_set and held_out."""
    device = choose_device(args.device)
    clips, path = data_prep.find(args.dataset, args.clips, args.layout)
    s = choose_settings(args, clips, device)
    data = dict(dataset=args.dataset, path=path, source=clips.source, standin=clips.standin, begin=None,
                requested_clips=args.clips, fingerprint=clips.fingerprint, reading=clips.reading,
                fps=clips.fps / s.every)
    if s.window == "aligned":
        begin = data_prep.aligned(clips, held_out_clips(clips, s))
        clips = data_prep.at_windows(clips, begin)
        data["begin"] = begin.tolist()
    return device, s, clips, data

# ---- the shell: a run's folder -----------------------------------------------------------------------------
@dataclass
class Run:
    """A trained run: its Settings, data and log as its checkpoint has them, and its model.
    Names of rows, or their numbers from 0, choose what a clip shows; all clips are uint8 [L, H, W, 3]."""
    folder: Path
    settings: Settings
    data: dict
    log: list
    model: Model

    def __post_init__(self):
        self.static_names, self.transient_names = self.data["static_names"], self.data["transient_names"]

    def clips(self, statics, transients):
        """Lists of K static and K transient names -> K clips, uint8 [K, L, H, W, 3]. Raises DataError.
        A clip is the same alone and beside others, but for rounding (1 of 255, in a few pixels)."""
        if not len(statics) == len(transients) > 0:
            raise DataError(f"{len(statics)} static and {len(transients)} transient names: as many expected")
        i = [row_of(self.static_names, name) for name in statics]
        k = [row_of(self.transient_names, name) for name in transients]
        return videos(self.model, i, k).cpu().numpy()

    def clip(self, static, transient):
        return self.clips([static], [transient])[0]

    def encode(self, video):
        """A clip, uint8 [L, H, W, 3] -> dict(z_s [D_s], z_t [L, D_t], label: row of its first codes, video:
        from these codes). Raises DataError."""
        shape = (self.data["frames"], self.data["size"], self.data["size"], 3)
        video = np.asarray(video)
        if video.shape != shape or video.dtype != np.uint8:
            raise DataError(f"a clip of {video.dtype} {video.shape}: uint8 {shape} expected")
        codes = find_codes(self.model, self.settings, torch.from_numpy(np.ascontiguousarray(video))[None])
        clip = videos_of(self.model, *codes)[0].cpu().numpy()
        z_s, z_t, label = (code[0].cpu() for code in codes)
        return dict(z_s=z_s, z_t=z_t, label=label.item(), video=clip)

def serialise(tensors):
    """The bytes that torch.save writes: a full disk is then an OSError, not an error of torch's own."""
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()

# What a checkpoint holds, and what its `data` holds.
CHECKPOINT = dict(model=dict, average=dict, optimisers=list, batches=dict, steps_done=int, log=list,
                  settings=dict, data=dict)
DATA = dict(dataset=str, path=str | None, source=str, standin=bool, begin=list | None, fingerprint=str,
            requested_clips=int | None, reading=dict, fps=float, clips=int, frames=int, size=int,
            names=list, static_names=list, transient_names=list, pairs=list, trained_on=dict)

def check_types(found, types):
    """Raises TypeError unless a dict has a value of the right type for every key of `types`."""
    for key, kind in types.items():
        kind = kind | int if kind is float else kind
        if not isinstance(found.get(key, ...), kind):
            raise TypeError(f"{key}: {getattr(kind, '__name__', kind)} expected")

def read_checkpoint(folder):
    """The checkpoint of a run's folder -> dict of tensors and plain values. Raises DataError."""
    path = Path(folder, "checkpoint.pt")
    if not path.is_file():
        raise DataError(f"{path}: no checkpoint there; train first, or name another folder")
    try:
        if damaged := zipfile.ZipFile(path).testzip():  # torch.load does not look at the checksums
            raise ValueError(f"{damaged} is not as it was written: restore the file from a copy")
        kept = torch.load(path, map_location="cpu", weights_only=True)
        check_types(kept, CHECKPOINT)
        check_types(kept["data"], DATA)
        check_types(kept["settings"], {f.name: f.type for f in fields(Settings)})
        kept["settings"] = Settings(**kept["settings"])
        return kept
    except Exception as error:  # damaged bytes or another version can make torch raise anything
        if data_prep.is_of_machine(error):
            raise
        raise DataError(f"{path}: not a checkpoint of this script ({printable(error, 120)})") from None

def load(folder, device="auto"):
    """The Run of a folder (or of its checkpoint.pt), on a device; unfinished, with the average of its last
    steps' weights and codes (see follow). Raises DataError."""
    folder = Path(folder).parent if Path(folder).name == "checkpoint.pt" else Path(folder)
    kept = read_checkpoint(folder)
    s, data = kept["settings"], kept["data"]
    try:
        rows = len(data["static_names"]), len(data["transient_names"])
        model = Model(s, data["size"], data["frames"], *rows)
        # The model by itself first: the average would hide a wrong shape in it.
        model.load_state_dict(kept["model"])
        model.load_state_dict(kept["model"] | kept["average"])
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{folder}/checkpoint.pt: of another shape ({printable(error, 120)})") from None
    model.to(choose_device(device), memory_format=torch.channels_last)
    return Run(folder, s, data, kept["log"], model)

def clips_of_run(run, dataset=None):
    """All clips of a run: of --dataset, else of the file or stand-ins that it was trained on. DataError."""
    s, data = run.settings, run.data
    name = dataset or data["path"] or data["dataset"]
    drawn = not data["path"] and dataset in (None, data["dataset"])
    path = data_prep.data_path(name)
    if not drawn and not path.is_file():
        raise DataError(f"{run.folder}: no clips at {path.resolve()}; --dataset PATH.npz says where they are")
    clips, _ = data_prep.find(name, data["requested_clips"], s.layout, drawn)
    if clips.fingerprint != data["fingerprint"]:
        raise DataError(f"{name} does not hold the clips that {run.folder} was trained on "
                        f"({data['source'][:60]}); --dataset names those, or train afresh")
    return data_prep.at_windows(clips, data["begin"]) if data["begin"] else clips

def named(out, name, data):
    """OUT/NAME; results of stand-ins are called so. Makes the folder."""
    path = Path(out, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_stem(f"{path.stem}-standin") if data["standin"] else path

def speed(data):
    """Frames a second at which a run's clips are shown: as the set knows them, else 8."""
    return data["fps"] or 8

def show(out, name, data, rows, video, fps, **more):
    """NAME.png of rows (data_prep.draw_sheet) and NAME.gif of video uint8 [L, H, W, 3] -> the PNG's path."""
    path = named(out, f"{name}.png", data)
    data_prep.sheet(rows, path, **more)
    data_prep.write_clip(video, path.with_suffix(".gif"), fps)
    return path

def spread(n, k):
    """k indices spread evenly over range(n), ends included."""
    return [round(j) for j in np.linspace(0, n - 1, min(k, n))]

# ---- the shell: train and evaluate -------------------------------------------------------------------------
def diverged(step, s):
    return DataError(f"not finite at step {step}: most likely a learning rate too high for these clips (G "
                     f"{s.lr_G:g}, R {s.lr_R:g}, codes {s.lr_Z:g}); the checkpoint, if any, is a good one")

def prepare_again(args, out):
    """--resume: as `prepare`, of the run in `out`, and its checkpoint. Options that are given must agree with
    the run; more --steps go on beyond its end. Raises DataError."""
    kept = read_checkpoint(out)
    before, data = kept["settings"], kept["data"]
    was = asdict(before) | dict(clips=data["requested_clips"])
    asked = {name: getattr(args, name) for name in was if getattr(args, name) is not None}
    for name, value in asked.items():
        if value != was[name] and (name != "steps" or value < was[name]):
            raise DataError(f"--resume: {out}/checkpoint.pt was made with {name} {was[name]}, not {value}: "
                            "leave it out, or give another --out")
    s = replace(before, steps=asked.get("steps", before.steps))
    if s.steps > before.steps and s.recipe == "fast":
        say(f"{before.steps} steps become {s.steps}: from step {kept['steps_done']} on, rates are of so many")
    path = args.dataset and data_prep.data_path(args.dataset)
    dataset = str(path) if path and path.is_file() else args.dataset  # a file comes before stand-ins
    clips = clips_of_run(Run(out, s, data, kept["log"], None), dataset)
    return choose_device(args.device), s, clips, data, kept

@dataclass
class Watch:
    """Looks at a training from outside: progress line, log, checkpoints, signals. No weight changes."""
    trainer: Trainer
    out: Path
    data: dict
    log: list
    checkpoint_every: float

    def __post_init__(self):
        self.first_step = self.trainer.steps_done
        self.seconds_before = self.log[-1][1] if self.log else 0.0
        self.began = self.saved = time.perf_counter()
        self.processor_began = time.process_time()
        self.is_crowd_checked = torch.get_num_threads() == 1 or self.trainer.batches.visits.is_cuda
        self.terms = []  # of the steps since the last look
        self.signal = 0  # SIGINT or SIGTERM: the run ends after the step at hand
        self.stopped = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.on_signal)

    def on_signal(self, number, _):
        self.signal = number
        self.trainer.stop = True

    def look(self, v, v_hat, terms):
        """After a step, with its results: most steps only keep the terms. Processes look together."""
        s, step = self.trainer.s, self.trainer.steps_done
        self.terms.append(terms)
        is_due = step % max(1, min(25, s.steps // 20)) == 0 or step == s.steps
        if not (is_due or WORLD == 1 and self.signal):
            return
        terms = torch.stack(self.terms).cpu()  # (steps since the last look, 4)
        self.terms = []
        for number, row in enumerate(terms, step + 1 - len(terms)):
            if not row.isfinite().all():
                raise diverged(number, s)
        elapsed = time.perf_counter() - self.began
        seconds = self.seconds_before + elapsed
        rate = (step - self.first_step) / elapsed
        frames = rate * s.batch * self.trainer.batches.T
        dB = psnr(to_bytes(v_hat)[None], v.permute(0, 2, 3, 1)[None]).item()
        loss, l_rec, l_triplet, _ = terms.mean(0).tolist()
        self.log.append([step, seconds, loss, l_rec, l_triplet, dB, frames])
        eta = round((s.steps - step) / rate)
        say(f"step {step:{len(str(s.steps))}}/{s.steps}  loss {loss:.4f}  {dB:5.2f} dB  "
            f"{frames:6.0f} frames/s  {seconds:5.0f} s  ETA {eta // 60}:{eta % 60:02}")
        if elapsed > 5 and not self.is_crowd_checked:
            self.is_crowd_checked = True
            check_crowd((time.process_time() - self.processor_began) / elapsed)
        self.stopped = bool(self.signal) if WORLD == 1 else terms[-1, 3].item() > 0
        is_late = time.perf_counter() - self.saved >= self.checkpoint_every
        if is_late or self.stopped or step == s.steps:
            save_checkpoint(self.out, s, self.data, self.log, self.trainer.state())
            self.saved = time.perf_counter()

def check_crowd(cores):
    """Says so if a run got less than three quarters of the processors that its threads could use. Threads
    that wait for a thread without a processor are slower together than one alone."""
    threads = torch.get_num_threads()
    if cores < 0.75 * threads:
        say(f"other work is on the cores: {threads} threads get {cores:.1f} of {threads}; OMP_NUM_THREADS=1 "
            "before the command is likely faster")

def save_checkpoint(out, s, data, log, state):
    """checkpoint.pt, then log.csv and curve.png, by process 0. DataError if a number is not finite."""
    if not all(values.isfinite().all() for values in state["model"].values()):
        raise diverged(state["steps_done"], s)
    if RANK == 0:
        write(out / "checkpoint.pt", serialise(dict(settings=asdict(s), data=data, log=log, **state)))
        write_log(out, data, log)

def write_log(out, data, log):
    """log.csv and curve.png."""
    head = "step,seconds,loss,l_rec,l_triplet,psnr,frames_per_second"
    lines = [",".join(f"{value:.6g}" for value in row) for row in log]
    write(out / "log.csv", "\n".join([head, *lines]))
    _, seconds, loss, _, _, dB, _ = zip(*log)
    data_prep.chart(named(out, "curve.png", data), seconds, {
        "Loss (Eq. 6), logarithmic": (loss, True), "PSNR of the last step's frames, dB": (dB, False)})

def train(args):
    """train --dataset chair: train, with a log and checkpoints, then measure; `train` may be left out"""
    out = Path(args.out or f"runs/{Path(args.dataset or 'chair').stem}")
    if args.resume:
        device, s, everything, data, kept = prepare_again(args, out)
    else:
        device, s, everything, data = prepare(args)
    join_processes(device)
    clips, _ = keep_from_training(everything, s)
    threads = torch.get_num_threads()
    threads_before = data.get("trained_on", {}).get("threads", threads)
    data["clips"], data["frames"], data["size"] = clips.videos.shape[:3]
    data.update(names=clips.names, static_names=clips.static_names, transient_names=clips.transient_names,
                pairs=np.stack([clips.static_id, clips.transient_id], 1).tolist(),
                trained_on=dict(device=str(device), kernels=name_backend(device), threads=threads,
                                torch=str(torch.__version__), commit=commit()))
    vgg16 = load_vgg16(args.vgg16, device) if RANK == 0 else None
    trainer = Trainer(s, clips, device)
    log = []
    if args.resume:
        try:
            trainer.restore(kept)
        except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{out}/checkpoint.pt: of another shape ({printable(error, 120)})") from None
        log = kept["log"]
    if RANK == 0:
        folder_lock = take_folder(out, args.resume, say)
        write(out / "config.json", dict(asdict(s), **data, processes=WORLD))
        if log:  # a run killed behind its checkpoint has no log of it
            write_log(out, data, log)
    say(f"{clips}\n{len(clips.static_names)} static and {len(clips.transient_names)} transient codes; "
        f"{s.recipe} recipe, Table 6's {s.table6}, {s.steps} steps of {s.batch} clips x {trainer.batches.T} "
        f"frames\n{device}, {s.precision}, losses by {name_backend(device)}, {WORLD} processes; see {out}")
    if threads_before != threads:
        say(f"--resume with {threads} threads of a run with {threads_before}: sums are rounded in another "
            f"order, so not bit for bit; OMP_NUM_THREADS={threads_before} before the command makes it so")
    if clips.standin:
        say("NOTE: these clips are DRAWN STAND-INS, not the real data; every result says so")
    watch = Watch(trainer, out, data, log, args.checkpoint_every)
    try:
        while trainer.steps_done < s.steps and not watch.stopped:
            watch.look(*trainer.step())
    except torch.linalg.LinAlgError:  # --rank: a matrix that is not finite has no eigenvectors
        raise diverged(trainer.steps_done + 1, s) from None
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    watch.stopped |= watch.signal > 0  # a signal behind the last look: the checkpoint is there
    if RANK == 0 and watch.stopped:
        step = trainer.steps_done
        command = f"python nav.py --resume --out {shlex.quote(str(out))}"
        warn(f"stopped at step {step} of {s.steps}; {command} goes on from there")
    elif RANK == 0:
        run = Run(out, s, data, log, trainer.model)
        write_samples(run, everything, honest_prior(data), 16, s.seed)
        report(run, everything, vgg16)
        folder_lock.release()
    return 128 + (watch.signal or signal.SIGINT) if watch.stopped else 0

def report(run, everything, vgg16):
    """Measure and show a run: metrics.json and reconstructions. everything: all its Clips."""
    s, data, model, log = run.settings, run.data, run.model, run.log
    clips, held_out = keep_from_training(everything, s)
    real = torch.from_numpy(clips.videos).to(model.z_s.z.device)
    parts = (slice(begin, begin + 64) for begin in range(0, len(real), 64))  # all may not fit into the memory
    generated = (videos(model, clips.static_id[j], clips.transient_id[j]) for j in parts)
    measured = scores(generated, real, *vgg16, pairs=True)
    experiments = {}
    if s.hold_out:
        experiments.update(measure_exchange(model, s, clips, held_out))
    if s.hold_out_clips:
        experiments.update(measure_encoding(model, s, clips, held_out))
    if s.every > 1:
        experiments.update(measure_interpolation(model, s, everything, clips))
    step, seconds, *_, frames_per_second = log[-1]
    metrics = {key: data[key] for key in ("dataset", "source", "standin", "frames")}
    metrics.update(videos=data["clips"], **measured, **experiments,
                   steps=step, seconds=round(seconds, 1), frames_per_second=round(frames_per_second, 1),
                   precision=s.precision, seed=s.seed, **data["trained_on"], evaluated_on=str(real.device))
    some = spread(len(real), 16)
    shown = clips.videos[some], videos(model, clips.static_id[some], clips.transient_id[some]).cpu().numpy()
    rows, labels = [], []
    for j in spread(len(some), 8):
        rows += [clip[j][spread(data["frames"], 8)] for clip in shown]
        labels += [clips.names[some[j]][:16], "generated"]
    real_over_generated = np.concatenate(shown, 2)
    show(run.folder, "reconstructions", data, rows, data_prep.side_by_side(real_over_generated), speed(data),
         row_labels=labels, title=f"{len(rows) // 2} of {len(real)} clips")
    write(run.folder / "metrics.json", metrics)
    for name, value in experiments.items():
        say(f"{name.replace('_', ' ')}: {value:.2f}")
    standin = "; DRAWN STAND-INS" if data["standin"] else ""
    say(f"PSNR {metrics['psnr']:.2f} dB mean, {metrics['psnr_min']:.2f} minimum; "
        f"SSIM {metrics['ssim']:.3f}; {scores_in_words(metrics)}; {step} steps in {seconds:.0f} s{standin}; "
        f"see {run.folder}")

def evaluate(args):
    """evaluate --run runs/chair: measure again; --generated DIR --real NPZ: clips of other software"""
    if args.run:
        if args.generated or args.real:
            raise DataError("evaluate takes either --run, or --generated and --real")
        run = load(args.run, args.device)
        everything = clips_of_run(run, args.dataset)
        run = replace(run, folder=Path(args.out or run.folder))
        return report(run, everything, load_vgg16(args.vgg16, run.model.z_s.z.device))
    if not (args.generated and args.real):
        raise DataError("evaluate needs --run DIR, or both --generated DIR and --real NPZ")
    device = choose_device(args.device)
    vgg16 = load_vgg16(args.vgg16, device)
    path = data_prep.data_path(args.real)
    if not path.is_file():
        raise DataError(f"--real {args.real}: no such file; data_prep.py prepares sets")
    real = data_prep.load(path)
    L, size = real.videos.shape[1:3]
    generated = Path(args.generated)
    # A folder of `sample`: the clips, and no pictures of many clips.
    samples = generated / "samples-standin.npz"
    samples = samples if samples.is_file() else generated / "samples.npz"
    if samples.is_file() or (generated / "checkpoint.pt").is_file():
        generated = samples
        say(f"of {args.generated}, {samples.name} is scored")
    notes = []
    found, _ = data_prep.read_clips([generated], notes, L, size=size)
    data_prep.report(notes)
    if not found:
        raise DataError(f"--generated {args.generated}: no clip of {L} frames or more there")
    longer = sum(len(clip) > L for clip in found.values())
    if longer:
        say(f"{longer} generated clips are longer: only their first {L} frames count")
    generated = np.stack([clip[:L] for clip in found.values()])
    generated, real_videos = (torch.from_numpy(v).to(device) for v in (generated, real.videos))
    measured = scores(generated.split(16), real_videos, *vgg16)
    out = Path(args.out or "runs/evaluate", "metrics.json")
    write(out, dict(dataset=args.real, source=real.source, standin=real.standin, generated=args.generated,
                    videos=len(found), frames=L, torch=torch.__version__, commit=commit(), **measured))
    say(f"{len(found)} clips of {L} frames: {scores_in_words(measured)}; see {out}")

def bench(args):
    """bench --dataset chair: the time of a training step; last line: whole step over bare generator"""
    device, s, clips, _ = prepare(args)
    s.steps = 10 ** 9
    trainer = Trainer(s, clips, device)
    trainer.steps_done = s.steps // 4  # full rates, and norms in eval mode
    _, v_hat, _ = trainer.step()
    G = trainer.model.G
    codes = torch.randn(len(v_hat), s.D_s + s.D_t, device=device, requires_grad=True)
    label = torch.zeros(len(v_hat), dtype=torch.long, device=device)
    def generator():
        G.requires_grad_(True).zero_grad()  # the paper recipe's step leaves G frozen
        with torch.autocast(device.type, torch.bfloat16, enabled=trainer.model.bf16):
            G(codes, label).backward(v_hat)
    timers = [Timer("call()", globals=dict(call=call), num_threads=torch.get_num_threads())
              for call in (generator, trainer.step)]
    bare, whole = (1000 * timer.blocked_autorange(min_run_time=4).median for timer in timers)
    with profile() as found:
        for _ in range(Muon.EVERY):
            trainer.step()
    sort_by = f"{'cuda' if device.type == 'cuda' else 'cpu'}_time_total"
    say(found.key_averages().table(sort_by=sort_by, row_limit=20, max_name_column_width=40))
    say(f"{device}, {s.precision}; {s.batch} clips x {trainer.batches.T} frames a step, width {s.width}; a "
        f"step {whole:.2f} ms, the bare generator's forward and backward {bare:.2f} ms")
    say(f"ratio: {whole / bare:.2f}")

# ---- the shell: the command line ---------------------------------------------------------------------------
ACTIONS = (train, sample, exchange, interpolate, encode, evaluate, ablate, bench)
def add_settings(parser, but):
    """The options of Settings, None if they are not given; the options for experts come last."""
    experts = parser.add_argument_group("options for experts")
    for f in fields(Settings):
        if f.type is bool:
            kind = dict(action=argparse.BooleanOptionalAction)
        elif f.metadata["choices"]:
            kind = dict(choices=f.metadata["choices"])
        else:
            most = 2 ** 63 - 1 if f.type is int else 3e38  # of int64 and float32
            kind = dict(type=between(f.metadata["least"], most, f.type), metavar="N")
        if f.name not in but:
            add = (experts if f.metadata["expert"] else parser).add_argument
            add(f"--{f.name.replace('_', '-')}", help=f.metadata["help"], **kind)

def parse(argv):
    """argv -> the options of an action, `train` if none is named. Raises DataError."""
    wide = partial(argparse.RawDescriptionHelpFormatter, max_help_position=34, width=110)
    examples = [f"  python nav.py {action.__doc__}" for action in ACTIONS]
    top = data_prep.Parser(prog="nav.py", usage="python nav.py [ACTION] [options]", formatter_class=wide,
                           description="\n".join([__doc__.split("\n")[0], "", *examples]), add_help=False)
    subparsers = top.add_subparsers(dest="action", metavar="ACTION", help=argparse.SUPPRESS)
    count = dict(type=between(1), metavar="K")
    for action in ACTIONS:
        parser = subparsers.add_parser(action.__name__, description=action.__doc__, formatter_class=wide,
                                       prog=f"python nav.py {action.__name__}", usage="%(prog)s [options]",
                                       allow_abbrev=False)
        parser.set_defaults(action=action, dataset=None)
        add = parser.add_argument
        if action is not bench:
            add("--out", metavar="DIR", help="where to write (runs/NAME, runs/ablation-NAME, or --run)")
        add("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="(default: auto)")
        if action in (train, ablate, bench):
            add("--dataset", help="chair (the default), weizmann, golf, NAME (data/NAME.npz), or PATH.npz")
            add("--clips", type=between(1), metavar="N", help="the first N, or N drawn stand-ins")
            add_settings(parser, () if action is train else ("hold_out", "hold_out_clips", "every"))
        else:
            add("--run", metavar="DIR", required=action is not evaluate, help="the folder of a trained run")
        if action in (train, ablate, evaluate):
            add("--vgg16", metavar="PATH", help="weights for the MCS; `download` fetches them (528 MB)")
        if action in (sample, exchange, interpolate, encode):
            add("--fps", type=between(0.1, 1000, float), help="frames a second (default: as the set, or 8)")
        if action in (evaluate, sample):
            add("--dataset", help="the clips of the run, if they were moved (sample: for gaussian)")
        if action is train:
            add("--resume", action="store_true", help="go on in --out; with more --steps, beyond the end")
            add("--checkpoint-every", type=between(0, 1e9, float), default=20, metavar="SECONDS", help="(20)")
        elif action is sample:
            add("--count", **count, help="how many random pairs (default: 16, of named rows all pairs)")
            add("--static", nargs="+", metavar="NAME", help="who: names or numbers of rows (default: all)")
            add("--transient", nargs="+", metavar="NAME", help="does what (default: all)")
            add("--prior", choices=("dictionary", "unseen", "gaussian"), default="dictionary",
                help="pairs of learned codes; only pairs that training never saw; new static codes")
            add("--seed", type=between(0), default=0, help="of the random draw (default: 0)")
            add("--save", choices=data_prep.CLIP_SUFFIXES, help="also a file a clip; other files stay")
            add("--scale", type=between(1, 16), metavar="N", help="side of a pixel (default: mp4 4, else 1)")
        elif action is interpolate:
            add("--clip", type=between(0), default=0, metavar="J", help="number of the clip, from 0")
            add("--frames", type=int, nargs=2, metavar=("A", "B"), help="from 1 (2 5)")
            add("--between", **count, help="frames between them (3)")
            add("--on", choices="rz", default="r", help="the line's ends: outputs of R (r), codes (z)")
            add("--fps-factor", type=between(2), metavar="K", help="the whole clip at K times its frames")
        elif action is encode:
            add("--input", metavar="CLIP", required=True, help="video, GIF, strip or folder of frames; "
                "npy, npz: one clip, at the run's frame rate")
        elif action is evaluate:
            add("--generated", metavar="DIR", help="clips that other software made, a folder or an .npz; "
                "they are resized to the size of --real")
            add("--real", metavar="NPZ", help="the prepared set that they are compared with")
        elif action is ablate:
            add("--seeds", default=1, **count, help="how many (default: 1)")
            add("--generated-clips", default=500, **count, help="clips of a row (default: 500)")
    if argv[:1] in (["-h"], ["--help"]):
        print(top.format_help())
    args = top.parse_args(argv if argv and not argv[0].startswith("-") else ["train", *argv])
    if args.action in (ablate, bench) or args.action is train and not args.resume:
        args.dataset = args.dataset or "chair"
    if WORLD > 1 and args.action is not train:
        raise DataError(f"{args.action.__name__} runs in one process, without torchrun")
    return args

def main(argv=None):
    """The command line -> exit status: 0, 2 after an error, 130 after Ctrl-C, 143 after SIGTERM."""
    keep_freed_memory()
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        return args.action(args) or 0
    except (DataError, ImportError) as error:
        if LOCAL_RANK == 0:  # all processes find the same fault: a line a machine
            warn(error)
    except OSError as error:
        warn(f"{error.filename or 'a file'}: {error.strerror or error}; check path, permissions, space")
    except (MemoryError, RuntimeError) as error:
        signs = "DefaultCPUAllocator: can't allocate memory", "could not create a primitive", "bad_alloc"
        is_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if is_memory or any(sign in str(error) for sign in signs):
            warn("not enough memory: a smaller --width, --batch, --clips or --count may fit")
        elif "NAV_KERNELS" in str(error):
            warn(error)
        elif WORLD == 1:
            raise
        else:
            warn(f"process {RANK} of {WORLD} stops, most likely because another process is gone; start all "
                 f"again with --resume ({printable(error, 120)})")
            os._exit(2)  # the usual way out, through broken connections, may end in an abort
    except KeyboardInterrupt:
        warn("interrupted")
        return 130
    return 2

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
