#!/usr/bin/env bash
# One would guess: An MPEG file states its rate, its duration and the shape of its pixels, and its first frame is at
# time 0.
#
# What is seen: In a program stream the duration is an estimate from the time stamps near the file's end: short by up to
# 0.42 s of 1.92 s, or None for a file of one frame. The shortage changes with the content.
# The first frame's time is 0.5 s or more.
# A bare MPEG-1 video stream (.m1v) has an average_rate of 25 whatever the file says, and a duration of about a
# millisecond. Its guessed_rate and the times of its decoded frames are right.
# MPEG-1 has a short table of pixel shapes, and MPEG-2 a short table of picture shapes (4:3, 16:9, 2.21:1) beside square
# pixels. The encoder takes the nearest entry and says nothing. MPEG-4 in MP4 keeps the ratio.
# PyAV 18.1.0, libavformat 62.12.102, pictures of 176x144:
#   mpeg1video frames 1 true seconds 0.04 duration 0.02 first 0.5 last 0.5
#   mpeg1video frames 12 true seconds 0.48 duration 0.46 first 0.54 last 0.98
#   mpeg1video frames 48 true seconds 1.92 duration 1.5 first 0.54 last 2.42
#   mpeg1video frames 96 true seconds 3.84 duration 3.82 first 0.54 last 4.34
#   mpeg2video frames 1 true seconds 0.04 duration None first 0.5 last 0.5
#   mpeg2video frames 12 true seconds 0.48 duration 0.36 first 0.54 last 0.98
#   mpeg2video frames 48 true seconds 1.92 duration 1.88 first 0.54 last 2.42
#   mpeg2video frames 96 true seconds 3.84 duration 3.64 first 0.54 last 4.34
#   mpegvideo written at 24 average_rate 25 guessed_rate 24 duration 0.00108 true 2.0 frames 48 rate by times 24.0
#   mpegvideo written at 25 average_rate 25 guessed_rate 25 duration 0.00108 true 1.92 frames 48 rate by times 25.0
#   mpegvideo written at 30 average_rate 25 guessed_rate 30 duration 0.00108 true 1.6 frames 48 rate by times 30.0
#   mpeg1video written 4/3 = 1.3333 read 239/182 = 1.3132
#   mpeg1video written 16/11 = 1.4545 read 49/33 = 1.4848
#   mpeg2video written 4/3 = 1.3333 read 16/11 = 1.4545
#   mpeg2video written 16/11 = 1.4545 read 16/11 = 1.4545
#   mpeg4 written 4/3 = 1.3333 read 4/3 = 1.3333
#   mpeg4 written 16/11 = 1.4545 read 16/11 = 1.4545
#
# So: Decode and count frames; subtract the first frame's time from every time. Never cut clips by container.duration or
# take the rate of a bare stream from average_rate. Do not compare pixel shapes for equality after MPEG-1 or MPEG-2.
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

print("PyAV", av.__version__)
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

for rate in (24, 25, 30):
    source = av.open(write("mpeg1video", "mpeg1video", rate, 48))
    stream = source.streams.video[0]
    average, guessed = stream.average_rate, stream.guessed_rate
    duration = source.duration / av.time_base
    times = [frame.time for frame in source.decode(stream)]
    step = times[-1] / len(times)
    print(source.format.name, "written at", rate, "average_rate", average, "guessed_rate", guessed,
          "duration", duration, "true", 48 / rate, "frames", len(times), "rate by times", round(1 / step, 3))
    assert average == 25
    assert guessed == rate
    assert duration < 0.1
    assert len(times) == 48 and abs(1 / step - rate) < 1e-6

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
