"""Command-line grammar read from a function's typed signature: keyword-only parameters become options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import shtab


def positive_number(text: str) -> float:
    """Parse a finite number above 0."""
    with suppress(ValueError):
        if 0 < (number := float(text)) < float("inf"):
            return number
    raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")


def non_negative_number(text: str) -> float:
    """Parse a finite number from 0."""
    with suppress(ValueError):
        if 0 <= (number := float(text)) < float("inf"):
            return number
    raise argparse.ArgumentTypeError(f"expected a number from 0, got {text!r}")


def integer_from(least: int) -> Callable[[str], int]:
    """Return a parser of integers of at least `least`."""

    def parse(text: str) -> int:
        with suppress(ValueError):
            if (number := int(text)) >= least:
                return number
        raise argparse.ArgumentTypeError(f"expected an integer from {least}, got {text!r}")

    return parse


HELP = {
    "allow_missing": "skip missing cells and list them in missing.csv",
    "archives_dir": "folder of the archives that `apet pack` wrote",
    "budget": "budget: a number, a percentage, or a method's own such as @lora",
    "cell": "cell as model/task/name; quote wildcards: 'bloom-*/bbc_topics/*'",
    "show.cell": "cell as model/task/name, or its folder",
    "export.cell": "cell as model/task/name, or its folder",
    "checkpoint_interval": "seconds between checkpoints",
    "corpus_dir": "corpus folder",
    "cpu_flops": "FLOP/s of a CPU core",
    "data_dir": "folders of prepared tasks (default: those that the study uses)",
    "decontaminate_against": "folders of prepared tasks to keep out of the corpus",
    "device": "device to train on",
    "measure.device": "device to measure on",
    "digest_index": "JSON file to write: the digest of each cell's record",
    "effects": "factors of the assumed effects; at 0 every verdict is false",
    "failed": "print a table of the failed cells",
    "format": "peft: a PEFT adapter; merged: an ordinary Hugging Face model folder; delta: θ and its plan",
    "gpu_flops": "FLOP/s of a GPU",
    "gpu_min_params": "parameters from which a PLM uses a GPU (default: 1e7, or no GPU if this machine has none)",
    "json": "print JSON",
    "logger": "log losses and scores too",
    "model": "ladder model, such as bloom-64x4",
    "download_model.model": "name of a model of the study",
    "measure.model": "name of a model of the study",
    "plan.model": "PLM: a ladder model, a name in the study or the registry, or a folder",
    "model_dir": "folder of the PLM (default: the folder that the study uses)",
    "num_cells": "number of cells drawn if none is named",
    "aggregate.out_dir": "output folder (default: the results folder)",
    "download_model.out_dir": "output folder (default: the folder that the study uses)",
    "figures.out_dir": "output folder (default: figures, beside the tidy table)",
    "findings.out_dir": "output folder (default: that of the tidy table)",
    "out_dir": "output folder",
    "prepare_task.out_dir": "output folder (default: the folder that the study uses)",
    "results.out_dir": "output folder (default: the results folder)",
    "out_file": "file to write",
    "report.out_file": "file to write (default: report.html in the results folder)",
    "params": "study file",
    "pilot": "tidy table of a pilot, from which variances and effects are estimated (default: documented values)",
    "placement": "placement, such as uniform or lora",
    "project_dir": "folder that contains data/ and models/",
    "replicate": "replicate to export",
    "resolved": "study as written by `apet resolve` (default: the study file)",
    "results_dir": "results folder",
    "seed": "seed",
    "power.seed": "seed of the simulated studies",
    "plan.seed": "seed of random placements",
    "verify.seed": "seed of the choice of cells",
    "shell": "name of the shell",
    "studies": "number of simulated studies at each effect",
    "task": "name of the task in the study, or the path of its YAML file",
    "tidy": "tidy table, tidy.parquet",
    "tokenizer_dir": "tokenizer folder",
    "tolerance": "accepted difference of test scores in points, if a cell was trained on another machine type",
    "wheel": "name in src/apet/data/wheels.yaml",
    "wheels_dir": "folder of wheels",
    "work_dir": "folder for the retrained cells (default: a temporary one)",
}
"""Help text of each parameter, or of a command's parameter if the command needs another text."""

PARSERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("checkpoint_interval", "cpu_flops", "gpu_flops", "gpu_min_params"), positive_number),
    "effects": non_negative_number,
    **dict.fromkeys(("num_cells", "studies"), integer_from(1)),
    "seed": integer_from(0),
    "tolerance": non_negative_number,
}
"""Functions that convert and check a value, if its type alone does not."""

COMPLETIONS = {"cell": shtab.cmd("cd results/cells 2>/dev/null && ls -d */*/*")}
"""Shell completions, if not of paths: a cell is completed from the finished ones."""


def add_arguments(parser: argparse.ArgumentParser, function: Callable[..., None]) -> None:
    """Add an argument for each parameter of a function.

    A parameter without a default is required. A bool is a flag, a Literal a choice, a Sequence takes several values.

    Args:
        parser: The parser of the command.
        function: A function with typed parameters, which `HELP` describes.
    """
    hints = get_type_hints(function)
    for name, parameter in signature(function).parameters.items():
        kind = get_args(hints[name])[0] if NoneType in get_args(hints[name]) else hints[name]
        option = parameter.kind is Parameter.KEYWORD_ONLY
        text = HELP.get(f"{function.__name__}.{name}") or HELP[name]
        keywords = _keywords(name, kind, parameter.default, text)
        if option:
            keywords["required"] = parameter.default is Parameter.empty
        action = parser.add_argument(f"--{name.replace('_', '-')}" if option else name, **keywords)
        if completion := COMPLETIONS.get(name) or (shtab.FILE if Path in (kind, *get_args(kind)) else None):
            action.complete = completion  # type: ignore[attr-defined]  # read by shtab


def _keywords(name: str, kind: Any, default: Any, text: str) -> dict[str, Any]:
    """Keywords of `ArgumentParser.add_argument` for a parameter."""
    if kind is bool:
        return {"action": "store_true", "help": text}
    keywords: dict[str, Any] = {"help": text}
    if default is not Parameter.empty:
        keywords["default"] = default
        if default not in (None, ()):
            keywords["help"] += f" (default: {default:g})" if isinstance(default, float) else f" (default: {default})"
    if get_origin(kind) is Literal:
        return keywords | {"choices": get_args(kind)}
    if get_origin(kind) is Sequence:
        keywords["nargs"] = "+" if default is Parameter.empty else "*"
        (kind,) = get_args(kind)
    return keywords | {"type": PARSERS.get(name, kind)}
