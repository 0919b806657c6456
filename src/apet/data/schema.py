"""Rows as a source has them (`Record`) and as a task has them (`Row`), and the keys that all sources share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any, NamedTuple

from pydantic import Field, PlainValidator
from pydantic.dataclasses import dataclass

from apet.core.validation import CLOSED, Line
from apet.errors import DataError, truncated_repr

SPLITS = ("train", "validation", "test")
WHOLE = re.compile(r"-?[0-9]+\.0")
"""A whole number that was written as a float."""

PRIORITY = ("test", "validation", "train")
"""A text that occurs in two splits is kept in the first of them."""


class Record(NamedTuple):
    """A row of a source."""

    values: Mapping[str, Any]
    """Column -> value."""
    split: str | None
    """The official split, if there is one."""
    location: str
    """File and line."""
    is_dropped: bool = False
    """True if the source's `drop_rows` leave it out."""
    header: str = ""
    """File and line of the column names, if a table of the user has them."""


class Row(NamedTuple):
    """A row of a task."""

    texts: tuple[str, ...]
    """One text for each of the task's `text_columns`."""
    answer: str | tuple[str, ...] | None
    """The class, or the references, or None for an unlabeled row."""
    split: str | None
    location: str
    is_dropped: bool = False
    """True if the source's `drop_rows` leave it out. It then has no texts."""


def class_names(value: Any) -> tuple[str, ...]:
    """Return a class as text files have it, or nothing for a value that is no class.

    Args:
        value: A value of YAML, JSON or parquet.

    Returns:
        The possible names: several for true and false, which libraries write as true, True or TRUE, and for whole
        numbers that pandas wrote as 1.0, because a value of the column is missing.
    """
    if isinstance(value, bool):
        return str(value).lower(), str(value), str(value).upper()
    text = value if isinstance(value, str) else str(value) if type(value) in (int, float) else None
    if text is None:
        return ()
    return (text, text.removesuffix(".0")) if WHOLE.fullmatch(text) else (text,)


def _label_map(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a mapping of the source's classes to the task's, got {truncated_repr(value)}.")
    names = [class_names(name)[:1] for name in value]
    for name, known in zip(value, names, strict=True):
        if not known:
            raise ValueError(f"expected a text, a number, true or false as class, got {truncated_repr(name)}.")
        if names.count(known) > 1:
            raise ValueError(f"duplicate class {truncated_repr(name)}. Remove one of them.")
    return {known[0]: ours for known, ours in zip(names, value.values(), strict=True)}


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class SourceConfig:
    """Keys that every source of a task may have."""

    # Descriptions of inherited keys, because pydantic reads the text below a field only in the class itself.
    column_map: Annotated[
        Mapping[Line, Line],
        Field(description="Column of the task -> column of the source. Only columns whose names differ."),
    ] = field(default_factory=dict)
    label_map: Annotated[
        Mapping[str, str],
        PlainValidator(_label_map, json_schema_input_type=dict[str, str]),
        Field(description="Class of the source -> class of the task. Only classes whose names differ."),
    ] = field(default_factory=dict)

    def mapping(self) -> dict[str, Any]:
        """Return the part of a source's identity that is common to all kinds."""
        both = {"column_map": dict(self.column_map), "label_map": dict(self.label_map)}
        return {key: value for key, value in both.items() if value}


def check_unique(kind: str, names: Sequence[str]) -> None:
    """Raise DataError for a duplicate name: of two equal columns, a reader would silently take one."""
    if len(set(names)) < len(names):
        duplicate = next(name for name in names if names.count(name) > 1)
        raise DataError(f"duplicate {kind} {truncated_repr(duplicate)}.")
