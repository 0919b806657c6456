"""Resolution of a study before any training: every budget on every PLM, computed from shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from apet.config.study_config import PretrainingConfig
from apet.core.records import write_json_record
from apet.data.task_config import Task
from apet.errors import BudgetError, ConfigError, error_context, unknown_name
from apet.models.checkpoint_files import names_in
from apet.models.ladder import LadderModel
from apet.models.ladder_inventory import ladder_inventory
from apet.models.layouts import LAYOUTS
from apet.models.registry import FAMILIES, Model, folder_of, head_of, read_config, values_of
from apet.placement import (
    Budget,
    Inventory,
    canonical_budget,
    check_plan,
    max_virtual_tokens,
    resolve,
    virtual_tokens,
)
from apet.study.cells import TRAINER_VERSION, Cell
from apet.study.grid import OWN_BUDGET, Grid, load_grid
from apet.study.resolved import read_resolved

# Modules that import PyTorch are imported after the names of a study are checked, so that a typo is reported at once.


def resolve_study(params: Path, out: Path | None = None) -> tuple[Grid, dict[str, Any]]:
    """Resolve a study: its cells and, for each PLM, its size and every budget as a number.

    Args:
        params: The study file.
        out: The JSON file to write, if any.

    Returns:
        The study, and the record of the resolved study.

    Raises:
        ConfigError: The study contains something that cannot run.
        BudgetError: A placement cannot meet a budget on a PLM.
    """
    grid = load_grid(params)
    record = {**grid.record(), "plms": sizes(grid)}
    return grid, write_json_record(out, record) if out else record


def sizes(grid: Grid) -> dict[str, dict[str, Any]]:
    """Compute the sizes of a study's PLMs and every budget as a number, which a plan confirms.

    Args:
        grid: The study.

    Returns:
        By PLM: `family`, `num_params`, `non_embedding_params`, `layers`, `hidden_size`, the number of `sites`, and
        `trainable_params` by "placement budget".

    Raises:
        ConfigError: A PLM cannot do one of its tasks.
        BudgetError: A placement cannot meet a budget on a PLM.
    """
    values = {}
    for model, source in grid.models.items():
        with error_context(f"{grid.params}: models"):
            values[model] = values_of(source, grid.recipe, Path(grid.plm_folder(model)))
    return {model: _sizes(grid, model, values[model]) for model in grid.models}


def _sizes(grid: Grid, model: str, values: Mapping[str, Any]) -> dict[str, Any]:
    inventory = _inventory(grid, model, values)
    methods = grid.study.methods
    counts: dict[str, int] = {}
    for (placement, budget), entry in grid.budgets_by_model[model].items():
        try:
            count = resolve(Budget.parse(budget), placement, inventory, methods)
            plans_differ = check_plan(inventory, placement, count, methods)
        except BudgetError as error:
            raise BudgetError(f"{grid.params}: model {model}: {error}") from None
        if entry.num_plans > 1 and not plans_differ and canonical_budget(placement, budget)[1] != OWN_BUDGET:
            raise ConfigError(
                f"{grid.params}: grid: num_plans: expected 1 for {placement} at {budget}, whose plans on {model} are "
                f"equal, got {entry.num_plans}. Use num_seeds, or move the placement to another entry."
            )
        counts[f"{placement} {budget}"] = count
    _check_positions(grid, model, inventory, counts)
    return {
        "family": inventory.family,
        "num_params": inventory.num_params,
        "non_embedding_params": inventory.non_embedding_params,
        "layers": inventory.layers,
        "hidden_size": next(site.cost for site in inventory.sites if site.structure == "token"),
        "sites": len(inventory.sites),
        "trainable_params": counts,
    }


def _check_positions(grid: Grid, model: str, inventory: Inventory, counts: Mapping[str, int]) -> None:
    """Raise ConfigError if texts with the virtual tokens or prefix of a cell can exceed the positions of its PLM."""
    embedding = LAYOUTS[inventory.family].positions
    if embedding is None:
        return
    (positions,) = {site.shape[0] for site in inventory.sites if (site.place, site.structure) == (embedding, "entry")}
    most = {
        spent: max_virtual_tokens(inventory, spent[0], counts[" ".join(spent)], grid.study.methods)
        for spent in grid.budgets_by_model[model]
    }
    for cell in (cell for cell in grid.cells if cell.model == model):
        length = min(cell.training.max_length, grid.tasks[cell.task].max_length)
        tokens = most[cell.placement, cell.budget]
        if length + tokens > positions:  # an upper bound, which most random plans do not reach
            tokens = _virtual_tokens(cell, inventory, counts[f"{cell.placement} {cell.budget}"])
        if length + tokens > positions:
            raise ConfigError(
                f"{grid.params}: model {model}: task {cell.task}, {cell.placement} at {cell.budget}: expected at most "
                f"{positions} tokens, the positions of the PLM, got texts of up to {length} and {tokens} virtual "
                "tokens. Lower training.max_length, methods.num_virtual_tokens, methods.prefix_length or the budget."
            )


def _virtual_tokens(cell: Cell, inventory: Inventory, count: int) -> int:
    """Return the largest number of positions that a plan of a cell takes in front of a text."""
    seeds = (cell.seed_of("plan", index) for index in range(cell.num_plans))
    return max(virtual_tokens(inventory, cell.placement, count, seed, cell.methods) for seed in seeds)


def _inventory(grid: Grid, model: str, values: Mapping[str, Any]) -> Inventory:
    """Return the sites of a PLM. Raises ConfigError if it cannot do one of its tasks.

    values: keys of its config.json.
    """
    source = grid.models[model]
    with error_context(grid.params):
        with error_context(f"model {model}"):
            inventory = inventory_of_source(source, values, grid.recipe)
        for name in (name for other, name in grid.model_task_pairs if other == model):
            _check_task(grid.tasks[name], model, str(values["model_type"]), head_of(source))
        if not isinstance(source, LadderModel):  # whose tokenizer distinguishes all texts
            from apet.study.tokenizer_checks import check_tokenizer

            check_tokenizer(grid, source, str(values["model_type"]))
        return inventory


def inventory_of_source(source: Model, values: Mapping[str, Any], recipe: PretrainingConfig) -> Inventory:
    """Make the inventory of a PLM from its sizes.

    Args:
        source: The PLM.
        values: Its keys of config.json, see `values_of`.
        recipe: How ladder models are pretrained.

    Returns:
        The inventory.

    Raises:
        ModelError: As `inventory_of_config`.
    """
    if isinstance(source, LadderModel):
        return ladder_inventory(source, recipe)
    from apet.models.inventory import inventory_of_config

    return inventory_of_config(values, head_of(source))


def planned_inventory(source: Model, recipe: PretrainingConfig) -> Inventory:
    """Make the inventory of a PLM that may belong to no study.

    Args:
        source: The PLM. Of a folder, config.json is enough; if the folder has more files, the PLM must load.
        recipe: How ladder models are pretrained.

    Returns:
        The inventory.

    Raises:
        ModelError: The shapes are not known yet, or a folder cannot be loaded.
    """
    if isinstance(source, LadderModel) or source.kind != "folder":
        return inventory_of_source(source, values_of(source, recipe, Path()), recipe)
    folder = folder_of(source)
    if folder.is_dir() and set(names_in(folder)) == {"config.json"}:
        return inventory_of_source(source, read_config(folder), recipe)
    inventory = inventory_of_source(source, values_of(source, recipe, Path()), recipe)
    from apet.models.loading import check_folder

    check_folder(folder, source.name, source.head)
    return inventory


def _check_task(task: Task, model: str, architecture: str, head: str) -> None:
    """Raise ConfigError if a PLM cannot do a task, or if the task has a prompt for an unknown family."""
    for family in task.family_prompts:
        if family not in FAMILIES:
            raise ConfigError(unknown_name("family", family, FAMILIES, f"task {task.name}: prompt"))
    if task.type == "generation":
        from apet.evaluation import check_can_generate
        from apet.models.families import family_of

        try:
            check_can_generate(task.name, model, family_of(architecture), head)
        except ConfigError as error:
            raise ConfigError(f"{error} To skip the pair, add it to `exclude`.") from None


def read_cells(path: Path, cells: Sequence[str] | None = None) -> list[Cell]:
    """Read cells of a resolved study.

    Args:
        path: The file that `apet resolve` wrote.
        cells: Paths of cells, in which * matches anything; by default all.

    Returns:
        The cells, each once.

    Raises:
        ConfigError: The file is no resolved study, has another trainer version, or has no such cell.
        CorruptError: The file is corrupt.
    """
    return select_cells(read_resolved(path), cells, path)


def select_cells(record: Mapping[str, Any], names: Sequence[str] | None, location: Path) -> list[Cell]:
    """Restore cells from the record of a study.

    Args:
        record: The record, as `Grid.record` returns it.
        names: Paths of cells, in which * matches anything; by default all.
        location: The study's file, for messages.

    Returns:
        The cells, each once.

    Raises:
        ConfigError: The record has another trainer version, or has no such cell.
    """
    known, trainer = record["cells"], record["shared"]["trainer_version"]
    if trainer != TRAINER_VERSION:
        raise ConfigError(
            f"{location}: trainer_version: expected {TRAINER_VERSION}, got {trainer} of another version of apet. "
            "Run `apet resolve` again."
        )
    # Only the selected cells, because a job has few and a study thousands.
    return [_cell(record, known[path]) for path in _selected(known, names, location)]


def _selected(known: Mapping[str, Any], names: Sequence[str] | None, location: Path) -> list[str]:
    """Return the paths of the named cells, each once."""
    selected: dict[str, None] = {}
    for name in names or ("*",):
        matches = [name] if name in known else [cell for cell in known if "*" in name and fnmatchcase(cell, name)]
        if not matches and "*" in name:
            example = next(iter(known), "model/task/name")
            raise ConfigError(f"{location}: no cell matches {name!r}. Cells are named like {example}.")
        if not matches:
            raise ConfigError(unknown_name("cell", name, known, str(location)))
        selected |= dict.fromkeys(matches)
    return list(selected)


def _cell(record: Mapping[str, Any], own: Mapping[str, Any]) -> Cell:
    digests = {
        "model_digest": record["digests"]["model_digest"][own["model"]],
        "data_digest": record["digests"]["data_digest"][own["task"]],
    }
    return Cell.from_record({**record["shared"], **digests, **own, "training": record["trainings"][own["training"]]})
