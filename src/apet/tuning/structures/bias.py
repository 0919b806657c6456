"""bias: chosen scalars of an output's bias (BitFit, Ben Zaken et al. 2022), also where the PLM has none."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from apet.placement.plans import Units


def initial(units: Units, generator: Generator, words: Tensor) -> Tensor:
    """Zeros: the bias as it was."""
    return torch.zeros(units.size)
