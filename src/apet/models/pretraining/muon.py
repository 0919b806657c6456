"""Muon (Jordan et al., 2024) in float32: momentum whose update of a matrix has nearly equal singular values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of a x + b x³ + c x⁵, which an iteration applies to every singular value (Jordan et al. 2024)."""

SMALLEST_NORM = 1e-7


class Muon(Optimizer):
    """Muon with Nesterov momentum and without weight decay, for matrices only.

    `torch.optim.Muon` iterates in bfloat16, which is slow on a CPU without bfloat16 instructions and gives different
    bits on a CPU with them. Matrices of the same shape are orthogonalized together.

    Args:
        params: Parameters, or parameter groups, of two dimensions.
        lr: Step size of a square matrix; a matrix (r, c) takes √max(1, r / c) times as much.
        momentum: Decay of the running mean of gradients.
        iterations: Newton–Schulz iterations.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float = 0.02, momentum: float = 0.95, iterations: int = 3
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "iterations": iterations})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # there is never a closure
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for (rows, columns), parameters in by_shape.items():
                lookahead = torch.stack([self._nesterov(parameter, group["momentum"]) for parameter in parameters])
                size = group["lr"] * max(1, rows / columns) ** 0.5
                for parameter, update in zip(parameters, orthogonalize(lookahead, group["iterations"]), strict=True):
                    parameter.sub_(update, alpha=size)

    def _nesterov(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Add the gradient to the momentum and return the momentum one step ahead."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None  # checked by `step`
        mean = state.setdefault("momentum_buffer", torch.zeros_like(gradient))
        mean.lerp_(gradient, 1 - momentum)
        return gradient.lerp(mean, momentum)


def orthogonalize(matrices: Tensor, iterations: int) -> Tensor:
    """Move the singular values of each matrix towards 1 and keep its singular vectors.

    Args:
        matrices: Matrices [n, rows, columns].
        iterations: Newton–Schulz iterations. Five move values above 0.01 to between 0.7 and 1.2.

    Returns:
        New matrices of the same shape. A matrix of zeros stays zero.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(SMALLEST_NORM)
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if tall else x
