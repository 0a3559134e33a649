"""The two losses around the generator, and which code computes them.

    from kernels import laplacian_l1, laplacian_l1_with_grad, triplet_margin, backend
"""
from .laplacian import laplacian_l1, laplacian_l1_with_grad
from .triplet import triplet_margin

__all__ = ["backend", "laplacian_l1", "laplacian_l1_with_grad", "triplet_margin"]


def backend(device):
    """The word for the log and metrics.json: what computes the losses on this device."""
    return "torch: the losses are written in PyTorch"
