"""What a score is: of labels, per split; of written answers, per example first (see `apet.data.text_metrics`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from apet.data.text_metrics import TEXT_METRICS, answer_scores
from apet.errors import ConfigError, unknown_name


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of the rows whose label [n] is predicted [n]."""
    return int((predicted == labels).sum()) / len(labels)


def positive_f1(predicted: Tensor, labels: Tensor) -> float:
    """F1 of class 1, as GLUE scores paraphrases; 0 where no row of class 1 is found."""
    both = int(((predicted == 1) & (labels == 1)).sum())
    return 2 * both / max(1, int((predicted == 1).sum()) + int((labels == 1).sum()))


LABEL_METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {"accuracy": accuracy, "f1": positive_f1}


def label_metrics(names: Sequence[str], predicted: Tensor, labels: Tensor) -> dict[str, float]:
    """Each named metric of predicted labels [n], a fraction. ParamsError for an unknown name."""
    return {name: _find(LABEL_METRICS, name)(predicted, labels) for name in names}


def text_metrics(
    names: Sequence[str], answers: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, np.ndarray]:
    """Each named metric of each written answer, fractions [n], for means and bootstraps. ParamsError as above."""
    for name in names:
        _find(TEXT_METRICS, name)
    return {name: answer_scores(name, answers, references) for name in names}


def _find(metrics: dict[str, Callable], name: str) -> Callable:
    if name not in metrics:
        raise ConfigError(unknown_name("metric", name, metrics))
    return metrics[name]


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
