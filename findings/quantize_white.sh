#!/usr/bin/env bash
# One would guess: Image.quantize(palette=...) without dither maps a colour that is in the
# palette to itself.
#
# What is seen: Pillow 13.0.0 keeps one answer for each cell of 4x4x4 colours, found for the
# cell's corner and not for the colour itself.
# White (255) falls in the cell from 252, so in a palette of black, a grey and white, a grey of
# 249 to 254 takes its place.
# A ramp of 256 greys mapped to a palette of the same greys keeps 64:
#   white in the palette is missed when this grey is there too: [249, 250, 251, 252, 253, 254]
#   256 greys through a palette of these 256 greys: changed 192 left 64
#
# So: To map exact colours (masks, label pictures), look the nearest palette entry up with
# numpy.
# Use quantize(palette=...) only where an error of 3 in a channel does not matter.
set -euo pipefail
export OMP_NUM_THREADS=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 pillow==13.0.0

cd "$folder"
"$folder/venv/bin/python" - <<'PROGRAM'
import numpy as np
import PIL
from PIL import Image

print("Pillow", PIL.__version__)


def mapped(palette, colours):
    holder = Image.new("P", (1, 1))
    holder.putpalette([channel for colour in palette for channel in colour])
    picture = Image.fromarray(np.array([colours], np.uint8))
    indexed = picture.quantize(palette=holder, dither=Image.Dither.NONE)
    return np.asarray(indexed.convert("RGB"))[0].tolist()


white, black = [255] * 3, [0] * 3
wrong = []
for near in range(240, 255):
    if mapped([black, [near] * 3, white], [white]) != [white]:
        wrong.append(near)
print("white in the palette is missed when this grey is there too:", wrong)
assert 254 in wrong and 240 not in wrong

greys = [[level] * 3 for level in range(256)]
back = mapped(greys, greys)
missed = sum(a != b for a, b in zip(greys, back))
print("256 greys through a palette of these 256 greys: changed", missed, "left", len({colour[0] for colour in back}))
assert missed > 100
PROGRAM
