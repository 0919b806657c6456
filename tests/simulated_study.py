"""Records of a small simulated study, for tests of analysis and figures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from apet.analysis.tidy import tidy
from apet.data.prepared_files import write_table
from apet.placement import STRUCTURES
from apet.study.cell_record import write_record

MODELS = {"bloom-small": (25_000, 160_000), "bloom-mid": (200_000, 480_000), "bloom-large": (1_200_000, 1_750_000)}
TASKS = {"topics": (5, 0.2, 0.237, 400), "sentiment": (2, 0.5, 0.566, 800)}
MARGINS = {"chance_margin": 2.0, "full_ft_margin": 2.0, "equivalence_margin": 0.5}
OWN = {"full": 1.0, "lora": 0.04, "adapter": 0.08, "prompt": 0.015, "bitfit": 0.006}
SWEEP = ("1", "100", "10000")


def replicate(plan_index: int, seed_index: int, score: float, n: int, trainable_params: int) -> dict[str, Any]:
    return {
        "plan_index": plan_index,
        "seed_index": seed_index,
        "structures": dict.fromkeys(STRUCTURES, 0) | {"entry": trainable_params},
        "plan_digest": f"a{plan_index}",
        "theta_digest": f"b{plan_index}{seed_index}",
        "outcome": "ok",
        "lr_multiplier": 0.5,
        "best_step": 80,
        "num_steps": 100,
        "validation": {"score": score, "n": 200},
        "test": {"score": score, "n": n, "loss": 0.5},
    }


def record(
    model: str, task: str, placement: str, budget: str, scores: Any, trainable_params: int
) -> tuple[str, dict[str, Any]]:
    """A cell's path and metrics. `scores`: (plans, seeds), fractions."""
    non_embedding_params, num_params = MODELS[model]
    labels, chance, majority, n = TASKS[task]
    rows = np.asarray(scores, float)
    path = f"{model}/{task}/{placement}-{budget}"
    return path, {
        "path": path,
        "cell": {
            "model": model,
            "task": task,
            "placement": placement,
            "budget": budget,
            "seed": 1,
            "trainer_version": 3,
        },
        "plm": {
            "name": model,
            "family": "bloom",
            "content": "c0",
            "num_params": num_params,
            "non_embedding_params": non_embedding_params,
        },
        "task": {
            "name": task,
            "type": "classification",
            "metric": "accuracy",
            "digest": "d0",
            "labels": labels,
            "chance": chance,
            "majority": majority,
            "rows": {"train": 1000, "validation": 200, "test": n},
            "label_counts": {"test": {"first": n // 4, "second": n - n // 4}},
            "truncated": {"test": 0.25},
            "lengths": {"test": {"mean": 30.5, "longest": 36}},
        },
        "trainable_params": trainable_params,
        "head": {"parameters": 0},
        "replicates": [replicate(d, r, float(rows[d, r]), n, trainable_params) for d, r in np.ndindex(rows.shape)],
    }


def study(seed: int = 0) -> list[tuple[str, dict[str, Any]]]:
    """Every method at its own count (2 seeds), APET at each matched budget and over `SWEEP` (3 plans)."""
    rng = np.random.default_rng(seed)
    cells = []
    for model, (_, parameters) in MODELS.items():
        own = {name: int(share * parameters) for name, share in OWN.items()}
        plan = [(name, "@own", own[name], (1, 2)) for name in OWN] + [("none", "0", 0, (1, 1))]
        plan += [("uniform", f"@{name}", own[name], (3, 1)) for name in OWN if name != "full"]
        plan += [("uniform", budget, int(budget), (3, 1)) for budget in SWEEP]
        for task, (_, _, _, n) in TASKS.items():
            for placement, budget, count, shape in plan:
                scores = rng.binomial(n, rng.uniform(0.5, 0.9, shape)) / n
                cells.append(record(model, task, placement, budget, scores, count))
    return cells


def frame_of(cells: Iterable[tuple[str, dict[str, Any]]], seed: int = 0) -> pd.DataFrame:
    """The tidy table of records, with scores of test rows that have their means, and the attrs of a read one."""
    rng = np.random.default_rng(seed)
    frame = tidy(cells)
    frame["row_scores"] = [
        np.empty(0, np.float32) if np.isnan(score) else (rng.permutation(n) < round(score * n)).astype(np.float32)
        for score, n in zip(frame.test_score, frame.n_test, strict=True)
    ]
    frame.attrs = {"study": "simulated", "name": "tiny", "margins": MARGINS, "missing": [], "digest": "0" * 64}
    return frame


def write_cells(root: Path, cells: Iterable[tuple[str, dict[str, Any]]], seed: int = 0) -> None:
    """Folders of cells as a training leaves them, without θ and plans: predictions with the scores of the records."""
    rng = np.random.default_rng(seed)
    for path, metrics in cells:
        folder = root / path
        folder.mkdir(parents=True)
        replicates, n = metrics["replicates"], metrics["replicates"][0]["test"]["n"]
        correct = np.zeros((len(replicates), n), bool)
        for row, replicate in zip(correct, replicates, strict=True):
            row[rng.permutation(n)[: round(replicate["test"]["score"] * n)]] = True
        write_predictions(folder, metrics, {"correct": correct})


def write_predictions(folder: Path, metrics: dict[str, Any], columns: dict[str, np.ndarray]) -> None:
    """A cell's predictions, each column (replicates, n), and its record with their digest."""
    replicates, n = metrics["replicates"], metrics["replicates"][0]["test"]["n"]
    types = {"plan_index": pa.int16(), "seed_index": pa.int16(), "id": pa.string()}
    types |= {name: pa.array(values.ravel()).type for name, values in columns.items()}
    ids = [f"{metrics['task']['name']}{i:060d}" for i in range(n)]
    found = {name: np.repeat([r[name] for r in replicates], n) for name in ("plan_index", "seed_index")} | {
        "id": ids * len(replicates),
        **{name: values.ravel() for name, values in columns.items()},
    }
    write_table(folder / "predictions.parquet", found, pa.schema(types.items()))
    write_record(folder, metrics["path"], metrics)
