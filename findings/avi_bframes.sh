#!/usr/bin/env bash
# One would guess: A decoder gives its frames in the order of display, so frame.time never steps
# back.
#
# What is seen: The pictures do come in the order of display.
# In AVI, which stores no display times, 16 of 47 steps of frame.time run backwards all the
# same: each time follows the order of storage.
# PyAV 18.1.0, libavformat 62.12.102:
#   avi frames 48 pictures in order True steps back in time 16 times [0.04, 0.12, 0.16, 0.08, 0.24, 0.28, 0.2, 0.36]
#   matroska frames 48 pictures in order True steps back in time 0 times [0.0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.24, 0.28]
#   mp4 frames 48 pictures in order True steps back in time 0 times [0.0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.24, 0.28]
#
# So: For H.264 in AVI, take a frame's time as its index over the average rate.
# Do not sort the frames by frame.time or frame.pts: that puts the right order wrong.
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

print("PyAV", av.__version__)

for container_format in ("avi", "matroska", "mp4"):
    file = io.BytesIO()
    with av.open(file, "w", format=container_format) as output:
        options = {"bf": "2", "b-adapt": "0", "threads": "1"}
        stream = output.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(48):
            # Every picture is brighter than the one before, so the order can be read off the pixels.
            grey = np.full((64, 96, 3), 16 + 4 * index, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        output.mux(stream.encode())
    file.seek(0)
    frames = list(av.open(file).decode(video=0))
    times = [round(frame.time, 2) for frame in frames]
    brightness = [frame.to_ndarray(format="rgb24").mean() for frame in frames]
    steps_back = sum(later < earlier for earlier, later in zip(times, times[1:]))
    in_order = all(later > earlier for earlier, later in zip(brightness, brightness[1:]))
    print(container_format, "frames", len(frames), "pictures in order", in_order,
          "steps back in time", steps_back, "times", times[:8])
    assert len(frames) == 48 and in_order
    assert (steps_back > 0) == (container_format == "avi")
PROGRAM
