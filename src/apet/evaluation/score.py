"""From logits to a score that says its n."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Score:
    """score: accuracy, a fraction of n rows. loss: mean cross-entropy over the label words, in nats."""

    score: float
    n: int
    loss: float


def score(logits: Tensor, labels: Tensor) -> Score:
    """Accuracy of the largest label logit. logits [n, labels], labels [n]. The first label wins a tie."""
    right = int((logits.argmax(dim=1) == labels).sum())
    return Score(right / len(labels), len(labels), float(F.cross_entropy(logits, labels)))
