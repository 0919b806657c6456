"""Loading a frozen PLM from a Hugging Face folder: safetensors only, no remote code, nothing left at random."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as library

from apet.errors import ModelError, shown, unknown
from apet.placement.sites import Inventory
from apet.plms.families import Family, Frame, family_of
from apet.plms.files import PICKLED, SNAPSHOT, checked_content, names_in, read_mapping, read_origin
from apet.plms.inventory import inventory_of, shapes_of
from apet.plms.registry import DTYPES, HEADS, read_config

MOST_BLOCKS, MOST_SIZE = 1_000, 10**7
"""More blocks, or more of any other number in a config.json, has no PLM; to make its shapes could take hours."""
WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.txt", "vocab.json")
"""Files of which a tokenizer needs at least one."""


@dataclass
class PLM:
    """A frozen PLM: `content` is the SHA-256 over its weights, configuration and tokenizer.

    head: `own`, answers are read as words by the PLM's LM head; or `trained`, as labels by a linear classifier that is
    tuned too. revision: what was really fetched (a commit, a wheel's hash); None for a rung. whole, mesh: where the
    weights are in parts on several processes, see `apet.plms.sharded`: what gathers them, and the processes.
    """

    name: str
    family: Family
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    content: str
    frame: Frame = field(default_factory=Frame)
    head: str = "own"
    dtype: str = "float32"
    revision: str | None = None
    whole: Any = None
    mesh: DeviceMesh | None = None

    @cached_property
    def inventory(self) -> Inventory:
        return inventory_of(self.model)

    @property
    def words(self) -> Tensor:
        """The word embeddings [words, d]."""
        embeddings: Any = self.model.get_input_embeddings()
        return embeddings.weight

    @property
    def device(self) -> torch.device:
        """Where the weights are, and the parts of θ that are trained with them."""
        return self.words.device

    def record(self) -> dict[str, Any]:
        """What names it in the records of what it was tuned for: name, family, revision, content, dtype."""
        own = {"name": self.name, "family": self.family.name, "revision": self.revision}
        return own | {"content": self.content, "dtype": self.dtype}

    def head_size(self, labels: int) -> int:
        """Parameters of the trained head, a weight a state's number and a bias a label; 0 where the head is its own."""
        return labels * (self.words.shape[1] + 1) if self.head == "trained" else 0


def load_plm(folder: Path, name: str, weights: bool = True, device: str = "cpu") -> PLM:
    """The PLM in a folder, in evaluation mode, without gradients, with the family's fast kernels in place.

    `snapshot.json` beside the weights may state the `dtype` they are loaded in (default float32), the `head` that
    answers are read by (default own) and the `content` the folder had when it was made. Raises ModelError for a folder
    that lacks a file or a weight, or whose architecture is not supported; CorruptError where its content has changed.
    weights: false for shapes alone (meta device).
    """
    _complete(folder)
    stated = _stated(folder)
    content = checked_content(folder)
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    check_size(read_config(folder), stored, folder)
    config = _config(folder)
    family = family_of(config.model_type)
    with _quiet():
        if weights:
            model = _model(folder, family, config, getattr(torch, stated["dtype"]), stated["head"], name)
        else:
            model = _shapes(config, stated["head"])
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except Exception as error:
            raise ModelError(f"{folder}: its tokenizer cannot be read ({_first_line(error)}).") from None
    model.requires_grad_(False).eval()
    family.fuse(model)
    if weights:
        model.to(device)  # type: ignore[arg-type]  # the library's decorator hides the model itself
    said = stated["head"], stated["dtype"], stated.get("revision")
    return PLM(name, family, model, tokenizer, content, family.frame(tokenizer), *said)


def _complete(folder: Path) -> None:
    """Raises ModelError for a file that is missing, naming it."""
    names = set(names_in(folder)) if folder.is_dir() else set()
    if "config.json" not in names:
        raise ModelError(
            f"{folder}: no config.json, which a PLM's folder holds beside weights and tokenizer. "
            "`apet snapshot` fetches a PLM, `apet pretrain` makes a rung of the ladder."
        )
    if WEIGHTS not in names and SHARDS not in names:
        others = sorted(n for n in names if any(fnmatch(n, p) for p in ("*.safetensors", *PICKLED)))
        found = f", only {others[0]}" if others else ""
        raise ModelError(f"{folder}: no {WEIGHTS} and no {SHARDS}{found}. Weights are read from safetensors alone.")
    if WEIGHTS not in names:
        _shards(folder, names)
    if not names.intersection(TOKENIZERS):
        raise ModelError(f"{folder}: no tokenizer. One of these files is needed: {', '.join(TOKENIZERS)}.")


def _shards(folder: Path, names: set[str]) -> None:
    """Raises ModelError for a shard that the index names and the folder lacks; no other path is followed."""
    shards = read_mapping(folder / SHARDS).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelError(f"{folder / SHARDS}: names no shards under weight_map.")
    for name in sorted(set(map(str, shards.values()))):
        if name not in names or not name.endswith(".safetensors"):
            raise ModelError(f"{folder}: no {name}, which {SHARDS} names as a shard in safetensors.")


def _stated(folder: Path) -> dict[str, Any]:
    """What the folder says about itself: snapshot.json, with defaults."""
    stated = {"dtype": "float32", "head": "own"} | read_origin(folder, SNAPSHOT)
    for key, allowed in (("dtype", DTYPES), ("head", HEADS)):
        if stated[key] not in allowed:
            raise ModelError(unknown(key, stated[key], allowed, str(folder / SNAPSHOT)))
    return stated


def _config(folder: Path) -> PretrainedConfig:
    family_of(str(read_config(folder).get("model_type")))
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise ModelError(f"{folder / 'config.json'}: cannot be used ({_first_line(error)}).") from None


def _model(
    folder: Path, family: Family, config: PretrainedConfig, dtype: torch.dtype, head: str, name: str
) -> PreTrainedModel:
    """The model with its weights. Raises ModelError where the checkpoint lacks some: they would be random."""
    try:
        loaded: Any = family.class_of(config).from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder}: its weights cannot be read ({_first_line(error)}).") from None
    model, report = loaded
    missing = sorted(report["missing_keys"])
    body = [key for key in missing if not key.startswith(f"{family.head_part}.")]
    if body:
        raise ModelError(f"{folder}: the weights lack {_first(body)}, which a {config.model_type} model needs.")
    if head == "trained":
        family.behead(model)
    elif missing:
        raise ModelError(
            f"{folder}: PLM {name!r} has no LM head (the weights lack {_first(missing)}), so answers cannot be read as "
            "words. Write `head: trained` for this PLM in the study or registry: a linear classifier, tuned with θ and "
            "counted apart, reads them as labels."
        )
    return model


def inventory_of_config(values: dict, head: str = "own") -> Inventory:
    """The inventory of a configuration given as the mapping of a config.json, without weights. head: see `PLM`.

    Raises ModelError for another architecture, and for numbers that no PLM has.
    """
    family_of(str(values.get("model_type")))
    for key, value in values.items():
        most = MOST_BLOCKS if "layer" in key else MOST_SIZE
        if type(value) is int and value > most:
            raise ModelError(f"config.json: {key} is {value}. Allowed: at most {most:,}.")
    try:
        return inventory_of(_shapes(AutoConfig.for_model(**values), head))
    except Exception as error:  # the library checks little, and what fails then may be anything in it or in PyTorch
        raise ModelError(f"config.json: no PLM has the shapes of {shown(values)} ({_first_line(error)}).") from None


def check_size(values: dict, stored: int, where: object) -> None:
    """Raises ModelError for the mapping of a config.json with more parameters than there are bits in the `stored` bytes
    of weights: the library would make room for them all before it finds that they are not there.
    """
    parameters = inventory_of_config(values).parameters
    if parameters > 8 * stored:
        said = f"config.json speaks of {parameters:,} parameters, and the weights hold at most {8 * stored:,}"
        raise ModelError(f"{where}: {said}.")


def _shapes(config: PretrainedConfig, head: str) -> PreTrainedModel:
    """The model without its numbers (meta device)."""
    model = shapes_of(config)
    if head == "trained":
        family_of(config.model_type).behead(model)
    return model


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """The library's bars and warnings off: what matters of them is an error here."""
    level, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity(logging.CRITICAL)
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(level)
        if bars:
            library.enable_progress_bar()
