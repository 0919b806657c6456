"""Updates of a linear map as one product of two thin factors: y + (x Aᵀ) U.

A rank-1 unit is a row a of A and a row b of U. A single entry (i, j) of the weight has the same form, with a = e_j and
b = θ e_i, so that a few entries cost two thin products instead of the gradient of the whole weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from apet.placement.plans import Units


@dataclass(frozen=True)
class FactoredSlice:
    """A slice of θ that updates a linear map through factors."""

    number: int
    """Index of the slice in θ's layout."""
    units: Units
    """Units of the slice. Each adds one to the rank of the update."""
    rows: Tensor | None
    """Rows of the module's weight that belong to the site; None for all."""


def is_factored(units: Units) -> bool:
    """Decide whether the update of a weight by units is cheaper as factors.

    With n entries of a weight (d_out, d_in), factors cost 3 n (d_in + d_out) products a token in a training step, and
    the gradient of the weight d_in · d_out.

    Args:
        units: units of a weight.

    Returns:
        True for low-rank units, and for entries if they are few.
    """
    if units.site.structure != "entry":
        return units.site.structure == "lowrank"
    outputs, inputs = units.site.shape
    return units.indices is not None and 4 * units.count * (inputs + outputs) <= inputs * outputs


class LowRankUpdate:
    """The update of one linear map by all factored slices of θ that act on it."""

    def __init__(self, outputs: int, inputs: int, slices: Sequence[FactoredSlice], device: torch.device):
        self.outputs, self.inputs, self.device = outputs, inputs, device
        self.lowrank = [s for s in slices if s.units.site.structure == "lowrank"]
        self.entries = [s for s in slices if s.units.site.structure == "entry"]
        self.rank = sum(s.units.count for s in slices)
        indices = [torch.as_tensor(s.units.indices).to(device) for s in self.entries]
        self.columns = torch.cat([i % inputs for i in indices])[:, None] if indices else None
        self.flat = self._positions_in_u(indices)

    def __call__(self, x: Tensor, y: Tensor, theta_slices: Sequence[Tensor]) -> Tensor:
        """Update the output y [..., outputs] of the map for its input x [..., inputs], in the dtype of y.

        The float32 of θ keeps the sum of many small steps. bfloat16 has the same exponents, so that the factors lose
        nothing small, and the product is rounded once, together with y.
        """
        a, u = self._factors(x, y, theta_slices)
        z = x.reshape(-1, self.inputs) @ a.T
        return torch.addmm(y.reshape(-1, self.outputs), z, u).view_as(y)

    def merged(self, weight: Tensor, theta_slices: Sequence[Tensor]) -> Tensor:
        """Return weight [outputs, inputs] + Uᵀ A."""
        a, u = self._factors(weight, weight, theta_slices)
        return torch.addmm(weight, u.T, a)

    def _positions_in_u(self, indices: list[Tensor]) -> Tensor:
        """Return the flat positions in U of the values of θ, in the order in which `_factors` concatenates them."""
        positions, first = [], 0
        for part in self.lowrank:
            units = self._range(first, first + part.units.count)[:, None]
            rows = self._range(0, self.outputs) if part.rows is None else part.rows
            positions.append((units * self.outputs + rows).flatten())
            first += part.units.count
        for part, index in zip(self.entries, indices, strict=True):
            site_rows = index // self.inputs
            rows = site_rows if part.rows is None else part.rows[site_rows]
            positions.append(self._range(first, first + len(index)) * self.outputs + rows)
            first += len(index)
        return torch.cat(positions)

    def _range(self, start: int, stop: int) -> Tensor:
        return torch.arange(start, stop, device=self.device)

    def _factors(self, x: Tensor, y: Tensor, theta_slices: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Build A [rank, inputs] in the dtype of x, and U [rank, outputs] in that of y."""
        a, b = [], []
        for part in self.lowrank:
            units = theta_slices[part.number].view(part.units.count, -1)
            left, right = units.split((self.inputs, units.shape[1] - self.inputs), dim=1)
            a.append(left)
            b.append(right.flatten())
        if self.columns is not None:
            a.append(x.new_zeros(len(self.columns), self.inputs).scatter_(1, self.columns, 1.0))
            b.extend(theta_slices[part.number] for part in self.entries)
        u = y.new_zeros(self.rank * self.outputs).scatter(0, self.flat, torch.cat(b).to(y.dtype))
        return torch.cat([part.to(x.dtype) for part in a]), u.view(self.rank, self.outputs)
