"""The state of one forward pass of a tuned PLM, and blocks that recompute their activations in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from apet.tuning.scattered import Values

ParameterOverrides = tuple[tuple[nn.Module, str, Tensor], ...]
"""(module, name of a parameter, tensor that replaces it during a forward pass)."""


@dataclass(frozen=True)
class ForwardContext:
    """The inputs of the hooks in one forward pass."""

    values: Values = field(default_factory=dict)
    """Tensors that contain values of θ, by what they act on."""
    position: Tensor | None = None
    """Positions [rows, k] at which each row is read."""
    overrides: ParameterOverrides = ()
    """Tensors that replace parameters."""
    theta: tuple[Tensor, ...] = ()
    """θ as it was passed, if each block gathers its own slices."""


class ContextStack:
    """The context of the forward pass in progress.

    Hooks read the context from here, so that a block that is recomputed in the backward pass gets its own.
    """

    def __init__(self) -> None:
        self.current = ForwardContext()

    @contextmanager
    def active(self, context: ForwardContext) -> Iterator[None]:
        """Make a context the current one and apply its overrides."""
        if context is self.current:
            yield
            return
        previous, self.current = self.current, context
        # An attribute of the instance hides the parameter of that name, which stays registered and unchanged.
        for module, name, value in context.overrides:
            vars(module)[name] = value
        try:
            yield
        finally:
            self.current = previous
            for module, name, _ in context.overrides:
                vars(module).pop(name, None)


class ReplacedForward:
    """A module whose forward method is replaced until `remove`."""

    def __init__(self, module: nn.Module, forward: Callable):
        self.module, self.before = module, vars(module).get("forward")
        module.forward = forward

    def remove(self) -> None:
        """Restore the method of the class, or the kernel that replaced it before."""
        del vars(self.module)["forward"]
        if self.before is not None:
            self.module.forward = self.before


class CheckpointedBlocks:
    """Blocks whose activations are recomputed in the backward pass (Chen et al. 2016).

    `enter_block` maps the index of a block and the context of the forward pass to the context inside the block.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        contexts: ContextStack,
        enter_block: Callable[[int, ForwardContext], ForwardContext],
    ):
        self.contexts, self.enter_block = contexts, enter_block
        self.replaced = [
            ReplacedForward(block, partial(self._forward, number, block.forward)) for number, block in enumerate(blocks)
        ]

    def remove(self) -> None:
        """Restore the forward method of the blocks."""
        for replaced in self.replaced:
            replaced.remove()

    def _forward(self, number: int, forward: Callable, *args: Any, **kwargs: Any) -> Any:
        run = partial(self._run, number, forward, self.contexts.current)
        if not torch.is_grad_enabled():
            return run(*args, **kwargs)
        # A frozen PLM has no active dropout, so there is no random state to restore.
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    def _run(self, number: int, forward: Callable, context: ForwardContext, *args: Any, **kwargs: Any) -> Any:
        with self.contexts.active(self.enter_block(number, context)):
            return forward(*args, **kwargs)
