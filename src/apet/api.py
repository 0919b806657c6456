"""The steps of the pipeline for notebooks: the same code on models in memory, without a study."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from apet.config.study_config import LearningRates, TrainingConfig
from apet.data.prepare import Rows
from apet.data.prepare import prepare_task as prepare_splits
from apet.data.schema import SPLITS
from apet.data.task_config import load_task, parse_task
from apet.errors import ConfigError, ModelError, renamed_in_errors, unknown_name
from apet.evaluation import Score
from apet.export.delta import memory_content
from apet.export.formats import export_model
from apet.export.peft_adapters import plan_from_peft
from apet.export.restore import load_tuned
from apet.export.tuned_model import TASK_KEYS, TunedModel
from apet.models.families import Family, family_of
from apet.models.loading import PLM, load_plm
from apet.models.registry import DTYPES, HEADS
from apet.placement import PLACEMENTS, Budget, Inventory, MethodSizes, Plan, resolve
from apet.placement import make_plan as plan_units
from apet.study.cells import Cell
from apet.training.callbacks import NO_CALLBACKS
from apet.training.cell import CellInputs, replicate_record, train_replicate
from apet.training.informed_plans import Calibration, informed_plan
from apet.training.runtime import make_deterministic

__all__ = [
    "QUICK_TRAINING",
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

QUICK_TRAINING = TrainingConfig(
    max_steps=60, max_length=36, num_evals=2, learning_rates=LearningRates(0.03, 0.03, 0.03, 0.03, 0.03, 0.003)
)  # fmt: skip
"""Training configuration of the quick study, which `train` uses by default."""

Samples = Iterable[Mapping[str, Any]]
"""Rows of a task: a list of mappings from column to value, or a data frame."""


def load_model(
    source: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    name: str | None = None,
    device: str = "cpu",
    head: str | None = None,
) -> PLM:
    """Load a frozen PLM from a folder, or wrap a model in memory.

    A model in memory is not copied. It is set to evaluation mode without gradients, gets the faster kernels of its
    family, and stays on its device.

    Args:
        source: A Hugging Face folder (config.json, safetensors, tokenizer), or a model with its LM head.
        tokenizer: The tokenizer of a model in memory.
        name: The name in records and seeds. Default: the folder's name, or the architecture.
        device: The PyTorch device to load a folder to.
        head: `lm`: the LM head predicts label words. `classification`: a linear classifier, trained with θ, predicts
            labels. Default: as `apet download-model` recorded in the folder, or else `lm`.

    Returns:
        The PLM. Its `inventory` lists the sites.

    Raises:
        ModelError: If the model is not supported.
    """
    if head not in (None, *HEADS):
        raise ModelError(unknown_name("head", head, HEADS))
    if not isinstance(source, PreTrainedModel):
        return load_plm(Path(source), name or os.path.basename(os.path.abspath(source)), device=device, head=head)
    config, dtype = source.config, str(source.dtype).removeprefix("torch.")
    family = family_of(config.model_type)
    if not isinstance(source, family.class_of(config)):
        expected = family.class_of(config).__name__
        raise ModelError(f"model: expected a {expected}, got a {type(source).__name__}, which has no LM head.")
    if tokenizer is None:
        raise ModelError("tokenizer: missing for a model in memory. Call apet.load_model(model, tokenizer).")
    if dtype not in DTYPES:
        raise ModelError(unknown_name("dtype", dtype, DTYPES))
    source.requires_grad_(False).eval()
    family.install_kernels(source)
    special_tokens = family.special_tokens(tokenizer)
    model = _without_lm_head(source, family) if head == "classification" else source
    content = memory_content(model)
    return PLM(name or config.model_type, family, model, tokenizer, content, special_tokens, head or "lm", dtype)


def _without_lm_head(model: PreTrainedModel, family: Family) -> PreTrainedModel:
    """Return a model that shares all modules but the LM head, so that the given one keeps it."""
    shared = copy(model)
    shared._modules = dict(model._modules)
    family.drop_lm_head(shared)
    return shared


def make_plan(
    plm: PLM,
    placement: str,
    budget: int | str = "@own",
    seed: int = 1,
    methods: MethodSizes | None = None,
    data: str | Path | None = None,
    **training: Any,
) -> Plan:
    """Distribute a budget over the sites of a PLM, as `apet plan` does, or choose the scalars of an informed placement.

    Args:
        plm: The frozen PLM.
        placement: The name of a placement, such as `uniform`, `lora` or `magnitude`.
        budget: The number of trainable parameters (4096), a percentage of the PLM ("0.01%"), or the
            count of a placement ("@lora").
        seed: Seed of random placements, and of the training rows that `gradient` and `fisher` read.
        methods: Sizes of the named methods, and number of training rows that are read. Default: the published sizes.
        data: The folder of a prepared task, which `gradient` and `fisher` need.
        **training: Keys of `training` in params.yaml as for `train`. Of these, `loss` and `max_length` matter.

    Returns:
        The plan: units of each site. Its `budget` is met exactly.

    Raises:
        ConfigError: If the placement is unknown or needs `data`.
        BudgetError: If the placement cannot meet the budget.
    """
    methods = methods or MethodSizes()
    count = resolve(Budget.parse(budget), placement, plm.inventory, methods)
    if placement not in PLACEMENTS.informed:
        return plan_units(plm.inventory, placement, count, seed, methods)
    make_deterministic(plm.device.type)
    if not PLACEMENTS.informed[placement]:
        return informed_plan(plm, placement, count, seed)
    if data is None:
        raise ConfigError(
            f"placement {placement!r}: missing training rows. Give the folder of a prepared task as data=."
        )
    config = QUICK_TRAINING.override(training, "apet.make_plan")
    inputs = CellInputs.from_folder(plm, Path(data), config.max_length)
    calibration = Calibration(inputs.data.train, inputs.data.objective, config.loss, methods.num_calibration_samples)
    return informed_plan(plm, placement, count, seed, calibration)


def prepare_task(
    task: str | Path | Mapping[str, Any],
    out_dir: str | Path,
    rows: Samples | Mapping[str, Samples] | None = None,
    max_samples: Rows | None = None,
    seed: int = 1,
    wheels_dir: str | Path = "data/wheels",
) -> Path:
    """Prepare the splits of a task in a folder, as `apet prepare-task` does.

    Args:
        task: The name of a built-in task, a YAML file, or the content of such a file.
        out_dir: The folder to write.
        rows: The rows of a task that is given as a mapping: one collection, which is split by a hash of the text, or
            one for each split (train, validation, test).
        max_samples: Maximum number of rows of each split. Default: all.
        seed: Seed of the selection of rows.
        wheels_dir: The folder of downloaded wheels.

    Returns:
        The folder.

    Raises:
        ConfigError: If the task is invalid.
        DataError: If a row is invalid.
    """
    if isinstance(task, Mapping) != (rows is not None):
        raise ConfigError("rows: expected with a task that is a mapping, and only then. Other tasks have a source.")
    with tempfile.TemporaryDirectory() as folder, _errors_name_rows(folder):
        if isinstance(task, Mapping):
            values = {**task, "local": _write_rows(rows, Path(folder))}
            definition = parse_task(values, "task", Path(folder))
        else:
            definition = load_task(task)
        prepare_splits(definition, Path(wheels_dir), Path(out_dir), max_samples or {}, seed)
    return Path(out_dir)


def train(plm: PLM, plan: Plan, data: str | Path, seed: int = 1, **training: Any) -> TunedModel:
    """Train one replicate of a plan on a prepared task, select on validation, score on test.

    The replicate has plan index 0 and seed index 0 in the cell with this PLM's name, task, placement and budget. If the
    plan is that cell's plan, θ is the cell's θ, bit for bit. PyTorch is left with one thread and deterministic kernels.

    Args:
        plm: The frozen PLM. It is not changed.
        plan: The units to train.
        data: The folder of a prepared task.
        seed: The seed of the study.
        **training: Keys of `training` in params.yaml, which override those of `QUICK_TRAINING`.

    Returns:
        The tuned model. Its `run` has loss curve, learning rate and scores.

    Raises:
        ConfigError: If a key or value of the training is invalid.
    """
    config = QUICK_TRAINING.override(training, "apet.train")
    if plm.head == "classification" and config.loss != "label_words":
        raise ConfigError(f"apet.train: loss: expected 'label_words' for a classification head, got {config.loss!r}.")
    make_deterministic(plm.device.type)
    inputs = CellInputs.from_folder(plm, Path(data), config.max_length)
    task = inputs.task
    coordinates = plm.name, task["task"], plan.placement, str(plan.budget)
    cell = Cell(*coordinates, 1, 1, seed, MethodSizes(), config, plm.content, task["digest"])
    result = train_replicate(cell, inputs, plan, 0, 0, config.lr_multipliers, NO_CALLBACKS)
    task_record, max_length = {key: task[key] for key in TASK_KEYS}, min(config.max_length, task["max_length"])
    record = replicate_record(cell, inputs, result)
    return TunedModel(plm, plan, result.training.theta, task_record, max_length, result.training.head, record)


@contextmanager
def _errors_name_rows(folder: str) -> Iterator[None]:
    """Name the rows in errors instead of the temporary files of `_write_rows`, which have a row in each line."""
    with ExitStack() as stack:
        stack.enter_context(renamed_in_errors(folder, "rows"))
        for split in SPLITS:
            stack.enter_context(renamed_in_errors(f"{folder}/{split}.jsonl, line", f"rows[{split!r}], row"))
        stack.enter_context(renamed_in_errors(f"{folder}/all.jsonl, line", "rows, row"))
        yield


def _write_rows(rows: Any, folder: Path) -> dict[str, str]:
    """Write a task's rows as JSONL, and return the task's local source."""
    splits = rows if isinstance(rows, Mapping) else {"all": rows}
    for split, split_rows in splits.items():
        records = split_rows.to_dict("records") if hasattr(split_rows, "to_dict") else split_rows
        lines = [json.dumps(dict(row), ensure_ascii=False) for row in records]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return {"folder": "."} if isinstance(rows, Mapping) else {"file": "all.jsonl"}
