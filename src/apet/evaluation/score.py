"""From logits or written answers to a score that says its n."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from apet.evaluation.metrics import label_metrics


@dataclass(frozen=True)
class Score:
    """score: the task's main metric, a fraction over n rows. loss: mean cross-entropy, in nats (labels: over the label
    words). metrics: every metric of the task by name, the main one included.
    """

    score: float
    n: int
    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)


def score(logits: Tensor, labels: Tensor, metrics: Sequence[str] = ("accuracy",)) -> Score:
    """Metrics of the largest label logit. logits [n, labels], labels [n]. The first label wins a tie, the first of
    `metrics` is the score.
    """
    found = label_metrics(metrics, logits.argmax(dim=1), labels)
    return Score(found[metrics[0]], len(labels), float(F.cross_entropy(logits, labels)), found)


def score_answers(found: Mapping[str, np.ndarray], loss: float) -> Score:
    """Metrics of written answers from each one's own [n], by name; the first of them is the score.

    loss: mean cross-entropy of the first references, which the caller measures.
    """
    first, *_ = found.values()
    means = {name: float(values.mean()) for name, values in found.items()}
    return Score(float(first.mean()), len(first), loss, means)
