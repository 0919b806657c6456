"""Gradients of frozen parameters, each passed on as soon as it is complete, so that one exists at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

OnGradient = Callable[[nn.Module, str, Tensor], None]
"""(module, name of its parameter, gradient of a backward pass)."""


@contextmanager
def frozen_gradients(parameters: Mapping[nn.Module, Sequence[str]], on_gradient: OnGradient) -> Iterator[None]:
    """Observe the gradients of frozen parameters in all backward passes within the context.

    While a module computes, a leaf tensor that shares the memory of its parameter takes the parameter's place. The
    parameter itself stays frozen, so a sharded PLM, too, is as in training.

    Args:
        parameters: Names of parameters by module.
        on_gradient: Called once for each parameter in each backward pass. It may change the gradient in place.

    Yields:
        Nothing.
    """
    leaves: dict[tuple[nn.Module, str], Tensor] = {}

    def pass_on(module: nn.Module, name: str, leaf: Tensor) -> None:
        assert leaf.grad is not None
        gradient, leaf.grad = leaf.grad, None
        on_gradient(module, name, gradient)

    def show_leaves(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        for name in parameters[module]:
            if (module, name) not in leaves:
                leaf = module.get_parameter(name).detach().requires_grad_()
                leaf.register_post_accumulate_grad_hook(partial(pass_on, module, name))
                leaves[module, name] = leaf
            vars(module)[name] = leaves[module, name]

    def hide_leaves(module: nn.Module, *_: object) -> None:
        for name in parameters[module]:
            vars(module).pop(name, None)

    handles = [module.register_forward_pre_hook(show_leaves) for module in parameters]
    # A block that recomputes its activations may end with an exception within a module.
    handles += [module.register_forward_hook(hide_leaves, always_call=True) for module in parameters]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
