"""The losses of Eq. 6 and the GRU, each in the fastest form that the device has (see backend.py)."""
from .backend import keep_freed_memory, name_backend
from .gru import GRU
from .laplacian import laplacian_l1, laplacian_l1_with_grad, plain_laplacian
from .triplet import plain_triplet, triplet_margin

__all__ = ["GRU", "keep_freed_memory", "laplacian_l1", "laplacian_l1_with_grad", "name_backend",
           "plain_laplacian", "plain_triplet", "triplet_margin"]
