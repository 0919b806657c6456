"""Updates of a module's output: adapters, and updates that stand in for those of frozen parameters.

W + θ in bfloat16 loses every θ below 1/256 of its W. If a PLM is not in float32, its weights therefore stay as they
are, and θ acts on the same inputs as the weights do: the product with θ keeps its own digits, and only the sum is
rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apet.tuning.structures import SparseUpdate

OutputUpdate = Callable[..., Tensor]
"""(input of a module, its output so far, tensors that contain values of θ) -> its new output."""


def add_rounded(x: Tensor, y: Tensor, change: Tensor) -> Tensor:
    """Return y + change, rounded once to the dtype of y."""
    return (y + change).to(y.dtype)


def scale(x: Tensor, y: Tensor, factors: Tensor) -> Tensor:
    """Return y [..., d] times factors [d], rounded once to the dtype of y. The input x is not used."""
    return (y * factors).to(y.dtype)


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


def norm_entries(module: nn.Module) -> OutputUpdate:
    """Make the update y + n δ by the change δ [d] of a norm's weight, with the normalized input n, in float32."""
    if isinstance(module, nn.LayerNorm):
        normalize = lambda x: F.layer_norm(x, x.shape[-1:], eps=module.eps)  # noqa: E731
    else:
        eps: Any = module.variance_epsilon
        normalize = lambda x: F.rms_norm(x, x.shape[-1:], eps=eps)  # noqa: E731
    return lambda x, y, change: add_rounded(x, y, normalize(x.float()) * change)


def embedding_entries(shape: tuple[int, ...], index: Tensor | None) -> OutputUpdate:
    """Make the update y + Δ[ids] by entries of an embedding [vocab, d], whose input is ids, in float32."""
    sparse = SparseUpdate(shape, index)
    return lambda ids, y, values: add_rounded(ids, y, sparse.rows(ids, values))


def adapter(x: Tensor, y: Tensor, down: Tensor, inner: Tensor, up: Tensor) -> Tensor:
    """Compute y + GELU(y Dᵀ + c) U with the hidden units of an adapter, in the PLM's dtype.

    GELU, because a ReLU unit may start dead.

    Args:
        x: not used.
        y: hidden states, shape [..., d].
        down: D, shape [units, d].
        inner: c, shape [units, 1].
        up: U, shape [units, d].

    Returns:
        New hidden states, shape [..., d].
    """
    return _Adapter.apply(y, *(part.to(y.dtype) for part in (down, inner, up)))


class _Adapter(torch.autograd.Function):
    """Products with few rows, as in `low_rank_updates`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, down: Tensor, inner: Tensor, up: Tensor) -> Tensor:
        rows = y.reshape(-1, y.shape[-1])
        z = torch.addmm(inner, down, rows.T)
        hidden = F.gelu(z, approximate="tanh")
        ctx.save_for_backward(rows, down, up, z, hidden)
        return torch.addmm(rows, hidden.T, up).view_as(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        rows, down, up, z, hidden = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])
        dz = torch.ops.aten.gelu_backward(up @ flat.T, z, approximate="tanh")
        y_gradient = torch.addmm(flat, dz.T, down).view_as(gradient) if ctx.needs_input_grad[0] else None
        return y_gradient, dz @ rows, dz.sum(dim=1, keepdim=True), hidden @ flat
