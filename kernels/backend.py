"""Triton or PyTorch: the choice, its reason, and the environment variable NAV_KERNELS that overrides it.

Triton computes the losses of CUDA tensors whose shapes the kernels cover, PyTorch computes all others.
NAV_KERNELS=torch or NAV_KERNELS=triton forces one of the two; with triton, a tensor that the kernels do not
cover is an error.
"""
import ctypes
import os
import shutil
import sys
import sysconfig
from functools import cache

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # macOS, Windows
    triton = tl = None

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads it when the kernels are imported
_reasons_told = set()

@cache
def _missing_for_triton():
    """None, or the name of a missing tool: Triton compiles a little C before its first launch."""
    if not (os.environ.get("CC") or shutil.which("clang") or shutil.which("gcc")):
        return "triton needs a C compiler (gcc or clang)"
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        return "triton needs Python's headers (python3-dev)"
    return None

def _reason_for_torch(device):
    """None if Triton runs on this device, else why PyTorch does. Raises RuntimeError (NAV_KERNELS)."""
    forced = os.environ.get("NAV_KERNELS") or None
    if forced not in (None, "torch", "triton"):
        raise RuntimeError(f"NAV_KERNELS must be torch or triton, got {forced}")
    if forced == "torch":
        return "NAV_KERNELS=torch"
    if triton is None:
        reason = "triton is not installed"
    elif INTERPRETED and (device.type == "cuda" or device.type == "cpu" and forced):
        reason = None
    elif device.type == "cuda":
        # The kernels' products take bf16, which tensor cores multiply from compute capability 8.0 on.
        is_old = torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0)
        reason = "the kernels need a GPU of compute capability 8.0" if is_old else _missing_for_triton()
    else:
        reason = f"the device is {device.type}"
    if reason and forced:
        raise RuntimeError(f"NAV_KERNELS=triton, but {reason}")
    return reason

def use_triton(operation, device, not_covered):
    """Whether the operation runs in Triton.

    not_covered: None, or the property of the input that the kernel does not cover. The first CUDA tensor that
    PyTorch computes, for any reason, prints one line on standard error. Raises RuntimeError (NAV_KERNELS).
    """
    reason = _reason_for_torch(device)
    if reason is None and not_covered:
        reason = f"{operation}: {not_covered}"
        if os.environ.get("NAV_KERNELS") == "triton":
            raise RuntimeError(f"NAV_KERNELS=triton, but {reason}")
    if reason and device.type == "cuda" and reason not in _reasons_told:
        _reasons_told.add(reason)
        print(f"kernels: PyTorch computes the loss, because {reason}", file=sys.stderr)
    return reason is None

def name_backend(device):
    """"triton", or "torch: reason", for logs and metrics.json. device: torch.device or its name.

    Raises RuntimeError if NAV_KERNELS asks for kernels that this device cannot run.
    """
    reason = _reason_for_torch(torch.device(device))
    return "triton" if reason is None else f"torch: {reason}"

def keep_freed_memory():
    """Linux with glibc: memory that a training step frees stays with the process, which otherwise returns
    large blocks to the system and waits for new, zeroed pages in the next step."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:  # other C libraries than glibc have none
        M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest value that glibc accepts
        mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)
