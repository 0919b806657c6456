"""Plans of informed placements: the scalars of a PLM with the highest scores.

- magnitude: |w|.
- gradient: |Σ ∂loss/∂w| over training rows at step 0, as in SHiRA-Grad (Bhardwaj et al., NeurIPS 2024). SNIP (Lee et
  al., ICLR 2019) multiplies it by |w|, because it removes weights.
- fisher: Σ (∂loss/∂w)² over training rows at step 0, as in FISH masks (Sung et al., NeurIPS 2021): the diagonal of the
  empirical Fisher information.

Rows are read one by one, so that the numbers do not depend on batches, padding or the number of processes. The scores
take the memory of one float32 gradient of the candidates, which the processes of a sharded PLM share; beside them
there is one parameter's gradient at a time. The indices of a parameter's chosen scalars take the place of its scores.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from apet.evaluation import EncodedSplit, Objective
from apet.models.loading import PLM
from apet.models.sharding import full_tensor
from apet.placement import PLACEMENTS, MethodSizes, Plan, Units, check_gradients, check_plan, informed_sites
from apet.placement.sites import Site
from apet.tuning import untuned
from apet.tuning.frozen_gradients import frozen_gradients
from apet.tuning.top_scalars import Scores, own_part, top_scalars
from apet.tuning.tuned_plm import rows_of


@dataclass(frozen=True)
class Calibration:
    """The training rows from which `gradient` and `fisher` compute scores."""

    data: EncodedSplit
    """The training split."""
    objective: Objective
    """The loss."""
    loss: str
    """The key `training.loss` of a study."""
    num_samples: int
    """Number of rows."""

    def rows(self, seed: int) -> Tensor:
        """Return the numbers of the rows in ascending order: all of them if there are no more than `num_samples`."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(len(self.data), generator=generator)[: self.num_samples].sort().values


def informed_plan(plm: PLM, placement: str, budget: int, seed: int, calibration: Calibration | None = None) -> Plan:
    """Make the plan of an informed placement.

    Args:
        plm: The PLM, which may be sharded. All processes must call this at the same time.
        placement: Name of an informed placement.
        budget: Number of trainable parameters.
        seed: Seed of the choice of rows. `magnitude` reads no rows.
        calibration: The training rows; not needed for `magnitude`.

    Returns:
        A plan of exactly `budget` scalars, equal in all processes. Ties go to the first position.

    Raises:
        BudgetError: The PLM has fewer candidates than the budget.
        ConfigError: The PLM has a classification head, whose gradients are 0 at step 0.
        ModelError: A score is not finite.
    """
    check_plan(plm.inventory, placement, budget, MethodSizes())
    sites = informed_sites(plm.inventory)
    if PLACEMENTS.informed[placement]:
        check_gradients(placement, plm.name, plm.head)
        assert calibration is not None
        squared = placement == "fisher"
        by_site = gradient_scores(plm, sites, calibration, calibration.rows(seed), squared)
        chosen = top_scalars(sites, by_site.__getitem__, budget, plm.mesh, release=by_site.pop)
    else:
        chosen = top_scalars(sites, magnitudes(plm, sites), budget, plm.mesh)
    units = (Units(s, len(i), None if len(i) == s.units else i.astype(np.int64)) for s, i in chosen.items())
    return Plan(placement, budget, seed, tuple(units))


class Parameters:
    """The parameters that contain the scalars of some sites."""

    def __init__(self, plm: PLM, sites: tuple[Site, ...]):
        self.plm = plm
        specs = {spec.name: spec for spec in plm.family.module_specs(plm.model)}
        self.by_site: dict[Site, tuple[nn.Module, str]] = {}
        self.sites: dict[tuple[nn.Module, str], list[Site]] = defaultdict(list)
        self.rows: dict[Site, Tensor | None] = {}
        for site in sites:
            spec, name = specs[site.place], "weight" if site.structure == "entry" else "bias"
            module = plm.model.get_submodule(spec.module)
            self.by_site[site], self.rows[site] = (module, name), rows_of(spec, plm)
            self.sites[module, name].append(site)

    @property
    def names(self) -> dict[nn.Module, list[str]]:
        """Names of parameters by module."""
        names = defaultdict(list)
        for module, name in self.sites:
            names[module].append(name)
        return names

    def scalars(self, site: Site, parameter: Tensor) -> Tensor:
        """Return this process's scalars of a site in a tensor of the parameter's shape, flat, float32."""
        rows = self.rows[site]
        return own_part((parameter if rows is None else parameter[rows]).flatten(), self.plm.mesh).float()


def magnitudes(plm: PLM, sites: tuple[Site, ...]) -> Scores:
    """Return the scores |w|, computed from one parameter at a time."""
    parameters = Parameters(plm, sites)

    @torch.no_grad()
    def scores(site: Site) -> Tensor:
        module, name = parameters.by_site[site]
        return parameters.scalars(site, full_tensor(module.get_parameter(name))).abs()

    return scores


def gradient_scores(
    plm: PLM, sites: tuple[Site, ...], calibration: Calibration, rows: Tensor, squared: bool
) -> dict[Site, Tensor]:
    """Compute scores from the gradient of the loss of each row at step 0.

    Args:
        plm: The PLM.
        sites: Sites of the scalars.
        calibration: Rows and loss.
        rows: Numbers of the rows.
        squared: Whether to add up squares, as in `fisher`, or gradients, as in `gradient`.

    Returns:
        Site -> the sum of squares, or the absolute value of the sum, as `Scores` returns it.
    """
    parameters = Parameters(plm, sites)
    sums = {site: torch.zeros(_part_size(site, plm), device=plm.device) for site in sites}

    def add(module: nn.Module, name: str, gradient: Tensor) -> None:
        for site in parameters.sites[module, name]:
            values = parameters.scalars(site, gradient)
            sums[site].addcmul_(values, values) if squared else sums[site].add_(values)

    with untuned(plm) as model, frozen_gradients(parameters.names, add):
        for row in rows.split(1):
            calibration.objective.loss(model, [], calibration.data, row, calibration.loss).backward()
    if not squared:
        for values in sums.values():
            values.abs_()
    return sums


def _part_size(site: Site, plm: PLM) -> int:
    return len(own_part(torch.empty(site.units, device="meta"), plm.mesh))
