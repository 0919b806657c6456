"""What a family must say about its architecture, and nothing else: where its parts are and how its output is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel


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
    kind: `linear`, `norm`, `embedding` (words), `head` (an LM head of its own) or `input` (a sequence's start).
    fused: which rows of a shared weight are this part. ends_block: an adapter goes behind it. inert_bias: a bias here
    cannot move the output (a key's, where the softmax cancels it).
    """

    name: str
    module: str
    kind: str
    fused: Fused | None = None
    ends_block: bool = False
    inert_bias: bool = False


@dataclass(frozen=True)
class Family:
    """An architecture.

    outer: places outside the blocks. blocks: canonical stack name -> (path of the list of blocks, places of a block).
    narrow: (config) -> path of the last module that needs every position when one position's output is read.
    states: (model, input embeddings [rows, length, d]) -> last hidden states [rows, length, d] (or [rows, 1, d] where
    the model was narrowed). logits: (model, states [rows, d], words [k]) -> logits of those words [rows, k].
    fuse: puts fast kernels in place of the library's slow ones, equal to float tolerance.
    """

    name: str
    model_type: str
    model_class: type[PreTrainedModel]
    outer: tuple[Place, ...]
    blocks: dict[str, tuple[str, tuple[Place, ...]]]
    narrow: Callable[[PretrainedConfig], str]
    states: Callable[[PreTrainedModel, Tensor], Tensor]
    logits: Callable[[PreTrainedModel, Tensor, Tensor], Tensor]
    fuse: Callable[[PreTrainedModel], None]

    def places(self, model: nn.Module) -> list[Place]:
        """All places of a model of this family, with full names and paths."""
        found = list(self.outer)
        for stack, (path, places) in self.blocks.items():
            for i in range(len(model.get_submodule(path))):
                for p in places:
                    name, module = f"{stack}.{i}.{p.name}", f"{path}.{i}.{p.module}"
                    found.append(Place(name, module, p.kind, p.fused, p.ends_block, p.inert_bias))
        return found
