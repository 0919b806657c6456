"""YAML files: plain values in a mapping, without duplicate keys, aliases and tags.

Values are typed as in the core schema of YAML 1.2, strictly: `yes`, `010`, `1_000`, `1:30`, dates and `.nan` are texts,
`1e-3` is a number, and `<<` is an ordinary key. PyYAML scans the text. ruamel.yaml, which has YAML 1.2 built in, reads
`010` as 10, `1_000` as 1000 and `.nan` as a number, and takes several times longer to import.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import Any, ClassVar

import yaml

from apet.errors import ConfigError, truncated_repr

MAX_BYTES = 2**16
"""Largest file: it takes a second and 100 MB of memory. The package's largest, registry.yaml, has 11 kB."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[str, list]] = {}  # none of YAML 1.1

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _error(event, f"unexpected alias {truncated_repr(event.anchor)}. Write out its value")
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise _error(event, f"unexpected tag {truncated_repr(tag)}. Remove it")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _error(key_node, "expected a text as key, got a list or a mapping")
            key = self.construct_object(key_node)
            if key in keys:
                raise _error(key_node, f"duplicate key {truncated_repr(key)}. Remove one of them")
            keys.add(key)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    # Python does not parse integers of thousands of digits; they stay texts.
    ("int", r"[-+]?(0|[1-9][0-9]{0,400})", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z", re.ASCII), list(_first))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file.

    Args:
        path: A regular file of at most `MAX_BYTES` in UTF-8, with or without a byte order mark.

    Returns:
        Plain values: mappings, lists, texts, numbers, booleans, None.

    Raises:
        ConfigError: If the file is missing, too large, not YAML, or not a mapping. The message has the line.
    """
    try:
        content = yaml.load(_text(path), _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {_position(error)}{_problem(error)}.") from None
    except RecursionError:
        raise ConfigError(f"{path}: too many nested levels.") from None
    if not isinstance(content, dict):
        kind = {type(None): "nothing", list: "a list", str: "a text"}.get(type(content), f"a {type(content).__name__}")
        raise ConfigError(f"{path}: expected a mapping of keys to values, got {kind}.")
    return content


def is_path(path: str | Path) -> bool:
    """Check if a file could exist at a path, which an overlong name or a NUL excludes."""
    try:
        os.lstat(path)
    except ValueError:  # NUL, half a surrogate pair
        return False
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG
    return True


def _text(path: Path) -> str:
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):  # reading a pipe or a device may never end
            raise ConfigError(f"{path}: expected a regular file.")
        if state.st_size > MAX_BYTES:
            raise ConfigError(f"{path}: expected at most {MAX_BYTES:,} bytes, got {state.st_size:,} bytes.")
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected UTF-8: {error.reason} at byte {error.start}.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def _error(at: yaml.Node | yaml.Event, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def _position(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""


def _problem(error: yaml.YAMLError) -> str:
    """Return the problem in one line."""
    texts = [getattr(error, "context", None), getattr(error, "problem", None)]
    return ", ".join(filter(None, texts)) or " ".join(str(error).split())
