"""What a plan takes, in words short enough for an error or a model card."""

from __future__ import annotations

from collections.abc import Sequence

from apet.placement import STRUCTURES, Plan, Units

FEW = 3
"""Sites that are named; of more, their number."""


def sites_said(units: Sequence[Units]) -> str:
    """Structures with their sites: `bias at 12 sites (decoder.0.attention.query, …), token at decoder.input`."""
    said = []
    for structure in STRUCTURES:
        places = [u.site.place for u in units if u.site.structure == structure]
        if len(places) == 1:
            said.append(f"{structure} at {places[0]}")
        elif places:
            shown = ", ".join(places[:FEW]) + (", …" if len(places) > FEW else "")
            said.append(f"{structure} at {len(places)} sites ({shown})")
    return ", ".join(said)


def structures_said(plan: Plan) -> str:
    """Parameters by structure: `entry 12, lowrank 4,084`."""
    return ", ".join(f"{name} {count:,}" for name, count in plan.structures.items() if count) or "nothing"
