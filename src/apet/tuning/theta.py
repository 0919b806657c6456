"""θ: all trainable parameters of one replicate as one flat vector, ordered by structure, site and unit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from apet.placement.plans import Plan, Units
from apet.placement.sites import STRUCTURES
from apet.tuning.structures import INITIAL_VALUES


@dataclass(frozen=True)
class ThetaSlice:
    """The slice θ[start:stop] that holds a plan's units at one site."""

    units: Units
    """Units at the site."""
    start: int
    """Index of the first parameter."""
    stop: int
    """Index after the last parameter."""


def layout(plan: Plan) -> list[ThetaSlice]:
    """Lay out the units of a plan in θ.

    Args:
        plan: The plan.

    Returns:
        Consecutive slices. The last one stops at exactly the plan's budget.
    """
    slices, start = [], 0
    for units in plan.units:
        slices.append(ThetaSlice(units, start, start + units.size))
        start += units.size
    return slices


def split_to_sizes(tensors: Sequence[Tensor], sizes: Iterable[int]) -> list[Tensor]:
    """Split consecutive tensors, each by one operation, so that its gradient is one concatenation."""
    sizes = iter(sizes)
    views: list[Tensor] = []
    for tensor in tensors:
        lengths, rest = [], len(tensor)
        while rest:
            lengths.append(next(sizes))
            rest -= lengths[-1]
        views.extend(tensor.split(lengths))
    return views


def initial_theta(plan: Plan, seed: int, word_embeddings: Tensor, pairs: Mapping[str, Tensor] | None = None) -> Tensor:
    """Initialize θ so that the tuned PLM computes what the frozen PLM does.

    Args:
        plan: The plan.
        seed: Seed of the random values.
        word_embeddings: The PLM's word embeddings [vocab, d], from which virtual tokens are initialized.
        pairs: Place -> pairs [words, 2 d], from which a prefix is initialized; see `prefixes.initial_pairs`.

    Returns:
        θ at step 0 [budget], float32.
    """
    generator = torch.Generator().manual_seed(seed)
    values = []
    for units in plan.units:
        source = (pairs or {})[units.site.place] if units.site.structure == "prefix" else word_embeddings
        values.append(INITIAL_VALUES[units.site.structure](units, generator, source))
    return torch.cat(values) if values else torch.zeros(0)


def split_by_structure(plan: Plan, theta: Tensor) -> dict[str, Tensor]:
    """Split θ by structure, because each structure has its own learning rate.

    Args:
        plan: The plan.
        theta: θ [budget].

    Returns:
        Structure -> view of θ, in the order of θ, without empty ones.
    """
    sizes = [plan.structures[s] for s in STRUCTURES]
    return {s: values for s, values in zip(STRUCTURES, theta.split(sizes), strict=True) if len(values)}
