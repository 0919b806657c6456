"""Cells of tiny PLMs of several families, trained by one process or by several that share a PLM."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.tensor import DTensor

from apet.cli.app import main
from apet.errors import ModelError
from apet.evaluation import ClassificationObjective, LabelTrie, generate
from apet.models.loading import PLM
from apet.models.sharding import is_main_process, shard
from apet.placement import STRUCTURES, MethodSizes, make_plan
from apet.study.cells import Cell
from apet.training import job
from apet.training.cell import CellInputs, train_cell
from apet.training.loop import TrainingData, TrainingState
from apet.tuning import initial_theta_by_structure, tune
from tiny import WORDS, tiny_plm
from toy_cells import CONFIG, INPUTS, cell, rows

STEPS = 3
LABELS = [[3, 5], [3, 6], [4]]
"""Label words of which two share a prefix, so that a row takes one or two forward passes."""


def cases() -> Iterator[tuple[str, CellInputs, Cell]]:
    """Yield a name, inputs with an unsharded PLM, and a cell. Batches and splits have odd numbers of rows."""
    config = replace(CONFIG, max_steps=STEPS, batch_size=7, num_evals=1)
    own = {"full": "@own", "lora": "@own", "ia3": "@own", "prefix": "@own", "uniform": "1500"}
    informed = {"bloom": "gradient", "t5": "fisher", "bert": "magnitude"}
    splits = TrainingData(rows(41, 1), rows(9, 2), ClassificationObjective(LabelTrie.from_tokens([[3], [4]])))
    for family in ("bloom", "t5", "bert"):
        for placement, budget in {**own, informed[family]: "1501"}.items():
            inputs = CellInputs(tiny_plm(family), INPUTS.task, splits, rows(33, 3))
            yield f"{family} {placement}", inputs, cell(placement, budget, training=config, num_plans=1)
    for placement, budget in {"none": "@own", "uniform": "1500"}.items():
        plm = tiny_plm("bert")
        plm.family.drop_lm_head(plm.model)
        headed = CellInputs(replace(plm, head="classification"), INPUTS.task, splits, rows(33, 3))
        yield f"bert head {placement}", headed, cell(placement, budget, training=config, num_plans=1)
    branching = replace(splits, objective=ClassificationObjective(LabelTrie.from_tokens(LABELS)))
    for loss in ("label_words", "full_vocab"):
        inputs = CellInputs(tiny_plm("bloom"), INPUTS.task, branching, rows(33, 3))
        yield f"bloom branches {loss}", inputs, cell(training=replace(config, loss=loss), num_plans=1)


def train_all(folder: Path, spread: Callable[[PLM], PLM] = lambda plm: plm) -> None:
    """Train each case in a folder of its name, and write the answers that two tuned PLMs generate."""
    answers = {}
    for name, inputs, of in cases():
        inputs = replace(inputs, plm=spread(inputs.plm))
        if name in ("bloom uniform", "t5 uniform"):
            answers[name] = generate_answers(inputs)
        train_cell(of, inputs, folder / name)
    if is_main_process():
        (folder / "answers.json").write_text(json.dumps(answers))


def generate_answers(inputs: CellInputs) -> list[list[int]]:
    """Generate answers to the test split, with a θ that changes the PLM."""
    plan = make_plan(inputs.plm.inventory, "uniform", 1500, 15, MethodSizes(sampled_structures=STRUCTURES))
    theta = [0.1 + part for part in initial_theta_by_structure(inputs.plm, plan, 6).values()]
    with tune(inputs.plm, plan) as tuned:
        return generate(tuned, tuned.distribute(theta), inputs.test, 1, 5)


def measure() -> dict[str, Any]:
    """Measure the shares of frozen weights, θ of full fine-tuning and optimizer moments that this process holds.

    Also counts the unsharded weights of blocks after a forward pass and after a step.
    """
    plm = tiny_plm("bloom", width=64)
    total = sum(p.numel() for p in plm.model.parameters())
    plan = make_plan(plm.inventory, "full", plm.inventory.num_params, 3)
    plm = shard(plm)
    frozen = local_numbers(plm.model.parameters())
    with tune(plm, plan) as tuned:
        state = TrainingState.initial(tuned, initial_theta_by_structure(plm, plan, 4), CONFIG, 1.0)
        ids = torch.randint(WORDS, (4, 7), generator=torch.Generator().manual_seed(1))
        logits = tuned(state.parameters, ids, torch.tensor([7, 5, 6, 7]), None)
        gathered = [gathered_in(plm)]
        state.optimizer_step(logits.square().mean(), 1.0)
    moments = [x for values in state.optimizer.state.values() for x in values.values() if x.numel() > 1]
    return {
        "frozen": frozen / total,
        "theta": local_numbers(state.parameters) / plan.budget,
        "moments": local_numbers(moments) / (2 * plan.budget),
        "gathered": [*gathered, gathered_in(plm)],
    }


def gathered_in(plm: PLM) -> int:
    """Count the unsharded weights of the blocks."""
    blocks = plm.family.all_blocks(plm.model)
    return sum(not isinstance(p, DTensor) for block in blocks for p in block.parameters())


def local_numbers(tensors: Any) -> int:
    """Count the numbers of tensors in this process."""
    return sum((t.to_local() if isinstance(t, DTensor) else t).numel() for t in tensors)


def train_badly(*arguments: str) -> int:
    """Run `apet train` of three cells. The first raises an error in a forward pass on all processes. During the third,
    the second process is killed.
    """
    original_train_cell, started = job.train_cell, []

    def train(of: Cell, inputs: CellInputs, *rest: Any) -> dict[str, Any]:
        started.append(of)
        if len(started) == 1:
            inputs.plm.root_unit(refuse)
        return original_train_cell(of, inputs, *rest)

    def record_eval(state: TrainingState, score: Any) -> None:
        if len(started) == 3 and not is_main_process():
            os.kill(os.getpid(), signal.SIGKILL)
        original_record_eval(state, score)

    original_record_eval = TrainingState.record_eval
    TrainingState.record_eval, job.train_cell = record_eval, train
    return main(arguments)


def refuse() -> None:
    raise ModelError("refused")


if __name__ == "__main__":
    if sys.argv[1] == "train":
        sys.exit(train_badly(*sys.argv[1:]))
    out = Path(sys.argv[1])
    train_all(out, shard)
    shares: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(shares, measure())
    name, inputs, of = next(cases())
    train_cell(of, replace(inputs, plm=shard(inputs.plm)), out / "again")
    if is_main_process():
        (out / "shares.json").write_text(json.dumps(shares))
    distributed.destroy_process_group()
