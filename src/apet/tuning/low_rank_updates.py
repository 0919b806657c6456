"""All small updates of one linear map as one product of two thin factors: y + (x Aᵀ) U.

A rank-1 unit is a row a of A and a row b of U. A single entry (i, j) of the weight is the same thing with a = e_j and
b = θ e_i, so a few entries cost two thin products instead of the gradient of the whole weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from apet.tuning.theta import ThetaSlice


@dataclass(frozen=True)
class FactoredSlice:
    """A slot of θ that updates a linear map: its number, and which rows of the map's weight its site is (None: all)."""

    number: int
    slot: ThetaSlice
    rows: Tensor | None


def is_thin(slot: ThetaSlice) -> bool:
    """Whether a slot's update is cheaper as factors: low-rank units always, entries while they are few.

    With n entries of a (d_out, d_in) weight, factors cost 3 n (d_in + d_out) products a token in a training step, the
    weight's own gradient d_in · d_out.
    """
    units = slot.units
    if units.site.structure != "entry":
        return units.site.structure == "lowrank"
    outputs, inputs = units.site.shape
    return units.indices is not None and 4 * units.count * (inputs + outputs) <= inputs * outputs


class Factors:
    """The update of one linear map (outputs, inputs) by the parts of θ that touch it."""

    def __init__(self, outputs: int, inputs: int, parts: Sequence[FactoredSlice], device: torch.device):
        self.outputs, self.inputs, self.device = outputs, inputs, device
        self.lowrank = [p for p in parts if p.slot.units.site.structure == "lowrank"]
        self.entries = [p for p in parts if p.slot.units.site.structure == "entry"]
        self.rank = sum(p.slot.units.count for p in parts)
        picked = [torch.as_tensor(p.slot.units.indices).to(device) for p in self.entries]
        self.columns = torch.cat([i % inputs for i in picked])[:, None] if picked else None
        self.flat = self._places(picked)

    def _places(self, picked: list[Tensor]) -> Tensor:
        """Where θ's values go in U, flat, in the order in which `__call__` puts them."""
        places, row = [], 0
        for part in self.lowrank:
            units = self._range(row, row + part.slot.units.count)[:, None]
            rows = self._range(0, self.outputs) if part.rows is None else part.rows
            places.append((units * self.outputs + rows).flatten())
            row += part.slot.units.count
        for part, index in zip(self.entries, picked, strict=True):
            local = index // self.inputs
            rows = local if part.rows is None else part.rows[local]
            places.append(self._range(row, row + len(index)) * self.outputs + rows)
            row += len(index)
        return torch.cat(places)

    def _range(self, start: int, stop: int) -> Tensor:
        return torch.arange(start, stop, device=self.device)

    def __call__(self, x: Tensor, y: Tensor, pieces: Sequence[Tensor]) -> Tensor:
        """x [..., inputs] and the map's output y [..., outputs] -> the updated output, computed in y's dtype.

        θ's own float32 keeps what many small steps add up to; bfloat16 has the same exponents, so nothing small is lost
        in the factors, and the product is rounded once, with y.
        """
        a, u = self._maps(x, y, pieces)
        z = x.reshape(-1, self.inputs) @ a.T
        return torch.addmm(y.reshape(-1, self.outputs), z, u).view_as(y)

    def added(self, weight: Tensor, pieces: Sequence[Tensor]) -> Tensor:
        """weight [outputs, inputs] + Uᵀ A, with which the map alone gives the updated output."""
        a, u = self._maps(weight, weight, pieces)
        return torch.addmm(weight, u.T, a)

    def _maps(self, x: Tensor, y: Tensor, pieces: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """A [rank, inputs] in x's dtype and U [rank, outputs] in y's."""
        a, b = [], []
        for part in self.lowrank:
            units = pieces[part.number].view(part.slot.units.count, -1)
            left, right = units.split((self.inputs, units.shape[1] - self.inputs), dim=1)
            a.append(left)
            b.append(right.flatten())
        if self.columns is not None:
            a.append(x.new_zeros(len(self.columns), self.inputs).scatter_(1, self.columns, 1.0))
            b.extend(pieces[part.number] for part in self.entries)
        u = y.new_zeros(self.rank * self.outputs).scatter(0, self.flat, torch.cat(b).to(y.dtype))
        return torch.cat([part.to(x.dtype) for part in a]), u.view(self.rank, self.outputs)
