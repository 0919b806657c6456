"""Sites: places of a PLM at which a structure may be inserted, and the cost of one unit there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod

from apet.core.hashing import digest

SAMPLED = ("entry", "bias", "lowrank", "bottleneck", "token")
"""Structures that random placements choose by default: those of APET (Su et al. 2023)."""

STRUCTURES = (*SAMPLED, "scale", "prefix")
"""Structures that can be inserted, in the order of θ. `unit_cost` explains each."""

FILLERS = ("entry", "bias")
"""Structures that use up the rest of a budget that is too small for a larger unit."""

SCALARS = (*FILLERS, "scale")
"""Structures whose unit is one number, at an index of its site."""

MAX_VIRTUAL_TOKENS = 512
"""Most virtual tokens in front of one input, and most pairs in front of the keys and values of one attention."""


def unit_cost(structure: str, shape: tuple[int, ...]) -> int:
    """Count the parameters in one unit of a structure.

    Args:
        structure: One of `STRUCTURES`. One unit is, for
            entry: one scalar of a weight;
            bias: one scalar of an output's bias;
            lowrank: one rank-1 component of a linear map, with a row of d_in and a column of d_out numbers;
            bottleneck: one hidden unit of an adapter, with d weights down, one bias and d weights up;
            token: one virtual token;
            scale: one scalar of a factor of a hidden state;
            prefix: one key and one value of an attention, d numbers each.
        shape: Shape of what the structure acts on: a weight (any shape; (d_out, d_in) for lowrank), or an output,
            hidden state, embedding or key (d,).

    Returns:
        The number of parameters.
    """
    if structure in SCALARS:
        return 1
    if structure == "lowrank":
        return shape[0] + shape[1]
    return {"bottleneck": 2 * shape[0] + 1, "token": shape[0], "prefix": 2 * shape[0]}[structure]


def max_units(structure: str, shape: tuple[int, ...]) -> int:
    """Count the units that a site can hold.

    Args:
        structure: One of `STRUCTURES`.
        shape: Shape of what the structure acts on, as in `unit_cost`.

    Returns:
        All scalars, the full rank, an adapter four times as wide as the hidden state, or MAX_VIRTUAL_TOKENS.
    """
    if structure in SCALARS:
        return prod(shape)
    if structure == "lowrank":
        return min(shape)
    return 4 * shape[0] if structure == "bottleneck" else MAX_VIRTUAL_TOKENS


@dataclass(frozen=True, order=True)
class Site:
    """One structure at one place of one PLM."""

    place: str
    """Canonical name of the place, the same in every family, such as `decoder.3.attention.query`."""
    structure: str
    """One of `STRUCTURES`."""
    shape: tuple[int, ...]
    """Shape of the weight (d_out, d_in), or of the output, hidden state or key (d,)."""
    samplable: bool = True
    """Whether a random placement may choose the site. It may not if a single unit cannot change the output (the bias of
    a key cancels in the softmax) or changes it for some texts only (the row of a word)."""
    exists: bool = True
    """Whether the PLM has these numbers itself. It does not if a bias is added to a module without one."""

    @property
    def name(self) -> str:
        """Place and structure, a key that is unique in an inventory."""
        return f"{self.place}/{self.structure}"

    @cached_property
    def cost(self) -> int:
        """Parameters in one unit."""
        return unit_cost(self.structure, self.shape)

    @cached_property
    def units(self) -> int:
        """Units that the site can hold."""
        return max_units(self.structure, self.shape)

    @property
    def layer(self) -> int | None:
        """Index of the block that contains the site, counted from the input; None outside the blocks."""
        parts = self.place.split(".")
        return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else None


@dataclass(frozen=True, repr=False)
class Inventory:
    """All sites of one PLM in canonical order, and the size of the PLM."""

    family: str
    """Name of the PLM's family."""
    layers: int
    """Number of blocks, of the longer stack if there are two."""
    num_params: int
    """Parameters of the PLM, tied weights counted once."""
    non_embedding_params: int
    """Parameters outside embeddings and the LM head."""
    sites: tuple[Site, ...]
    """Sites in the order of θ."""

    def __repr__(self) -> str:
        return (
            f"<Inventory {self.family}: {len(self.sites)} sites, {self.num_params:,} parameters, "
            f"{self.non_embedding_params:,} outside the embeddings>"
        )

    @classmethod
    def from_sites(
        cls, family: str, layers: int, num_params: int, non_embedding_params: int, sites: Iterable[Site]
    ) -> Inventory:
        """Sort sites into canonical order, so that a plan cannot depend on the order of a dict or a file.

        Args:
            family: Name of the PLM's family.
            layers: Number of blocks.
            num_params: Parameters of the PLM.
            non_embedding_params: Parameters outside embeddings and the LM head.
            sites: Sites in any order.

        Returns:
            The inventory, its sites sorted by structure in the order of θ, then by place.
        """
        ordered = sorted(sites, key=lambda s: (STRUCTURES.index(s.structure), _natural_key(s.place)))
        return cls(family, layers, num_params, non_embedding_params, tuple(ordered))

    @property
    def samplable(self) -> tuple[Site, ...]:
        """Sites that a random placement may choose, if it samples their structure."""
        return tuple(s for s in self.sites if s.samplable)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over family, size, and sites of the structures in `SAMPLED`. The other sites follow from them."""
        sites = [[s.name, s.shape, s.samplable] for s in self.sites if s.structure in SAMPLED]
        return digest([self.family, self.num_params, sites])


def capacity(sites: Iterable[Site]) -> int:
    """Count the parameters that all units of some sites have together."""
    return sum(s.units * s.cost for s in sites)


def _natural_key(place: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that puts decoder.2 before decoder.10."""
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in place.split("."))
