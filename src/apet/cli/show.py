"""The text of `apet show`: plans by layer and module, losses, scores, digests and run record of a cell. No torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from apet.analysis.single_run import run_interval
from apet.analysis.tidy import tidy
from apet.cli.render import format_count, table
from apet.core.text import plural
from apet.data.prepared_files import read_record
from apet.errors import DataError
from apet.placement import STRUCTURES
from apet.study.cell_record import reading
from apet.study.paths import ResultPaths

BARS = "▁▂▃▄▅▆▇█"
NO_LAYER = "–"
"""Header of the column for modules outside the layers."""

RUN = ("seconds", "cpu_seconds", "peak_memory_mb", "host", "processor", "device", "finished", "versions")
"""Required keys of a run record."""


def show(folder: Path, results: ResultPaths) -> list[str]:
    """Describe a finished cell.

    Args:
        folder: The cell's folder.
        results: The results folders, which contain the run record.

    Returns:
        Lines: PLM, task and budget, plans, losses, scores, digests, run record.

    Raises:
        DataError: The record lacks a key of a cell's record, or is of another format.
        CorruptError: The record or the plans are corrupt.
    """
    with reading(folder) as (record, plans):
        lines = _lines(record, plans)
    return [*lines, "", *_run(results.runs / f"{record['path']}.json")]


def _lines(record: dict[str, Any], plans: dict[str, Any]) -> list[str]:
    tidy([(record["path"], record)])  # checks keys and types
    cell, task, plm, replicates = (record[key] for key in ("cell", "task", "plm", "replicates"))
    chance = f"{task['chance']:.3f}"
    if task["majority"] is not None:
        chance = f"{max(task['chance'], task['majority']):.3f} (uniform {chance}, majority {task['majority']:.3f})"
    head = f", and a head of {size:,}" if (size := record["head"]["parameters"]) else ""
    lines = [
        record["path"],
        f"PLM      {plm['name']} ({plm['family']}), {plm['num_params']:,} parameters, {plm['dtype']}",
        f"task     {task['name']}: {task['metric']}, chance {chance}",
        f"tuned    {cell['placement']} at {cell['budget']}: {record['trainable_params']:,} parameters, "
        f"{record['trainable_params'] / plm['num_params']:.3%}{head}; "
        f"{plural(cell['num_plans'], 'plan')}, {plural(cell['num_seeds'], 'seed')}{' each' * (cell['num_plans'] > 1)}",
        "",
    ]
    for name, plan in plans.items():
        lines += [*plan_lines(name.partition(".")[0], plan), ""]
    lines += [*loss_lines(replicates), "", *score_lines(task, replicates), _mean(replicates), ""]
    return [*lines, *_digests(record)]


def plan_lines(name: str, plan: Mapping[str, Any]) -> list[str]:
    """Format a plan: trainable parameters by structure, then units by module and structure (rows) and layer (columns).

    Args:
        name: Name of the plan, such as plan0.
        plan: The plan's record.

    Returns:
        One line and, if the plan has units, a table.
    """
    counts = ", ".join(f"{structure} {n:,}" for structure, n in plan["structures"].items() if n)
    title = f"{name}    plan {plan['digest'][:12]}, seed {plan['seed']}: {counts or 'nothing'}"
    units = [(*_split(site), count) for site, count in plan["units"].items()]
    if not units:
        return [title]
    layers = sorted({layer for _, _, layer, _ in units}, key=lambda layer: math.inf if layer is None else layer)
    by_module: dict[tuple[str, str], Counter] = {}
    for module, structure, layer, count in sorted(units, key=lambda unit: (STRUCTURES.index(unit[1]), unit[0])):
        by_module.setdefault((structure, module), Counter())[layer] += count
    rows = [["units of", "at", *(NO_LAYER if layer is None else str(layer) for layer in layers)]]
    for names, by_layer in by_module.items():
        rows.append([*names, *(format_count(by_layer[layer]) if layer in by_layer else "·" for layer in layers)])
    return [title, *table(rows, indent="  ")]


def loss_lines(replicates: Sequence[Mapping[str, Any]]) -> list[str]:
    """Format each replicate's training losses, with one bar per evaluation, scaled to the replicate's own range."""
    rows = [["loss", "first", "last", "", "best on validation"]]
    for run in replicates:
        losses = [loss for _, loss in run["losses"]]
        ends = [f"{losses[0]:.3f}", f"{losses[-1]:.3f}"] if losses else ["", ""]
        stopped = f", ended by {run['stopped']}" if run["stopped"] else ""
        best = f"step {run['best_step']} of {run['num_steps']}{stopped}"
        rows.append([_name(run), *ends, sparkline(losses), best])
    return table(rows, indent="  ")


def score_lines(task: Mapping[str, Any], replicates: Sequence[Mapping[str, Any]]) -> list[str]:
    """Format each replicate's scores with n, an interval of the test score if it has one, and the multiplier."""
    rows = [["score", "validation", "test", "95 % CI (one run)", "test loss", "lr multiplier", "outcome"]]
    for run in replicates:
        test, validation = run["test"], run["validation"]
        interval = run_interval(task, test["score"], test["n"])
        scores = [f"{split['score']:.4f} (n = {split['n']})" for split in (validation, test)]
        interval_text = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "none"
        details = [interval_text, f"{test['loss']:.4f}", f"{run['lr_multiplier']:g}", run["outcome"]]
        rows.append([_name(run), *scores, *details])
    return table(rows, indent="  ")


def sparkline(values: Sequence[float]) -> str:
    """Draw one bar per value, scaled to their range; equal values are low bars."""
    if not values:
        return ""
    low, high = min(values), max(values)
    top = len(BARS) - 1
    return "".join(BARS[round(top * (value - low) / (high - low)) if high > low else 0] for value in values)


def _split(site: str) -> tuple[str, str, int | None]:
    """Split `encoder.3.attention.query/bias` into (`encoder attention.query`, bias, 3)."""
    place, _, structure = site.rpartition("/")
    stack, *rest = place.split(".")
    if rest and rest[0].isdigit():
        return f"{stack} {'.'.join(rest[1:])}", structure, int(rest[0])
    return place, structure, None


def _name(run: Mapping[str, Any]) -> str:
    return f"plan{run['plan_index']}.seed{run['seed_index']}"


def _mean(replicates: Sequence[Mapping[str, Any]]) -> str:
    """Return the mean test score. Its interval is in the report, which uses the other cells too."""
    scores = [run["test"]["score"] for run in replicates if run["outcome"] != "diverged"]
    count = f"{len(scores)} of {len(replicates)} replicates"
    spread = f"S.D. between them {stdev(scores):.4f}, " if len(scores) > 1 else ""
    n = min(run["test"]["n"] for run in replicates)
    return f"  mean {fmean(scores) if scores else math.nan:.4f} ({count}, {spread}n = {n} test rows)"


def _digests(record: Mapping[str, Any]) -> list[str]:
    rows = [["digests", ""], ["PLM", record["plm"]["content"]], ["rows", record["task"]["digest"]]]
    rows += [[f"θ {_name(run)}", run["theta_digest"]] for run in record["replicates"]]
    return table([*rows, *([name, found] for name, found in record["files"].items())], indent="  ")


def _run(path: Path) -> list[str]:
    """Format time, memory and machine from the run record."""
    if not path.is_file():
        return [f"run      no record at {path}"]
    run = read_record(path)
    if missing := [key for key in RUN if key not in run]:
        raise DataError(f"{path}: not a run record: missing key {missing[0]!r}. Delete it.")
    return [
        f"run      {run['seconds']:.1f} s, {run['cpu_seconds']:.1f} s of CPU, at most {run['peak_memory_mb']:,} MB",
        f"         on {run['host']}: {run['processor']}, {run['device']}, finished {run['finished']}"
        + (", resumed after an interruption" if run.get("resumed") else ""),
        "         " + ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
    ]
