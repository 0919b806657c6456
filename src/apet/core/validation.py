"""Validation of values from files against pydantic types: one adapter, from pydantic's errors to `ConfigError`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, Strict, TypeAdapter, ValidationError

from apet.core.yaml_loader import MOST, is_line
from apet.errors import ConfigError, truncated_repr, unknown_name

T = TypeVar("T")

CLOSED = ConfigDict(extra="forbid", use_attribute_docstrings=True)
"""Configuration of every model: unknown keys are errors, and the text below a field is its description."""

MOST_ERRORS = 20
"""Errors of one file that a message lists."""

EXPECTED = {
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "at least {ge}",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "string_type": "a text",
    "too_short": "at least one entry",
    **dict.fromkeys(("dataclass_type", "dict_type", "mapping_type", "model_type"), "a mapping of keys to values"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
}
"""Type of a pydantic error -> what was expected, with the names of the error's context in braces."""


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for number, value in enumerate(values):
        if value in values[:number]:
            raise ValueError(f"duplicate value {truncated_repr(value)}. Remove one of them.")
    return values


def _one_line(value: str) -> str:
    if not is_line(value):
        raise ValueError(f"expected one line of text, got {truncated_repr(value)}.")
    return value


def _no_text(value: Any) -> Any:
    """Refuse a text where a list is expected: a lax tuple would take no text either, and say less."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected a list, got {truncated_repr(value)}.")
    return value


Whole = Annotated[int, Strict(), Field(le=MOST)]
"""A whole number. 1.0, "1" and true are none."""
Number = Annotated[float, Strict(), Field(le=MOST, allow_inf_nan=False)]
"""A finite number. 1 becomes 1.0, so that both give one digest."""
PositiveInt = Annotated[Whole, Field(ge=1)]
Seed = Annotated[Whole, Field(ge=0)]
Ratio = Annotated[Number, Field(ge=0, le=1)]
Bool = Annotated[bool, Strict()]
Line = Annotated[str, Strict(), AfterValidator(_one_line)]
"""One line of text."""
AsTuple = (BeforeValidator(_no_text), Field(min_length=1), AfterValidator(_distinct))
"""Validators of a tuple that a file writes as a list of at least one, without duplicates."""
Lines = Annotated[tuple[Line, ...], *AsTuple]


def validate(kind: type[T], values: Any, where: str) -> T:
    """Validate values against a type.

    Args:
        kind: A pydantic dataclass, or any type that pydantic knows.
        values: Plain values, as YAML or JSON has them.
        where: The file, or the file and a key, that error messages begin with.

    Returns:
        An instance of the type.

    Raises:
        ConfigError: With one line for each wrong, missing or unknown key.
    """
    try:
        return _adapter(kind).validate_python(values)  # type: ignore[arg-type]
    except ValidationError as error:
        raise ConfigError(_message(kind, error, where)) from None


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The base with some keys changed; a mapping in a mapping is merged likewise."""
    both = {key: merged(base[key], value) for key, value in changes.items() if _are_mappings(base.get(key), value)}
    return {**base, **changes, **both}


def _are_mappings(*values: Any) -> bool:
    return all(isinstance(value, Mapping) for value in values)


@cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind)


def _message(kind: Any, error: ValidationError, where: str) -> str:
    errors = sorted(error.errors(include_url=False), key=lambda one: len(one["loc"]))
    lines = list(dict.fromkeys(f"{where}: {_sentence(kind, one)}" for one in errors))
    more = [f"{where}: {len(lines) - MOST_ERRORS} more errors."] if len(lines) > MOST_ERRORS else []
    return "\n".join(lines[:MOST_ERRORS] + more)


def _sentence(kind: Any, error: Mapping[str, Any]) -> str:
    """`key: problem. Fix.` of one error."""
    parts, value, context = [str(part) for part in error["loc"]], error["input"], error.get("ctx", {})
    key = ".".join(parts)
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return unknown_name("key", parts[-1], _keys(kind, error["loc"][:-1]), ".".join(parts[:-1]))
    if error["type"] in ("missing", "missing_argument"):
        return _at(".".join(parts[:-1]), f"missing key {parts[-1]!r}. Add it.")
    if error["type"] == "literal_error":
        allowed = [name.strip("' ") for name in context["expected"].replace(" or ", ", ").split(",")]
        return unknown_name("value", value, allowed, key)
    if error["type"] == "value_error":
        return _at(key, str(context["error"]))
    expected = EXPECTED.get(error["type"])
    wanted = expected.format(**context) if expected else error["msg"]
    if type(value) is int and abs(value) > MOST:
        wanted = "a number below 2**53"
    return _at(key, f"expected {wanted}, got {truncated_repr(value)}.")


def _at(key: str, problem: str) -> str:
    return f"{key}: {problem}" if key else problem


def _keys(kind: Any, path: Iterable[str | int]) -> list[str]:
    """The keys that are allowed at a path, from the type's JSON schema."""
    schema = _adapter(kind).json_schema()
    node = _resolved(schema, schema)
    for part in path:
        inner = node.get("properties", {}).get(part) if isinstance(part, str) else node.get("items")
        node = _resolved(inner or {}, schema)
    return list(node.get("properties", {}))


def _resolved(node: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A node of a JSON schema behind its reference, if it is one."""
    if "$ref" in node:
        return schema["$defs"][node["$ref"].rpartition("/")[2]]
    return node
