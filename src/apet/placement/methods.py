"""Named placements: the sites that each method trains, and the number of units it takes there by default.

The default sizes follow the published counts (Su et al., EMNLP 2023, arXiv 2306.02320): LoRA of rank 8 on query and
value of self-attention, adapters 24 wide after attention and after the feed-forward network, each with an output bias,
a prompt of 100 tokens, and BitFit on all biases. `MethodSizes` changes these sizes for a study.

Informed placements choose scalars of the PLM by a score: their magnitude, or the gradient of the loss on training rows
at step 0. Their plans need the PLM's weights; see `apet.training.informed_plans`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from apet.core.validation import CLOSED, PositiveInt, Whole
from apet.errors import ConfigError
from apet.placement.sites import SCALARS, STRUCTURES, Inventory, Site

Allocation = dict[Site, int]
"""Number of units at each site."""


@dataclass(frozen=True, config=CLOSED)
class MethodSizes:
    """Sizes of the named methods. The defaults are those of Su et al. (2023)."""

    lora_rank: PositiveInt = 8
    """Rank of LoRA's updates."""
    adapter_bottleneck_dim: PositiveInt = 24
    """Hidden width of adapters."""
    num_virtual_tokens: Annotated[Whole, Field(ge=1, le=512)] = 100
    """Tokens of a tuned prompt."""
    num_calibration_samples: PositiveInt = 128
    """Training rows from which `gradient` and `fisher` choose scalars. 128 is usual in pruning (SparseGPT, Wanda)."""


def allocation_size(allocation: Allocation) -> int:
    """Count the parameters of an allocation."""
    return sum(count * site.cost for site, count in allocation.items())


def sites_of(inventory: Inventory, structure: str, *suffixes: str) -> Iterator[Site]:
    """Yield the sites of a structure whose place has one of the suffixes (any place without suffixes)."""
    for site in inventory.sites:
        if site.structure == structure and (not suffixes or site.place.endswith(suffixes)):
            yield site


def informed_sites(inventory: Inventory) -> tuple[Site, ...]:
    """List the sites from which informed placements choose: scalars that the PLM has, of the samplable sites.

    Args:
        inventory: Sites of the PLM.

    Returns:
        The sites, in their canonical order.
    """
    return tuple(s for s in inventory.samplable if s.structure in SCALARS and s.exists)


def _none(inventory: Inventory, methods: MethodSizes) -> Allocation:
    return {}


def _full(inventory: Inventory, methods: MethodSizes) -> Allocation:
    """Full fine-tuning: every parameter of the PLM once."""
    return {s: s.units for s in inventory.sites if s.structure in SCALARS and s.exists}


def _lora(inventory: Inventory, methods: MethodSizes) -> Allocation:
    """LoRA (Hu et al. 2022): low-rank updates of query and value in self-attention."""
    sites = sites_of(inventory, "lowrank", ".attention.query", ".attention.value")
    return dict.fromkeys(sites, methods.lora_rank)


def _bitfit(inventory: Inventory, methods: MethodSizes) -> Allocation:
    """BitFit (Ben Zaken et al. 2022): all biases, except in cross-attention, as in the published counts for T5."""
    excluded = ("cross_attention.query", "cross_attention.key", "cross_attention.value", "cross_attention.output")
    return {s: s.units for s in sites_of(inventory, "bias") if not s.place.endswith(excluded)}


def _adapter(inventory: Inventory, methods: MethodSizes) -> Allocation:
    """Adapters (Houlsby et al. 2019) after attention and the feed-forward network, each with an output bias."""
    adapters = list(sites_of(inventory, "bottleneck", ".attention.output", ".ffn.down"))
    places = {s.place for s in adapters}
    biases = {s: s.units for s in sites_of(inventory, "bias") if s.place in places}
    return {**biases, **dict.fromkeys(adapters, methods.adapter_bottleneck_dim)}


def _prompt(inventory: Inventory, methods: MethodSizes) -> Allocation:
    """Prompt tuning (Lester et al. 2021): virtual tokens in front of the input."""
    inputs = {site.place: site for site in sites_of(inventory, "token")}
    site = inputs.get("encoder.input", next(iter(inputs.values())))
    return {site: methods.num_virtual_tokens}


def _in_third(number: int) -> Callable[[Site, Inventory], bool]:
    """Select the bottom (0), middle (1) or top (2) third of the blocks."""
    return lambda s, inventory: s.layer is not None and 3 * s.layer // inventory.layers == number


def _in_sublayer(name: str) -> Callable[[Site, Inventory], bool]:
    return lambda s, inventory: f".{name}." in f"{s.place}."


def _of_structure(structure: str) -> Callable[[Site, Inventory], bool]:
    return lambda s, inventory: s.structure == structure


@dataclass(frozen=True)
class Placements:
    """The closed set of placements."""

    own: dict[str, Callable[[Inventory, MethodSizes], Allocation]]
    """Name of a method -> the units that it takes by default. Their size is the method's own count."""
    random: dict[str, Callable[[Site, Inventory], bool]]
    """Name of a random placement -> whether it may choose a samplable site. `uniform` is APET; the others are
    restrictions of it."""
    informed: dict[str, bool]
    """Name of an informed placement -> whether it reads training rows. It takes the scalars of `informed_sites` with
    the highest scores."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all placements."""
        return (*self.own, *self.random, *self.informed)


PLACEMENTS = Placements(
    own={"none": _none, "full": _full, "lora": _lora, "bitfit": _bitfit, "adapter": _adapter, "prompt": _prompt},
    random={
        "uniform": lambda site, inventory: True,
        "attention": _in_sublayer("attention"),
        "ffn": _in_sublayer("ffn"),
        "bottom": _in_third(0),
        "middle": _in_third(1),
        "top": _in_third(2),
        # Placement names are part of seeds, so renaming a structure must not change them.
        **{f"{name}_only": _of_structure(name) for name in STRUCTURES},
    },
    informed={"magnitude": False, "gradient": True, "fisher": True},
)


def check_gradients(placement: str, plm: str, head: str) -> None:
    """Check that the gradients that an informed placement reads are not all 0.

    Args:
        placement: Name of a placement.
        plm: Name of the PLM.
        head: `lm` or `classification`.

    Raises:
        ConfigError: The placement reads gradients, and the PLM has a classification head, which is 0 at step 0.
    """
    if PLACEMENTS.informed.get(placement) and head == "classification":
        raise ConfigError(
            f"placement {placement!r}: PLM {plm!r} has `head: classification`, which is 0 at step 0, and so are all "
            "gradients. Use `head: lm`, or the placement 'magnitude'."
        )
