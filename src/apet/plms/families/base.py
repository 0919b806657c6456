"""What a family must say about its architecture, and nothing else: where its parts are and how its output is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from apet.errors import ModelError


@dataclass(frozen=True)
class Fused:
    """One of `parts` maps whose rows lie interleaved head by head in one weight (head, part, row of the head)."""

    part: int
    parts: int = 3

    def rows(self, outputs: int, heads: int) -> Tensor:
        """Rows of this part in a weight with `outputs` rows, in the part's own order. Shape (outputs / parts,)."""
        return torch.arange(outputs).view(heads, self.parts, -1)[:, self.part].flatten()


@dataclass(frozen=True)
class Place:
    """One part of the architecture.

    name: canonical, the same in every family; inside a block relative to it (`attention.query`).
    module: dotted path in the library's model; inside a block relative to it.
    kind: `linear`, `norm`, `embedding` (of words, positions, …), `head` (the LM head) or `input` (a sequence's start).
    fused: which rows of a shared weight are this part. ends_block: an adapter goes behind it. inert_bias: a bias here
    cannot move the output, or not all of it can (a key's, which the softmax cancels where no rotation follows).
    """

    name: str
    module: str
    kind: str
    fused: Fused | None = None
    ends_block: bool = False
    inert_bias: bool = False


@dataclass(frozen=True)
class Frame:
    """Token ids that a family puts before and after a prompt with its text, and those its decoder starts from."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    decoder: tuple[int, ...] = ()


@dataclass(frozen=True)
class Inputs:
    """Right-padded rows, and how a family reads them.

    ids [rows, longest]; lengths [rows]; virtual: place of an input -> virtual tokens [tokens, d] that go in front;
    slot: the answer is read so many tokens before a row's end (1: at its last token).
    """

    ids: Tensor
    lengths: Tensor
    virtual: Mapping[str, Tensor]
    slot: int
    decoder: tuple[int, ...] = ()

    def embed(self, words: nn.Module, place: str, ids: Tensor | None = None) -> Tensor:
        """Embeddings [rows, tokens + length, d] of an input, its virtual tokens first."""
        embeddings = words(self.ids if ids is None else ids)
        if place not in self.virtual:
            return embeddings
        virtual = self.virtual[place].to(embeddings.dtype)
        return torch.cat((virtual.expand(len(embeddings), -1, -1), embeddings), dim=1)

    def tokens(self, place: str) -> int:
        """Number of virtual tokens in front of an input."""
        return len(self.virtual[place]) if place in self.virtual else 0

    def mask(self, place: str) -> Tensor:
        """1 where a position holds a token, 0 where padding, [rows, tokens + longest]."""
        extra = self.tokens(place)
        positions = torch.arange(extra + self.ids.shape[1], device=self.ids.device)
        return (positions < (self.lengths + extra)[:, None]).long()

    def position(self, place: str) -> Tensor:
        """Where each row's answer is read, virtual tokens counted, [rows]."""
        return self.lengths - self.slot + self.tokens(place)

    def read(self, states: Tensor, place: str) -> Tensor:
        """The states [rows, d] that the answer is read from; where the model was narrowed only they are left."""
        return states[:, 0] if states.shape[1] == 1 else states[torch.arange(len(states)), self.position(place)]


@dataclass(frozen=True)
class Family:
    """An architecture.

    classes: Hugging Face `model_type` -> model class with its LM head. outer: places outside the blocks. blocks:
    canonical stack -> (path of the list of blocks, places of a block). states: (model, inputs) -> the states [rows, d]
    that answers are read from. logits: (model, states, words [k]) -> logits of those words [rows, k]. slot: see
    Inputs. frame: (tokenizer) -> what goes around a text. narrow: (config) -> path of the last module that needs every
    position when only one is read, or None. fuse: puts fast kernels in place of the library's slow ones, equal to
    float tolerance. untie: gives a model made from a configuration alone a head of its own,
    where a checkpoint would bring one.
    """

    name: str
    classes: Mapping[str, type[PreTrainedModel]]
    outer: tuple[Place, ...]
    blocks: Mapping[str, tuple[str, tuple[Place, ...]]]
    states: Callable[[PreTrainedModel, Inputs], Tensor]
    logits: Callable[[PreTrainedModel, Tensor, Tensor], Tensor]
    slot: int = 1
    frame: Callable[[PreTrainedTokenizerBase], Frame] = lambda tokenizer: Frame()
    narrow: Callable[[PretrainedConfig], str | None] = lambda config: None
    fuse: Callable[[PreTrainedModel], None] = lambda model: None
    untie: Callable[[PreTrainedModel], None] = lambda model: None

    def class_of(self, config: PretrainedConfig) -> type[PreTrainedModel]:
        """The model class for a configuration of this family."""
        return self.classes[config.model_type]

    @property
    def input(self) -> str:
        """The place where a text enters: an encoder's input where there is one."""
        names = [place.name for place in self.outer if place.kind == "input"]
        return "encoder.input" if "encoder.input" in names else names[0]

    def places(self, model: PreTrainedModel) -> list[Place]:
        """All places of a model of this family, with full names and paths.

        Raises ModelError where the model lacks one: its architecture has the family's name and not its parts.
        """
        found = list(self.outer)
        for stack, (path, places) in self.blocks.items():
            for i in range(len(model.get_submodule(path))):
                inside = (replace(p, name=f"{stack}.{i}.{p.name}", module=f"{path}.{i}.{p.module}") for p in places)
                found.extend(inside)
        modules = {name for name, _ in model.named_modules()}
        missing = [place.module for place in found if place.module not in modules]
        if missing:
            raise ModelError(f"a {model.config.model_type} model of family {self.name} lacks its part {missing[0]!r}.")
        return found
