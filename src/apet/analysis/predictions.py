"""What a cell's replicates score on each test row, from the predictions that stand beside its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from apet.core.hashing import bytes_digest
from apet.errors import CorruptError, DataError

FILE = "predictions.parquet"
TOLERANCE = 1e-6
"""By which the mean of the rows' scores may differ from the recorded score: sums in another order."""


class Predictions:
    """The predictions of cells below one root. It remembers each task's test rows, for all cells must have the same."""

    def __init__(self, root: Path):
        self.root = root
        self._ids: dict[str, tuple[Path, pa.Array]] = {}

    def rows(self, cell: str, metrics: Mapping[str, Any], replicates: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
        """Score of each replicate on each test row, float32 arrays of n fractions whose mean is the replicate's score.

        Of a score that is no mean over rows (F1 of labels) pseudo-values, see `f1_values`; they may leave [0, 1]. Empty
        for a replicate without a score. metrics: the cell's record; replicates: its rows of the tidy table. Raises
        DataError for a file that is not there and for other test rows than another cell of the task has, CorruptError
        for one that is not what the record says.
        """
        path = self.root / cell / FILE
        table = _read(path, metrics.get("files"))
        n, task = replicates[0]["n"], replicates[0]["task"]
        _check_replicates(path, table, replicates)
        self._check_ids(path, table["id"].combine_chunks(), task, n)
        values = _values(path, table, replicates[0]["metric"], (len(replicates), n))
        for replicate, mean in zip(replicates, values.mean(axis=1), strict=True):
            if replicate["score"] is not None and not abs(mean - replicate["score"]) <= TOLERANCE:
                named = f"draw {replicate['draw']}, rerun {replicate['rerun']}"
                raise _corrupt(path, f"the rows of {named} score {mean:.6f}, its record says {replicate['score']:.6f}")
        found = values.astype(np.float32)
        return [found[i] if r["score"] is not None else found[i, :0] for i, r in enumerate(replicates)]

    def _check_ids(self, path: Path, ids: pa.Array, task: str, n: int) -> None:
        first, known = self._ids.setdefault(task, (path, ids[:n]))
        if any(not ids[start : start + n].equals(known) for start in range(0, len(ids), n)):
            raise DataError(
                f"{path}: other test rows of {task}, or in another order, than in {first}; scores are compared row by "
                "row. Delete the cells of one of them and train again."
            )


def f1_values(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Pseudo-values of F1 = 2 TP/(P + L): labels, predicted (replicates, n) booleans -> float64 of the same shape.

    Taylor linearisation of a ratio of means (Woodruff 1971; Särndal, Swensson and Wretman 1992, section 5.5): F1 plus
    the row's part (2 tp − F1 (p + l)) over the mean of p + l. Their mean is F1 exactly; 0 where no row is positive.
    """
    total = predicted.astype(float) + labels
    share = total.mean(axis=1, keepdims=True)
    both = 2.0 * (predicted & labels)
    f1 = np.divide(both.mean(axis=1, keepdims=True), share, out=np.zeros_like(share), where=share > 0)
    return f1 + np.divide(both - f1 * total, share, out=np.zeros_like(total), where=share > 0)


def _read(path: Path, files: Any) -> pa.Table:
    """The table of a cell's predictions, after its digest."""
    digest = files.get(FILE) if isinstance(files, Mapping) else None
    if digest is None:
        raise DataError(f"{path.with_name('metrics.json')}: key 'files' must name the digest of {FILE}.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}). `dvc pull` brings it where it is recorded; else delete "
            f"{path.parent} to train again."
        ) from None
    if bytes_digest(content) != digest:
        raise _corrupt(path, "not the bytes that metrics.json names")
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        # Written answers are long, and their scores suffice.
        wanted = {"draw", "rerun", "id", *(("score",) if "score" in file.schema.names else LABELS)}
        return file.read([name for name in file.schema.names if name in wanted], use_threads=False)
    except pa.ArrowException as error:
        raise _corrupt(path, f"not a readable parquet file ({error})") from None


LABELS = ("label", "prediction", "correct")
"""Columns of a classification."""


def _check_replicates(path: Path, table: pa.Table, replicates: Sequence[Mapping[str, Any]]) -> None:
    """The file has the record's replicates, one after another, n rows each."""
    found = np.array([table[name].to_numpy() for name in ("draw", "rerun")])
    expected = np.array([[r["draw"] for r in replicates], [r["rerun"] for r in replicates]])
    counts = {replicate["n"] for replicate in replicates}
    if len(counts) != 1 or min(counts) < 1 or not np.array_equal(found, np.repeat(expected, min(counts), axis=1)):
        raise _corrupt(path, "not the rows of the replicates that metrics.json has, one after another")


def _values(path: Path, table: pa.Table, metric: str, shape: tuple[int, int]) -> np.ndarray:
    """Scores of all rows, or pseudo-values where rows have none: float64 of a shape (replicates, n)."""
    if "score" in table.column_names:
        return table["score"].to_numpy().reshape(shape)
    if metric == "accuracy":
        return table["correct"].to_numpy().astype(float).reshape(shape)
    if metric == "f1":
        labels, predicted = (table[name].to_numpy().reshape(shape) == 1 for name in ("label", "prediction"))
        return f1_values(labels, predicted)
    raise DataError(f"{path}: no scores of rows for the metric {metric!r}. Allowed for labels: accuracy, f1.")


def _corrupt(path: Path, what: str) -> CorruptError:
    return CorruptError(f"{path}: {what}. Delete {path.parent} to train again.")
