"""Reproducible study of how model scaling changes parameter-efficient tuning.

Functions for notebooks: `apet.load_model`, `apet.make_plan`, `apet.prepare_task`, `apet.train`, `apet.load_tuned`,
`apet.export_model` and `apet.plan_from_peft`; see docs/python.md. Each is imported on first use, which keeps
`import apet` fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from apet.core.arithmetic import pin_arithmetic

if TYPE_CHECKING:
    from apet.api import (
        QUICK_TRAINING,
        MethodSizes,
        Plan,
        TunedModel,
        export_model,
        load_model,
        load_tuned,
        make_plan,
        plan_from_peft,
        prepare_task,
        train,
    )

__all__ = [
    "QUICK_TRAINING",
    "MethodSizes",
    "Plan",
    "TunedModel",
    "export_model",
    "load_model",
    "load_tuned",
    "make_plan",
    "plan_from_peft",
    "prepare_task",
    "train",
]


pin_arithmetic()  # before anything imports PyTorch


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("apet.api"), name)
    raise AttributeError(f"module 'apet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
