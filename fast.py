"""What is ours and not the paper's: the fast recipe's rates, first codes, Muon; the augmentation; malloc.

Objective and R of the fast recipe are the paper's (nav.py)."""
import ctypes
import math
import sys

import torch
import torch.nn.functional as F
from torch.profiler import record_function

from kernels.gru import gru
from measures import unit_frames

def schedule(step, steps, warm_up=50):
    """The fast recipe's rates, in (0, 1]: a short linear warm-up, full until half-way, a line to zero."""
    return min(1.0, (step + 1) / warm_up, 2 * (1 - step / steps))

def principal_components(x, k):
    """PCA of rows x [n, d] -> [n, k] float32, the longest row scaled to 0.9; zeros where d < k."""
    x = (x - x.mean(0)).double()
    directions = torch.linalg.eigh(x.T @ x)[1].flip(1)[:, :k]                # (d, k), the largest first
    y = x @ directions
    return F.pad(y * (0.9 / y.norm(dim=1).max().clamp(min=1e-9)), (0, k - y.shape[1])).float()

def codes_from_clips(clips, D_s, D_t):
    """First codes, by PCA of frames of 8 x 8: like clips and like frames start close together.

    z_s [rows, D_s] is of a static row's mean frame, z_t [rows, L, D_t] of the frames less that mean."""
    N, L, H = clips.videos.shape[:3]
    frames = torch.empty(N, L, 192)
    for video, out in zip(clips.videos, frames):  # one by one: all as floats may not fit into the memory
        out.copy_(F.avg_pool2d(unit_frames(torch.from_numpy(video)), H // 8).flatten(1))

    def mean_of_rows(ids, names, values):
        ids = torch.from_numpy(ids)
        total = torch.zeros(len(names), *values.shape[1:]).index_add_(0, ids, values)
        count = torch.bincount(ids, minlength=len(names)).clamp(min=1)
        return total / count.view(-1, *[1] * (values.ndim - 1))

    still = mean_of_rows(clips.static_id, clips.static_names, frames.mean(1))  # (static rows, 192)
    frames -= still[clips.static_id][:, None]
    moves = mean_of_rows(clips.transient_id, clips.transient_names, frames)  # (transient rows, L, 192)
    z_t = principal_components(moves.flatten(0, 1), D_t)
    return principal_components(still, D_s), z_t.unflatten(0, (-1, L))

@torch.no_grad()
def start_like_codes(R, z_t, rows=256):
    """Fit R's linear map (ridge regression) so that R(z_t) starts at z_t [rows, L, D_t].

    PyTorch's first R shrinks what varies in r to a sixth of a static code's norm: G would start nearly blind
    to what moves."""
    z = z_t[:rows].flatten(0, 1).double()
    h = F.pad(gru(R.gru, z_t[:rows]).flatten(0, 1).double(), (0, 1), value=1.0)  # (rows * L, HIDDEN + 1)
    square = h.T @ h
    square.diagonal().add_(1e-3 * square.diagonal().mean())
    fitted = torch.linalg.solve(square, h.T @ z)                             # (HIDDEN + 1, D_t)
    R.out.weight.copy_(fitted[:-1].T)
    R.out.bias.copy_(fitted[-1])

class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose updates of a matrix have equal singular values, with decoupled weight decay.

    Weights [c_in, c_out, 4, 4] are matrices [c_in, 16 * c_out]: the update is (m m^T)^(-1/2) x, m: the
    momentum, x: Nesterov's gradient. `refresh` finds that root; every eighth step is enough. An element moves
    by about lr (root mean square), as under Adam. lr: a tensor. bf16: of that product."""
    EVERY = 8

    def __init__(self, weights, lr, momentum=0.8, weight_decay=0.0, bf16=False):
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        super().__init__(weights, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        for w in weights:
            self.state[w].update(m=torch.zeros_like(w), root=torch.eye(len(w), device=w.device))

    @staticmethod
    def as_matrix(w):
        """[c_in, 16 * c_out], as it lies in memory, scaled to norm 1."""
        x = w.permute(0, 2, 3, 1).flatten(1)
        return x / x.norm().clamp(min=1e-9)

    @torch.no_grad()
    @record_function("nav: Muon")
    def step(self):
        group = self.param_groups[0]
        for w in group["params"]:
            c_in, c_out, *kernel = w.shape
            m = self.state[w]["m"].mul_(group["momentum"]).add_(w.grad)
            x = self.as_matrix(w.grad + group["momentum"] * m).to(self.dtype)
            x = (self.state[w]["root"].to(self.dtype) @ x).float()
            x = x.view(c_in, *kernel, c_out).permute(0, 3, 1, 2)
            w.mul_(1 - group["weight_decay"] * group["lr"])
            w.addcmul_(x, group["lr"], value=-max(c_in, 16 * c_out) ** 0.5)

    @torch.no_grad()
    def refresh(self):
        """root = (m m^T)^(-1/2), m scaled to norm 1, by three Newton-Schulz steps on the small m m^T."""
        for w in self.param_groups[0]["params"]:
            one = torch.eye(len(w), device=w.device)
            x = self.as_matrix(self.state[w]["m"])
            gram = x @ x.T
            root = one
            for _ in range(3):
                p = 3.4445 * one - 4.7750 * gram + 2.0315 * gram @ gram
                root = root @ p
                gram = gram @ p @ p
            self.state[w]["root"].copy_(root)

def augment(v, rand, most=4):
    """Conditional augmentation (Karras et al., 2022): what G is told of, it need not learn by heart.

    Frames v uint8 [M, 3, H, H] and rand [M, 5] in [0, 1) -> frames like v and numbers [M, 4]. Half of them
    are shifted by up to `most` pixels, edges repeated; half have their colours turned about the grey axis:
    white stays white. An untouched frame keeps its bytes, and its numbers are 0, as at generation."""
    M, _, H, _ = v.shape
    moved, turned = (rand[:, :2] < 0.5).float().unbind(1)                    # (M,), (M,)
    shift = ((rand[:, 2:4] * (2 * most + 1)).floor() - most) * moved[:, None]  # (M, 2) right, down
    angle = (2 * rand[:, 4] - 1) * math.pi * turned                          # (M,)
    centres = (2 * torch.arange(H, device=v.device) + 1) / H - 1             # (H,) of pixels, in [-1, 1]
    x, y = (centres - 2 * shift[:, :, None] / H).unbind(1)                   # (M, H): where pixels come from
    grid = torch.stack([x[:, None].expand(M, H, H), y[:, :, None].expand(M, H, H)], 3)
    out = F.grid_sample(v.float(), grid, padding_mode="border", align_corners=False)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]        # (M, 1, 1)
    one = torch.eye(3, device=v.device)
    cross = (one.roll(1, 0) - one.roll(-1, 0)) / 3 ** 0.5                    # with the grey axis (Rodrigues)
    out = (one * cos + (1 - cos) / 3 + cross * sin) @ out.flatten(2)         # (M, 3, H * H)
    numbers = torch.cat([shift / most, cos[:, 0] - 1, sin[:, 0]], 1)
    return out.view(v.shape).round().clamp(0, 255).to(torch.uint8), numbers

def keep_freed_memory():
    """Linux: what a step frees stays with the process, where glibc would hand it back until the next step."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:  # musl has none
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, the most that glibc takes
        mallopt(-1, 2 ** 31 - 1)  # M_TRIM_THRESHOLD
