#!/usr/bin/env bash
# One would guess: The pixel shape (sample aspect ratio) that was set on the encoder comes back
# from the file.
#
# What is seen: MPEG-1 has a short table of pixel shapes, and MPEG-2 has a short table of
# picture shapes (4:3, 16:9, 2.21:1) beside square pixels.
# The encoder takes the nearest entry and says nothing. MPEG-4 in MP4 keeps the ratio.
# PyAV 18.1.0, libavformat 62.12.102, pictures of 176x144:
#   mpeg1video written 4/3 = 1.3333 read 239/182 = 1.3132
#   mpeg1video written 16/11 = 1.4545 read 49/33 = 1.4848
#   mpeg2video written 4/3 = 1.3333 read 16/11 = 1.4545
#   mpeg2video written 16/11 = 1.4545 read 16/11 = 1.4545
#   mpeg4 written 4/3 = 1.3333 read 4/3 = 1.3333
#   mpeg4 written 16/11 = 1.4545 read 16/11 = 1.4545
#
# So: Do not compare pixel shapes for equality after MPEG-1 or MPEG-2.
# Scale by the stored ratio only if the difference of some per cent does not matter, and else
# keep the true ratio elsewhere.
set -euo pipefail
export OMP_NUM_THREADS=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6

cd "$folder"
"$folder/venv/bin/python" - <<'PROGRAM'
import io
from fractions import Fraction

import av
import numpy as np

print("PyAV", av.__version__, "libavformat", ".".join(map(str, av.library_versions["libavformat"])))
rows, columns = np.mgrid[0:144, 0:176]


def picture(index):
    channels = [(columns * 2 + index * 3) % 256, (rows * 3 + index * 5) % 256, (rows + columns + index) % 256]
    return np.stack(channels, -1).astype(np.uint8)


def write(container_format, codec, rate, count, aspect=None):
    file = io.BytesIO()
    with av.open(file, "w", format=container_format) as output:
        stream = output.add_stream(codec, rate=rate, options={"threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 176, 144, "yuv420p"
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for index in range(count):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index), format="rgb24")))
        output.mux(stream.encode())
    file.seek(0)
    return file


seen = {}
for container_format, codec in (("mpeg", "mpeg1video"), ("mpeg", "mpeg2video"), ("mp4", "mpeg4")):
    for aspect in (Fraction(4, 3), Fraction(16, 11)):
        source = av.open(write(container_format, codec, 25, 12, aspect))
        back = next(source.decode(video=0)) and source.streams.video[0].sample_aspect_ratio
        seen[codec, aspect] = back
        print(codec, "written", aspect, "=", round(float(aspect), 4), "read", back, "=", round(float(back), 4))

assert seen["mpeg4", Fraction(4, 3)] == Fraction(4, 3)
assert seen["mpeg1video", Fraction(4, 3)] != Fraction(4, 3)
assert seen["mpeg2video", Fraction(4, 3)] != Fraction(4, 3)
PROGRAM
