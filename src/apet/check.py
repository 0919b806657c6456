"""Resolving a study before anything expensive runs: every budget on every PLM, from shapes alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apet.config import load_study
from apet.errors import BudgetError, ParamsError, located
from apet.evaluation import check_can_write
from apet.grid import Grid
from apet.placement import Budget, Inventory, check_plan, resolve
from apet.plms.families import Family, family_of
from apet.plms.load import inventory_of_config
from apet.plms.registry import head_of, values_of
from apet.provenance import write_json


def check_study(params: Path, out: Path) -> None:
    """Write the resolved study: cells, and for each PLM its size and every budget as a number.

    Raises ParamsError or BudgetError for whatever could not be run, before anything is fetched or trained.
    """
    grid = Grid(load_study(params), params)
    write_json(out, {**grid.record(), "plms": sizes(grid)})


def sizes(grid: Grid) -> dict[str, dict[str, Any]]:
    """By PLM: parameters, non_embedding, sites, and tunable, where "placement budget" has its number of parameters.

    Each number is proved by a plan. Raises as `check_study`.
    """
    return {model: _sizes(grid, model) for model in grid.models}


def _sizes(grid: Grid, model: str) -> dict[str, Any]:
    inventory = _inventory(grid, model)
    methods = grid.study.methods
    counts: dict[str, int] = {}
    for placement, budget in grid.spendings:
        try:
            count = resolve(Budget.parse(budget), placement, inventory, methods)
            check_plan(inventory, placement, count, methods)
        except BudgetError as error:
            raise BudgetError(f"{grid.params}: model {model}: {error}") from None
        counts[f"{placement} {budget}"] = count
    return {
        "parameters": inventory.parameters,
        "non_embedding": inventory.non_embedding,
        "sites": len(inventory.sites),
        "tunable": counts,
    }


def _check_can_write(task: str, model: str, family: Family, head: str) -> None:
    try:
        check_can_write(task, model, family, head)
    except ParamsError as error:
        raise ParamsError(f"{error} To leave the pair out, name it under `exclude`.") from None


def _inventory(grid: Grid, model: str) -> Inventory:
    """A PLM's sites. Raises ParamsError where it cannot do one of the tasks that the study gives it."""
    with located(grid.params):
        values = values_of(grid.models[model], grid.recipe, Path(grid.plm_folder(model)))
        head, family = head_of(grid.models[model]), family_of(str(values.get("model_type")))
        for task in (grid.tasks[name] for other, name in grid.pairs if other == model):
            if task.type == "generation":
                _check_can_write(task.name, model, family, head)
        return inventory_of_config(values, head)
