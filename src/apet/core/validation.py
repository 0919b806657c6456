"""Validation of values from files against pydantic types: one adapter, from pydantic's errors to `ConfigError`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    Strict,
    TypeAdapter,
    ValidationError,
)

from apet.errors import ConfigError, truncated_repr, unknown_name

T = TypeVar("T")

CLOSED = ConfigDict(extra="forbid", use_attribute_docstrings=True, defer_build=True)
"""Configuration of every type: unknown keys are errors, and the text below a field is its description."""

MAX_INTEGER = 2**53 - 1
"""The largest whole number: JSON readers and floats round larger ones."""

MAX_ERRORS = 20
"""Errors of one file that a message lists."""

EXPECTED = {
    "bool_type": "true or false",
    "invalid_key": "a text as key",
    "string_type": "a text",
    "too_short": "{min_length} or more entries",
    **dict.fromkeys(("dataclass_type", "mapping_type", "model_attributes_type"), "a mapping of keys to values"),
    **dict.fromkeys(("dict_type", "typed_dict_type"), "a mapping of keys to values"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
}
"""Type of a pydantic error -> expected value, with names of the error's context in braces. For numbers: `_number`."""


def matching(pattern: str, expected: str) -> PlainValidator:
    """Make a validator of texts.

    Args:
        pattern: A regular expression of the whole text.
        expected: The same in words, for error messages.

    Returns:
        The validator, with the pattern in its JSON Schema.
    """
    compiled = re.compile(pattern, re.ASCII)

    def check(value: Any) -> str:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise ValueError(f"expected {expected}, got {truncated_repr(value)}.")
        return value

    return PlainValidator(check, json_schema_input_type=Annotated[str, Field(pattern=f"^{pattern}$")])


def require_distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Raise ValueError for a duplicate value."""
    for number, value in enumerate(values):
        if value in values[:number]:
            raise ValueError(f"duplicate value {truncated_repr(value)}. Remove one of them.")
    return values


def _require_list(value: Any) -> Any:
    """Refuse other iterables, which pydantic would take for a tuple, and a text with a clear message."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected a list, got {truncated_repr(value)}.")
    return value


LIST, NOT_EMPTY, DISTINCT = BeforeValidator(_require_list), Field(min_length=1), AfterValidator(require_distinct)
"""Validators of a tuple that a file writes as a list."""

Whole = Annotated[int, Strict(), Field(le=MAX_INTEGER)]
"""A whole number. 1.0, "1" and true are none."""
Number = Annotated[float, Strict(), Field(le=MAX_INTEGER, allow_inf_nan=False)]
"""A finite number. 1 becomes 1.0, so that both give one digest."""
PositiveInt = Annotated[Whole, Field(ge=1)]
Seed = Annotated[Whole, Field(ge=0)]
Ratio = Annotated[Number, Field(ge=0, le=1)]
Bool = Annotated[bool, Strict()]
Text = Annotated[str, Strict()]
LINE = r"[^\x00-\x1f\x7f]+"
Line = Annotated[str, matching(LINE, "one line of text")]
Lines = Annotated[tuple[Line, ...], NOT_EMPTY, LIST, DISTINCT]


def validate(kind: type[T], values: Any, location: str, context: Any = None) -> T:
    """Validate values against a type.

    Args:
        kind: A pydantic dataclass, or any type that pydantic knows.
        values: Plain values, as YAML or JSON has them.
        location: The file, or the file and a key, that error messages begin with.
        context: Passed on to the type's validators.

    Returns:
        An instance of the type.

    Raises:
        ConfigError: With one line for each wrong, missing or unknown key.
    """
    adapter: TypeAdapter[T] = _adapter(kind)  # type: ignore[arg-type]
    try:
        return adapter.validate_python(values, context=context)
    except ValidationError as error:
        raise ConfigError(_message(adapter.json_schema(), error, location)) from None


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the base with some keys changed; a mapping in a mapping is merged likewise."""
    both = {key: merged(base[key], value) for key, value in changes.items() if _are_mappings(base.get(key), value)}
    return {**base, **changes, **both}


def json_schema(kind: Any, title: str) -> str:
    """Return the JSON Schema of a type, for editors."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **_adapter(kind).json_schema(), "title": title}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _are_mappings(*values: Any) -> bool:
    return all(isinstance(value, Mapping) for value in values)


@cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind)


def _message(schema: Mapping[str, Any], error: ValidationError, location: str) -> str:
    errors = sorted(filter(_is_own, error.errors(include_url=False)), key=lambda one: len(one["loc"]))
    sentences = (line for one in errors for line in _sentence(schema, one).splitlines())
    lines = list(dict.fromkeys(f"{location}: {line}" for line in sentences))
    more = [f"{location}: {len(lines) - MAX_ERRORS} more errors."] if len(lines) > MAX_ERRORS else []
    return "\n".join(lines[:MAX_ERRORS] + more)


def _is_own(error: Mapping[str, Any]) -> bool:
    """Return False for a list that pydantic finds too short only because it does not count entries with errors."""
    return error["type"] != "too_short" or len(error["input"]) < error["ctx"]["min_length"]


def _sentence(schema: Mapping[str, Any], error: Mapping[str, Any]) -> str:
    """`key: problem. Fix.` of one error; several lines if a validator found several problems."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    parts, parent, node = _resolve(schema, error["loc"])
    key, outer = ".".join(parts), ".".join(parts[:-1])
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return unknown_name("key", parts[-1], parent["properties"], outer)
    if kind in ("missing", "missing_argument"):
        return _at(outer, f"missing key {parts[-1]!r}. Add it.")
    if kind == "union_tag_not_found":
        return _at(key, f"missing key {context['discriminator']}. Add it.")
    if kind == "literal_error":
        return unknown_name("value", value, _quoted(context["expected"]), key)
    if kind == "union_tag_invalid":
        name = context["discriminator"].strip("'")
        return unknown_name("value", value[name], _quoted(context["expected_tags"]), f"{key}.{name}")
    if kind == "value_error":
        return _at(key, str(context["error"]))
    target = _target(node, schema)
    is_number = target.get("type") in ("integer", "number")
    expected = _number(target, value) if is_number else EXPECTED.get(kind, error["msg"]).format(**context)
    null = ", or null" if {"type": "null"} in node.get("anyOf", ()) else ""
    return _at(key, f"expected {expected}{null}, got {truncated_repr(value)}.")


def _number(node: Mapping[str, Any], value: Any) -> str:
    """Describe the limits of a number, from its JSON schema, in words."""
    least, above, most = (node.get(key) for key in ("minimum", "exclusiveMinimum", "maximum"))
    name = "a whole number" if node["type"] == "integer" else "a number"
    if most == MAX_INTEGER:
        most = None
        if type(value) is int and abs(value) > MAX_INTEGER:
            return f"{name} below 2**53"
    if least is not None:
        return f"{name} from {least:.0f} to {most:,.0f}" if most else f"{name} of at least {least:.0f}"
    return f"{name} above {above:.0f}" + (f", at most {most:,.0f}" if most else "") if above is not None else name


def _at(key: str, problem: str) -> str:
    return f"{key}: {problem}" if key else problem


def _quoted(names: str) -> list[str]:
    return re.findall("'([^']*)'", names)


def _resolve(schema: Mapping[str, Any], location: Sequence[str | int]) -> tuple[list[str], Mapping, Mapping]:
    """Return the keys that lead to an error, without pydantic's tags of unions, and the last two schemas."""
    parts: list[str] = []
    parent, node = schema, schema
    for part in location:
        target = _target(node, schema)
        if part in (tagged := target.get("discriminator", {}).get("mapping", {})):
            node = {"$ref": tagged[part]}
        elif part != "[key]":
            parts, parent = [*parts, str(part)], target
            inner = target.get("properties", {}).get(part)
            inner = inner or target.get("items" if isinstance(part, int) else "additionalProperties")
            node = inner if isinstance(inner, Mapping) else {}
    return parts, parent, node


def _target(node: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Resolve a node of a schema: the type that it refers to, or the first of its alternatives."""
    if "$ref" in node:
        return _target(schema["$defs"][node["$ref"].rpartition("/")[2]], schema)
    return _target(node["anyOf"][0], schema) if "anyOf" in node else node
