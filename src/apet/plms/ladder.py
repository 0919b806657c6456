"""The scale ladder: rungs of one family, pretrained alike, so that scale is the only thing that changes. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from apet.errors import ModelError, ParamsError, unknown
from apet.provenance import digest

PRETRAIN_VERSION = 2
"""Raised whenever tokenizer, data order, initial values or training change, so that old rungs are not taken for new."""

HEAD_WIDTH = 16
"""Width of an attention head. Wider ones, and so fewer, were faster and worse."""

SPECIAL = ("<pad>", "<eos>", "<mask>", "<unk>")
"""The tokenizer's first words. A byte-level tokenizer never needs the last; some libraries ask for it."""

PAD, END = 0, 1
"""Their ids: what fills a row, and what ends every document."""

NAME = re.compile(r"([a-z0-9]+)-([1-9]\d*)x([1-9]\d*)", re.ASCII)

LEAST = {"seed": 0, "vocabulary": 256 + len(SPECIAL)}
CHOICES = {"schedule": ("linear", "cosine"), "precision": ("bfloat16", "float32")}


@dataclass(frozen=True)
class Rung:
    """One PLM of the ladder: hidden states of `width` numbers in `layers` blocks of `heads` heads."""

    name: str
    family: str
    width: int
    layers: int
    heads: int

    def config(self, recipe: Recipe) -> dict[str, Any]:
        """What the library's configuration of this rung says, `model_type` included."""
        return FAMILIES[self.family](self, recipe)


@dataclass(frozen=True)
class Recipe:
    """How every rung is pretrained.

    vocabulary: words of the tokenizer. tokens: predicted in all. batch: rows a step. length: tokens a row.
    rate_matrices: Muon's step size for the blocks' matrices. rate_words and rate_vectors: AdamW's for the word
    embeddings, and for biases and norms. warmup: share of the steps in which the rates rise from 0; after it they fall
    to 0 as `schedule` says. precision: of the products of matrices; `bfloat16` took two thirds of the time where
    the processor has it, and is slow elsewhere. seed: of initial values and of the order of the documents.
    """

    vocabulary: int = 4096
    tokens: int = 1_400_000
    batch: int = 32
    length: int = 64
    rate_matrices: float = 0.02
    rate_words: float = 0.03
    rate_vectors: float = 0.01
    warmup: float = 0.05
    schedule: str = "linear"
    precision: str = "bfloat16"
    seed: int = 1

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Recipe:
        """The defaults with some keys changed. ParamsError for an unknown key or a value that cannot be."""
        known = {field.name: field.default for field in fields(cls)}
        for key, value in values.items():
            if key not in known:
                raise ParamsError(unknown("key", key, known, "pretraining"))
            if key in CHOICES and value not in CHOICES[key]:
                raise ParamsError(unknown("value", value, CHOICES[key], f"pretraining.{key}"))
            if key not in CHOICES:
                _check_number(key, value, type(known[key]))
        return cls(**{key: type(known[key])(value) for key, value in values.items()})

    @property
    def steps(self) -> int:
        """Whole batches in `tokens`, at least one."""
        return max(1, self.tokens // (self.batch * self.length))


def parse_rung(name: str) -> Rung:
    """The rung that `<family>-<width>x<layers>` names. ModelError for another form, family or width."""
    parts = NAME.fullmatch(name)
    if not parts:
        raise ModelError(f"model {name!r}: not a rung of the ladder. Allowed: <family>-<width>x<layers> (bloom-64x4).")
    family, width, layers = parts[1], int(parts[2]), int(parts[3])
    if family not in FAMILIES:
        raise ModelError(unknown("family", family, FAMILIES, f"model {name!r}"))
    if width % HEAD_WIDTH:
        raise ModelError(f"model {name!r}: width {width}. Allowed: a multiple of {HEAD_WIDTH}.")
    return Rung(name, family, width, layers, width // HEAD_WIDTH)


def rung_digest(rung: Rung, recipe: Recipe, corpus_digest: str) -> str:
    """Digest (64 hex digits) that names a rung's folder, computed before there is any data."""
    return digest(["rung", PRETRAIN_VERSION, asdict(rung), asdict(recipe), corpus_digest])


def _check_number(key: str, value: Any, kind: type) -> None:
    number = isinstance(value, int | kind) and not isinstance(value, bool)
    least, most = (LEAST.get(key, 1), float("inf")) if kind is int else (0, 1)
    if not (number and least <= value <= most):
        allowed = f"a whole number from {least}" if kind is int else "a number from 0 to 1"
        raise ParamsError(f"pretraining.{key}: {value!r}. Allowed: {allowed}.")


def _bloom(rung: Rung, recipe: Recipe) -> dict[str, Any]:
    return {
        "model_type": "bloom",
        "vocab_size": recipe.vocabulary,
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


FAMILIES: dict[str, Callable[[Rung, Recipe], dict[str, Any]]] = {"bloom": _bloom}
"""What a family's configuration says for a rung; its objective stands in `apet.plms.objectives`."""
