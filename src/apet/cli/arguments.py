"""Command-line grammar read from a function's typed signature: keyword-only parameters become options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import shtab

FINISHED_CELLS = shtab.cmd("cd results/cells 2>/dev/null && ls -d */*/*")
"""Shell completion of a cell: the finished ones."""


@dataclass(frozen=True)
class Argument:
    """The part of a parameter that its type does not tell, given as `Annotated[type, Argument(…)]`."""

    help: str
    """Help text, without the default."""
    parse: Callable[[str], Any] | None = None
    """Function that converts the text; by default the type itself."""
    complete: Any = None
    """Shell completion as shtab defines it; by default paths for a Path."""


def positive_number(text: str) -> float:
    """Parse a finite number above 0."""
    with suppress(ValueError):
        if 0 < (number := float(text)) < float("inf"):
            return number
    raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")


def integer_from(least: int) -> Callable[[str], int]:
    """Return a parser of integers of at least `least`."""

    def parse(text: str) -> int:
        with suppress(ValueError):
            if (number := int(text)) >= least:
                return number
        raise argparse.ArgumentTypeError(f"expected an integer from {least}, got {text!r}")

    return parse


def add_arguments(parser: argparse.ArgumentParser, function: Callable[..., None]) -> None:
    """Add an argument for each parameter of a function.

    A parameter without a default is required. A bool is a flag, a Literal a choice, a Sequence takes several values.

    Args:
        parser: The parser of the command.
        function: A function whose parameters are all annotated with `Annotated[type, Argument(…)]`.
    """
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in signature(function).parameters.items():
        kind, argument = get_args(hints[name])
        if NoneType in get_args(kind):
            kind = get_args(kind)[0]
        keywords = _keywords(kind, argument, parameter)
        if parameter.kind is Parameter.KEYWORD_ONLY:
            keywords["required"] = parameter.default is Parameter.empty
            action = parser.add_argument(f"--{name.replace('_', '-')}", **keywords)
        else:
            action = parser.add_argument(name, **keywords)
        if completion := argument.complete or (shtab.FILE if Path in (kind, *get_args(kind)) else None):
            action.complete = completion  # type: ignore[attr-defined]  # read by shtab


def _keywords(kind: Any, argument: Argument, parameter: Parameter) -> dict[str, Any]:
    """Keywords of `ArgumentParser.add_argument` for a parameter of a type."""
    required = parameter.default is Parameter.empty
    if kind is bool:
        return {"action": "store_true", "help": argument.help}
    shown = "" if required or parameter.default in (None, ()) else f" (default: {_shown(parameter.default)})"
    keywords: dict[str, Any] = {"help": argument.help + shown}
    if not required:
        keywords["default"] = parameter.default
    if get_origin(kind) is Literal:
        return keywords | {"choices": get_args(kind)}
    if get_origin(kind) is Sequence:
        keywords["nargs"] = "+" if required else "*"
        (kind,) = get_args(kind)
    return keywords | {"type": argument.parse or kind}


def _shown(default: object) -> str:
    return f"{default:g}" if isinstance(default, float) else str(default)
