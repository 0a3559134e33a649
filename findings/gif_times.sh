#!/usr/bin/env bash
# One would guess: A writer rounds a frame's delay to the nearest unit of the format, and writes
# as many frames as it is given.
#
# What is seen: Pillow 13.0.0 cuts a GIF delay down to a multiple of 10 ms, so frames of 66 ms
# play 10 % fast.
# GIF, PNG and WebP merge equal neighbours into one longer frame, and AVIF keeps them.
# The GIF writer adds merged delays up before it cuts, so the total depends on the content: 320
# ms here, and 300 ms if no two are equal.
#   Pillow 13.0.0
#   GIF written 33 read [30, 30, 30, 30]
#   GIF written 66 read [60, 60, 60, 60]
#   GIF written 67 read [60, 60, 60, 60]
#   GIF written 69 read [60, 60, 60, 60]
#   GIF 5 frames of 66 ms, two pairs equal: 3 frames [130, 130, 60] total 320
#   PNG 5 frames of 66 ms, two pairs equal: 3 frames [132.0, 132.0, 66.0] total 330.0
#   WEBP 5 frames of 66 ms, two pairs equal: 3 frames [132, 132, 66] total 330
#   AVIF 5 frames of 66 ms, two pairs equal: 5 frames [66, 66, 66, 66, 66] total 330
#
# So: Choose GIF delays that are multiples of 10 ms.
# Count time by the sum of the durations and never by the number of frames.
# For a picture at time t, walk the durations; do not take frame t * rate.
set -euo pipefail
export OMP_NUM_THREADS=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 pillow==13.0.0

cd "$folder"
"$folder/venv/bin/python" - <<'PROGRAM'
import io

import numpy as np
import PIL
from PIL import Image

print("Pillow", PIL.__version__)
random = np.random.default_rng(0)
first, second, third, fourth = (
    Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(4)
)


def durations_back(name, frames, duration):
    file = io.BytesIO()
    frames[0].save(file, name, save_all=True, append_images=frames[1:], duration=duration)
    file.seek(0)
    image = Image.open(file)
    durations = []
    for index in range(image.n_frames):
        image.seek(index)
        image.load()
        durations.append(image.info["duration"])
    return durations


for delay in (33, 66, 67, 69):
    back = durations_back("GIF", [first, second, third, fourth], delay)
    print("GIF written", delay, "read", back)
    assert back == [delay // 10 * 10] * 4

for name in ("GIF", "PNG", "WEBP", "AVIF"):
    back = durations_back(name, [first, first, second, second, third], 66)
    print(name, "5 frames of 66 ms, two pairs equal:", len(back), "frames", back, "total", sum(back))
    assert len(back) == (5 if name == "AVIF" else 3)
    assert sum(back) == (320 if name == "GIF" else 330)
PROGRAM
