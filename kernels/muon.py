"""Muon (Jordan et al., 2024) for transposed convolutions: all singular values of a matrix move alike."""
import torch
from torch.profiler import record_function


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose updates of a matrix have equal singular values, with decoupled weight decay.

    Weights [c_in, c_out, 4, 4] are matrices [c_in, 16 * c_out]: the update is (m m^T)^(-1/2) x, of momentum m
    and the gradient x looking ahead. `refresh` finds that root; every eighth step is enough. An element moves
    by about lr (root mean square), as under Adam. lr: a tensor, which a CUDA graph reads.
    """

    EVERY = 8

    def __init__(self, weights, lr, momentum=0.8, weight_decay=0.0):
        super().__init__(weights, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        for w in weights:
            self.state[w].update(m=torch.zeros_like(w), root=torch.eye(len(w), device=w.device))

    @staticmethod
    def as_matrix(w):
        """[c_in, 16 * c_out], as it lies in memory, scaled to norm 1."""
        x = w.permute(0, 2, 3, 1).flatten(1)
        return x / x.norm().clamp(min=1e-9)

    @torch.no_grad()
    @record_function("nav: Muon")
    def step(self):
        group = self.param_groups[0]
        for w in group["params"]:
            c_in, c_out, *kernel = w.shape
            m = self.state[w]["m"].mul_(group["momentum"]).add_(w.grad)
            x = self.state[w]["root"] @ self.as_matrix(w.grad + group["momentum"] * m)
            x = x.view(c_in, *kernel, c_out).permute(0, 3, 1, 2)
            w.mul_(1 - group["weight_decay"] * group["lr"])
            w.addcmul_(x, group["lr"], value=-max(c_in, 16 * c_out) ** 0.5)

    @torch.no_grad()
    def refresh(self):
        """root = (m m^T)^(-1/2), m scaled to norm 1, by three Newton-Schulz steps on the small m m^T."""
        for w in self.param_groups[0]["params"]:
            one = torch.eye(len(w), device=w.device)
            x = self.as_matrix(self.state[w]["m"])
            gram = x @ x.T
            root = one
            for _ in range(3):
                p = 3.4445 * one - 4.7750 * gram + 2.0315 * gram @ gram
                root = root @ p
                gram = gram @ p @ p
            self.state[w]["root"].copy_(root)
