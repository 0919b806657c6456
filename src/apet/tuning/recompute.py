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


@dataclass(frozen=True)
class Call:
    """pieces: θ slot by slot. position [rows, k]: where each row is read. stand_ins: (module, parameter, tensor)."""

    pieces: tuple[Tensor, ...] = ()
    position: Tensor | None = None
    stand_ins: tuple[tuple[nn.Module, str, Tensor], ...] = ()


class Calls:
    """The call under way. Hooks read it, so that a block that runs again in the backward pass sees its own call."""

    def __init__(self) -> None:
        self.now = Call()

    @contextmanager
    def during(self, call: Call) -> Iterator[None]:
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


class Recomputed:
    """Blocks whose activations are not kept for the backward pass but computed again (Chen et al. 2016)."""

    def __init__(self, blocks: Sequence[nn.Module], calls: Calls):
        self.blocks, self.calls = blocks, calls
        for block in blocks:
            block.forward = partial(self._forward, block.forward)

    def remove(self) -> None:
        """Give the blocks their own forward back."""
        for block in self.blocks:
            del vars(block)["forward"]

    def _forward(self, forward: Callable, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        run = partial(self._run, forward, self.calls.now)
        # No dropout is active in a frozen PLM, so there is no random state to restore.
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    def _run(self, forward: Callable, call: Call, *args: Any, **kwargs: Any) -> Any:
        with self.calls.during(call):
            return forward(*args, **kwargs)
