#!/usr/bin/env bash
# One would guess: A frame duration of 1000 / 15 ms, given to Pillow for 15 frames a second, is
# rounded in the same way by every format's writer.
#
# What is seen: With Pillow 13.0.0 there are four answers for six frames.
# GIF cuts to 60 ms, PNG keeps the fraction, WebP mixes 66 and 67 so that the total is right,
# and AVIF raises TypeError:
#   Pillow 13.0.0
#   GIF [60, 60, 60, 60, 60, 60]
#   PNG [66.667, 66.667, 66.667, 66.667, 66.667, 66.667]
#   WEBP [67, 66, 67, 67, 66, 67]
#   AVIF TypeError: 'float' object cannot be interpreted as an integer
#
# So: Give whole milliseconds to AVIF, and whole hundredths of a second to GIF.
# Round the times at which frames start and take their differences, as the WebP writer does, so
# that the error does not add up.
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
frames = [Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(6)]
seen = {}
for name in ("GIF", "PNG", "WEBP", "AVIF"):
    file = io.BytesIO()
    try:
        frames[0].save(file, name, save_all=True, append_images=frames[1:], duration=1000 / 15)
    except TypeError as error:
        seen[name] = f"TypeError: {error}"
    else:
        file.seek(0)
        image = Image.open(file)
        durations = []
        for index in range(image.n_frames):
            image.seek(index)
            image.load()
            durations.append(round(image.info["duration"], 3))
        seen[name] = durations
    print(name, seen[name])
assert seen["GIF"] == [60] * 6
assert seen["PNG"] == [66.667] * 6
assert set(seen["WEBP"]) == {66, 67} and sum(seen["WEBP"]) == 400
assert seen["AVIF"].startswith("TypeError")
PROGRAM
