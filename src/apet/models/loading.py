"""Loading a frozen PLM from a Hugging Face folder: safetensors only, no remote code, nothing left at random."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as library

from apet.core.arithmetic import announce_dtype, compute_dtype
from apet.errors import ModelError, error_context, truncated_repr, unknown_name
from apet.models.checkpoint_files import SNAPSHOT, TOKENIZERS, check_files, checked_content, read_origin
from apet.models.families import Family, SpecialTokens, family_of
from apet.models.inventory import inventory_of, shapes_of
from apet.models.registry import DTYPES, HEADS, read_config
from apet.placement.sites import Inventory

MOST_BLOCKS, MOST_SIZE = 1_000, 10**7
"""More blocks, or more of any other number in a config.json, has no PLM; to make its shapes could take hours."""
POINTER = b"version https://git-lfs"
"""How a file begins that stands for one of git LFS which was not fetched."""


@dataclass
class PLM:
    """A frozen PLM: `content` is the SHA-256 over its weights, configuration and tokenizer.

    head: `own`, answers are read as words by the PLM's LM head; or `trained`, as labels by a linear classifier that is
    tuned too. dtype: what it is computed in. revision: what was really fetched (a commit, a wheel's hash); None for a
    rung. whole, mesh: where the weights are in parts on several processes, see `apet.models.sharding`: what gathers
    them, and the processes.
    """

    name: str
    family: Family
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    content: str
    special_tokens: SpecialTokens = field(default_factory=SpecialTokens)
    head: str = "lm"
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
        return labels * (self.words.shape[1] + 1) if self.head == "classification" else 0


def load_plm(folder: Path, name: str, weights: bool = True, device: str = "cpu", computed_on: str | None = None) -> PLM:
    """The PLM in a folder, in evaluation mode, without gradients, with the family's fast kernels in place.

    `snapshot.json` beside the weights may state the `dtype` to compute in (default float32), which is used if the
    device computes it faster than float32, the `head` that answers are read by (default own) and the `content` the
    folder had when it was made. Raises ModelError for a folder that lacks a file or a weight, or whose architecture is
    not supported; CorruptError where its content has changed. weights: false for shapes alone (meta device).
    computed_on: the device that computes, if the weights go there later (default: `device`).
    """
    check_files(folder)
    stated = _stated(folder)
    content = checked_content(folder)
    config, dtype = _config(folder), compute_dtype(stated["dtype"], computed_on or device)
    with _quiet():
        if weights:
            announce_dtype(name, stated["dtype"], dtype)
            model = _model(folder, config, stated["head"], name, dtype=getattr(torch, dtype))
        else:
            model = _shapes(config, stated["head"])
        tokenizer = _tokenizer(folder, model)
    family = family_of(config.model_type)
    model.requires_grad_(False).eval()
    family.install_kernels(model)
    if weights:
        model.to(device)  # type: ignore[arg-type]  # the library's decorator hides the model itself
    said = stated["head"], dtype, stated.get("revision")
    return PLM(name, family, model, tokenizer, content, family.special_tokens(tokenizer), *said)


def check_plm(folder: Path, name: str, head: str) -> None:
    """Raises ModelError for a folder that `load_plm` would refuse; its weights are not read. head: see `PLM`."""
    check_files(folder)
    for path in sorted(folder.glob("*.safetensors")):
        _check_header(path)
    with _quiet():
        _tokenizer(folder, _model(folder, _config(folder), head, name, device_map="meta"))


def _check_header(path: Path) -> None:
    try:
        with safe_open(path, "pt"):
            return
    except (SafetensorError, OSError) as error:
        with open(path, "rb") as file:
            is_pointer = file.read(len(POINTER)) == POINTER
        hint = " It is a pointer of git LFS: `git lfs pull` fetches what it stands for." if is_pointer else ""
        raise ModelError(f"{path}: its weights cannot be read ({first_line(error)}).{hint}") from None


def _stated(folder: Path) -> dict[str, Any]:
    """What the folder says about itself: snapshot.json, with defaults."""
    stated = {"dtype": "float32", "head": "lm"} | read_origin(folder, SNAPSHOT)
    for key, allowed in (("dtype", DTYPES), ("head", HEADS)):
        if stated[key] not in allowed:
            raise ModelError(unknown_name(key, stated[key], allowed, str(folder / SNAPSHOT)))
    return stated


def _config(folder: Path) -> PretrainedConfig:
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    check_size(read_config(folder), stored, folder)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise ModelError(f"{folder / 'config.json'}: cannot be used ({first_line(error)}).") from None


def _model(folder: Path, config: PretrainedConfig, head: str, name: str, **options: Any) -> PreTrainedModel:
    """The model with its weights. Raises ModelError where the checkpoint lacks some: they would be random.

    options: of the library's `from_pretrained`.
    """
    family = family_of(config.model_type)
    try:
        loaded: Any = family.class_of(config).from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told below
            **options,
        )
    except Exception as error:  # the library checks little, and what fails then may be anything in it
        raise ModelError(f"{folder}: its weights cannot be read ({first_line(error)}).") from None
    model, report = loaded
    for key, found, asked in sorted(report["mismatched_keys"]):
        shapes = f"{tuple(found)}, and config.json asks for {tuple(asked)}"
        raise ModelError(f"{folder}: the weights have {key} in the shape {shapes}.")
    missing = sorted(report["missing_keys"])
    body = [key for key in missing if not key.startswith(f"{family.head_part}.")]
    if body:
        raise ModelError(f"{folder}: the weights lack {_first(body)}, which a {config.model_type} model needs.")
    if head == "classification":
        family.drop_lm_head(model)
    elif missing:
        raise ModelError(
            f"{folder}: PLM {name!r} has no LM head (the weights lack {_first(missing)}), so answers cannot be read as "
            "words. Write `head: classification` for this PLM in the study or registry: a linear classifier, tuned with θ and "
            "counted apart, reads them as labels."
        )
    return model


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder. Raises ModelError for one that cannot be read, or that the library has made up."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise ModelError(f"{folder}: its tokenizer cannot be read ({first_line(error)}).") from None
    # Without them the library hands out one that knows the special words alone.
    lacks = [] if (folder / TOKENIZERS[0]).is_file() else sorted({*tokenizer.vocab_files_names.values()})
    if missing := [file for file in lacks if file != TOKENIZERS[0] and not (folder / file).is_file()]:
        kind = type(tokenizer).__name__
        raise ModelError(f"{folder}: no {_first(missing)}, which its tokenizer ({kind}) needs, and no {TOKENIZERS[0]}.")
    return tokenizer


def _tokenizer(folder: Path, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """`read_tokenizer`. Raises ModelError also for one with words that the model does not have."""
    tokenizer = read_tokenizer(folder)
    words = 1 + max(tokenizer.get_vocab().values(), default=-1)
    embeddings: Any = model.get_input_embeddings()
    rows = len(embeddings.weight)
    if words > rows:
        raise ModelError(
            f"{folder}: its tokenizer has {words:,} words, and the word embeddings have {rows:,} rows. "
            "Allowed: at least a row for each word, so this is not the tokenizer of these weights."
        )
    frame = family_of(model.config.model_type).special_tokens(tokenizer)
    if None in (*frame.before, *frame.after, *frame.decoder):
        wanted = "a token that begins, ends or pads a text, or the one that stands for the answer"
        raise ModelError(f"{folder}: its tokenizer lacks {wanted}, which a {model.config.model_type} model reads.")
    return tokenizer


def inventory_of_config(values: dict, head: str = "lm") -> Inventory:
    """The inventory of a configuration given as the mapping of a config.json, without weights. head: see `PLM`.

    Raises ModelError for another architecture, and for numbers that no PLM has.
    """
    family_of(str(values.get("model_type")))
    for key, value in values.items():
        most = MOST_BLOCKS if "layer" in key else MOST_SIZE
        if type(value) is int and value > most:
            raise ModelError(f"config.json: {key} is {value}. Allowed: at most {most:,}.")
    if values.get("quantization_config"):
        said = f"quantization_config is {truncated_repr(values['quantization_config'])}"
        raise ModelError(f"config.json: {said}. Allowed: none, for weights that are not quantised.")
    try:
        return inventory_of(_shapes(AutoConfig.for_model(**values), head))
    except Exception as error:  # the library checks little, and what fails then may be anything in it or in PyTorch
        raise ModelError(
            f"config.json: no PLM has the shapes of {truncated_repr(values)} ({first_line(error)})."
        ) from None


def check_size(values: dict, stored: int, where: object) -> None:
    """Raises ModelError for the mapping of a config.json with more parameters than there are bits in the `stored` bytes
    of weights: the library would make room for them all before it finds that they are not there.
    """
    with error_context(where):
        parameters = inventory_of_config(values).parameters
    if parameters > 8 * stored:
        said = f"config.json speaks of {parameters:,} parameters, and the weights hold at most {8 * stored:,}"
        raise ModelError(f"{where}: {said}.")


def _shapes(config: PretrainedConfig, head: str) -> PreTrainedModel:
    """The model without its numbers (meta device)."""
    model = shapes_of(config)
    if head == "classification":
        family_of(config.model_type).drop_lm_head(model)
    return model


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def first_line(error: Exception) -> str:
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
