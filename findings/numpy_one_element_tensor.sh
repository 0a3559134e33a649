#!/usr/bin/env bash
# One would guess: A NumPy array indexed by a one-dimensional tensor of int64 gives a
# one-dimensional array, however many elements the tensor has, as it does for a NumPy index.
#
# What is seen: With torch 2.13.0 and NumPy 2.4.6 a tensor of one element takes the dimension
# away, because a tensor of one element also is an integer (__index__). Two or more, or none,
# keep it. So a loop over torch.arange(n).split(64) works until n is one more than a multiple
# of 64.
#   torch 2.13.0 NumPy 2.4.6
#   index of 0 elements: tensor gives shape (0, 3), NumPy (0, 3)
#   index of 1 elements: tensor gives shape (3,), NumPy (1, 3)
#   index of 2 elements: tensor gives shape (2, 3), NumPy (2, 3)
#
# So: Index NumPy arrays with index.numpy() or with slices, never with a tensor.
set -euo pipefail
export OMP_NUM_THREADS=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

"$folder/venv/bin/python" - <<'PROGRAM'
import numpy as np
import torch

print("torch", torch.__version__.split("+")[0], "NumPy", np.__version__)
array = np.arange(210).reshape(70, 3)
for count in (0, 1, 2):
    index = torch.arange(64, 64 + count)
    by_tensor, by_numpy = array[index], array[index.numpy()]
    print(f"index of {count} elements: tensor gives shape {by_tensor.shape}, NumPy {by_numpy.shape}")
    assert by_numpy.shape == (count, 3)
    assert by_tensor.shape == ((3,) if count == 1 else (count, 3))
last = torch.arange(65).split(64)[-1]
assert array[last].shape == (3,)
PROGRAM
