"""YAML files, shipped or handed in: plain values with a closed set of keys, read within limits.

What is read is the part of YAML 1.2 that says one thing to everyone, as DVC reads params.yaml too: `yes`, `010` and
`1:30` are texts and not a truth, an 8 and a 90, `1e-3` is a number, and `<<` is a key like others. `.inf` and `.nan`
are texts too, since no number here may be one. Refused, with the line:

- a key that stands twice: SafeLoader lets the last win, so a label listed twice would pass unseen;
- tags: they ask for other types than those here;
- more levels or values than any file here needs, an alias counted as all that it stands for: a few lines of aliases of
  aliases are billions of values to whatever walks over them, and an alias within itself is endless.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import yaml

from apet.errors import ConfigError, truncated_repr, unknown_name

MOST_BYTES = 2**20
MOST_VALUES = 20_000
MOST_DEPTH = 32
"""Limits of a file. The largest that is shipped, registry.yaml, has 11 kB, 900 values and 4 levels."""

MOST = 2**53 - 1
"""The largest whole number: beyond it JSON's readers and floats round."""


class _Loader(yaml.SafeLoader):
    """SafeLoader within the module's limits."""

    yaml_implicit_resolvers: ClassVar[dict[str, list]] = {}  # none of YAML 1.1

    def __init__(self, text: str):
        super().__init__(text)
        self.depth = 0
        self.values = 0
        self.sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        is_alias = isinstance(event, yaml.AliasEvent)
        if not is_alias and event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise _refused(event, f"tag {truncated_repr(tag)}. Allowed: plain values, without tags")
        if self.depth == MOST_DEPTH:
            raise _refused(event, f"more than {MOST_DEPTH} levels deep")
        before, self.depth = self.values, self.depth + 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if is_alias and node not in self.sizes:
            raise _refused(event, f"alias {truncated_repr(event.anchor)} stands for what it is itself a part of")
        # An alias counts as what it stands for.
        self.values += self.sizes[node] if is_alias else 1
        self.sizes.setdefault(node, self.values - before)
        if self.values > MOST_VALUES:
            raise _refused(event, f"more than {MOST_VALUES:,} values, aliases written out")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _refused(key_node, "a key is a list or a mapping. Allowed: a text")
            key = self.construct_object(key_node)
            if key in seen:
                raise _refused(key_node, f"key {truncated_repr(key)} stands twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    # With more digits than any number here has, it is left a text: Python itself refuses to read thousands of them.
    ("int", r"[-+]?(0|[1-9][0-9]{0,400})", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z", re.ASCII), list(_first))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file in UTF-8, with or without a byte order mark.

    ParamsError, with the line, if it is absent, too large, not YAML as this module reads it, or not a mapping.
    """
    try:
        content = yaml.load(_text(path), _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {_place(error)}cannot be read as YAML: {_problem(error)}.") from None
    if not isinstance(content, dict):
        found = {type(None): "nothing", list: "a list"}.get(type(content), f"a {type(content).__name__}")
        raise ConfigError(f"{path}: holds {found}, not a mapping of keys to values.")
    return content


def check_keys(found: Any, required: Iterable[str], optional: Iterable[str], where: str) -> None:
    """ParamsError if `found` is not a mapping with all `required` keys and none beyond the `optional` ones."""
    required, optional = list(required), list(optional)
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: is {truncated_repr(found)}, not a mapping of keys to values.")
    for key in found:
        if key not in required and key not in optional:
            raise ConfigError(unknown_name("key", key, required + optional, where))
    missing = [key for key in required if key not in found]
    if missing:
        raise ConfigError(f"{where}: key {missing[0]!r} is missing. Required: {', '.join(required)}.")


def is_integer(value: Any, least: int = 1, most: int = MOST) -> bool:
    """Whether a value is a whole number between the two, and not a truth value, which Python takes for 0 or 1."""
    return type(value) is int and least <= value <= most


def is_line(value: Any) -> bool:
    """Whether a value is a text in one line: without control characters, which no name or path needs."""
    return isinstance(value, str) and bool(value) and not re.search(r"[\x00-\x1f\x7f]", value)


def is_path(path: str | Path) -> bool:
    """Whether a file could be there: to ask for one by a name that is too long is an error, not a no."""
    try:
        os.lstat(path)
    except ValueError:  # NUL, half a surrogate pair
        return False
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG
    return True


def _text(path: Path) -> str:
    """A regular file's text: a pipe or a device could have no end."""
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise ConfigError(f"{path}: cannot be read: it is no file.")
        if state.st_size > MOST_BYTES:
            size = f"it has {state.st_size:,} bytes, at most {MOST_BYTES:,} are allowed"
            raise ConfigError(f"{path}: cannot be read: {size}.")
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8: {error.reason} at byte {error.start}.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def _refused(at: yaml.Node | yaml.Event, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""


def _problem(error: yaml.YAMLError) -> str:
    """What is wrong, in one line."""
    said = [getattr(error, "context", None), getattr(error, "problem", None)]
    return ", ".join(filter(None, said)) or " ".join(str(error).split())
