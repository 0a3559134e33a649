"""Triplet margin on a clip's correlated codes: l_triplet of Eq. 6 (spec section 2).

With d_ij = |r_i - r_j|^2, over all anchors a, positives p and negatives n of one clip with 0 < |a-p| <= radius < |a-n|:

    loss = mean of max(d_ap - d_an + margin, 0)

Let m_ij = dloss/dd_ij: each active triplet adds 1/count at (a, p) and takes it off at (a, n). Then

    dloss/dr_i = 2 sum over j of (m_ij + m_ji) (r_i - r_j)
"""
import torch


# ---- torch: the reference, and the path on CPU ---------------------------------------------------------------------

def _count(frames, radius):
    """Number of triplets in a clip."""
    return sum(sum(0 < abs(a - p) <= radius for p in range(frames)) * sum(abs(a - n) > radius for n in range(frames))
               for a in range(frames))


def _torch_path(codes, weight, margin, radius):
    """losses [B] and, when weight [B] is given, d(sum of weight * losses)/d codes; else None."""
    dtype = torch.promote_types(codes.dtype, torch.float32)
    batch, frames, dim = codes.shape
    with torch.no_grad(), torch.autocast(codes.device.type, enabled=False):
        r = codes.to(dtype)
        r = r - r.mean(1, keepdim=True)  # differences do not see a clip's mean; without it the products below round less
        # Differences, not |a|^2 + |b|^2 - 2ab: near-coincident codes keep all their digits. Chunks keep it under 64 MB.
        chunk = max(1, 2 ** 24 // (frames * frames * dim))
        d = torch.cat([(c[:, :, None] - c[:, None]).square_().sum(-1) for c in r.split(chunk)])  # [B, T, T]
        index = torch.arange(frames, device=codes.device)
        far = (index[:, None] - index).abs() > radius
        losses, m = 0, torch.zeros_like(d)
        for offset in range(-min(radius, frames - 1), min(radius, frames - 1) + 1):  # one positive p = a + offset a time
            if offset == 0:
                continue
            a = index[max(0, -offset):frames - max(0, offset)]
            hinge = d[:, a, a + offset][:, :, None] - d[:, a] + margin  # [B, A, T]
            active = (hinge > 0) & far[a]
            losses = losses + torch.where(active, hinge, 0).sum((1, 2))
            m[:, a, a + offset] += active.sum(2)
            m[:, a] -= active.to(dtype)
        losses = losses / _count(frames, radius)
        if weight is None:
            return losses, None
        m = (m + m.transpose(1, 2)) * (weight.to(dtype) * (2 / _count(frames, radius))).view(-1, 1, 1)
        grad = m.sum(2, keepdim=True) * r - m @ r
        return losses, grad.to(codes.dtype)


# ---- autograd ------------------------------------------------------------------------------------------------------

class _TripletMargin(torch.autograd.Function):
    @staticmethod
    def forward(ctx, codes, margin, radius):
        ctx.save_for_backward(codes)
        ctx.settings = margin, radius
        return _torch_path(codes, None, margin, radius)[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        return _torch_path(ctx.saved_tensors[0], upstream, *ctx.settings)[1], None, None


def triplet_margin(codes, margin=2.0, radius=2):
    """l_triplet of Eq. 6 for each clip: all of its triplets (the paper's set Gamma); differentiable in codes.

    codes: [B, T, D], fp32, bf16 or fp16 (float64 too, without Triton): the GRU's outputs r. margin, radius: alpha and
    the range of positives, both 2 in the paper. Returns [B] float32 (float64 for float64). Raises ValueError where a clip
    has no triplet: fewer than radius + 2 frames.
    """
    if codes.ndim != 3 or not codes.is_floating_point():
        raise ValueError(f"triplet_margin: codes must be a float tensor [B, T, D], got {codes.dtype} "
                         f"{list(codes.shape)}")
    if radius < 1 or codes.shape[1] < radius + 2:
        raise ValueError(f"triplet_margin: a clip needs at least radius + 2 = {radius + 2} frames to have a triplet, "
                         f"and a radius of at least 1; got {codes.shape[1]} frames")
    return _TripletMargin.apply(codes, margin, radius)
