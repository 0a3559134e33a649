"""Laplacian-pyramid L1 between frames: l_rec and l_static of Eq. 6. `plain_laplacian` is the definition.

The pyramid is linear, so the difference D = pred - target goes through a single pyramid:

    G_0 = D                                     one channel of one frame, H x W: a plane
    L_l = G_l - K G_l K^T                       the band of level l < n; K: [1 4 6 4 1]/16, edges repeated
    G_{l+1} = A G_l A^T                         A = P K: blur, then the mean of each pair of pixels
    L_n = G_n                                   the last band is the residual
    loss = sum over l = 0 .. n of mean |L_l|    the mean over C, H_l, W_l

This is Sec. 4.2's sum of 2^(2l) |L_l|_1 divided by C H W: level l has 4^l times fewer pixels. The band is
G - blur(G), not Burt and Adelson's G - expand(reduce(G)).

The gradient walks the same levels backwards. With s_l = sign(L_l), 0 at 0, and h_l = dloss/dG_l in units of
1/(C H_l W_l):

    h_n = s_n
    h_l = s_l - K^T s_l K + 4 A^T h_{l+1} A     4: the ratio of the levels' pixels (more for odd sides)
    dloss/dD = h_0 / (C H W)

K and A are small banded matrices, so a level is a few matrix products.

Bytes per pixel and channel, with p bytes for pred (fp32 4, bf16 2) and t for target (uint8 1); the last
column is for a bf16 pred and a uint8 target:
    laplacian_l1_with_grad    p + t + p: read pred, read target, write the gradient                    5
    laplacian_l1              p + t, and once more with the gradient in backward, 3p + 2t together     8
      if forward kept the gradient, backward would read and write it again: 4p + t                     9
"""
from contextlib import nullcontext
from functools import lru_cache

import torch
import torch.nn.functional as F

from .backend import INTERPRETED, tl, triton, use_triton

# ---- the definition ----------------------------------------------------------------------------------------

def plain_laplacian(pred, target, levels=4):
    """laplacian_l1 as its definition reads: padding, convolution, average pooling, and autograd's gradient.

    pred, target, levels and the losses [N] are those of laplacian_l1, which computes the same faster.
    """
    channels = pred.shape[1]
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=pred.device) / 16
    kernel = (taps[:, None] * taps).to(pred.dtype).expand(channels, 1, 5, 5)
    if target.dtype == torch.uint8:
        target = target.to(pred.dtype) / 127.5 - 1
    g = pred - target
    loss = 0
    for _ in range(levels):
        blurred = F.conv2d(F.pad(g, (2, 2, 2, 2), mode="replicate"), kernel, groups=channels)
        band = g - blurred
        loss = loss + band.abs().mean((1, 2, 3))
        g = F.avg_pool2d(blurred, 2)
    residual = g.abs().mean((1, 2, 3))
    return (loss + residual).to(torch.promote_types(pred.dtype, torch.float32))

# ---- torch: the path on a CPU ------------------------------------------------------------------------------

@lru_cache(maxsize=64)
def _matrices(side, dtype, device):
    """K [side, side], whose row i has the taps around pixel i, and A = P K [side // 2, side].

    The entries are sixteenths and thirty-seconds: exact in every dtype.
    """
    rows = torch.arange(side)
    k = torch.zeros(side, side, dtype=torch.float64)
    for offset, tap in zip(range(-2, 3), (1.0, 4.0, 6.0, 4.0, 1.0)):
        # A tap beyond the edge falls on the edge's pixel.
        k[rows, (rows + offset).clamp(0, side - 1)] += tap / 16
    # The last pixel of an odd side is in no pair, as in avg_pool2d.
    a = (k[0:side // 2 * 2:2] + k[1::2]) / 2
    return k.to(device, dtype), a.to(device, dtype)

def _mean_abs(x):
    """x [N, pixels] -> the mean of |x| [N], in a single pass."""
    return torch.linalg.vector_norm(x, 1, dim=1) / x.shape[1]

def _torch_path(pred, target, weight, levels):
    """losses [N] and, if weight [N] is given, d(sum of weight * losses)/d pred; else None.

    On a CPU, matrix products are several times faster than depthwise convolution and pooling.
    """
    dtype = torch.promote_types(pred.dtype, torch.float32)
    frames = pred.shape[0]
    pixels = pred[0].numel()
    with torch.no_grad(), torch.autocast(pred.device.type, enabled=False):
        if target.dtype == torch.uint8:
            target = (target.to(dtype) / 127.5).sub_(1)
        g = torch.empty(pred.shape, dtype=dtype, device=pred.device)
        g = torch.sub(pred, target, out=g).flatten(0, 1)  # G_0 [N C, H, W]
        losses = 0
        signs = []
        for _ in range(levels):
            kh, ah = _matrices(g.shape[1], dtype, g.device)
            kw, aw = _matrices(g.shape[2], dtype, g.device)
            smaller = ah @ (g @ aw.t())  # G_{l+1}
            g.baddbmm_(kh.expand(len(g), -1, -1), g @ kw.t(), alpha=-1)  # L_l, in the memory of G_l
            losses = losses + _mean_abs(g.view(frames, -1))
            signs.append(g.sign_())
            g = smaller
        losses = losses + _mean_abs(g.reshape(frames, -1))
        if weight is None:
            return losses, None
        h = g.sign_()  # h_n
        for s in reversed(signs):
            kh, ah = _matrices(s.shape[1], dtype, s.device)
            kw, aw = _matrices(s.shape[2], dtype, s.device)
            ratio = s[0].numel() / h[0].numel()
            s.baddbmm_(kh.t().expand(len(s), -1, -1), s @ kw, alpha=-1)
            s.baddbmm_(ah.t().expand(len(s), -1, -1), h @ aw, alpha=ratio)
            h = s  # h_l, in the memory of s_l
        scale = (weight.to(dtype) / pixels).view(-1, 1, 1, 1)
        return losses, torch.mul(h.view(pred.shape), scale, out=torch.empty_like(pred))

# ---- Triton: a program computes a plane, its whole pyramid and the way back, on chip -----------------------
# Tensor cores multiply 16-bit floats, so an fp32 is split into terms, x = x_1 + x_2 + x_3, and each term is
# multiplied. Three bf16 terms hold all of its 24 bits, two hold 16; one fp16 term holds 11 bits of numbers up
# to 65,504. K, A and the signs are exact in one term. G_{l+1} is the mean of each 2 x 2 pixels of the blur
# K G_l K^T, which the band needs anyway.

def _terms(side, pred, target):
    """Terms of a number: one fp16 term is as exact as bf16, and with a target of bytes it has the range."""
    if pred == torch.float32:
        return 3
    return 1 if pred == torch.bfloat16 and target == torch.uint8 and side >= 32 else 2

def _options(side, terms):
    """Launch options, chosen by counting compiled code for sm_90; no GPU has timed them yet."""
    options = dict(num_warps=max(1, 4 * side // 64), enable_fp_fusion=True)
    # With 128 registers a thread, a multiprocessor holds four programs instead of three, and 24 bytes a
    # thread go through memory. Triton has no such limit for AMD.
    if terms == 1 and side == 64 and torch.version.hip is None:
        options["maxnreg"] = 128
    return options

if triton is not None:
    @triton.jit
    def _left(k, x, TERMS: tl.constexpr):
        """k @ x: k exact in a term, x float32 in TERMS of them."""
        TERM: tl.constexpr = tl.float16 if TERMS == 1 else tl.bfloat16
        y = tl.dot(k, x.to(TERM).to(k.dtype))
        for _ in tl.static_range(TERMS - 1):
            x = x - x.to(TERM).to(tl.float32)  # the rest that the terms so far do not hold
            y = tl.dot(k, x.to(TERM).to(k.dtype), y)
        return y

    @triton.jit
    def _right(x, k, TERMS: tl.constexpr):
        """x @ k."""
        TERM: tl.constexpr = tl.float16 if TERMS == 1 else tl.bfloat16
        y = tl.dot(x.to(TERM).to(k.dtype), k)
        for _ in tl.static_range(TERMS - 1):
            x = x - x.to(TERM).to(tl.float32)
            y = tl.dot(x.to(TERM).to(k.dtype), k, y)
        return y

    @triton.jit
    def _sign(x):
        """The sign bit of x on a 1, or 0: half the instructions of two comparisons."""
        one = (x.to(tl.int32, bitcast=True) & -2147483648 | 0x3F800000).to(tl.float32, bitcast=True)
        return tl.where(x == 0, 0.0, one)

    @triton.jit
    def _pyramid(g, matrices, SIDE: tl.constexpr, LEVELS: tl.constexpr, TERMS: tl.constexpr,
                 GRAD: tl.constexpr):
        """The loss from G_l = g on, of LEVELS bands and the residual, and h_l. It calls itself for l + 1.

        A product needs sides of at least 16: smaller planes lie in the corner of a 16 x 16 plane, with zeros
        around them, and zeros in K and A keep them so. The loss of such planes stays a plane until a single
        sum takes all of them, because each sum costs barriers.
        """
        DTYPE: tl.constexpr = matrices.dtype.element_ty
        if LEVELS == 0:
            return tl.abs(g) * (1.0 / (SIDE * SIDE)), _sign(g).to(DTYPE)
        else:
            S: tl.constexpr = max(SIDE, 16)
            HALF: tl.constexpr = max(SIDE // 2, 16)
            i = tl.arange(0, S)
            j = tl.arange(0, HALF)
            k = tl.load(matrices + i[:, None] * S + i[None, :])  # K_l
            a = tl.load(matrices + S * S + j[:, None] * S + i[None, :])  # A_l
            blur = _left(k, _right(g, tl.trans(k), TERMS), TERMS)
            if SIDE <= 16:
                smaller = _left(a, _right(g, tl.trans(a), TERMS), TERMS)  # G_{l+1}
            else:
                smaller = tl.sum(tl.sum(tl.reshape(blur, (HALF, 2, HALF, 2)), 3), 1) * 0.25
            band = g - blur  # L_l
            s = _sign(band).to(DTYPE)
            loss = tl.sum(tl.abs(band)) if SIDE > 16 else tl.abs(band)
            rest, h = _pyramid(smaller, matrices + (S + HALF) * S, SIDE // 2, LEVELS - 1, TERMS, GRAD)
            if GRAD:
                h = _left(tl.trans(a), _right(-4 * h.to(tl.float32), a, TERMS), TERMS)
                s_k = tl.dot(s, k).to(DTYPE)  # sixteenths up to 1: exact in a term
                h = s.to(tl.float32) - tl.dot(tl.trans(k), s_k, h)
            return loss * (1.0 / (SIDE * SIDE)) + (tl.sum(rest) if SIDE == 32 else rest), h

    @triton.jit
    def _laplacian_kernel(pred, target, weight, losses, grad, matrices, C: tl.constexpr,
                          PRED_LAST: tl.constexpr, TARGET_LAST: tl.constexpr, SIDE: tl.constexpr,
                          LEVELS: tl.constexpr, TERMS: tl.constexpr, GRAD: tl.constexpr):
        """A channel c of a frame n. *_LAST: channels_last, a pixel's channels are neighbours in memory."""
        n = tl.program_id(0) // C
        c = tl.program_id(0) % C
        frame = n.to(tl.int64) * C * SIDE * SIDE
        # The pixels are loaded as one row: from a square, Triton would compute D twice, once in the layout
        # of the product and once in that of the band.
        pixel = tl.arange(0, SIDE * SIDE)
        here = frame + (c if PRED_LAST else c * SIDE * SIDE)
        there = frame + (c if TARGET_LAST else c * SIDE * SIDE)
        p = tl.load(pred + here + pixel * (C if PRED_LAST else 1))
        t = tl.load(target + there + pixel * (C if TARGET_LAST else 1))
        if t.dtype == tl.uint8:
            # x / 127.5 - 1 to the last bit, without a division: 1 / 127.5 = 257/32768 + a rest.
            x = t.to(tl.float32)
            t = x * (257.0 / 32768.0) + x * (1.0 / 127.5 - 257.0 / 32768.0) - 1.0
        d = tl.reshape(p.to(tl.float32) - t.to(tl.float32), (SIDE, SIDE))
        loss, h = _pyramid(d, matrices, SIDE, LEVELS, TERMS, GRAD)
        tl.store(losses + n * C + c, tl.sum(loss) if SIDE == 16 else loss)
        if GRAD:
            h = h.to(tl.float32) * (tl.load(weight + n).to(tl.float32) / (C * SIDE * SIDE))
            h = tl.reshape(h.to(grad.dtype.element_ty), (SIDE * SIDE,))
            tl.store(grad + here + pixel * (C if PRED_LAST else 1), h)

@lru_cache(maxsize=64)
def _kernel_matrices(side, levels, terms, device):
    """K_l and A_l of all levels, one after the other, as terms, padded with zeros to sides of 16."""
    dtype = torch.float16 if terms == 1 else torch.bfloat16
    if INTERPRETED:  # it cannot multiply bf16: numbers are split into the same terms, but held in fp32
        dtype = torch.float32
    parts = []
    for level in range(levels):
        for matrix in _matrices(side >> level, dtype, device):
            rows, columns = matrix.shape
            parts.append(F.pad(matrix, (0, max(0, 16 - columns), 0, max(0, 16 - rows))).flatten())
    return torch.cat(parts)

def _not_covered(pred, target, levels):
    """None if the kernel covers this call, else the property that it does not cover."""
    floats = (torch.float32, torch.bfloat16, torch.float16)
    height, width = pred.shape[2:]
    if height != width or height not in (16, 32, 64, 128):
        return f"frames of {height} x {width} (the kernel: squares of 16, 32, 64 or 128)"
    if levels not in (3, 4, 5):
        return f"{levels} levels (the kernel: 3 to 5)"
    if pred.dtype not in floats or target.dtype not in (*floats, torch.uint8):
        return f"{pred.dtype} against {target.dtype} (the kernel: fp32, bf16, fp16, and uint8 for the target)"
    return None

def _dense(x):
    """x without gaps in memory, and whether its channels come last."""
    last = not x.is_contiguous()
    return x.contiguous(memory_format=torch.channels_last) if last else x, last

def _triton_path(pred, target, weight, levels):
    """As _torch_path."""
    frames, channels, side = pred.shape[:3]
    pred, pred_last = _dense(pred)
    target, target_last = _dense(target)
    losses = torch.empty(frames, channels, dtype=torch.float32, device=pred.device)
    grad = None if weight is None else torch.empty_like(pred)
    terms = _terms(side, pred.dtype, target.dtype)
    with torch.cuda.device(pred.device) if pred.is_cuda else nullcontext():  # the tensors' GPU
        _laplacian_kernel[(frames * channels,)](
            pred, target, losses if weight is None else weight.contiguous(), losses,
            losses if grad is None else grad, _kernel_matrices(side, levels, terms, pred.device),
            C=channels, PRED_LAST=pred_last, TARGET_LAST=target_last, SIDE=side, LEVELS=levels, TERMS=terms,
            GRAD=grad is not None, **_options(side, terms))
    return losses.mean(1), grad

# ---- autograd ----------------------------------------------------------------------------------------------

def _path(pred, target, levels):
    """_triton_path or _torch_path, and an empty batch goes to PyTorch: a launch needs a program."""
    in_triton = use_triton("laplacian_l1", pred.device, _not_covered(pred, target, levels))
    return _triton_path if in_triton and pred.numel() else _torch_path

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
    """Raises ValueError for shapes, dtypes, devices and levels that have no loss."""
    if pred.ndim != 4 or pred.shape != target.shape:
        raise ValueError("laplacian_l1: pred and target must be the same [N, C, H, W], got "
                         f"{tuple(pred.shape)} and {tuple(target.shape)}")
    if not pred.is_floating_point():
        raise ValueError(f"laplacian_l1: pred must be a float tensor, got {pred.dtype}")
    if target.dtype != torch.uint8 and not target.is_floating_point():
        raise ValueError(f"laplacian_l1: target must be float or uint8, got {target.dtype}")
    if pred.device != target.device:
        raise ValueError(f"laplacian_l1: pred is on {pred.device}, target on {target.device}")
    if levels < 1 or min(pred.shape[2:]) < 2 ** levels:
        raise ValueError(f"laplacian_l1: {levels} levels need sides of at least {2 ** max(levels, 0)}, "
                         f"and at least 1 level; got frames of {pred.shape[2]} x {pred.shape[3]}")

def laplacian_l1(pred, target, levels=4):
    """Laplacian-pyramid L1 of each frame, l(v^, v) of Sec. 4.2; differentiable in pred.

    pred: [N, C, H, W], fp32, bf16 or fp16 (float64 too, without Triton). target: the same shape, float, or
    uint8 x, read as x / 127.5 - 1. levels n: bands 0 .. n-1 and the residual n. Returns [N] float32
    (float64 for float64). The gradient at a zero difference is 0. Raises ValueError for other shapes and
    dtypes, and for sides under 2^levels.
    """
    _check(pred, target, levels)
    return _LaplacianL1.apply(pred, target, levels)

def laplacian_l1_with_grad(pred, target, weight, levels=4):
    """The training step's form: losses and gradient in one pass, for weights that are known before the call.

    pred, target, levels: as in laplacian_l1. weight: [N] float, a number per frame. Returns (losses [N]
    float32, not weighted; grad = d(sum over n of weight[n] * losses[n])/d pred, dtype and memory format of
    pred). Neither carries a graph; use as torch.autograd.backward([frames, ...], [grad, ...]). Raises
    ValueError as laplacian_l1 does.
    """
    _check(pred, target, levels)
    if weight.shape != pred.shape[:1]:
        raise ValueError(f"laplacian_l1_with_grad: weight must be [N] = [{pred.shape[0]}], got "
                         f"{list(weight.shape)}")
    return _path(pred, target, levels)(pred.detach(), target, weight.detach(), levels)
