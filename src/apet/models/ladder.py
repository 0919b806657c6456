"""The scale ladder: models of one family, pretrained alike, so that only scale changes. Without torch."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from apet.config.study_config import PretrainingConfig
from apet.core.atomic import atomic_dir
from apet.core.hashing import digest
from apet.errors import CorruptError, ModelError, renamed_in_errors, truncated_repr, unknown_name
from apet.models.checkpoint_files import PRETRAINING, open_folder, read_origin

PRETRAIN_VERSION = 5
"""Raised whenever tokenizer, data order, initial values or training change, so that old models are not reused."""

HEAD_WIDTH = 16
"""Width of an attention head. Fewer, wider heads were faster and worse."""

SENTINELS = tuple(f"<extra_id_{number}>" for number in range(8))
"""Tokens that replace spans of a text (T5)."""

SPECIAL = ("<pad>", "<eos>", "<mask>", "<unk>", "<cls>", "<sep>", *SENTINELS)
"""First tokens of the tokenizer, for all families. Byte-level BPE never needs <unk>, but some libraries require it."""

PAD, END, MASK, _, CLS, SEP, SENTINEL = range(7)
"""Ids of padding, end of a document, [MASK], [CLS], [SEP] and the first sentinel."""

NAME = re.compile(r"([a-z0-9]+)-([1-9]\d{0,14})x([1-9]\d{0,14})", re.ASCII)
"""Name of a ladder model. The digits are limited because Python refuses to parse thousands of them."""


@dataclass(frozen=True)
class LadderModel:
    """One PLM of the ladder."""

    name: str
    """`<family>-<width>x<layers>`."""
    family: str
    """One of `FAMILIES`."""
    width: int
    """Width of the hidden states."""
    layers: int
    """Number of blocks; for T5, of each stack, as in T5's own sizes."""
    heads: int
    """Number of attention heads."""

    def config(self, recipe: PretrainingConfig) -> dict[str, Any]:
        """Make the library's configuration.

        Args:
            recipe: How the model is pretrained.

        Returns:
            The mapping of a config.json, with `model_type`.
        """
        return FAMILIES[self.family](self, recipe)


def parse_ladder_model(name: str) -> LadderModel:
    """Parse the name of a ladder model.

    Args:
        name: `<family>-<width>x<layers>`.

    Returns:
        The ladder model.

    Raises:
        ModelError: The name has another form, the family is unknown, or heads of 16 do not fill the width.
    """
    parts = NAME.fullmatch(name)
    if not parts:
        raise ModelError(
            f"model {truncated_repr(name)}: not a ladder model. Allowed: <family>-<width>x<layers> (bloom-64x4)."
        )
    family, width, layers = parts[1], int(parts[2]), int(parts[3])
    if family not in FAMILIES:
        raise ModelError(unknown_name("family", family, FAMILIES, f"model {name!r}"))
    if width % HEAD_WIDTH:
        raise ModelError(f"model {name!r}: width {width}. Allowed: a multiple of {HEAD_WIDTH}.")
    return LadderModel(name, family, width, layers, width // HEAD_WIDTH)


def ladder_model_digest(model: LadderModel, recipe: PretrainingConfig, corpus_digest: str) -> str:
    """Compute the digest that names the folder of a ladder model, before there is any data.

    Args:
        model: The ladder model.
        recipe: How the model is pretrained.
        corpus_digest: Digest of the corpus.

    Returns:
        64 hex digits.
    """
    return digest(["ladder model", PRETRAIN_VERSION, asdict(model), asdict(recipe), corpus_digest])


def _bloom(model: LadderModel, recipe: PretrainingConfig) -> dict[str, Any]:
    return {
        "model_type": "bloom",
        "vocab_size": recipe.vocab_size,
        "hidden_size": model.width,
        "n_layer": model.layers,
        "n_head": model.heads,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "bos_token_id": END,
        "eos_token_id": END,
        "pad_token_id": PAD,
    }


def _bert(model: LadderModel, recipe: PretrainingConfig) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "vocab_size": recipe.vocab_size,
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "intermediate_size": 4 * model.width,
        # A row has two special tokens around it, and one token more than it predicts.
        "max_position_embeddings": max(512, recipe.block_size + 3),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": PAD,
    }


def _t5(model: LadderModel, recipe: PretrainingConfig) -> dict[str, Any]:
    """Configure T5 v1.1: a gated FFN with the relative width of XL, and an untied head.

    With a tied and scaled head, as in v1.0, word embeddings learned at an eighth of the rate.
    """
    return {
        "model_type": "t5",
        "vocab_size": recipe.vocab_size,
        "d_model": model.width,
        "d_kv": HEAD_WIDTH,
        "d_ff": 5 * model.width // 2,
        "num_layers": model.layers,
        "num_heads": model.heads,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
        "tie_word_embeddings": False,
        "pad_token_id": PAD,
        "eos_token_id": END,
        "decoder_start_token_id": PAD,
    }


FAMILIES: dict[str, Callable[[LadderModel, PretrainingConfig], dict[str, Any]]] = {
    "bloom": _bloom,
    "bert": _bert,
    "t5": _t5,
}
"""Family -> configuration of a ladder model. Its objective is in `apet.models.pretraining.losses`."""


LADDER = Path(__file__).parent.parent / "ladder"
"""A link to the repository's `ladder/`; a folder in an installed package."""


def shipped_content(model: LadderModel, recipe: PretrainingConfig) -> str | None:
    """Look up a shipped ladder model.

    Args:
        model: The ladder model.
        recipe: How the model must have been pretrained.

    Returns:
        The digest of its content (64 hex digits); None if it is not shipped, or was pretrained in another way.

    Raises:
        CorruptError: The record is corrupt, or belongs to another ladder model.
    """
    record = _record(model)
    return record["content"] if record and record["recipe"] == asdict(recipe) else None


def copy_shipped(model: LadderModel, out_folder: Path) -> None:
    """Copy a shipped ladder model to a folder.

    Args:
        model: The ladder model.
        out_folder: The folder to make.

    Raises:
        ModelError: The ladder model is not shipped.
        CorruptError: A file is missing, or has other bytes than its record names.
    """
    source, record = LADDER / model.name, _record(model)
    if record is None:
        raise ModelError(f"{source}: no such folder. Allowed: {', '.join(shipped_names()) or 'none is shipped'}.")
    with atomic_dir(out_folder) as folder:
        for name in (*record["files"], PRETRAINING):
            if not (source / name).is_file():
                raise CorruptError(f"{source / name}: missing. {_fix(model)}")
            shutil.copyfile(source / name, folder / name)
        try:
            with renamed_in_errors(folder, source):
                open_folder(folder)
        except CorruptError as error:
            raise CorruptError(f"{str(error).partition(' Delete ')[0]} {_fix(model)}") from None


def shipped_names() -> list[str]:
    """List the names of the shipped ladder models, smallest first."""
    folders = [path.parent for path in LADDER.glob(f"*/{PRETRAINING}")]
    return [folder.name for folder in sorted(folders, key=lambda f: (f.name.partition("-")[0], _weights(f)))]


def _record(model: LadderModel) -> dict[str, Any] | None:
    """Read the record of a shipped ladder model; None if it is not shipped."""
    folder = LADDER / model.name
    if not folder.is_dir():
        return None
    try:
        record = read_origin(folder, PRETRAINING)
    except (CorruptError, ModelError) as error:
        raise CorruptError(f"{str(error).partition(' Delete ')[0]} {_fix(model)}") from None
    if record.get("ladder_model") != asdict(model):
        raise CorruptError(f"{folder / PRETRAINING}: expected the record of {model.name}, got another. {_fix(model)}")
    return record


def _weights(folder: Path) -> int:
    return (folder / "model.safetensors").stat().st_size


def _fix(model: LadderModel) -> str:
    return f"Restore it: `git checkout -- ladder/{model.name}`, or install apet again."
