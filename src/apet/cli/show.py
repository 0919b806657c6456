"""One finished cell in words: plans by layer and module, curves, scores, digests, what its run took. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from apet.analysis.means import wilson
from apet.analysis.tidy import tidy
from apet.data.prepared_files import read_record
from apet.errors import DataError
from apet.placement import STRUCTURES
from apet.study.cell_record import reading
from apet.study.paths import ResultPaths

BARS = "▁▂▃▄▅▆▇█"
SIZES = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))
OUTSIDE = "–"
"""The column of what is in no layer."""

RUN = ("seconds", "cpu_seconds", "peak_memory_mb", "host", "processor", "device", "finished", "versions")
"""Keys of a run record that are shown."""


def show(folder: Path, results: ResultPaths) -> list[str]:
    """Lines about the cell in a folder; its run record is looked for below `results`.

    Raises DataError, naming file and key, for a record that lacks what every cell's has.
    """
    with reading(folder) as (record, plans):
        said = _lines(record, plans)
    return [*said, "", *_run(results.runs / f"{record['path']}.json")]


def _lines(record: dict[str, Any], plans: dict[str, Any]) -> list[str]:
    path = record["path"]
    frame = tidy([(path, record)])
    cell, task, plm = record["cell"], record["task"], record["plm"]
    said = [
        path,
        f"PLM      {plm['name']} ({plm['family']}), {plm['num_params']:,} parameters, {plm['dtype']}",
        f"task     {task['name']}: {task['metric']}, chance {frame.chance_uniform[0]:.3f}" + _majority(task),
        f"tuned    {cell['placement']} at {cell['budget']}: {record['trainable_params']:,} parameters, {frame.trainable_fraction[0]:.3%}"
        f"{_head(record)}; plans {cell['num_plans']}, seeds per plan {cell['num_seeds']}",
        "",
    ]
    for name, plan in plans.items():
        said += [*plan_lines(name.partition(".")[0], plan), ""]
    said += [*curve_lines(record["replicates"]), "", *score_lines(record["replicates"]), _mean(frame), ""]
    return [*said, *_digests(record)]


def plan_lines(name: str, plan: Mapping[str, Any]) -> list[str]:
    """Parameters by structure, then units: a row a module and structure, a column a layer."""
    counts = ", ".join(f"{structure} {n:,}" for structure, n in plan["structures"].items() if n)
    head = f"{name}    plan {plan['digest'][:12]}, seed {plan['seed']}: {counts or 'nothing'}"
    units = [(*_split(site), count) for site, count in plan["units"].items()]
    if not units:
        return [head]
    layers = sorted({layer for _, _, layer, _ in units if layer is not None})
    columns = [*layers, *([None] if any(layer is None for _, _, layer, _ in units) else [])]
    table: dict[tuple[str, str], Counter] = {}
    for place, structure, layer, count in sorted(units, key=lambda u: (STRUCTURES.index(u[1]), u[0])):
        table.setdefault((place, structure), Counter())[layer] += count
    rows = [["units of", "at", *(OUTSIDE if layer is None else str(layer) for layer in columns)]]
    for (place, structure), found in table.items():
        rows.append([structure, place, *(short(found[layer]) if layer in found else "·" for layer in columns)])
    return [head, *_aligned(rows)]


def curve_lines(replicates: Sequence[Mapping[str, Any]]) -> list[str]:
    """Training loss by step: a bar a look at validation, each curve between its own lowest and highest loss."""
    rows = [["loss", "first", "last", "", "best on validation"]]
    for run in replicates:
        losses = [loss for _, loss in run["losses"]]
        ends = [f"{losses[0]:.3f}", f"{losses[-1]:.3f}"] if losses else ["", ""]
        best = f"step {run['best_step']} of {run['num_steps']}" + (
            f", ended by {run['stopped']}" if run["stopped"] else ""
        )
        rows.append([_name(run), *ends, sparkline(losses), best])
    return _aligned(rows)


def score_lines(replicates: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each replicate's scores with n, the test's with the interval of one run, and the rate that validation chose."""
    rows = [["score", "validation", "test", "95 % of one run", "test loss", "LR multiplier", "outcome"]]
    for run in replicates:
        test, validation = run["test"], run["validation"]
        score, n = test["score"], test["n"]
        low, high = wilson(score, n)
        seen = f"{validation['score']:.4f} (n = {validation['n']})"
        rows.append([_name(run), seen, f"{score:.4f} (n = {n})", f"{low:.3f} to {high:.3f}", f"{test['loss']:.4f}",
                     f"{run['lr_multiplier']:g}", run["outcome"]])  # fmt: skip
    return _aligned(rows)


def sparkline(values: Sequence[float]) -> str:
    """A bar a value, from the lowest to the highest of them; equal values are low bars."""
    if not values:
        return ""
    low, high = min(values), max(values)
    top = len(BARS) - 1
    return "".join(BARS[round(top * (value - low) / (high - low)) if high > low else 0] for value in values)


def short(count: int) -> str:
    """A count in at most five signs: 950, 12.3k, 123k, 1.2M."""
    if count < 10**4:
        return str(count)
    # The unit is that of the rounded count, or 999,960 would be a thousand thousands.
    rounded = int(float(f"{count:.3g}"))
    size, sign = next((size, sign) for size, sign in SIZES if rounded >= size)
    return f"{count / size:.{int(rounded < 100 * size)}f}{sign}"


def _split(site: str) -> tuple[str, str, int | None]:
    """`encoder.3.attention.query/bias` -> (`encoder attention.query`, bias, 3)."""
    place, _, structure = site.rpartition("/")
    stack, *rest = place.split(".")
    if rest and rest[0].isdigit():
        return f"{stack} {'.'.join(rest[1:])}", structure, int(rest[0])
    return place, structure, None


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table, indented by two."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)] for row in rows)
    return ["  " + "  ".join(row).rstrip() for row in padded]


def _name(run: Mapping[str, Any]) -> str:
    return f"plan{run['plan_index']}.seed{run['seed_index']}"


def _majority(task: Mapping[str, Any]) -> str:
    return "" if task["majority"] is None else f", majority {task['majority']:.3f}"


def _head(record: Mapping[str, Any]) -> str:
    size = record["head"]["parameters"]
    return f", and a head of {size:,}" if size else ""


def _mean(frame: pd.DataFrame) -> str:
    """Over the replicates. Its interval is the report's, which pools the variance of seeds over the study's cells."""
    scores = frame.test_score.dropna()
    spread = f"S.D. between them {scores.std():.4f}, " if len(scores) > 1 else ""
    return f"  mean {scores.mean():.4f} ({len(scores)} of {len(frame)} replicates, {spread}n = {frame.n_test.min()} test rows)"


def _digests(record: Mapping[str, Any]) -> list[str]:
    rows = [["digests", ""], ["PLM", record["plm"]["content"]], ["rows", record["task"]["digest"]]]
    rows += [[f"θ {_name(run)}", run["theta_digest"]] for run in record["replicates"]]
    return _aligned([*rows, *([name, found] for name, found in record["files"].items())])


def _run(path: Path) -> list[str]:
    """What the run record says of time, memory and machine."""
    if not path.is_file():
        return [f"run      no record at {path}"]
    run = read_record(path)
    if missing := [key for key in RUN if key not in run]:
        raise DataError(f"{path}: not the record of a run (key {missing[0]!r} is missing).")
    return [
        f"run      {run['seconds']:.1f} s, {run['cpu_seconds']:.1f} s of CPU, at most {run['peak_memory_mb']:,} MB",
        f"         on {run['host']}: {run['processor']}, {run['device']}, finished {run['finished']}"
        + (", taken up again after an interruption" if run.get("resumed") else ""),
        "         " + ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
    ]
