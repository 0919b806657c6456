"""Cells that the functions of the pipeline trained."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

import apet
from apet.core.records import write_json_record
from apet.models.loading import load_plm
from apet.placement import MethodSizes
from apet.study.cell_record import METRICS
from apet.study.cells import Cell, data_folder, plm_folder
from apet.training.cell import CellInputs, train_cell
from saved import save_plm
from tiny import WORDS, tiny_plm

SPLITS = {"train": 48, "validation": 16, "test": 24}


RECIPE = replace(apet.QUICK_TRAINING, max_steps=6, batch_size=8, max_length=16)


TASK = {
    "name": "words", "version": 1, "description": "Which of w8 and w9 occurs.", "type": "classification",
    "text_columns": ["text"], "prompt": "{text} w10", "verbalizer": {"eight": " w20", "nine": " w30 w31"},
    "metrics": ["accuracy"], "max_length": 14,
}  # fmt: skip


GENERATION = {
    "name": "echo", "version": 1, "description": "Say the first word.", "type": "generation", "text_columns": ["text"],
    "target_column": "answer", "max_new_tokens": 4, "prompt": "{text} w10", "metrics": ["f1", "em"], "max_length": 14,
}  # fmt: skip


def rows(count: int, seed: int) -> list[dict[str, str]]:
    """Rows with the columns of all tasks."""
    generator, result = random.Random(seed), []
    for _ in range(count):
        words = [f"w{generator.randrange(12, WORDS)}" for _ in range(generator.randrange(4, 20))]
        label = generator.randrange(2)
        words[generator.randrange(len(words))] = f"w{8 + label}"
        text = " ".join(words)
        row = {"text": text, "one": text, "two": words[0], "label": ("eight", "nine")[label], "answer": words[0]}
        result.append(row)
    return result


def by_split(columns: tuple[str, ...]) -> dict[str, list[dict[str, str]]]:
    splits = {split: rows(count, seed) for seed, (split, count) in enumerate(SPLITS.items())}
    return {split: [{name: row[name] for name in columns} for row in group] for split, group in splits.items()}


@dataclass(frozen=True)
class Finished:
    """Trained cell in its own project folder."""

    root: Path
    cell: Cell

    @property
    def folder(self) -> Path:
        return self.root / "results" / "cells" / self.cell.path

    @property
    def record(self) -> dict:
        return json.loads((self.folder / METRICS).read_text())

    @property
    def plm(self) -> Path:
        return self.root / self.cell.plm_folder

    @property
    def data(self) -> Path:
        return self.root / self.cell.data_folder


def finished(root: Path, family: str = "bloom", task: dict | None = None, head: str = "lm", **changes) -> Finished:
    """Train a cell with the functions of the pipeline."""
    task = task or TASK
    answer = "answer" if task["type"] == "generation" else "label"
    fields = {"placement": "uniform", "budget": "700", "num_plans": 2, "num_seeds": 1, **changes}
    cell = Cell(
        family,
        task["name"],
        seed=1,
        methods=MethodSizes(),
        training=RECIPE,
        model_digest="1" * 64,
        data_digest="2" * 64,
        **fields,
    )
    folder = save_plm(tiny_plm(family, fused=False).model, root / plm_folder(family, cell.model_digest))
    if head == "classification":
        write_json_record(folder / "snapshot.json", {"head": head})
    data = root / data_folder(cell.task, cell.data_digest)
    apet.prepare_task(task, data, by_split((*task["text_columns"], answer)))
    result = Finished(root, cell)
    train_cell(cell, CellInputs.from_folder(load_plm(folder, family), data, RECIPE.max_length), result.folder)
    return result
