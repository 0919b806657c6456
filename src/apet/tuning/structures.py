"""The structures: initial values, positions of scalars, and updates of embeddings.

- entry: chosen scalars of a frozen weight, W + Δ with Δ zero elsewhere (full fine-tuning if all are chosen).
- bias: chosen scalars of an output's bias (BitFit, Ben Zaken et al. 2022), also if the PLM has no bias there.
- lowrank: rank-1 components of a linear map's update (LoRA, Hu et al. 2022, with scale 1); see `low_rank_updates`.
- bottleneck: hidden units of an adapter, h + GELU(h Dᵀ + c) U (Houlsby et al. 2019).
- token: virtual tokens in front of an input's embeddings (prompt tuning, Lester et al. 2021).
- scale: chosen factors 1 + δ of a query, key or value, or of the input of the feed-forward network's last map ((IA)³,
  Liu et al. 2022).
- prefix: key-value pairs in front of those of the text (prefix tuning, Li & Liang 2021); see `prefixes`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from apet.placement.plans import Units
from apet.placement.sites import STRUCTURES


def initial_scalars(units: Units, generator: Generator, word_embeddings: Tensor) -> Tensor:
    """Return zeros, which leave the weight, bias or hidden state unchanged."""
    return torch.zeros(units.size)


def initial_lowrank(units: Units, generator: Generator, word_embeddings: Tensor) -> Tensor:
    """Return A ~ U(±1/√d_in), as in PEFT, and B = 0. Each unit is a row of A, then one of B."""
    outputs, inputs = units.site.shape
    values = torch.zeros(units.count, inputs + outputs)
    values[:, :inputs].uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
    return values.flatten()


def initial_bottleneck(units: Units, generator: Generator, word_embeddings: Tensor) -> Tensor:
    """Return D ~ U(±1/√d), c = 0 and U = 0. Each unit is its row of D, its c and its row of U."""
    (width,) = units.site.shape
    values = torch.zeros(units.count, 2 * width + 1)
    values[:, :width].uniform_(-(width**-0.5), width**-0.5, generator=generator)
    return values.flatten()


def initial_token(units: Units, generator: Generator, word_embeddings: Tensor) -> Tensor:
    """Return embeddings of random words, so that step 0 is the frozen PLM on a text with these words in front."""
    sampled = torch.randint(len(word_embeddings), (units.count,), generator=generator)
    return word_embeddings[sampled].float().flatten()


def initial_prefix(units: Units, generator: Generator, pairs: Tensor) -> Tensor:
    """Return the pairs [words, 2 d] of the last words, so that blocks with fewer pairs have those next to the text."""
    return pairs[len(pairs) - units.count :].float().flatten()


INITIAL_VALUES: dict[str, Callable[[Units, Generator, Tensor], Tensor]] = {
    "entry": initial_scalars,
    "bias": initial_scalars,
    "lowrank": initial_lowrank,
    "bottleneck": initial_bottleneck,
    "token": initial_token,
    "scale": initial_scalars,
    "prefix": initial_prefix,
}
"""Structure -> (units, generator, word embeddings [vocab, d], or pairs of a prefix) -> initial values [units.size],
float32."""

if tuple(INITIAL_VALUES) != STRUCTURES:
    raise ImportError(f"structures: expected initial values of {STRUCTURES}, got {tuple(INITIAL_VALUES)}.")


def flat_positions(shape: tuple[int, ...], rows: Tensor | None, index: Tensor | None) -> Tensor:
    """Find where the scalars of a site are in the parameter of its module.

    Args:
        shape: Shape of the site.
        rows: Rows of the parameter that belong to the site; None for all.
        index: Flat indices of the scalars within the site; None for all.

    Returns:
        Flat positions in the parameter, in the order of the scalars.
    """
    index = torch.arange(prod(shape), device=None if rows is None else rows.device) if index is None else index
    width = prod(shape[1:])
    row = index // width
    return (row if rows is None else rows[row]) * width + index % width


class SparseUpdate:
    """An update Δ of an embedding (vocab, d).

    `index` holds the sorted flat indices of the changed entries (None: all). Δ is never built as a matrix. A text needs
    the rows of Δ for its words, and products of Δ with a few states, so that memory grows with the text and not with
    the vocabulary.
    """

    def __init__(self, shape: tuple[int, ...], index: Tensor | None):
        self.shape = shape
        self.positions = None if index is None else (index // shape[1], index % shape[1])

    def rows(self, ids: Tensor, values: Tensor) -> Tensor:
        """Look up rows [*ids.shape, d] of Δ."""
        if self.positions is None:
            return F.embedding(ids, values.view(self.shape))
        flat, (row, column) = ids.flatten(), self.positions
        first, last = torch.searchsorted(row, flat), torch.searchsorted(row, flat, right=True)
        counts = last - first
        # Pairs of a position in the text and an entry in the row of its word.
        position = torch.repeat_interleave(counts)
        entry = torch.arange(len(position), device=ids.device) + (first - counts.cumsum(0) + counts)[position]
        rows = values.new_zeros(len(flat) * self.shape[1])
        rows = rows.index_add(0, position * self.shape[1] + column[entry], values[entry])
        return rows.view(*ids.shape, self.shape[1])

    def products(self, states: Tensor, vocab_ids: Tensor | None, values: Tensor) -> Tensor:
        """Multiply states [n, d] with the rows of Δ for vocabulary ids [k] (None: all), giving [n, k]."""
        if vocab_ids is not None:
            return states @ self.rows(vocab_ids, values).T
        if self.positions is None:
            return states @ values.view(self.shape).T
        row, column = self.positions
        return states.new_zeros(len(states), self.shape[0]).index_add(1, row, states[:, column] * values)
