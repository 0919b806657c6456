"""bottleneck: hidden units of an adapter behind a block, h + GELU(h Dᵀ + c) U (Houlsby et al. 2019)."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from apet.placement.plans import Units


def initial(units: Units, generator: Generator, words: Tensor) -> Tensor:
    """D ~ U(±1/√d), c = 0, U = 0: the adapter starts as the identity. Per unit: its row of D, its c, its row of U."""
    (width,) = units.site.shape
    values = torch.zeros(units.count, 2 * width + 1)
    values[:, :width].uniform_(-(width**-0.5), width**-0.5, generator=generator)
    return values.flatten()


def update(h: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """What the adapter adds to hidden states h [..., d]: shape [..., d]. GELU, since a ReLU unit may start dead."""
    (width,) = shape
    down, inner, up = values.view(-1, 2 * width + 1).split((width, 1, width), dim=1)
    return F.gelu(F.linear(h, down, inner.squeeze(1)), approximate="tanh") @ up
