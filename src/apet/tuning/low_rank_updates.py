"""Updates of a linear map as one product of two thin factors: y + (x Aᵀ) U.

A rank-1 unit is a row a of A and a row b of U. A single entry (i, j) of the weight has the same form, with a = e_j and
b = θ e_i, so that a few entries cost two thin products instead of the gradient of the whole weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from apet.placement.plans import Units
from apet.tuning.scattered import ScatteredTensors
from apet.tuning.structures import flat_positions


@dataclass(frozen=True)
class MapSlice:
    """A slice of θ that updates the weight of a linear map."""

    number: int
    """Index of the slice in θ's layout."""
    units: Units
    """Units of the slice."""
    rows: Tensor | None
    """Rows of the module's weight that belong to the site; None for all."""
    index: Tensor | None
    """Flat indices of the entries within the site; None for all."""

    @property
    def is_lowrank(self) -> bool:
        """True for low-rank units, False for entries."""
        return self.units.site.structure == "lowrank"

    @property
    def place(self) -> tuple[tuple[int, ...], Tensor | None, Tensor | None]:
        """Shape of the site, its rows in the module's weight, and the entries within the site."""
        return self.units.site.shape, self.rows, self.index

    def added_to(self, weight: Tensor, values: Tensor) -> Tensor:
        """Return a weight plus values for all entries of the site."""
        if self.rows is None:
            return weight + values.view_as(weight)
        return weight.index_add(0, self.rows, values.view(len(self.rows), -1))


def are_factors_cheaper(slices: Sequence[MapSlice], outputs: int, inputs: int) -> bool:
    """Decide whether factors cost less than the gradient of the weight in a training step.

    With rank r, factors cost 3 r (inputs + outputs) products a token, and the gradient of the weight inputs · outputs.
    Thin products have a lower rate, and are more operations.

    Args:
        slices: All slices that update the map. An entry adds one to the rank.
        outputs: Outputs of the map.
        inputs: Inputs of the map.

    Returns:
        True if they do.
    """
    return 4 * (8 + sum(s.units.count for s in slices)) * (inputs + outputs) <= inputs * outputs


def add_factors(tensors: ScatteredTensors, path: str, slices: Sequence[MapSlice], weight: Tensor) -> None:
    """Add the factors A [rank, inputs] and U [rank, outputs] of a map's update.

    Args:
        tensors: Tensors that contain values of θ.
        path: Path of the map.
        slices: Slices that update the map. An entry adds one to the rank.
        weight: Weight of the map, shape [outputs, inputs].
    """
    (outputs, inputs), rank = weight.shape, sum(s.units.count for s in slices)
    arange = partial(torch.arange, device=weight.device)
    ones = torch.zeros(rank, inputs, device=weight.device)
    zeros = torch.zeros(rank * outputs, device=weight.device)
    start_a = tensors.add((path, "a"), (rank, inputs), ones.flatten)
    start_u = tensors.add((path, "u"), (rank, outputs), lambda: zeros)
    first = 0
    for part in slices:
        units = arange(first, first + part.units.count)
        first += part.units.count
        if part.is_lowrank:
            a = start_a + units[:, None] * inputs + arange(inputs)
            u = start_u + units[:, None] * outputs + (arange(outputs) if part.rows is None else part.rows)
            tensors.positions[part.number] = torch.cat((a, u), dim=1).flatten()
        else:
            positions = flat_positions(*part.place)
            ones[units, positions % inputs] = 1.0
            tensors.positions[part.number] = start_u + units * outputs + positions // inputs


def merged(weight: Tensor, a: Tensor, u: Tensor) -> Tensor:
    """Return weight [outputs, inputs] + Uᵀ A."""
    return torch.addmm(weight, u.T, a)


def updated_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, u: Tensor) -> Tensor:
    """Compute x Wᵀ + b + (x Aᵀ) U in the dtype of x.

    The float32 of θ keeps the sum of many small steps. bfloat16 has the same exponents, so that the factors lose
    nothing small, and the product is rounded once, together with y.

    Args:
        x: Inputs, shape [..., inputs].
        weight: Frozen weight, shape [outputs, inputs].
        bias: Bias, shape [outputs], or None.
        a: A, shape [rank, inputs].
        u: U, shape [rank, outputs].

    Returns:
        Outputs, shape [..., outputs].
    """
    return _UpdatedLinear.apply(x, weight, bias, a.to(x.dtype), u.to(x.dtype))


class _UpdatedLinear(torch.autograd.Function):
    """Products with few rows, [rank, tokens], take half the time of their transposes with few columns."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, u: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        z = a @ rows.T
        ctx.save_for_backward(rows, weight, a, u, z)
        return F.linear(rows, weight, bias).addmm_(z.T, u).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor, Tensor]:
        rows, weight, a, u, z = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])
        dz = u @ flat.T
        x_gradient = bias_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = (flat @ weight).addmm_(dz.T, a).view(*gradient.shape[:-1], -1)
        if ctx.needs_input_grad[2]:
            bias_gradient = flat.sum(dim=0)
        return x_gradient, None, bias_gradient, dz @ rows, z @ flat
