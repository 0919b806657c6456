"""The named placements: which sites each method tunes, and how much it takes there by itself.

Sizes follow the published counts (Su et al., EMNLP 2023, arXiv 2306.02320): LoRA rank 8 on query and value of
self-attention; adapters 24 wide after attention and after the feed-forward block, each with an output bias; a prompt
of 100 tokens; BitFit on all biases. `MethodSizes` changes them for a study.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from apet.core.validation import CLOSED, PositiveInt, Whole
from apet.placement.sites import SCALARS, STRUCTURES, Inventory, Site

Take = dict[Site, int]
"""Units taken at each site."""


@dataclass(frozen=True, config=CLOSED)
class MethodSizes:
    """Sizes of the named methods. The defaults are those of Su et al. (2023)."""

    lora_rank: PositiveInt = 8
    """Rank of LoRA's updates."""
    adapter_bottleneck_dim: PositiveInt = 24
    """Hidden width of adapters."""
    num_virtual_tokens: Annotated[Whole, Field(ge=1, le=512)] = 100
    """Tokens of a tuned prompt."""


def sites_of(inventory: Inventory, structure: str, *suffixes: str) -> Iterator[Site]:
    """Sites of a structure whose place ends in one of the suffixes (any place when none is given)."""
    for site in inventory.sites:
        if site.structure == structure and (not suffixes or site.place.endswith(suffixes)):
            yield site


def _none(inventory: Inventory, methods: MethodSizes) -> Take:
    return {}


def _full(inventory: Inventory, methods: MethodSizes) -> Take:
    """Every number of the PLM, once: all weights, and those biases that the PLM has."""
    return {s: s.units for s in inventory.sites if s.structure in SCALARS and s.exists}


def _lora(inventory: Inventory, methods: MethodSizes) -> Take:
    """Hu et al. 2022: low-rank updates of query and value in self-attention."""
    sites = sites_of(inventory, "lowrank", ".attention.query", ".attention.value")
    return dict.fromkeys(sites, methods.lora_rank)


def _bitfit(inventory: Inventory, methods: MethodSizes) -> Take:
    """Ben Zaken et al. 2022: all biases; cross-attention's maps keep theirs, as in the published counts for T5."""
    crossed = ("cross_attention.query", "cross_attention.key", "cross_attention.value", "cross_attention.output")
    return {s: s.units for s in sites_of(inventory, "bias") if not s.place.endswith(crossed)}


def _adapter(inventory: Inventory, methods: MethodSizes) -> Take:
    """Houlsby et al. 2019: an adapter after attention and after the feed-forward block, with its output's bias."""
    plugs = list(sites_of(inventory, "bottleneck", ".attention.output", ".ffn.down"))
    places = {s.place for s in plugs}
    biases = {s: s.units for s in sites_of(inventory, "bias") if s.place in places}
    return {**biases, **dict.fromkeys(plugs, methods.adapter_bottleneck_dim)}


def _prompt(inventory: Inventory, methods: MethodSizes) -> Take:
    """Lester et al. 2021: virtual tokens in front of the input."""
    inputs = {site.place: site for site in sites_of(inventory, "token")}
    text = inputs.get("encoder.input", next(iter(inputs.values())))
    return {text: methods.num_virtual_tokens}


def _third(number: int) -> Callable[[Site, Inventory], bool]:
    """Whether a site lies in the bottom (0), middle (1) or top (2) third of the blocks."""
    return lambda s, inventory: s.layer is not None and 3 * s.layer // inventory.layers == number


def _within(part: str) -> Callable[[Site, Inventory], bool]:
    return lambda s, inventory: f".{part}." in f"{s.place}."


def _only(structure: str) -> Callable[[Site, Inventory], bool]:
    return lambda s, inventory: s.structure == structure


@dataclass(frozen=True)
class Placements:
    """The closed set of placements.

    own: name -> the units that the method takes by itself, whose sum is its own count.
    random: name -> which of the drawn sites the random placement may choose; `uniform` is APET, the rest restrict it.
    """

    own: dict[str, Callable[[Inventory, MethodSizes], Take]]
    random: dict[str, Callable[[Site, Inventory], bool]]

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.own, *self.random)


PLACEMENTS = Placements(
    own={"none": _none, "full": _full, "lora": _lora, "bitfit": _bitfit, "adapter": _adapter, "prompt": _prompt},
    random={
        "uniform": lambda site, inventory: True,
        "attention": _within("attention"),
        "ffn": _within("ffn"),
        "bottom": _third(0),
        "middle": _third(1),
        "top": _third(2),
        **{f"{name}_only": _only(name) for name in STRUCTURES},
    },
)
