#!/usr/bin/env bash
# One would guess: A file of torch.save is a zip archive with a CRC for every entry, so
# torch.load refuses a file in which one bit of a weight was flipped.
#
# What is seen: torch.load (2.13.0) does not compare the CRCs: the file loads in silence with
# another number, mapped or not.
# zipfile's testzip() names the damaged entry:
#   torch 2.13.0
#   torch.load mmap False entries changed 1 entry 500 was 500.0 is 372.0
#   torch.load mmap True entries changed 1 entry 500 was 500.0 is 372.0
#   testzip names whole/data/0
#
# So: Before trusting a stored checkpoint, call zipfile.ZipFile(path).testzip(), or keep and
# compare a SHA-256 of the file.
set -euo pipefail
export OMP_NUM_THREADS=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cd "$folder"
"$folder/venv/bin/python" - <<'PROGRAM'
import zipfile

import torch

print("torch", torch.__version__.split("+")[0])
weight = torch.arange(1000, dtype=torch.float32)
torch.save({"weight": weight}, "whole.pt")
assert zipfile.ZipFile("whole.pt").testzip() is None

content = bytearray(open("whole.pt", "rb").read())
start = bytes(content).find(weight.numpy().tobytes())
assert start > 0
content[start + 500 * 4 + 2] ^= 0x40
open("flipped.pt", "wb").write(content)

for memory_mapped in (False, True):
    loaded = torch.load("flipped.pt", weights_only=True, mmap=memory_mapped)["weight"]
    print("torch.load mmap", memory_mapped, "entries changed", int((loaded != weight).sum()),
          "entry 500 was", float(weight[500]), "is", float(loaded[500]))
    assert int((loaded != weight).sum()) == 1
damaged = zipfile.ZipFile("flipped.pt").testzip()
print("testzip names", damaged)
assert damaged is not None
PROGRAM
