"""A cell's replicate, or a delta, as a ready tuned model. Nothing is taken that does not prove to be what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from apet.data.prepare import RECORD as TASK
from apet.data.prepare import read_task
from apet.errors import CorruptError, DataError, ModelError, unknown_name
from apet.export.delta import MANIFEST, memory_content, read_delta
from apet.export.tuned_model import ASKED, TunedModel, no_head
from apet.models.loading import PLM, load_plm
from apet.placement import make_plan
from apet.study.cell_record import HEADS, METRICS, THETA, is_complete, reading
from apet.study.grid import TRAINER_VERSION, Cell
from apet.training.cell import replicate_name

FIRST = "plan0.seed0"


def load_tuned(
    folder: str | Path,
    plm: str | Path | PLM | None = None,
    root: str | Path | None = None,
    replicate: str = FIRST,
    device: str = "cpu",
) -> TunedModel:
    """The tuned model in a cell's folder (results/cells/model/task/name) or in the folder of a delta.

    plm: the frozen PLM or its folder; by default where the cell's study has it below `root`. root: of the working copy
    that holds data/ and models/; by default the one that the cell lies in, and for a delta the present folder.
    replicate: of a cell. Raises DataError for a folder that holds neither or a cell that is not finished, ModelError
    for another PLM than θ was trained on, CorruptError for changed bytes.
    """
    folder = Path(folder)
    if (folder / METRICS).is_file():
        return _cell(folder, plm, Path(root) if root else _root(folder), replicate, device)
    if (folder / MANIFEST).is_file():
        if replicate != FIRST:
            raise DataError(f"{folder}: a delta holds one replicate, so {replicate!r} cannot be chosen.")
        delta = read_delta(folder)
        if not (plm or delta.plm["folder"]):
            raise DataError(f"{folder}: tuned in memory, so its PLM must be given.")
        return delta.model(frozen(plm or Path(root or ".") / delta.plm["folder"], delta.plm, str(folder), device))
    raise DataError(f"{folder}: neither a finished cell ({METRICS}) nor a delta ({MANIFEST}).")


def frozen(plm: str | Path | PLM, wanted: dict, where: str, device: str) -> PLM:
    """The frozen PLM that a θ belongs to. wanted: its name and content, of files or in memory. Raises ModelError for
    another content.
    """
    found = plm if isinstance(plm, PLM) else load_plm(Path(plm), wanted["name"], device=device)
    if wanted["content"] != found.content and wanted["content"] != memory_content(found.model):
        place = f"PLM {found.name!r}" if isinstance(plm, PLM) else str(plm)
        raise ModelError(
            f"{where}: its θ belongs to {wanted['name']} of content {wanted['content'][:12]}, and {place} has the "
            f"content {found.content[:12]}. On other weights θ means nothing: give the folder of that PLM."
        )
    return found


def _root(folder: Path) -> Path:
    """Of the working copy in which a cell lies at results/cells/model/task/name."""
    above = folder.resolve().parents
    return above[min(4, len(above) - 1)]


def _cell(folder: Path, plm: str | Path | PLM | None, root: Path, replicate: str, device: str) -> TunedModel:
    """One run of a cell, each part of it held against the record."""
    if not is_complete(folder):
        raise DataError(f"{folder}: not finished; a file that {METRICS} names is not there.")
    with reading(folder) as (record, plans):
        cell, run = _run(folder, record, replicate)
        seed = plans[replicate_name(run["plan_index"], 0)]["seed"]
        wanted = {key: record["plm"][key] for key in ("name", "content")}
        budget, rows, headed = record["trainable_params"], record["task"]["digest"], HEADS in record["files"]
        path = record["path"]
    task = read_task(root / cell.data_folder)
    if task["digest"] != rows:
        raise DataError(
            f"{root / cell.data_folder / TASK}: of other rows than those that {folder} was trained on. Delete its "
            "folder and prepare the task again."
        )
    ready = frozen(plm or root / cell.plm_folder, wanted, str(folder), device)
    plan = make_plan(ready.inventory, cell.placement, budget, seed, cell.methods)
    if plan.digest != run["plan_digest"]:
        raise CorruptError(f"{folder}: its plan does not come out as it was. Train the cell again.")
    theta = _tensor(folder / THETA, replicate)
    head = _tensor(folder / HEADS, replicate) if headed else no_head()
    asked, length = {key: task[key] for key in ASKED}, min(cell.training.max_length, task["max_length"])
    return TunedModel(ready, plan, theta, asked, length, head, run, path, cell.plm_folder)


def _run(folder: Path, record: dict[str, Any], replicate: str) -> tuple[Cell, dict[str, Any]]:
    """The cell, and its record of a replicate. Raises DataError where this version cannot read it."""
    trainer = record["cell"]["trainer_version"]
    if trainer != TRAINER_VERSION:
        raise DataError(
            f"{folder / METRICS}: a cell of trainer {trainer}; this version of apet has trainer {TRAINER_VERSION}, in "
            "which the same θ may mean something else. Use the version that trained it, or train the cell again."
        )
    runs = {replicate_name(run["plan_index"], run["seed_index"]): run for run in record["replicates"]}
    if replicate not in runs:
        raise DataError(unknown_name("replicate", replicate, runs, str(folder)))
    return Cell.of(record["cell"]), runs[replicate]


def _tensor(path: Path, replicate: str) -> Tensor:
    """One replicate's numbers: the others' may be many."""
    with safe_open(path, "pt") as file:
        return file.get_tensor(replicate)
