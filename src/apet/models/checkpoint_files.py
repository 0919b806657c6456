"""Files of a Hugging Face folder: configuration, weights, tokenizer, and the record of their origin. Without torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from apet.core.hashing import digest, file_digest, remembered_digest
from apet.core.records import read_json_record, write_json_record
from apet.errors import CorruptError, ModelError, first_line

SNAPSHOT, PRETRAINING = "snapshot.json", "pretraining.json"
"""Records of origin: of a downloaded PLM, and of a ladder model."""

SAFE = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
PICKLED = ("pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json")
"""Weights in the older format, which are rewritten as safetensors before anything else reads them."""

ADAPTER = "adapter_config.json"
"""PEFT's configuration of an adapter, which is no PLM."""

UNREADABLE = ("*.safetensors", "*.bin", "*.gguf", "*.h5", "*.msgpack", "*.ckpt", "*.pt", "*.pth")
"""Files that look like weights."""

TOKENIZERS = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.txt", "vocab.json")
"""Files of which a tokenizer needs at least one. The first is sufficient for every tokenizer."""

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


@dataclass(frozen=True)
class ModelFolder:
    """A Hugging Face folder whose files have been listed, read and verified."""

    path: Path
    """The folder."""
    files: Mapping[str, str]
    """Name -> SHA-256 of each file that determines what the PLM computes."""
    content: str
    """SHA-256 over `files`."""
    snapshot: Mapping[str, Any]
    """The record `SNAPSHOT`; empty if there is none."""
    pretraining: Mapping[str, Any]
    """The record `PRETRAINING`; empty if there is none."""

    @property
    def origin(self) -> tuple[str, str | None]:
        """Name of the record of origin, and name of the PLM in the record; None without a record."""
        if origin := self.pretraining.get("ladder_model"):
            return PRETRAINING, origin["name"]
        return SNAPSHOT, self.snapshot.get("name")


def open_folder(path: Path) -> ModelFolder:
    """List, read and verify the files of a PLM.

    Args:
        path: The folder.

    Returns:
        The folder's files and records.

    Raises:
        ModelError: A file is missing or cannot be read.
        CorruptError: A record is corrupt, or a file has other bytes than its record names.
    """
    names = check_files(path)
    snapshot, pretraining = (read_origin(path, name) for name in (SNAPSHOT, PRETRAINING))
    files = _digests(path, names)
    content = digest(files)
    for name, record in ((SNAPSHOT, snapshot), (PRETRAINING, pretraining)):
        if record.get("content", content) != content:
            changed = [path / file for file, sha256 in record.get("files", {}).items() if files.get(file) != sha256]
            problem = f"{changed[0] if changed else path}: corrupt: not the bytes that {name} names."
            raise CorruptError(f"{problem} {_fix(path)}")
    return ModelFolder(path, files, content, snapshot, pretraining)


def plm_files(names: Iterable[str], location: object) -> list[str]:
    """Select and sort the files of a PLM in a folder. Pickled weights count only if there are no others."""
    names = sorted(names)
    weights = matching(names, SAFE) or matching(names, PICKLED)
    if "config.json" not in names or not weights:
        _refuse_adapter(names, location)
        missing = f"weights ({SAFE[0]}){_only(names)}" if "config.json" in names else "config.json"
        raise ModelError(f"{location}: no {missing}. Put it beside the other files of the PLM.")
    return sorted(weights + matching(names, OTHERS))


def check_files(folder: Path) -> list[str]:
    """Check that configuration, weights and tokenizer are in a folder, and return the names of all its files."""
    check_config(folder)
    names = names_in(folder)
    weights, _, index = SAFE
    if weights not in names and index not in names:
        _refuse_adapter(names, folder)
        raise ModelError(f"{folder}: no {weights} and no {index}{_only(names)}. Save the weights as safetensors.")
    if weights not in names:
        _check_shards(folder / index, names)
    check_tokenizer_files(folder, names)
    return names


def check_tokenizer_files(folder: Path, names: Iterable[str]) -> None:
    if not set(names).intersection(TOKENIZERS):
        raise ModelError(f"{folder}: no tokenizer. One of these files is needed: {', '.join(TOKENIZERS)}.")


def check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder. Name a folder with a PLM, or get one by `apet download-model`.")


def check_config(folder: Path) -> None:
    """Check that a folder has a config.json. Raises ModelError, which also names an adapter's folder."""
    check_folder(folder)
    names = names_in(folder)
    if "config.json" not in names:
        _refuse_adapter(names, folder)
        raise ModelError(
            f"{folder}: no config.json. Download a PLM with `apet download-model`, or pretrain a ladder model with "
            "`apet pretrain`."
        )


def _refuse_adapter(names: Iterable[str], location: object) -> None:
    if ADAPTER in names:
        raise ModelError(
            f"{location}: an adapter ({ADAPTER}) without its PLM. Use the PLM's own folder or name (in {ADAPTER}: "
            "base_model_name_or_path), and read the adapter with apet.plan_from_peft."
        )


def _only(names: Iterable[str]) -> str:
    """Name a file that may be weights of another format, for a message."""
    others = sorted(matching(names, UNREADABLE))
    return f", only {others[0]}" if others else ""


def _check_shards(index: Path, names: list[str]) -> None:
    """Check that each shard of an index is in the same folder; other paths are not followed."""
    shards = read_mapping(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelError(f"{index}: weight_map: expected names of shards, got none. Save the weights again.")
    for name in sorted(set(map(str, shards.values()))):
        if name not in names or not name.endswith(".safetensors"):
            raise ModelError(f"{index}: weight_map: no shard {name} in this folder. Save the weights again.")


def folder_content(folder: Path) -> str:
    """Compute the digest of a PLM's files, with remembered digests of unchanged files.

    Args:
        folder: The folder.

    Returns:
        The same as `ModelFolder.content`, 64 hex digits.

    Raises:
        ModelError: The folder, its config.json or its weights are missing.
    """
    check_folder(folder)
    return digest({name: remembered_digest(folder / name) for name in plm_files(names_in(folder), folder)})


def names_in(folder: Path) -> list[str]:
    """List the names of the files directly in a folder."""
    return [path.name for path in folder.iterdir() if path.is_file()]


def read_mapping(path: Path) -> dict[str, Any]:
    """Read the mapping in a JSON file of a PLM. Raises ModelError if it is missing or contains something else."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read ({first_line(error)}).") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path}: holds a {type(values).__name__}, expected a mapping.")
    return values


def file_digests(folder: Path) -> dict[str, str]:
    """Compute the SHA-256 of each file that determines what a PLM computes."""
    return _digests(folder, names_in(folder))


def write_origin(folder: Path, name: str, record: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """Write the record `name` of a PLM's origin, with the digests of its files and of all files together."""
    write_json_record(folder / name, {**record, "files": files, "content": digest(files)})


def read_origin(folder: Path, name: str) -> dict[str, Any]:
    """Read the record SNAPSHOT or PRETRAINING of a PLM's folder. It is empty if it is missing."""
    path = folder / name
    return read_json_record(path, _fix(folder)) if path.is_file() else {}


def check_one(folder: Path, file: str) -> None:
    """Verify one file of a PLM, if the folder has a record that names it. Raises as `open_folder`."""
    for name in (SNAPSHOT, PRETRAINING):
        files = read_origin(folder, name).get("files", {})
        if file in files and file_digest(folder / file) != files[file]:
            raise CorruptError(f"{folder / file}: corrupt: not the bytes that {name} names. {_fix(folder)}")


def _digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    return {name: file_digest(folder / name) for name in plm_files(names, folder)}


def _fix(folder: Path) -> str:
    return f"Delete {folder} and make it again: download or pretrain this PLM."


def matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
