"""Updates of frozen scalars that stand beside them: y(W) + y(Δ), each rounded on its own.

W + θ in bfloat16 loses every θ below 1/256 of its W. So where a PLM is not in float32 its weights stay as they are, and
θ acts on what they multiply: θ's own product keeps θ's own digits, and only the sum of the two is rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from apet.tuning.structures import Sparse, update

OutputUpdate = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(input of a module, its output so far, a slot's values) -> its output."""


def added(y: Tensor, change: Tensor) -> Tensor:
    """y + change, rounded once to y's dtype."""
    return (y + change).to(y.dtype)


def linear_entries(shape: tuple[int, ...], rows: Tensor | None, index: Tensor | None) -> OutputUpdate:
    """Entries of a linear map of this shape, which may be some rows of the module's: y + x Δᵀ in the PLM's dtype."""

    def effect(x: Tensor, y: Tensor, values: Tensor) -> Tensor:
        values = values.to(y.dtype)
        if index is not None:
            values = values.new_zeros(shape[0] * shape[1]).scatter(0, index, values)
        change = F.linear(x, values.view(shape))
        return y + change if rows is None else y.index_add(y.dim() - 1, rows, change)

    return effect


def norm_entries(module: nn.Module, size: int, index: Tensor | None) -> OutputUpdate:
    """Entries of a norm's weight: y + n θ with n the normalised input, in float32."""
    if isinstance(module, nn.LayerNorm):
        normal = lambda x: F.layer_norm(x, (size,), eps=module.eps)  # noqa: E731
    else:
        eps: Any = module.variance_epsilon
        normal = lambda x: F.rms_norm(x, (size,), eps=eps)  # noqa: E731
    return lambda x, y, values: added(y, normal(x.float()) * scatter_vector(values, size, index))


def bias_entries(rows: Tensor | None, size: int, index: Tensor | None) -> OutputUpdate:
    """Scalars of an output's bias: y + θ, in float32."""
    if rows is not None:
        index = rows if index is None else rows[index]
    return lambda x, y, values: added(y, scatter_vector(values, y.shape[-1], index))


def embedding_entries(shape: tuple[int, ...], index: Tensor | None) -> OutputUpdate:
    """Entries of an embedding, whose input is ids: y + Δ[ids], in float32."""
    sparse = Sparse(shape, index)
    return lambda ids, y, values: added(y, sparse.rows(ids, values))


def adapter(shape: tuple[int, ...]) -> OutputUpdate:
    """Hidden units of an adapter, in the PLM's dtype."""
    return lambda x, y, values: y + update(y, values.to(y.dtype), shape)


def scatter_vector(values: Tensor, size: int, index: Tensor | None) -> Tensor:
    """A vector [size] with values at index (None: everywhere) and zeros elsewhere."""
    return values if index is None else values.new_zeros(size).scatter(0, index, values)
