"""entry: chosen scalars of a frozen weight, W + Δ with Δ zero outside them (full fine-tuning where all are chosen)."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from apet.placement.plans import Units


def initial(units: Units, generator: Generator, words: Tensor) -> Tensor:
    """Zeros: the weight as it was."""
    return torch.zeros(units.size)


class Scatter:
    """Adds values to chosen scalars of a weight or bias, of which the site may be only some rows.

    rows: the rows of the module's parameter that the site owns, None for all. index: flat positions within the site,
    None for all. The parameter is not changed: a new tensor comes back, with a gradient only for the values.
    """

    def __init__(self, shape: tuple[int, ...], rows: Tensor | None, index: Tensor | None):
        self.rows = rows if index is None else None
        self.flat = None
        if index is not None:
            width = shape[1] if len(shape) > 1 else 1
            owned = index // width if rows is None else rows[index // width]
            self.flat = owned * width + index % width

    def __call__(self, parameter: Tensor, values: Tensor) -> Tensor:
        if self.flat is not None:
            return parameter.flatten().index_add(0, self.flat, values).view_as(parameter)
        if self.rows is not None:
            return parameter.index_add(0, self.rows, values.view(len(self.rows), *parameter.shape[1:]))
        return parameter + values.view_as(parameter)
