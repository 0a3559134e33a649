"""Triplet margin on a clip's correlated codes: l_triplet of Eq. 5. `plain_triplet` is the definition.

With d_ij = |r_i - r_j|^2, over all anchors a, positives p and negatives n of a clip with
0 < |a-p| <= radius < |a-n|:

    loss = mean of max(d_ap - d_an + margin, 0)

The paper samples triplets; the mean over all of them is the expectation of a uniform draw, without its noise.
Let m_ij = dloss/dd_ij: each active triplet adds 1/count at (a, p) and subtracts it at (a, n). Then

    dloss/dr_i = 2 sum over j of (m_ij + m_ji) (r_i - r_j)

Backward computes the distances again from the codes, which are a few kilobytes a clip; nothing else is kept.
"""
from contextlib import nullcontext
from functools import lru_cache

import torch
import torch.nn.functional as F

from .backend import tl, triton, use_triton

# ---- the definition ----------------------------------------------------------------------------------------

def plain_triplet(codes, margin=2.0, radius=2):
    """triplet_margin as its definition reads: all [B, T, T, T] triplets, and autograd's gradient.

    codes, margin, radius and the losses [B] are those of triplet_margin, which computes the same faster.
    """
    d = (codes[:, :, None] - codes[:, None]).square().sum(-1)  # (B, T, T)
    frame = torch.arange(codes.shape[1], device=codes.device)
    apart = (frame[:, None] - frame).abs()
    is_positive = (apart > 0) & (apart <= radius)
    is_negative = apart > radius
    triplets = is_positive[:, :, None] & is_negative[:, None]  # (a, p, n)
    hinge = F.relu(d[:, :, :, None] - d[:, :, None] + margin)
    hinge = hinge.to(torch.promote_types(codes.dtype, torch.float32))
    return (hinge * triplets).sum((1, 2, 3)) / triplets.sum()

# ---- torch: the path on a CPU ------------------------------------------------------------------------------

MOST_FLOATS = 2 ** 24  # of a temporary tensor, 64 MB

@lru_cache(maxsize=64)
def _triplets(frames, radius, device):
    """The triplets of a clip of T frames, with K positives k = 1 .. K for each anchor a.

    Returns the positives' frames [T, K], their one-hot rows [T, K, T], whether (a, k, n) is a triplet
    [T, K, T], and the number of triplets. An anchor near an end has fewer than K: the others are masked.
    """
    reach = min(radius, frames - 1)
    frame = torch.arange(frames)
    positive = frame[:, None] + torch.tensor([k for k in range(-reach, reach + 1) if k])
    one_hot = positive[:, :, None] == frame
    is_negative = (frame[:, None] - frame).abs() > radius
    triplets = one_hot.any(2, keepdim=True) & is_negative[:, None]
    positive = positive.clamp(0, frames - 1)
    return positive.to(device), one_hot.to(device), triplets.to(device), int(triplets.sum())

def _distances(r):
    """d [B, T, T] of r [B, T, D], by differences (see below), in groups of anchors under MOST_FLOATS."""
    clips, frames, dim = r.shape
    anchors = max(1, MOST_FLOATS // (clips * frames * dim))
    parts = [(a[:, :, None] - r[:, None]).square_().sum(3) for a in r.split(anchors, 1)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

def _torch_path(codes, weight, margin, radius):
    """losses [B] and, if weight [B] is given, d(sum of weight * losses)/d codes; else None."""
    dtype = torch.promote_types(codes.dtype, torch.float32)
    clips, frames, dim = codes.shape
    positive, one_hot, triplets, count = _triplets(frames, radius, codes.device)
    # Many clips go in groups, so that neither their differences nor their triplets pass MOST_FLOATS.
    group = max(1, MOST_FLOATS // (frames * frames * max(dim, positive.shape[1])))
    if clips > group:
        weights = [None] * clips if weight is None else weight.split(group)
        parts = [_torch_path(c, w, margin, radius) for c, w in zip(codes.split(group), weights)]
        losses = torch.cat([part[0] for part in parts])
        return losses, None if weight is None else torch.cat([part[1] for part in parts])
    with torch.no_grad(), torch.autocast(codes.device.type, enabled=False):
        r = codes.to(dtype)
        r = r - r.mean(1, keepdim=True)  # no difference sees a clip's mean, and the last product rounds less
        d = _distances(r)
        d_ap = d.gather(2, positive.expand(clips, -1, -1))
        hinge = d_ap[:, :, :, None] - d[:, :, None] + margin  # (B, a, k, n)
        active = (hinge > 0) & triplets
        losses = torch.where(active, hinge, 0).sum((1, 2, 3)) / count
        if weight is None:
            return losses, None
        m = (active.sum(3, keepdim=True) * one_hot - active.to(dtype)).sum(2)
        m = (m + m.transpose(1, 2)) * (weight.to(dtype) * (2 / count)).view(-1, 1, 1)
        return losses, (m.sum(2, keepdim=True) * r - m @ r).to(codes.dtype)

# ---- Triton: a program computes a clip ---------------------------------------------------------------------
# Distances are sums of squared differences, a frame against all others at a time: a Gram matrix
# (|a|^2 + |b|^2 - 2ab) loses the digits of nearly equal codes, and a product on tensor cores loses more.

if triton is not None:
    @triton.jit
    def _load(codes, rows, columns, T, D):
        """codes[rows, columns] as float32, 0 outside."""
        inside = (rows[:, None] < T) & (columns[None, :] < D)
        return tl.load(codes + rows[:, None] * D + columns[None, :], mask=inside, other=0).to(tl.float32)

    @triton.jit
    def _triplet_kernel(codes, weight, losses, grad, T, D, margin, radius, one_over_count,
                        ROWS: tl.constexpr, BLOCK: tl.constexpr, GRAD: tl.constexpr):
        """Clip b. ROWS: a power of two, at least T; BLOCK: columns of the codes that are loaded at a time."""
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
        # The positive p = a + offset, one offset at a time; a = i, n = j.
        for offset in range(-radius, radius + 1):
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
    """None if the kernel covers these codes, else the property that it does not cover."""
    if codes.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"{codes.dtype} (the kernel: fp32, bf16, fp16)"
    if codes.shape[1] > 64 or codes.shape[2] > 512:
        return f"{codes.shape[1]} frames of {codes.shape[2]} (the kernel: up to 64 of 512)"
    return None

def tiles(frames, dim):
    """Compile-time sizes of the kernel: rows of its tiles, columns of the codes at a time, warps."""
    rows = max(4, 1 << (frames - 1).bit_length())
    columns = min(1 << (dim - 1).bit_length(), 2048 // rows)
    return rows, columns, 8 if rows == 64 else 4

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
    """_triton_path or _torch_path, and an empty batch goes to PyTorch: a launch needs a program."""
    in_triton = use_triton("triplet_margin", codes.device, _not_covered(codes))
    return _triton_path if in_triton and codes.numel() else _torch_path

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
    """l_triplet of Eq. 5, the mean over a clip's triplets (the paper's set Gamma); differentiable in codes.

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
