"""How far a study is, from what its cells have left on disk: done, failed, under way, left. No torch."""

from __future__ import annotations

import json
import time
from calendar import timegm
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from apet.core.progress import format_duration, format_rate
from apet.study.cell_record import METRICS
from apet.study.paths import ResultPaths
from apet.study.resolve import read_resolved

CLASS = ("machine", "instruction_sets", "device", "devices", "threads", "dtype", "versions")
"""Keys of a run record that name the class of machine within which equal bytes are promised."""

RECENT = 3600.0
"""Seconds before the last finished cell whose cells tell the rate."""

CLOCK = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True)
class Status:
    """runs: run record of each finished cell (empty where it has none). failed: failure record of each failed one.
    in_progress: seconds since something was kept of each begun one. pending: all others. Cells are given by
    paths.
    """

    runs: Mapping[str, Mapping[str, Any]]
    failed: Mapping[str, Mapping[str, Any]]
    in_progress: Mapping[str, float]
    pending: Sequence[str]

    @property
    def total(self) -> int:
        return len(self._all)

    @property
    def _all(self) -> list[str]:
        return [*self.runs, *self.failed, *self.in_progress, *self.pending]

    @cached_property
    def pace(self) -> Throughput | None:
        """How fast the last cells were; None where no run record tells."""
        known = [(path, run) for path, run in self.runs.items() if {"seconds", "finished"} <= run.keys()]
        return Throughput.of(known) if known else None

    def lines(self, now: float) -> list[str]:
        """What a person wants to know at a time (seconds since 1970): counts, then by PLM, then rate and troubles."""
        said = [f"{self.total:,} cells: {self._counts('')}"]
        models = list(dict.fromkeys(map(_model, self._all)))
        if len(models) > 1:
            said += [f"  {model}: {self._counts(model)}" for model in models]
        said += self._forecast(now)
        said += [f"under way: {path} (kept {_ago(age)})" for path, age in self.in_progress.items()]
        said += [f"failed: {path}: {_one_line(record)}" for path, record in self.failed.items()]
        return said + self._machines()

    def failures(self) -> list[str]:
        """A table of failures: cell, what failed, log."""
        if not self.failed:
            return ["no cell of this study has failed; a job that failed otherwise has said why in its log"]
        rows = [("cell", "what failed", "log")]
        rows += [(path, _one_line(record), record.get("log") or "") for path, record in self.failed.items()]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        return [f"{cell:{widths[0]}}  {what:{widths[1]}}  {log}".rstrip() for cell, what, log in rows]

    def _counts(self, model: str) -> str:
        kinds = {"done": self.runs, "failed": self.failed, "under way": self.in_progress, "left": self.pending}
        counts = {kind: sum(not model or _model(path) == model for path in paths) for kind, paths in kinds.items()}
        return ", ".join(f"{n:,} {kind}" for kind, n in counts.items() if n or kind in ("done", "left"))

    def _forecast(self, now: float) -> list[str]:
        missing = [*self.failed, *self.in_progress, *self.pending]
        if not missing:
            return []
        if self.pace is None:
            return ["rate and end: known when a cell is done"]
        seconds = self.pace.seconds_for(missing)
        end = time.strftime("%Y-%m-%d %H:%M", time.localtime(now + seconds))
        last = _ago(now - self.pace.until)
        said = f"{format_rate(self.pace.rate)} on {self.pace.concurrency:.1f} processes at a time"
        return [f"{said}, the last {last}; about {format_duration(seconds)} left, until {end}"]

    def _machines(self) -> list[str]:
        """A line where cells were trained on more than one class of machine: their bytes need not agree."""
        classes: Counter[str] = Counter()
        for run in self.runs.values():
            for found in (run, *run.get("begun_on", ())):
                if "machine" in found:
                    # A PLM's type of numbers and number of devices are its own, and no properties of the machine.
                    own = ("dtype", "devices")
                    classes[json.dumps({key: found.get(key) for key in CLASS if key not in own})] += 1
        (first, count), *others = classes.most_common() or [("{}", 0)]
        said = [
            f"machines: {others_count} cells were trained on another class of machine than {count}, so equal bytes are "
            f"not promised: {'; '.join(differences(json.loads(other), json.loads(first)))}"
            for other, others_count in others
        ]
        return said


@dataclass(frozen=True)
class Throughput:
    """rate: cells a second. concurrency: cells trained at a time, on average. until: when the last was finished, in seconds
    since 1970. means: PLM -> mean seconds a cell.
    """

    rate: float
    concurrency: float
    until: float
    means: Mapping[str, float]

    @classmethod
    def of(cls, runs: Iterable[tuple[str, Mapping[str, Any]]]) -> Throughput:
        took: dict[str, list[float]] = {}
        spans = []
        for path, run in runs:
            end = timegm(time.strptime(run["finished"], CLOCK))
            took.setdefault(_model(path), []).append(run["seconds"])
            spans.append((end - run["seconds"], end))
        until = max(end for _, end in spans)
        recent = [(start, end) for start, end in spans if until - end <= RECENT]
        length = max(1.0, until - min(start for start, _ in recent))
        lanes = sum(end - start for start, end in recent) / length
        return cls(len(recent) / length, lanes, until, {model: fmean(times) for model, times in took.items()})

    def seconds_for(self, cells: Iterable[str]) -> float:
        """Until these cells are done, if it goes on like this; a PLM without a finished cell takes as long as any."""
        usual = fmean(self.means.values())
        return sum(self.means.get(_model(path), usual) for path in cells) / max(self.concurrency, 1e-9)


def study_cells(study: Path) -> list[str]:
    """Paths of the cells of a resolved study. Raises as `read_resolved`."""
    return list(read_resolved(study)["cells"])


def read_status(cells: Iterable[str], results: ResultPaths, now: float) -> Status:
    """The status of these cells at a time (seconds since 1970), from what lies in the results' folders."""
    runs: dict[str, dict] = {}
    failed: dict[str, dict] = {}
    under_way: dict[str, float] = {}
    left = []
    for path in cells:
        finished, failure = _moment(results.cells / path / METRICS), results.failed / f"{path}.json"
        if _moment(failure) > finished and (record := read_run(failure)):
            failed[path] = record
        elif finished:
            runs[path] = read_run(results.runs / f"{path}.json") or {}
        elif (kept := results.checkpoints / path).is_dir():
            under_way[path] = now - max(map(_moment, kept.iterdir()), default=now)
        else:
            left.append(path)
    return Status(runs, failed, under_way, left)


def read_class(run: Path) -> dict[str, Any] | None:
    """The class of machine in a run record; None where there is none that names it."""
    record = read_run(run)
    return {key: record.get(key) for key in CLASS} if record else None


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[str, ...]:
    """In which points two classes of machine differ, of versions only those that do."""
    found = []
    for key in CLASS:
        if there.get(key) == here.get(key):
            continue
        if isinstance(there.get(key), Mapping) and isinstance(here.get(key), Mapping):
            one, two = there[key], here[key]
            names = [name for name in sorted({*one, *two}) if one.get(name) != two.get(name)]
            found += [f"{name}: {one.get(name)} there, {two.get(name)} here" for name in names]
        else:
            found.append(f"{key}: {there.get(key)} there, {here.get(key)} here")
    return tuple(found)


def _moment(path: Path) -> float:
    """When a file was last written, in seconds since 1970; 0 where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _ago(seconds: float) -> str:
    return f"{format_duration(max(0.0, seconds))} ago"


def _model(path: str) -> str:
    return path.partition("/")[0]


def _one_line(record: Mapping[str, Any]) -> str:
    """What failed, short enough for a table."""
    text = " ".join(str(record.get("error", "")).split())
    return text if len(text) <= 120 else f"{text[:119]}…"


def read_run(path: Path) -> dict[str, Any] | None:
    """A record of a run or failure, which is no result; None where there is none that can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
