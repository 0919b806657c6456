"""A tuned PLM in parts on several processes, each of which computes its rows of every batch.

The processes run in step: all are given whole batches and get the logits of whole batches back, so that whatever
follows from logits (losses, scores, which answers have ended) is the same everywhere, and nothing above this file knows
of more than one process. θ, its gradient and the optimiser's moments lie in parts too, as FSDP's parameters do: θ is
gathered in the block that reads it, forgotten behind it, and gathered again for its backward pass, where each process
gets the sum of all gradients of its own part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

from apet.models.families import Inputs, blocks_of
from apet.models.loading import PLM
from apet.models.sharding import empty_like_shape, full_tensor, is_main_process
from apet.placement.plans import Plan
from apet.tuning.gradient_checkpointing import ForwardContext
from apet.tuning.theta import cut, initial_theta, split_by_structure
from apet.tuning.tuned_plm import GenerationState, TunedPLM


@dataclass(frozen=True)
class Segment:
    """Neighbours in θ of one structure in one block (None: outside the blocks), which are gathered together."""

    block: int | None
    structure: str
    slots: range
    sizes: tuple[int, ...]


class ShardedPLM(TunedPLM):
    """A TunedPLM whose PLM is in parts; its θ must be, see `leaves` and `spread`: a part of it for every segment.

    What a block makes of θ is as large as the block, so it is made again in the backward pass with the activations.
    """

    def __init__(self, plm: PLM, plan: Plan):
        assert plm.whole is not None and plm.mesh is not None
        self.whole, self.mesh = plm.whole, plm.mesh
        with torch.device(self.mesh.device_type):
            super().__init__(plm, plan, checkpointing=True)
        self.segments = tuple(self._segments())

    def leaves(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, part in parts.items():
            sizes = [sum(s.sizes) for s in self.segments if s.structure == name]
            pieces = self._sharded(cut([part], sizes or [len(part)]))
            names = [f"{name}.{number}" for number in range(len(sizes))] or [name]
            found |= {key: piece.requires_grad_() for key, piece in zip(names, pieces, strict=True)}
        return found

    def spread(self, parts: Sequence[Tensor]) -> list[Tensor]:
        theta, heads = (parts[:-1], parts[-1:]) if self.plm.head == "classification" else (parts, ())
        return self._sharded([*cut(theta, [sum(s.sizes) for s in self.segments]), *heads])

    def __call__(
        self,
        theta: Sequence[Tensor],
        ids: Tensor,
        lengths: Tensor,
        words: Tensor | None,
        said: Tensor | None = None,
        every: bool = False,
    ) -> Tensor:
        if self.plm.head == "classification":
            theta = [*theta[:-1], _gathered(theta[-1])]
        own = self.own(len(ids))
        said = None if said is None else said[own]
        return self.whole(self._joined, super().__call__, theta, ids[own], lengths[own], words, said, every)[: len(ids)]

    @contextmanager
    def merged_for_inference(self, theta: Sequence[Tensor]) -> Iterator[None]:
        """Nothing: what a block makes of θ would not fit beside the other blocks'."""
        yield

    def generate(self, theta: Sequence[Tensor], ids: Tensor, lengths: Tensor) -> GenerationState:
        own = self.own(len(ids))
        inputs, call = self.whole(self._prepared, theta, ids[own], lengths[own])
        return ShardedGenerationState(self, inputs, call, len(ids))

    def own(self, rows: int) -> Tensor:
        """The numbers of this process's rows; the last one stands for those that some process lacks."""
        each = -(-rows // self.mesh.size())
        first = self.mesh.get_local_rank() * each
        return torch.arange(first, first + each).clamp(max=rows - 1)

    def joined(self, logits: Tensor) -> Tensor:
        """Logits of all processes' rows from each one's own, on the CPU, where they are scored; a gradient goes back to
        who computed the row.
        """
        return DTensor.from_local(logits, self.mesh, [Shard(0)], run_check=False).full_tensor().cpu()

    def _joined(self, call: Callable[..., Tensor], *args: Any) -> Tensor:
        return self.joined(call(*args))

    def _segments(self) -> Iterator[Segment]:
        stacks = [path for path, _ in self.family.blocks.values()]
        blocks = [f"{path}.{i}." for path in stacks for i in range(len(blocks_of(self.model, path)))]
        module = {place.name: f"{place.module}." for place in self.family.places(self.model)}

        def key(number: int) -> tuple[int | None, str]:
            site = self.slots[number].units.site
            inside = (i for i, block in enumerate(blocks) if module[site.place].startswith(block))
            # Virtual tokens stand in front of the blocks.
            return next(inside, None), site.structure

        for (block, structure), run in groupby(range(len(self.slots)), key):
            numbers = list(run)
            sizes = tuple(self.slots[n].stop - self.slots[n].start for n in numbers)
            yield Segment(block, structure, range(numbers[0], numbers[-1] + 1), sizes)

    def _sharded(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        """Each process's part of each piece, of which the first process has the numbers."""
        return [distribute_tensor(piece, self.mesh, [Shard(0)]) for piece in pieces]

    def _prepared(self, theta: Sequence[Tensor], *args: Any) -> tuple[Inputs, ForwardContext]:
        inputs, call = super()._prepared(theta, *args)
        return inputs, replace(call, parts=tuple(theta))

    def _split(self, theta: Sequence[Tensor], block: int | None = None) -> tuple[Tensor | None, ...]:
        """Values of the slots in a block, or of those outside the blocks; None for all others."""
        pieces: list[Tensor | None] = [None] * len(self.slots)
        for segment, part in zip(self.segments, theta, strict=True):
            if segment.block == block:
                pieces[segment.slots.start : segment.slots.stop] = _gathered(part).split(segment.sizes)
        return tuple(pieces)

    def _inside(self, block: int, call: ForwardContext) -> ForwardContext:
        pieces = self._split(call.parts, block)
        return replace(call, theta_slices=pieces, stand_ins=self._stand_ins(pieces))


class ShardedGenerationState(GenerationState):
    """Answers of a batch of so many rows: a process goes on with all of its own until none is left anywhere."""

    tuned: ShardedPLM

    def __init__(self, tuned: ShardedPLM, inputs: Inputs, call: ForwardContext, rows: int):
        self.own, self.going, self.said = tuned.own(rows), torch.arange(rows), torch.zeros(rows, dtype=torch.long)
        tuned.whole(super().__init__, tuned, inputs, call)
        self._join()

    def step(self, tokens: Tensor, kept: Tensor) -> None:
        self.going = self.going[kept]
        self.said[self.going] = tokens
        self.logits = self.mine
        self.tuned.whole(super().step, self.said[self.own], torch.arange(len(self.own)))
        self._join()

    def _join(self) -> None:
        self.mine = self.logits
        self.logits = self.tuned.joined(self.mine)[self.going]


def start(plm: PLM, plan: Plan, seed: int) -> dict[str, Tensor]:
    """θ at step 0 by structure, which only the first of several processes has the numbers of."""
    words = full_tensor(plm.words).cpu() if plan.structures["token"] else plm.words
    if plm.mesh is None:
        return split_by_structure(plan, initial_theta(plan, seed, words))
    theta = initial_theta(plan, seed, words) if is_main_process() else empty_like_shape((plan.budget,))
    return split_by_structure(plan, theta)


def gather(parts: Sequence[Tensor]) -> Tensor:
    """Consecutive parts as one vector of its own, which only the first of several processes gets the numbers of."""
    found = []
    for part in parts:  # one after another, so that a device never holds more of θ than the largest
        numbers = full_tensor(part.detach())
        if is_main_process():
            found.append(numbers.cpu())
    if not is_main_process():
        return empty_like_shape((sum(map(len, parts)),))
    return torch.cat(found) if found else torch.zeros(0)


def _gathered(part: Tensor) -> Tensor:
    """All numbers of a part of θ, for as long as they are used; the gradients of all processes are added up."""
    assert isinstance(part, DTensor)
    return part.full_tensor(grad_placements=[Partial()])
