"""Plans: which units get the budget. A plan is a pure function of (inventory, placement, budget, seed)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from apet.core.hashing import digest
from apet.errors import BudgetError, ConfigError, unknown_name
from apet.placement.methods import PLACEMENTS, MethodSizes, Take
from apet.placement.sites import SCALARS, STRUCTURES, Inventory, Site, capacity


@dataclass(frozen=True)
class Units:
    """What a plan takes at one site: `count` units, and for scalars which ones (flat, sorted; None: all of them)."""

    site: Site
    count: int
    indices: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Parameters of these units."""
        return self.count * self.site.cost


@dataclass(frozen=True)
class Plan:
    """Units in the order of θ, whose sizes add up to exactly `budget`."""

    placement: str
    budget: int
    seed: int
    units: tuple[Units, ...]

    @property
    def structures(self) -> dict[str, int]:
        """Tunable parameters by structure."""
        return {s: sum(u.size for u in self.units if u.site.structure == s) for s in STRUCTURES}

    @cached_property
    def digest(self) -> str:
        """SHA-256 over sites, counts and chosen scalars: equal plans, equal digests."""
        index = [None if u.indices is None else u.indices.tolist() for u in self.units]
        return digest([[u.site.name, u.site.shape, u.count, i] for u, i in zip(self.units, index, strict=True)])

    def record(self) -> dict[str, Any]:
        """What is saved: the coordinates that make the plan anew, the units by site, and the digest that proves it."""
        units = {u.site.name: u.count for u in self.units}
        head = {"placement": self.placement, "budget": self.budget, "seed": self.seed, "digest": self.digest}
        return {**head, "structures": self.structures, "units": units}


def own_count(placement: str, inventory: Inventory, methods: MethodSizes) -> int:
    """Parameters that a named method takes by itself on this PLM."""
    return _size(PLACEMENTS.own[placement](inventory, methods))


def make_plan(inventory: Inventory, placement: str, budget: int, seed: int, methods: MethodSizes | None = None) -> Plan:
    """Spread `budget` parameters over the inventory's sites by the placement's rule.

    A named method at its own count takes exactly its own units. At another budget it takes them evenly, one unit a
    site in turn, as many as fit. `uniform` and its restrictions draw sites with equal chances, one unit at a time.
    What no larger unit fits is filled with scalars, drawn from all sites that may be drawn.

    Raises ParamsError for an unknown placement, BudgetError for a budget that the placement cannot meet.
    """
    random = np.random.default_rng(seed)
    take = _spread(inventory, placement, budget, random, methods or MethodSizes())
    chosen = (site for site in inventory.sites if take.get(site))
    return Plan(placement, budget, seed, tuple(_pick(site, take[site], random) for site in chosen))


def check_plan(inventory: Inventory, placement: str, budget: int, methods: MethodSizes) -> None:
    """Raises as `make_plan` does, without the work of drawing which scalars: millions of them on a large PLM."""
    _spread(inventory, placement, budget, np.random.default_rng(0), methods)


def virtual_tokens(inventory: Inventory, placement: str, budget: int, seed: int, methods: MethodSizes) -> int:
    """Virtual tokens that the plan of these arguments puts in front of an input. Raises as `make_plan`."""
    take = _spread(inventory, placement, budget, np.random.default_rng(seed), methods)
    return max((count for site, count in take.items() if site.structure == "token"), default=0)


def most_virtual_tokens(inventory: Inventory, placement: str, budget: int) -> int:
    """As many as `virtual_tokens` with any seed, or more: what the budget pays of what such a site holds."""
    allowed = PLACEMENTS.random.get(placement, lambda site, inventory: True)
    sites = (site for site in inventory.sites if site.structure == "token" and allowed(site, inventory))
    return max((min(site.units, budget // site.cost) for site in sites), default=0)


def _spread(
    inventory: Inventory, placement: str, budget: int, random: np.random.Generator, methods: MethodSizes
) -> Take:
    """How many units each site gets."""
    if placement not in PLACEMENTS.names:
        raise ConfigError(unknown_name("placement", placement, PLACEMENTS.names))
    if placement in PLACEMENTS.random:
        allowed = PLACEMENTS.random[placement]
        holds = {s: s.units for s in inventory.drawn if allowed(s, inventory)}
        _check(inventory, placement, budget, _size(holds))
        take = _draw(holds, budget, random)
    else:
        own = PLACEMENTS.own[placement](inventory, methods)
        whole = _size(own) if placement in ("none", "full") else capacity(own)
        _check(inventory, placement, budget, whole)
        take = _named(own, budget, random)
    if rest := budget - _size(take):
        take = _fill(inventory, take, rest, random)
    return take


def _check(inventory: Inventory, placement: str, budget: int, holds: int) -> None:
    """The budgets that no spreading can meet, told apart before anything is drawn."""
    if placement in ("none", "full"):
        if budget != holds:
            raise BudgetError(f"placement {placement!r} takes {holds:,} parameters on this PLM, not {budget:,}.")
    elif budget < 1:
        raise BudgetError(f"budget {budget} of placement {placement!r}: at least 1 parameter, or placement 'none'.")
    elif budget > min(holds, inventory.parameters):
        raise BudgetError(
            f"budget {budget:,} of placement {placement!r}: it holds {holds:,} parameters on this PLM, "
            f"which has {inventory.parameters:,}."
        )


def _size(take: Take) -> int:
    return sum(n * site.cost for site, n in take.items())


def _named(own: Take, budget: int, random: np.random.Generator) -> Take:
    """A method's own units at its own count; otherwise its larger units in turn, then its scalars at random."""
    if budget == _size(own):
        return dict(own)
    larger = [s for s in own if s.structure not in SCALARS]
    scalars = {s: s.units for s in own if s.structure in SCALARS}
    if not larger:
        return _draw(scalars, budget, random, by_unit=True)
    with_scalars = budget >= _size(scalars) + sum(s.cost for s in larger)
    take = scalars if with_scalars else {}
    return {**take, **_in_turn(larger, budget - _size(take))}


def _in_turn(sites: Sequence[Site], budget: int) -> Take:
    """One unit a site in turn, in canonical order, until none fits: whole rounds at once, then one partial round."""
    take = dict.fromkeys(sites, 0)
    unfilled = list(sites)
    while unfilled and (whole := budget // sum(s.cost for s in unfilled)):
        rounds = min(whole, min(s.units - take[s] for s in unfilled))
        for site in unfilled:
            take[site] += rounds
            budget -= rounds * site.cost
        unfilled = [s for s in unfilled if take[s] < s.units]
    for site in unfilled:
        if site.cost <= budget:
            take[site] += 1
            budget -= site.cost
    return take


def _draw(holds: Take, budget: int, random: np.random.Generator, by_unit: bool = False) -> Take:
    """Units at sites drawn with equal chances (by_unit: in proportion to their free units), until no more fits.

    holds: most units of each site. Draws come in batches that cannot overspend, rest // dearest at a time, so a budget
    of millions needs few rounds.
    """
    cost = np.array([s.cost for s in holds], dtype=np.int64)
    free = np.array(list(holds.values()), dtype=np.int64)
    count = np.zeros_like(free)
    rest = budget
    while (fits := np.flatnonzero((cost <= rest) & (free > count))).size:
        left = (free - count)[fits]
        chance = left / left.sum() if by_unit else np.full(fits.size, 1 / fits.size)
        drawn = np.minimum(random.multinomial(max(1, rest // int(cost[fits].max())), chance), left)
        count[fits] += drawn
        rest -= int((drawn * cost[fits]).sum())
    return {site: int(n) for site, n in zip(holds, count, strict=True) if n}


def _fill(inventory: Inventory, take: Take, rest: int, random: np.random.Generator) -> Take:
    """`take` and `rest` scalars more, from the drawn scalar sites that still have free ones."""
    free = {s: s.units - take.get(s, 0) for s in inventory.drawn if s.structure in SCALARS}
    added = _draw(free, rest, random)
    if _size(added) < rest:
        raise BudgetError(f"the last {rest:,} parameters of the budget fit no free scalar: lower the budget.")
    return take | {s: take.get(s, 0) + n for s, n in added.items()}


def _pick(site: Site, count: int, random: np.random.Generator) -> Units:
    """Which scalars of a site: a draw without replacement; a larger structure's units are all alike."""
    if site.structure not in SCALARS or count == site.units:
        return Units(site, count)
    return Units(site, count, np.sort(random.choice(site.units, size=count, replace=False, shuffle=False)))
