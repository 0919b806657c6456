"""What a score is: of labels, per split; of written answers, per example first (see `apet.data.answers`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from apet.data.answers import TEXT_METRICS, answer_scores
from apet.errors import ParamsError, unknown


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
        raise ParamsError(unknown("metric", name, metrics))
    return metrics[name]
