"""Updates of a module's output that stand in for updates of its frozen parameters: y(W) + y(Δ), rounded separately.

W + θ in bfloat16 loses every θ below 1/256 of its W. If a PLM is not in float32, its weights therefore stay as they
are, and θ acts on the same inputs as the weights do: the product with θ keeps its own digits, and only the sum is
rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from apet.tuning.structures import SparseUpdate, adapter_update

OutputUpdate = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(input of a module, its output so far, values of a slice of θ) -> its new output."""


def add_rounded(y: Tensor, change: Tensor) -> Tensor:
    """Return y + change, rounded once to the dtype of y."""
    return (y + change).to(y.dtype)


def linear_entries(shape: tuple[int, ...], rows: Tensor | None, index: Tensor | None) -> OutputUpdate:
    """Make the update y + x Δᵀ by entries of a site, in the PLM's dtype.

    Args:
        shape: shape of the site, (d_out, d_in).
        rows: rows of the module's weight that belong to the site, shape [d_out]. None: all.
        index: flat indices of the entries, shape [n]. None: all.

    Returns:
        The update, from x, y and the values of the entries [n] to the new y.
    """

    def output_update(x: Tensor, y: Tensor, values: Tensor) -> Tensor:
        values = values.to(y.dtype)
        if index is not None:
            values = values.new_zeros(shape[0] * shape[1]).scatter(0, index, values)
        change = F.linear(x, values.view(shape))
        return y + change if rows is None else y.index_add(y.dim() - 1, rows, change)

    return output_update


def norm_entries(module: nn.Module, size: int, index: Tensor | None) -> OutputUpdate:
    """Make the update y + n θ by entries of a norm's weight [size], with the normalized input n, in float32."""
    if isinstance(module, nn.LayerNorm):
        normalize = lambda x: F.layer_norm(x, (size,), eps=module.eps)  # noqa: E731
    else:
        eps: Any = module.variance_epsilon
        normalize = lambda x: F.rms_norm(x, (size,), eps=eps)  # noqa: E731
    return lambda x, y, values: add_rounded(y, normalize(x.float()) * scatter_vector(values, size, index))


def bias_entries(rows: Tensor | None, index: Tensor | None) -> OutputUpdate:
    """Make the update y + θ by scalars of an output's bias, in float32."""
    if rows is not None:
        index = rows if index is None else rows[index]
    return lambda x, y, values: add_rounded(y, scatter_vector(values, y.shape[-1], index))


def embedding_entries(shape: tuple[int, ...], index: Tensor | None) -> OutputUpdate:
    """Make the update y + Δ[ids] by entries of an embedding [vocab, d], whose input is ids, in float32."""
    sparse = SparseUpdate(shape, index)
    return lambda ids, y, values: add_rounded(y, sparse.rows(ids, values))


def adapter(shape: tuple[int, ...]) -> OutputUpdate:
    """Make the update y + GELU(y Dᵀ + c) U by the hidden units of an adapter at a site (d,), in the PLM's dtype."""
    return lambda x, y, values: y + adapter_update(y, values.to(y.dtype), shape)


def scatter_vector(values: Tensor, size: int, index: Tensor | None) -> Tensor:
    """Return a vector [size] with values at the indices (None: everywhere) and zeros elsewhere."""
    return values if index is None else values.new_zeros(size).scatter(0, index, values)
