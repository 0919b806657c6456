"""The tidy table: one typed row a replicate, the only input of statistics, tables and figures."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from apet.analysis.predictions import Predictions
from apet.config import Margins
from apet.errors import DataError
from apet.provenance import write_bytes, write_text

FORMAT = 1
OUTCOMES = ("ok", "diverged")
LIST = "object"
"""dtype of a column of float32 arrays."""
COORDINATES = ["model", "task", "placement", "budget", "draw", "rerun"]
ORDER = ["family", "non_embedding", "model", "task", "placement", "tunable", "budget", "draw", "rerun"]

METRICS = ("accuracy", "f1", "em", "rouge_l")
"""Every metric a task may ask for; one of them is its `score`."""


@dataclass(frozen=True)
class Column:
    """A column of the tidy table, its dtype in pandas, and the dotted key of `metrics.json` that fills it (empty:
    derived here).

    `empty` says when the key may be null: "never", "diverged" (the replicate has no score), or "always".
    """

    name: str
    dtype: str
    key: str
    meaning: str
    empty: str = "never"


COLUMNS = (
    Column("model", "str", "cell.model", "name of the PLM in the study"),
    Column("family", "str", "plm.family", "architecture of the PLM"),
    Column("parameters", "int64", "plm.parameters", "parameters of the PLM"),
    Column("non_embedding", "int64", "plm.non_embedding", "parameters outside the embeddings: the scale of the PLM"),
    Column("task", "str", "cell.task", "name of the task"),
    Column("metric", "str", "task.metric", "what `score` measures"),
    Column("placement", "str", "cell.placement", "rule that spreads the budget"),
    Column("budget", "str", "cell.budget", "budget as the study writes it"),
    Column("tunable", "int64", "tunable", "tunable parameters, the budget as a number"),
    Column("share", "float64", "", "tunable / parameters"),
    Column("head", "int64", "head.parameters", "parameters of a trained classification head, apart from `tunable`"),
    Column("draw", "int64", "replicate.draw", "draw of the plan: which positions"),
    Column("rerun", "int64", "replicate.rerun", "repetition of one plan: other initialisation and data order"),
    Column("entry", "int64", "replicate.structures.entry", "tunable parameters in scalars of frozen weights"),
    Column("bias", "int64", "replicate.structures.bias", "tunable parameters in output biases"),
    Column("lowrank", "int64", "replicate.structures.lowrank", "tunable parameters in rank-1 components"),
    Column("bottleneck", "int64", "replicate.structures.bottleneck", "tunable parameters in hidden units of adapters"),
    Column("token", "int64", "replicate.structures.token", "tunable parameters in virtual tokens"),
    Column("chance", "float64", "task.chance", "score of a uniform guess, fraction"),
    Column("majority", "float64", "task.majority", "share of the commonest test label (none in generation)", "always"),
    Column("labels", "Int64", "task.labels", "number of labels (none in generation)", "always"),
    Column("n", "int64", "replicate.test.n", "test rows scored"),
    Column("score", "float64", "replicate.test.score", "test score, fraction", "diverged"),
    *(Column(name, "float64", "", f"test {name}, fraction (where the task asks for it)", "always") for name in METRICS),
    Column("test_loss", "float64", "replicate.test.loss", "mean test loss, nats", "always"),
    Column("validation_score", "float64", "replicate.validation.score", "validation score, fraction", "diverged"),
    Column("validation_n", "int64", "replicate.validation.n", "validation rows scored"),
    Column("rate", "float64", "replicate.rate", "learning rate chosen on validation", "always"),
    Column("best_step", "int64", "replicate.best_step", "step of the checkpoint chosen on validation"),
    Column("steps", "int64", "replicate.steps", "steps trained"),
    Column("outcome", "str", "replicate.outcome", "ok, or diverged"),
    Column("seed", "int64", "cell.seed", "seed of the study, of which with the coordinates all others are hashes"),
    Column("content", "str", "plm.content", "digest of the PLM's weights and tokenizer"),
    Column("data", "str", "task.digest", "digest of the prepared task"),
    Column("trainer", "int64", "cell.trainer", "version of the trainer's numerics"),
    Column("plan", "str", "replicate.plan", "digest of the plan"),
    Column("theta", "str", "replicate.theta", "digest of the tuned parameters"),
    Column("cell", "str", "", "folder of the cell, relative to the root of the cells"),
    Column(
        "rows", LIST, "", "score on each test row, in one order for all replicates of a task; their mean is `score`"
    ),
)
SCHEMA: dict[str, str] = {column.name: column.dtype for column in COLUMNS}
FLAT = [column.name for column in COLUMNS if column.dtype != LIST]
"""Columns of the CSV file."""
TYPES = {"str": "text", "int64": "integer", "Int64": "integer", "float64": "number", LIST: "list of float32"}
EMPTY = {"never": "", "diverged": "where the replicate diverged before it had a score", "always": "where there is none"}
ABOUT = ("study", "margins", "missing")
"""Keys of the Parquet file's metadata and of a frame's attrs."""
FRACTIONS = ("score", "validation_score", "chance", "majority")
KINDS = {
    "str": (str, "a string"),
    "int64": (int, "an integer"),
    "Int64": (int, "an integer"),
    "float64": ((int, float), "a number"),
}


def read_records(root: Path, cells: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each cell's path relative to `root` with its `metrics.json`. A missing or unreadable file is a DataError."""
    for cell in cells:
        path = root / cell / "metrics.json"
        try:
            yield cell, json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; the cell has not finished.") from None
        except ValueError as error:
            raise DataError(f"{path}: not a JSON document ({error}).") from None


def tidy(
    records: Iterable[tuple[str | PurePath, Mapping[str, Any]]], predictions: Predictions | None = None
) -> pd.DataFrame:
    """One row a replicate, columns and dtypes of `SCHEMA`, sorted by coordinates whatever the order of the records.

    predictions: where the column `rows` is from; without them its arrays are empty. Raises DataError, naming file and
    key, for a missing key, a wrong type, a score outside [0, 1], or two replicates that share their coordinates, which
    every mean would mix up in silence; and as `Predictions.rows`.
    """
    rows = []
    for cell, metrics in records:
        path = PurePath(cell).as_posix()
        found = list(_rows(path, metrics))
        scores = predictions.rows(path, metrics, found) if predictions else [np.empty(0, np.float32)] * len(found)
        rows += [row | {"rows": values} for row, values in zip(found, scores, strict=True)]
    if not rows:
        raise DataError("no replicate: the study has no finished cell to aggregate.")
    frame = pd.DataFrame(rows, columns=list(SCHEMA)).astype(SCHEMA)
    doubled = frame[frame.duplicated(COORDINATES, keep=False)].sort_values(COORDINATES)
    if len(doubled):
        first = doubled.iloc[0][COORDINATES].to_dict()
        cells = ", ".join(sorted(doubled.cell.unique())[:2])
        raise DataError(f"{cells}: two replicates share the coordinates {first}; a study holds each once.")
    return frame.sort_values(ORDER, ignore_index=True)


class Missing(list):
    """Missing cells in a frame's attrs, which pandas copies deeply at every step: thousands are not copied."""

    def __deepcopy__(self, memo: dict) -> Missing:
        return self


def write_tidy(
    frame: pd.DataFrame,
    folder: Path,
    study: str,
    margins: Margins | None = None,
    missing: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write `tidy.parquet`, `tidy.csv` without the column `rows`, and `tidy_columns.csv`, what each column means.

    study: its id; missing: model, task, placement, budget and reason of the study's cells that are not in the table.
    With the margins they stand in the Parquet file's metadata. Equal tables give equal bytes.
    """
    whole = {"margins": asdict(margins or Margins()), "missing": list(missing)}
    about = {"study": study, **{key: json.dumps(value) for key, value in whole.items()}}
    buffer = io.BytesIO()
    pq.write_table(_table(frame, about), buffer, compression="zstd")
    write_bytes(folder / "tidy.parquet", buffer.getvalue())
    write_text(folder / "tidy.csv", frame[FLAT].to_csv(index=False, lineterminator="\n"))
    columns = [(c.name, TYPES[c.dtype], EMPTY[c.empty], c.meaning) for c in COLUMNS]
    described = pd.DataFrame(columns, columns=["column", "type", "empty", "meaning"])
    write_text(folder / "tidy_columns.csv", described.to_csv(index=False, lineterminator="\n"))


def _table(frame: pd.DataFrame, about: Mapping[str, str]) -> pa.Table:
    """The frame for Parquet: each column with its meaning, and what the whole is about."""
    flat = pa.Table.from_pandas(frame[FLAT], preserve_index=False)
    ends = np.cumsum([0, *frame.rows.map(len)])
    values = np.concatenate([*frame.rows]).astype(np.float32, copy=False)
    lists = pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), pa.array(values))
    table = flat.append_column("rows", lists).select(list(SCHEMA))
    fields = [table.field(c.name).with_metadata({"meaning": c.meaning}) for c in COLUMNS]
    return table.cast(pa.schema(fields, {**flat.schema.metadata, **about}))


def read_tidy(path: Path) -> pd.DataFrame:
    """A tidy table from its parquet file. `attrs`: "study", its id; "margins", dict; "missing", a list of the cells
    that are not in it, dicts of model, task, placement, budget and reason. DataError if it is not a tidy table.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a readable parquet file ({error}).") from None
    about = table.schema.metadata or {}
    odd = sorted({*table.column_names} ^ {*SCHEMA}) or [key for key in ABOUT if key.encode() not in about]
    if odd or table.column_names != list(SCHEMA):
        raise DataError(f"{path}: not a tidy table; missing or unknown: {', '.join(odd) or 'order of columns'}.")
    frame = table.replace_schema_metadata(None).to_pandas().astype(SCHEMA)
    study, margins, missing = (about[key.encode()].decode() for key in ABOUT)
    frame.attrs = {"study": study, "margins": json.loads(margins), "missing": Missing(json.loads(missing))}
    return frame


def _rows(cell: str, metrics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    where = f"{cell}/metrics.json"
    if not isinstance(metrics, Mapping) or metrics.get("format") != FORMAT:
        raise DataError(f"{where}: key 'format' must be {FORMAT}.")
    replicates = metrics.get("replicates")
    if not isinstance(replicates, list) or not replicates:
        raise DataError(f"{where}: key 'replicates' must be a list of at least one replicate.")
    for index, replicate in enumerate(replicates):
        record = {**metrics, "replicate": replicate}
        row = {c.name: _value(record, c, f"{where}: replicate {index}") for c in COLUMNS if c.key}
        if row["parameters"] <= 0:
            raise DataError(f"{where}: key 'plm.parameters' is {row['parameters']}; allowed: above 0.")
        others = _metrics(replicate, f"{where}: replicate {index}")
        yield {**row, **others, "share": row["tunable"] / row["parameters"], "cell": cell}


def _metrics(replicate: Mapping[str, Any], where: str) -> dict[str, float | None]:
    """Every metric of the test split by name, None where the task does not ask for it."""
    found = replicate["test"].get("metrics", {})
    for name, value in found.items():
        if name not in METRICS or not isinstance(value, float | int) or not 0 <= value <= 1:
            raise DataError(
                f"{where}: test.metrics has {name!r}: {value!r}; allowed: fractions of {', '.join(METRICS)}."
            )
    return {name: found.get(name) for name in METRICS}


def _value(record: Mapping[str, Any], column: Column, where: str) -> Any:
    """The value at a dotted key, checked against the column's dtype and range."""
    value: Any = record
    for part in column.key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise DataError(f"{where}: key {column.key!r} is missing.")
        value = value[part]
    if value is None and (column.empty == "always" or column.empty == _outcome(record)):
        return None
    kind, wanted = KINDS[column.dtype]
    if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, float) and math.isnan(value)):
        raise DataError(f"{where}: key {column.key!r} is {value!r}; allowed: {wanted}.")
    if column.name in FRACTIONS and not 0 <= value <= 1:
        raise DataError(f"{where}: key {column.key!r} is {value!r}; allowed: a fraction from 0 to 1.")
    if column.name == "outcome" and value not in OUTCOMES:
        raise DataError(f"{where}: key {column.key!r} is {value!r}; allowed: {', '.join(OUTCOMES)}.")
    return value


def _outcome(record: Mapping[str, Any]) -> Any:
    replicate = record["replicate"]
    return replicate.get("outcome") if isinstance(replicate, Mapping) else None
