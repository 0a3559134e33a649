"""Triplet margin on a clip's correlated codes: l_triplet of Eq. 6.

With d_ij = |r_i - r_j|^2, over all anchors a, positives p and negatives n of one clip, which are those with
0 < |a-p| <= radius < |a-n|:

    loss = mean of max(d_ap - d_an + margin, 0)

Let m_ij = dloss/dd_ij: each active triplet adds 1/count at (a, p) and takes it off at (a, n). Then

    dloss/dr_i = 2 sum over j of (m_ij + m_ji) (r_i - r_j)

Backward computes the distances anew from the codes: they are a few kilobytes a clip, and nothing else is
kept.
"""
from contextlib import nullcontext
from functools import lru_cache

import torch

from . import use_triton

try:
    import triton
    import triton.language as tl
except ImportError:  # macOS, Windows
    triton = None


# ---- torch: the reference, and the path on CPU -------------------------------------------------------------

@lru_cache(maxsize=64)
def _triplets(frames, radius, device):
    """Of every anchor a, its positives p as k = 1 .. K: their frame [T, K], the place p in [T, K, T], the
    triplets (a, k, n) [T, K, T], and how many triplets there are. An anchor near an end has fewer than K: the
    rest is masked."""
    reach = min(radius, frames - 1)
    index = torch.arange(frames)
    positive = index[:, None] + torch.tensor([k for k in range(-reach, reach + 1) if k])
    place = positive[:, :, None] == index
    triplets = place.any(2, keepdim=True) & ((index[:, None] - index).abs() > radius)[:, None]
    return (*(x.to(device) for x in (positive.clamp(0, frames - 1), place, triplets)), int(triplets.sum()))


def _torch_path(codes, weight, margin, radius):
    """losses [B] and, when weight [B] is given, d(sum of weight * losses)/d codes; else None."""
    dtype = torch.promote_types(codes.dtype, torch.float32)
    clips, frames, dim = codes.shape
    positive, place, triplets, count = _triplets(frames, radius, codes.device)
    # Clips at a time: no tensor over 64 MB.
    chunk = max(1, 2 ** 24 // (frames * frames * max(dim, positive.shape[1])))
    if clips > chunk:
        weights = [None] * clips if weight is None else weight.split(chunk)
        parts = [_torch_path(c, w, margin, radius) for c, w in zip(codes.split(chunk), weights)]
        return torch.cat([p[0] for p in parts]), None if weight is None else torch.cat([p[1] for p in parts])
    with torch.no_grad(), torch.autocast(codes.device.type, enabled=False):
        r = codes.to(dtype)
        r = r - r.mean(1, keepdim=True)  # no difference sees a clip's mean, and the last product rounds less
        d = (r[:, :, None] - r[:, None]).square_().sum(3)  # [B, T, T], by differences: see below
        d_ap = d.gather(2, positive.expand(clips, -1, -1))
        hinge = d_ap[:, :, :, None] - d[:, :, None] + margin  # [B, a, k, n]
        active = (hinge > 0) & triplets
        losses = torch.where(active, hinge, 0).sum((1, 2, 3)) / count
        if weight is None:
            return losses, None
        m = (active.sum(3, keepdim=True) * place - active.to(dtype)).sum(2)
        m = (m + m.transpose(1, 2)) * (weight.to(dtype) * (2 / count)).view(-1, 1, 1)
        return losses, (m.sum(2, keepdim=True) * r - m @ r).to(codes.dtype)


# ---- Triton: one program per clip --------------------------------------------------------------------------
# Distances by differences, one frame against all at a time: a Gram matrix (|a|^2 + |b|^2 - 2ab) would lose
# the digits of near-coincident codes, and a product on tensor cores the rest.

if triton is not None:
    @triton.jit
    def _load(codes, rows, columns, T, D):
        """codes[rows, columns] as float32, 0 outside."""
        inside = (rows[:, None] < T) & (columns[None, :] < D)
        return tl.load(codes + rows[:, None] * D + columns[None, :], mask=inside, other=0).to(tl.float32)

    @triton.jit
    def _triplet_kernel(codes, weight, losses, grad, T, D, margin, radius, one_over_count,
                        ROWS: tl.constexpr, BLOCK: tl.constexpr, GRAD: tl.constexpr):
        """Clip b. ROWS: a power of two from T on; BLOCK: columns of the codes at a time."""
        b = tl.program_id(0)
        codes += b.to(tl.int64) * T * D
        rows = tl.arange(0, ROWS)
        i, j = rows[:, None], rows[None, :]
        d = tl.zeros((ROWS, ROWS), tl.float32)  # d_ij = |r_i - r_j|^2
        for first in range(0, D, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            r = _load(codes, rows, columns, T, D)
            for other in range(0, T):
                difference = r - _load(codes, other + tl.arange(0, 1), columns, T, D)
                d += tl.where(j == other, tl.sum(difference * difference, 1)[:, None], 0)

        negative = (tl.abs(i - j) > radius) & (i < T) & (j < T)
        total = tl.zeros((ROWS,), tl.float32)
        m = tl.zeros((ROWS, ROWS), tl.float32)
        for offset in range(-radius, radius + 1):  # one positive p = a + offset at a time, a = i, n = j
            positive = (j == i + offset) & (offset != 0) & (i < T) & (j < T)
            exists = tl.sum(positive.to(tl.int32), 1)[:, None] > 0
            d_ap = tl.sum(tl.where(positive, d, 0), 1)[:, None]
            hinge = d_ap - d + margin
            active = negative & exists & (hinge > 0)
            total += tl.sum(tl.where(active, hinge, 0), 1)
            active = active.to(tl.float32)
            m += tl.where(positive, tl.sum(active, 1)[:, None], 0) - active
        tl.store(losses + b, tl.sum(total) * one_over_count)

        if GRAD:
            grad += b.to(tl.int64) * T * D
            m = (m + tl.trans(m)) * (2 * one_over_count * tl.load(weight + b).to(tl.float32))
            for first in range(0, D, BLOCK):
                columns = first + tl.arange(0, BLOCK)
                r = _load(codes, rows, columns, T, D)
                g = tl.zeros((ROWS, BLOCK), tl.float32)
                for other in range(0, T):
                    m_other = tl.sum(tl.where(j == other, m, 0), 1)[:, None]
                    g += m_other * (r - _load(codes, other + tl.arange(0, 1), columns, T, D))
                inside = (i < T) & (columns[None, :] < D)
                tl.store(grad + i * D + columns[None, :], g, mask=inside)


def _not_covered(codes):
    """None if the kernel covers these codes, else what it does not cover."""
    if codes.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"{codes.dtype} (the kernel: fp32, bf16, fp16)"
    if codes.shape[1] > 64 or codes.shape[2] > 512:
        return f"{codes.shape[1]} frames of {codes.shape[2]} (the kernel: up to 64 of 512)"
    return None


def tiles(frames, dim):
    """What the kernel is compiled with: rows of its tiles, columns of the codes at a time, warps."""
    rows = max(4, 1 << (frames - 1).bit_length())
    return rows, min(1 << (dim - 1).bit_length(), 2048 // rows), 8 if rows == 64 else 4


def _triton_path(codes, weight, margin, radius):
    """As _torch_path."""
    clips, frames, dim = codes.shape
    codes = codes.contiguous()
    losses = torch.empty(clips, dtype=torch.float32, device=codes.device)
    grad = None if weight is None else torch.empty_like(codes)
    rows, block, warps = tiles(frames, dim)
    count = _triplets(frames, radius, codes.device)[3]
    with torch.cuda.device(codes.device) if codes.is_cuda else nullcontext():  # the tensors' GPU
        _triplet_kernel[(clips,)](
            codes, losses if weight is None else weight.contiguous(), losses,
            losses if grad is None else grad, frames, dim, float(margin), min(radius, frames - 1), 1 / count,
            ROWS=rows, BLOCK=block, GRAD=grad is not None, num_warps=warps, enable_fp_fusion=True)
    return losses, grad


# ---- autograd ----------------------------------------------------------------------------------------------

def _path(codes):
    covered = use_triton("triplet_margin", codes.device, _not_covered(codes))
    return _triton_path if covered and codes.numel() else _torch_path


class _TripletMargin(torch.autograd.Function):
    @staticmethod
    def forward(ctx, codes, margin, radius):
        ctx.save_for_backward(codes)
        ctx.settings = margin, radius
        return _path(codes)(codes, None, margin, radius)[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        codes, = ctx.saved_tensors
        return _path(codes)(codes, upstream, *ctx.settings)[1], None, None


def triplet_margin(codes, margin=2.0, radius=2):
    """l_triplet of Eq. 6 for each clip: all of its triplets (the paper's set Gamma); differentiable in codes.

    codes: [B, T, D], fp32, bf16 or fp16 (float64 too, without Triton): the GRU's outputs r. margin, radius:
    alpha and the range of positives, both 2 in the paper. Returns [B] float32 (float64 for float64). Raises
    ValueError for other shapes and dtypes, and where a clip has no triplet: fewer than radius + 2 frames.
    """
    if codes.ndim != 3 or not codes.is_floating_point():
        raise ValueError(f"triplet_margin: codes must be a float tensor [B, T, D], got {codes.dtype} "
                         f"{list(codes.shape)}")
    if radius < 1 or codes.shape[1] < radius + 2:
        raise ValueError(f"triplet_margin: a clip needs at least radius + 2 = {radius + 2} frames to have a "
                         f"triplet, and a radius of at least 1; got {codes.shape[1]} frames")
    return _TripletMargin.apply(codes, margin, radius)
