"""A tiny PLM with a toy task as tensors, and cells of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from apet.config.study_config import load_study
from apet.evaluation import ClassificationObjective, EncodedSplit, LabelTrie
from apet.placement import MethodSizes, make_plan
from apet.study.cells import Cell
from apet.training.cell import CellInputs
from apet.training.loop import TrainingData
from apet.training.runtime import make_deterministic
from apet.tuning import initial_theta, split_by_structure
from tiny import WORDS, tiny_plm

CONFIG = replace(
    load_study(Path(__file__).parent.parent / "params.yaml").grid[0].training, max_steps=40, batch_size=8, num_evals=4
)

make_deterministic()


def rows(count: int, seed: int) -> EncodedSplit:
    """Make rows with token 7 or token 8 at a random position, which tells the label."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 9, (count,), generator=generator)
    ids = torch.randint(10, WORDS, (count, 8), generator=generator)
    labels = torch.randint(2, (count,), generator=generator)
    places = (torch.rand(count, generator=generator) * (lengths - 1)).long()
    ids[torch.arange(count), places] = 7 + labels
    ids[torch.arange(8) >= lengths[:, None]] = 0
    return EncodedSplit([f"{seed}-{i}" for i in range(count)], ids, lengths, labels)


def make_inputs() -> CellInputs:
    task = {
        "task": "toy", "type": "classification", "metric": "accuracy", "metrics": ["accuracy"],
        "verbalizer": {"a": " a", "b": " b"},
        "chance": {"level": 0.5, "uniform": 0.5, "majority": 0.5},
        "rows": {"train": 64, "validation": 32, "test": 48}, "digest": "0", "task_digest": "data",
        "label_counts": {"test": {"a": 24, "b": 24}},
    }  # fmt: skip
    splits = TrainingData(rows(64, 1), rows(32, 2), ClassificationObjective(LabelTrie.from_tokens([[3], [4]])))
    return CellInputs(tiny_plm("bloom"), task, splits, rows(48, 3))


INPUTS = make_inputs()


def cell(placement: str = "uniform", budget: str = "700", **changes) -> Cell:
    base = Cell("tiny", "toy", placement, budget, 2, 1, 1, MethodSizes(adapter_bottleneck_dim=4), CONFIG, "plm", "data")
    return replace(base, **changes)


def start(placement: str = "uniform", budget: int = 700):
    plan = make_plan(INPUTS.plm.inventory, placement, budget, 3)
    words = INPUTS.plm.model.get_input_embeddings().weight
    return plan, split_by_structure(plan, initial_theta(plan, 4, words))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}
