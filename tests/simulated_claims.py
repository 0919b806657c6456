"""The studies of the tests: small designs on PLMs of evenly spaced sizes, with known truth."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import pandas as pd

from apet.analysis import simulation

MARGINS = {"chance_margin": 2.0, "full_ft_margin": 2.0, "equivalence_margin": 0.5}
COUNTS = {"lora": 3.6, "adapter": 3.9, "prompt": 3.2, "bitfit": 2.8}
"""log10 of the methods' counts on the smallest PLM; they grow by a third of a decade for each of its size."""
CHANCE, TOP = simulation.Truth.chance, simulation.Truth.top


@dataclass(frozen=True)
class Truth(simulation.Truth):
    """A study's design and truth.

    low_spread: S.D. of `low` over tasks, decades; task_sd: decades by which the change of `high` differs between tasks;
    gain: None without informed placements.
    """

    plms: int = 3
    tasks: int = 3
    families: int = 1
    num_plans: int = 2
    num_seeds: int = 2
    sweep_plans: int = 1
    n: int = 400
    low_spread: float = 0.0
    task_sd: float = 0.0
    gain: float | None = None
    sweep: tuple[float, ...] = (0, 1, 2, 3, 4, 5)

    def sizes(self) -> np.ndarray:
        """log10 of non-embedding parameters of a family's PLMs."""
        return np.linspace(4.5, 6.5, self.plms) if self.plms > 1 else np.array([5.5])

    def changed(self, **values: float | None) -> Truth:
        return replace(self, **values)

    def by_task(self) -> dict[str, simulation.Truth]:
        """The truth of each task, with evenly spaced chance thresholds."""
        own = {field.name: getattr(self, field.name) for field in fields(simulation.Truth)} | {"gain": self.gain or 0.0}
        lows = self.low + self.low_spread * _standardised(self.tasks)
        return {f"task{task}": simulation.Truth(**own | {"low": low}) for task, low in enumerate(lows)}

    def design(self) -> pd.DataFrame:
        """The cells: methods at their own counts, APET at these and over the sweep, and informed placements."""
        rows = []
        for task in range(self.tasks):
            for family in range(self.families):
                for model, size in enumerate(self.sizes()):
                    facts = {"family": f"family{family}", "model": f"plm{family}{model}", "task": f"task{task}"}
                    facts |= {"non_embedding_params": round(10**size), "num_params": round(2 * 10**size)}
                    rows += [{**facts, **cell, "n_test": self.n} for cell in self._cells(size)]
        return pd.DataFrame(rows)

    def _cells(self, size: float) -> list[dict[str, object]]:
        counts = {name: count + (size - 4.5) / 3 for name, count in COUNTS.items()}
        tested = budgets_tested(self, size)
        matched = {budget: x for budget, x in tested.items() if budget.startswith("@")}
        several, seeds = (self.num_plans, self.num_seeds), (1, max(self.num_seeds, 2))
        cells = [("uniform", b, x, *(several if b in matched else (self.sweep_plans, 1))) for b, x in tested.items()]
        cells += [("full", "@own", np.log10(2) + size, *seeds)]
        cells += [(name, "@own", x, *seeds) for name, x in counts.items()]
        for name, shape in {"magnitude": seeds, "gradient": several}.items() if self.gain is not None else ():
            cells += [(name, budget, x, *shape) for budget, x in matched.items()]
        names = ("placement", "budget", "trainable_params", "num_plans", "num_seeds")
        return [dict(zip(names, (*c[:2], round(10 ** c[2]), *c[3:]), strict=True)) for c in cells]


def simulate(truth: Truth, seed: int) -> pd.DataFrame:
    """A tidy table with row scores and attrs of a study of that truth."""
    frame, _ = simulation.simulate(truth.design(), truth.by_task(), {"high_change": truth.task_sd}, MARGINS, seed)
    return frame


def budgets_tested(truth: Truth, size: float) -> dict[str, float]:
    """log10 of APET's numbers of parameters on a PLM, by budget."""
    matched = {f"@{name}": count + (size - 4.5) / 3 for name, count in COUNTS.items()}
    return {f"{10**x:.0f}": float(x) for x in truth.sweep} | matched


def _standardised(count: int) -> np.ndarray:
    """Evenly spaced numbers of mean 0 and S.D. 1."""
    values = np.arange(count) - (count - 1) / 2
    return values / values.std(ddof=1) if count > 1 else values
