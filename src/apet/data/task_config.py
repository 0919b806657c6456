"""A task: a short, versioned YAML that says where its rows are, how they are asked, and how answers are scored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apet.core.yaml_loader import MOST, check_keys, is_integer, is_line, read_yaml
from apet.data.schema import FOLDER, SIDES, Task
from apet.data.sources import KINDS
from apet.errors import ConfigError, truncated_repr, unknown_name

METRICS = {"classification": ("accuracy", "f1"), "generation": ("em", "f1", "rouge_l")}
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}", re.ASCII)
SPLIT = re.compile(r"\w[\w.-]{0,99}")
SLOT = re.compile(r"\{(\w+)\}")


def task_names() -> list[str]:
    """Names of the tasks that come with apet, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_task(name_or_path: str | Path) -> Task:
    """A task by name, or from a YAML file by path (anything that ends in .yaml). ParamsError if it is not one."""
    if str(name_or_path).endswith(".yaml"):
        path = Path(name_or_path)
    elif name_or_path in task_names():
        path = FOLDER / f"{name_or_path}.yaml"
    else:
        raise ConfigError(unknown_name("task", name_or_path, task_names()))
    return _task(read_yaml(path), path.name, path.parent)


def _task(content: dict[str, Any], where: str, folder: Path) -> Task:
    answers = {"classification": ("verbalizer",), "generation": ("target_column", "max_new_tokens")}
    if content.get("type") not in [*answers]:
        raise ConfigError(unknown_name("type", content.get("type"), answers, where))
    required = ("name", "version", "description", "type", "text_columns", "prompt", "metrics", "max_length")
    label = ["label_column"] if content["type"] == "classification" else []
    optional = (*KINDS, *label, "group_by", "splits", "overlapping_tasks")
    check_keys(content, (*required, *answers[content["type"]]), optional, where)
    for key in ("text_columns", "metrics", "group_by", "overlapping_tasks"):
        content[key] = _names(content.get(key, []), f"{where}: {key}", key in required)
    _check_values(content, where)
    prompts = _prompts(content.pop("prompt"), content["text_columns"], where)
    if content["type"] == "classification":
        _check_labels(content["verbalizer"], content["metrics"], where)
    splits = {side: side for side in reversed(SIDES)} | _splits(content.pop("splits", {}), where)
    sources = _sources(content, where, folder)
    answer = content.pop("target_column", None) or content.pop("label_column", "label")
    found = {"sources": sources, "prompt": prompts.pop("default"), "answer_column": answer, "splits": splits}
    return Task(**content, **found, prompts=prompts, folder=folder)


def _names(value: Any, where: str, some: bool) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value) or (some and not value):
        raise ConfigError(f"{where} is {truncated_repr(value)}; it must be a list of names.")
    if twice := [name for name in value if value.count(name) > 1]:
        raise ConfigError(f"{where} is {truncated_repr(value)}; {truncated_repr(twice[0])} stands twice.")
    return tuple(value)


def _check_values(content: Mapping[str, Any], where: str) -> None:
    for key in {"name", "description", "label_column", "target_column"} & set(content):
        if not isinstance(content[key], str) or not content[key]:
            raise ConfigError(f"{where}: {key} is {truncated_repr(content[key])}; it must be a text.")
    if not NAME.fullmatch(content["name"]):
        allowed = "letters, digits, - and _, at most 100, and not begin with -"
        raise ConfigError(f"{where}: name is {truncated_repr(content['name'])}; it must be of {allowed}.")
    for key in {"version", "max_length", "max_new_tokens"} & set(content):
        if not is_integer(content[key]):
            allowed = f"a whole number from 1 to {MOST}"
            raise ConfigError(f"{where}: {key} is {truncated_repr(content[key])}; it must be {allowed}.")
    for metric in content["metrics"]:
        if metric not in METRICS[content["type"]]:
            raise ConfigError(unknown_name("metric", metric, METRICS[content["type"]], f"{where}: metrics"))
    for name in content["group_by"]:
        if name not in content["text_columns"]:
            raise ConfigError(unknown_name("field", name, content["text_columns"], f"{where}: group_by"))
    for name in content["overlapping_tasks"]:
        if not name.endswith(".yaml") and name not in task_names():
            raise ConfigError(unknown_name("task", name, task_names(), f"{where}: overlapping_tasks"))
    for name in content["text_columns"]:
        if not name.isidentifier() or name in ("id", "label", "targets"):
            raise ConfigError(
                f"{where}: text_columns has {truncated_repr(name)}; it must be a word other than id, label and targets."
            )


def _prompts(value: Any, slots: tuple[str, ...], where: str) -> dict[str, str]:
    """`default` and family → prompt, from one text or such a mapping; each field has its slot once in every one."""
    prompts = {"default": value} if isinstance(value, str) else value
    if not isinstance(prompts, dict) or "default" not in prompts:
        raise ConfigError(
            f"{where}: prompt is {truncated_repr(value)}; it must be a text, or a mapping with `default`."
        )
    for family, prompt in prompts.items():
        found = SLOT.findall(prompt) if isinstance(prompt, str) else []
        if sorted(found) != sorted(slots) or prompt != prompt.rstrip():
            fields = ", ".join(f"{{{name}}}" for name in slots)
            said = f"{where}: prompt ({family}) is {truncated_repr(prompt)}"
            raise ConfigError(f"{said}; it must hold {fields} once each and end without a space.")
    return dict(prompts)


def _check_labels(labels: Any, metrics: tuple[str, ...], where: str) -> None:
    if not isinstance(labels, dict) or len(labels) < 2:
        raise ConfigError(
            f"{where}: verbalizer is {truncated_repr(labels)}; it must map two or more class names to label words."
        )
    words = list(labels.values())
    for name, word in labels.items():
        if not is_line(name) or not is_line(word) or not word.strip():
            raise ConfigError(
                f"{where}: label {truncated_repr(name)} has the word {truncated_repr(word)}; both must be lines of text."
            )
        if words.count(word) > 1:
            raise ConfigError(f"{where}: verbalizer have the word {truncated_repr(word)} more than once.")
    if "f1" in metrics and len(labels) != 2:
        raise ConfigError(f"{where}: metrics has f1, which is of the second of two labels; there are {len(labels)}.")


def _splits(splits: Any, where: str) -> dict[str, str]:
    check_keys(splits, (), SIDES, f"{where}: splits")
    for side, name in splits.items():
        if not isinstance(name, str) or not SPLIT.fullmatch(name):
            raise ConfigError(f"{where}: splits: {side} is {truncated_repr(name)}; it must be a name.")
    return splits


def _sources(content: dict[str, Any], where: str, folder: Path) -> dict[str, Mapping[str, Any]]:
    """The sources, taken out of a task's content, in the order that they are written in."""
    sources: dict[str, Mapping[str, Any]] = {}
    for kind in [key for key in content if key in KINDS]:
        place = f"{where}: {kind}"
        spec = KINDS[kind].check(content.pop(kind), place, folder)
        own = {*content["text_columns"], content.get("target_column") or content.get("label_column", "label")}
        check_keys(spec.get("column_map", {}), (), own, f"{place}: column_map")
        for name, column in spec.get("column_map", {}).items():
            if not isinstance(column, str):
                raise ConfigError(
                    f"{place}: column_map: {name} is {truncated_repr(column)}; it must be a column's name."
                )
        for split in spec.get("members", {}):
            if split not in (*SIDES, "all"):
                raise ConfigError(unknown_name("split", split, (*SIDES, "all"), f"{place}: members"))
        named = (
            {"label_map": _classes(spec["label_map"], content, f"{place}: label_map")} if "label_map" in spec else {}
        )
        sources[kind] = {**spec, **named}
    return sources


def _classes(classes: Any, content: Mapping[str, Any], where: str) -> dict[str, str]:
    """The source's class, as a text, to ours: a 1 in a YAML is the 1 of a CSV file, and that of a JSONL file."""
    labels = content.get("verbalizer", {})
    if not isinstance(classes, dict) or not labels:
        raise ConfigError(
            f"{where} is {truncated_repr(classes)}; it must map the source's classes to the task's labels."
        )
    for old, new in classes.items():
        if type(old) not in (str, int, float) or list(map(str, classes)).count(str(old)) > 1:
            raise ConfigError(f"{where} has {truncated_repr(old)}; it must be a text or a number, and stand once.")
        if new not in [*labels]:
            raise ConfigError(unknown_name("label", new, labels, f"{where}: {old}"))
    return {str(old): new for old, new in classes.items()}
