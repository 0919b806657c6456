"""Power of a design: how often each claim is decided, and how often falsely, in simulated studies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd

from apet.analysis.claims import CLAIMS, AnalysisInputs
from apet.analysis.findings import LEVELS, NOT_TESTED, OVERALL, build_findings
from apet.analysis.pilot import Assumptions
from apet.analysis.simulation import DESIGN_COLUMNS, simulate, true_values
from apet.core.hashing import seed_for
from apet.errors import ConfigError
from apet.study.grid import Grid
from apet.study.resolve import sizes
from apet.study.resources import split_rows

TRUTH_DIGITS = 9
"""Decimals of a true quantity, beyond which it differs from 0 by rounding only."""
VERDICTS = ("supported", "contradicted", "undecided")


def design_of(grid: Grid, root: Path = Path()) -> pd.DataFrame:
    """List the cells of a study as a design.

    Args:
        grid: The study.
        root: Folder that contains data/.

    Returns:
        One row per cell, with DESIGN_COLUMNS.

    Raises:
        ConfigError: The number of test rows of a task is unknown.
    """
    plms, rows = sizes(grid), split_rows(grid, root)
    for task in (task for task in grid.tasks if not rows[task]["test"]):
        raise ConfigError(
            f"{grid.params}: max_samples.test: the number of test rows of {task} is unknown. Set the key, or run "
            f"`apet prepare-task --task {task}`."
        )
    cells = []
    for cell in grid.cells:
        plm = plms[cell.model]
        facts = {name: plm[name] for name in ("family", "non_embedding_params", "num_params")}
        own = {name: getattr(cell, name) for name in ("model", "task", "placement", "budget", "num_plans", "num_seeds")}
        count = plm["trainable_params"][f"{cell.placement} {cell.budget}"]
        cells.append({**facts, **own, "trainable_params": count, "n_test": rows[cell.task]["test"]})
    return pd.DataFrame(cells)[DESIGN_COLUMNS]


@dataclass(frozen=True)
class Simulation:
    """Studies of one design. The levels of the truth are those of PLMs of the design's mean log size."""

    design: pd.DataFrame
    """The cells, with DESIGN_COLUMNS."""
    assumptions: Assumptions
    margins: Mapping[str, float]
    """The study's `analysis` settings."""
    seed: int

    def study(self, effect: float, index: int) -> list[dict[str, object]]:
        """Simulate a study and test its claims. Studies of equal index have equal noise, whatever the effect.

        Args:
            effect: Factor of all effects.
            index: Number of the study.

        Returns:
            By claim and level: effect, study, claim, level, verdict, and the true quantity on the study's tasks.
        """
        assumed = self.assumptions.scaled(effect, self.margins["equivalence_margin"])
        plms = self.design.drop_duplicates("model").non_embedding_params
        truth = replace(assumed.truth, size=float(np.log10(plms.astype(float)).mean()))
        tasks = dict.fromkeys(self.design.task.unique(), truth)
        seed = seed_for("power", self.seed, index)
        frame, truths = simulate(self.design, tasks, assumed.task_sds, self.margins, seed)
        true = true_values(self.design, truths, self.margins)
        claims = build_findings(AnalysisInputs.from_frame(frame))[0]["claims"]
        return [
            {
                "effect": effect,
                "study": index,
                "claim": claim,
                "level": level,
                "verdict": claims[claim]["scopes"][OVERALL][level]["verdict"],
                "truth": round(true[claim], TRUTH_DIGITS) + 0.0,  # not -0.0
            }
            for claim, level in product(claims, LEVELS)
        ]


def run_studies(
    simulation: Simulation, effects: Sequence[float], studies: int, workers: int | None = None
) -> Iterator[list[dict[str, object]]]:
    """Simulate studies at each effect, on all cores.

    Args:
        simulation: Design and assumptions.
        effects: Factors of all effects.
        studies: Number of studies at each effect.
        workers: Number of processes. Default: the number of cores.

    Yields:
        The rows of each study, in the order in which studies end.
    """
    jobs = list(product(dict.fromkeys(effects), range(studies)))
    workers = min(len(jobs), workers or os.cpu_count() or 1)
    if workers == 1:
        yield from (simulation.study(*job) for job in jobs)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _ignore_interrupts) as pool:
        try:
            for future in as_completed([pool.submit(simulation.study, *job) for job in jobs]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    """Leave Ctrl-C to the parent process, which ends the pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def summarize(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Count the verdicts of simulated studies.

    On the study's tasks a verdict is false if the true quantity on these tasks has another sign. On similar tasks it is
    false if the mean over studies has; at effect 0 every verdict is false there.

    Args:
        rows: Rows of `Simulation.study`.

    Returns:
        One row per claim, level and effect, sorted, the largest effect first: truth (mean of the true
        quantities), studies, tested, supported, contradicted, undecided and false (numbers of studies).
    """
    table = pd.DataFrame(rows)
    keys = ["claim", "level", "effect"]
    mean = table.groupby(keys).truth.transform("mean").where(table.effect.ne(0), 0.0)
    truth = table.truth.where(table.level.eq(LEVELS[0]), mean)
    false = table.verdict.eq("supported") & truth.ge(0) | table.verdict.eq("contradicted") & truth.le(0)
    counts = {name: table.verdict.eq(name) for name in VERDICTS}
    groups = table.assign(**counts, false=false, tested=table.verdict.ne(NOT_TESTED)).groupby(keys)
    sums = {name: (name, "sum") for name in ("tested", *VERDICTS, "false")}
    sums_by_row = groups.agg(truth=("truth", "mean"), studies=("study", "size"), **sums).reset_index()
    order = {name: number for number, name in enumerate([*(claim.name for claim in CLAIMS), *LEVELS])}
    return sums_by_row.sort_values(
        keys, key=lambda column: -column if column.name == "effect" else column.map(order), ignore_index=True
    )
