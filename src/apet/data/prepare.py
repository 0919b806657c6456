"""A task's prepared folder: three parquet files and `task.json`, the same bytes on every run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from apet.core.atomic import atomic_dir
from apet.core.hashing import digest, file_digest, seed_for
from apet.core.records import check_files, read_json_record, write_json_record
from apet.data.decontamination import NgramIndex
from apet.data.prepared_files import read_table, write_batches
from apet.data.schema import SIDES, Task
from apet.data.source_selection import choose_source, sisters_of
from apet.data.sources import Source
from apet.data.splits import Example, Splits, drop_train, normalise, overlaps, split_rows
from apet.data.text_metrics import shuffled_scores
from apet.errors import ConfigError, DataError, unknown_name

DATA_VERSION = 2  # raised when the same inputs give other rows
SPLITS = ("train", "validation", "test")
RECORD = "task.json"
ROWS = 1000  # in memory at once while a table is written
ANSWERS = {
    "classification": pa.field("label", pa.int64()),
    "generation": pa.field("targets", pa.list_(pa.field("element", pa.string()))),  # as parquet names it
}

Rows = Mapping[str, int | None]


def task_digest(task: Task, rows: Rows, seed: int, source: Source | None = None) -> str:
    """Digest (64 hex digits) that names the prepared folder. Nothing is fetched for it; a local source's files are
    read. `source` as `choose_source` gives it; None: the task's first own.
    """
    source = source or choose_source(task)
    sisters = [[t.name, t.text_columns, t.group_by, t.splits, s.identity(t)] for t, s in sisters_of(task, source)]
    found = [task.definition(), source.identity(task), sisters, _caps(rows), seed]
    return digest(["task", DATA_VERSION, *found])


def task_splits(task: Task, wheels_folder: Path, source: Source | None = None) -> Splits:
    """All examples of a task by side, uncapped, without train rows that touch (see `NgramIndex`) what a sister holds out.

    DataError if its source, a row or a label is not as it should be.
    """
    source = source or choose_source(task)
    splits = _own_splits(task, wheels_folder, source)
    held_out = [text for t, s in sisters_of(task, source) for text in _held_out(_own_splits(t, wheels_folder, s))]
    guard = NgramIndex(held_out)
    whole = set(held_out)

    def touches(example: Example) -> bool:
        return any((n := normalise(text)) in whole or guard.overlaps(n) for text in example.texts)

    return drop_train(splits, "held_out_by_a_sister", touches if held_out else lambda example: False)


def prepare_task(
    task: Task, wheels_folder: Path, out_folder: Path, rows: Rows, seed: int, source: Source | None = None
) -> None:
    """Write `out_folder` whole: {train, validation, test}.parquet and task.json.

    Columns: id, one a field, and label (int64) or targets (list of strings). `rows` caps each split (None: all). Rows
    stand in an order hashed from seed and text and a cap takes the first, so a smaller subset is the beginning of a
    larger one. DataError as in `task_splits`, or if a split has no row.
    """
    caps = _caps(rows)
    source = source or choose_source(task)
    splits = task_splits(task, wheels_folder, source)
    chosen = {}
    for split in SPLITS:
        chosen[split] = in_hash_order(splits.sides[split], seed)[: caps[split]]
        if not chosen[split]:
            raise DataError(f"task {task.name}: split {split} has no rows.")
    with atomic_dir(out_folder) as folder:
        for split, examples in chosen.items():
            write_batches(folder / _file(split), _batches(examples, task), _schema(task.type, task.text_columns))
        names = {"task_digest": task_digest(task, caps, seed, source), "seed": seed}
        files = {name: file_digest(folder / name) for name in map(_file, SPLITS)}
        found = {**_found(task, splits, chosen), "source": source.identity(task), "files": files}
        write_json_record(folder / RECORD, {**_said(task), **names, **found})


def read_split(folder: Path, split: str) -> pd.DataFrame:
    """Columns id (str), one a field (str), label (int64) or targets (arrays of str) of one prepared split.

    DataError if it is absent or another table than its task.json says, CorruptError if it has other bytes.
    """
    record = read_task(folder)
    try:
        schema, files = _schema(record["type"], record["text_columns"]), {_file(split): record["files"][_file(split)]}
    except (KeyError, TypeError):
        raise DataError(f"{folder / RECORD}: is not the record of a prepared task: no type or fields.") from None
    check_files(folder, files, RECORD, _remedy(folder))
    return read_table(folder / _file(split), schema)


def read_task(folder: Path, named: str | None = None) -> dict[str, Any]:
    """The record `task.json` of a prepared folder. named: the `task_digest` that it must have, where that is known.

    DataError if it is absent or prepared of something else; CorruptError if it is damaged.
    """
    record = read_json_record(folder / RECORD, _remedy(folder))
    if named not in (None, record.get("task_digest")):
        raise DataError(
            f"{folder / RECORD}: of {record.get('task')!r}, prepared of another task, source, rows or seed than the "
            f"study has. {_remedy(folder)}"
        )
    return record


def held_out_texts(folder: Path) -> Iterator[str]:
    """Normalised texts of all fields and references of a prepared folder's validation and test rows."""
    for split in ("validation", "test"):
        table = read_split(folder, split)
        for column in [*read_task(folder)["text_columns"], *(["targets"] if "targets" in table else [])]:
            for cell in table[column]:
                yield from (normalise(text) for text in ([cell] if isinstance(cell, str) else cell))


def _remedy(folder: Path) -> str:
    return f"Delete {folder} and prepare the task again (`apet prepare`, or Snakemake): its rows are the same."


def _file(split: str) -> str:
    return f"{split}.parquet"


def in_hash_order(examples: Sequence[Example], seed: int) -> list[Example]:
    """The examples in an order that depends on seed and texts alone; more examples never change the order of these."""
    return sorted(examples, key=lambda example: seed_for("order", seed, example.id))


def _own_splits(task: Task, wheels_folder: Path, source: Source) -> Splits:
    return split_rows(source.rows(task, wheels_folder), task.group_numbers)


def _held_out(splits: Splits) -> Iterator[str]:
    for side in ("validation", "test"):
        yield from (normalise(text) for example in splits.sides[side] for text in example.texts)


def _caps(rows: Rows) -> dict[str, int | None]:
    for split, cap in rows.items():
        if split not in SPLITS:
            raise ConfigError(unknown_name("split", split, SPLITS, "rows"))
        if cap is not None and (type(cap) is not int or cap < 1):
            raise ConfigError(f"rows: {split} is {cap!r}; it must be a whole number from 1, or null for all rows.")
    return {split: rows.get(split) for split in SPLITS}


def _schema(kind: str, fields: Sequence[str]) -> pa.Schema:
    return pa.schema([("id", pa.string()), *((name, pa.string()) for name in fields), ANSWERS[kind]])


def _batches(examples: list[Example], task: Task) -> Iterator[dict[str, list]]:
    """Columns of ROWS examples at a time."""
    labels: dict[str | None, int] = {name: number for number, name in enumerate(task.verbalizer)}
    answer = ANSWERS[task.type].name
    for start in range(0, len(examples), ROWS):
        part = examples[start : start + ROWS]
        texts = zip(*(example.texts for example in part), strict=True)
        yield {
            "id": [example.id for example in part],
            **dict(zip(task.text_columns, map(list, texts), strict=True)),
            answer: [labels[e.label] if answer == "label" else list(e.references) for e in part],
        }


def _said(task: Task) -> dict[str, Any]:
    """What the task's YAML says, as training and evaluation need it."""
    keys = (
        "version",
        "type",
        "text_columns",
        "prompt",
        "prompts",
        "verbalizer",
        "metric",
        "metrics",
        "max_length",
        "max_new_tokens",
    )
    said = {key: getattr(task, key) for key in keys}
    return {"task": task.name, **{key: list(v) if isinstance(v, tuple) else v for key, v in said.items()}}


def _found(task: Task, splits: Splits, chosen: Mapping[str, list[Example]]) -> dict[str, Any]:
    """What the rows turned out to be."""
    counts = {}
    for split, examples in chosen.items():
        found = Counter(example.label for example in examples)
        counts[split] = {label: found[label] for label in task.verbalizer}
    return {
        "rows": {split: len(examples) for split, examples in chosen.items()},
        "rows_uncapped": {split: len(splits.sides[split]) for split in SPLITS},
        "origin": {split: splits.origin[split] for split in SPLITS},
        "label_counts": counts,
        "chance": _chance(task, counts["test"], chosen["test"]),
        "dropped": splits.dropped,
        "overlap": overlaps({side: splits.sides[side] for side in SIDES}),
    }


def _chance(task: Task, counts: Mapping[str, int], test: Sequence[Example]) -> dict[str, Any]:
    """`level`: what a score of the reported metric must exceed. Classes: the larger of two guesses. Generation: the
    scores of test's references shuffled against its inputs, a metric each.
    """
    if task.type == "classification":
        guesses = _guesses(task.metric, [count / len(test) for count in counts.values()])
        return {"level": max(guesses.values()), **guesses}
    references = [example.references for example in test]
    shuffled = {metric: float(shuffled_scores(metric, references).mean()) for metric in task.metrics}
    return {"level": shuffled[task.metric], "shuffled": shuffled}


def _guesses(metric: str, shares: Sequence[float]) -> dict[str, float]:
    """Scores of who draws the label, and of who always gives the one that scores best. The F1 is class 1's alone, so a
    constant answer scores more than its share of the rows.
    """
    if metric == "f1":
        return {"uniform": 2 * shares[1] / (2 * shares[1] + 1), "majority": 2 * shares[1] / (shares[1] + 1)}
    return {"uniform": 1 / len(shares), "majority": max(shares)}
