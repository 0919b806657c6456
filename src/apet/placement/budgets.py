"""Budgets: the number of tunable parameters, as a user writes it and as a plan meets it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from apet.errors import BudgetError, ConfigError, truncated_repr, unknown_name
from apet.placement.methods import PLACEMENTS, MethodSizes
from apet.placement.sites import Inventory

ALLOWED = "a whole number (4096), a share of the PLM (0.01%), or another placement's count (@lora, @own, …)"


COUNT = re.compile(r"0|[1-9][0-9]{0,14}")
"""Without leading zeros, which some read as octal."""
SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,12})?)\s*%")


@dataclass(frozen=True)
class Budget:
    """A budget as written: exactly one of count, share (a fraction of the PLM's parameters) and placement is set."""

    text: str
    count: int | None = None
    share: Decimal | None = None
    placement: str | None = None

    @classmethod
    def parse(cls, written: int | str) -> Budget:
        """Read a budget. Raises BudgetError for anything but the three forms, and for a share of 0 or over 100 %."""
        text = str(written).strip()
        if COUNT.fullmatch(text):
            return cls(text, count=int(text))
        if match := SHARE.fullmatch(text):
            percent = Decimal(match[1])
            if not 0 < percent <= 100:
                raise BudgetError(f"budget {text!r}: a share lies above 0 % and at most at 100 %.")
            # 1% and 1.0% are one budget, so they have one name.
            return cls(f"{percent.normalize():f}%", share=percent / 100)
        if text.startswith("@") and text[1:] in {*PLACEMENTS.own, "own"}:
            return cls(text, placement=text[1:])
        if text.startswith("@"):
            names = ", ".join(f"@{n}" for n in ("own", *sorted(PLACEMENTS.own)))
            raise BudgetError(
                f"budget {truncated_repr(text)}: no placement of that name has its own count. Allowed: {names}."
            )
        raise BudgetError(f"budget {truncated_repr(text)} is not {ALLOWED}.")


def canonical_budget(placement: str, budget: str) -> tuple[str, str]:
    """A placement with its budget in one spelling: a method's own count has two, and that of `none` has any."""
    return placement, "@own" if placement == "none" or budget == f"@{placement}" else budget


def resolve(budget: Budget, placement: str, inventory: Inventory, methods: MethodSizes) -> int:
    """The number of tunable parameters that `budget` means for `placement` on this PLM.

    A share is rounded to the nearest whole number, at least 1. Raises BudgetError where `@own` has no meaning,
    ParamsError for an unknown placement.
    """
    if placement not in PLACEMENTS.names:
        raise ConfigError(unknown_name("placement", placement, PLACEMENTS.names))
    if budget.count is not None:
        return budget.count
    if budget.share is not None:
        return max(1, round(budget.share * inventory.parameters))
    name = placement if budget.placement == "own" else budget.placement
    if name not in PLACEMENTS.own:
        raise BudgetError(f"placement {placement!r} has no count of its own: give it a number, a share or @lora, ….")
    return sum(n * site.cost for site, n in PLACEMENTS.own[name](inventory, methods).items())
