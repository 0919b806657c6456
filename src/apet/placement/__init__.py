"""Where tunable parameters may sit (sites), how many there are to spend (budgets), and who gets them (plans)."""

from apet.placement.budgets import Budget, plainly, resolve
from apet.placement.methods import PLACEMENTS, Methods
from apet.placement.plans import Plan, Units, check_plan, make_plan, most_virtual_tokens, own_count, virtual_tokens
from apet.placement.sites import STRUCTURES, Inventory, Site

__all__ = [
    "PLACEMENTS",
    "STRUCTURES",
    "Budget",
    "Inventory",
    "Methods",
    "Plan",
    "Site",
    "Units",
    "check_plan",
    "make_plan",
    "most_virtual_tokens",
    "own_count",
    "plainly",
    "resolve",
    "virtual_tokens",
]
