"""Scores of predicted labels and of generated answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from apet.core.text import plural
from apet.data.label_metrics import LABEL_METRICS
from apet.data.text_metrics import TEXT_METRICS, answer_scores
from apet.errors import ConfigError, unknown_name


@dataclass(frozen=True, repr=False)
class Score:
    """The score of a split."""

    score: float
    """The task's main metric, a fraction; from −1 for `mcc`."""
    n: int
    """Number of rows."""
    loss: float
    """Mean cross-entropy in nats. For classification, over the label words."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """All metrics of the task by name, fractions."""

    def __repr__(self) -> str:
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in self.metrics.items())
        return f"<Score {self.score:.4f} ({metrics or 'no metric'}), loss {self.loss:.4f}, {plural(self.n, 'row')}>"


def label_metrics(names: Sequence[str], predicted: Tensor, labels: Tensor) -> dict[str, float]:
    """Compute metrics of predicted labels.

    Args:
        names: keys of `apet.data.label_metrics.LABEL_METRICS`.
        predicted: predicted label numbers, shape [n].
        labels: correct label numbers, shape [n].

    Returns:
        Values by name.

    Raises:
        ConfigError: a name is unknown.
    """
    _check_names(names, LABEL_METRICS)
    return {name: LABEL_METRICS[name](predicted.numpy(), labels.numpy()) for name in names}


def text_metrics(
    names: Sequence[str], answers: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, np.ndarray]:
    """Compute metrics of each generated answer.

    Args:
        names: keys of `apet.data.text_metrics.TEXT_METRICS`.
        answers: n generated answers.
        references: correct answers of each row.

    Returns:
        Fractions by name, shape [n].

    Raises:
        ConfigError: a name is unknown.
    """
    _check_names(names, TEXT_METRICS)
    return {name: answer_scores(name, answers, references) for name in names}


def _check_names(names: Sequence[str], metrics: Mapping[str, object]) -> None:
    for name in names:
        if name not in metrics:
            raise ConfigError(unknown_name("metric", name, metrics))


def score_labels(logits: Tensor, labels: Tensor, metrics: Sequence[str] = ("accuracy",)) -> Score:
    """Score the labels with the largest logits. The first label decides ties.

    Args:
        logits: shape [n, labels].
        labels: correct label numbers, shape [n].
        metrics: keys of `LABEL_METRICS`. The first one is the score.

    Returns:
        The score, with the cross-entropy of the labels as its loss.
    """
    values = label_metrics(metrics, logits.argmax(dim=1), labels)
    return Score(values[metrics[0]], len(labels), float(F.cross_entropy(logits, labels)), values)


def score_answers(values: Mapping[str, np.ndarray], loss: float) -> Score:
    """Average metrics of generated answers over a split.

    Args:
        values: metrics by name, fractions of shape [n]. The first one is the score.
        loss: mean cross-entropy of the reference answers, in nats.

    Returns:
        The means over the rows, with the loss.
    """
    first, *_ = values.values()
    means = {name: float(column.mean()) for name, column in values.items()}
    return Score(float(first.mean()), len(first), loss, means)
