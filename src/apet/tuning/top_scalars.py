"""Choice of the scalars with the highest scores, over all sites of a PLM and all processes that share it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh

from apet.errors import ModelError
from apet.placement.sites import Site

Scores = Callable[[Site], Tensor]
"""Site -> scores ≥ 0 of its scalars, flat, float32; only those of `own_part` if the PLM is sharded."""

HALF = 16
"""Bits of a half of a float32 number."""
INFINITE = 0x7F80
"""Upper half of the bits of infinity. Those of NaN are as large or larger."""


def own_part(scalars: Tensor, mesh: DeviceMesh | None) -> Tensor:
    """Return the part of a flat tensor that this process scores: one of as many consecutive parts as processes."""
    return scalars if mesh is None else scalars.tensor_split(mesh.size())[mesh.get_local_rank()]


def top_scalars(
    sites: Sequence[Site],
    scores: Scores,
    count: int,
    mesh: DeviceMesh | None,
    release: Callable[[Site], object] = lambda site: None,
) -> dict[Site, np.ndarray]:
    """Choose the scalars with the highest scores. Ties go to the first site, and there to the first index.

    Scores ≥ 0 have the same order as their bits read as integers. A histogram of the upper half of the bits and one of
    the lower half find the lowest score that is chosen, without sorting and with little memory. Counts can be added
    over processes exactly, so that a sharded PLM gets the same scalars.

    Args:
        sites: Sites in canonical order, with at least `count` scalars together.
        scores: Scores of a site. It is called four times for each site, in the same order in all processes.
        count: Number of scalars to choose, at least 1.
        mesh: Processes that share the PLM; None for one process.
        release: Called when the scores of a site are not needed any more, before those of the next site are read for
            the last time. So scores and indices together take no more memory than the scores alone.

    Returns:
        Site -> flat, sorted indices, for sites with chosen scalars; int32 if the site is small enough. Equal in all
        processes.

    Raises:
        ModelError: A score is infinite or NaN.
    """
    upper = _histogram((_bits(scores(site)) >> HALF for site in sites), mesh)
    if upper[INFINITE:].any():
        raise ModelError("scores of the PLM's parameters: expected finite numbers, got infinite ones or NaN.")
    top, rest = _bin_of(upper, count)
    lower = _histogram((_lower_half(_bits(scores(site)), top) for site in sites), mesh)
    bottom, rest = _bin_of(lower, rest)
    lowest = (top << HALF) + bottom
    ties = _first_ties([int((_bits(scores(site)) == lowest).sum()) for site in sites], rest, mesh)
    chosen = []
    for site, n in zip(sites, ties, strict=True):
        indices = _at_least(_bits(scores(site)), lowest, n)
        chosen.append(indices.astype(np.int32 if site.units < 2**31 else np.int64))
        release(site)
    return {site: indices for site, indices in zip(sites, _joined(sites, chosen, mesh), strict=True) if len(indices)}


def _bits(scores: Tensor) -> Tensor:
    return scores.view(torch.int32)


def _lower_half(bits: Tensor, top: int) -> Tensor:
    """Return the lower halves of those bits whose upper half is `top`."""
    return bits[bits >> HALF == top] & ((1 << HALF) - 1)


def _histogram(halves: Iterable[Tensor], mesh: DeviceMesh | None) -> Tensor:
    """Count the halves [scalars] of all sites and processes by value."""
    counts = torch.zeros(1 << HALF, dtype=torch.long)
    for values in halves:
        counts += torch.bincount(values, minlength=1 << HALF).cpu()
    if mesh is not None:
        counts = counts.to(mesh.device_type)
        distributed.all_reduce(counts)
    return counts.cpu()


def _bin_of(histogram: Tensor, count: int) -> tuple[int, int]:
    """Find the bin of the count-th highest number, and how many numbers of this bin are among the `count` highest."""
    from_top = histogram.flip(0).cumsum(0)
    position = int(torch.searchsorted(from_top, count))
    before = int(from_top[position - 1]) if position else 0
    return len(histogram) - 1 - position, count - before


def _at_least(bits: Tensor, lowest: int, ties: int) -> np.ndarray:
    """Return the sorted indices of numbers above the lowest one that is chosen, and of its first `ties` equals."""
    equal = (bits == lowest).nonzero().flatten()[:ties]
    return torch.cat(((bits > lowest).nonzero().flatten(), equal)).sort().values.cpu().numpy()


def _first_ties(counts: Sequence[int], rest: int, mesh: DeviceMesh | None) -> list[int]:
    """Return how many of this process's ties at each site are among the first `rest` ties of all processes."""
    by_process = np.array(_gathered(counts, mesh)).T  # [sites, processes], the order of positions
    before = np.cumsum(by_process).reshape(by_process.shape) - by_process
    process = 0 if mesh is None else mesh.get_local_rank()
    return np.clip(rest - before, 0, by_process)[:, process].tolist()


def _joined(sites: Sequence[Site], chosen: Sequence[np.ndarray], mesh: DeviceMesh | None) -> list[np.ndarray]:
    """Join the indices within the parts of all processes to indices within sites."""
    if mesh is None:
        return list(chosen)
    by_process = _gathered(chosen, mesh)
    joined = []
    for number, site in enumerate(sites):
        each, longer = divmod(site.units, len(by_process))  # as `tensor_split` divides
        starts = (process * each + min(process, longer) for process in range(len(by_process)))
        joined.append(np.concatenate([part[number] + start for part, start in zip(by_process, starts, strict=True)]))
    return joined


def _gathered(value: Sequence, mesh: DeviceMesh | None) -> list:
    """Return the value of each process."""
    if mesh is None:
        return [value]
    values: list = [None] * mesh.size()
    distributed.all_gather_object(values, value)
    return values
