"""Tensors that contain values of θ: copies of small parameters, factors, vectors. One operation makes all of a block.

A plan may touch a hundred places with a few scalars each. To copy, scatter, cast and differentiate each of them
separately would take longer than the products of a small PLM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import prod
from typing import Any

import torch
from torch import Tensor

from apet.tuning.theta import ThetaSlice, split_to_sizes

TensorKey = tuple[str, str]
"""(path of a module, name of a tensor that acts there)."""

Key = TensorKey | int
"""Key of a tensor, or number of a slice of θ that acts as it is."""

Values = dict[Key, Tensor]
"""What acts in a forward pass: tensors that contain values of θ, and slices of θ."""


@dataclass(frozen=True)
class Segment:
    """Neighboring slices of θ of one structure in one block."""

    block: int | None
    """Index of the block; None outside the blocks, and for all slices of a PLM on one device."""
    structure: str
    """The structure."""
    sizes: Mapping[int, int]
    """Number of a slice -> its parameters."""

    @property
    def size(self) -> int:
        """Parameters of all slices."""
        return sum(self.sizes.values())


def segments(slices: Sequence[ThetaSlice], blocks: Sequence[int | None]) -> list[Segment]:
    """Divide θ into segments, in the order of θ.

    Args:
        slices: θ's layout.
        blocks: Index of the block of each slice.

    Returns:
        The segments.
    """
    runs = groupby(range(len(slices)), lambda number: (blocks[number], slices[number].units.site.structure))
    return [Segment(*key, {number: slices[number].stop - slices[number].start for number in run}) for key, run in runs]


@dataclass
class ScatteredTensors:
    """The tensors of a block that contain values of θ, float32: frozen numbers, to some of which values are added."""

    shapes: dict[TensorKey, tuple[int, ...]] = field(default_factory=dict)
    """Shapes of the tensors. Their numbers follow one another."""
    frozen: dict[TensorKey, Callable[[], Tensor]] = field(default_factory=dict)
    """Functions that return the frozen numbers, flat."""
    starts: dict[TensorKey, int] = field(default_factory=dict)
    """Position of the first number of each tensor."""
    positions: dict[int, Tensor] = field(default_factory=dict)
    """Number of a slice of θ -> the position of each of its values. No two values have the same position."""
    merged_maps: list[str] = field(default_factory=list)
    """Paths of linear maps whose factors `a` and `u` are added to their `weight`."""

    def add(self, key: TensorKey, shape: tuple[int, ...], frozen: Callable[[], Tensor]) -> int:
        """Add a tensor, unless it is there.

        Args:
            key: Key of the tensor.
            shape: Shape of the tensor.
            frozen: Returns the frozen numbers, flat.

        Returns:
            Position of its first number.
        """
        if key not in self.starts:
            self.starts[key] = sum(map(prod, self.shapes.values()))
            self.frozen[key], self.shapes[key] = frozen, shape
        return self.starts[key]

    def __call__(self, values: Tensor, positions: Tensor) -> Iterable[tuple[TensorKey, Tensor]]:
        """Make the tensors.

        Args:
            values: Values of θ.
            positions: Their positions.

        Returns:
            Keys and tensors.
        """
        return zip(self.shapes, _AddAt.apply(values, positions, self), strict=True)


class ThetaReader:
    """A function from θ to what acts in a forward pass, or in one block of it.

    Args:
        read: Segments of θ that are read.
        tensors: The tensors that contain values of θ. A slice without positions in them acts as it is.
    """

    def __init__(self, read: Sequence[Segment], tensors: ScatteredTensors):
        self.tensors = tensors
        # The values of neighboring slices that are scattered stay together, under the key None.
        self.sizes: list[tuple[int | None, int]] = []
        for segment in read:
            for key, run in groupby(segment.sizes, lambda number: None if number in tensors.positions else number):
                self.sizes.append((key, sum(segment.sizes[number] for number in run)))
        positions = [tensors.positions[number] for number in sorted(tensors.positions)]
        self.positions = torch.cat(positions) if positions else None

    def __call__(self, theta: Sequence[Tensor]) -> Values:
        """Read consecutive tensors of θ, each of which holds one or more complete segments."""
        parts = split_to_sizes(theta, [size for _, size in self.sizes])
        keyed = [(key, part) for (key, _), part in zip(self.sizes, parts, strict=True)]
        values: Values = {key: part for key, part in keyed if key is not None}
        if self.positions is not None:
            values.update(self.tensors(torch.cat([part for key, part in keyed if key is None]), self.positions))
        return values


class _AddAt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, positions: Tensor, tensors: ScatteredTensors) -> tuple[Tensor, ...]:
        flat = torch.cat([frozen() for frozen in tensors.frozen.values()]).index_add_(0, positions, values)
        parts = flat.split([prod(shape) for shape in tensors.shapes.values()])
        made = {key: part.view(shape) for (key, shape), part in zip(tensors.shapes.items(), parts, strict=True)}
        for path in tensors.merged_maps:
            made[path, "weight"].addmm_(made[path, "u"].T, made[path, "a"])
        ctx.tensors = tensors
        ctx.save_for_backward(positions, *(made[path, name] for path in tensors.merged_maps for name in ("a", "u")))
        return tuple(made.values())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        positions, *factors = ctx.saved_tensors
        found = dict(zip(ctx.tensors.shapes, gradients, strict=True))
        for path, a, u in zip(ctx.tensors.merged_maps, factors[::2], factors[1::2], strict=True):
            found[path, "a"], found[path, "u"] = u @ found[path, "weight"], a @ found[path, "weight"].T
        return torch.cat([gradient.flatten() for gradient in found.values()]).index_select(0, positions), None, None
