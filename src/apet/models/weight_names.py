"""Names of weights in a Hugging Face folder, and what they tell without reading the weights. Without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from apet.errors import ModelError, first_line, first_names
from apet.models.checkpoint_files import (
    SAFE,
    check_config,
    check_tokenizer_files,
    matching,
    names_in,
    plm_files,
    read_mapping,
)

LFS_POINTER = b"version https://git-lfs"
"""First bytes of a file that stands for one of git LFS which was not fetched."""

WRAPPERS = {
    "module.": ("DataParallel or DeepSpeed", "model.module"),
    "_orig_mod.": ("torch.compile", "model._orig_mod"),
    "base_model.model.": ("PEFT", "model.merge_and_unload()"),
}
"""Prefix of the names of weights -> (the wrapper whose model was saved, the model in it)."""

LM_HEADS = {
    "bert": ("cls.predictions.transform.", None),
    "bloom": ("lm_head.", True),
    "gpt_neox": ("embed_out.", False),
    "llama": ("lm_head.", False),
    "mistral": ("lm_head.", False),
    "qwen2": ("lm_head.", False),
    "t5": ("lm_head.", True),
}
"""`model_type` -> (prefix of the names of the LM head's weights in files, the library's `tie_word_embeddings`). A tied
head has no weights in files. None: it has some even if it is tied."""


def check_source(folder: Path, name: str, head: str) -> None:
    """Check by names alone that a folder has all files of a PLM, and that its weights have the head.

    It takes milliseconds, whatever the size. Of pickled weights, no names are known.

    Args:
        folder: A Hugging Face folder.
        name: Name of the PLM.
        head: `lm` or `classification`.

    Raises:
        ModelError: A file is missing or unusable, or there is no LM head although one is needed.
    """
    check_config(folder)
    files = plm_files(names_in(folder), folder)
    check_tokenizer_files(folder, files)
    check_weight_names(folder, name, head, f"{{folder: {folder}}}")


def check_weight_names(folder: Path, name: str, head: str, source: str = "…") -> None:
    """Check that safetensors can be opened and have an LM head if one is needed. Raises as `check_source`."""
    weights = [weight for path in weight_files(folder) for weight in weight_names(path)]
    if wrapped := wrapper_of(weights):
        raise ModelError(f"{folder}: {wrapped}")
    if head == "lm" and weights and (prefix := _missing_head(read_mapping(folder / "config.json"), weights)):
        raise no_lm_head(folder, name, [f"{prefix}*"], source)


def _missing_head(config: Mapping[str, Any], weights: Iterable[str]) -> str:
    """Return the prefix of the LM head's weights if they are needed and not among `weights`, or else an empty text."""
    prefix, tied = LM_HEADS.get(str(config.get("model_type")), ("", True))
    if tied is not None and config.get("tie_word_embeddings", tied):
        return ""
    # The library renamed GPT-NeoX's head. Within an unknown wrapper there is a head too: loading names the wrapper.
    has_head = any(weight.startswith((prefix, "lm_head.")) or f".{prefix}" in weight for weight in weights)
    return "" if has_head else prefix


def no_lm_head(folder: Path, name: str, missing: Sequence[str], source: str = "…") -> ModelError:
    """Return the error for weights without an LM head. missing: names of its weights. source: the PLM's, as YAML."""
    return ModelError(
        f"{folder}: PLM {name!r} has no LM head (the weights lack {first_names(missing)}). Write "
        f"`{{name: {name}, source: {source}, head: classification}}` in `models` of the study, to train a linear "
        "classifier with θ."
    )


def wrapper_of(weights: Iterable[str]) -> str:
    """Describe the wrapper whose model was saved, given the names of weights. Empty if there is none."""
    for prefix, (wrapper, model) in WRAPPERS.items():
        if wrapped := [name for name in weights if name.startswith(prefix)]:
            return (
                f"the weights have {wrapped[0]}: `{prefix}` is the prefix of a model inside {wrapper}. Save that "
                f"model: `{model}.save_pretrained(folder)`."
            )
    return ""


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files of a PLM."""
    return [folder / name for name in matching(sorted(names_in(folder)), SAFE) if name.endswith(".safetensors")]


def weight_names(path: Path) -> list[str]:
    """Read the names of the weights in a safetensors file. Raises ModelError if it is damaged."""
    try:
        with safe_open(path, "np") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        with open(path, "rb") as file:
            is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
        fix = " It is a pointer of git LFS. Fetch the file with `git lfs pull`." if is_pointer else ""
        raise ModelError(f"{path}: its weights cannot be read ({first_line(error)}).{fix}") from None
