#!/usr/bin/env bash
# One would guess: The mean over float32 frames is as exact over the first axis as over the
# last, since numpy sums in pairs.
#
# What is seen: numpy 2.4.6 sums in pairs only along the axis that is contiguous in memory.
# Over the first axis of a stack it adds one frame after another in float32, and the error grows
# to 1 % for a million frames:
#   numpy 2.4.6
#   first axis 0.10095834732055664 relative error 9.6e-03
#   last axis 0.10000000894069672 relative error 7.5e-08
#   flat 0.10000000894069672 relative error 7.5e-08
#   float64 0.10000000149011612 relative error 0.0e+00
#
# So: For a mean picture over many frames, pass dtype=np.float64 to mean or sum.
# Do not trust that a test on a flat array covers a stack of frames.
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
stack = np.full((1_000_000, 4), 0.1, np.float32)
true = float(np.float32(0.1))
first_axis = float(stack.mean(0)[0])
last_axis = float(np.ascontiguousarray(stack.T).mean(1)[0])
flat = float(stack[:, 0].copy().mean())
exact = float(stack.mean(0, dtype=np.float64)[0])
for label, value in (("first axis", first_axis), ("last axis", last_axis), ("flat", flat), ("float64", exact)):
    print(label, value, "relative error", f"{abs(value - true) / true:.1e}")
assert abs(first_axis - true) / true > 1e-3
assert abs(last_axis - true) / true < 1e-6
assert abs(exact - true) / true < 1e-12
PROGRAM
