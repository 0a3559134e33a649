"""The two losses, on frames and on codes, and the choice of what computes them (and gru.py, graph.py).

    from kernels import laplacian_l1, laplacian_l1_with_grad, triplet_margin, backend

Triton computes them for CUDA tensors of the shapes that the kernels cover, PyTorch everywhere else. The
environment variable NAV_KERNELS=torch or NAV_KERNELS=triton forces either; what Triton cannot do is then an
error.
"""
import importlib.util
import os
import shutil
import sys
import sysconfig
from functools import cache

import torch

_HAS_TRITON = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads it when the kernels are imported
_said = set()


@cache
def _cannot_launch():
    """None, or what Triton lacks here: it compiles a little C for its first launch."""
    if not (os.environ.get("CC") or shutil.which("clang") or shutil.which("gcc")):
        return "triton needs a C compiler (gcc or clang)"
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        return "triton needs Python's headers (python3-dev)"
    return None


def _why_torch(device):
    """None where Triton runs on this device, else the reason why PyTorch does."""
    forced = os.environ.get("NAV_KERNELS") or None
    if forced not in (None, "torch", "triton"):
        raise RuntimeError(f"NAV_KERNELS must be torch or triton, got {forced}")
    if forced == "torch":
        return "NAV_KERNELS=torch"
    if not _HAS_TRITON:
        reason = "triton is not installed"
    elif _INTERPRETED and (device.type == "cuda" or device.type == "cpu" and forced):
        reason = None
    elif device.type == "cuda":
        old = torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0)
        reason = "the kernels need a GPU of compute capability 8.0" if old else _cannot_launch()
    else:
        reason = f"the device is {device.type}"
    if reason and forced:
        raise RuntimeError(f"NAV_KERNELS=triton, but {reason}")
    return reason


def use_triton(name, device, not_covered):
    """Whether the operation `name` runs in Triton. not_covered: None, or what of its input the kernel cannot.

    The first time that this sends a CUDA tensor to PyTorch, one line on standard error says why.
    """
    reason = _why_torch(device)
    if reason is None and not_covered:
        reason = f"{name}: {not_covered}"
        if os.environ.get("NAV_KERNELS") == "triton":
            raise RuntimeError(f"NAV_KERNELS=triton, but {reason}")
    if reason and device.type == "cuda" and reason not in _said:
        _said.add(reason)
        print(f"kernels: PyTorch computes the loss, since {reason}", file=sys.stderr)
    return reason is None


def backend(device):
    """The word for the log and metrics.json: "triton" or "torch: why". device: torch.device or its name.

    Raises RuntimeError where NAV_KERNELS asks for what this device cannot do.
    """
    reason = _why_torch(torch.device(device))
    return "triton" if reason is None else f"torch: {reason}"


from .laplacian import laplacian_l1, laplacian_l1_with_grad  # noqa: E402  (they need use_triton)
from .triplet import triplet_margin  # noqa: E402

__all__ = ["backend", "laplacian_l1", "laplacian_l1_with_grad", "triplet_margin", "use_triton"]
