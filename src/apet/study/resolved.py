"""The file of a resolved study. Light to import, because `apet status` reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apet.core.records import read_json_record
from apet.errors import ApetError, ConfigError, CorruptError

ID = re.compile(r"[0-9a-f]{12}")
"""File name of a resolved study in results/studies: the start of its id."""

FIX = "Delete it and run `apet resolve`; Snakemake does so itself."


def read_resolved(path: Path) -> dict[str, Any]:
    """Read a resolved study.

    Args:
        path: The file that `apet resolve` wrote.

    Returns:
        The record, as `resolve_study` writes it.

    Raises:
        ConfigError: The file is missing, is no resolved study, or is of an older version of apet.
        CorruptError: The file is corrupt, or its name is another study's id.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such file. Create it with `apet resolve --out-file {path}`.")
    try:
        record = read_json_record(path, FIX)
        if not isinstance(record.get("cells"), dict):
            raise ConfigError(f"cells: expected a mapping. {FIX}")
    except ApetError as error:
        kind = CorruptError if isinstance(error, CorruptError) else ConfigError
        raise kind(f"{path}: not a resolved study: {str(error).removeprefix(f'{path}: ')}") from None
    if ID.fullmatch(path.stem) and not record["study"].startswith(path.stem):
        raise CorruptError(f"{path}: study: expected {path.stem}, got {record['study'][:12]}. {FIX}")
    return record


def num_trainings(num_plans: int, num_seeds: int, num_lr_multipliers: int) -> int:
    """Return the number of trainings of a cell: one per replicate, and the other multipliers of the first one."""
    return num_plans * num_seeds + num_lr_multipliers - 1


def training_steps(record: Mapping[str, Any]) -> dict[str, int]:
    """Count the optimizer steps of all trainings of each cell.

    Args:
        record: The record of a study, as `Grid.record` returns it.

    Returns:
        Path of a cell -> steps, 0 for an untuned PLM.
    """
    steps = {}
    for path, cell in record["cells"].items():
        training = record["trainings"][cell["training"]]
        trainings = num_trainings(cell["num_plans"], cell["num_seeds"], len(training["lr_multipliers"]))
        steps[path] = trainings * training["max_steps"] if cell["placement"] != "none" else 0
    return steps
