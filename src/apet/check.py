"""Resolving a study before anything expensive runs: every budget on every PLM, from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apet.config import load_study
from apet.data.tasks import Task
from apet.errors import BudgetError, ParamsError, located, unknown
from apet.grid import Cell, Grid
from apet.placement import Budget, Inventory, check_plan, most_virtual_tokens, resolve, virtual_tokens
from apet.plms.registry import FAMILIES, head_of, values_of
from apet.sealed import write_sealed

# What needs torch is imported where a study's names are in order, so that a wrong one is said within a second.


def check_study(params: Path, out: Path) -> None:
    """Write the resolved study: cells, and for each PLM its size and every budget as a number.

    Raises ParamsError or BudgetError for whatever could not be run, before anything is fetched or trained.
    """
    grid = Grid(load_study(params), params)
    write_sealed(out, {**grid.record(), "plms": sizes(grid)})


def sizes(grid: Grid) -> dict[str, dict[str, Any]]:
    """By PLM: parameters, non_embedding, sites, and tunable, where "placement budget" has its number of parameters.

    Each number is proved by a plan. Raises as `check_study`.
    """
    return {model: _sizes(grid, model) for model in grid.models}


def _sizes(grid: Grid, model: str) -> dict[str, Any]:
    inventory = _inventory(grid, model)
    methods = grid.study.methods
    counts: dict[str, int] = {}
    for placement, budget in grid.spendings[model]:
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
    from apet.plms.families import FAMILIES as ARCHITECTURES

    place = ARCHITECTURES[inventory.family].positions
    if place is None:
        return
    (positions,) = {site.shape[0] for site in inventory.sites if (site.place, site.structure) == (place, "entry")}
    most = {spent: most_virtual_tokens(inventory, spent[0], counts[" ".join(spent)]) for spent in grid.spendings[model]}
    for cell in (cell for cell in grid.cells if cell.model == model):
        length = min(cell.training.length, grid.tasks[cell.task].length)
        tokens = most[cell.placement, cell.budget]
        if length + tokens > positions:  # which a plan may stay below: most random ones do
            tokens = _virtual_tokens(cell, inventory, counts[f"{cell.placement} {cell.budget}"])
        if length + tokens > positions:
            raise ParamsError(
                f"{grid.params}: model {model}: task {cell.task}, {cell.placement} at {cell.budget}: texts of up to "
                f"{length} tokens with {tokens} virtual tokens in front, which are {length + tokens}. Allowed: at most "
                f"{positions}, as many as the PLM has positions. Lower training.length, methods.prompt_tokens or the "
                "budget."
            )


def _virtual_tokens(cell: Cell, inventory: Inventory, count: int) -> int:
    """The most that any of a cell's plans has."""
    seeds = (cell.seed_of("plan", draw) for draw in range(cell.draws))
    return max(virtual_tokens(inventory, cell.placement, count, seed, cell.methods) for seed in seeds)


def _inventory(grid: Grid, model: str) -> Inventory:
    """A PLM's sites. Raises ParamsError where it cannot do one of the tasks that the study gives it."""
    from apet.plms.load import inventory_of_config

    found = grid.models[model]
    with located(grid.params):
        values = values_of(found, grid.recipe, Path(grid.plm_folder(model)))
        with located(f"model {model}"):
            inventory = inventory_of_config(values, head_of(found))
        for name in (name for other, name in grid.pairs if other == model):
            _check_task(grid.tasks[name], model, str(values["model_type"]), head_of(found))
        return inventory


def _check_task(task: Task, model: str, architecture: str, head: str) -> None:
    """ParamsError where a PLM cannot do a task, or the task has a prompt for a family that is none."""
    from apet.evaluation import check_can_write
    from apet.plms.families import family_of

    for family in task.prompts:
        if family not in FAMILIES:
            raise ParamsError(unknown("family", family, FAMILIES, f"task {task.name}: prompt"))
    if task.type == "generation":
        try:
            check_can_write(task.name, model, family_of(architecture), head)
        except ParamsError as error:
            raise ParamsError(f"{error} To leave the pair out, name it under `exclude`.") from None
