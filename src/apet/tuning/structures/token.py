"""token: virtual tokens in front of an input's embeddings (prompt tuning, Lester et al. 2021)."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from apet.placement.plans import Units


def initial(units: Units, generator: Generator, words: Tensor) -> Tensor:
    """Embeddings of words drawn at random: at step 0 the PLM computes what it does on a text with those words in front."""
    drawn = torch.randint(len(words), (units.count,), generator=generator)
    return words[drawn].float().flatten()


def extend(embeddings: Tensor, values: Tensor) -> Tensor:
    """Put the virtual tokens before embeddings [rows, length, d]: shape [rows, tokens + length, d]."""
    rows, _, width = embeddings.shape
    virtual = values.view(1, -1, width).expand(rows, -1, -1)
    return torch.cat((virtual.to(embeddings.dtype), embeddings), dim=1)
