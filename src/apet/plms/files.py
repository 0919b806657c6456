"""Which files of a Hugging Face folder are a PLM: its configuration, weights and tokenizer. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from apet.errors import ModelError
from apet.provenance import digest, remembered_digest

SAFE = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
PICKLED = ("pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json")
"""Weights in the older form, which are rewritten as safetensors before anything else reads them."""

OTHERS = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
)


def plm_files(names: Iterable[str], where: object) -> list[str]:
    """Those of a folder's names that are the PLM, sorted; pickled weights only where there are no others.

    Raises ModelError without a config.json or weights in a form that PyTorch reads.
    """
    names = sorted(names)
    weights = _matching(names, SAFE) or _matching(names, PICKLED)
    if "config.json" not in names or not weights:
        lacks = "weights (model.safetensors)" if "config.json" in names else "config.json"
        raise ModelError(f"{where}: no {lacks}, which a PLM's folder holds beside its tokenizer.")
    return sorted(weights + _matching(names, OTHERS))


def folder_content(folder: Path) -> str:
    """Digest (64 hex digits) of the PLM in a folder. Raises ModelError where there is none."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; a PLM's folder was expected.")
    return digest({name: remembered_digest(folder / name) for name in plm_files(names_in(folder), folder)})


def names_in(folder: Path) -> list[str]:
    """Names of the files directly in a folder."""
    return [path.name for path in folder.iterdir() if path.is_file()]


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a PLM's JSON file. Raises ModelError where there is none."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read ({error}).") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path}: holds a {type(values).__name__} where a mapping is needed.")
    return values


def _matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
