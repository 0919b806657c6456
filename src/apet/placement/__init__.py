"""Placement of trainable parameters: sites of a PLM, budgets, and plans that distribute a budget over sites."""

from apet.placement.budgets import Budget, canonical_budget, resolve
from apet.placement.methods import PLACEMENTS, MethodSizes, check_gradients, informed_sites, random_sites
from apet.placement.plans import (
    Plan,
    Units,
    check_plan,
    describe_structures,
    make_plan,
    max_virtual_tokens,
    own_count,
    virtual_tokens,
)
from apet.placement.sites import STRUCTURES, Inventory, Site

__all__ = [
    "PLACEMENTS",
    "STRUCTURES",
    "Budget",
    "Inventory",
    "MethodSizes",
    "Plan",
    "Site",
    "Units",
    "canonical_budget",
    "check_gradients",
    "check_plan",
    "describe_structures",
    "informed_sites",
    "make_plan",
    "max_virtual_tokens",
    "own_count",
    "random_sites",
    "resolve",
    "virtual_tokens",
]
