"""What one call of a tuned PLM works with, and blocks that compute their activations again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Pieces = tuple[Any, ...]
"""θ slot by slot: a tensor, or None where it is not at hand."""
ParameterOverrides = tuple[tuple[nn.Module, str, Tensor], ...]
"""(module, parameter, the tensor in its place during a call)."""


@dataclass(frozen=True)
class ForwardContext:
    """theta_slices: θ slot by slot, None where it is not at hand. position [rows, k]: where each row is read. merged: the
    stand-ins have small updates in them, where the PLM is in float32. parts: θ as it was given, where a block takes its
    pieces when it runs.
    """

    theta_slices: Pieces = ()
    position: Tensor | None = None
    stand_ins: ParameterOverrides = ()
    merged: bool = False
    parts: tuple[Tensor, ...] = ()


class ContextStack:
    """The call under way. Hooks read it, so that a block that runs again in the backward pass sees its own call."""

    def __init__(self) -> None:
        self.now = ForwardContext()

    @contextmanager
    def during(self, call: ForwardContext) -> Iterator[None]:
        """Make a call the one under way, its tensors in the place of the modules' parameters."""
        if call is self.now:
            yield
            return
        before, self.now = self.now, call
        # An attribute of the instance hides the parameter of that name, which stays registered and unchanged.
        for module, name, value in call.stand_ins:
            vars(module)[name] = value
        try:
            yield
        finally:
            self.now = before
            for module, name, _ in call.stand_ins:
                vars(module).pop(name, None)


class CheckpointedBlocks:
    """Blocks whose activations are not kept for the backward pass but computed again (Chen et al. 2016).

    inside: (number of a block, the call under way) -> the call that the block works with.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], calls: ContextStack, inside: Callable[[int, ForwardContext], ForwardContext]
    ):
        self.blocks, self.calls, self.inside = blocks, calls, inside
        for number, block in enumerate(blocks):
            block.forward = partial(self._forward, number, block.forward)

    def remove(self) -> None:
        """Give the blocks their own forward back."""
        for block in self.blocks:
            del vars(block)["forward"]

    def _forward(self, number: int, forward: Callable, *args: Any, **kwargs: Any) -> Any:
        run = partial(self._run, number, forward, self.calls.now)
        if not torch.is_grad_enabled():
            return run(*args, **kwargs)
        # No dropout is active in a frozen PLM, so there is no random state to restore.
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    def _run(self, number: int, forward: Callable, call: ForwardContext, *args: Any, **kwargs: Any) -> Any:
        with self.calls.during(self.inside(number, call)):
            return forward(*args, **kwargs)
