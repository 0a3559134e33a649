#!/usr/bin/env bash
# One would guess: Image.open(path, formats=["JPEG"]) of a .jpg gives a still picture of one frame.
#
# What is seen: Many phones put a second picture (a preview, a depth map) behind the first one in
# the same .jpg (CIPA's Multi-Picture Format). Pillow 13.0.0 opens such a file as MPO, a format
# that was not asked for: is_animated is True and n_frames is 2.
#   Pillow 13.0.0
#   formats=None:      MpoImageFile MPO, is_animated True, n_frames 2, size (64, 48) then (32, 24)
#   formats=['JPEG']:  MpoImageFile MPO, is_animated True, n_frames 2, size (64, 48) then (32, 24)
#
# So: A loader that takes is_animated for "a clip" reads a folder of a phone's photos, the frames
# of a film, as many clips of two frames. Ask for the format, not for the number of frames.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0

"$folder/venv/bin/python" - "$folder/photo.jpg" <<'PROGRAM'
import sys
import PIL
from PIL import Image

print("Pillow", PIL.__version__)
photo = Image.new("RGB", (64, 48), "white")
preview = Image.new("RGB", (32, 24), "white")
photo.save(sys.argv[1], "MPO", save_all=True, append_images=[preview])
with open(sys.argv[1], "rb") as file:
    assert file.read(3) == b"\xff\xd8\xff"  # a JPEG by its first bytes
for formats in (None, ["JPEG"]):
    with Image.open(sys.argv[1], formats=formats) as opened:
        first = opened.size
        opened.seek(1)
        print(f"formats={formats}:".ljust(18), f"{type(opened).__name__} {opened.format}, is_animated "
              f"{opened.is_animated}, n_frames {opened.n_frames}, size {first} then {opened.size}")
        assert (opened.format, opened.is_animated, opened.n_frames) == ("MPO", True, 2)
PROGRAM
