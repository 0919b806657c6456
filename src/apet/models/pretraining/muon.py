"""Muon (Jordan et al., 2024) in float32: momentum whose update of a matrix has nearly equal singular values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a x + b x³ + c x⁵ that an iteration applies to every singular value, as the method's authors chose."""

SMALLEST_NORM = 1e-7


class Muon(Optimizer):
    """Muon with Nesterov momentum and without weight decay, for matrices only.

    `torch.optim.Muon` computes its iterations in bfloat16, which is slow on a CPU without bfloat16 instructions and
    gives other bits on one that has them. Matrices of one shape are orthogonalised together.

    Args:
        params: parameters, or parameter groups, of two dimensions.
        lr: step size of a square matrix; one of r rows and c columns takes √max(1, r / c) times as much.
        momentum: share of the previous steps' sum of gradients that a step keeps.
        iterations: Newton–Schulz iterations.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float = 0.02, momentum: float = 0.95, iterations: int = 3
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "iterations": iterations})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is ever given
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for (rows, columns), parameters in by_shape.items():
                ahead = torch.stack([self._nesterov(parameter, group["momentum"]) for parameter in parameters])
                size = group["lr"] * max(1, rows / columns) ** 0.5
                for parameter, update in zip(parameters, orthogonalise(ahead, group["iterations"]), strict=True):
                    parameter.sub_(update, alpha=size)

    def _nesterov(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Add the gradient to the momentum and return the momentum one step ahead."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None  # `step` has looked
        average = state.setdefault("momentum_buffer", torch.zeros_like(gradient))
        average.lerp_(gradient, 1 - momentum)
        return gradient.lerp(average, momentum)


def orthogonalise(matrices: Tensor, iterations: int) -> Tensor:
    """Move the singular values of each matrix towards 1 and keep its singular vectors.

    Args:
        matrices: [n, rows, columns].
        iterations: Newton–Schulz iterations; five bring values from 0.01 on to between 0.7 and 1.2.

    Returns:
        A new tensor of the same shape; a matrix of zeros stays one.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(SMALLEST_NORM)
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if tall else x
