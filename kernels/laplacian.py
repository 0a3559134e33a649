"""Laplacian-pyramid L1 between frames: l_rec and l_static of Eq. 6.

The difference D = pred - target goes through one pyramid (the pyramid is linear, so that of the difference is enough):

    G_0 = D                                     one channel of one frame, H x W: a plane
    L_l = G_l - K G_l K^T                       the band of level l = 0 .. n-1; K blurs: [1 4 6 4 1]/16, edges repeated
    G_{l+1} = A G_l A^T                         A = P K: blur, then the mean of each pair of pixels
    L_n = G_n                                   the last band is what is left
    loss = sum over l = 0 .. n of mean |L_l|    the mean over C, H_l, W_l

Its gradient is the same walk backwards. With s_l = sign(L_l), 0 at 0, and h_l = dloss/dG_l in units of 1/(C H_l W_l):

    h_n = s_n
    h_l = s_l - K^T s_l K + 4 A^T h_{l+1} A     4 is the ratio of the levels' pixels (a little more for odd sides)
    dloss/dD = h_0 / (C H W)

K and A are small banded matrices, so a level is a handful of matrix products, in PyTorch and in Triton alike.

Bytes per pixel and channel, p for pred's (fp32 4, bf16 2), t for target's (uint8 1); a bf16 pred and uint8 target:
    laplacian_l1_with_grad    p + t + p: read pred, read target, write the gradient                            5
    laplacian_l1              p + t, and once more with the gradient in backward, 3p + 2t together             8
      had forward kept the gradient, backward would read and write it again: 4p + t                            9
"""
from contextlib import nullcontext
from functools import lru_cache

import torch

from . import _INTERPRETED, use_triton

try:
    import triton
    import triton.language as tl
except ImportError:  # macOS, Windows
    triton = None


# ---- torch: the reference, and the path on CPU ---------------------------------------------------------------------

@lru_cache(maxsize=64)
def _matrices(side, dtype, device):
    """K [side, side], its row i the taps around pixel i, and A = P K [side // 2, side]; exact in every dtype."""
    rows = torch.arange(side)
    k = torch.zeros(side, side, dtype=torch.float64)
    for offset, tap in zip(range(-2, 3), (1.0, 4.0, 6.0, 4.0, 1.0)):
        k[rows, (rows + offset).clamp(0, side - 1)] += tap / 16  # the edge's pixel takes all taps beyond it
    a = (k[0:side // 2 * 2:2] + k[1::2]) / 2  # an odd side's last pixel is in no pair, as in avg_pool2d
    return k.to(device, dtype), a.to(device, dtype)


def _torch_path(pred, target, weight, levels):
    """losses [N] and, when weight [N] is given, d(sum of weight * losses)/d pred; else None.

    Matrix products: on a CPU they are several times faster than depthwise convolution and pooling.
    """
    dtype = torch.promote_types(pred.dtype, torch.float32)
    frames, pixels = pred.shape[0], pred[0].numel()
    with torch.no_grad(), torch.autocast(pred.device.type, enabled=False):
        if target.dtype == torch.uint8:
            target = (target.to(dtype) / 127.5).sub_(1)
        g = torch.sub(pred, target, out=torch.empty(pred.shape, dtype=dtype, device=pred.device)).flatten(0, 1)
        losses, signs = 0, []
        for _ in range(levels):  # g: G_l [N C, H, W]
            (kh, ah), (kw, aw) = (_matrices(side, dtype, g.device) for side in g.shape[1:])
            smaller = ah @ (g @ aw.t())
            g.baddbmm_(kh.expand(len(g), -1, -1), g @ kw.t(), alpha=-1)  # L_l, over G_l
            losses = losses + g.view(frames, -1).abs().mean(1)
            signs.append(g.sign_())
            g = smaller
        losses = losses + g.reshape(frames, -1).abs().mean(1)
        if weight is None:
            return losses, None
        h = g.sign_()
        for s in reversed(signs):  # h: h_{l+1}, s: s_l, turned into h_l
            (kh, ah), (kw, aw) = (_matrices(side, dtype, s.device) for side in s.shape[1:])
            ratio = s[0].numel() / h[0].numel()
            s.baddbmm_(kh.t().expand(len(s), -1, -1), s @ kw, alpha=-1)
            s.baddbmm_(ah.t().expand(len(s), -1, -1), h @ aw, alpha=ratio)
            h = s
        scale = (weight.to(dtype) / pixels).view(-1, 1, 1, 1)
        return losses, torch.mul(h.view(pred.shape), scale, out=torch.empty_like(pred))


# ---- Triton: one program per plane, the whole pyramid and its way back on chip ---------------------------------------
# Tensor cores multiply bf16, so a float is cut into bf16 terms, x = x_1 + x_2 + x_3, and each is multiplied: three hold
# all 24 bits of an fp32, two hold 16. K, A and the signs are exact in one.
#
# Not timed on a GPU. Chosen by what they compile to, sm_90, 64 x 64, 4 levels, 4 warps, uint8 target, pred bf16 | fp32,
# plane after plane (as training has it, channels_last: this file 178 | 180 registers, no spill, Triton 3.9):
#                                                         registers    spill, bytes    instructions    barriers
#   both sides by products, bf16 terms (this file)         179 | 189        0 | 0       3012 | 3857     84 | 108
#   the same, 4 planes in a loop per program               255 | 255       48 | 64      2802 | 3493     78 | 98
#   the same in tf32, one term | two, signs as int8        255 | 254       16 | 16      3341 | 4805     53 | 61
#   level 0's vertical blur by shifted row loads           223 | 255        0 | 24      4073 | 4560    103 | 125
#   shifts by tl.gather, no products (fp32: 8 warps)       168 | 126        0 | 0       3848 | 2160    129 | 101
# Levels over two launches would write and read G_1 and h_1 in fp32: 4 bytes a pixel more, on 5 (bf16) or 9 (fp32).

if triton is not None:
    # Triton's interpreter cannot multiply bf16: there the terms, cut to bf16 all the same, are multiplied as float32.
    _TERM = tl.constexpr(tl.float32 if _INTERPRETED else tl.bfloat16)

    @triton.jit
    def _left(k, x, TERMS: tl.constexpr):
        """k @ x: k exact in bf16, x float32 in TERMS bf16 terms."""
        y = tl.dot(k, x.to(tl.bfloat16).to(_TERM))
        for _ in tl.static_range(TERMS - 1):
            x = x - x.to(tl.bfloat16).to(tl.float32)  # what the terms so far leave over
            y = tl.dot(k, x.to(tl.bfloat16).to(_TERM), y)
        return y

    @triton.jit
    def _right(x, k, TERMS: tl.constexpr):
        """x @ k."""
        y = tl.dot(x.to(tl.bfloat16).to(_TERM), k)
        for _ in tl.static_range(TERMS - 1):
            x = x - x.to(tl.bfloat16).to(tl.float32)
            y = tl.dot(x.to(tl.bfloat16).to(_TERM), k, y)
        return y

    @triton.jit
    def _sign(x):
        return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0)).to(_TERM)

    @triton.jit
    def _pyramid(g, matrices, SIDE: tl.constexpr, LEVELS: tl.constexpr, TERMS: tl.constexpr, GRAD: tl.constexpr):
        """The loss from G_l = g on, of LEVELS bands and the residual, and h_l. It calls itself for the next level.

        A product needs sides of 16: smaller planes lie in the corner of a 16 x 16 one, zeros around them, and zeros in
        K and A keep them so. The loops of compile time unroll: all of it becomes one kernel.
        """
        if LEVELS == 0:
            return tl.sum(tl.abs(g)) * (1.0 / (SIDE * SIDE)), _sign(g)
        else:
            S: tl.constexpr = max(SIDE, 16)
            HALF: tl.constexpr = max(SIDE // 2, 16)
            i, j = tl.arange(0, S), tl.arange(0, HALF)
            k = tl.load(matrices + i[:, None] * S + i[None, :]).to(_TERM)  # K_l
            a = tl.load(matrices + S * S + j[:, None] * S + i[None, :]).to(_TERM)  # A_l
            smaller = _left(a, _right(g, tl.trans(a), TERMS), TERMS)  # G_{l+1}
            band = g - _left(k, _right(g, tl.trans(k), TERMS), TERMS)  # L_l
            s = _sign(band)
            loss = tl.sum(tl.abs(band)) * (1.0 / (SIDE * SIDE))
            rest, h = _pyramid(smaller, matrices + (S + HALF) * S, SIDE // 2, LEVELS - 1, TERMS, GRAD)
            if GRAD:
                s_k = tl.dot(s, k).to(_TERM)  # sixteenths up to 1: bf16 holds them all, this half of h_l is exact
                h_a = _right(h.to(tl.float32), a, TERMS)
                h = s.to(tl.float32) - tl.dot(tl.trans(k), s_k) + 4 * _left(tl.trans(a), h_a, TERMS)
            return loss + rest, h

    @triton.jit
    def _laplacian_kernel(pred, target, weight, losses, grad, matrices, C, pred_c, pred_w, target_c, target_w,
                          SIDE: tl.constexpr, LEVELS: tl.constexpr, TERMS: tl.constexpr, GRAD: tl.constexpr):
        """One plane: channel c of frame n. *_c and *_w: steps from a channel and from a pixel to the next."""
        n, c = tl.program_id(0) // C, tl.program_id(0) % C
        i = tl.arange(0, SIDE)
        pixel = i[:, None] * SIDE + i[None, :]
        frame = n.to(tl.int64) * C * SIDE * SIDE
        here = frame + c * pred_c + pixel * pred_w
        t = tl.load(target + frame + c * target_c + pixel * target_w)
        if t.dtype == tl.uint8:
            # x / 127.5 - 1 to the last bit, without a division: 1 / 127.5 = 257/32768 + the rest, and x * 257 is exact.
            x = t.to(tl.float32)
            t = x * (257.0 / 32768.0) + x * (1.0 / 127.5 - 257.0 / 32768.0) - 1.0
        loss, h = _pyramid(tl.load(pred + here).to(tl.float32) - t.to(tl.float32), matrices, SIDE, LEVELS, TERMS, GRAD)
        tl.store(losses + tl.program_id(0), loss)
        if GRAD:
            tl.store(grad + here, h.to(tl.float32) * (tl.load(weight + n).to(tl.float32) / (C * SIDE * SIDE)))


@lru_cache(maxsize=64)
def _kernel_matrices(side, levels, device):
    """K_l and A_l of all levels one after another, bf16, padded with zeros to sides of 16."""
    parts = []
    for level in range(levels):
        for matrix in _matrices(side >> level, torch.bfloat16, device):
            pad = [max(0, 16 - size) for size in matrix.shape]
            parts.append(torch.nn.functional.pad(matrix, (0, pad[1], 0, pad[0])).flatten())
    return torch.cat(parts)


def _not_covered(pred, target, levels):
    """None if the kernel covers this call, else what it does not cover."""
    floats, (height, width) = (torch.float32, torch.bfloat16, torch.float16), pred.shape[2:]
    if height != width or height not in (16, 32, 64, 128):
        return f"frames of {height} x {width} (the kernel: squares of 16, 32, 64 or 128)"
    if levels not in (3, 4, 5):
        return f"{levels} levels (the kernel: 3 to 5)"
    if pred.dtype not in floats or target.dtype not in (*floats, torch.uint8):
        return f"{pred.dtype} against {target.dtype} (the kernel: fp32, bf16, fp16, and uint8 for the target)"
    return None


def warps_and_terms(side, dtype):
    """What the kernel is compiled with: warps per program, and bf16 terms of a product."""
    return max(1, side // 16), 3 if dtype == torch.float32 else 2


def _triton_path(pred, target, weight, levels):
    """As _torch_path."""
    frames, channels, side = pred.shape[:3]

    def dense(x):  # x without gaps, its step from a channel and from a pixel to the next
        if x.is_contiguous():
            return x, side * side, 1
        return x.contiguous(memory_format=torch.channels_last), 1, channels

    pred, pred_c, pred_w = dense(pred)
    target, target_c, target_w = dense(target)
    losses = torch.empty(frames, channels, dtype=torch.float32, device=pred.device)
    grad = None if weight is None else torch.empty_like(pred)
    warps, terms = warps_and_terms(side, pred.dtype)
    with torch.cuda.device(pred.device) if pred.is_cuda else nullcontext():  # the tensors' GPU, not the current one
        _laplacian_kernel[(frames * channels,)](
            pred, target, losses if weight is None else weight.contiguous(), losses, losses if grad is None else grad,
            _kernel_matrices(side, levels, pred.device), channels, pred_c, pred_w, target_c, target_w,
            SIDE=side, LEVELS=levels, TERMS=terms, GRAD=grad is not None, num_warps=warps)
    return losses.mean(1), grad


# ---- autograd ------------------------------------------------------------------------------------------------------

def _path(pred, target, levels):
    covered = use_triton("laplacian_l1", pred.device, _not_covered(pred, target, levels))
    return _triton_path if covered and pred.numel() else _torch_path


class _LaplacianL1(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pred, target, levels):
        ctx.save_for_backward(pred, target)
        ctx.levels = levels
        return _path(pred, target, levels)(pred, target, None, levels)[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        pred, target = ctx.saved_tensors
        return _path(pred, target, ctx.levels)(pred, target, upstream, ctx.levels)[1], None, None


def _check(pred, target, levels):
    if pred.ndim != 4 or pred.shape != target.shape:
        raise ValueError(f"laplacian_l1: pred and target must be the same [N, C, H, W], got {tuple(pred.shape)} and "
                         f"{tuple(target.shape)}")
    if not pred.is_floating_point():
        raise ValueError(f"laplacian_l1: pred must be a float tensor, got {pred.dtype}")
    if target.dtype != torch.uint8 and not target.is_floating_point():
        raise ValueError(f"laplacian_l1: target must be float or uint8, got {target.dtype}")
    if pred.device != target.device:
        raise ValueError(f"laplacian_l1: pred is on {pred.device}, target on {target.device}")
    if levels < 1 or min(pred.shape[2:]) < 2 ** levels:
        raise ValueError(f"laplacian_l1: {levels} levels need sides of at least {2 ** max(levels, 0)}, and at least 1 "
                         f"level; got frames of {pred.shape[2]} x {pred.shape[3]}")


def laplacian_l1(pred, target, levels=4):
    """Laplacian-pyramid L1 of each frame, l(v^, v) of Sec. 4.2; differentiable in pred.

    pred: [N, C, H, W], fp32, bf16 or fp16 (float64 too, without Triton). target: the same shape, float, or uint8, which
    means x / 127.5 - 1. levels n: bands 0 .. n-1 and the residual n. Returns [N] float32 (float64 for float64). The
    gradient at a zero difference is 0. Raises ValueError for other shapes and dtypes, and for sides under 2^levels.
    """
    _check(pred, target, levels)
    return _LaplacianL1.apply(pred, target, levels)


def laplacian_l1_with_grad(pred, target, weight, levels=4):
    """The training step's path: losses and gradient in one pass, for weights that are known before the call.

    pred, target, levels: as in laplacian_l1. weight: [N] float, one per frame. Returns (losses [N] float32, not
    weighted; grad = d(sum over n of weight[n] * losses[n])/d pred, dtype and memory format of pred). Neither carries a
    graph; use as torch.autograd.backward([frames, ...], [grad, ...]). Raises ValueError as laplacian_l1 does.
    """
    _check(pred, target, levels)
    if weight.shape != pred.shape[:1]:
        raise ValueError(f"laplacian_l1_with_grad: weight must be [N] = [{pred.shape[0]}], got {list(weight.shape)}")
    return _path(pred, target, levels)(pred.detach(), target, weight.detach(), levels)
