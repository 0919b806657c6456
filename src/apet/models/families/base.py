"""What a family must say about its architecture, and nothing else: where its parts are and how its output is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from apet.errors import ModelError


@dataclass(frozen=True)
class FusedSlice:
    """One of `parts` maps whose rows lie interleaved head by head in one weight (head, part, row of the head)."""

    part: int
    parts: int = 3

    def rows(self, outputs: int, heads: int) -> Tensor:
        """Rows of this part in a weight with `outputs` rows, in the part's own order. Shape (outputs / parts,)."""
        return torch.arange(outputs).view(heads, self.parts, -1)[:, self.part].flatten()


@dataclass(frozen=True)
class ModuleSpec:
    """One part of the architecture.

    name: canonical, the same in every family; inside a block relative to it (`attention.query`).
    module: dotted path in the library's model; inside a block relative to it.
    kind: `linear`, `norm`, `embedding` (of words, positions, …), `head` (the LM head) or `input` (a sequence's start).
    fused: which rows of a shared weight are this part. adapter_after: an adapter goes behind it. bias_cancels: a bias here
    cannot move the output, or not all of it can (a key's, which the softmax cancels where no rotation follows).
    optional: some versions of the architecture do without it.
    """

    name: str
    module: str
    kind: str
    fused: FusedSlice | None = None
    adapter_after: bool = False
    bias_cancels: bool = False
    optional: bool = False


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids that a family puts before and after a prompt with its text, and those its decoder starts from."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    decoder: tuple[int, ...] = ()


@dataclass(frozen=True)
class Inputs:
    """Right-padded rows, and how a family reads them.

    ids [rows, longest]; lengths [rows]; virtual: place of an input -> virtual tokens [tokens, d] that go in front;
    slot: the answer is read so many tokens before a row's end (1: at its last token). mean: what is read is the mean of
    the states of all positions instead. decoder: what a decoder starts from; said [rows, s]: what it has said since.
    reads: so many of the last positions are read, up to that one.
    """

    ids: Tensor
    lengths: Tensor
    virtual: Mapping[str, Tensor]
    slot: int
    decoder: tuple[int, ...] = ()
    mean: bool = False
    answer_ids: Tensor | None = None
    reads: int = 1

    def saying(self, said: Tensor, after: int, every: bool) -> Inputs:
        """The same with the answer's first tokens, [rows, s], right-padded: said by the decoder where the text has one
        of its own, else in the text in front of its last `after` tokens.

        every: read at all s + 1 positions, where each of the tokens and what follows them is foretold.
        """
        reads = said.shape[1] + 1 if every else 1
        if self.decoder:
            return replace(self, answer_ids=said, reads=reads)
        ids = _inserted(self.ids, said, self.lengths - after)
        return replace(self, ids=ids, lengths=self.lengths + said.shape[1], reads=reads)

    @property
    def begun(self) -> Tensor:
        """What a decoder has said up to now, its start included, [rows, t]."""
        start = torch.tensor(self.decoder, device=self.ids.device).expand(len(self.ids), -1)
        return start if self.answer_ids is None else torch.cat((start, self.answer_ids), dim=1)

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
        """Where each row's answer is read, virtual tokens counted, [rows, reads]."""
        last = self.lengths - self.slot + self.tokens(place)
        return last[:, None] + torch.arange(1 - self.reads, 1, device=last.device)

    def read(self, states: Tensor, place: str) -> Tensor:
        """The states that the answer is read from, [rows, d], or [rows, reads, d] where there are several a row.

        Where the model was narrowed only they are left.
        """
        if self.mean:
            mask = self.mask(place)[..., None]
            return (states.float() * mask).sum(dim=1) / mask.sum(dim=1)
        if states.shape[1] != self.reads:
            states = at(states, self.position(place))
        return states[:, 0] if self.reads == 1 else states


def at(states: Tensor, position: Tensor) -> Tensor:
    """States [rows, k, d] at positions [rows, k] of states [rows, longest, d]."""
    return states[torch.arange(len(states), device=states.device)[:, None], position]


def blocks_of(model: nn.Module, path: str) -> nn.ModuleList:
    """The list of blocks at a path."""
    blocks = model.get_submodule(path)
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def _inserted(ids: Tensor, new: Tensor, start: Tensor) -> Tensor:
    """Rows of ids [rows, n] with rows of new ids [rows, s] put in front of place `start` [rows], [rows, n + s]."""
    longest, size = ids.shape[1], new.shape[1]
    place, start = torch.arange(longest + size, device=ids.device), start[:, None]
    source = torch.where(place < start, place, torch.where(place < start + size, longest + place - start, place - size))
    return torch.cat((ids, new), dim=1).gather(1, source)


Own = Any
"""A model of one of the family's own classes."""


class Decoder(Protocol):
    """Answers under way, a row each, as a family's `write` gives them. states [rows, d]: read for their first token."""

    states: Tensor

    def step(self, tokens: Tensor) -> Tensor:
        """Say one token a row, [rows]; the states [rows, d] that the next are read from."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""


@dataclass(frozen=True)
class Family:
    """An architecture.

    classes: Hugging Face `model_type` -> model class with its LM head. outer: places outside the blocks. blocks:
    canonical stack -> (path of the list of blocks, places of a block). states: (model, inputs) -> the states that
    answers are read from, see `Inputs.read`. write: (model, inputs) -> answers under way, token by token; None for an
    encoder, which can name a word and not go on. head: path of the linear map from states to words. transform: (model,
    states) -> what that map multiplies. mean_pool: a trained head reads the mean state: in an encoder every position sees
    the whole text, and the slot's state is made to name a word. answer_offset: see Inputs. special_tokens: (tokenizer) -> what goes
    around a text. last_attention: (config) -> path of the last attention, whose forward then takes `read` [rows, k], the
    positions that ask there and go on; None where the family does without.
    positions: the place whose weight has a row for each position of a text, so that no text may be longer; None where
    positions are computed.
    install_kernels: puts fast kernels in place of the library's slow ones, equal to float tolerance. untie_head: gives a model made
    from a configuration alone a head of its own, where a checkpoint would bring one.
    """

    name: str
    classes: Mapping[str, type[PreTrainedModel]]
    outer: tuple[ModuleSpec, ...]
    blocks: Mapping[str, tuple[str, tuple[ModuleSpec, ...]]]
    states: Callable[[Own, Inputs], Tensor]
    write: Callable[[Own, Inputs], Decoder] | None = None
    head: str = "lm_head"
    transform: Callable[[Own, Tensor], Tensor] = lambda model, states: states
    mean_pool: bool = False
    answer_offset: int = 1
    special_tokens: Callable[[PreTrainedTokenizerBase], SpecialTokens] = lambda tokenizer: SpecialTokens()
    last_attention: Callable[[PretrainedConfig], str | None] = lambda config: None
    positions: str | None = None
    install_kernels: Callable[[Own], None] = lambda model: None
    untie_head: Callable[[Own], None] = lambda model: None

    def class_of(self, config: PretrainedConfig) -> type[PreTrainedModel]:
        """The model class for a configuration of this family."""
        return self.classes[config.model_type]

    def logits(self, model: PreTrainedModel, states: Tensor, words: Tensor | None) -> Tensor:
        """Logits [rows, k] of words [k] (None: of every word) from the states that `states` gives, float32."""
        return self.project(model, self.transform(model, states), words)

    def project(self, model: PreTrainedModel, transformed: Tensor, words: Tensor | None) -> Tensor:
        """`logits` from transformed states. Few words are computed in float32, all of them in the PLM's dtype."""
        head: Any = model.get_submodule(self.head)
        if words is None:
            return F.linear(transformed, head.weight, head.bias).float()
        bias = None if head.bias is None else head.bias[words].float()
        return F.linear(transformed.float(), head.weight[words].float(), bias)

    @property
    def head_part(self) -> str:
        """Name of the model's part that only serves to read words off states."""
        return self.head.partition(".")[0]

    def drop_lm_head(self, model: PreTrainedModel) -> None:
        """Take the LM head away: a PLM that is read through a trained head has no use for its own."""
        delattr(model, self.head_part)

    @property
    def input(self) -> str:
        """The place where a text enters: an encoder's input where there is one."""
        names = [place.name for place in self.outer if place.kind == "input"]
        return "encoder.input" if "encoder.input" in names else names[0]

    def stacked(self, model: PreTrainedModel) -> list[nn.Module]:
        """The blocks of all stacks."""
        return [block for path, _ in self.blocks.values() for block in blocks_of(model, path)]

    def places(self, model: PreTrainedModel) -> list[ModuleSpec]:
        """All places of a model of this family, with full names and paths; a head's only where it has one.

        Raises ModelError where the model lacks one: its architecture has the family's name and not its parts.
        """
        whole = hasattr(model, self.head_part)
        found = [place for place in self.outer if whole or place.module.partition(".")[0] != self.head_part]
        for stack, (path, places) in self.blocks.items():
            for i in range(len(blocks_of(model, path))):
                inside = (replace(p, name=f"{stack}.{i}.{p.name}", module=f"{path}.{i}.{p.module}") for p in places)
                found.extend(inside)
        modules = {name for name, _ in model.named_modules()}
        missing = [place.module for place in found if place.module not in modules and not place.optional]
        if missing:
            raise ModelError(f"a {model.config.model_type} model of family {self.name} lacks its part {missing[0]!r}.")
        return [place for place in found if place.module in modules]
