"""One cell from its coordinates to its folder: θ of every replicate, plans, predictions, metrics.

The folder's bytes are a function of the cell, the PLM and the data. What may differ between reruns (time, memory, host)
goes to a run record elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save

from apet.core.hashing import atomic_dir, bytes_digest, write_bytes, write_json
from apet.data.prepare import SPLITS, read_task
from apet.data.prepared_files import write_table
from apet.errors import ConfigError
from apet.evaluation import EncodedSplit, EvaluationResult, Score, encode_split, objective_of
from apet.models.loading import PLM
from apet.models.sharding import is_main_process
from apet.placement import Budget, Plan, make_plan, resolve
from apet.study.cell_record import HEADS, PLANS, PREDICTIONS, THETA, write_record
from apet.study.grid import Cell
from apet.training.callbacks import NO_CALLBACKS, CellCallbacks
from apet.training.loop import HEAD, TrainingData, TrainingResult, train
from apet.tuning import initial_theta_by_structure, tune

PREDICTED = {"draw": pa.int16(), "rerun": pa.int16(), "id": pa.string()}
"""Columns of the predictions that every task has; its objective names the others."""


@dataclass(frozen=True)
class CellInputs:
    """A PLM and a prepared task, loaded and tokenised once for all cells of a block."""

    plm: PLM
    task: dict[str, Any]
    data: TrainingData
    test: EncodedSplit

    @classmethod
    def of(cls, plm: PLM, data: Path, length: int) -> CellInputs:
        """length: most tokens of a prompt with its text; a task may ask for fewer. Raises as `objective_of`."""
        task = read_task(data)
        objective, longest = objective_of(task, plm), min(length, task["max_length"])
        train, validation, test = (encode_split(data, s, task, plm, longest, objective.end) for s in SPLITS)
        return cls(plm, task, TrainingData(train, validation, objective), test)

    @property
    def head_size(self) -> int:
        """Parameters of the trained head; 0 where the PLM reads by its own."""
        return self.plm.head_size(self.data.objective.labels)

    @property
    def encoded(self) -> dict[str, EncodedSplit]:
        """The splits by name."""
        return dict(zip(SPLITS, (self.data.train, self.data.validation, self.test), strict=True))


@dataclass(frozen=True)
class Replicate:
    """One run of a cell. test: on the test split."""

    plan_index: int
    seed_index: int
    plan: Plan
    training: TrainingResult
    test: EvaluationResult

    @property
    def name(self) -> str:
        return replicate_name(self.plan_index, self.seed_index)

    def state_dict(self) -> dict[str, Any]:
        """What was computed, as numbers and tensors; draw, rerun and plan are known."""
        rows = {name: np.asarray(column).tolist() for name, column in self.test.rows.items()}
        return {"trained": self.training.state_dict(), "score": asdict(self.test.score), "rows": rows}

    @classmethod
    def from_state_dict(cls, draw: int, rerun: int, plan: Plan, values: Mapping[str, Any]) -> Replicate:
        """The one that `values` was taken of."""
        tested = EvaluationResult(Score(**values["score"]), values["rows"])
        return cls(draw, rerun, plan, TrainingResult.from_state_dict(values["trained"]), tested)


def replicate_name(draw: int, rerun: int) -> str:
    """Of a replicate within its cell."""
    return f"draw{draw}.rerun{rerun}"


def train_cell(cell: Cell, bench: CellInputs, folder: Path, journal: CellCallbacks = NO_CALLBACKS) -> dict[str, Any]:
    """Train every replicate of a cell and write its folder whole. Returns the metrics record; of several processes that
    share the PLM the first one writes, and all others return an empty one.

    Raises ParamsError for a loss over the vocabulary with a PLM that is read through a trained head, and Interrupted,
    when all that was done is kept, if the journal has been told to stop.
    """
    if bench.head_size and cell.training.loss != "label_words":
        raise ConfigError(
            f"training.loss {cell.training.loss!r}: PLM {bench.plm.name!r} has `head: classification`, whose outputs are "
            "labels and not words. Allowed for it: labels."
        )
    inventory = bench.plm.inventory
    budget = resolve(Budget.parse(cell.budget), cell.placement, inventory, cell.methods)
    replicates = []
    for draw, rerun in cell.replicates:
        plan = make_plan(inventory, cell.placement, budget, cell.seed_of("plan", draw), cell.methods)
        name = replicate_name(draw, rerun)
        if kept := journal.find(name):
            replicates.append(Replicate.from_state_dict(draw, rerun, plan, kept))
        else:
            replicates.append(run_replicate(cell, bench, plan, draw, rerun, journal))
            journal.finished(name, replicates[-1].state_dict)
    return _write(cell, bench, budget, replicates, folder) if is_main_process() else {}


def run_replicate(
    cell: Cell, bench: CellInputs, plan: Plan, draw: int, rerun: int, journal: CellCallbacks
) -> Replicate:
    """Train at every rate of the grid, keep the one that is best on validation, and predict the test split.

    The pass over the test split is one piece of work: who is killed in it takes it again.
    """
    parts = initial_theta_by_structure(bench.plm, plan, cell.seed_of("start", draw, rerun))
    if bench.head_size:
        # Zero: every label is equally likely at step 0.
        parts[HEAD] = torch.zeros(bench.head_size)
    order = cell.seed_of("order", draw, rerun)
    # Without parameters there is nothing to choose.
    rates = cell.training.lr_multipliers if parts else (1.0,)
    runs_before, share = (
        (draw * cell.num_seeds + rerun) * len(rates),
        1 / (cell.num_plans * cell.num_seeds * len(rates)),
    )
    with tune(bench.plm, plan, cell.training.gradient_checkpointing) as tuned:

        def run(number: int, rate: float) -> TrainingResult:
            name = f"{replicate_name(draw, rerun)}.rate{number}"
            if kept := journal.find(name):
                return TrainingResult.from_state_dict(kept)
            with journal.watch(name, (runs_before + number) * share, share) as watch:
                trained = train(tuned, parts, bench.data, cell.training, order, rate, watch)
            journal.finished(name, trained.state_dict)
            return trained

        runs = (run(number, rate) for number, rate in enumerate(rates))
        best = max(runs, key=lambda run: (run.outcome == "ok", run.validation.score, -run.validation.loss))
        tested = bench.data.objective.evaluate(tuned, tuned.distribute(best.parts), bench.test)
    return Replicate(draw, rerun, plan, best, tested)


def _write(cell: Cell, bench: CellInputs, budget: int, replicates: list[Replicate], folder: Path) -> dict[str, Any]:
    with atomic_dir(folder) as new:
        write_bytes(new / THETA, save({r.name: r.training.theta for r in replicates}, {"format": "pt"}))
        write_json(new / PLANS, {r.name: r.plan.record() for r in replicates if r.seed_index == 0})
        write_table(new / PREDICTIONS, *_predictions(bench, replicates))
        if bench.head_size:
            write_bytes(new / HEADS, save({r.name: r.training.head for r in replicates}, {"format": "pt"}))
        return write_record(new, cell.path, _record(cell, bench, budget, replicates))


def _predictions(bench: CellInputs, replicates: list[Replicate]) -> tuple[dict[str, Any], pa.Schema]:
    """Columns of all replicates, one after another, and their types."""
    names, own = bench.test.row_ids, bench.data.objective.columns
    columns = {
        "draw": np.repeat([r.plan_index for r in replicates], len(names)),
        "rerun": np.repeat([r.seed_index for r in replicates], len(names)),
        "id": names * len(replicates),
        **{name: np.concatenate([r.test.rows[name] for r in replicates]) for name in own},
    }
    return columns, pa.schema({**PREDICTED, **own}.items())


def _record(cell: Cell, bench: CellInputs, budget: int, replicates: list[Replicate]) -> dict[str, Any]:
    task, plm = bench.task, bench.plm
    inventory = plm.inventory
    chance = task["chance"]
    return {
        "cell": asdict(cell),
        "plm": {
            **plm.record(),
            "parameters": inventory.parameters,
            "non_embedding": inventory.non_embedding,
        },
        "task": {
            "name": task["task"],
            "type": task["type"],
            "metric": task["metric"],
            "metrics": task["metrics"],
            # Where there are no labels to guess, chance is what shuffled references score.
            "labels": len(task["verbalizer"]) or None,
            "chance": chance.get("uniform", chance["level"]),
            "majority": chance.get("majority"),
            "rows": task["rows"],
            "label_counts": task["label_counts"],
            "digest": task["digest"],
            "truncated": {name: split.truncated for name, split in bench.encoded.items()},
            "lengths": {name: split.tokens for name, split in bench.encoded.items()},
        },
        "tunable": budget,
        "head": {"parameters": bench.head_size},
        "replicates": [replicate_record(cell, bench, r) for r in replicates],
    }


def replicate_record(cell: Cell, bench: CellInputs, r: Replicate) -> dict[str, Any]:
    """What the cell's record says of one run."""
    seeds = {
        "plan": cell.seed_of("plan", r.plan_index),
        "start": cell.seed_of("start", r.plan_index, r.seed_index),
        "order": cell.seed_of("order", r.plan_index, r.seed_index),
    }
    return {
        "draw": r.plan_index,
        "rerun": r.seed_index,
        "structures": r.plan.structures,
        "plan": r.plan.digest,
        "theta": bytes_digest(r.training.theta.numpy().tobytes()),
        "seeds": seeds,
        "outcome": r.training.outcome,
        "rate": r.training.lr_multiplier,
        "best_step": r.training.best_step,
        "steps": r.training.num_steps,
        "stopped": r.training.stopped,
        "validation": asdict(r.training.validation),
        "test": asdict(r.test.score),
        "losses": [[step, round(loss, 6)] for step, loss in r.training.losses],
    }
