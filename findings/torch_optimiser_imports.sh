#!/usr/bin/env bash
# One would guess: Making an optimiser is a matter of microseconds, and a script that never compiles
# does not load the compiler.
#
# What is seen: The first optimiser of a process, of any kind, imports torch._dynamo, and with it
# sympy and hundreds of modules: about a second of every start with torch 2.13.0. Forward and
# backward passes before it import nothing of the compiler.
#   torch 2.13.0
#   after forward and backward: torch._dynamo False, sympy False
#   after torch.optim.SGD(...):  torch._dynamo True, sympy True, 823 more modules, 1.23 s
#   a second optimiser:          0 more modules, 0.00 s
#
# So: Do not take the first optimiser's time for training time, and expect tests that start many
# processes to pay it in each.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

"$folder/venv/bin/python" - <<'PROGRAM'
import sys
import time
import torch

print("torch", torch.__version__.split("+")[0])

def are_there():
    return f"torch._dynamo {'torch._dynamo' in sys.modules}, sympy {'sympy' in sys.modules}"

layer = torch.nn.Linear(4, 4)
layer(torch.zeros(2, 4)).sum().backward()
print("after forward and backward:", are_there())
assert "torch._dynamo" not in sys.modules and "sympy" not in sys.modules
more = []
for words in ("after torch.optim.SGD(...): ", "a second optimiser:         "):
    before, begin = len(sys.modules), time.perf_counter()
    torch.optim.SGD(layer.parameters(), lr=0.1)
    more.append(len(sys.modules) - before)
    state = f"{are_there()}, " if len(more) == 1 else ""
    print(f"{words} {state}{more[-1]} more modules, {time.perf_counter() - begin:.2f} s")
assert "torch._dynamo" in sys.modules and "sympy" in sys.modules and more[0] > 300 and more[1] == 0
PROGRAM
