"""token: virtual tokens in front of an input's embeddings (prompt tuning, Lester et al. 2021)."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from apet.placement.plans import Units


def initial(units: Units, generator: Generator, words: Tensor) -> Tensor:
    """Embeddings of random words: at step 0 the PLM computes what it does on a text with those words in front."""
    drawn = torch.randint(len(words), (units.count,), generator=generator)
    return words[drawn].float().flatten()
