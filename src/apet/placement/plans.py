"""Plans: the units that get the budget. A plan is a pure function of inventory, placement, budget and seed.

Plans of informed placements also depend on the PLM's weights, and are made by `apet.training.informed_plans`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from apet.core.hashing import digest
from apet.core.text import plural
from apet.errors import BudgetError, ConfigError, unknown_name
from apet.placement.methods import (
    PLACEMENTS,
    Allocation,
    MethodSizes,
    allocation_size,
    informed_sites,
    random_sites,
)
from apet.placement.sites import FILLERS, SCALARS, STRUCTURES, Inventory, Site, capacity


@dataclass(frozen=True, repr=False)
class Units:
    """The units of a plan at one site."""

    site: Site
    """The site."""
    count: int
    """Number of units."""
    indices: np.ndarray | None = None
    """Flat, sorted indices of the chosen scalars; None for all scalars of the site, and for larger units."""

    def __repr__(self) -> str:
        return f"<Units {self.site.name}: {self.count:,} × {self.site.cost:,}>"

    @property
    def size(self) -> int:
        """Parameters of these units."""
        return self.count * self.site.cost


@dataclass(frozen=True, repr=False)
class Plan:
    """Units in the order of θ. Their sizes add up to exactly the budget."""

    placement: str
    """Name of the placement."""
    budget: int
    """Number of trainable parameters."""
    seed: int
    """Seed of the random choices."""
    units: tuple[Units, ...]
    """Units, site by site."""

    def __repr__(self) -> str:
        size, sites = plural(self.budget, "parameter"), plural(len(self.units), "site")
        return f"<Plan {self.placement}, seed {self.seed}: {size} ({describe_structures(self)}), {sites}>"

    @property
    def structures(self) -> dict[str, int]:
        """Trainable parameters by structure."""
        return {s: sum(u.size for u in self.units if u.site.structure == s) for s in STRUCTURES}

    @cached_property
    def digest(self) -> str:
        """SHA-256 over sites, counts and chosen scalars. Equal plans have equal digests."""
        indices = [None if u.indices is None else u.indices.tolist() for u in self.units]
        return digest([[u.site.name, u.site.shape, u.count, i] for u, i in zip(self.units, indices, strict=True)])

    @property
    def indices(self) -> dict[str, np.ndarray]:
        """Name of a site -> flat, sorted indices of its chosen scalars, for sites of which not all units are taken."""
        return {u.site.name: u.indices for u in self.units if u.indices is not None}

    def record(self) -> dict[str, Any]:
        """Summarize the plan for a cell's record.

        Returns:
            The arguments that make the plan again, its digest, and its size by structure and units by site.
        """
        units = {u.site.name: u.count for u in self.units}
        head = {"placement": self.placement, "budget": self.budget, "seed": self.seed, "digest": self.digest}
        return {**head, "structures": self.structures, "units": units}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], indices: Mapping[str, np.ndarray], inventory: Inventory) -> Plan:
        """Restore a plan. Its digest may differ from the recorded one if the record or the inventory is another.

        Args:
            record: The plan's `record`.
            indices: The plan's `indices`.
            inventory: Sites of the PLM.

        Returns:
            The plan, without sites that the inventory lacks.
        """
        sites = {site.name: site for site in inventory.sites}
        units = [Units(sites[name], n, indices.get(name)) for name, n in record["units"].items() if name in sites]
        return cls(record["placement"], record["budget"], record["seed"], tuple(units))


def describe_structures(plan: Plan) -> str:
    """List the trainable parameters of a plan by structure: `entry 12, lowrank 4,084`.

    Args:
        plan: The plan.

    Returns:
        Structures with their counts, in the order of θ.
    """
    return ", ".join(f"{name} {count:,}" for name, count in plan.structures.items() if count) or "nothing"


def own_count(placement: str, inventory: Inventory, methods: MethodSizes) -> int:
    """Count the parameters that a named method trains by default on a PLM.

    Args:
        placement: Name of the method.
        inventory: Sites of the PLM.
        methods: Sizes of the methods.

    Returns:
        The number of parameters.
    """
    return allocation_size(PLACEMENTS.own[placement](inventory, methods))


def make_plan(inventory: Inventory, placement: str, budget: int, seed: int, methods: MethodSizes | None = None) -> Plan:
    """Distribute a budget over the sites of a PLM.

    A named method at its own count takes exactly its default units. At another budget it takes units from its sites in
    turn, as many as fit. `uniform` and its restrictions sample sites with equal probability, one unit at a time. A rest
    that is too small for any larger unit goes to scalars, which are sampled from all samplable sites.

    Args:
        inventory: Sites of the PLM.
        placement: Name of the placement.
        budget: Number of trainable parameters.
        seed: Seed of the random choices.
        methods: Sizes of the named methods; the published ones if None.

    Returns:
        A plan of exactly `budget` parameters.

    Raises:
        BudgetError: The placement cannot meet the budget.
        ConfigError: The placement is unknown, or informed.
    """
    if placement in PLACEMENTS.informed:
        needed = "the weights of the PLM" + PLACEMENTS.informed[placement] * " and training rows"
        raise ConfigError(f"placement {placement!r}: its plan depends on {needed}. Train a cell to get it.")
    rng = np.random.default_rng(seed)
    allocation = _allocate(inventory, placement, budget, rng, methods or MethodSizes())
    chosen = (site for site in inventory.sites if allocation.get(site))
    return Plan(placement, budget, seed, tuple(_sample_scalars(site, allocation[site], rng) for site in chosen))


def check_plan(inventory: Inventory, placement: str, budget: int, methods: MethodSizes) -> bool:
    """Check that a budget can be met, without sampling scalars, of which a large PLM has millions.

    Args:
        inventory: Sites of the PLM.
        placement: Name of the placement.
        budget: Number of trainable parameters.
        methods: Sizes of the named methods.

    Returns:
        Whether plans depend on their seed. Those of a named method do only if it takes some scalars of a site.

    Raises:
        BudgetError: The placement cannot meet the budget.
        ConfigError: The placement is unknown.
    """
    allocation = _allocate(inventory, placement, budget, np.random.default_rng(0), methods)
    some = any(site.structure in SCALARS and 0 < count < site.units for site, count in allocation.items())
    return placement not in PLACEMENTS.own or some


def virtual_tokens(inventory: Inventory, placement: str, budget: int, seed: int, methods: MethodSizes) -> int:
    """Count the positions in front of a text that a plan takes, with virtual tokens and with pairs of a prefix.

    Args:
        inventory: Sites of the PLM.
        placement: Name of the placement.
        budget: Number of trainable parameters.
        seed: Seed of the plan.
        methods: Sizes of the named methods.

    Returns:
        The number of tokens at the input that gets the most, plus the pairs of the block that gets the most.

    Raises:
        BudgetError: The placement cannot meet the budget.
        ConfigError: The placement is unknown.
    """
    return _num_positions(_allocate(inventory, placement, budget, np.random.default_rng(seed), methods))


def max_virtual_tokens(inventory: Inventory, placement: str, budget: int, methods: MethodSizes) -> int:
    """Compute an upper bound of `virtual_tokens` over all seeds.

    Args:
        inventory: Sites of the PLM.
        placement: Name of the placement.
        budget: Number of trainable parameters.
        methods: Sizes of the named methods.

    Returns:
        The number of positions that the budget pays for, or that the sites can hold.
    """
    if placement in PLACEMENTS.informed:
        return 0
    is_random = placement in PLACEMENTS.random
    sites = random_sites(inventory, placement, methods) if is_random else PLACEMENTS.own[placement](inventory, methods)
    return _num_positions({site: min(site.units, budget // site.cost) for site in sites})


def _num_positions(allocation: Allocation) -> int:
    counts = {s: [n for site, n in allocation.items() if site.structure == s] for s in ("token", "prefix")}
    return sum(max(numbers, default=0) for numbers in counts.values())


def _allocate(
    inventory: Inventory, placement: str, budget: int, rng: np.random.Generator, methods: MethodSizes
) -> Allocation:
    """Choose the number of units at each site. Empty for informed placements, whose scalars take no positions."""
    if placement not in PLACEMENTS.names:
        raise ConfigError(unknown_name("placement", placement, PLACEMENTS.names))
    if placement in PLACEMENTS.informed:
        _check_budget(inventory, placement, budget, capacity(informed_sites(inventory)))
        return {}
    if placement in PLACEMENTS.random:
        available = {s: s.units for s in random_sites(inventory, placement, methods)}
        _check_budget(inventory, placement, budget, allocation_size(available))
        allocation = _sample_units(available, budget, rng)
    else:
        own = PLACEMENTS.own[placement](inventory, methods)
        fixed = placement in ("none", "full")
        _check_budget(inventory, placement, budget, allocation_size(own) if fixed else capacity(own))
        allocation = _allocate_method(own, budget, rng)
    if rest := budget - allocation_size(allocation):
        allocation = _fill_remainder(inventory, allocation, rest, rng)
    return allocation


def _check_budget(inventory: Inventory, placement: str, budget: int, available: int) -> None:
    """Reject a budget that the placement cannot meet, before anything is sampled."""
    if placement in ("none", "full"):
        if budget != available:
            raise BudgetError(f"placement {placement!r}: expected a budget of {available:,}, got {budget:,}. Use @own.")
    elif budget < 1:
        raise BudgetError(f"placement {placement!r}: expected a budget of at least 1, got {budget}. Use 'none' for 0.")
    elif budget > (most := min(available, inventory.num_params)):
        raise BudgetError(
            f"placement {placement!r}: expected a budget of at most {most:,}, got {budget:,}: its sites have room for "
            f"{available:,} parameters, and the PLM has {inventory.num_params:,}. Lower the budget."
        )


def _allocate_method(own: Allocation, budget: int, rng: np.random.Generator) -> Allocation:
    """Take a method's default units at its own count; otherwise larger units in turn, then scalars at random."""
    if budget == allocation_size(own):
        return dict(own)
    larger = [s for s in own if s.structure not in SCALARS]
    scalars = {s: s.units for s in own if s.structure in SCALARS}
    if not larger:
        return _sample_units(scalars, budget, rng, by_unit=True)
    with_scalars = budget >= allocation_size(scalars) + sum(s.cost for s in larger)
    allocation = scalars if with_scalars else {}
    return {**allocation, **_round_robin(larger, budget - allocation_size(allocation))}


def _round_robin(sites: Sequence[Site], budget: int) -> Allocation:
    """Take one unit from each site in turn, in canonical order, until none fits.

    Complete rounds are taken at once, then one partial round.
    """
    allocation = dict.fromkeys(sites, 0)
    unfilled = list(sites)
    while unfilled and (affordable := budget // sum(s.cost for s in unfilled)):
        rounds = min(affordable, min(s.units - allocation[s] for s in unfilled))
        for site in unfilled:
            allocation[site] += rounds
            budget -= rounds * site.cost
        unfilled = [s for s in unfilled if allocation[s] < s.units]
    for site in unfilled:
        if site.cost <= budget:
            allocation[site] += 1
            budget -= site.cost
    return allocation


def _sample_units(available: Allocation, budget: int, rng: np.random.Generator, by_unit: bool = False) -> Allocation:
    """Sample units until no more fits.

    Sites have equal probability, or, with `by_unit`, a probability in proportion to their free units. Units are sampled
    in batches that cannot exceed the budget (rest // highest cost at a time), so a budget of millions needs few rounds.
    """
    cost = np.array([s.cost for s in available], dtype=np.int64)
    limit = np.array(list(available.values()), dtype=np.int64)
    count = np.zeros_like(limit)
    rest = budget
    while (fits := np.flatnonzero((cost <= rest) & (limit > count))).size:
        free = (limit - count)[fits]
        probability = free / free.sum() if by_unit else np.full(fits.size, 1 / fits.size)
        sampled = np.minimum(rng.multinomial(max(1, rest // int(cost[fits].max())), probability), free)
        count[fits] += sampled
        rest -= int((sampled * cost[fits]).sum())
    return {site: int(n) for site, n in zip(available, count, strict=True) if n}


def _fill_remainder(inventory: Inventory, allocation: Allocation, rest: int, rng: np.random.Generator) -> Allocation:
    """Add `rest` scalars from the samplable sites that still have free ones."""
    free = {s: s.units - allocation.get(s, 0) for s in inventory.samplable if s.structure in FILLERS}
    added = _sample_units(free, rest, rng)
    if allocation_size(added) < rest:
        raise BudgetError(f"budget: no free scalar is left for its last {rest:,} parameters. Lower the budget.")
    return allocation | {s: allocation.get(s, 0) + n for s, n in added.items()}


def _sample_scalars(site: Site, count: int, rng: np.random.Generator) -> Units:
    """Choose scalars of a site without replacement. Larger units of a site are interchangeable."""
    if site.structure not in SCALARS or count == site.units:
        return Units(site, count)
    return Units(site, count, np.sort(rng.choice(site.units, size=count, replace=False, shuffle=False)))
