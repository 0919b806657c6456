"""Per-row test scores of a cell's replicates, read from its predictions file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from apet.core.hashing import bytes_digest
from apet.errors import CorruptError, DataError, unknown_name

PREDICTIONS_FILE = "predictions.parquet"
CLASSIFICATION_COLUMNS = ("label", "prediction", "correct")
TOLERANCE = 1e-6
"""Allowed difference between the mean of the row scores and the recorded score (order of summation)."""


class Predictions:
    """Predictions of the cells below one folder. All cells of a task must have the same test rows."""

    def __init__(self, root: Path):
        self.root = root
        self._row_ids: dict[str, tuple[Path, pa.Array]] = {}

    def row_scores(
        self, cell: str, record: Mapping[str, Any], replicates: Sequence[Mapping[str, Any]]
    ) -> list[np.ndarray]:
        """Return the score of each replicate on each test row.

        Scores that are no means over rows (F1 and Matthews correlation of labels) give pseudo-values, which may leave
        the metric's range: see `f1_values`, `macro_f1_values` and `mcc_values`.

        Args:
            cell: path of the cell, relative to the folder of all cells.
            record: the cell's record.
            replicates: the cell's rows of the tidy table.

        Returns:
            A float32 array of `n_test` values per replicate, whose mean is the replicate's score; an empty array if
            the replicate has no score.

        Raises:
            DataError: the file is missing, or has other test rows than another cell of the task.
            CorruptError: the file does not match the record.
        """
        path = self.root / cell / PREDICTIONS_FILE
        table = _read(path, record.get("files"))
        n, task = replicates[0]["n_test"], replicates[0]["task"]
        _check_replicates(path, table, replicates)
        self._check_row_ids(path, table["id"].combine_chunks(), task, n)
        values = _values(path, table, replicates[0]["metric"], (len(replicates), n))
        for replicate, mean in zip(replicates, values.mean(axis=1), strict=True):
            score = replicate["test_score"]
            if score is not None and not abs(mean - score) <= TOLERANCE:
                name = f"plan {replicate['plan_index']}, seed {replicate['seed_index']}"
                raise _corrupt(path, f"rows of {name} score {mean:.6f}, but the record says {score:.6f}")
        scores = values.astype(np.float32)
        return [scores[i] if r["test_score"] is not None else scores[i, :0] for i, r in enumerate(replicates)]

    def _check_row_ids(self, path: Path, ids: pa.Array, task: str, n: int) -> None:
        first_path, expected = self._row_ids.setdefault(task, (path, ids[:n]))
        if any(not ids[start : start + n].equals(expected) for start in range(0, len(ids), n)):
            raise DataError(
                f"{path}: expected the same test rows of {task}, in the same order, as in {first_path}. Delete the "
                "cells of one of them and train again."
            )


def f1_values(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Compute per-row pseudo-values of F1 = 2 TP/(P + L).

    Taylor linearisation of a ratio of means (Woodruff 1971; Särndal, Swensson and Wretman 1992, section 5.5): F1 plus
    the row's part (2 tp − F1 (p + l)) over the mean of p + l.

    Args:
        labels: booleans (replicates, n).
        predicted: booleans (replicates, n).

    Returns:
        float64 (replicates, n), whose mean over rows is F1 exactly; 0 if no row is positive.
    """
    total = predicted.astype(float) + labels
    share = total.mean(axis=1, keepdims=True)
    both = 2.0 * (predicted & labels)
    f1 = np.divide(both.mean(axis=1, keepdims=True), share, out=np.zeros_like(share), where=share > 0)
    return f1 + np.divide(both - f1 * total, share, out=np.zeros_like(total), where=share > 0)


def macro_f1_values(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Compute per-row pseudo-values of macro-F1: the mean of `f1_values` over the classes of a replicate.

    Args:
        labels: label numbers (replicates, n).
        predicted: label numbers (replicates, n).

    Returns:
        float64 (replicates, n), whose mean over rows is macro-F1 exactly.
    """
    total, count = np.zeros(labels.shape), np.zeros((len(labels), 1))
    for label in np.union1d(labels, predicted):
        total += f1_values(labels == label, predicted == label)
        count += ((labels == label) | (predicted == label)).any(axis=1, keepdims=True)
    return total / count


def mcc_values(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Compute per-row pseudo-values of the Matthews correlation, C/√(P T).

    C is the covariance of the indicators of predicted and true classes, summed over the classes; P and T are the sums
    of their variances (Gorodkin 2004). Taylor linearisation as in `f1_values`: with the row's parts c, p and t of the
    three, the correlation plus (c − C)/√(P T) − correlation/2 × ((p − P)/P + (t − T)/T).

    Args:
        labels: label numbers (replicates, n).
        predicted: label numbers (replicates, n).

    Returns:
        float64 (replicates, n), whose mean over rows is the correlation exactly; 0 if P or T is 0.
    """
    shape = labels.shape
    both, of_predicted, of_labels = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for label in np.union1d(labels, predicted):
        x, y = ((values == label).astype(float) for values in (predicted, labels))
        x -= x.mean(axis=1, keepdims=True)
        y -= y.mean(axis=1, keepdims=True)
        both += x * y
        of_predicted += x**2
        of_labels += y**2
    covariance, p, t = (part.mean(axis=1, keepdims=True) for part in (both, of_predicted, of_labels))
    defined = (np.ptp(labels, axis=1, keepdims=True) > 0) & (np.ptp(predicted, axis=1, keepdims=True) > 0)
    p, t = np.where(defined, p, 1.0), np.where(defined, t, 1.0)
    root = np.sqrt(p * t)
    values = both / root - covariance / root * ((of_predicted / p + of_labels / t) / 2 - 1)
    return np.where(defined, values, 0.0)


PSEUDO_VALUES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "f1": lambda labels, predicted: f1_values(labels == 1, predicted == 1),
    "macro_f1": macro_f1_values,
    "mcc": mcc_values,
}
"""Metric that is no mean over rows -> function from labels and predictions (replicates, n) to pseudo-values."""


def _read(path: Path, files: Any) -> pa.Table:
    """Read a cell's predictions after checking the digest in its record."""
    digest = files.get(PREDICTIONS_FILE) if isinstance(files, Mapping) else None
    if digest is None:
        raise DataError(f"{path.with_name('metrics.json')}: files: missing the digest of {PREDICTIONS_FILE}.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot read the file ({error.strerror}). Run `dvc pull` if it is recorded; else delete "
            f"{path.parent} and train again."
        ) from None
    if bytes_digest(content) != digest:
        raise _corrupt(path, "its digest differs from the one in metrics.json")
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        score_columns = ("score",) if "score" in file.schema.names else CLASSIFICATION_COLUMNS
        columns = {"plan_index", "seed_index", "id", *score_columns}  # Generated answers are long and not needed.
        return file.read([name for name in file.schema.names if name in columns], use_threads=False)
    except pa.ArrowException as error:
        raise _corrupt(path, f"not a readable Parquet file ({error})") from None


def _check_replicates(path: Path, table: pa.Table, replicates: Sequence[Mapping[str, Any]]) -> None:
    """Check that the file has the record's replicates one after another, n rows each."""
    keys = ("plan_index", "seed_index")
    indices = np.array([table[key].to_numpy() for key in keys])
    expected = np.array([[replicate[key] for replicate in replicates] for key in keys])
    counts = {replicate["n_test"] for replicate in replicates}
    if len(counts) != 1 or min(counts) < 1 or not np.array_equal(indices, np.repeat(expected, min(counts), axis=1)):
        raise _corrupt(path, "its rows differ from the replicates in metrics.json")


def _values(path: Path, table: pa.Table, metric: str, shape: tuple[int, int]) -> np.ndarray:
    """Return row scores, or pseudo-values if rows have no score: float64 of a shape (replicates, n)."""
    if "score" in table.column_names:
        return table["score"].to_numpy().reshape(shape)
    if metric == "accuracy":
        return table["correct"].to_numpy().astype(float).reshape(shape)
    if metric not in PSEUDO_VALUES:
        raise DataError(unknown_name("metric of labels", metric, ("accuracy", *PSEUDO_VALUES), str(path)))
    labels, predicted = (table[name].to_numpy().reshape(shape) for name in ("label", "prediction"))
    return PSEUDO_VALUES[metric](labels, predicted)


def _corrupt(path: Path, problem: str) -> CorruptError:
    return CorruptError(f"{path}: corrupt: {problem}. Delete {path.parent} and train again.")
