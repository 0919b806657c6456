"""Which files of a Hugging Face folder are a PLM: its configuration, weights and tokenizer. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from apet.core.hashing import digest, file_digest, remembered_digest
from apet.core.records import read_json_record, write_json_record
from apet.errors import CorruptError, ModelError

SNAPSHOT, PRETRAINING = "snapshot.json", "pretraining.json"
"""What tells where a PLM is from: one that was fetched, or a rung."""

SAFE = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
PICKLED = ("pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json")
"""Weights in the older form, which are rewritten as safetensors before anything else reads them."""

TOKENIZERS = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.txt", "vocab.json")
"""Files of which a tokenizer needs at least one. The first is enough for any."""

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


def check_files(folder: Path) -> None:
    """Raises ModelError for a file that is missing, naming it."""
    names = set(names_in(folder)) if folder.is_dir() else set()
    if "config.json" not in names:
        raise ModelError(
            f"{folder}: no config.json, which a PLM's folder holds beside weights and tokenizer. "
            "`apet download-model` fetches a PLM, `apet pretrain` makes a rung of the ladder."
        )
    weights, _, shards = SAFE
    if weights not in names and shards not in names:
        others = sorted(_matching(names, ("*.safetensors", *PICKLED)))
        found = f", only {others[0]}" if others else ""
        raise ModelError(f"{folder}: no {weights} and no {shards}{found}. Weights are read from safetensors alone.")
    if weights not in names:
        _shards(folder, names)
    if not names.intersection(TOKENIZERS):
        raise ModelError(f"{folder}: no tokenizer. One of these files is needed: {', '.join(TOKENIZERS)}.")


def _shards(folder: Path, names: set[str]) -> None:
    """Raises ModelError for a shard that the index names and the folder lacks; no other path is followed."""
    index = folder / SAFE[2]
    shards = read_mapping(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelError(f"{index}: names no shards under weight_map.")
    for name in sorted(set(map(str, shards.values()))):
        if name not in names or not name.endswith(".safetensors"):
            raise ModelError(f"{folder}: no {name}, which {index.name} names as a shard in safetensors.")


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


def files_of(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that decides what the PLM computes: weights (all shards), configuration, tokenizer."""
    return {name: file_digest(folder / name) for name in plm_files(names_in(folder), folder)}


def content_of(folder: Path) -> str:
    """SHA-256 over `files_of`."""
    return digest(files_of(folder))


def write_origin(folder: Path, name: str, record: Mapping[str, Any]) -> None:
    """Write the record of where a folder's PLM is from, with the digests of its files and of all of them, `content`."""
    files = files_of(folder)
    write_json_record(folder / name, {**record, "files": files, "content": digest(files)})


def read_origin(folder: Path, name: str) -> dict[str, Any]:
    """Read the record SNAPSHOT or PRETRAINING of a PLM's folder; empty if it is missing. Raises as `read_json_record`."""
    path = folder / name
    return read_json_record(path, again(folder)) if path.is_file() else {}


def checked_content(folder: Path) -> str:
    """The content of a folder's PLM, which is what its records say. Raises as `read_origin`, and CorruptError naming
    the file that differs.
    """
    files = files_of(folder)
    content = digest(files)
    for name in (SNAPSHOT, PRETRAINING):
        said = read_origin(folder, name)
        if said.get("content", content) != content:
            other = [folder / file for file, found in said.get("files", {}).items() if files.get(file) != found]
            what = f"{other[0]}: damaged: not the bytes that" if other else f"{folder}: its files are not those that"
            raise CorruptError(f"{what} {name} was written for. {again(folder)}")
    return content


def check_one(folder: Path, file: str) -> None:
    """Raises as `checked_content` for one file of a PLM alone, where its folder has a record that names it."""
    for name in (SNAPSHOT, PRETRAINING):
        said = read_origin(folder, name).get("files", {})
        if file in said and file_digest(folder / file) != said[file]:
            raise CorruptError(f"{folder / file}: damaged: not the bytes that {name} names. {again(folder)}")


def again(folder: Path) -> str:
    """What to do about a folder whose PLM is damaged."""
    return f"Delete {folder} and make it again: fetch or pretrain this PLM."


def _matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
