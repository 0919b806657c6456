"""A delta: θ, its plan and its task in a folder, for every structure, beside the hash of the PLM that it belongs to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import PreTrainedModel

from apet.core.atomic import write_bytes
from apet.core.hashing import bytes_digest, digest, file_digest
from apet.core.records import read_json_record, write_json_record
from apet.errors import CorruptError, DataError
from apet.export.tuned_model import ASKED, TunedModel
from apet.models.loading import PLM
from apet.placement import Plan, Units

FORMAT = 1
"""Format of the manifest. Deltas of another format are refused."""

MANIFEST, NUMBERS = "delta.json", "delta.safetensors"
REMEDY = "Export the delta again."
KEYS = {
    "plm": ("name", "content", "folder"),
    "plan": ("placement", "budget", "seed", "digest", "units"),
    "task": ASKED,
    "files": (NUMBERS,),
    "run": (),
}
"""What a manifest must say, beside `cell` and `length`."""


def write_delta(model: TunedModel, folder: Path) -> None:
    """θ, a trained head and the chosen scalars of each site as tensors; all else in the manifest."""
    plm, plan = model.plm, model.plan
    tensors = {"theta": model.theta, "head": model.head}
    chosen = {f"index/{u.site.name}": torch.as_tensor(u.indices) for u in plan.units if u.indices is not None}
    numbers = save({**tensors, **chosen}, {"format": "pt"})
    write_bytes(folder / NUMBERS, numbers)
    manifest = {
        "format": FORMAT,
        "cell": model.cell,
        "plm": {**plm.record(), "head": plm.head, "folder": model.plm_folder},
        "plan": plan.record(),
        "task": dict(model.task),
        "max_length": model.length,
        "run": dict(model.run),
        "files": {NUMBERS: bytes_digest(numbers)},
    }
    write_json_record(folder / MANIFEST, manifest)


@dataclass(frozen=True)
class Delta:
    """What a delta's folder holds: `numbers`, and the manifest's parts."""

    folder: Path
    numbers: Mapping[str, Tensor]
    manifest: Mapping[str, Any]

    @property
    def plm(self) -> dict[str, Any]:
        """Name, content, folder … of the PLM that θ belongs to."""
        return self.manifest["plm"]

    def model(self, plm: PLM) -> TunedModel:
        """The tuned model over that PLM. Raises CorruptError where the plan is not what its digest says."""
        said = self.manifest["plan"]
        sites = {site.name: site for site in plm.inventory.sites}
        taken = [Units(sites[name], count, self._index(name)) for name, count in said["units"].items() if name in sites]
        plan = Plan(said["placement"], said["budget"], said["seed"], tuple(taken))
        if plan.digest != said["digest"]:
            raise CorruptError(f"{self.folder / MANIFEST}: the plan is not the one that its digest names.")
        manifest, numbers = self.manifest, self.numbers
        return TunedModel(
            plm, plan, numbers["theta"], manifest["task"], manifest["max_length"], numbers["head"], manifest["run"],
            manifest["cell"], self.plm["folder"],
        )  # fmt: skip

    def _index(self, site: str) -> np.ndarray | None:
        found = self.numbers.get(f"index/{site}")
        return None if found is None else found.numpy()


def read_delta(folder: Path) -> Delta:
    """Raises DataError for a folder without a delta, or of another format; CorruptError for changed bytes."""
    manifest = read_json_record(folder / MANIFEST, REMEDY)
    if manifest.get("format") != FORMAT:
        raise DataError(f"{folder / MANIFEST}: format: expected {FORMAT}, got {manifest.get('format')!r}. {REMEDY}")
    missing = [key for key in ("cell", "max_length", *KEYS) if key not in manifest]
    missing += [f"{part}.{key}" for part, keys in KEYS.items() for key in keys if key not in (manifest.get(part) or ())]
    if missing:
        raise DataError(f"{folder / MANIFEST}: key {missing[0]} is missing. {REMEDY}")
    path = folder / NUMBERS
    if not path.is_file() or file_digest(path) != manifest["files"][NUMBERS]:
        raise CorruptError(f"{path}: not the bytes that {MANIFEST} names. {REMEDY}")
    return Delta(folder, load_file(path), manifest)


UNSAID = ("_name_or_path", "transformers_version")
"""Keys of a configuration that do not decide what the PLM computes."""


@torch.no_grad()
def memory_content(model: PreTrainedModel) -> str:
    """SHA-256 (64 hex digits) over configuration and weights; another than that of a folder's files."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in UNSAID}
    weights = {
        name: bytes_digest(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, value in model.state_dict().items()
    }
    return digest([json.loads(json.dumps(config, default=str)), weights])
