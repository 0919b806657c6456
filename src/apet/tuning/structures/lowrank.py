"""lowrank: rank-1 components of a linear map's update (LoRA, Hu et al. 2022, with scale 1); see `factors`."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from apet.placement.plans import Units


def initial(units: Units, generator: Generator, words: Tensor) -> Tensor:
    """A ~ U(±1/√d_in), as LoRA's library has it; B = 0: the update starts at zero. Per unit: a row of A, then of B."""
    outputs, inputs = units.site.shape
    values = torch.zeros(units.count, inputs + outputs)
    values[:, :inputs].uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
    return values.flatten()
