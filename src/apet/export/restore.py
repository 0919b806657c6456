"""Loading a tuned model from a cell or a delta, with every part verified against its record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from torch import Tensor

from apet.data.prepared_files import RECORD as TASK_RECORD
from apet.data.prepared_files import read_task
from apet.errors import CorruptError, DataError, ModelError, unknown_name
from apet.export.delta import MANIFEST, memory_content, read_delta
from apet.export.tuned_model import TASK_KEYS, TunedModel, no_head
from apet.models.loading import PLM, load_plm
from apet.placement import Plan, make_plan
from apet.study.cell_record import HEADS, INDICES, METRICS, THETA, WEIGHTS, is_complete, reading
from apet.study.cells import TRAINER_VERSION, Cell
from apet.training.cell import replicate_name

FIRST_REPLICATE = "plan0.seed0"


def load_tuned(
    folder: str | Path,
    plm: str | Path | PLM | None = None,
    root: str | Path | None = None,
    replicate: str = FIRST_REPLICATE,
    device: str = "cpu",
) -> TunedModel:
    """Load the tuned model of a finished cell or of a delta.

    Args:
        folder: The folder of a cell (results/cells/model/task/name) or of a delta.
        plm: The frozen PLM or its folder. Default: the study's folder of it below `root`.
        root: The project folder that contains data/ and models/. Default: the project folder of the cell; for a delta,
            the current folder.
        replicate: The replicate of a cell.
        device: The PyTorch device to load the PLM to.

    Returns:
        The tuned model, ready to predict.

    Raises:
        DataError: If the folder is neither a finished cell nor a delta, or if the replicate is unknown.
        ModelError: If the PLM is not the one that θ was trained on.
        CorruptError: If bytes have changed.
    """
    folder = Path(folder)
    if (folder / METRICS).is_file():
        return _load_cell(folder, plm, Path(root) if root else _project_dir(folder), replicate, device)
    if (folder / MANIFEST).is_file():
        if replicate != FIRST_REPLICATE:
            raise DataError(f"{folder}: replicate: got {replicate!r}, but a delta contains one. Omit it.")
        delta = read_delta(folder)
        if not (plm or delta.plm["folder"]):
            raise DataError(f"{folder}: missing PLM, because the model was tuned in memory. Give plm=.")
        plm = load_frozen(plm or Path(root or ".") / delta.plm["folder"], delta.plm, folder, device)
        return delta.build(plm)
    raise DataError(f"{folder}: expected a finished cell ({METRICS}) or a delta ({MANIFEST}), got neither.")


def load_frozen(plm: str | Path | PLM, record: dict, source: Path, device: str) -> PLM:
    """Load the frozen PLM of a θ and compare its content.

    Args:
        plm: A PLM, or its folder.
        record: `name` and `content` (SHA-256, of files or of memory) of the PLM that θ was trained on, and perhaps its
            `head`.
        source: The folder of θ, for messages.
        device: The PyTorch device to load it to.

    Returns:
        The PLM.

    Raises:
        ModelError: If its content differs.
    """
    name, head = record["name"], record.get("head")
    loaded = plm if isinstance(plm, PLM) else load_plm(Path(plm), name, device=device, head=head)
    if record["content"] != loaded.content and record["content"] != memory_content(loaded.model):
        given = f"PLM {loaded.name!r}" if isinstance(plm, PLM) else str(plm)
        raise ModelError(
            f"{source}: PLM: expected {record['name']} with content {record['content'][:12]}, got {given} with content "
            f"{loaded.content[:12]}. Give the folder of the PLM that θ was trained on."
        )
    return loaded


def _project_dir(folder: Path) -> Path:
    """Return the folder that contains results/cells/model/task/name."""
    parents = folder.resolve().parents
    return parents[min(4, len(parents) - 1)]


def _load_cell(folder: Path, plm: str | Path | PLM | None, root: Path, replicate: str, device: str) -> TunedModel:
    """Load one replicate of a cell and verify each part against the record."""
    if not is_complete(folder):
        raise DataError(f"{folder}: not finished: missing a file that {METRICS} lists. Train the cell again.")
    with reading(folder) as (record, plans):
        cell, run = _replicate_record(folder, record, replicate)
        _check_weights(folder, record)
        plan_record = plans[replicate_name(run["plan_index"], 0)]
        plan_seed, is_informed = plan_record["seed"], INDICES in record["files"]
        plm_record = {key: record["plm"][key] for key in ("name", "content")}
        budget, data_digest, has_head = record["trainable_params"], record["task"]["digest"], HEADS in record["files"]
        path = record["path"]
    data = root / cell.data_folder
    task = read_task(data)
    if task["digest"] != data_digest:
        raise DataError(
            f"{data / TASK_RECORD}: rows differ from those that {folder} was trained on. Delete {data} and prepare the "
            "task again."
        )
    loaded = load_frozen(plm or root / cell.plm_folder, plm_record, folder, device)
    if is_informed:
        indices = _read_indices(folder / INDICES, f"plan{run['plan_index']}/")
        plan = Plan.from_record(plan_record, indices, loaded.inventory)
    else:
        plan = make_plan(loaded.inventory, cell.placement, budget, plan_seed, cell.methods)
    if plan.digest != run["plan_digest"]:
        raise CorruptError(f"{folder}: plan: its digest does not match. Train the cell again.")
    theta = _read_tensor(folder / THETA, replicate)
    head = _read_tensor(folder / HEADS, replicate) if has_head else no_head()
    max_length = min(cell.training.max_length, task["max_length"])
    task_record = {key: task[key] for key in TASK_KEYS}
    return TunedModel(loaded, plan, theta, task_record, max_length, head, run, path, cell.plm_folder)


def _check_weights(folder: Path, record: dict[str, Any]) -> None:
    """Raise DataError if the cell lacks θ, a head or the scalars of its plans."""
    for name in WEIGHTS:
        if name in record["files"] and not (folder / name).is_file():
            raise DataError(
                f"{folder / name}: no such file. Published cells come without it. Move {folder} away, and train the "
                "cell again."
            )


def _replicate_record(folder: Path, record: dict[str, Any], replicate: str) -> tuple[Cell, dict[str, Any]]:
    """Return the cell and one replicate's record. Raises DataError for another trainer or an unknown replicate."""
    trainer = record["cell"]["trainer_version"]
    if trainer != TRAINER_VERSION:
        raise DataError(
            f"{folder / METRICS}: trainer_version: expected {TRAINER_VERSION}, got {trainer}. Use the version of apet "
            "that trained the cell, or train it again."
        )
    runs = {replicate_name(run["plan_index"], run["seed_index"]): run for run in record["replicates"]}
    if replicate not in runs:
        raise DataError(unknown_name("replicate", replicate, runs, str(folder)))
    return Cell.from_record(record["cell"]), runs[replicate]


def _read_tensor(path: Path, replicate: str) -> Tensor:
    """Read one replicate's tensor without loading the others."""
    with safe_open(path, "pt") as file:
        return file.get_tensor(replicate)


def _read_indices(path: Path, prefix: str) -> dict[str, np.ndarray]:
    """Read the chosen scalars of one plan, by site, from the tensors whose names have its prefix."""
    with safe_open(path, "np") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): file.get_tensor(name).astype(np.int64) for name in names}
