#!/usr/bin/env bash
# One would guess: What Pillow writes as an animated picture, FFmpeg's libraries read: GIF,
# APNG, AVIF and WebP alike.
#
# What is seen: Animated WebP opens with PyAV 18.1.0, shows a stream at 25 frames a second, and
# fails at decoding.
# GIF and APNG decode. A GIF tells its duration, an APNG tells none (Pillow 13.0.0, libavcodec
# 62.28.102):
#   PyAV 18.1.0 libavcodec 62.28.102 Pillow 13.0.0
#   GIF frames written 1 demuxer gif average_rate 10 duration 100000 decoded 1
#   GIF frames written 4 demuxer gif average_rate 10 duration 400000 decoded 4
#   PNG frames written 1 demuxer png_pipe average_rate 25 duration None decoded 1
#   PNG frames written 4 demuxer apng average_rate 10 duration None decoded 4
#   WEBP frames written 1 demuxer webp_pipe average_rate 25 duration None decoded 1
#   WEBP frames written 4 demuxer webp_pipe average_rate 25 duration None decoded InvalidDataError
#
# So: Read animated WebP with Pillow.
# Do not take a stream's stated rate as a sign that its frames can be decoded.
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

print("PyAV", av.__version__)
random = np.random.default_rng(0)
frames = [Image.fromarray(random.integers(0, 256, (32, 48, 3), dtype=np.uint8)) for _ in range(4)]
for name in ("GIF", "PNG", "WEBP"):
    for count in (1, 4):
        file = io.BytesIO()
        frames[0].save(file, name, save_all=True, append_images=frames[1:count], duration=100)
        file.seek(0)
        source = av.open(file)
        stream = source.streams.video[0]
        rate, duration = stream.average_rate, source.duration
        try:
            decoded = sum(1 for _ in source.decode(stream))
        except av.error.InvalidDataError as error:
            decoded = type(error).__name__
        print(name, "frames written", count, "demuxer", source.format.name, "average_rate", rate,
              "duration", duration, "decoded", decoded)
        assert decoded == ("InvalidDataError" if (name, count) == ("WEBP", 4) else count)
PROGRAM
