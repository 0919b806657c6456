"""The text of `apet prepare-task`, `apet resolve`, `apet estimate` and `apet status`. No torch."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apet.cli.render import format_bytes, format_count, format_hours, format_rounded, table
from apet.core.progress import format_duration, format_rate
from apet.core.text import plural
from apet.study.cell_record import METRICS
from apet.study.status import MACHINE_KEYS, Status, differences

if TYPE_CHECKING:  # importing it takes a second, too long for `apet status`
    from apet.study.grid import Grid
    from apet.study.resources import Cost, CostEstimate, CostModel, Speed

SHARES = {"half": "median", "a tenth": "p90"}
"""Share of the rows -> quantile that fewer rows exceed."""
MAX_NAME = 12
"""Characters of a class in the table of a task, which has to fit into 80 columns."""

COST_COLUMNS = ["cells", "done", "trainings", "tokens", "FLOPs", "CPU h", "GPU h", "θ on disk"]


def task_lines(record: Mapping[str, Any], max_lengths: Collection[int]) -> list[str]:
    """Format the record of a prepared task.

    Args:
        record: The record in task.json.
        max_lengths: Maximum numbers of tokens of a prompt with its texts, in the study's cells.

    Returns:
        Lines: a table of the splits, a table of the source's rows, overlap, chance and truncation.
    """
    splits, lengths = list(record["rows"]), record["text_lengths"]
    rows = [["split", *splits], ["rows", *(f"{count:,}" for count in record["rows"].values())]]
    rows.append(["cut by max_samples", *(f"{record['rows_uncapped'][s] - record['rows'][s]:,}" for s in splits)])
    rows.append(["origin", *(origin.replace(" of the source", " of source") for origin in record["origin"].values())])
    if record["verbalizer"]:
        for name, choose in (("largest class", max), ("smallest class", min)):
            rows.append([name, *(_class_share(record["label_counts"][split], choose) for split in splits)])
    for unit in ("words", "characters"):
        sizes = [lengths[split][unit] for split in splits]
        rows.append([f"{unit}, median / max", *(f"{size['median']:,} / {size['max']:,}" for size in sizes)])
    return [
        *table(rows, indent="  "),
        "",
        *table(_source_rows(record), indent="  ", numbers=True),
        "",
        f"  overlap before  {_overlap(record['overlap_before_drops'])}",
        f"  overlap now     {_overlap(record['overlap'])}",
        f"  chance          {record['metric']} {record['chance']['level']:.3f} on test",
        *_truncation(lengths["train"]["words"], sorted(max_lengths)),
    ]


def _truncation(words: Mapping[str, int], max_lengths: Sequence[int]) -> list[str]:
    """State the limit of tokens, and if many train rows exceed it whatever the tokenizer: a word is a token or more."""
    limit = f"  truncation      at {' or '.join(f'{n:,}' for n in max_lengths)} tokens with the prompt"
    exceeded = next((share for share, quantile in SHARES.items() if words[quantile] > max_lengths[-1]), "")
    known = [f"{exceeded} of the train rows or more have more words than that"] if exceeded else []
    known.append("truncated rows of each PLM: results/tasks.csv, after training")
    return [limit, *(" " * 18 + line for line in known)]


def _class_share(counts: Mapping[str, int], choose: Callable[..., str]) -> str:
    name = choose(counts, key=lambda label: (counts[label], label))
    return f"{counts[name] / sum(counts.values()):.1%} {name if len(name) <= MAX_NAME else f'{name[: MAX_NAME - 1]}…'}"


def _source_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Table of the source's rows: read, dropped by reason, kept."""
    read, dropped = record["read"], record["dropped_by_split"]
    reasons = [reason for reason, count in record["dropped"].items() if count]
    rows = [[f"source ({record['source']['kind']})", *read], ["read", *(f"{count:,}" for count in read.values())]]
    rows += [[f"dropped: {reason}", *(f"{dropped.get(s, {}).get(reason, 0):,}" for s in read)] for reason in reasons]
    kept = (count - sum(dropped.get(split, {}).values()) for split, count in read.items())
    return [*rows, ["kept", *(f"{count:,}" for count in kept)]]


def _overlap(counts: Mapping[str, int]) -> str:
    pairs = [(*pair.split("/"), count) for pair, count in counts.items() if count]
    return ", ".join(f"{count:,} {second} rows in {first}" for first, second, count in pairs) or "none"


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
    gpu = f"from {speed.gpu_min_params:,.0f} parameters" if speed.gpu_min_params else "never (--gpu-min-params)"
    unknown = [task for task, rows in estimate.model.rows.items() if not rows["validation"] or not rows["test"]]
    lines = [
        "FLOPs per training token: 4 per parameter outside the embeddings (2 if only a head is trained), and 2 per "
        "trainable parameter",
        f"FLOP/s: {speed.cpu_flops:.3g} on a CPU core, {speed.gpu_flops:.3g} on a GPU; PLMs use a GPU {gpu}",
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
