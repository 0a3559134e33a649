#!/usr/bin/env bash
# One would guess: A depthwise convolution filters each plane by itself, so the same 192 planes
# cost the same as 64 colour pictures, as 192 grey pictures or as one picture of 192 channels.
#
# What is seen: With torch 2.13.0 on a CPU, sixteen channels or more are fast. Three channels take
# five to nine times as long, and a single channel, the plainest way to blur a grey picture, takes
# twenty to fifty times as long. The results agree to 1e-6.
#   torch 2.13.0 CPU capability AVX512
#   kernel 1 x 11, ms: 64 x 3 3.62, 192 x 1 26.56, 12 x 16 0.51, 1 x 192 0.49
#   kernel 11 x 1, ms: 64 x 3 6.07, 192 x 1 27.03, 12 x 16 0.72, 1 x 192 0.75
#   kernel 11 x 11, ms: 64 x 3 11.04, 192 x 1 38.95, 12 x 16 2.07, 1 x 192 2.12
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
    timer = Timer("function()", globals=dict(function=function))
    return 1000 * timer.blocked_autorange(min_run_time=2).median

print("torch", torch.__version__.split("+")[0], "CPU capability", torch.backends.cpu.get_cpu_capability())
for shape in ((1, 11), (11, 1), (11, 11)):
    kernel = torch.rand(shape) / (shape[0] * shape[1])
    pictures = torch.rand(64, 3, 64, 64)

    def as_batch():
        return F.conv2d(pictures, kernel.expand(3, 1, *shape), groups=3)

    def as_channels():
        planes = pictures.reshape(1, 192, 64, 64)
        return F.conv2d(planes, kernel.expand(192, 1, *shape), groups=192)

    def sixteen_at_a_time():
        planes = pictures.reshape(12, 16, 64, 64)
        return F.conv2d(planes, kernel.expand(16, 1, *shape), groups=16)

    def as_grey():
        return F.conv2d(pictures.reshape(192, 1, 64, 64), kernel[None, None])

    expected = as_batch().flatten()
    times = {}
    for way in (as_batch, as_grey, sixteen_at_a_time, as_channels):
        assert torch.allclose(way().flatten(), expected, atol=1e-6)
        times[way] = median(way)
    print(f"kernel {shape[0]} x {shape[1]}, ms: 64 x 3 {times[as_batch]:.2f}, 192 x 1 {times[as_grey]:.2f}, "
          f"12 x 16 {times[sixteen_at_a_time]:.2f}, 1 x 192 {times[as_channels]:.2f}")
    assert times[as_batch] > 1.5 * times[as_channels]
PROGRAM
