"""Cells of tiny PLMs of several families, trained in one process, or in each of several that share the PLM."""

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
from apet.placement import make_plan
from apet.study.grid import Cell
from apet.training import job
from apet.training.cell import CellInputs, train_cell
from apet.training.loop import TrainingData, TrainingState
from apet.tuning import initial_theta_by_structure, tune
from test_training import BENCH, RECIPE, cell, rows
from tiny import WORDS, tiny_plm

STEPS = 3
LABELS = [[3, 5], [3, 6], [4]]
"""Label words of which two begin alike: a row takes one or two forward passes."""


def cases() -> Iterator[tuple[str, CellInputs, Cell]]:
    """Name, a bench with a whole PLM, and a cell. Batches and splits have odd numbers of rows."""
    recipe = replace(RECIPE, max_steps=STEPS, batch_size=7, num_evals=1)
    own = {"full": "@own", "lora": "@own", "uniform": "1500"}
    splits = TrainingData(rows(41, 1), rows(9, 2), ClassificationObjective(LabelTrie.of([[3], [4]])))
    for family in ("bloom", "t5", "bert"):
        for placement, budget in own.items():
            bench = CellInputs(tiny_plm(family), BENCH.task, splits, rows(33, 3))
            yield f"{family} {placement}", bench, cell(placement, budget, training=recipe, draws=1)
    for placement, budget in {"none": "@own", "uniform": "1500"}.items():
        plm = tiny_plm("bert")
        plm.family.drop_lm_head(plm.model)
        headed = CellInputs(replace(plm, head="classification"), BENCH.task, splits, rows(33, 3))
        yield f"bert head {placement}", headed, cell(placement, budget, training=recipe, draws=1)
    forked = replace(splits, objective=ClassificationObjective(LabelTrie.of(LABELS)))
    for loss in ("label_words", "full_vocab"):
        bench = CellInputs(tiny_plm("bloom"), BENCH.task, forked, rows(33, 3))
        yield f"bloom forks {loss}", bench, cell(training=replace(recipe, loss=loss), draws=1)


def train_all(folder: Path, spread: Callable[[PLM], PLM] = lambda plm: plm) -> None:
    """Train every case in a folder of its name, and write down what two tuned PLMs say."""
    said = {}
    for name, bench, of in cases():
        bench = replace(bench, plm=spread(bench.plm))
        if name in ("bloom uniform", "t5 uniform"):
            said[name] = say(bench)
        train_cell(of, bench, folder / name)
    if is_main_process():
        (folder / "said.json").write_text(json.dumps(said))


def say(bench: CellInputs) -> list[list[int]]:
    """Answers to the test split, with a θ that is not the identity."""
    plan = make_plan(bench.plm.inventory, "uniform", 1500, 5)
    with tune(bench.plm, plan) as tuned:
        theta = [0.1 + part for part in initial_theta_by_structure(bench.plm, plan, 6).values()]
        return generate(tuned, tuned.distribute(theta), bench.test, 1, 5)


def measure() -> dict[str, Any]:
    """What lies in this process of the frozen weights, of full fine-tuning's θ and of its moments, as shares of all;
    and how many weights of the blocks are whole behind a forward pass, and behind a step.
    """
    plm = tiny_plm("bloom", width=64)
    whole = sum(p.numel() for p in plm.model.parameters())
    plan = make_plan(plm.inventory, "full", plm.inventory.parameters, 3)
    plm = shard(plm)
    frozen = mine(plm.model.parameters())
    with tune(plm, plan) as tuned:
        run = TrainingState.start(tuned, initial_theta_by_structure(plm, plan, 4), RECIPE, 1.0)
        ids = torch.randint(WORDS, (4, 7), generator=torch.Generator().manual_seed(1))
        logits = tuned(run.parts, ids, torch.tensor([7, 5, 6, 7]), None)
        gathered = [gathered_in(plm)]
        run.optimizer_step(logits.square().mean(), 1.0)
    moments = [s for state in run.optimizer.state.values() for s in state.values() if s.numel() > 1]
    return {
        "frozen": frozen / whole,
        "theta": mine(run.parts) / plan.budget,
        "moments": mine(moments) / (2 * plan.budget),
        "gathered": [*gathered, gathered_in(plm)],
    }


def gathered_in(plm: PLM) -> int:
    """How many weights of the blocks are whole."""
    blocks = plm.family.all_blocks(plm.model)
    return sum(not isinstance(p, DTensor) for block in blocks for p in block.parameters())


def mine(tensors: Any) -> int:
    """How many numbers of tensors lie in this process."""
    return sum((t.to_local() if isinstance(t, DTensor) else t).numel() for t in tensors)


def train_badly(*arguments: str) -> int:
    """`apet train` of three cells: the first is an error in the midst of a forward pass, in every process alike; while
    the third is under way, the second process is killed.
    """
    before, begun = job.train_cell, []

    def train(of: Cell, bench: CellInputs, *rest: Any) -> dict[str, Any]:
        begun.append(of)
        if len(begun) == 1:
            bench.plm.root_unit(refuse)
        return before(of, bench, *rest)

    def look(run: TrainingState, seen: Any) -> None:
        if len(begun) == 3 and not is_main_process():
            os.kill(os.getpid(), signal.SIGKILL)
        looked(run, seen)

    looked, TrainingState.record_eval, job.train_cell = TrainingState.record_eval, look, train
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
    name, bench, of = next(cases())
    train_cell(of, replace(bench, plm=shard(bench.plm)), out / "again")
    if is_main_process():
        (out / "shares.json").write_text(json.dumps(shares))
    distributed.destroy_process_group()
