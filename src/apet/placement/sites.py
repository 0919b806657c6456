"""Sites: the places of a PLM where a structure may be inserted, with the price of one unit there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod

from apet.core.hashing import digest

STRUCTURES = ("entry", "bias", "lowrank", "bottleneck", "token")
"""What can be inserted, in the order of θ: see `unit_cost` for the size of each."""

SCALARS = ("entry", "bias")
"""Structures whose unit is one number: they fill the rest of a budget that no larger unit fits."""

TOKENS = 512
"""Most virtual tokens that one input may get."""


def unit_cost(structure: str, shape: tuple[int, ...]) -> int:
    """Parameters in one unit.

    entry: one scalar of a weight of any shape, 1. bias: one scalar of an output (d,), 1.
    lowrank: one rank-1 component of a map (d_out, d_in), d_in + d_out. bottleneck: one hidden unit of an adapter on a
    hidden state (d,), that is d weights down, one bias, d weights up. token: one virtual token (d,), d.
    """
    if structure in SCALARS:
        return 1
    if structure == "lowrank":
        return shape[0] + shape[1]
    return 2 * shape[0] + 1 if structure == "bottleneck" else shape[0]


def most_units(structure: str, shape: tuple[int, ...]) -> int:
    """How many units a site holds: every scalar, the full rank, an adapter four times the hidden state, 512 tokens."""
    if structure in SCALARS:
        return prod(shape)
    if structure == "lowrank":
        return min(shape)
    return 4 * shape[0] if structure == "bottleneck" else TOKENS


@dataclass(frozen=True, order=True)
class Site:
    """One structure at one place of one PLM.

    place: canonical name, the same in every family (`decoder.3.attention.query`). shape: of the weight (d_out, d_in),
    of the output or hidden state (d,). samplable: whether a random placement may choose it; false where one unit alone
    could not move the output (a key's bias cancels in the softmax) or moves it only for some texts (a word's row).
    exists: whether the PLM has the numbers itself; false for a bias that is added as zeros.
    """

    place: str
    structure: str
    shape: tuple[int, ...]
    samplable: bool = True
    exists: bool = True

    @property
    def name(self) -> str:
        return f"{self.place}/{self.structure}"

    @cached_property
    def cost(self) -> int:
        return unit_cost(self.structure, self.shape)

    @cached_property
    def units(self) -> int:
        return most_units(self.structure, self.shape)

    @property
    def layer(self) -> int | None:
        """Number of the block the site is in, counted from the input; None outside the blocks."""
        part = self.place.split(".")
        return int(part[1]) if len(part) > 1 and part[1].isdigit() else None


@dataclass(frozen=True)
class Inventory:
    """All sites of one PLM, in canonical order, and its size.

    parameters: all numbers of the PLM, tied weights once. non_embedding: those outside embeddings and the LM head.
    """

    family: str
    layers: int
    parameters: int
    non_embedding: int
    sites: tuple[Site, ...]

    @classmethod
    def of(cls, family: str, layers: int, parameters: int, non_embedding: int, sites: Iterable[Site]) -> Inventory:
        """Sites are sorted (structures in the order of θ, then by place), so no dict or file order can reach a plan."""
        ordered = sorted(sites, key=lambda s: (STRUCTURES.index(s.structure), _natural(s.place)))
        return cls(family, layers, parameters, non_embedding, tuple(ordered))

    @property
    def drawn(self) -> tuple[Site, ...]:
        """Sites that a random placement may choose."""
        return tuple(s for s in self.sites if s.samplable)

    @cached_property
    def digest(self) -> str:
        return digest([self.family, self.parameters, [[s.name, s.shape, s.samplable] for s in self.sites]])


def capacity(sites: Iterable[Site]) -> int:
    """Parameters that all units of these sites hold together."""
    return sum(s.units * s.cost for s in sites)


def _natural(place: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which decoder.2 comes before decoder.10."""
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in place.split("."))
