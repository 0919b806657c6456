"""Where tunable parameters may sit (sites), how many there are to spend (budgets), and who gets them (plans)."""

from apet.placement.budgets import Budget, canonical_budget, resolve
from apet.placement.methods import PLACEMENTS, MethodSizes
from apet.placement.plans import Plan, Units, check_plan, make_plan, most_virtual_tokens, own_count, virtual_tokens
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
    "check_plan",
    "make_plan",
    "most_virtual_tokens",
    "own_count",
    "resolve",
    "virtual_tokens",
]
