#!/usr/bin/env bash
# One would guess: A bare MPEG-1 video stream (.m1v) states its frame rate in its header, so the
# average rate that the library shows is that rate.
# Its duration is at least of the right size.
#
# What is seen: average_rate is 25 whatever the file says: a bare stream's demuxer supposes 25.
# duration is about a millisecond for two seconds of video.
# guessed_rate and the times of the decoded frames are right. PyAV 18.1.0, libavformat
# 62.12.102:
#   mpegvideo written at 24 average_rate 25 guessed_rate 24 duration 0.00108 true 2.0 frames 48 rate by times 24.0
#   mpegvideo written at 25 average_rate 25 guessed_rate 25 duration 0.00108 true 1.92 frames 48 rate by times 25.0
#   mpegvideo written at 30 average_rate 25 guessed_rate 30 duration 0.00108 true 1.6 frames 48 rate by times 30.0
#
# So: For a bare stream, take the rate from the times of the decoded frames (or guessed_rate),
# and the duration from their count.
# Never use average_rate or duration there.
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
PROGRAM
