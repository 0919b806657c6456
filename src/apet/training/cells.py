"""One cell from its coordinates to its folder: θ of every replicate, plans, predictions, metrics.

The folder's bytes are a function of the cell, the PLM and the data. What may differ between reruns (time, memory, host)
goes to a run record elsewhere.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from safetensors.torch import save
from torch import Tensor

from apet.data.prepare import SPLITS, read_task
from apet.data.tables import write_table
from apet.errors import CorruptError
from apet.evaluation import Encoded, encode_split, label_words, predict, score
from apet.grid import Cell
from apet.placement import Budget, Plan, make_plan, resolve
from apet.plms.load import PLM
from apet.provenance import bytes_digest, file_digest, whole_folder, write_bytes, write_json
from apet.training.loop import Splits, Trained, train
from apet.tuning import TunedPLM, initial_theta, split_by_structure

FORMAT = 1
"""Of the files in a cell's folder; another number is not read."""

THETA, PLANS, PREDICTIONS, METRICS = "theta.safetensors", "plans.json", "predictions.parquet", "metrics.json"
PREDICTED = pa.schema(
    {
        "draw": pa.int16(),
        "rerun": pa.int16(),
        "id": pa.string(),
        "label": pa.int16(),
        "prediction": pa.int16(),
        "correct": pa.bool_(),
    }.items()
)


@dataclass(frozen=True)
class Bench:
    """A PLM and a prepared task, loaded and tokenised once for all cells of a block."""

    plm: PLM
    task: dict[str, Any]
    splits: Splits
    test: Encoded

    @classmethod
    def of(cls, plm: PLM, data: Path, length: int) -> Bench:
        """length: most tokens of a prompt with its text; a task may ask for fewer."""
        task = read_task(data)
        longest = min(length, task["length"])
        train, validation, test = (encode_split(data, s, task, plm, longest) for s in SPLITS)
        words = plm.model.get_input_embeddings().weight.shape[0]
        return cls(plm, task, Splits(train, validation, label_words(task, plm.tokenizer), words), test)


@dataclass(frozen=True)
class Replicate:
    """One run of a cell."""

    draw: int
    rerun: int
    plan: Plan
    trained: Trained
    logits: Tensor

    @property
    def name(self) -> str:
        return f"draw{self.draw}.rerun{self.rerun}"


def is_complete(folder: Path) -> bool:
    """Whether a cell's folder is whole and its files are what its record says.

    Raises CorruptError where a file differs from its digest: it must be deleted by hand, not overwritten in silence.
    """
    record = folder / METRICS
    if not record.is_file():
        return False
    try:
        files = json.loads(record.read_text())["files"]
    except (ValueError, KeyError) as error:
        raise CorruptError(f"{record}: not a cell's record ({error}). Delete {folder} to train again.") from None
    for name, digest in files.items():
        if not (folder / name).is_file():
            return False
        if file_digest(folder / name) != digest:
            raise CorruptError(f"{folder / name}: not the bytes that {METRICS} names. Delete {folder} to train again.")
    return True


def train_cell(cell: Cell, bench: Bench, folder: Path) -> dict[str, Any]:
    """Train every replicate of a cell and write its folder whole. Returns the metrics record."""
    inventory = bench.plm.inventory
    budget = resolve(Budget.parse(cell.budget), cell.placement, inventory, cell.methods)
    replicates = []
    for draw, rerun in cell.replicates:
        plan = make_plan(inventory, cell.placement, budget, cell.seed_of("plan", draw), cell.methods)
        replicates.append(_replicate(cell, bench, plan, draw, rerun))
    return _write(cell, bench, budget, replicates, folder)


def _replicate(cell: Cell, bench: Bench, plan: Plan, draw: int, rerun: int) -> Replicate:
    """Train at every rate of the grid, keep the one that is best on validation, and predict the test split."""
    words = bench.plm.model.get_input_embeddings().weight
    parts = split_by_structure(plan, initial_theta(plan, cell.seed_of("start", draw, rerun), words))
    order = cell.seed_of("order", draw, rerun)
    # Without parameters there is nothing to choose.
    rates = cell.training.rate_grid if parts else (1.0,)
    with TunedPLM(bench.plm, plan) as tuned:
        runs = [train(tuned, parts, bench.splits, cell.training, order, rate) for rate in rates]
        best = max(runs, key=lambda run: (run.outcome == "ok", run.validation.score, -run.validation.loss))
        logits = predict(tuned, [best.theta] if parts else [], bench.test, bench.splits.words)
    return Replicate(draw, rerun, plan, best, logits)


def _write(cell: Cell, bench: Bench, budget: int, replicates: list[Replicate], folder: Path) -> dict[str, Any]:
    with whole_folder(folder) as new:
        write_bytes(new / THETA, save({r.name: r.trained.theta for r in replicates}, {"format": "pt"}))
        write_json(new / PLANS, {r.name: r.plan.record() for r in replicates if r.rerun == 0})
        write_table(new / PREDICTIONS, _predictions(bench, replicates), PREDICTED)
        files = {name: file_digest(new / name) for name in (THETA, PLANS, PREDICTIONS)}
        record = _record(cell, bench, budget, replicates) | {"files": files}
        write_json(new / METRICS, record)
    return record


def _predictions(bench: Bench, replicates: list[Replicate]) -> dict[str, Any]:
    parts = []
    for r in replicates:
        prediction = r.logits.argmax(dim=1)
        columns = {"id": bench.test.names, "label": bench.test.labels, "prediction": prediction}
        part = pd.DataFrame({"draw": r.draw, "rerun": r.rerun, **columns})
        parts.append(part.assign(correct=part["label"] == part["prediction"]))
    return pd.concat(parts).to_dict("list")


def _record(cell: Cell, bench: Bench, budget: int, replicates: list[Replicate]) -> dict[str, Any]:
    task, plm = bench.task, bench.plm
    inventory = plm.inventory
    chance = task["chance"]
    return {
        "format": FORMAT,
        "cell": asdict(cell),
        "plm": {
            "name": plm.name,
            "family": plm.family.name,
            "content": plm.content,
            "parameters": inventory.parameters,
            "non_embedding": inventory.non_embedding,
        },
        "task": {
            "name": task["task"],
            "type": task["type"],
            "metric": task["metric"],
            "labels": len(task["labels"]),
            "chance": chance["uniform"],
            "majority": chance["majority"],
            "rows": task["rows"],
            "digest": task["digest"],
        },
        "tunable": budget,
        "replicates": [_replicate_record(cell, bench, r) for r in replicates],
    }


def _replicate_record(cell: Cell, bench: Bench, r: Replicate) -> dict[str, Any]:
    seeds = {
        "plan": cell.seed_of("plan", r.draw),
        "start": cell.seed_of("start", r.draw, r.rerun),
        "order": cell.seed_of("order", r.draw, r.rerun),
    }
    return {
        "draw": r.draw,
        "rerun": r.rerun,
        "structures": r.plan.structures,
        "plan": r.plan.digest,
        "theta": bytes_digest(r.trained.theta.numpy().tobytes()),
        "seeds": seeds,
        "outcome": r.trained.outcome,
        "rate": r.trained.rate,
        "best_step": r.trained.best_step,
        "steps": cell.training.steps if r.plan.units else 0,
        "validation": asdict(r.trained.validation),
        "test": asdict(score(r.logits, bench.test.labels)),
        "losses": [[step, round(loss, 6)] for step, loss in r.trained.losses],
    }
