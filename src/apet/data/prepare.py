"""A task's prepared folder: three parquet files and `task.json`, the same bytes on every run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from apet.data.readers import Row, read_source
from apet.data.splits import SIDES, Example, Splits, overlaps, split_rows
from apet.data.tables import read_record, read_table, write_table
from apet.data.tasks import Task
from apet.data.wheels import find_wheel, open_wheel
from apet.errors import DataError, ParamsError, unknown
from apet.provenance import digest, file_digest, seed_for, whole_folder, write_json

DATA_VERSION = 1  # raised when the same inputs give other rows
SPLITS = ("train", "validation", "test")
SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("label", pa.int64())])

Rows = dict[str, int | None]


def task_digest(task: Task, rows: Rows, seed: int) -> str:
    """Digest (64 hex digits) that names the prepared folder; nothing is fetched or read for it."""
    return digest(["task", DATA_VERSION, task.definition(), _caps(rows), seed])


def task_splits(task: Task, wheels_folder: Path) -> Splits:
    """All examples of a task by side, uncapped. DataError if its wheel, a row or a label is not as it should be."""
    with open_wheel(task.source["wheel"], wheels_folder) as archive:
        return split_rows(_known_labels(read_source(task.source, archive), task))


def prepare_task(task: Task, wheels_folder: Path, out_folder: Path, rows: Rows, seed: int) -> None:
    """Write `out_folder` whole: {train, validation, test}.parquet (id, text, label) and task.json.

    `rows` caps each split (None: all). Rows stand in an order hashed from seed and text and a cap takes the first, so
    a smaller subset is the beginning of a larger one. DataError as in `task_splits`, or if a split has no row.
    """
    caps = _caps(rows)
    splits = task_splits(task, wheels_folder)
    chosen = {}
    for split in SPLITS:
        chosen[split] = in_hash_order(splits.sides[split], seed)[: caps[split]]
        if not chosen[split]:
            raise DataError(f"task {task.name}: split {split} has no rows.")
    with whole_folder(out_folder) as folder:
        for split, examples in chosen.items():
            write_table(folder / f"{split}.parquet", _columns(examples, list(task.labels)), SCHEMA)
        write_json(folder / "task.json", _record(task, splits, chosen, caps, seed, folder))


def read_split(folder: Path, split: str) -> pd.DataFrame:
    """Columns id (str), text (str), label (int64) of one prepared split. DataError if it is absent or another table."""
    return read_table(folder / f"{split}.parquet", SCHEMA)


def read_task(folder: Path) -> dict[str, Any]:
    """The record `task.json` of a prepared folder. DataError if it is absent or no JSON."""
    return read_record(folder / "task.json")


def text_id(normal: str) -> str:
    """Id of a text (16 hex digits): the same for all texts with one normalised form, in every task and corpus."""
    return digest(normal)[:16]


def in_hash_order(examples: Sequence[Example], seed: int) -> list[Example]:
    """The examples in an order that depends on seed and texts alone; more examples never change the order of these."""
    return sorted(examples, key=lambda example: seed_for("order", seed, example.normal))


def _known_labels(rows: Iterator[Row], task: Task) -> Iterator[Row]:
    for row in rows:
        if row.label not in task.labels:
            raise DataError(unknown("label", row.label, task.labels, f"task {task.name}: {row.where}"))
        yield row


def _caps(rows: Rows) -> Rows:
    for split, cap in rows.items():
        if split not in SPLITS:
            raise ParamsError(unknown("split", split, SPLITS, "rows"))
        if cap is not None and (type(cap) is not int or cap < 1):
            raise ParamsError(f"rows: {split} is {cap!r}; it must be a whole number from 1, or null for all rows.")
    return {split: rows.get(split) for split in SPLITS}


def _columns(examples: list[Example], labels: list[str]) -> dict[str, list]:
    return {
        "id": [text_id(example.normal) for example in examples],
        "text": [example.text for example in examples],
        "label": [labels.index(example.label) for example in examples],
    }


def _record(
    task: Task, splits: Splits, chosen: dict[str, list[Example]], caps: Rows, seed: int, folder: Path
) -> dict[str, Any]:
    counts = {}
    for split, examples in chosen.items():
        found = Counter(example.label for example in examples)
        counts[split] = {label: found[label] for label in task.labels}
    return {
        "task": task.name,
        "version": task.version,
        "type": task.type,
        "prompt": task.prompt,
        "labels": task.labels,
        "metric": task.metric,
        "length": task.length,
        "task_digest": task_digest(task, caps, seed),
        "seed": seed,
        "rows": {split: len(examples) for split, examples in chosen.items()},
        "rows_uncapped": {split: len(splits.sides[split]) for split in SPLITS},
        "label_counts": counts,
        "chance": {"uniform": 1 / len(task.labels), "majority": max(counts["test"].values()) / len(chosen["test"])},
        "dropped": splits.dropped,
        "overlap": overlaps({side: splits.sides[side] for side in SIDES}),
        "source": asdict(find_wheel(task.source["wheel"])),
        "digest": digest({split: file_digest(folder / f"{split}.parquet") for split in SPLITS}),
    }
