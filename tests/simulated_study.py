"""Records of a small simulated study with a known truth, for tests of the analysis and the figures only."""

from __future__ import annotations

from typing import Any

import numpy as np

MODELS = {"bloom-small": (25_000, 160_000), "bloom-mid": (200_000, 480_000), "bloom-large": (1_200_000, 1_750_000)}
TASKS = {"topics": (5, 0.2, 0.237, 400), "sentiment": (2, 0.5, 0.566, 800)}
OWN = {"full": 1.0, "lora": 0.04, "adapter": 0.08, "prompt": 0.015, "bitfit": 0.006}
SWEEP = ("1", "100", "10000")


def replicate(draw: int, rerun: int, score: float, n: int, tunable: int) -> dict[str, Any]:
    return {
        "draw": draw,
        "rerun": rerun,
        "structures": {"entry": tunable, "bias": 0, "lowrank": 0, "bottleneck": 0, "token": 0},
        "plan": f"a{draw}",
        "theta": f"b{draw}{rerun}",
        "outcome": "ok",
        "rate": 0.001,
        "best_step": 80,
        "steps": 100,
        "validation": {"score": score, "n": 200},
        "test": {"score": score, "n": n, "loss": 0.5},
    }


def record(model: str, task: str, placement: str, budget: str, scores: Any, tunable: int) -> tuple[str, dict[str, Any]]:
    """A cell's path and metrics. `scores`: (draws, reruns), fractions."""
    non_embedding, parameters = MODELS[model]
    labels, chance, majority, n = TASKS[task]
    rows = np.asarray(scores, float)
    return f"{model}/{task}/{placement}-{budget}", {
        "format": 1,
        "cell": {"model": model, "task": task, "placement": placement, "budget": budget},
        "plm": {
            "name": model,
            "family": "bloom",
            "content": "c0",
            "parameters": parameters,
            "non_embedding": non_embedding,
        },
        "task": {
            "name": task,
            "type": "classification",
            "metric": "accuracy",
            "labels": labels,
            "chance": chance,
            "majority": majority,
            "rows": {"train": 1000, "validation": 200, "test": n},
            "label_counts": {"test": {"first": n // 4, "second": n - n // 4}},
            "truncated": {"test": 0.25},
            "lengths": {"test": {"mean": 30.5, "longest": 36}},
        },
        "tunable": tunable,
        "head": {"parameters": 0},
        "replicates": [replicate(d, r, float(rows[d, r]), n, tunable) for d, r in np.ndindex(rows.shape)],
    }


def study(seed: int = 0) -> list[tuple[str, dict[str, Any]]]:
    """Every method at its own count (2 reruns), APET at each matched budget and over `SWEEP` (3 draws)."""
    rng = np.random.default_rng(seed)
    cells = []
    for model, (_, parameters) in MODELS.items():
        own = {name: int(share * parameters) for name, share in OWN.items()}
        plan = [(name, "@own", own[name], (1, 2)) for name in OWN] + [("none", "0", 0, (1, 1))]
        plan += [("uniform", f"@{name}", own[name], (3, 1)) for name in OWN if name != "full"]
        plan += [("uniform", budget, int(budget), (3, 1)) for budget in SWEEP]
        for task, (_, _, _, n) in TASKS.items():
            for placement, budget, tunable, shape in plan:
                scores = rng.binomial(n, rng.uniform(0.5, 0.9, shape)) / n
                cells.append(record(model, task, placement, budget, scores, tunable))
    return cells
