"""Types of the public API, which mypy checks in `make lint`."""

from __future__ import annotations

from typing import assert_type

import apet
from apet.export.tuned_model import TunedModel
from apet.placement.sites import Inventory


def check_types() -> None:
    assert_type(apet.load_model("my-plm").inventory, Inventory)
    assert_type(apet.load_tuned("cell"), TunedModel)
    assert_type(apet.load_tuned("cell").evaluate("data").score, float)
