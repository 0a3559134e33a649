#!/usr/bin/env bash
# One would guess: An animated AVIF opened with PyAV has its animation in streams.video[0], like
# any video.
#
# What is seen: PyAV 18.1.0 shows the still picture of the file as a stream of one frame, before
# the stream of the animation.
# With alpha there are four streams: colour and grey alpha for the still picture, then both for
# the animation.
# Files written by Pillow 13.0.0 with 4 frames:
#   RGB stream 0 frames 1 yuv420p average_rate 1
#   RGB stream 1 frames 4 yuv420p average_rate 10
#   RGBA stream 0 frames 1 yuv420p average_rate 1
#   RGBA stream 1 frames 1 gray average_rate 1
#   RGBA stream 2 frames 4 yuv420p average_rate 10
#   RGBA stream 3 frames 4 gray average_rate 10
#
# So: Take the video stream with the most frames, not the first one.
# Expect alpha as a grey stream of its own, and join it yourself.
set -euo pipefail
export OMP_NUM_THREADS=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6 pillow==13.0.0

cd "$folder"
"$folder/venv/bin/python" - <<'PROGRAM'
import io

import av
import numpy as np
import PIL
from PIL import Image

print("PyAV", av.__version__, "Pillow", PIL.__version__)
random = np.random.default_rng(0)
for channels in (3, 4):
    pictures = random.integers(0, 256, (4, 32, 48, channels), dtype=np.uint8)
    frames = [Image.fromarray(picture) for picture in pictures]
    file = io.BytesIO()
    frames[0].save(file, "AVIF", save_all=True, append_images=frames[1:], duration=100)
    counts = []
    for index in range(8):
        file.seek(0)
        source = av.open(file)
        if index == len(source.streams.video):
            break
        decoded = list(source.decode(video=index))
        counts.append(len(decoded))
        print(frames[0].mode, "stream", index, "frames", len(decoded), decoded[0].format.name,
              "average_rate", source.streams.video[index].average_rate)
    assert counts == ([1, 4] if channels == 3 else [1, 1, 4, 4])
PROGRAM
