"""Laplacian-pyramid L1 between frames: l_rec and l_static of Eq. 6 (spec section 2).

The difference D = pred - target goes through one pyramid (the pyramid is linear, so that of the difference is enough):

    G_0 = D                                          one plane, H x W
    B_l = K G_l K^T                                  blur: K is the 5-tap binomial [1 4 6 4 1]/16, edges replicated
    L_l = G_l - B_l                                  the band of level l = 0 .. n-1
    G_{l+1} = P B_l P^T                              2 x 2 average; the last band is what is left, L_n = G_n
    loss = sum over l = 0 .. n of mean |L_l|         the mean over C, H_l, W_l

Its gradient is the same walk backwards. With s_l = sign(L_l), 0 at 0, and h_l = dloss/dG_l in units of 1/(C H_l W_l):

    h_n = s_n
    h_l = s_l + K^T (4 P^T h_{l+1} P - s_l) K        4 P^T h P: each value over its 2 x 2 pixels
    dloss/dD = h_0 / (C H W)                         (4 is the ratio of the pixel counts: a little more for odd sides)
"""
from functools import lru_cache

import torch


# ---- torch: the reference, and the path on CPU ---------------------------------------------------------------------

@lru_cache(maxsize=64)
def _matrices(side, dtype, device):
    """K [side, side], its row i the taps around pixel i, and P [side // 2, side], the mean of each pair of pixels."""
    rows = torch.arange(side)
    k = torch.zeros(side, side, dtype=torch.float64)
    for offset, tap in zip(range(-2, 3), (1.0, 4.0, 6.0, 4.0, 1.0)):
        k[rows, (rows + offset).clamp(0, side - 1)] += tap / 16  # the edge is replicated: its pixel takes all taps beyond
    p = torch.eye(side // 2, dtype=k.dtype).repeat_interleave(2, 1) / 2
    p = torch.nn.functional.pad(p, (0, side % 2))  # an odd side's last pixel is in no pair, as in avg_pool2d
    return k.to(device, dtype), p.to(device, dtype)


def _torch_path(pred, target, weight, levels):
    """losses [N] and, when weight [N] is given, d(sum of weight * losses)/d pred; else None.

    Products with small dense matrices: on a CPU they are several times faster than depthwise convolution and pooling.
    """
    dtype = torch.promote_types(pred.dtype, torch.float32)
    frames, pixels = pred.shape[0], pred[0].numel()
    with torch.no_grad(), torch.autocast(pred.device.type, enabled=False):
        if target.dtype == torch.uint8:
            target = (target.to(dtype) / 127.5).sub_(1)
        g = torch.sub(pred, target, out=torch.empty(pred.shape, dtype=dtype, device=pred.device)).flatten(0, 1)
        losses, signs = 0, []
        for _ in range(levels):  # g: G_l [N C, H, W]
            (kh, ph), (kw, pw) = (_matrices(side, dtype, g.device) for side in g.shape[1:])
            gk = g @ kw.t()
            pooled = torch.matmul(ph @ kh, gk) @ pw.t()  # G_{l+1} = P K G_l K^T P^T
            g.baddbmm_(kh.expand(len(g), -1, -1), gk, alpha=-1)  # L_l, over G_l
            losses = losses + g.view(frames, -1).abs().mean(1)
            signs.append(g.sign_())
            g = pooled
        losses = losses + g.reshape(frames, -1).abs().mean(1)
        if weight is None:
            return losses, None
        h = g.sign_()
        for s in reversed(signs):  # h: h_{l+1}, s: s_l, turned into h_l
            (kh, ph), (kw, pw) = (_matrices(side, dtype, s.device) for side in s.shape[1:])
            s_k, h_pk = s @ kw, h @ (pw @ kw)
            s.baddbmm_(kh.t().expand(len(s), -1, -1), s_k, alpha=-1)
            s.baddbmm_((ph @ kh).t().expand(len(s), -1, -1), h_pk, alpha=s[0].numel() / h[0].numel())
            h = s
        scale = (weight.to(dtype) / pixels).view(-1, 1, 1, 1)
        return losses, torch.mul(h.view(pred.shape), scale, out=torch.empty_like(pred))


# ---- autograd ------------------------------------------------------------------------------------------------------

class _LaplacianL1(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pred, target, levels):
        ctx.save_for_backward(pred, target)
        ctx.levels = levels
        return _torch_path(pred, target, None, levels)[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        pred, target = ctx.saved_tensors
        return _torch_path(pred, target, upstream, ctx.levels)[1], None, None


def _check(pred, target, levels):
    if pred.ndim != 4 or pred.shape != target.shape:
        raise ValueError(f"laplacian_l1: pred and target must be the same [N, C, H, W], got {tuple(pred.shape)} and "
                         f"{tuple(target.shape)}")
    if not pred.is_floating_point():
        raise ValueError(f"laplacian_l1: pred must be a float tensor, got {pred.dtype}")
    if target.dtype != torch.uint8 and not target.is_floating_point():
        raise ValueError(f"laplacian_l1: target must be float or uint8, got {target.dtype}")
    if levels < 1 or min(pred.shape[2:]) < 2 ** levels:
        raise ValueError(f"laplacian_l1: {levels} levels need sides of at least {2 ** max(levels, 0)}, and at least 1 "
                         f"level; got frames of {pred.shape[2]} x {pred.shape[3]}")


def laplacian_l1(pred, target, levels=4):
    """Laplacian-pyramid L1 of each frame, l(v^, v) of Eq. 6 and spec section 2; differentiable in pred.

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
    return _torch_path(pred.detach(), target, weight.detach(), levels)
