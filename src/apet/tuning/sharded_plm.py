"""A tuned PLM that is sharded over several processes, each of which computes its own rows of every batch.

All processes get complete batches and return the logits of complete batches. Losses, scores and the ends of answers,
which follow from logits, are therefore the same everywhere, and no code above this module handles several processes.
θ, its gradient and the optimizer's moments are sharded like FSDP's parameters: a block gathers its slices of θ, frees
them, and gathers them again for its backward pass, in which each process gets the summed gradient of its own shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

from apet.models.families import Inputs, blocks_of
from apet.models.loading import PLM
from apet.models.sharding import empty_like_shape, full_tensor, is_main_process
from apet.placement.plans import Plan
from apet.tuning.gradient_checkpointing import ForwardContext
from apet.tuning.prefixes import initial_pairs
from apet.tuning.scattered import Values
from apet.tuning.theta import initial_theta, split_by_structure, split_to_sizes
from apet.tuning.tuned_plm import GenerationState, TunedPLM


class ShardedPLM(TunedPLM):
    """A `TunedPLM` whose PLM and θ are sharded. θ is one sharded tensor a segment (see `leaves` and `distribute`).

    Tensors that a block computes from θ are as large as the block. They are therefore recomputed in the backward pass,
    together with the activations.
    """

    def __init__(self, plm: PLM, plan: Plan):
        assert plm.root_unit is not None and plm.mesh is not None
        self.root_unit, self.mesh = plm.root_unit, plm.mesh
        stacks = [path for path, _ in plm.family.layout.blocks.values()]
        self.block_paths = [f"{path}.{i}." for path in stacks for i in range(len(blocks_of(plm.model, path)))]
        with torch.device(self.mesh.device_type):
            super().__init__(plm, plan, gradient_checkpointing=True)

    def leaves(self, theta_by_structure: Mapping[str, Tensor]) -> dict[str, Tensor]:
        leaves: dict[str, Tensor] = {}
        for name, values in theta_by_structure.items():
            sizes = [s.size for s in self.segments if s.structure == name]
            shards = self._shard(split_to_sizes([values], sizes or [len(values)]))
            names = [f"{name}.{number}" for number in range(len(sizes))] or [name]
            leaves |= {key: shard.requires_grad_() for key, shard in zip(names, shards, strict=True)}
        return leaves

    def distribute(self, theta: Sequence[Tensor]) -> list[Tensor]:
        theta, heads = (theta[:-1], theta[-1:]) if self.plm.head == "classification" else (theta, ())
        return self._shard([*split_to_sizes(theta, [s.size for s in self.segments]), *heads])

    def __call__(
        self,
        theta: Sequence[Tensor],
        ids: Tensor,
        lengths: Tensor,
        vocab_ids: Tensor | None,
        answer_ids: Tensor | None = None,
        all_positions: bool = False,
    ) -> Tensor:
        if self.plm.head == "classification":
            theta = [*theta[:-1], _gather(theta[-1])]
        own = self.own_rows(len(ids))
        answer_ids = None if answer_ids is None else answer_ids[own]
        arguments = theta, ids[own], lengths[own], vocab_ids, answer_ids, all_positions
        return self.root_unit(self._call_and_join, super().__call__, *arguments)[: len(ids)]

    @contextmanager
    def merged_for_inference(self, theta: Sequence[Tensor]) -> Iterator[None]:
        """Do nothing, because merged weights of all blocks would not fit into memory together."""
        yield

    def generate(self, theta: Sequence[Tensor], ids: Tensor, lengths: Tensor) -> GenerationState:
        own = self.own_rows(len(ids))
        inputs, context = self.root_unit(self._prepare, theta, ids[own], lengths[own], None, False)
        return ShardedGenerationState(self, inputs, context, len(ids))

    def own_rows(self, rows: int) -> Tensor:
        """Choose this process's rows of a batch, as many in all processes; the last row of the batch fills gaps."""
        each = -(-rows // self.mesh.size())
        first = self.mesh.get_local_rank() * each
        return torch.arange(first, first + each).clamp(max=rows - 1)

    def join(self, logits: Tensor) -> Tensor:
        """Collect the logits of all processes' rows on the CPU for scoring; gradients return to their process."""
        return DTensor.from_local(logits, self.mesh, [Shard(0)], run_check=False).full_tensor().cpu()

    def _call_and_join(self, call: Callable[..., Tensor], *args: Any) -> Tensor:
        return self.join(call(*args))

    def _block_of(self, module: str) -> int | None:
        return next((number for number, path in enumerate(self.block_paths) if module.startswith(path)), None)

    def _shard(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Shard tensors whose values only the main process needs to have."""
        return [distribute_tensor(tensor, self.mesh, [Shard(0)]) for tensor in tensors]

    def _prepare(self, theta: Sequence[Tensor], *args: Any) -> tuple[Inputs, ForwardContext]:
        inputs, context = super()._prepare(theta, *args)
        return inputs, replace(context, theta=tuple(theta))

    def _values(self, theta: Sequence[Tensor], block: int | None = None) -> Values:
        shards = zip(self.segments, theta, strict=True)
        return self.readers[block]([_gather(shard) for segment, shard in shards if segment.block == block])

    def _enter_block(self, block: int, context: ForwardContext) -> ForwardContext:
        values, overrides = self._values_and_overrides(context.theta, block)
        return replace(context, values=values, overrides=overrides)


class ReplicatedRowsPLM(ShardedPLM):
    """A `ShardedPLM` in which every process computes all rows, and so the complete gradient of a frozen parameter."""

    def own_rows(self, rows: int) -> Tensor:
        return torch.arange(rows)

    def join(self, logits: Tensor) -> Tensor:
        return logits


class ShardedGenerationState(GenerationState):
    """Answers in generation on several processes. Each process continues all of its rows until every answer has ended.

    Args:
        tuned: The tuned PLM.
        inputs: The prompts of this process's rows.
        context: Context of the forward passes.
        rows: Rows of the batch.

    Attributes:
        tuned: The tuned PLM.
    """

    tuned: ShardedPLM

    def __init__(self, tuned: ShardedPLM, inputs: Inputs, context: ForwardContext, rows: int):
        self.own_rows = tuned.own_rows(rows)
        self.active, self.last_tokens = torch.arange(rows), torch.zeros(rows, dtype=torch.long)
        tuned.root_unit(super().__init__, tuned, inputs, context)
        self._join()

    def step(self, tokens: Tensor, active: Tensor) -> None:
        self.active = self.active[active]
        self.last_tokens[self.active] = tokens
        self.logits = self.own_logits
        self.tuned.root_unit(super().step, self.last_tokens[self.own_rows], torch.arange(len(self.own_rows)))
        self._join()

    def _join(self) -> None:
        self.own_logits = self.logits
        self.logits = self.tuned.join(self.own_logits)[self.active]


def initial_theta_by_structure(plm: PLM, plan: Plan, seed: int) -> dict[str, Tensor]:
    """Initialize θ on the main process.

    Args:
        plm: The PLM, which may be sharded. It must not be tuned at the moment, because a prefix runs it.
        plan: The plan.
        seed: Seed of the random values.

    Returns:
        Structure -> θ at step 0. On other processes the tensors have only the shape.
    """
    embeddings = full_tensor(plm.word_embeddings).cpu() if plan.structures["token"] else plm.word_embeddings
    pairs = initial_pairs(plm, plan, seed)
    if plm.mesh is None:
        return split_by_structure(plan, initial_theta(plan, seed, embeddings, pairs))
    theta = initial_theta(plan, seed, embeddings, pairs) if is_main_process() else empty_like_shape((plan.budget,))
    return split_by_structure(plan, theta)


def gather(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors of θ on the main process.

    Args:
        tensors: Consecutive tensors, which may be sharded.

    Returns:
        A new vector on the CPU. On other processes it has only the shape.
    """
    gathered = []
    for tensor in tensors:  # one by one, so that a device never holds more of θ than the largest tensor
        values = full_tensor(tensor.detach())
        if is_main_process():
            gathered.append(values.cpu())
    if not is_main_process():
        return empty_like_shape((sum(map(len, tensors)),))
    return torch.cat(gathered) if gathered else torch.zeros(0)


def _gather(shard: Tensor) -> Tensor:
    """Gather a shard of θ for as long as it is used; its gradient is summed over all processes."""
    assert isinstance(shard, DTensor)
    return shard.full_tensor(grad_placements=[Partial()])
