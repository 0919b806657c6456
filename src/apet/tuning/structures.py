"""The five structures: their initial values, and the updates of weights and adapters.

entry: chosen scalars of a frozen weight, W + Δ with Δ zero outside them (full fine-tuning if all are chosen).
bias: chosen scalars of an output's bias (BitFit, Ben Zaken et al. 2022), also if the PLM has none.
lowrank: rank-1 components of a linear map's update (LoRA, Hu et al. 2022, with scale 1); see `low_rank_updates`.
bottleneck: hidden units of an adapter after a block, h + GELU(h Dᵀ + c) U (Houlsby et al. 2019).
token: virtual tokens in front of an input's embeddings (prompt tuning, Lester et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from apet.placement.plans import Units
from apet.placement.sites import STRUCTURES


def initial_entry(units: Units, generator: Generator, words: Tensor) -> Tensor:
    """Zeros: the weight as it was."""
    return torch.zeros(units.size)


class Scatter:
    """Adds values to chosen scalars of a weight or bias, of which the site may be only some rows.

    rows: the rows of the module's parameter that the site owns, None for all. index: flat positions within the site,
    None for all. The parameter is not changed: a new tensor comes back, with a gradient only for the values. It is as
    large as the parameter and lives until the backward pass, so this is for vectors, and for maps of which so many
    entries are trained that factors would cost more (`factors.is_thin`): there θ is of the map's own order of size.
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


class Sparse:
    """An update Δ of a matrix [rows, width] with a row a word, known by its chosen entries and never built.

    index: flat positions, sorted; None for all, where Δ is θ itself. What a text needs of it are the rows of its words
    and the products with a few states: memory grows with the text, not with the vocabulary.
    """

    def __init__(self, shape: tuple[int, ...], index: Tensor | None):
        self.shape = shape
        self.places = None if index is None else (index // shape[1], index % shape[1])

    def rows(self, ids: Tensor, values: Tensor) -> Tensor:
        """Rows [*ids.shape, width] of Δ."""
        if self.places is None:
            return F.embedding(ids, values.view(self.shape))
        flat, (row, column) = ids.flatten(), self.places
        first, last = torch.searchsorted(row, flat), torch.searchsorted(row, flat, right=True)
        counts = last - first
        # Pairs of a position in the text and an entry in its word's row.
        position = torch.repeat_interleave(counts)
        entry = torch.arange(len(position), device=ids.device) + (first - counts.cumsum(0) + counts)[position]
        rows = values.new_zeros(len(flat) * self.shape[1])
        rows = rows.index_add(0, position * self.shape[1] + column[entry], values[entry])
        return rows.view(*ids.shape, self.shape[1])

    def products(self, states: Tensor, words: Tensor | None, values: Tensor) -> Tensor:
        """states [n, width] times the rows of words [k] (None: all), [n, k]."""
        if words is not None:
            return states @ self.rows(words, values).T
        if self.places is None:
            return states @ values.view(self.shape).T
        row, column = self.places
        return states.new_zeros(len(states), self.shape[0]).index_add(1, row, states[:, column] * values)


def initial_bias(units: Units, generator: Generator, words: Tensor) -> Tensor:
    """Zeros: the bias as it was."""
    return torch.zeros(units.size)


def initial_lowrank(units: Units, generator: Generator, words: Tensor) -> Tensor:
    """A ~ U(±1/√d_in), as LoRA's library has it; B = 0: the update starts at zero. Per unit: a row of A, then of B."""
    outputs, inputs = units.site.shape
    values = torch.zeros(units.count, inputs + outputs)
    values[:, :inputs].uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
    return values.flatten()


def initial_bottleneck(units: Units, generator: Generator, words: Tensor) -> Tensor:
    """D ~ U(±1/√d), c = 0, U = 0: the adapter starts as the identity. Per unit: its row of D, its c, its row of U."""
    (width,) = units.site.shape
    values = torch.zeros(units.count, 2 * width + 1)
    values[:, :width].uniform_(-(width**-0.5), width**-0.5, generator=generator)
    return values.flatten()


def update(h: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """What the adapter adds to hidden states h [..., d]: shape [..., d]. GELU, since a ReLU unit may start dead."""
    (width,) = shape
    down, inner, up = values.view(-1, 2 * width + 1).split((width, 1, width), dim=1)
    return F.gelu(F.linear(h, down, inner.squeeze(1)), approximate="tanh") @ up


def initial_token(units: Units, generator: Generator, words: Tensor) -> Tensor:
    """Embeddings of random words: at step 0 the PLM computes what it does on a text with those words in front."""
    drawn = torch.randint(len(words), (units.count,), generator=generator)
    return words[drawn].float().flatten()


INITIAL: dict[str, Callable[[Units, Generator, Tensor], Tensor]] = {
    "entry": initial_entry,
    "bias": initial_bias,
    "lowrank": initial_lowrank,
    "bottleneck": initial_bottleneck,
    "token": initial_token,
}
"""structure -> (units, generator, word embeddings [words, d]) -> initial values, shape (units.size,), float32."""

if tuple(INITIAL) != STRUCTURES:
    raise ImportError(f"structures with initial values {tuple(INITIAL)} are not those of the inventory {STRUCTURES}")
