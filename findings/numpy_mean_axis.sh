#!/usr/bin/env bash
# One would guess: The mean over float32 frames is as exact over the first axis as over the
# last, since numpy sums in pairs.
#
# What is seen: TODO
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
