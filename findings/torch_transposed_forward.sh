#!/usr/bin/env bash
# One would guess: The forward pass of a transposed convolution costs about as much as the
# gradient by its input, which has the same products.
#
# What is seen: With torch 2.13.0 on a CPU, a last layer to three colours (32 channels, 4 x 4,
# stride 2) takes several times as long forward as its gradient does. Three channels cost as much
# as sixteen, and a convolution of 2 x 2 to twelve channels followed by pixel_shuffle, which
# makes the same numbers, is faster.
#   torch 2.13.0 CPU capability AVX512
#   float32, 3 channels: forward 6.14 ms, gradient by the input 1.57 ms, as a convolution at corners 3.05 ms
#   float32, 16 channels: forward 6.81 ms, gradient by the input 5.80 ms, as a convolution at corners 6.88 ms
#   bfloat16, 3 channels: forward 3.49 ms, gradient by the input 0.76 ms, as a convolution at corners 1.57 ms
#   bfloat16, 16 channels: forward 3.74 ms, gradient by the input 2.72 ms, as a convolution at corners 4.50 ms
#
# So: In a decoder that ends in few channels, write the last transposed convolution as a
# convolution to 4 c channels and pixel_shuffle, and crop one pixel at each side.
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

def by_corners(x, weight):
    c_in, c_out = weight.shape[:2]
    phases = weight.reshape(c_in, c_out, 2, 2, 2, 2).flip(2, 4).permute(1, 3, 5, 0, 2, 4)
    y = F.conv2d(x, phases.reshape(4 * c_out, c_in, 2, 2), padding=1)
    return F.pixel_shuffle(y, 2)[:, :, 1:-1, 1:-1]

print("torch", torch.__version__.split("+")[0], "CPU capability", torch.backends.cpu.get_cpu_capability())
for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
    x = torch.randn(32, 32, 32, 32).to(dtype).to(memory_format=torch.channels_last)
    forward_of = {}
    for c_out in (3, 16):
        weight = torch.randn(32, c_out, 4, 4).mul(0.02).to(dtype).to(memory_format=torch.channels_last)
        y = F.conv_transpose2d(x, weight, stride=2, padding=1)
        assert torch.allclose(by_corners(x, weight).float(), y.float(), atol=tolerance * y.abs().max().item())
        dy = torch.randn_like(y)
        options = ((2, 2), (1, 1), (1, 1), True, (0, 0), 1, (True, False, False))
        forward = median(lambda: F.conv_transpose2d(x, weight, stride=2, padding=1))
        backward = median(lambda: torch.ops.aten.convolution_backward(dy, x, weight, None, *options))
        corners = median(lambda: by_corners(x, weight))
        print(f"{str(dtype)[6:]}, {c_out} channels: forward {forward:.2f} ms, gradient by the input "
              f"{backward:.2f} ms, as a convolution at corners {corners:.2f} ms")
        forward_of[c_out] = forward
        if c_out == 3:
            assert forward > corners
    assert forward_of[3] > 0.7 * forward_of[16]
PROGRAM
