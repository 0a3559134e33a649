"""The measures of Sec. 4.2, and a few beside them: PSNR, SSIM, FCS, MCS. Clips are uint8 [K, L, H, W, 3]."""
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from data_prep import DataError, printable

def unit_frames(clips):
    """uint8 [..., H, W, 3] -> float [..., 3, H, W] in [0, 1]."""
    return clips.movedim(-1, -3).float() / 255

def psnr(generated, real):
    """dB of each clip, by its mean squared error on [0, 1], at most 100. uint8 [K, L, H, W, 3] -> [K]."""
    mse = torch.stack([((g.float() - r.float()) / 255).square().mean() for g, r in zip(generated, real)])
    return -10 * mse.clamp(min=1e-10).log10()

def ssim(x, y):
    """SSIM of frames, float [M, C, H, W] in [0, 1] twice, sides of at least 11 -> [M]: Gaussian 11 x 11.

    As scikit-image's structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    data_range=1), averaged over colours; a border of 5 pixels is left out, as there."""
    taps = torch.exp(-torch.arange(-5, 6, dtype=x.dtype, device=x.device).square() / (2 * 1.5 ** 2))
    taps = (taps / taps.sum()).expand(x.shape[1], 1, 1, 11)

    def mean(v):  # the local mean of each colour, one axis after the other
        return F.conv2d(F.conv2d(v, taps, groups=len(taps)), taps.mT, groups=len(taps))

    mx = mean(x)
    my = mean(y)
    vx = mean(x * x) - mx * mx
    vy = mean(y * y) - my * my
    vxy = mean(x * y) - mx * my
    similarity = (2 * mx * my + 1e-4) * (2 * vxy + 9e-4) / ((mx * mx + my * my + 1e-4) * (vx + vy + 9e-4))
    return similarity.mean((1, 2, 3))

def mean_ssim(a, b):
    """Mean SSIM of the frames of clips, uint8 [K, L, H, W, 3] twice; 16 clips at a time."""
    each = [ssim(*(unit_frames(v).flatten(0, 1) for v in parts)) for parts in zip(a.split(16), b.split(16))]
    return torch.cat(each).mean().item()

def fcs(clips):
    """Frame Consistency Score: mean SSIM of each clip's first frame and all. uint8 [K, L, H, W, 3]."""
    return mean_ssim(clips[:, :1].expand_as(clips), clips)

VGG16 = "https://download.pytorch.org/models/vgg16-397923af.pth"

def load_vgg16(where, device):
    """(phi of the MCS, None), or (None, why there is none). where: PATH, `download`, or None for the cache.

    phi is VGG16 up to relu3_3: normalised frames [M, 3, H, W] -> [M, 256, H / 4, W / 4]. Raises DataError."""
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(VGG16).name)
    if not where and not cached.is_file():
        return None, "no VGG16 weights: --vgg16 download fetches them (528 MB), --vgg16 PATH reads them"
    layers = []
    for widths in ((3, 64), (64, 64), (), (64, 128), (128, 128), (), (128, 256), (256, 256), (256, 256)):
        layers += [nn.Conv2d(*widths, 3, padding=1), nn.ReLU()] if widths else [nn.MaxPool2d(2)]
    phi = nn.Sequential(*layers)
    try:
        if where in (None, "download"):
            weights = torch.hub.load_state_dict_from_url(VGG16, map_location="cpu", check_hash=True)
        else:
            weights = torch.load(where, map_location="cpu", weights_only=True)
        phi.load_state_dict({key: weights[f"features.{key}"] for key in phi.state_dict()})
    except Exception as error:  # no network, a wrong hash, no such file, damaged bytes, other layers
        why = printable(error) if isinstance(error, OSError) else type(error).__name__
        raise DataError(f"--vgg16 {where or cached}: not VGG16 with torchvision's names ({why})") from None
    return phi.to(device).requires_grad_(False), None

def motion(phi, clips):
    """Mean over clips of phi(v_{t+1}) - phi(v_t). uint8 [K, L, H, W, 3] -> [L - 1, 256, H / 4, W / 4]."""
    mean = torch.tensor([0.485, 0.456, 0.406], device=clips.device)[:, None, None]  # torchvision's
    std = torch.tensor([0.229, 0.224, 0.225], device=clips.device)[:, None, None]
    return sum(phi((unit_frames(v) - mean) / std).diff(dim=0) for v in clips) / len(clips)

def nearest(clips, real):
    """The real clip nearest to each clip, by frames of 16 x 16; uint8 [K, L, H, W, 3] and [K', L, H, W, 3] ->
    its index [K], and how far it is [K]: root mean square on [0, 1]."""
    a, b = (torch.stack([F.adaptive_avg_pool2d(v, 16).flatten() for v in map(unit_frames, x)])
            for x in (clips, real))
    distance, index = torch.cdist(a, b).min(1)
    return index, distance / a.shape[1] ** 0.5

def scores(generated, real, phi, why_not):
    """Table 2's two scores of clips, uint8 [K, L, H, W, 3] and [K', L, H, W, 3] on one device, and two more.

    mcs: log10 |f - f^|^2 of the mean of `motion` over t, which leaves the last frame minus the first; mcs_t:
    log10 of the mean over t of |f_t - f^_t|^2. Lower is better; None without phi, and for equal motion (JSON
    has no infinity). distinct_nearest: how many of the real clips are nearest to one of the generated."""
    found = dict(fcs=fcs(generated), fcs_bound=fcs(real), mcs=None, mcs_t=None, mcs_note=why_not,
                 distinct_nearest=len(nearest(generated, real)[0].unique()))
    if phi:
        difference = motion(phi, generated) - motion(phi, real)              # (L - 1, 256, H / 4, W / 4)
        squares = dict(mcs=difference.mean(0).square().sum(), mcs_t=difference.square().sum((1, 2, 3)).mean())
        found.update({key: square.log10().item() if square else None for key, square in squares.items()})
        if not squares["mcs"]:
            found["mcs_note"] = "-inf: the generated clips move like the real ones"
    return found

def scores_in_words(found):
    mcs = found["mcs_note"] or f"MCS {found['mcs']:.2f}, MCS_t {found['mcs_t']:.2f}"
    return f"FCS {found['fcs']:.3f} (real clips {found['fcs_bound']:.3f}: the closer the better); {mcs}"
