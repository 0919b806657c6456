"""Budgets: the number of trainable parameters, as a user writes it and as a plan meets it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from apet.errors import BudgetError, ConfigError, truncated_repr, unknown_name
from apet.placement.methods import PLACEMENTS, MethodSizes, allocation_size
from apet.placement.sites import Inventory

EXPECTED = "a whole number (4096), a percentage of the PLM (0.01%) or another placement's count (@lora, @own, …)"

COUNT = re.compile(r"0|[1-9][0-9]{0,14}")
"""Without leading zeros, which YAML 1.1 reads as octal."""
SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,12})?)\s*%")


@dataclass(frozen=True)
class Budget:
    """A budget as written. Exactly one of count, share and placement is set."""

    text: str
    """The budget in its canonical spelling."""
    count: int | None = None
    """Number of parameters."""
    share: Decimal | None = None
    """Fraction of the PLM's parameters."""
    placement: str | None = None
    """Name of the placement whose own count is meant; `own` for the placement that gets the budget."""

    @classmethod
    def parse(cls, written: int | str) -> Budget:
        """Parse a budget.

        Args:
            written: A count, a share such as `0.01%`, or `@` and a placement.

        Returns:
            The budget.

        Raises:
            BudgetError: The text has another form, the share is 0 % or above 100 %, or the placement has no count of
                its own.
        """
        text = str(written).strip()
        if COUNT.fullmatch(text):
            return cls(text, count=int(text))
        if match := SHARE.fullmatch(text):
            percent = Decimal(match[1])
            if not 0 < percent <= 100:
                raise BudgetError(f"budget {text!r}: expected a share above 0 % and at most 100 %.")
            # 1% and 1.0% are the same budget and get the same name.
            return cls(f"{percent.normalize():f}%", share=percent / 100)
        if text.startswith("@") and text[1:] in {*PLACEMENTS.own, "own"}:
            return cls(text, placement=text[1:])
        if text.startswith("@"):
            raise BudgetError(unknown_name("budget", text, (f"@{name}" for name in ("own", *PLACEMENTS.own))))
        raise BudgetError(f"budget {truncated_repr(text)}: expected {EXPECTED}.")


def canonical_budget(placement: str, budget: str) -> tuple[str, str]:
    """Give a placement and its budget one spelling.

    A method's own count has two spellings, and the budget of `none` is always 0.

    Args:
        placement: Name of the placement.
        budget: Text of the budget.

    Returns:
        The placement, and the canonical text of its budget.
    """
    return placement, "@own" if placement == "none" or budget == f"@{placement}" else budget


def resolve(budget: Budget, placement: str, inventory: Inventory, methods: MethodSizes) -> int:
    """Compute the number of trainable parameters that a budget means for a placement on a PLM.

    Args:
        budget: The budget. A share is rounded to the nearest whole number, at least 1.
        placement: Name of the placement.
        inventory: Sites of the PLM.
        methods: Sizes of the named methods.

    Returns:
        The number of parameters.

    Raises:
        BudgetError: `@own` is given for a placement that has no count of its own.
        ConfigError: The placement is unknown.
    """
    if placement not in PLACEMENTS.names:
        raise ConfigError(unknown_name("placement", placement, PLACEMENTS.names))
    if budget.count is not None:
        return budget.count
    if budget.share is not None:
        return max(1, round(budget.share * inventory.num_params))
    name = placement if budget.placement == "own" else budget.placement
    if name not in PLACEMENTS.own:
        raise BudgetError(f"{placement} has no fixed size. Use a budget such as 4096, 0.01% or @lora.")
    return allocation_size(PLACEMENTS.own[name](inventory, methods))
