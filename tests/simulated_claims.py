"""Simulated studies with known truth of every claim, for tests and coverage tables.

A replicate of true mean score q is right on a test row where a normal variate, part the row's own (shared by all cells
of the task), part the plan's on that row, part the replicate's, lies below the q quantile: its expected score is q
exactly, and replicates agree on rows as real ones do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

MARGINS = {"chance_margin": 2.0, "full_ft_margin": 2.0, "equivalence_margin": 0.5}
METHODS = {"full": 0.0, "lora": 0.6, "adapter": 0.3, "prompt": -0.2, "bitfit": -0.7}
COUNTS = {"lora": 3.6, "adapter": 3.9, "prompt": 3.2, "bitfit": 2.8}
"""log10 of the methods' counts on the smallest PLM; they grow by a third of a decade for each of its size."""
CHANCE, TOP = 0.3, 0.8
SWEEP = (0, 1, 2, 3, 4, 5)
INFORMED_SHARE = 0.1
"""Variance between plans of informed placements over that of APET's."""
SHARES = np.sqrt([0.5, 0.2, 0.3])
"""Standard deviations of what is a row's, a plan's on the row, and a replicate's on the row."""


@dataclass(frozen=True)
class Truth:
    """A study's design and truth. Changes are per decade of PLM size, levels those at the middle size.

    plan_sd: points between plans; low, high: log10 of the numbers of parameters at which APET leaves chance and reaches
    full fine-tuning; low_spread: S.D. of `low` over tasks, decades; method_sd: points between methods; seed_sd: points
    between reruns; task_sd: decades by which the change of `high` differs between tasks; gain: points by which informed
    placements exceed APET, or None without informed placements.
    """

    plms: int = 3
    tasks: int = 3
    families: int = 1
    num_plans: int = 2
    num_seeds: int = 2
    sweep_plans: int = 1
    n: int = 400
    plan_variance: float = 9.0
    plan_change: float = 0.0
    seed_sd: float = 1.0
    low: float = 1.0
    low_spread: float = 0.0
    high: float = 4.0
    high_change: float = 0.0
    method_variance: float = 9.0
    method_change: float = 0.0
    task_sd: float = 0.0
    gain: float | None = None
    gain_change: float = 0.0
    sweep: tuple[float, ...] = SWEEP

    def sizes(self) -> np.ndarray:
        """log10 of non-embedding parameters of a family's PLMs."""
        return np.linspace(4.5, 6.5, self.plms) if self.plms > 1 else np.array([5.5])

    def changed(self, **values: float | None) -> Truth:
        return replace(self, **values)


def simulate(truth: Truth, seed: int) -> pd.DataFrame:
    """A tidy table with row scores and attrs of a study of that truth."""
    rng, informed_rng = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    frames = []
    for number in range(truth.tasks):
        ease = rng.normal(size=truth.n)
        change = truth.task_sd * rng.normal()
        for family in range(truth.families):
            for model, size in enumerate(truth.sizes()):
                thresholds = thresholds_of(truth, size, number, change)
                cells, informed = _cells(truth, size, *thresholds), _informed_cells(truth, size, *thresholds)
                facts = {"family": f"family{family}", "model": f"plm{family}{model}", "task": f"task{number}"}
                facts |= {"non_embedding_params": round(10**size), "num_params": round(2 * 10**size)}
                frames += [_replicates(truth, cell, ease, rng, facts) for cell in cells]
                frames += [_replicates(truth, cell, ease, informed_rng, facts) for cell in informed]
    frame = pd.concat(frames, ignore_index=True)
    frame = frame.assign(metric="accuracy", chance_uniform=CHANCE - 0.05, chance_majority=CHANCE, head_params=0)
    frame = frame.assign(outcome="ok", n_test=truth.n)
    frame["cell_path"] = frame.model + "/" + frame.task + "/" + frame.placement + frame.budget
    frame.attrs = {"study": "simulated", "name": "tiny", "margins": MARGINS, "missing": [], "digest": "0" * 64}
    return frame


def curve(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """APET's true mean score at log10 x parameters: chance up to `low`, full fine-tuning's from `high` on."""
    return np.interp(x, [low, max(high, low + 0.1)], [CHANCE, TOP])


def budgets_tested(truth: Truth, size: float) -> dict[str, float]:
    """log10 of APET's numbers of parameters on a PLM, by budget."""
    matched = {f"@{name}": count + (size - 4.5) / 3 for name, count in COUNTS.items()}
    return {f"{10**x:.0f}": float(x) for x in truth.sweep} | matched


def thresholds_of(truth: Truth, size: float, task: int, change: float = 0.0) -> tuple[float, float]:
    """log10 of the numbers at which APET leaves chance and reaches full fine-tuning, on one PLM and task."""
    low = truth.low + truth.low_spread * _standardised(truth.tasks)[task]
    return low, truth.high + (truth.high_change + change) * (size - 5.5)


def _cells(truth: Truth, size: float, low: float, high: float) -> list[tuple]:
    """(placement, budget, trainable parameters, mean score, S.D. between plans, number of plans, number of seeds)."""
    step = size - 5.5
    plan_sd = np.sqrt(max(truth.plan_variance + truth.plan_change * step, 0)) / 100
    spread = np.sqrt(max(truth.method_variance + truth.method_change * step, 0)) / 100
    unit = np.std(list(METHODS.values()), ddof=1)
    found = []
    for budget, x in budgets_tested(truth, size).items():
        counts = (truth.num_plans, truth.num_seeds) if budget.startswith("@") else (truth.sweep_plans, 1)
        found.append(("uniform", budget, round(10**x), float(curve(low, high, x)), plan_sd, *counts))
    for name, place in METHODS.items():
        count = 2 * 10**size if name == "full" else 10 ** (COUNTS[name] + (size - 4.5) / 3)
        found.append((name, "@own", round(count), TOP + spread * place / unit, 0.0, 1, max(truth.num_seeds, 2)))
    return found


def _informed_cells(truth: Truth, size: float, low: float, high: float) -> list[tuple]:
    """Cells in the form of `_cells`: magnitude has one plan, gradient several."""
    if truth.gain is None:
        return []
    gain = (truth.gain + truth.gain_change * (size - 5.5)) / 100
    plan_sd = np.sqrt(INFORMED_SHARE * truth.plan_variance) / 100
    counts = {"magnitude": (1, max(truth.num_seeds, 2)), "gradient": (truth.num_plans, truth.num_seeds)}
    matched = {budget: x for budget, x in budgets_tested(truth, size).items() if budget.startswith("@")}
    return [
        (name, budget, round(10**x), float(curve(low, high, x)) + gain, plan_sd * (plans > 1), plans, seeds)
        for name, (plans, seeds) in counts.items()
        for budget, x in matched.items()
    ]


def _replicates(truth: Truth, cell: tuple, ease: np.ndarray, rng: np.random.Generator, facts: dict) -> pd.DataFrame:
    placement, budget, count, mean, plan_sd, num_plans, num_seeds = cell
    shape = (num_plans, num_seeds)
    q = mean + plan_sd * rng.normal(size=(num_plans, 1)) + truth.seed_sd / 100 * rng.normal(size=shape)
    plans, replicates = rng.normal(size=(num_plans, 1, truth.n)), rng.normal(size=(*shape, truth.n))
    latent = SHARES[0] * ease + SHARES[1] * plans + SHARES[2] * replicates
    right = (latent < stats.norm.ppf(np.clip(q, 1e-4, 1 - 1e-4))[..., None]).reshape(-1, truth.n).astype(np.float32)
    index = list(np.ndindex(shape))
    table = pd.DataFrame(index, columns=["plan_index", "seed_index"]).assign(
        **facts, placement=placement, budget=budget
    )
    return table.assign(trainable_params=count, test_score=right.mean(axis=1, dtype=float), row_scores=list(right))


def _standardised(count: int) -> np.ndarray:
    """Evenly spaced numbers of mean 0 and S.D. 1."""
    values = np.arange(count) - (count - 1) / 2
    return values / values.std(ddof=1) if count > 1 else values
