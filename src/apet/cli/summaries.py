"""The text of `apet estimate` and `apet status`. No torch."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from apet.cli.render import format_bytes, format_hours, format_rounded, table
from apet.core.progress import format_duration, format_rate
from apet.core.text import plural
from apet.study.status import MACHINE_KEYS, Status, differences

if TYPE_CHECKING:  # importing it takes a second, too long for `apet status`
    from apet.study.resources import Cost, CostEstimate

COST_COLUMNS = ["cells", "done", "trainings", "tokens", "FLOPs", "CPU h", "GPU h", "θ on disk"]


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
    unknown = [task for task, rows in estimate.model.rows.items() if not rows["validation"] or not rows["test"]]
    lines = [
        "FLOPs per training token: 4 per parameter outside the embeddings (2 if only a head is trained), and 2 per "
        "trainable parameter",
        f"FLOP/s: {speed.cpu_flops:.3g} on a CPU core, {speed.gpu_flops:.3g} on a GPU; PLMs use a GPU from "
        f"{speed.gpu_min_params:,.0f} parameters",
        *(f"measured on {model}: {flops:.3g} FLOP/s" for model, (_, flops) in sorted(estimate.measured.items())),
        "texts have their maximum length and all steps are taken; loading times are not counted",
    ]
    return lines + [f"unknown numbers of rows: {', '.join(unknown)}; their evaluations are not counted"] * bool(unknown)


def status_lines(status: Status, now: float) -> list[str]:
    """Format the status of a study.

    Args:
        status: The status.
        now: The time it was read at, in seconds since 1970.

    Returns:
        Lines: counts in total and by PLM, the expected end, and a line for each problem.
    """
    lines = [f"{plural(status.total, 'cell')}: {_counts(status)}"]
    if len(status.models) > 1:
        lines += [f"  {model}: {_counts(status, model)}" for model in status.models]
    lines += _forecast(status, now)
    lines += [f"in progress: {path} (checkpoint {_ago(age)})" for path, age in status.in_progress.items()]
    lines += [f"failed: {path}: {_error(record)}" for path, record in status.failed.items()]
    return [*lines, *_machines(status)]


def failure_lines(status: Status) -> list[str]:
    """Format the failed cells as a table: cell, error, log file."""
    if not status.failed:
        started = status.runs or status.in_progress
        head = "no failed cells." if started else f"0 of {plural(status.total, 'cell')} run."
        return [f"{head} If a job failed, see its log in results/logs."]
    rows = [(path, _error(record), record.get("log") or "") for path, record in status.failed.items()]
    return table([("cell", "error", "log"), *rows])


def _counts(status: Status, model: str | None = None) -> str:
    counts = status.counts(model)
    return ", ".join(f"{n:,} {state}" for state, n in counts.items() if n or state in ("done", "pending"))


def _forecast(status: Status, now: float) -> list[str]:
    throughput, missing = status.throughput, status.missing
    if not missing:
        return []
    if throughput is None:
        return ["end: unknown until a cell has been trained on this machine"]
    seconds = throughput.seconds_for(missing)
    end = time.strftime("%Y-%m-%d %H:%M", time.localtime(now + seconds))
    rate = f"{format_rate(throughput.rate)} by {throughput.concurrency:.1f} processes"
    return [f"{rate}, the last {_ago(now - throughput.until)}; about {format_duration(seconds)} left, until {end}"]


def _machines(status: Status) -> list[str]:
    """Return a line per additional machine type, because equal bytes are promised only within one."""
    types: Counter[str] = Counter()
    # The dtype and the number of devices are properties of the PLM, not of the machine.
    keys = [key for key in MACHINE_KEYS if key not in ("dtype", "devices")]
    for run in status.runs.values():
        machines = [machine for machine in (run, *run.get("begun_on", ())) if "machine" in machine]
        types.update(json.dumps({key: machine.get(key) for key in keys}) for machine in machines)
    (first, count), *others = types.most_common() or [("{}", 0)]
    return [
        f"machines: {plural(other_count, 'cell')} trained on another machine type than {count}, so equal bytes are not "
        f"promised: {'; '.join(differences(json.loads(other), json.loads(first)))}"
        for other, other_count in others
    ]


def _ago(seconds: float) -> str:
    return f"{format_duration(max(0.0, seconds))} ago"


def _error(record: Mapping[str, Any]) -> str:
    """Return the error in a failure record, short enough for a table."""
    text = " ".join(str(record.get("error", "")).split())
    return text if len(text) <= 120 else f"{text[:119]}…"
