"""Rows of a task, made from the records of a source."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from apet.data.schema import Record, Row, class_names
from apet.data.sources import Source
from apet.data.task_config import Task
from apet.errors import DataError, error_context, truncated_repr, unknown_name

UNLABELLED = (None, "", -1, "-1")  # labels of the hub's copies whose labels are secret
NUMERIC = re.compile(r"-?[0-9]+(\.[0-9]+)?")  # a class that is named by a number
INDEX = re.compile(r"[0-9]{1,9}")
HEADER_HINT = " If the file has no header, name its columns with `column_names`."


def read_rows(task: Task, source: Source, wheels_folder: Path) -> Iterator[Row]:
    """Yield the rows of a task.

    Args:
        task: Names the columns and classes.
        source: Holds the rows; its `column_map` and `label_map` are applied.
        wheels_folder: Folder of downloaded wheels.

    Yields:
        Rows in the order of the source.

    Raises:
        DataError: If the source cannot be read, or for a missing column or an unknown label, with file and line.
    """
    columns = [source.column_map.get(name, name) for name in task.text_columns]
    answer = source.column_map.get(task.answer_column, task.answer_column)
    answer_key = "target_column" if task.type == "generation" else "label_column"
    with error_context(f"task {task.name}"):
        for record in source.records(task.name, task.splits, wheels_folder):
            if record.is_dropped:
                yield Row((), None, record.split, record.location, True)
                continue
            _check_columns(record, dict.fromkeys(columns, "text_columns") | {answer: answer_key})
            with error_context(record.location):
                texts = tuple(_text(_cell(record, column), column) for column in columns)
                value = _cell(record, answer)
                if task.type == "generation":
                    yield Row(texts, _references(value, answer), record.split, record.location)
                else:
                    mapped = next((source.label_map[n] for n in class_names(value) if n in source.label_map), value)
                    yield Row(texts, _class(mapped, list(task.verbalizer)), record.split, record.location)


def _check_columns(record: Record, keys: Mapping[str, str]) -> None:
    """Raise DataError for a missing column, given each column with the task's key that names it.

    A test split may lack the answer: its rows are unlabeled.
    """
    needed = [column for column, key in keys.items() if key == "text_columns" or record.split != "test"]
    missing = next((column for column in needed if column not in record.values), None)
    if missing is not None:
        hint = HEADER_HINT if record.header and keys.keys().isdisjoint(record.values) else ""
        problem = unknown_name("column", missing, record.values, keys[missing])
        raise DataError(f"{record.header or record.location}: {problem}{hint}")


def _cell(record: Record, column: str) -> Any:
    value = record.values.get(column)
    return None if value != value else value  # NaN is how pandas writes a missing value


def _text(value: Any, column: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"column {column!r}: expected a text, got {truncated_repr(value)}.")
    return value.encode("utf-8", "replace").decode().strip()  # JSON may have half a surrogate pair


def _class(value: Any, labels: list[str]) -> str | None:
    """Return the class that a label names, or numbers in the order of the verbalizer.

    A name takes precedence, so that 1 in a JSONL file is the same as in a CSV file. If any class is named by a number,
    no label is an index.
    """
    names = class_names(value)
    if named := [name for name in names if name in labels]:
        return named[0]
    if value in UNLABELLED or not {*names}.isdisjoint(UNLABELLED):
        return None
    text = "" if isinstance(value, bool) or not names else names[-1]
    has_numbers = any(map(NUMERIC.fullmatch, labels))  # as names
    if INDEX.fullmatch(text) and not has_numbers and int(text) < len(labels):
        return labels[int(text)]
    hint = "Map other values by `label_map`."
    hint = hint if has_numbers else f"Numbers count from 0 in the order of `verbalizer`. {hint}"
    raise DataError(f"{unknown_name('label', value, labels)} {hint}")


def _references(value: Any, column: str) -> tuple[str, ...] | None:
    """Distinct answers in their own order, or None if all are blank."""
    answers = [value] if isinstance(value, str) or value is None else value
    if not isinstance(answers, list | tuple):
        raise DataError(f"column {column!r}: expected a text or a list of texts, got {truncated_repr(value)}.")
    return tuple(dict.fromkeys(text for answer in answers if (text := _text(answer, column)))) or None
