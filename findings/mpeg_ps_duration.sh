#!/usr/bin/env bash
# One would guess: A container's duration is the number of its frames over its rate, give or
# take a rounding.
# Its first frame is at time 0.
#
# What is seen: In an MPEG program stream, the duration is an estimate from the time stamps near
# the file's end, and not every frame has one.
# It comes out short by up to 0.42 s of 1.92 s, or is None for a file of one frame; the shortage
# changes with the content.
# The first frame's time is 0.5 s or more. PyAV 18.1.0, libavformat 62.12.102, 25 frames a
# second:
#   mpeg1video frames 1 true seconds 0.04 duration 0.02 first 0.5 last 0.5
#   mpeg1video frames 12 true seconds 0.48 duration 0.46 first 0.54 last 0.98
#   mpeg1video frames 48 true seconds 1.92 duration 1.5 first 0.54 last 2.42
#   mpeg1video frames 96 true seconds 3.84 duration 3.82 first 0.54 last 4.34
#   mpeg2video frames 1 true seconds 0.04 duration None first 0.5 last 0.5
#   mpeg2video frames 12 true seconds 0.48 duration 0.36 first 0.54 last 0.98
#   mpeg2video frames 48 true seconds 1.92 duration 1.88 first 0.54 last 2.42
#   mpeg2video frames 96 true seconds 3.84 duration 3.64 first 0.54 last 4.34
#
# So: Do not cut clips of a .mpg file by container.duration.
# Decode and count frames, and subtract the first frame's time from every time.
set -euo pipefail
export OMP_NUM_THREADS=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6

cd "$folder"
"$folder/venv/bin/python" - <<'PROGRAM'
import io

import av
import numpy as np

print("PyAV", av.__version__, "libavformat", ".".join(map(str, av.library_versions["libavformat"])))
rows, columns = np.mgrid[0:144, 0:176]


def picture(index):
    channels = [(columns * 2 + index * 3) % 256, (rows * 3 + index * 5) % 256, (rows + columns + index) % 256]
    return np.stack(channels, -1).astype(np.uint8)


def write(container_format, codec, rate, count):
    file = io.BytesIO()
    with av.open(file, "w", format=container_format) as output:
        stream = output.add_stream(codec, rate=rate, options={"threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 176, 144, "yuv420p"
        for index in range(count):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index), format="rgb24")))
        output.mux(stream.encode())
    file.seek(0)
    return file


for codec in ("mpeg1video", "mpeg2video"):
    for count in (1, 12, 48, 96):
        source = av.open(write("mpeg", codec, 25, count))
        duration = source.duration and source.duration / av.time_base
        times = [round(frame.time, 3) for frame in source.decode(video=0)]
        print(codec, "frames", len(times), "true seconds", count / 25, "duration", duration,
              "first", times[0], "last", times[-1])
        assert len(times) == count
        assert times[0] >= 0.5
        if codec == "mpeg1video":
            assert duration < count / 25
PROGRAM
