"""The content of a PLM that is in memory, where no file can be hashed."""

from __future__ import annotations

import json

import torch
from transformers import PreTrainedModel

from apet.provenance import bytes_digest, digest

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
