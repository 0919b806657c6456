"""How a plan's units enter a PLM: one flat vector θ, its layout, and the structures that read it."""

from apet.tuning.theta import Slot, initial_theta, layout, split_by_structure
from apet.tuning.tuned import TunedPLM

__all__ = ["Slot", "TunedPLM", "initial_theta", "layout", "split_by_structure"]
