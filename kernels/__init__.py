"""The losses of Eq. 6, the GRU and G's last layer, each in the device's fastest form (see backend.py)."""
from .backend import keep_freed_memory, name_backend
from .colours import ToColours
from .gru import GRU
from .laplacian import laplacian_l1, laplacian_l1_with_grad, plain_laplacian
from .triplet import plain_triplet, triplet_margin

__all__ = ["GRU", "ToColours", "keep_freed_memory", "laplacian_l1", "laplacian_l1_with_grad",
           "name_backend", "plain_laplacian", "plain_triplet", "triplet_margin"]
