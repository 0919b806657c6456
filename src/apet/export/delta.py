"""Delta exports: θ, its plan and its task in a folder, for every structure, with the digest of the frozen PLM."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import PreTrainedModel

from apet.core.atomic import write_bytes
from apet.core.hashing import bytes_digest, digest, file_digest
from apet.core.records import read_json_record, write_json_record
from apet.errors import CorruptError, DataError
from apet.export.tuned_model import TASK_KEYS, TunedModel
from apet.models.loading import PLM
from apet.placement import Plan

DELTA_FORMAT = 1
"""Version of the manifest's format."""

MANIFEST, TENSORS = "delta.json", "delta.safetensors"
HINT = "Export the delta again."
REQUIRED_KEYS = {
    "plm": ("name", "content", "folder"),
    "plan": ("placement", "budget", "seed", "digest", "units"),
    "task": TASK_KEYS,
    "files": (TENSORS,),
    "run": (),
}
"""Required sections of a manifest and their keys. `cell` and `max_length` are required too."""


def write_delta(model: TunedModel, folder: Path) -> None:
    """Write θ, the classification head and the indices of chosen scalars as tensors, everything else as JSON."""
    plm, plan = model.plm, model.plan
    indices = {f"index/{name}": torch.as_tensor(values) for name, values in plan.indices.items()}
    tensors = save({"theta": model.theta, "head": model.head, **indices}, {"format": "pt"})
    write_bytes(folder / TENSORS, tensors)
    manifest = {
        "format": DELTA_FORMAT,
        "cell": model.cell,
        "plm": {**plm.record(), "head": plm.head, "folder": model.plm_folder},
        "plan": plan.record(),
        "task": dict(model.task),
        "max_length": model.max_length,
        "run": dict(model.run),
        "files": {TENSORS: bytes_digest(tensors)},
    }
    write_json_record(folder / MANIFEST, manifest)


@dataclass(frozen=True)
class Delta:
    """The content of a delta folder."""

    folder: Path
    tensors: Mapping[str, Tensor]
    """`theta` [budget], `head` [labels × (d + 1)] or empty, and `index/<site>` [scalars] for chosen scalars."""
    manifest: Mapping[str, Any]

    @property
    def plm(self) -> dict[str, Any]:
        """Record of the PLM that θ was trained on: name, content digest, folder."""
        return self.manifest["plm"]

    def build(self, plm: PLM) -> TunedModel:
        """Build the tuned model on its frozen PLM. Raises CorruptError if the plan does not match its digest."""
        record = self.manifest["plan"]
        indices = {
            name.removeprefix("index/"): tensor.numpy()
            for name, tensor in self.tensors.items()
            if name.startswith("index/")
        }
        plan = Plan.from_record(record, indices, plm.inventory)
        if plan.digest != record["digest"]:
            raise CorruptError(f"{self.folder / MANIFEST}: plan: its digest does not match. {HINT}")
        manifest, tensors = self.manifest, self.tensors
        return TunedModel(
            plm, plan, tensors["theta"], manifest["task"], manifest["max_length"], tensors["head"], manifest["run"],
            manifest["cell"], self.plm["folder"],
        )  # fmt: skip


def read_delta(folder: Path) -> Delta:
    """Read and verify a delta folder.

    Args:
        folder: A folder that `write_delta` wrote.

    Returns:
        The verified content.

    Raises:
        DataError: If the folder has no delta, or a delta of another format.
        CorruptError: If bytes have changed.
    """
    path = folder / MANIFEST
    manifest = read_json_record(path, HINT)
    if manifest.get("format") != DELTA_FORMAT:
        raise DataError(f"{path}: format: expected {DELTA_FORMAT}, got {manifest.get('format')!r}. {HINT}")
    missing = [key for key in ("cell", "max_length", *REQUIRED_KEYS) if key not in manifest]
    missing += [f"{s}.{key}" for s, keys in REQUIRED_KEYS.items() for key in keys if key not in (manifest.get(s) or ())]
    if missing:
        raise DataError(f"{path}: missing key {missing[0]!r}. {HINT}")
    tensors = folder / TENSORS
    if not tensors.is_file() or file_digest(tensors) != manifest["files"][TENSORS]:
        raise CorruptError(f"{tensors}: missing, or its SHA-256 differs from the one in {MANIFEST}. {HINT}")
    return Delta(folder, load_file(tensors), manifest)


IRRELEVANT_CONFIG = ("_name_or_path", "transformers_version")
"""Configuration keys that do not affect what the PLM computes."""


@torch.no_grad()
def memory_content(model: PreTrainedModel) -> str:
    """Compute the SHA-256 (64 hex digits) of a model's configuration and weights in memory; folders have another."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in IRRELEVANT_CONFIG}
    weights = {
        name: bytes_digest(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, value in model.state_dict().items()
    }
    return digest([json.loads(json.dumps(config, default=str)), weights])
