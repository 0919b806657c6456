"""Training of one cell, from its coordinates to its folder: θ, plans, predictions and the record.

The folder's bytes are a function of the cell, the PLM and the data. Time, memory and host go to the run record, which
is outside the folder.
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

from apet.core.atomic import atomic_dir, write_bytes, write_json
from apet.core.hashing import bytes_digest
from apet.data.prepared_files import read_task, write_table
from apet.data.schema import SPLITS
from apet.errors import ConfigError
from apet.evaluation import EncodedSplit, EvaluationResult, Score, encode_split, make_objective
from apet.models.loading import PLM
from apet.models.sharding import is_main_process
from apet.placement import PLACEMENTS, Budget, Plan, make_plan, resolve
from apet.study.cell_record import HEADS, INDICES, PLANS, PREDICTIONS, THETA, write_record
from apet.study.cells import Cell
from apet.training.callbacks import NO_CALLBACKS, CellCallbacks
from apet.training.informed_plans import Calibration, informed_plan
from apet.training.loop import HEAD, TrainingData, TrainingResult, train
from apet.tuning import initial_theta_by_structure, tune

PREDICTED = {"plan_index": pa.int16(), "seed_index": pa.int16(), "id": pa.string()}
"""Columns of the predictions in every task. The objective adds its own."""


@dataclass(frozen=True)
class CellInputs:
    """A PLM and a prepared task, tokenized once for all cells of a job that have the same `max_length`."""

    plm: PLM
    """The frozen PLM."""
    task: dict[str, Any]
    """The record `task.json` of the prepared task."""
    data: TrainingData
    """Training and validation rows."""
    test: EncodedSplit
    """Test rows."""

    @classmethod
    def from_folder(cls, plm: PLM, folder: Path, max_length: int, task: dict[str, Any] | None = None) -> CellInputs:
        """Tokenize a prepared task.

        Args:
            plm: the PLM.
            folder: folder of the prepared task.
            max_length: most tokens of a prompt with its text. A task may ask for fewer.
            task: the folder's `task.json`, if it has been read already.

        Returns:
            PLM, task and its three splits.

        Raises:
            ConfigError: the PLM cannot do the task, see `make_objective`.
            DataError: the folder or a label word is invalid.
        """
        task = task or read_task(folder)
        objective, max_length = make_objective(task, plm), min(max_length, task["max_length"])
        train, validation, test = (
            encode_split(folder, split, task, plm, max_length, objective.end_ids) for split in SPLITS
        )
        return cls(plm, task, TrainingData(train, validation, objective), test)

    @property
    def head_size(self) -> int:
        """Parameters of the trained classification head. 0 if the PLM uses its LM head."""
        return self.plm.head_size(self.data.objective.num_labels)

    @property
    def encoded(self) -> dict[str, EncodedSplit]:
        """The splits by name."""
        return dict(zip(SPLITS, (self.data.train, self.data.validation, self.test), strict=True))


@dataclass(frozen=True)
class Replicate:
    """A finished replicate: one plan, one seed, one training."""

    plan_index: int
    """Number of the plan within the cell."""
    seed_index: int
    """Number of the seed among the trainings of the plan."""
    plan: Plan
    """The plan."""
    training: TrainingResult
    """The training with the best learning-rate multiplier."""
    test: EvaluationResult
    """Score and predictions on test."""

    @property
    def name(self) -> str:
        """Name within the cell."""
        return replicate_name(self.plan_index, self.seed_index)

    def state_dict(self) -> dict[str, Any]:
        """Return training and test result as numbers and tensors."""
        rows = {name: np.asarray(column).tolist() for name, column in self.test.rows.items()}
        return {"training": self.training.state_dict(), "score": asdict(self.test.score), "rows": rows}

    @classmethod
    def from_state_dict(cls, plan_index: int, seed_index: int, plan: Plan, state: Mapping[str, Any]) -> Replicate:
        """Restore a replicate from `state_dict`."""
        training = TrainingResult.from_state_dict(state["training"])
        return cls(plan_index, seed_index, plan, training, EvaluationResult(Score(**state["score"]), state["rows"]))


def replicate_name(plan_index: int, seed_index: int) -> str:
    """Return the name of a replicate within its cell."""
    return f"plan{plan_index}.seed{seed_index}"


def train_cell(cell: Cell, inputs: CellInputs, folder: Path, callbacks: CellCallbacks = NO_CALLBACKS) -> dict[str, Any]:
    """Train all replicates of a cell and write the cell's folder atomically.

    The first replicate tries every learning-rate multiplier. The others use the one that it selects, so that cells with
    many replicates select no better than cells with few, and do not cost as many trainings more.

    Args:
        cell: the cell.
        inputs: PLM and task of the cell.
        folder: folder to write.
        callbacks: callbacks on the cell. Replicates that they have saved are not trained again.

    Returns:
        The cell's record. It is empty on all processes but the main process.

    Raises:
        ConfigError: the loss needs words, and the PLM has a classification head.
        BudgetError: the placement cannot meet the budget.
        Interrupted: a signal was received. Finished work is saved.
    """
    if inputs.head_size and cell.training.loss != "label_words":
        raise ConfigError(
            f"training.loss: expected label_words for PLM {inputs.plm.name!r}, which has `head: classification`, got "
            f"{cell.training.loss}."
        )
    inventory = inputs.plm.inventory
    budget = resolve(Budget.parse(cell.budget), cell.placement, inventory, cell.methods)
    plans = [plan_of(cell, inputs, budget, plan_index, callbacks) for plan_index in range(cell.num_plans)]
    replicates = []
    lr_multipliers = cell.training.lr_multipliers
    for plan_index, seed_index in cell.replicates:
        plan, name = plans[plan_index], replicate_name(plan_index, seed_index)
        if saved := callbacks.load(name):
            replicates.append(Replicate.from_state_dict(plan_index, seed_index, plan, saved))
        else:
            replicates.append(train_replicate(cell, inputs, plan, plan_index, seed_index, lr_multipliers, callbacks))
            callbacks.save(name, replicates[-1].state_dict)
        lr_multipliers = (replicates[0].training.lr_multiplier,)  # selected by the first replicate
    return _write(cell, inputs, budget, replicates, folder) if is_main_process() else {}


def plan_of(
    cell: Cell, inputs: CellInputs, budget: int, plan_index: int, callbacks: CellCallbacks = NO_CALLBACKS
) -> Plan:
    """Make a plan of a cell.

    Args:
        cell: the cell.
        inputs: PLM and task of the cell.
        budget: number of trainable parameters.
        plan_index: number of the plan.
        callbacks: callbacks on the cell. An informed plan that they have saved is not made again, because another
            machine may choose other scalars than those of the saved trainings.

    Returns:
        The plan.

    Raises:
        BudgetError: the placement cannot meet the budget.
        ConfigError: the plan is informed, and cannot be made or equals the cell's other plans.
    """
    seed, inventory = cell.seed_of("plan", plan_index), inputs.plm.inventory
    if cell.placement not in PLACEMENTS.informed:
        return make_plan(inventory, cell.placement, budget, seed, cell.methods)
    name = f"plan{plan_index}"
    if saved := callbacks.load(name):
        indices = {site: tensor.numpy().astype(np.int64) for site, tensor in saved["indices"].items()}
        return Plan.from_record(saved["record"], indices, inventory)
    train, num_samples = inputs.data.train, cell.methods.num_calibration_samples
    if cell.num_plans > 1 and len(train) <= num_samples:
        raise ConfigError(
            f"num_plans: expected 1 for {cell.placement} on {cell.task}, got {cell.num_plans}: methods."
            f"num_calibration_samples is {num_samples} and there are {len(train)} training rows, so all plans are "
            "equal. Lower num_calibration_samples, or use num_seeds."
        )
    calibration = Calibration(train, inputs.data.objective, cell.training.loss, num_samples)
    plan = informed_plan(inputs.plm, cell.placement, budget, seed, calibration)
    callbacks.save(name, lambda: {"record": plan.record(), "indices": tensors_of(plan)})
    return plan


def tensors_of(plan: Plan) -> dict[str, torch.Tensor]:
    """Return the chosen scalars of a plan by site, at 4 bytes each unless a site is too large."""
    return {
        name: torch.as_tensor(i.astype(np.int32 if i[-1] < 2**31 else np.int64)) for name, i in plan.indices.items()
    }


def train_replicate(
    cell: Cell,
    inputs: CellInputs,
    plan: Plan,
    plan_index: int,
    seed_index: int,
    lr_multipliers: tuple[float, ...],
    callbacks: CellCallbacks,
) -> Replicate:
    """Train a replicate with each learning-rate multiplier, select the best on validation and evaluate it on test.

    Args:
        cell: the cell.
        inputs: PLM and task of the cell.
        plan: plan number `plan_index` of the cell.
        plan_index: number of the plan.
        seed_index: number of the seed.
        lr_multipliers: factors on all learning rates.
        callbacks: callbacks on the cell. Trainings that they have saved are not repeated.

    Returns:
        The training of the selected multiplier, and its score and predictions on test.
    """
    parameters = initial_theta_by_structure(inputs.plm, plan, cell.seed_of("start", plan_index, seed_index))
    if inputs.head_size:
        parameters[HEAD] = torch.zeros(inputs.head_size)  # all labels are equally likely at step 0
    order_seed = cell.seed_of("order", plan_index, seed_index)
    multipliers = lr_multipliers if parameters else (1.0,)  # nothing to select without parameters
    share = 1 / cell.num_trainings
    replicates_before = plan_index * cell.num_seeds + seed_index
    trainings_before = replicates_before + (len(cell.training.lr_multipliers) - 1 if replicates_before else 0)
    with tune(inputs.plm, plan, cell.training.gradient_checkpointing) as tuned:

        def trained(number: int, lr_multiplier: float) -> TrainingResult:
            name = f"{replicate_name(plan_index, seed_index)}.lr{number}"
            if saved := callbacks.load(name):
                return TrainingResult.from_state_dict(saved)
            with callbacks.on_training(name, (trainings_before + number) * share, share) as callback:
                result = train(tuned, parameters, inputs.data, cell.training, order_seed, lr_multiplier, callback)
            callbacks.save(name, result.state_dict)
            return result

        results = (trained(number, lr_multiplier) for number, lr_multiplier in enumerate(multipliers))
        best = max(results, key=lambda r: (r.outcome == "ok", r.validation.score, -r.validation.loss))
        test = inputs.data.objective.evaluate(tuned, tuned.distribute(best.parameters), inputs.test)
    return Replicate(plan_index, seed_index, plan, best, test)


def _write(cell: Cell, inputs: CellInputs, budget: int, replicates: list[Replicate], folder: Path) -> dict[str, Any]:
    with atomic_dir(folder) as new:
        write_bytes(new / THETA, save({r.name: r.training.theta for r in replicates}, {"format": "pt"}))
        write_json(new / PLANS, {r.name: r.plan.record() for r in replicates if r.seed_index == 0})
        if cell.placement in PLACEMENTS.informed:
            write_bytes(new / INDICES, save(_indices(replicates), {"format": "pt"}))
        write_table(new / PREDICTIONS, *_predictions(inputs, replicates))
        if inputs.head_size:
            write_bytes(new / HEADS, save({r.name: r.training.head for r in replicates}, {"format": "pt"}))
        return write_record(new, cell.path, _record(cell, inputs, budget, replicates))


def _indices(replicates: list[Replicate]) -> dict[str, torch.Tensor]:
    """Return the chosen scalars of each plan, by plan and site."""
    first = (r for r in replicates if r.seed_index == 0)
    return {f"plan{r.plan_index}/{site}": tensor for r in first for site, tensor in tensors_of(r.plan).items()}


def _predictions(bench: CellInputs, replicates: list[Replicate]) -> tuple[dict[str, Any], pa.Schema]:
    """Columns of all replicates, one after another, and their types."""
    names, own = bench.test.row_ids, bench.data.objective.columns
    columns = {
        "plan_index": np.repeat([r.plan_index for r in replicates], len(names)),
        "seed_index": np.repeat([r.seed_index for r in replicates], len(names)),
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
            "num_params": inventory.num_params,
            "non_embedding_params": inventory.non_embedding_params,
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
        "trainable_params": budget,
        "head": {"parameters": bench.head_size},
        "replicates": [replicate_record(cell, bench, r) for r in replicates],
    }


def replicate_record(cell: Cell, bench: CellInputs, r: Replicate) -> dict[str, Any]:
    """Return the record of one replicate in the cell's record."""
    seeds = {
        "plan": cell.seed_of("plan", r.plan_index),
        "start": cell.seed_of("start", r.plan_index, r.seed_index),
        "order": cell.seed_of("order", r.plan_index, r.seed_index),
    }
    return {
        "plan_index": r.plan_index,
        "seed_index": r.seed_index,
        "structures": r.plan.structures,
        "plan_digest": r.plan.digest,
        "theta_digest": bytes_digest(r.training.theta.numpy().tobytes()),
        "seeds": seeds,
        "outcome": r.training.outcome,
        "lr_multiplier": r.training.lr_multiplier,
        "best_step": r.training.best_step,
        "num_steps": r.training.num_steps,
        "stopped": r.training.stopped,
        "validation": asdict(r.training.validation),
        "test": asdict(r.test.score),
        "losses": [[step, round(loss, 6)] for step, loss in r.training.losses],
    }
