"""The steps of the pipeline for a notebook: on PLMs in memory, by the same code, without a study."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from apet.config.study_config import LearningRates, TrainingConfig
from apet.data.prepare import Rows
from apet.data.prepare import prepare_task as prepare_splits
from apet.data.task_config import load_task
from apet.errors import ConfigError, ModelError, unknown_name
from apet.evaluation import Score
from apet.export.delta import memory_content
from apet.export.formats import export_model
from apet.export.peft_adapters import plan_from_peft
from apet.export.restore import load_tuned
from apet.export.tuned_model import ASKED, TunedModel
from apet.models.families import family_of
from apet.models.loading import PLM, load_plm
from apet.models.registry import DTYPES
from apet.placement import Budget, Inventory, MethodSizes, Plan, resolve
from apet.placement import make_plan as plan_units
from apet.study.grid import Cell
from apet.training.callbacks import NO_CALLBACKS
from apet.training.cell import CellInputs, replicate_record, train_replicate
from apet.training.runtime import make_deterministic

__all__ = [
    "DEFAULT_TRAINING",
    "Inventory",
    "MethodSizes",
    "Plan",
    "Score",
    "TrainingConfig",
    "TunedModel",
    "export_model",
    "load_model",
    "load_tuned",
    "make_plan",
    "plan_from_peft",
    "prepare_task",
    "train",
]

DEFAULT_TRAINING = TrainingConfig(
    loss="label_words", max_steps=60, batch_size=16, max_length=36, learning_rates=LearningRates(0.03, 0.03, 0.03, 0.03, 0.03, 0.003),
    lr_multipliers=(1.0,), lr_scheduler_type="linear", warmup_ratio=0.1, num_evals=2, max_grad_norm=1.0, gradient_checkpointing=False,
)  # fmt: skip
"""The quick study's recipe, from which `train` starts."""


def load_model(
    source: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    name: str | None = None,
    device: str = "cpu",
) -> PLM:
    """A frozen PLM: a Hugging Face folder, or a model with its LM head and its tokenizer that are in memory already.

    `inventory` of it lists its sites. name: in records and seeds (default: the folder's, or the architecture's). A
    model in memory is not copied: it is set to evaluation without gradients, with the family's faster kernels, and
    stays where it is. Raises ModelError for a PLM that cannot be used.
    """
    if not isinstance(source, PreTrainedModel):
        return load_plm(Path(source), name or Path(source).resolve().name, device=device)
    config, dtype = source.config, str(source.dtype).removeprefix("torch.")
    family = family_of(config.model_type)
    if not isinstance(source, family.class_of(config)):
        wanted = family.class_of(config).__name__
        raise ModelError(f"a {type(source).__name__} has no LM head, by which answers are read. Allowed: {wanted}.")
    if tokenizer is None:
        raise ModelError("a PLM in memory needs its tokenizer: apet.load_model(model, tokenizer).")
    if dtype not in DTYPES:
        raise ModelError(unknown_name("dtype", dtype, DTYPES))
    source.requires_grad_(False).eval()
    family.install_kernels(source)
    named, frame = name or config.model_type, family.special_tokens(tokenizer)
    return PLM(named, family, source, tokenizer, memory_content(source), frame, dtype=dtype)


def make_plan(
    plm: PLM, placement: str, budget: int | str = "@own", seed: int = 1, methods: MethodSizes | None = None
) -> Plan:
    """Which units get the budget, as `apet plan` says. budget: 4096, "0.01%", "@lora", …; methods: sizes of the named
    placements. Raises ParamsError for an unknown placement, BudgetError for a budget that it cannot meet.
    """
    methods = methods or MethodSizes()
    count = resolve(Budget.parse(budget), placement, plm.inventory, methods)
    return plan_units(plm.inventory, placement, count, seed, methods)


def prepare_task(
    task: str | Path | Mapping[str, Any],
    out: str | Path,
    rows: Iterable[Mapping[str, Any]] | Mapping[str, Iterable[Mapping[str, Any]]] | None = None,
    most: Rows | None = None,
    seed: int = 1,
    wheels: str | Path = "data/wheels",
) -> Path:
    """Prepare a task's splits in a folder, as `apet prepare` does. Returns the folder.

    task: a name, a YAML file, or what such a file says. rows: a task's rows where no source has them, each a mapping
    with the task's columns, together (splits are made by a hash of the text) or by split (train, validation, test).
    most: most rows of each split. Raises ParamsError and DataError for a task or a row that is not as it should be.
    """
    given = isinstance(task, Mapping)
    if given != (rows is not None):
        raise ConfigError("rows: they go with a task that is a mapping; a task by name or YAML file has its source.")
    with tempfile.TemporaryDirectory() as folder:
        found = load_task(_written(task, rows, Path(folder)) if isinstance(task, Mapping) else task)
        prepare_splits(found, Path(wheels), Path(out), most or {}, seed)
    return Path(out)


def train(plm: PLM, plan: Plan, data: str | Path, seed: int = 1, **training: Any) -> TunedModel:
    """Train one replicate of a plan on a prepared task, select on validation, score on test.

    training: keys of params.yaml's `training` in place of those of DEFAULT_TRAINING. The replicate is draw 0, rerun 0 of the cell with
    this PLM's name, task, placement and budget (as a number): where the plan is that cell's, θ is too, bit for bit.
    PyTorch is left with one thread and deterministic kernels. The result's `run` has curve, rate and scores.
    """
    recipe = DEFAULT_TRAINING.override(training, "apet.train")
    if plm.head == "classification" and recipe.loss != "label_words":
        raise ConfigError(
            f"loss {recipe.loss!r}: PLM {plm.name!r} has `head: classification`. Allowed for it: label_words."
        )
    make_deterministic(plm.device.type)
    bench = CellInputs.from_folder(plm, Path(data), recipe.max_length)
    task = bench.task
    coordinates = plm.name, task["task"], plan.placement, str(plan.budget)
    cell = Cell(*coordinates, 1, 1, seed, MethodSizes(), recipe, plm.content, task["digest"])
    made = train_replicate(cell, bench, plan, 0, 0, NO_CALLBACKS)
    asked, length = {key: task[key] for key in ASKED}, min(recipe.max_length, task["max_length"])
    run = replicate_record(cell, bench, made)
    return TunedModel(plm, plan, made.training.theta, asked, length, made.training.head, run)


def _written(task: Mapping[str, Any], rows: Any, folder: Path) -> Path:
    """A task and its rows as the files that the pipeline reads them from."""
    splits = rows if isinstance(rows, Mapping) else {"all": rows}
    for split, some in splits.items():
        records = some.to_dict("records") if hasattr(some, "to_dict") else some
        lines = [json.dumps(dict(row), ensure_ascii=False) for row in records]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    place = {"folder": "."} if isinstance(rows, Mapping) else {"file": "all.jsonl"}
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump({**task, "local": place}, sort_keys=False, allow_unicode=True), "utf-8")
    return path
