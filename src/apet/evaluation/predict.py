"""Logits of the label words for every row of a split."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from apet.evaluation.encoded import Encoded
from apet.tuning import TunedPLM

ROWS = 64
"""Rows a batch: fixed, since another number may change the last bits of a logit."""


@torch.no_grad()
def predict(tuned: TunedPLM, theta: Sequence[Tensor], data: Encoded, words: Tensor) -> Tensor:
    """Logits [n, labels], in the split's order. Rows are batched by length, so that little padding is computed."""
    logits = torch.empty(len(data), len(words))
    for rows in data.lengths.argsort(stable=True).split(ROWS):
        logits[rows] = tuned(theta, *data.batch(rows), words).float()
    return logits
