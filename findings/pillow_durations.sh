#!/usr/bin/env bash
# One would guess: After im.seek(k), im.info["duration"] holds the time that frame k is shown,
# in every format.
#
# What is seen: With Pillow 13.0.0 this holds for GIF and PNG.
# For WebP and AVIF the duration is absent after seek and is there only after load:
#   Pillow 13.0.0
#   GIF after seek [100, 200, 300, 400] after load [100, 200, 300, 400]
#   PNG after seek [100.0, 200.0, 300.0, 400.0] after load [100.0, 200.0, 300.0, 400.0]
#   WEBP after seek [None, None, None, None] after load [100, 200, 300, 400]
#   AVIF after seek [None, None, None, None] after load [100, 200, 300, 400]
#
# So: Call im.load() after every im.seek(k) and before reading im.info["duration"].
# Do it in every format: it costs nothing if the pixels are used anyway.
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
frames = [Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(4)]
durations = [100, 200, 300, 400]

for name in ("GIF", "PNG", "WEBP", "AVIF"):
    file = io.BytesIO()
    frames[0].save(file, name, save_all=True, append_images=frames[1:], duration=durations)
    file.seek(0)
    image = Image.open(file)
    after_seek, after_load = [], []
    for index in range(image.n_frames):
        image.seek(index)
        after_seek.append(image.info.get("duration"))
        image.load()
        after_load.append(image.info.get("duration"))
    print(name, "after seek", after_seek, "after load", after_load)
    assert after_load == durations
    assert (after_seek == durations) == (name in ("GIF", "PNG"))
PROGRAM
