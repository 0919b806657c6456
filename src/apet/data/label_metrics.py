"""Metrics of predicted labels: values, limits, and scores of guesses that do not read the text.

Accuracy is a mean over rows; the others are functions of the confusion matrix, so a row has no score of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

LOWEST = {"mcc": -1.0}
"""Metric -> its lowest value, if that is not 0. The highest value of every metric is 1."""


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Compute the share of rows whose predicted label [n] is the label [n]."""
    return int((predicted == labels).sum()) / len(labels)


def positive_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Compute the F1 of class 1, as GLUE does for paraphrases. 0 if class 1 has no true positive."""
    both = int(((predicted == 1) & (labels == 1)).sum())
    return 2 * both / max(1, int((predicted == 1).sum()) + int((labels == 1).sum()))


def macro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Compute the unweighted mean of the F1 of all classes that are labels or predictions of the split."""
    from sklearn.metrics import f1_score  # a second, only if a task needs it

    return float(f1_score(labels, predicted, average="macro", zero_division=0))


def matthews_correlation(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Compute the Matthews correlation, as GLUE does for CoLA, of any number of classes (Gorodkin 2004).

    Args:
        predicted: Predicted label numbers [n].
        labels: Correct label numbers [n].

    Returns:
        From −1 to 1. 0 if all predictions, or all labels, are one class.
    """
    from sklearn.metrics import matthews_corrcoef

    if np.ptp(predicted) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(matthews_corrcoef(labels, predicted))


LABEL_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": positive_f1,
    "macro_f1": macro_f1,
    "mcc": matthews_correlation,
}


def guess_scores(metric: str, shares: Sequence[float]) -> dict[str, float]:
    """Compute the expected scores of guesses on many rows.

    Args:
        metric: A key of `LABEL_METRICS`.
        shares: Share of the rows of each class.

    Returns:
        `uniform`: score of uniformly random labels. `majority`: score of the best constant label. With F1 of class 1
        that is class 1, which scores more than its share of the rows.
    """
    if metric == "mcc":
        return {"uniform": 0.0, "majority": 0.0}
    if metric == "f1":
        return {"uniform": _guess_f1(shares[1], 0.5), "majority": _guess_f1(shares[1], 1.0)}
    if metric == "macro_f1":
        uniform = [_guess_f1(share, 1 / len(shares)) for share in shares]
        constant = max(_guess_f1(share, 1.0) for share in shares)
        return {"uniform": sum(uniform) / len(shares), "majority": constant / sum(share > 0 for share in shares)}
    return {"uniform": 1 / len(shares), "majority": max(shares)}


def _guess_f1(share: float, guessed: float) -> float:
    """F1 of a class with a share of the rows, if a random fraction of the rows is guessed to be of it."""
    return 2 * share * guessed / (share + guessed)
