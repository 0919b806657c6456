"""Plans with a few or many units at every site, and θ for them."""

from __future__ import annotations

import numpy as np
import torch

from apet.models.loading import PLM
from apet.placement import Plan, Units
from apet.placement.sites import SCALARS
from tiny import WORDS

NOTHING = Plan("none", 0, 0, ())


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(WORDS, (4, 9), generator=generator), torch.tensor([9, 7, 8, 9])


def plan_of(plm: PLM, structure: str, many: bool = False) -> Plan:
    """Take a few units, or enough entries for dense updates, at every site of a structure or of all structures."""
    units = []
    for site in plm.inventory.sites:
        if structure not in (site.structure, "all"):
            continue
        count = min(2, site.units)
        if many and site.structure in SCALARS:
            units.append(Units(site, site.units))
        elif site.structure in SCALARS:
            row = int(batch()[0][0, 0]) * (site.shape[1] if site.place.endswith("embedding") else 0)
            units.append(Units(site, count, np.array([row, row + 1])[:count]))
        else:
            units.append(Units(site, count))
    return Plan("test", sum(u.size for u in units), 0, tuple(units))


def theta_of(plan: Plan, scale: float = 0.05) -> torch.Tensor:
    return (scale * torch.randn(plan.budget, generator=torch.Generator().manual_seed(2))).requires_grad_()
