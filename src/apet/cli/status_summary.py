"""The text of `apet status`. No torch."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from apet.cli.render import table
from apet.core.progress import format_duration, format_rate
from apet.core.text import plural
from apet.study.status import Status, Throughput, differences, machine_type


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


def progress_line(status: Status, now: float, jobs: int, total_jobs: int, stages: Iterable[str]) -> str:
    """Format the progress of a run in one line.

    Args:
        status: The status of the study.
        now: The time it was read at, in seconds since 1970.
        jobs: Number of finished jobs of the run.
        total_jobs: Number of all jobs of the run.
        stages: Names of the rules that are running.

    Returns:
        Time, stages, finished jobs, finished and failed cells, and the expected end of training.
    """
    counts = status.counts()
    parts = [
        ", ".join(sorted(set(stages))) or "waiting",
        f"{jobs} of {plural(total_jobs, 'job')}",
        f"{counts['done']:,} of {plural(status.total, 'cell')}",
    ]
    if counts["failed"]:
        parts.append(f"{counts['failed']:,} failed (apet status --failed)")
    if status.missing and status.throughput:
        parts.append(_time_left(status, status.throughput, now))
    return f"{time.strftime('%H:%M', time.localtime(now))}  {'; '.join(parts)}"


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
    busy = throughput.concurrency  # below 1 while a single process loads PLMs or waits
    rate = f"{format_rate(throughput.rate)} by {'1 process' if busy < 1.05 else f'{busy:.1f} processes'}"
    return [f"{rate}, the last {_ago(now - throughput.until)}; {_time_left(status, throughput, now)}"]


def _time_left(status: Status, throughput: Throughput, now: float) -> str:
    seconds = throughput.seconds_for(status.missing, status.steps)
    least = "about" if throughput.knows(status.missing) else "at least"
    end = time.strftime("%Y-%m-%d %H:%M", time.localtime(now + seconds))
    return f"{least} {format_duration(seconds)} left, until {end}"


def _machines(status: Status) -> list[str]:
    """Return a line per additional machine type, because equal bytes are promised only within one."""
    types: Counter[str] = Counter()
    for run in status.runs.values():
        machines = [machine for machine in (run, *run.get("begun_on", ())) if "machine" in machine]
        types.update(map(machine_type, machines))
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
