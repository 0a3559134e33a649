#!/usr/bin/env bash
# One would guess: Where x.is_contiguous(memory_format=torch.channels_last) is True, a convolution
# of x runs in channels_last and its output is channels_last too.
#
# What is seen: Not for a batch of one that was made by x[None], as everybody makes it from a
# picture [H, W, C]. The stride of the batch says nothing about the memory, but convolution, pooling
# and interpolation of torch 2.13.0 choose their format by it, and give contiguous [N, C, H, W].
# contiguous(memory_format=...) has nothing to do and keeps the stride; to(memory_format=...), or
# [None] before permute, mends it.
#   torch 2.13.0
#   picture.permute(2, 0, 1)[None]           strides (16, 1, 768, 16), channels_last: x True, conv2d False, max_pool2d False, interpolate False
#   the same, .contiguous(channels_last)     strides (16, 1, 768, 16), channels_last: x True, conv2d False, max_pool2d False, interpolate False
#   the same, .to(channels_last)             strides (24576, 1, 768, 16), channels_last: x True, conv2d True, max_pool2d True, interpolate True
#   picture[None].permute(0, 3, 1, 2)        strides (24576, 1, 768, 16), channels_last: x True, conv2d True, max_pool2d True, interpolate True
#
# So: To keep one picture channels_last, add the batch's axis before permuting, and do not trust
# is_contiguous to say which kernel will run.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

"$folder/venv/bin/python" - <<'PROGRAM'
import torch
import torch.nn.functional as F

last = torch.channels_last

def is_last(x):
    return x.is_contiguous(memory_format=last)

print("torch", torch.__version__.split("+")[0])
picture = torch.rand(32, 48, 16)  # H, W, C
weight = torch.rand(16, 16, 3, 3)
usual = picture.permute(2, 0, 1)[None]
ways = {
    "picture.permute(2, 0, 1)[None]": (usual, False),
    "the same, .contiguous(channels_last)": (usual.contiguous(memory_format=last), False),
    "the same, .to(channels_last)": (usual.to(memory_format=last), True),
    "picture[None].permute(0, 3, 1, 2)": (picture[None].permute(0, 3, 1, 2), True),
}
for name, (x, stays) in ways.items():
    outputs = dict(conv2d=F.conv2d(x, weight), max_pool2d=F.max_pool2d(x, 2),
                   interpolate=F.interpolate(x, scale_factor=2))
    formats = ", ".join(f"{operation} {is_last(y)}" for operation, y in outputs.items())
    print(f"{name:<40} strides {x.stride()}, channels_last: x {is_last(x)}, {formats}")
    assert is_last(x) and all(is_last(y) == stays for y in outputs.values())
PROGRAM
