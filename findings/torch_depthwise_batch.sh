#!/usr/bin/env bash
# One would guess: A depthwise convolution filters each plane by itself, so the same planes cost
# the same as channels of one picture or as a batch of pictures.
#
# What is seen: With torch 2.13.0 on a CPU, 64 pictures of 3 channels, filtered as a batch, take
# several times as long as the same 192 planes filtered as channels of one picture. The results
# agree to the last digits.
#   OUTPUT
#
# So: To filter many pictures with one kernel (a blur, the local means of SSIM), view them as one
# picture of many channels: x.reshape(1, -1, H, W), groups=that many.
set -euo pipefail
export OMP_NUM_THREADS=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

"$folder/venv/bin/python" - <<'PROGRAM'
import torch
import torch.nn.functional as F
from torch.utils.benchmark import Timer

def median(function):
    return Timer("function()", globals=dict(function=function)).blocked_autorange(min_run_time=2).median

print("torch", torch.__version__.split("+")[0], "CPU capability", torch.backends.cpu.get_cpu_capability())
for shape in ((1, 11), (11, 1), (11, 11)):
    kernel = torch.rand(shape) / (shape[0] * shape[1])
    pictures = torch.rand(64, 3, 64, 64)

    def as_batch():
        return F.conv2d(pictures, kernel.expand(3, 1, *shape), groups=3)

    def as_channels():
        planes = pictures.reshape(1, 192, 64, 64)
        return F.conv2d(planes, kernel.expand(192, 1, *shape), groups=192)

    batch, channels = as_batch(), as_channels()
    assert torch.allclose(batch.reshape(channels.shape), channels, atol=1e-6)
    slow, fast = median(as_batch), median(as_channels)
    print(f"kernel {shape[0]} x {shape[1]}: batch {1000 * slow:.2f} ms, channels {1000 * fast:.2f} ms, "
          f"ratio {slow / fast:.1f}")
    assert slow > 1.5 * fast
PROGRAM
