"""The PLMs a study may name: those of registry.yaml, rungs of the ladder, and the user's own folders. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from apet.config.study_config import PretrainingConfig
from apet.core.hashing import digest
from apet.core.yaml_loader import check_keys, is_integer, is_line, read_yaml
from apet.data.wheels import find_wheel
from apet.errors import ConfigError, ModelError, truncated_repr, unknown_name
from apet.models.checkpoint_files import check_one, folder_content, read_mapping
from apet.models.ladder import NAME as RUNG
from apet.models.ladder import LadderModel, parse_ladder_model

REGISTRY = Path(__file__).with_name("registry.yaml")

SNAPSHOT_VERSION = 1
"""Raised whenever the same source gives other files, so that old snapshots are not taken for new ones."""

NAME = re.compile(r"(?=.{1,100}\Z)[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?", re.ASCII)
"""Of a PLM, here and on the hub: what is safe in a path once its / is replaced, see `slug`."""
NAMED = "letters, digits and . _ - with one / at most, at most 100"
REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._/-]{0,199}", re.ASCII)

DTYPES = ("float32", "bfloat16", "float16")
HEADS = ("lm", "classification")
FAMILIES = ("bert", "bloom", "gpt_neox", "llama", "t5")
"""Those of `apet.models.families`, which needs torch."""
SOURCES = {"wheel": ("folder", "gguf"), "repo_id": ("revision",), "folder": ()}
"""Kind of source -> the keys that it may have beside its own."""


@dataclass(frozen=True)
class ModelSource:
    """A PLM that exists elsewhere and is brought here once. See registry.yaml for what each key says.

    config is None where nothing but the fetched files tells the shapes; parameters is then None too.
    """

    name: str
    source: Mapping[str, str]
    dtype: str = "float32"
    head: str = "lm"
    family: str | None = None
    memory_gb: int | None = None
    num_devices: int = 1
    num_parameters: int | None = None
    config: Mapping[str, Any] | None = None

    @property
    def kind(self) -> str:
        """Which kind of source it is: wheel, repo_id or folder."""
        return next(kind for kind in SOURCES if kind in self.source)

    @property
    def digest(self) -> str:
        """Digest (64 hex digits) that names its folder, computed before anything is fetched.

        The content enters where it is at hand: a wheel by its SHA-256, a folder by the bytes of its files.
        """
        return digest(["snapshot", SNAPSHOT_VERSION, self._identity(), self.dtype, self.head])

    @property
    def values(self) -> dict[str, Any] | None:
        """The mapping of a config.json that decides the shapes; None where it is not known yet."""
        return None if self.config is None else {"model_type": self.family, **self.config}

    def _identity(self) -> dict[str, str]:
        if self.kind == "wheel":
            return {**self.source, "sha256": find_wheel(self.source["wheel"]).sha256}
        if self.kind == "folder":
            return {"content": folder_content(folder_of(self))}
        return dict(self.source)


Model = LadderModel | ModelSource


def parse_model(entry: str | Mapping[str, Any]) -> Model:
    """What an entry of `models` in a study names.

    A text is a name of the registry, a rung (`bloom-64x4`), or the path of a Hugging Face folder (with a `/` or `.` or
    `~` in front). A mapping has a `name`, and keys of registry.yaml that add to, or change, what the registry says of
    it. Raises ParamsError or ModelError for anything else.
    """
    if isinstance(entry, Mapping):
        return _own(entry)
    if entry.startswith(("/", "./", "../", "~")):
        path = Path(os.path.expanduser(entry))
        name = path.resolve().name
        if not NAME.fullmatch(name):
            own = f"{{name: …, source: {{folder: {entry!r}}}}}"
            raise ConfigError(f"model name is {truncated_repr(name)}. Allowed: {NAMED}. Give it one: {own}.")
        return _own({"name": name, "source": {"folder": str(path)}})
    if entry in registry():
        return registry()[entry]
    if RUNG.fullmatch(entry):
        return parse_ladder_model(entry)
    allowed = "a rung (bloom-64x4), a folder (./my-plm), {name: …, source: …}, or one of the registry"
    raise ModelError(unknown_name("model", entry, registry()).replace("Allowed:", f"Allowed: {allowed}:"))


@cache
def registry() -> dict[str, ModelSource]:
    """Name -> PLM of registry.yaml."""
    return {name: _snapshot(name, entry, f"{REGISTRY.name}: {name}") for name, entry in read_yaml(REGISTRY).items()}


def head_of(model: Model) -> str:
    """How a PLM's answers are read: by its own LM head, or by a trained classification head."""
    return "lm" if isinstance(model, LadderModel) else model.head


def devices_of(model: Model) -> int:
    """On how many devices a PLM's weights lie, each with a process of its own."""
    return 1 if isinstance(model, LadderModel) else model.num_devices


def values_of(model: Model, recipe: PretrainingConfig, fetched: Path) -> dict[str, Any]:
    """The mapping of a config.json that decides a PLM's shapes, before or after it is in the folder `fetched`.

    Raises ModelError where only fetching it can tell, naming the command.
    """
    if isinstance(model, LadderModel):
        return model.config(recipe)
    if model.values:
        return model.values
    if model.kind == "folder":
        return read_config(folder_of(model))
    if (fetched / "config.json").is_file():
        check_one(fetched, "config.json")
        return read_config(fetched)
    raise ModelError(
        f"model {model.name!r}: its shapes are not known before it is fetched. Say "
        f"`apet download-model --model {model.name}` first, or give its `family` and `config` in the study."
    )


def folder_of(model: ModelSource) -> Path:
    """Where the source of a PLM lies that is a folder on this machine."""
    return Path(os.path.expanduser(model.source["folder"]))  # Path.expanduser raises where a user is unknown


def read_config(folder: Path) -> dict[str, Any]:
    """The mapping in a folder's config.json. Raises ModelError where there is none."""
    return read_mapping(folder / "config.json")


def slug(name: str) -> str:
    """A PLM's name as the name of a folder: `google/t5-v1_1-xxl` -> `google--t5-v1_1-xxl`."""
    return name.replace("/", "--")


def _own(entry: Mapping[str, Any]) -> ModelSource:
    """A mapping of the study's: what it says, over what the registry says of the same name."""
    name = entry.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError(f"model name is {truncated_repr(name)}. Allowed: {NAMED}.")
    known = registry().get(name)
    base = {key: value for key, value in asdict(known).items() if key != "name" and value is not None} if known else {}
    own = {key: value for key, value in entry.items() if key != "name"}
    if "source" in own and "config" not in own and own["source"] != base.get("source"):
        base.pop("config", None)  # another source may have other shapes
    return _snapshot(name, {**base, **own}, f"model {name!r}")


def _snapshot(name: str, entry: Mapping[str, Any], where: str) -> ModelSource:
    optional = [field.name for field in fields(ModelSource) if field.name not in ("name", "source")]
    check_keys(entry, ["source"], optional, where)
    _check_source(entry["source"], f"{where}: source")
    for key, allowed in (("dtype", DTYPES), ("head", HEADS), ("family", FAMILIES)):
        if key in entry and entry[key] not in allowed:
            raise ConfigError(unknown_name("value", entry[key], allowed, f"{where}: {key}"))
    for key, most in (("memory_gb", 10**6), ("num_devices", 64), ("num_parameters", 10**15)):
        if key in entry and not is_integer(entry[key], 1, most):
            raise ConfigError(
                f"{where}: {key} is {truncated_repr(entry[key])}; it must be a whole number from 1 to {most:,}."
            )
    config = entry.get("config")
    if config is not None and not (isinstance(config, dict) and entry.get("family")):
        raise ConfigError(
            f"{where}: config is {truncated_repr(config)}; it must be a mapping, with `family` beside it."
        )
    for key in (key for key in _keys(config) if not isinstance(key, str)):
        raise ConfigError(f"{where}: config has the key {truncated_repr(key)}. Allowed: texts, as in a config.json.")
    return ModelSource(name, **entry)


def _keys(value: Any) -> Iterator[Any]:
    """The keys of all mappings in a value, at any depth."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    for part in value if isinstance(value, list) else ():
        yield from _keys(part)


def _check_source(source: Any, where: str) -> None:
    kinds = [kind for kind in SOURCES if isinstance(source, dict) and kind in source]
    if not kinds:
        allowed = "{repo_id: …, revision: …}, {folder: path}, {wheel: …}"
        raise ConfigError(f"{where} is {truncated_repr(source)}. Allowed: {allowed}.")
    check_keys(source, [kinds[0], *(["revision"] if kinds[0] == "repo_id" else [])], SOURCES[kinds[0]], where)
    for key, value in source.items():
        if not is_line(value):
            raise ConfigError(f"{where}: {key} is {truncated_repr(value)}; it must be a text of one line.")
    for key, form, said in (("repo_id", NAME, NAMED), ("revision", REVISION, "a commit, branch or tag")):
        if key in source and not form.fullmatch(source[key]):
            raise ConfigError(f"{where}: {key} is {truncated_repr(source[key])}; it must be {said}.")
    if "wheel" in source:
        find_wheel(source["wheel"], where)
