"""Tuned PLMs: the flat vector θ, its layout, and the updates by which it changes a frozen PLM."""

from __future__ import annotations

from apet.models.loading import PLM
from apet.placement.plans import Plan
from apet.tuning.sharded_plm import ReplicatedRowsPLM, ShardedPLM, gather, initial_theta_by_structure
from apet.tuning.theta import ThetaSlice, initial_theta, layout, split_by_structure
from apet.tuning.tuned_plm import TunedPLM

__all__ = [
    "ThetaSlice",
    "TunedPLM",
    "gather",
    "initial_theta",
    "initial_theta_by_structure",
    "layout",
    "split_by_structure",
    "tune",
    "untuned",
]


UNTUNED = Plan("none", 0, 0, ())
"""The plan without units."""


def untuned(plm: PLM) -> TunedPLM:
    """Return the PLM as a `TunedPLM` without θ. If it is sharded, every process computes all rows.

    Args:
        plm: The PLM.

    Returns:
        A context manager, as from `tune`.
    """
    return TunedPLM(plm, UNTUNED) if plm.mesh is None else ReplicatedRowsPLM(plm, UNTUNED)


def tune(plm: PLM, plan: Plan, gradient_checkpointing: bool = False) -> TunedPLM:
    """Put the units of a plan into a PLM.

    Args:
        plm: A PLM on one device, or sharded over several.
        plan: The plan.
        gradient_checkpointing: See `TunedPLM`; a sharded PLM always recomputes activations.

    Returns:
        The tuned PLM.
    """
    return TunedPLM(plm, plan, gradient_checkpointing) if plm.mesh is None else ShardedPLM(plm, plan)
