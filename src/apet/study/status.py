"""Status of a study, read from the files of its cells: done, failed, in progress, pending. No torch."""

from __future__ import annotations

import json
import time
from calendar import timegm
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from apet.study.cell_record import METRICS
from apet.study.paths import ResultPaths

MACHINE_KEYS = ("machine", "instruction_sets", "device", "devices", "threads", "dtype", "versions")
"""Keys of a run record that identify the machine type within which equal bytes are promised."""

RECENT_SECONDS = 3600.0
"""Time before the last finished cell from which the rate is computed."""

CLOCK = "%Y-%m-%dT%H:%M:%SZ"
"""Format of times in run records."""


@dataclass(frozen=True)
class Status:
    """Status of the cells of a study, each given by its path."""

    runs: Mapping[str, Mapping[str, Any]]
    """Run record of each finished cell, empty if it is missing."""
    failed: Mapping[str, Mapping[str, Any]]
    """Failure record of each failed cell."""
    in_progress: Mapping[str, float]
    """Seconds since the last checkpoint of each started cell."""
    pending: Sequence[str]
    """All other cells."""
    steps: Mapping[str, int] = field(default_factory=dict)
    """Optimizer steps of all trainings of each cell, in the order of the study; 1 for a cell that is not in it."""

    @property
    def total(self) -> int:
        """Number of cells."""
        return len(self.runs) + len(self.missing)

    @property
    def missing(self) -> list[str]:
        """Cells that are not done."""
        return [*self.failed, *self.in_progress, *self.pending]

    @property
    def models(self) -> list[str]:
        """PLMs of the cells, in the order of the study if it is known."""
        return list(dict.fromkeys(map(_model, [*self.steps, *self.runs, *self.missing])))

    @cached_property
    def throughput(self) -> Throughput | None:
        """Throughput of trained cells on the machine type of the last one; None if there is no run record."""
        known = [
            (path, run)
            for path, run in self.runs.items()
            if {"seconds", "finished"} <= run.keys() and self.steps.get(path, 1)
        ]
        if not known:
            return None
        last = machine_type(max((run for _, run in known), key=lambda run: run["finished"]))
        return Throughput.from_runs([(path, run) for path, run in known if machine_type(run) == last], self.steps)

    def counts(self, model: str | None = None) -> dict[str, int]:
        """Return the number of cells in each state, of one PLM or of all."""
        states: dict[str, Iterable[str]] = {
            "done": self.runs,
            "failed": self.failed,
            "in progress": self.in_progress,
            "pending": self.pending,
        }
        return {state: sum(model in (None, _model(path)) for path in paths) for state, paths in states.items()}


@dataclass(frozen=True)
class Throughput:
    """Speed at which cells were finished."""

    rate: float
    """Cells per second."""
    concurrency: float
    """Mean number of cells trained at the same time."""
    until: float
    """Time when the last cell was finished, in seconds since 1970."""
    step_seconds: Mapping[str, float]
    """Mean duration of an optimizer step by PLM, evaluations included."""

    @classmethod
    def from_runs(cls, runs: Iterable[tuple[str, Mapping[str, Any]]], steps: Mapping[str, int]) -> Throughput:
        """Compute the throughput from paths and run records of finished cells, at least one, and steps of cells."""
        seconds: dict[str, float] = {}
        trained: dict[str, int] = {}
        spans = []
        for path, run in runs:
            end = timegm(time.strptime(run["finished"], CLOCK))
            model = _model(path)
            seconds[model] = seconds.get(model, 0) + run["seconds"]
            trained[model] = trained.get(model, 0) + steps.get(path, 1)
            spans.append((end - run["seconds"], end))
        until = max(end for _, end in spans)
        recent = [(start, end) for start, end in spans if until - end <= RECENT_SECONDS]
        length = max(1.0, until - min(start for start, _ in recent))
        concurrency = sum(end - start for start, end in recent) / length
        means = {model: seconds[model] / trained[model] for model in seconds}
        return cls(len(recent) / length, concurrency, until, means)

    def seconds_for(self, cells: Iterable[str], steps: Mapping[str, int]) -> float:
        """Return the time until these cells are done; a PLM without a finished cell is as slow as the slowest known."""
        default = max(self.step_seconds.values())
        total = sum(self.step_seconds.get(_model(path), default) * steps.get(path, 1) for path in cells)
        return total / max(self.concurrency, 1e-9)

    def knows(self, cells: Iterable[str]) -> bool:
        """Return whether all PLMs of these cells have a finished cell."""
        return set(map(_model, cells)) <= set(self.step_seconds)


def read_status(
    cells: Iterable[str], results: ResultPaths, now: float, steps: Mapping[str, int] | None = None
) -> Status:
    """Read the status of cells from the results folders.

    Args:
        cells: Paths of the cells.
        results: The results folders.
        now: The present time in seconds since 1970.
        steps: Optimizer steps of all trainings of each cell, in the order of the study.

    Returns:
        The status.
    """
    runs: dict[str, dict] = {}
    failed: dict[str, dict] = {}
    in_progress: dict[str, float] = {}
    pending = []
    for path in cells:
        finished, failure = _modified(results.cells / path / METRICS), results.failed / f"{path}.json"
        if _modified(failure) > finished and (record := read_run(failure)):
            failed[path] = record
        elif finished:
            runs[path] = read_run(results.runs / f"{path}.json") or {}
        elif (files := _files(results.checkpoints / path)) is not None:
            in_progress[path] = now - max(map(_modified, files), default=now)
        else:
            pending.append(path)
    return Status(runs, failed, in_progress, pending, steps or {})


def read_run(path: Path) -> dict[str, Any] | None:
    """Read a run or failure record, which is no result. Returns None if it is missing or corrupt."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def read_machines(run: Path) -> list[dict[str, Any]]:
    """Read the machine types of a training from its run record: several if it was resumed, none without a record."""
    record = read_run(run)
    machines = (record, *record.get("begun_on", ())) if record else ()
    return [{key: machine.get(key) for key in MACHINE_KEYS} for machine in machines]


def machine_type(run: Mapping[str, Any]) -> str:
    """Return what a run record says of the machine, as JSON, without what depends on the PLM: dtype and devices."""
    return json.dumps({key: run.get(key) for key in MACHINE_KEYS if key not in ("dtype", "devices")})


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[str, ...]:
    """Describe each difference between two machine types, of versions only those that differ."""
    lines = []
    for key in MACHINE_KEYS:
        first, second = there.get(key), here.get(key)
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            names = [name for name in sorted({*first, *second}) if first.get(name) != second.get(name)]
            lines += [f"{name}: {first.get(name)} there, {second.get(name)} here" for name in names]
        elif first != second:
            lines.append(f"{key}: {first} there, {second} here")
    return tuple(lines)


def _modified(path: Path) -> float:
    """Return the modification time of a file in seconds since 1970; 0 if it is missing."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _files(folder: Path) -> list[Path] | None:
    """List a folder, which a training may remove at any time. None if there is no such folder."""
    try:
        return list(folder.iterdir())
    except OSError:
        return None


def _model(path: str) -> str:
    return path.partition("/")[0]
