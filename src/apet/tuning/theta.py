"""θ: all tunable parameters of one replicate as one flat vector, structure by structure, site by site, unit by unit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from apet.placement.plans import Plan, Units
from apet.placement.sites import STRUCTURES
from apet.tuning.structures import INITIAL


@dataclass(frozen=True)
class ThetaSlice:
    """The part θ[start:stop] that belongs to a plan's units at one site."""

    units: Units
    start: int
    stop: int


def layout(plan: Plan) -> list[ThetaSlice]:
    """Slots in the order of θ; the last one stops at exactly the plan's budget."""
    slots, start = [], 0
    for units in plan.units:
        slots.append(ThetaSlice(units, start, start + units.size))
        start += units.size
    return slots


def cut(parts: Sequence[Tensor], sizes: Iterable[int]) -> list[Tensor]:
    """Consecutive parts cut into pieces of these sizes, by one split of each, whose gradient is one concatenation."""
    sizes = iter(sizes)
    pieces: list[Tensor] = []
    for part in parts:
        taken, rest = [], len(part)
        while rest:
            taken.append(next(sizes))
            rest -= taken[-1]
        pieces.extend(part.split(taken))
    return pieces


def initial_theta(plan: Plan, seed: int, words: Tensor) -> Tensor:
    """θ at step 0, shape (budget,), float32. words: the PLM's word embeddings [words, d], from which prompts start."""
    generator = torch.Generator().manual_seed(seed)
    parts = [INITIAL[u.site.structure](u, generator, words) for u in plan.units]
    return torch.cat(parts) if parts else torch.zeros(0)


def split_by_structure(plan: Plan, theta: Tensor) -> dict[str, Tensor]:
    """Views of θ by structure, those of size zero left out: each may have a learning rate of its own."""
    sizes = [plan.structures[s] for s in STRUCTURES]
    return {s: part for s, part in zip(STRUCTURES, theta.split(sizes), strict=True) if len(part)}
