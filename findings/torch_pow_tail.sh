#!/usr/bin/env bash
# One would guess: An elementwise power gives one answer for one pair of numbers, whatever the
# length of the tensor.
#
# What is seen: With torch 2.13.0 the last bit of 0.9 ** n in float32 depends on where the
# element stands in the tensor.
# The vector code and the scalar code for the left-over elements round three exponents of 1..100
# differently.
# An element of a tensor too short for the vector code gets the scalar result.
# It depends on the machine: seen with the CPU capabilities AVX2 and AVX512, and not with
# DEFAULT.
#   torch 2.13.0 CPU capability AVX512
#   exponents of 1..100 with more than one result: [31, 37, 95]
#   exponent 31 length 1 first 0x1.388a920000000p-5 last 0x1.388a920000000p-5
#   exponent 31 length 31 first 0x1.388a920000000p-5 last 0x1.388a920000000p-5
#   exponent 31 length 32 first 0x1.388a900000000p-5 last 0x1.388a900000000p-5
#   exponent 31 length 33 first 0x1.388a900000000p-5 last 0x1.388a920000000p-5
#   exponent 31 length 64 first 0x1.388a900000000p-5 last 0x1.388a900000000p-5
#   exponent 31 length 65 first 0x1.388a900000000p-5 last 0x1.388a920000000p-5
#
# So: Do not expect a computation over a batch and the same computation over one row to be equal
# bit for bit.
# Compute such factors once and share them, or compare with a tolerance of a few units in the
# last place.
set -euo pipefail
export OMP_NUM_THREADS=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cd "$folder"
"$folder/venv/bin/python" - <<'PROGRAM'
import torch

torch.set_num_threads(1)
capability = torch.backends.cpu.get_cpu_capability()
print("torch", torch.__version__.split("+")[0], "CPU capability", capability)

changing = []
for exponent in range(1, 101):
    results = set()
    for length in (1, 64, 65):
        powers = 0.9 ** torch.full((length,), float(exponent))
        results.update(powers.tolist())
    if len(results) > 1:
        changing.append(exponent)
print("exponents of 1..100 with more than one result:", changing)

for exponent in changing[:1]:
    for length in (1, 31, 32, 33, 64, 65):
        powers = (0.9 ** torch.full((length,), float(exponent))).tolist()
        print("exponent", exponent, "length", length, "first", powers[0].hex(), "last", powers[-1].hex())

# Without vector instructions every element takes the scalar path, so there is nothing to see.
if capability in ("DEFAULT", "NO AVX"):
    print("no vector instructions are in use here: the finding does not apply")
else:
    assert changing, "no exponent of 1..100 depends on the tensor's length"
PROGRAM
