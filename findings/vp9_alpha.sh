#!/usr/bin/env bash
# One would guess: A WebM file with an alpha channel decodes with its alpha, since FFmpeg's own
# decoder handles VP8 and VP9.
#
# What is seen: FFmpeg's own decoders vp9 and vp8, which are the default, drop the alpha without
# a word.
# The libvpx decoders keep it. The stream's pix_fmt says yuv420p in both cases, and only the
# metadata entry alpha_mode tells.
# PyAV 18.1.0, libavcodec 62.28.102:
#   decoder vp9 frames 4 alpha_mode 1 stream yuv420p frame yuv420p alpha from 255 to 255
#   decoder libvpx-vp9 frames 4 alpha_mode 1 stream yuv420p frame yuva420p alpha from 0 to 255
#   decoder vp8 frames 4 alpha_mode 1 stream yuv420p frame yuv420p alpha from 255 to 255
#   decoder libvpx frames 4 alpha_mode 1 stream yuv420p frame yuva420p alpha from 0 to 255
#
# So: Where a WebM stream's metadata says alpha_mode 1, decode it with libvpx-vp9 (VP9) or
# libvpx (VP8).
# Do not take the stream's pix_fmt as proof that there is no alpha.
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
height, width = 64, 96
rows, columns = np.mgrid[0:height, 0:width]
alpha = columns * 255 // (width - 1)
picture = np.stack([columns * 2, rows * 3, rows + columns, alpha], -1).astype(np.uint8)

for encoder in ("libvpx-vp9", "libvpx"):
    file = io.BytesIO()
    with av.open(file, "w", format="webm") as output:
        stream = output.add_stream(encoder, rate=25, options={"auto-alt-ref": "0", "cpu-used": "8"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuva420p"
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(picture, format="rgba")
            output.mux(stream.encode(frame.reformat(format="yuva420p")))
        output.mux(stream.encode())

    for chosen in (None, encoder):
        file.seek(0)
        source = av.open(file)
        stream = source.streams.video[0]
        decoder = av.CodecContext.create(chosen, "r") if chosen else stream.codec_context
        frames = [frame for packet in source.demux(stream) for frame in decoder.decode(packet)]
        seen = frames[0].to_ndarray(format="rgba")[..., 3]
        print("decoder", decoder.codec.name, "frames", len(frames), "alpha_mode", stream.metadata.get("alpha_mode"),
              "stream", stream.codec_context.pix_fmt, "frame", frames[0].format.name,
              "alpha from", seen.min(), "to", seen.max())
        assert len(frames) == 4 and stream.metadata.get("alpha_mode") == "1"
        assert (seen.min() == 255) == (chosen is None)
PROGRAM
