"""How a plan's units enter a PLM: one flat vector θ, its layout, and the structures that read it."""

from __future__ import annotations

from apet.models.loading import PLM
from apet.placement.plans import Plan
from apet.tuning.sharded_plm import ShardedPLM, gather, start
from apet.tuning.theta import ThetaSlice, initial_theta, layout, split_by_structure
from apet.tuning.tuned_plm import TunedPLM

__all__ = ["ThetaSlice", "TunedPLM", "gather", "initial_theta", "layout", "split_by_structure", "start", "tune"]


def tune(plm: PLM, plan: Plan, checkpointing: bool = False) -> TunedPLM:
    """A PLM with a plan's units in it, whether it is whole or in parts. checkpointing: see `TunedPLM`."""
    return TunedPLM(plm, plan, checkpointing) if plm.mesh is None else ShardedPLM(plm, plan)
