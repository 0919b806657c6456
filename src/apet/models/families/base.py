"""The description of an architecture: where its modules are, and how its output is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from apet.errors import ModelError
from apet.models.layouts import Layout, ModuleSpec


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids that a family puts around the text."""

    before: tuple[int, ...] = ()
    """Tokens before the prompt."""
    after: tuple[int, ...] = ()
    """Tokens after the prompt."""
    decoder: tuple[int, ...] = ()
    """Tokens from which a separate decoder starts."""


def template_of(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Find the token ids that a tokenizer itself adds before and after every text.

    Args:
        tokenizer: The tokenizer.

    Returns:
        Token ids before and after a text.
    """
    whole, text = (tokenizer("a", add_special_tokens=added, verbose=False)["input_ids"] for added in (True, False))
    size = len(text)
    for start in range(len(whole) - size + 1) if text else ():
        if whole[start : start + size] == text:
            return tuple(whole[:start]), tuple(whole[start + size :])
    return (), ()


@dataclass(frozen=True)
class Inputs:
    """A batch of right-padded rows, and how a family reads it."""

    ids: Tensor
    """Token ids [rows, longest]."""
    lengths: Tensor
    """Lengths of the rows [rows]."""
    virtual: Mapping[str, Tensor]
    """Place of an input -> its virtual tokens [tokens, d]."""
    answer_offset: int
    """Distance of the position that is read from the end of a row. 1 is the last token."""
    decoder_start: tuple[int, ...] = ()
    """Tokens from which a separate decoder starts."""
    mean_pool: bool = False
    """Whether the mean of all states is read instead of one position."""
    answer_ids: Tensor | None = None
    """Answer tokens [rows, s] that the decoder gets after its start."""
    num_positions: int = 1
    """Number of positions that are read, up to the last one."""
    first_position: int = 0
    """Position of the first token, after those of a prefix."""

    def with_answer(self, answer_ids: Tensor, after: int, all_positions: bool) -> Inputs:
        """Add the first tokens of the answer.

        They go to a separate decoder's input, or else into the text, before its last `after` tokens.

        Args:
            answer_ids: token ids, right-padded, shape [rows, s].
            after: number of tokens that a family puts after the prompt.
            all_positions: whether all s + 1 positions are read, from the last one before the answer on, or only the
                last one.

        Returns:
            The new inputs.
        """
        num_positions = answer_ids.shape[1] + 1 if all_positions else 1
        if self.decoder_start:
            return replace(self, answer_ids=answer_ids, num_positions=num_positions)
        ids = _insert(self.ids, answer_ids, self.lengths - after)
        return replace(self, ids=ids, lengths=self.lengths + answer_ids.shape[1], num_positions=num_positions)

    @property
    def decoder_ids(self) -> Tensor:
        """Input of a separate decoder, [rows, t]. The answer tokens follow its start."""
        start = torch.tensor(self.decoder_start, device=self.ids.device).expand(len(self.ids), -1)
        return start if self.answer_ids is None else torch.cat((start, self.answer_ids), dim=1)

    def embed(self, embedding: nn.Module, place: str, ids: Tensor | None = None) -> Tensor:
        """Embed the input at a place (by default the text) as [rows, tokens + length, d], its virtual tokens first."""
        embeddings = embedding(self.ids if ids is None else ids)
        if place not in self.virtual:
            return embeddings
        virtual = self.virtual[place].to(embeddings.dtype)
        return torch.cat((virtual.expand(len(embeddings), -1, -1), embeddings), dim=1)

    def position_ids(self, embeddings: Tensor) -> Tensor | None:
        """Return the positions [1, n] of an embedded input [rows, n, d]; None if they begin at 0."""
        if not self.first_position:
            return None
        return self.first_position + torch.arange(embeddings.shape[1], device=embeddings.device)[None]

    def num_virtual_tokens(self, place: str) -> int:
        """Count the virtual tokens in front of an input."""
        return len(self.virtual[place]) if place in self.virtual else 0

    def mask(self, place: str) -> Tensor:
        """Make the mask [rows, tokens + longest] of an input that gets the text: 1 for tokens, 0 for padding."""
        extra = self.num_virtual_tokens(place)
        positions = torch.arange(extra + self.ids.shape[1], device=self.ids.device)
        return (positions < (self.lengths + extra)[:, None]).long()

    def position(self, place: str) -> Tensor:
        """Find the positions [rows, num_positions] at which each row is read, virtual tokens included."""
        last = self.lengths - self.answer_offset + self.num_virtual_tokens(place)
        return last[:, None] + torch.arange(1 - self.num_positions, 1, device=last.device)

    def read(self, states: Tensor, place: str) -> Tensor:
        """Select the states from which the answer is read.

        Args:
            states: states of all positions, shape [rows, positions, d], or only of the ones to read.
            place: the input that the states belong to, a key of `virtual` if it has virtual tokens.

        Returns:
            States [rows, d], or [rows, num_positions, d] if several positions are read.
        """
        if self.mean_pool:
            mask = self.mask(place)[..., None]
            return (states.float() * mask).sum(dim=1) / mask.sum(dim=1)
        if states.shape[1] != self.num_positions:
            states = at(states, self.position(place))
        return states[:, 0] if self.num_positions == 1 else states


def at(states: Tensor, position: Tensor) -> Tensor:
    """Select states [rows, k, d] at positions [rows, k] of states [rows, longest, d]."""
    return states[torch.arange(len(states), device=states.device)[:, None], position]


def blocks_of(model: nn.Module, path: str) -> nn.ModuleList:
    """Return the list of blocks at a path of a model."""
    blocks = model.get_submodule(path)
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def _insert(ids: Tensor, new: Tensor, start: Tensor) -> Tensor:
    """Insert rows of new ids [rows, s] into ids [rows, n] at positions `start` [rows]."""
    longest, size = ids.shape[1], new.shape[1]
    i, start = torch.arange(longest + size, device=ids.device), start[:, None]
    source = torch.where(i < start, i, torch.where(i < start + size, longest + i - start, i - size))
    return torch.cat((ids, new), dim=1).gather(1, source)


FamilyModel = Any
"""A model of one of the family's classes."""


class Decoder(Protocol):
    """Answers in generation, one a row.

    Attributes:
        states: States [rows, d] from which the first token is read.
    """

    states: Tensor

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token [rows] to each row, and return the states [rows, d] from which the next token is read."""

    def keep(self, rows: Tensor) -> None:
        """Drop all rows except the given ones."""


@dataclass(frozen=True)
class Family:
    """An architecture."""

    name: str
    """Name of the family."""
    classes: Mapping[str, type[PreTrainedModel]]
    """Hugging Face `model_type` -> model class with an LM head."""
    layout: Layout
    """Where its modules are."""
    states: Callable[[FamilyModel, Inputs], Tensor]
    """(model, inputs) -> the states from which answers are read; see `Inputs.read`."""
    decoder: Callable[[FamilyModel, Inputs], Decoder] | None = None
    """(model, inputs) -> answers in generation; None for an encoder, which cannot generate."""
    head: str = "lm_head"
    """Path of the linear map from states to vocabulary."""
    transform: Callable[[FamilyModel, Tensor], Tensor] = lambda model, states: states
    """(model, states) -> the input of the head."""
    mean_pool: bool = False
    """Whether a classification head reads the mean state: in an encoder every position sees the whole text, and the
    state at the answer is pretrained to name a word."""
    answer_offset: int = 1
    """See `Inputs`."""
    special_tokens: Callable[[PreTrainedTokenizerBase], SpecialTokens] = lambda tokenizer: SpecialTokens()
    """Tokenizer -> the tokens around a text."""
    last_attention: Callable[[PretrainedConfig], str | None] = lambda config: None
    """Config -> path of the last attention, whose forward method takes `query_positions` [rows, k], the positions that
    are computed from there on; None if the family always computes all positions."""
    install_kernels: Callable[[FamilyModel], None] = lambda model: None
    """Replaces slow modules of the library by fast kernels, which are equal within float tolerance."""
    extend_positions: Callable[[Any, Callable, int, int], Callable] = lambda attention, forward, count, longest: forward
    """(self-attention, its forward method, key-value pairs in front of its text, most pairs of an attention) -> a
    forward method whose biases of attention scores include the pairs; for families whose attentions get such biases."""
    untie_head: Callable[[FamilyModel], None] = lambda model: None
    """Gives a model that was made from a configuration a separate head, if its checkpoints have one."""

    def class_of(self, config: PretrainedConfig) -> type[PreTrainedModel]:
        """Return the model class for a configuration of this family."""
        return self.classes[config.model_type]

    def project(self, model: PreTrainedModel, transformed: Tensor, vocab_ids: Tensor | None) -> Tensor:
        """Compute the logits of vocabulary ids.

        Those of a few words are computed in float32, and those of the whole vocabulary in the PLM's dtype.

        Args:
            model: the library's model.
            transformed: transformed states, shape [rows, d].
            vocab_ids: vocabulary ids, shape [k]. None: the whole vocabulary.

        Returns:
            Logits in float32, shape [rows, k].
        """
        head: Any = model.get_submodule(self.head)
        if vocab_ids is None:
            return F.linear(transformed, head.weight, head.bias).float()
        bias = None if head.bias is None else head.bias[vocab_ids].float()
        return F.linear(transformed.float(), head.weight[vocab_ids].float(), bias)

    @property
    def head_module(self) -> str:
        """Name of the model's top-level module that contains the head."""
        return self.head.partition(".")[0]

    def drop_lm_head(self, model: PreTrainedModel) -> None:
        """Delete the LM head of a model that gets a classification head."""
        delattr(model, self.head_module)

    @property
    def input(self) -> str:
        """Place at which a text enters: the encoder's input if there is one."""
        names = [spec.name for spec in self.layout.outer if spec.kind == "input"]
        return "encoder.input" if "encoder.input" in names else names[0]

    def all_blocks(self, model: PreTrainedModel) -> list[nn.Module]:
        """Return the blocks of all stacks of a model."""
        return [block for path, _ in self.layout.blocks.values() for block in blocks_of(model, path)]

    def module_specs(self, model: PreTrainedModel) -> list[ModuleSpec]:
        """List the modules of a model, with full names and paths.

        Args:
            model: A model of this family, with or without its LM head.

        Returns:
            The modules that the model has.

        Raises:
            ModelError: The model lacks a module that is not optional.
        """
        has_head = hasattr(model, self.head_module)
        num_blocks = {stack: len(blocks_of(model, path)) for stack, (path, _) in self.layout.blocks.items()}
        specs = self.layout.module_specs(num_blocks)
        specs = [spec for spec in specs if has_head or spec.module.partition(".")[0] != self.head_module]
        modules = {name for name, _ in model.named_modules()}
        missing = [spec.module for spec in specs if spec.module not in modules and not spec.optional]
        if missing:
            raise ModelError(
                f"model_type {model.config.model_type} (family {self.name}): missing module {missing[0]!r}."
            )
        return [spec for spec in specs if spec.module in modules]
