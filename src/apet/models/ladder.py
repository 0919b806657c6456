"""The scale ladder: rungs of one family, pretrained alike, so that scale is the only thing that changes. No torch."""

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
from apet.errors import CorruptError, ModelError, truncated_repr, unknown_name
from apet.models.checkpoint_files import PRETRAINING, checked_content, read_origin

PRETRAIN_VERSION = 5
"""Raised whenever tokenizer, data order, initial values or training change, so that old rungs are not taken for new."""

HEAD_WIDTH = 16
"""Width of an attention head. Wider ones, and so fewer, were faster and worse."""

SENTINELS = tuple(f"<extra_id_{number}>" for number in range(8))
"""Words that stand for spans left out of a text (T5)."""

SPECIAL = ("<pad>", "<eos>", "<mask>", "<unk>", "<cls>", "<sep>", *SENTINELS)
"""The tokenizer's first words, whatever the family. A byte-level one never needs <unk>; some libraries ask for it."""

PAD, END, MASK, _, CLS, SEP, SENTINEL = range(7)
"""Ids: what fills a row, ends a document, hides a token, begins and ends BERT's row; the first sentinel."""

NAME = re.compile(r"([a-z0-9]+)-([1-9]\d{0,14})x([1-9]\d{0,14})", re.ASCII)
"""With as many digits as a budget may have: Python itself refuses to read thousands of them."""


@dataclass(frozen=True)
class LadderModel:
    """One PLM of the ladder: hidden states of `width` numbers in `layers` blocks of `heads` heads.

    As in T5's own sizes, a T5 has `layers` blocks in its encoder and as many in its decoder.
    """

    name: str
    family: str
    width: int
    layers: int
    heads: int

    def config(self, recipe: PretrainingConfig) -> dict[str, Any]:
        """What the library's configuration of this rung says, `model_type` included."""
        return FAMILIES[self.family](self, recipe)


def parse_ladder_model(name: str) -> LadderModel:
    """The rung that `<family>-<width>x<layers>` names. ModelError for another form, family or width."""
    parts = NAME.fullmatch(name)
    if not parts:
        raise ModelError(
            f"model {truncated_repr(name)}: not a rung of the ladder. Allowed: <family>-<width>x<layers> (bloom-64x4)."
        )
    family, width, layers = parts[1], int(parts[2]), int(parts[3])
    if family not in FAMILIES:
        raise ModelError(unknown_name("family", family, FAMILIES, f"model {name!r}"))
    if width % HEAD_WIDTH:
        raise ModelError(f"model {name!r}: width {width}. Allowed: a multiple of {HEAD_WIDTH}.")
    return LadderModel(name, family, width, layers, width // HEAD_WIDTH)


def ladder_model_digest(rung: LadderModel, recipe: PretrainingConfig, corpus_digest: str) -> str:
    """Digest (64 hex digits) that names a rung's folder, computed before there is any data."""
    return digest(["rung", PRETRAIN_VERSION, asdict(rung), asdict(recipe), corpus_digest])


def _bloom(rung: LadderModel, recipe: PretrainingConfig) -> dict[str, Any]:
    return {
        "model_type": "bloom",
        "vocab_size": recipe.vocab_size,
        "hidden_size": rung.width,
        "n_layer": rung.layers,
        "n_head": rung.heads,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "bos_token_id": END,
        "eos_token_id": END,
        "pad_token_id": PAD,
    }


def _bert(rung: LadderModel, recipe: PretrainingConfig) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "vocab_size": recipe.vocab_size,
        "hidden_size": rung.width,
        "num_hidden_layers": rung.layers,
        "num_attention_heads": rung.heads,
        "intermediate_size": 4 * rung.width,
        # A row has two more words around it and one more than it predicts.
        "max_position_embeddings": max(512, recipe.block_size + 3),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": PAD,
    }


def _t5(rung: LadderModel, recipe: PretrainingConfig) -> dict[str, Any]:
    """T5 v1.1: a gated FFN, as wide to the hidden states as in its XL, and a head of its own.

    With a head that is tied and scaled, as in v1.0, words learnt at an eighth of the rate.
    """
    return {
        "model_type": "t5",
        "vocab_size": recipe.vocab_size,
        "d_model": rung.width,
        "d_kv": HEAD_WIDTH,
        "d_ff": 5 * rung.width // 2,
        "num_layers": rung.layers,
        "num_heads": rung.heads,
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
"""What a family's configuration says for a rung; its objective stands in `apet.models.pretraining.losses`."""


LADDER = Path(__file__).parent.parent / "ladder"
"""A link to the repository's `ladder/`; in an installed package, a folder of its own."""


def shipped_content(rung: LadderModel, recipe: PretrainingConfig) -> str | None:
    """Return the content (64 hex digits) of a rung that is shipped, or None if it is not, or was pretrained otherwise.

    Args:
        rung: the rung that a study names.
        recipe: the study's recipe; only rungs that were pretrained by it are taken.

    Raises:
        CorruptError: the rung's record is damaged, or is another rung's.
    """
    record = _record(rung)
    return record["content"] if record and record["recipe"] == asdict(recipe) else None


def copy_shipped(rung: LadderModel, out_folder: Path) -> None:
    """Write a shipped rung to a folder.

    Raises:
        CorruptError: a file of the rung is missing or does not have the bytes that its record names.
    """
    source, record = LADDER / rung.name, _record(rung)
    if record is None:
        raise ModelError(f"{source}: no such folder. Allowed: {', '.join(shipped_names()) or 'none is shipped'}.")
    with atomic_dir(out_folder) as folder:
        for name in (*record["files"], PRETRAINING):
            if not (source / name).is_file():
                raise CorruptError(f"{source / name}: missing. {_fix(rung)}")
            shutil.copyfile(source / name, folder / name)
        try:
            checked_content(folder)
        except CorruptError as error:
            text = str(error).partition(" Delete ")[0].replace(str(folder), str(source))
            raise CorruptError(f"{text} {_fix(rung)}") from None


def shipped_names() -> list[str]:
    """Return the names of the shipped rungs, smallest first."""
    found = [path.parent for path in LADDER.glob(f"*/{PRETRAINING}")]
    return [folder.name for folder in sorted(found, key=lambda f: (f.name.partition("-")[0], _weights(f)))]


def _record(rung: LadderModel) -> dict[str, Any] | None:
    """Return what a shipped rung's record says; None if the rung is not shipped."""
    folder = LADDER / rung.name
    if not folder.is_dir():
        return None
    try:
        record = read_origin(folder, PRETRAINING)
    except (CorruptError, ModelError) as error:
        raise CorruptError(f"{str(error).partition(' Delete ')[0]} {_fix(rung)}") from None
    if record.get("rung") != asdict(rung):
        raise CorruptError(f"{folder / PRETRAINING}: not the record of {rung.name}. {_fix(rung)}")
    return record


def _weights(folder: Path) -> int:
    return (folder / "model.safetensors").stat().st_size


def _fix(rung: LadderModel) -> str:
    return f"Restore it: `git checkout -- ladder/{rung.name}`, or install apet again."
