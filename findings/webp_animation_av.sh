#!/usr/bin/env bash
# One would guess: What Pillow writes as an animated picture, FFmpeg's libraries read: GIF,
# APNG, AVIF and WebP alike.
#
# What is seen: TODO
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

print("PyAV", av.__version__, "libavcodec", ".".join(map(str, av.library_versions["libavcodec"])), "Pillow", PIL.__version__)
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
