#!/usr/bin/env bash
# One would guess: np.load(path, mmap_mode="r") maps an .npz file as it maps an .npy file, so
# looking up one entry reads next to nothing, and looking it up again costs nothing.
#
# What is seen: numpy 2.4.6 ignores mmap_mode for .npz without a warning.
# Each lookup reads the entry again into a new writeable array, and a change to it is lost at
# the next lookup:
#   npy memmap writeable False
#   npz ndarray writeable True same object twice False
#   npz after writing 7 to the first copy, read again: 0.0
#
# So: Keep large arrays in .npy files of their own if they are to be mapped.
# Hold the array of an .npz in a variable; do not index the archive in a loop.
set -euo pipefail
export OMP_NUM_THREADS=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6

cd "$folder"
"$folder/venv/bin/python" - <<'PROGRAM'
import numpy as np

print("numpy", np.__version__)
array = np.arange(1000.0)
np.save("one.npy", array)
np.savez("many.npz", array=array)
mapped = np.load("one.npy", mmap_mode="r")
archive = np.load("many.npz", mmap_mode="r")
once, again = archive["array"], archive["array"]
print("npy", type(mapped).__name__, "writeable", mapped.flags.writeable)
print("npz", type(once).__name__, "writeable", once.flags.writeable, "same object twice", once is again)
once[0] = 7
print("npz after writing 7 to the first copy, read again:", float(archive["array"][0]))
assert isinstance(mapped, np.memmap) and not mapped.flags.writeable
assert not isinstance(once, np.memmap) and once.flags.writeable and once is not again
PROGRAM
