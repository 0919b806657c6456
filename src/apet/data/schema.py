"""What a source gives (records) and what a task makes of it (rows)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from apet.errors import DataError, truncated_repr, unknown_name

FOLDER = Path(__file__).parent / "tasks"
SIDES = ("test", "validation", "train")  # a text that two sides claim stays on the first of them
UNLABELLED = (None, "", -1, "-1")  # how the hub's copies write that a label is kept secret
NUMERIC = re.compile(r"-?[0-9]+(\.[0-9]+)?")  # a name that is a number
INDEX = re.compile(r"[0-9]{1,9}")


class Record(NamedTuple):
    """One row as its source has it: column → value; its official split, if any; `where` names file and line."""

    values: Mapping[str, Any]
    split: str | None
    where: str


class Row(NamedTuple):
    """One row of a task: a text a field; the class name, or the references, or None where it is not told."""

    texts: tuple[str, ...]
    answer: str | tuple[str, ...] | None
    split: str | None
    where: str


@dataclass(frozen=True)
class Task:
    """What `tasks/*.yaml` says.

    sources: kind (hub, local, wheel) → its spec; the first is the task's own. text_columns: the texts of a row, by the
    hub's names of their columns. group_by: those that must not be met on two sides. prompt: a text with a slot a field;
    prompts: family → another prompt. verbalizer: class → label word with its leading space; their order numbers the
    classes from 0. answer_column: column of the class, or of the references. metrics: the first is the one that is reported.
    max_length: most tokens of an encoded row, prompt included; max_new_tokens: of a generated answer. splits: side → the
    source's name of it. overlapping_tasks: tasks over the same texts, by name or YAML file, whose held-out rows leave this one's
    train. folder: where its own YAML is; the paths of its sisters start there.
    """

    name: str
    version: int
    description: str
    type: str
    sources: Mapping[str, Mapping[str, Any]]
    text_columns: tuple[str, ...]
    prompt: str
    metrics: tuple[str, ...]
    max_length: int
    prompts: Mapping[str, str] = field(default_factory=dict)
    verbalizer: Mapping[str, str] = field(default_factory=dict)
    answer_column: str = "label"
    group_by: tuple[str, ...] = ()
    max_new_tokens: int = 0
    splits: Mapping[str, str] = field(default_factory=lambda: {side: side for side in reversed(SIDES)})
    overlapping_tasks: tuple[str, ...] = ()
    folder: Path = field(default=FOLDER, compare=False)

    @property
    def metric(self) -> str:
        return self.metrics[0]

    @property
    def group_numbers(self) -> list[int]:
        """Which texts of a row are its group's."""
        return [self.text_columns.index(name) for name in self.group_by or self.text_columns]

    def definition(self) -> list[Any]:
        """All but the source that the prepared folder depends on, as plain values; labels as pairs, in their order."""
        apart = {"description", "folder", "verbalizer", "sources"}
        plain = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in apart}
        return [plain, list(self.verbalizer.items())]


def to_rows(records: Iterable[Record], task: Task, spec: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of a task. `spec` is its source's: `columns` (our name → the source's, where they differ) and `classes`
    (the source's class → ours). DataError for a missing column or an unknown label, with file and line.
    """
    columns, classes = spec.get("column_map", {}), spec.get("label_map", {})
    names = [columns.get(field, field) for field in task.text_columns]
    answer = columns.get(task.answer_column, task.answer_column)
    for record in records:
        where = f"task {task.name}: {record.where}"
        texts = tuple(_text(_cell(record, name, where), name, where) for name in names)
        value = _cell(record, answer, where)
        found: str | tuple[str, ...] | None
        if task.type == "generation":
            found = _references(value, answer, where)
        else:
            found = _class(classes.get(_written(value), value), list(task.verbalizer), where)
        yield Row(texts, found, record.split, where)


def check_once(what: str, names: Sequence[str]) -> None:
    """DataError for a name that stands twice: whatever reads such a row by name takes one of them, unseen."""
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{what} {truncated_repr(twice)} stands twice.")


def _cell(record: Record, column: str, where: str) -> Any:
    if column not in record.values:
        raise DataError(unknown_name("column", column, record.values, where))
    return record.values[column]


def _text(value: Any, column: str, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: column {column!r} holds {value!r}; it must be a text.")
    return value.encode("utf-8", "replace").decode().strip()  # half a surrogate pair can be in JSON, not in a table


def _class(value: Any, labels: list[str], where: str) -> str | None:
    """A label is a class's name, or its number in the order of the task's labels; a name where it could be both, so
    that 1 in a JSONL file is what it is in a CSV file. Where a class is called by a number, no number is an order.
    """
    text = _written(value)
    if text in labels:
        return text
    if value in UNLABELLED:
        return None
    if text and INDEX.fullmatch(text) and not any(map(NUMERIC.fullmatch, labels)) and int(text) < len(labels):
        return labels[int(text)]
    raise DataError(unknown_name("label", value, labels, where))


def _written(value: Any) -> str | None:
    """A label as a file of text alone would have it; None for what is no label."""
    return value if isinstance(value, str) else str(value) if type(value) in (int, float) else None


def _references(value: Any, column: str, where: str) -> tuple[str, ...] | None:
    """Answers, each once, in their own order; None if there is none but blank ones."""
    many = [value] if isinstance(value, str) or value is None else value
    if not isinstance(many, list | tuple):
        raise DataError(f"{where}: column {column!r} holds {value!r}; it must be a text or a list of texts.")
    return tuple(dict.fromkeys(text for one in many if (text := _text(one, column, where)))) or None
