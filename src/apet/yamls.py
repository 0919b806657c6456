"""YAML files, shipped or handed in: safe, without repeated keys, with a closed set of keys."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from apet.errors import ParamsError, unknown


class _Loader(yaml.SafeLoader):
    """SafeLoader lets the last of two equal keys win, so a label listed twice would pass unseen."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                problem = f"key {key!r} stands twice"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. ParamsError if it is absent, not YAML, not a mapping, or repeats a key."""
    try:
        content = yaml.load(path.read_text("utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError) as error:
        raise ParamsError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise ParamsError(f"{path}: holds {type(content).__name__}, not a mapping of keys to values.")
    return content


def check_keys(found: Any, required: Iterable[str], optional: Iterable[str], where: str) -> None:
    """ParamsError if `found` is not a mapping with all `required` keys and none beyond the `optional` ones."""
    required, optional = list(required), list(optional)
    if not isinstance(found, dict):
        raise ParamsError(f"{where}: is {found!r}, not a mapping of keys to values.")
    for key in found:
        if key not in required and key not in optional:
            raise ParamsError(unknown("key", key, required + optional, where))
    missing = [key for key in required if key not in found]
    if missing:
        raise ParamsError(f"{where}: key {missing[0]!r} is missing. Required: {', '.join(required)}.")
