"""Prepared folder of a task: three parquet files and `task.json`, the same bytes on every run."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from apet.core.atomic import atomic_dir
from apet.core.hashing import digest, file_digest, seed_for
from apet.core.records import write_json_record
from apet.data.decontamination import NgramIndex
from apet.data.label_metrics import guess_scores
from apet.data.prepared_files import ANSWERS, RECORD, split_file, split_schema, write_batches
from apet.data.rows import read_rows
from apet.data.schema import SPLITS
from apet.data.source_selection import choose_source, overlapping_sources
from apet.data.sources import Source
from apet.data.splits import EDGE_CHARS, SPLIT_OFF, Example, Splits, drop_train, normalise, overlaps, split_rows
from apet.data.task_config import Task
from apet.data.text_metrics import shuffled_scores
from apet.errors import ConfigError, DataError, error_context, truncated_repr, unknown_name

DATA_VERSION = 3  # raised when the same inputs give other rows
MAX_SHARE = 0.1  # of an official split that near-duplicates may take without an option of the task file
BATCH_ROWS = 1000  # in memory at once while a table is written

Rows = Mapping[str, int | None]


def task_digest(task: Task, rows: Rows, seed: int, source: Source | None = None) -> str:
    """Digest of everything that determines a prepared folder.

    Nothing is downloaded for it; the files of a local source are read.

    Args:
        task: The task.
        rows: Split -> maximum number of rows. None: all rows.
        seed: Seed of the order of the rows.
        source: From `choose_source`. None: the task's first source.

    Returns:
        64 hex digits, which name the folder.
    """
    source = source or choose_source(task)
    overlapping = [
        [other.name, other.text_columns, other.group_by, other.splits, location.identity(other.splits)]
        for other, location in overlapping_sources(task, source)
    ]
    identity = source.identity(task.splits)
    return digest(["task", DATA_VERSION, task.definition(), identity, overlapping, _limits(rows), seed])


def task_splits(task: Task, wheels_folder: Path, source: Source | None = None) -> Splits:
    """Read all examples of a task by split, without train rows that overlap held-out rows of overlapping tasks.

    Args:
        task: The task.
        wheels_folder: Folder of downloaded wheels.
        source: From `choose_source`. None: the task's first source.

    Returns:
        The examples of each split, in no meaningful order.

    Raises:
        DataError: If the source cannot be read, or if a row or label is wrong.
    """
    source = source or choose_source(task)
    splits = _own_splits(task, wheels_folder, source)
    held_out = {
        text
        for other, location in overlapping_sources(task, source)
        for text in _held_out(_own_splits(other, wheels_folder, location))
    }
    index = NgramIndex(held_out)

    def is_held_out(example: Example) -> bool:
        return any((text := normalise(raw)) in held_out or index.overlaps(text) for raw in example.texts)

    return drop_train(splits, "held_out_by_overlapping_task", is_held_out if held_out else lambda example: False)


def prepare_task(
    task: Task, wheels_folder: Path, out_folder: Path, rows: Rows, seed: int, source: Source | None = None
) -> dict[str, Any]:
    """Write {train, validation, test}.parquet and task.json.

    Columns: id, the text columns, and label (int64) or targets (list of strings). The order of the rows is a hash of
    seed and texts, and a limit keeps the first ones, so a smaller subset is the beginning of a larger one.

    Args:
        task: The task.
        wheels_folder: Folder of downloaded wheels.
        out_folder: The prepared folder, written atomically.
        rows: Split -> maximum number of rows. None: all rows.
        seed: Seed of the order of the rows.
        source: From `choose_source`. None: the task's first source.

    Returns:
        The record that is written to task.json.

    Raises:
        ConfigError: For an unknown split or a wrong limit.
        DataError: If the source cannot be read, if a row or label is wrong, or if a split has no rows.
    """
    limits = _limits(rows)
    source = source or choose_source(task)
    splits = task_splits(task, wheels_folder, source)
    with error_context(f"task {task.name}"):
        for line in source.notes(task.splits):
            print(f"task {task.name}: {line}", file=sys.stderr, flush=True)
        if task.near_duplicates is None:
            _check_official(splits)
        chosen = {split: in_hash_order(splits.splits[split], seed)[: limits[split]] for split in SPLITS}
        for split in SPLITS:
            if not chosen[split]:
                raise DataError("\n".join([_empty_split(task, splits, split), *_drops(splits)]))
    with atomic_dir(out_folder) as folder:
        for split, examples in chosen.items():
            write_batches(
                folder / split_file(split), _batches(examples, task), split_schema(task.type, task.text_columns)
            )
        record = {
            **_task_keys(task),
            "task_digest": task_digest(task, limits, seed, source),
            "seed": seed,
            **_statistics(task, splits, chosen),
            "source": source.identity(task.splits),
            "files": {name: file_digest(folder / name) for name in map(split_file, SPLITS)},
        }
        return write_json_record(folder / RECORD, record)


def in_hash_order(examples: Sequence[Example], seed: int) -> list[Example]:
    """Sort examples by a hash of seed and texts. More examples never change the order of these."""
    return sorted(examples, key=lambda example: seed_for("order", seed, example.id))


def _own_splits(task: Task, wheels_folder: Path, source: Source) -> Splits:
    return split_rows(read_rows(task, source, wheels_folder), task.group_indices, task.near_duplicates == "keep")


def _drops(splits: Splits) -> Iterator[str]:
    """Describe the drops of each split of the source."""
    for split, counts in splits.dropped_by_split.items():
        if total := sum(counts.values()):
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts.items() if count)
            name = f"split {split} of the source" if split in SPLITS else "source"
            yield f"{name}: {total:,} of {splits.read[split]:,} rows are dropped ({reasons})."


def _check_official(splits: Splits) -> None:
    """Raise DataError if near-duplicates would take more than MAX_SHARE of an official split."""
    for split in (split for split in SPLITS if split in splits.read):
        count, read = splits.dropped_by_split[split].get("near_duplicate", 0), splits.read[split]
        if count > MAX_SHARE * read:
            raise DataError(
                f"split {split} of the source: {count:,} of {read:,} rows would be dropped, because they share a text "
                f"with a row of another split. Set `near_duplicates: keep` (only equal rows are dropped) or "
                f"`near_duplicates: drop` (accept it) in the task file, or name fewer columns under `group_by`."
            )


def _cause(splits: Splits) -> str:
    """Describe a text's beginning or end that most rows share and that keeps them in one split."""
    examples = [example for some in splits.splits.values() for example in some]
    [(key, count)] = Counter(key for example in examples for key in example.keys).most_common(1) or [("", 0)]
    if len(key) < EDGE_CHARS or 2 * count < len(examples):
        return ""
    return (
        f", because {count:,} of {len(examples):,} rows have texts with the same first or last {EDGE_CHARS} characters "
        f"({truncated_repr(key)}), and these are kept in one split. Set `near_duplicates: keep` in the task file"
    )


def _held_out(splits: Splits) -> Iterator[str]:
    for split in ("validation", "test"):
        yield from (normalise(text) for example in splits.splits[split] for text in example.texts)


def _limits(rows: Rows) -> dict[str, int | None]:
    for split, limit in rows.items():
        if split not in SPLITS:
            raise ConfigError(unknown_name("split", split, SPLITS, "max_samples"))
        if limit is not None and (type(limit) is not int or limit < 1):
            raise ConfigError(f"max_samples.{split}: expected a whole number of at least 1, or None, got {limit!r}.")
    return {split: rows.get(split) for split in SPLITS}


def _empty_split(task: Task, splits: Splits, split: str) -> str:
    """Explain why a split is empty: the source has no such rows, too few to split, or rows that stay together."""
    cause = "" if task.near_duplicates == "keep" else _cause(splits)
    if cause or splits.origin[split] != SPLIT_OFF:
        return f"split {split} has no rows{cause}."
    count = sum(len(splits.splits[name]) for name in {"train", *(n for n in SPLITS if splits.origin[n] == SPLIT_OFF)})
    return f"split {split} has no rows: {count:,} rows are too few to split. Add rows, or give one file per split."


def _batches(examples: list[Example], task: Task) -> Iterator[dict[str, list]]:
    labels: dict[str | None, int] = {name: number for number, name in enumerate(task.verbalizer)}
    answer = ANSWERS[task.type].name
    for start in range(0, len(examples), BATCH_ROWS):
        batch = examples[start : start + BATCH_ROWS]
        texts = zip(*(example.texts for example in batch), strict=True)
        yield {
            "id": [example.id for example in batch],
            **dict(zip(task.text_columns, map(list, texts), strict=True)),
            answer: [labels[e.label] if answer == "label" else list(e.references) for e in batch],
        }


def _task_keys(task: Task) -> dict[str, Any]:
    """Return the keys of a task that training and evaluation read."""
    keys = ("version", "type", "verbalizer", "metric", "max_length", "max_new_tokens")
    return {
        "task": task.name,
        **{key: getattr(task, key) for key in keys},
        "text_columns": list(task.text_columns),
        "metrics": list(task.metrics),
        "prompt": task.prompt["default"],
        "prompts": task.family_prompts,
    }


def _statistics(task: Task, splits: Splits, chosen: Mapping[str, list[Example]]) -> dict[str, Any]:
    label_counts = {}
    for split, examples in chosen.items():
        counts = Counter(example.label for example in examples)
        label_counts[split] = {label: counts[label] for label in task.verbalizer}
    return {
        "rows": {split: len(examples) for split, examples in chosen.items()},
        "rows_uncapped": {split: len(splits.splits[split]) for split in SPLITS},
        "origin": {split: splits.origin[split] for split in SPLITS},
        "label_counts": label_counts,
        "chance": _chance(task, label_counts["test"], chosen["test"]),
        "read": splits.read,
        "dropped": splits.dropped,
        "dropped_by_split": splits.dropped_by_split,
        "overlap_before_drops": splits.overlap_before,
        "overlap": overlaps(splits.splits),
        "text_lengths": {split: _text_lengths(examples) for split, examples in chosen.items()},
    }


def _text_lengths(examples: Sequence[Example]) -> dict[str, dict[str, int]]:
    """Quantiles of the rows' words and characters, all texts together. Tokens are unknown without a tokenizer."""
    texts = [" ".join(example.texts) for example in examples]
    sizes = {"words": sorted(len(text.split()) for text in texts), "characters": sorted(map(len, texts))}
    at = {"median": (len(texts) - 1) // 2, "p90": 9 * (len(texts) - 1) // 10, "max": -1}
    return {unit: {name: ordered[index] for name, index in at.items()} for unit, ordered in sizes.items()}


def _chance(task: Task, counts: Mapping[str, int], test: Sequence[Example]) -> dict[str, Any]:
    """Chance scores. `level`: the score of the reported metric that a model must exceed.

    Classification: the larger one of two guesses. Generation: each metric of the test references, shuffled.
    """
    if task.type == "classification":
        guesses = guess_scores(task.metric, [count / len(test) for count in counts.values()])
        return {"level": max(guesses.values()), **guesses}
    references = [example.references for example in test]
    shuffled: dict[str, float] = {metric: float(shuffled_scores(metric, references).mean()) for metric in task.metrics}
    return {"level": shuffled[task.metric], "shuffled": shuffled}
