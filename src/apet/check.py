"""Resolving a study before anything expensive runs: every budget on every PLM, from shapes alone."""

from __future__ import annotations

from pathlib import Path

from apet.config import load_study
from apet.errors import BudgetError
from apet.evaluation import check_can_write
from apet.grid import Grid, located
from apet.placement import Budget, make_plan, resolve
from apet.plms.families import family_of
from apet.plms.load import inventory_of_config
from apet.plms.registry import head_of, values_of
from apet.provenance import write_json


def check_study(params: Path, out: Path) -> None:
    """Write the resolved study: cells, and for each PLM its size and every budget as a number.

    Raises ParamsError or BudgetError for whatever could not be run, before anything is fetched or trained.
    """
    grid = Grid(load_study(params), params)
    write_json(out, {**grid.record(), "plms": {name: _budgets(grid, name) for name in grid.models}})


def _budgets(grid: Grid, model: str) -> dict:
    """A PLM's size and what each (placement, budget) of the grid comes to on it, each proved by a plan."""
    with located(grid.params):
        values = values_of(grid.models[model], grid.recipe, Path(grid.plm_folder(model)))
        head, family = head_of(grid.models[model]), family_of(str(values.get("model_type")))
        for task in grid.tasks.values():
            if task.type == "generation":
                check_can_write(task.name, model, family, head)
        inventory = inventory_of_config(values, head)
    counts: dict[str, int] = {}
    for cell in grid.cells:
        name = f"{cell.placement} {cell.budget}"
        if cell.model != model or name in counts:
            continue
        try:
            counts[name] = resolve(Budget.parse(cell.budget), cell.placement, inventory, cell.methods)
            make_plan(inventory, cell.placement, counts[name], 0, cell.methods)
        except BudgetError as error:
            raise BudgetError(f"{grid.params}: model {model}: {error}") from None
    return {
        "parameters": inventory.parameters,
        "non_embedding": inventory.non_embedding,
        "sites": len(inventory.sites),
        "tunable": counts,
    }
