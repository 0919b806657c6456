"""Resolving a study before anything expensive runs: every budget on every PLM, from shapes alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from apet.config.study_config import load_study
from apet.core.records import read_json_record, write_json_record
from apet.data.schema import Task
from apet.errors import ApetError, BudgetError, ConfigError, CorruptError, error_context, unknown_name
from apet.models.registry import FAMILIES, head_of, values_of
from apet.placement import Budget, Inventory, check_plan, max_virtual_tokens, resolve, virtual_tokens
from apet.study.grid import TRAINER_VERSION, Cell, Grid

# What needs torch is imported where a study's names are in order, so that a wrong one is said within a second.


def resolve_study(params: Path, out: Path) -> None:
    """Write the resolved study: cells, and for each PLM its size and every budget as a number.

    Raises ParamsError or BudgetError for whatever could not be run, before anything is fetched or trained.
    """
    grid = Grid(load_study(params), params)
    write_json_record(out, {**grid.record(), "plms": sizes(grid)})


def sizes(grid: Grid) -> dict[str, dict[str, Any]]:
    """By PLM: parameters, non_embedding, sites, and tunable, where "placement budget" has its number of parameters.

    Each number is proved by a plan. Raises as `resolve_study`.
    """
    return {model: _sizes(grid, model) for model in grid.models}


def _sizes(grid: Grid, model: str) -> dict[str, Any]:
    inventory = _inventory(grid, model)
    methods = grid.study.methods
    counts: dict[str, int] = {}
    for placement, budget in grid.budgets_by_model[model]:
        try:
            count = resolve(Budget.parse(budget), placement, inventory, methods)
            check_plan(inventory, placement, count, methods)
        except BudgetError as error:
            raise BudgetError(f"{grid.params}: model {model}: {error}") from None
        counts[f"{placement} {budget}"] = count
    _check_positions(grid, model, inventory, counts)
    return {
        "parameters": inventory.parameters,
        "non_embedding": inventory.non_embedding,
        "sites": len(inventory.sites),
        "tunable": counts,
    }


def _check_positions(grid: Grid, model: str, inventory: Inventory, counts: Mapping[str, int]) -> None:
    """ParamsError for a cell whose texts, its virtual tokens in front, may be longer than the PLM has positions."""
    from apet.models.families import FAMILIES as ARCHITECTURES

    place = ARCHITECTURES[inventory.family].positions
    if place is None:
        return
    (positions,) = {site.shape[0] for site in inventory.sites if (site.place, site.structure) == (place, "entry")}
    most = {
        spent: max_virtual_tokens(inventory, spent[0], counts[" ".join(spent)])
        for spent in grid.budgets_by_model[model]
    }
    for cell in (cell for cell in grid.cells if cell.model == model):
        length = min(cell.training.max_length, grid.tasks[cell.task].max_length)
        tokens = most[cell.placement, cell.budget]
        if length + tokens > positions:  # which a plan may stay below: most random ones do
            tokens = _virtual_tokens(cell, inventory, counts[f"{cell.placement} {cell.budget}"])
        if length + tokens > positions:
            raise ConfigError(
                f"{grid.params}: model {model}: task {cell.task}, {cell.placement} at {cell.budget}: texts of up to "
                f"{length} tokens with {tokens} virtual tokens in front, which are {length + tokens}. Allowed: at most "
                f"{positions}, as many as the PLM has positions. Lower training.length, methods.num_virtual_tokens or the "
                "budget."
            )


def _virtual_tokens(cell: Cell, inventory: Inventory, count: int) -> int:
    """The most that any of a cell's plans has."""
    seeds = (cell.seed_of("plan", draw) for draw in range(cell.num_plans))
    return max(virtual_tokens(inventory, cell.placement, count, seed, cell.methods) for seed in seeds)


def _inventory(grid: Grid, model: str) -> Inventory:
    """A PLM's sites. Raises ParamsError where it cannot do one of the tasks that the study gives it."""
    from apet.models.loading import inventory_of_config

    found = grid.models[model]
    with error_context(grid.params):
        values = values_of(found, grid.recipe, Path(grid.plm_folder(model)))
        with error_context(f"model {model}"):
            inventory = inventory_of_config(values, head_of(found))
        for name in (name for other, name in grid.model_task_pairs if other == model):
            _check_task(grid.tasks[name], model, str(values["model_type"]), head_of(found))
        return inventory


def _check_task(task: Task, model: str, architecture: str, head: str) -> None:
    """ParamsError where a PLM cannot do a task, or the task has a prompt for a family that is none."""
    from apet.evaluation import check_can_generate
    from apet.models.families import family_of

    for family in task.prompts:
        if family not in FAMILIES:
            raise ConfigError(unknown_name("family", family, FAMILIES, f"task {task.name}: prompt"))
    if task.type == "generation":
        try:
            check_can_generate(task.name, model, family_of(architecture), head)
        except ConfigError as error:
            raise ConfigError(f"{error} To leave the pair out, name it under `exclude`.") from None


RESOLVED = re.compile(r"[0-9a-f]{12}")
"""Name of a resolved study that its id has given it."""


def read_resolved(path: Path) -> dict[str, Any]:
    """The resolved study that `apet check` wrote. ParamsError for another file, or an older version's; CorruptError for
    one that is damaged or, by its name, another study's.
    """
    remedy = "Delete it and make it again with `apet check`; Snakemake does so by itself."
    try:
        record = read_json_record(path, remedy)
        if not isinstance(record.get("cells"), dict):
            raise ConfigError(f"its cells are no mapping. {remedy}")
    except ApetError as error:
        kind = CorruptError if isinstance(error, CorruptError) else ConfigError
        raise kind(f"{path}: not a resolved study: {str(error).removeprefix(f'{path}: ')}") from None
    if RESOLVED.fullmatch(path.stem) and not record["study"].startswith(path.stem):
        raise CorruptError(f"{path}: holds another study, {record['study'][:12]}. {remedy}")
    return record


def read_cells(path: Path, cells: Sequence[str] | None = None) -> list[Cell]:
    """The cells of a resolved study at these paths, in which * stands for anything (all by default).

    Raises as `read_resolved`, and ParamsError for a study of another trainer's version and for a path that is not the
    study's.
    """
    record = read_resolved(path)
    known, trainer = record["cells"], record["shared"]["trainer_version"]
    if trainer != TRAINER_VERSION:
        raise ConfigError(
            f"{path}: resolved by another version of apet, of trainer {trainer}; this one has trainer "
            f"{TRAINER_VERSION}, whose cells have other names. Make it again with `apet check`."
        )
    # Only those that are asked for: a job's are few, and a study has thousands.
    return [_cell(record, known[name]) for name in _asked(known, cells, path)]


def _asked(known: Mapping[str, Any], cells: Sequence[str] | None, path: Path) -> list[str]:
    """The cells that are named, each once; in a name * stands for anything."""
    if cells is None:
        return list(known)
    found = {name: [name] if name in known else _matching(known, name) for name in cells}
    for name in (name for name, those in found.items() if not those):
        raise ConfigError(unknown_name("cell", name, known, str(path)))
    return list(dict.fromkeys(name for those in found.values() for name in those))


def _matching(known: Mapping[str, Any], name: str) -> list[str]:
    return [path for path in known if fnmatchcase(path, name)] if "*" in name else []


def _cell(record: dict, own: dict) -> Cell:
    digests = {
        "model_digest": record["digests"]["model_digest"][own["model"]],
        "data_digest": record["digests"]["data_digest"][own["task"]],
    }
    return Cell.of({**record["shared"], **digests, **own, "training": record["trainings"][own["training"]]})
