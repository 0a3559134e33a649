#!/usr/bin/env bash
# One would guess: Pictures whose chroma is constant over aligned 2x2 blocks lose nothing but
# rounding in 4:2:0.
# A picture of 4x4 blocks of one colour each is such a picture.
#
# What is seen: The default filter (the same as BILINEAR here) takes in the neighbour's chroma
# and smears the blocks' colours, before any codec runs.
# AREA and POINT lose only the rounding. PyAV 18.1.0, libswscale 9.5.102, from rgb24 to yuv420p
# and back:
#   blocks of 2 default PSNR 27.5 worst 38
#   blocks of 2 AREA PSNR 45.4 worst 3
#   blocks of 4 default PSNR 32.1 worst 25
#   blocks of 4 AREA PSNR 45.4 worst 3
#   blocks of 8 default PSNR 34.7 worst 26
#   blocks of 8 AREA PSNR 45.4 worst 3
#
# So: Give interpolation="AREA" when converting to a format with less chroma.
# Judge a codec only after measuring this step without any codec.
set -euo pipefail
export OMP_NUM_THREADS=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6

cd "$folder"
"$folder/venv/bin/python" - <<'PROGRAM'
import av
import numpy as np

print("PyAV", av.__version__)
random = np.random.default_rng(0)
seen = {}
for block in (2, 4, 8):
    colours = random.integers(60, 200, (32, 48, 3), dtype=np.uint8)
    picture = colours.repeat(block, 0).repeat(block, 1)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    for filter_name in ("default", "BILINEAR", "BICUBIC", "AREA", "POINT"):
        options = {} if filter_name == "default" else {"interpolation": filter_name}
        planar = frame.reformat(format="yuv420p", **options)
        back = planar.reformat(format="rgb24").to_ndarray().astype(float)
        difference = back - picture
        psnr = round(float(10 * np.log10(255**2 / np.mean(difference**2))), 1)
        seen[block, filter_name] = psnr
        print("blocks of", block, filter_name, "PSNR", psnr, "worst", int(abs(difference).max()))

for block in (2, 4, 8):
    assert seen[block, "default"] < 38
    assert seen[block, "AREA"] > 44
PROGRAM
