"""The five structures, one file each, behind one registry that must name them all."""

from __future__ import annotations

from collections.abc import Callable

from torch import Generator, Tensor

from apet.placement.plans import Units
from apet.placement.sites import STRUCTURES
from apet.tuning.structures import bias, bottleneck, entry, lowrank, token

INITIAL: dict[str, Callable[[Units, Generator, Tensor], Tensor]] = {
    "entry": entry.initial,
    "bias": bias.initial,
    "lowrank": lowrank.initial,
    "bottleneck": bottleneck.initial,
    "token": token.initial,
}
"""structure -> (units, generator, word embeddings [words, d]) -> initial values, shape (units.size,), float32."""

if tuple(INITIAL) != STRUCTURES:
    raise ImportError(f"structures on disk {tuple(INITIAL)} are not those of the inventory {STRUCTURES}")
