"""A task: a short, versioned YAML that says where its text is, how it is asked, and how it is scored."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from apet.data.readers import check_source
from apet.data.splits import SIDES
from apet.data.wheels import find_wheel
from apet.errors import ParamsError, unknown
from apet.yamls import check_keys, read_yaml

FOLDER = Path(__file__).parent / "tasks"
TYPES = {"classification": ("accuracy",)}
SLOT = "{text}"


@dataclass(frozen=True)
class Task:
    """What `tasks/*.yaml` says.

    `labels` maps a class name of the source to its label word with the word's leading space; its order numbers the
    classes from 0. `length` is the most tokens an encoded text may have, prompt included.
    """

    name: str
    version: int
    description: str
    type: str
    source: dict[str, Any]
    prompt: str
    labels: dict[str, str]
    metric: str
    length: int

    def definition(self) -> list[Any]:
        """All that the prepared folder depends on, as plain values; labels as pairs, since their order counts."""
        apart = {"description", "labels", "source"}
        plain = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in apart}
        return [plain, self.source, list(self.labels.items()), find_wheel(self.source["wheel"]).sha256]


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
        raise ParamsError(unknown("task", name_or_path, task_names()))
    content = read_yaml(path)
    where = path.name
    check_keys(content, [field.name for field in fields(Task)], (), where)
    _check_values(content, where)
    _check_labels(content["labels"], where)
    check_source(content["source"], f"{where}: source")
    for split in content["source"].get("members", {}):
        if split not in (*SIDES, "all"):
            raise ParamsError(unknown("split", split, (*SIDES, "all"), f"{where}: source: members"))
    return Task(**content)


def _check_values(content: dict[str, Any], where: str) -> None:
    for key in ("name", "description", "prompt"):
        if not isinstance(content[key], str) or not content[key]:
            raise ParamsError(f"{where}: {key} is {content[key]!r}; it must be a text.")
    for key in ("version", "length"):
        if type(content[key]) is not int or content[key] < 1:
            raise ParamsError(f"{where}: {key} is {content[key]!r}; it must be a whole number from 1.")
    if content["type"] not in TYPES:
        raise ParamsError(unknown("type", content["type"], TYPES, where))
    if content["metric"] not in TYPES[content["type"]]:
        raise ParamsError(unknown("metric", content["metric"], TYPES[content["type"]], where))
    prompt = content["prompt"]
    if prompt.count(SLOT) != 1 or prompt != prompt.rstrip():
        raise ParamsError(f"{where}: prompt is {prompt!r}; it must hold {SLOT} once and end without a space.")


def _check_labels(labels: Any, where: str) -> None:
    if not isinstance(labels, dict) or len(labels) < 2:
        raise ParamsError(f"{where}: labels is {labels!r}; it must map two or more class names to label words.")
    words = list(labels.values())
    for name, word in labels.items():
        if not isinstance(name, str) or not isinstance(word, str) or not word.strip():
            raise ParamsError(f"{where}: label {name!r} has the word {word!r}; both must be texts.")
        if words.count(word) > 1:
            raise ParamsError(f"{where}: labels have the word {word!r} more than once.")
