"""Named placements: the sites that each method trains, and the number of units it takes there by default.

The default sizes follow the published counts (Su et al., EMNLP 2023, arXiv 2306.02320): LoRA of rank 8 on query and
value of self-attention, adapters 24 wide after attention and after the feed-forward network, each with an output bias,
a prompt of 100 tokens, and BitFit on all biases. `MethodSizes` changes these sizes for a study. LayerNorm tuning, (IA)³
and prefix tuning are not in that paper. Their sites are those of PEFT, and LayerNorm tuning takes all norms.

Informed placements choose scalars of the PLM by a score: their magnitude, or the gradient of the loss on training rows
at step 0. Their plans need the PLM's weights; see `apet.training.informed_plans`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from apet.core.validation import CLOSED, DISTINCT, LIST, NOT_EMPTY, PositiveInt, Whole
from apet.errors import ConfigError
from apet.placement.sites import FILLERS, SAMPLED, STRUCTURES, Inventory, Site

Allocation = dict[Site, int]
"""Number of units at each site."""

VirtualTokens = Annotated[Whole, Field(ge=1, le=512)]
if TYPE_CHECKING:
    Structure = str
else:
    Structure = Literal[STRUCTURES]


def _in_order(structures: tuple[str, ...]) -> tuple[str, ...]:
    """Sort structures, so that one set of them has one spelling in digests."""
    return tuple(sorted(structures, key=STRUCTURES.index))


@dataclass(frozen=True, config=CLOSED)
class MethodSizes:
    """Sizes of the named methods. The defaults are those of Su et al. (2023)."""

    lora_rank: PositiveInt = 8
    """Rank of LoRA's updates."""
    adapter_bottleneck_dim: PositiveInt = 24
    """Hidden width of adapters."""
    num_virtual_tokens: VirtualTokens = 100
    """Tokens of a tuned prompt."""
    num_calibration_samples: PositiveInt = 128
    """Training rows from which `gradient` and `fisher` choose scalars. 128 is usual in pruning (SparseGPT, Wanda)."""
    prefix_length: VirtualTokens = 10
    """Key-value pairs of prefix tuning in each block. Not in the paper; 10 is from Li & Liang (2021)."""
    sampled_structures: Annotated[tuple[Structure, ...], NOT_EMPTY, LIST, DISTINCT, AfterValidator(_in_order)] = SAMPLED
    """Structures that `uniform` and its restrictions to a part of the PLM sample: entry, bias, lowrank, bottleneck,
    token, scale, prefix. The default is the paper's five."""


def allocation_size(allocation: Allocation) -> int:
    """Count the parameters of an allocation."""
    return sum(count * site.cost for site, count in allocation.items())


def sites_of(inventory: Inventory, structure: str, *suffixes: str) -> Iterator[Site]:
    """Yield the sites of a structure whose place has one of the suffixes (any place without suffixes)."""
    for site in inventory.sites:
        if site.structure == structure and (not suffixes or site.place.endswith(suffixes)):
            yield site


def random_sites(inventory: Inventory, placement: str, methods: MethodSizes) -> tuple[Site, ...]:
    """List the sites from which a random placement samples.

    Args:
        inventory: Sites of the PLM.
        placement: Name of a random placement.
        methods: Sizes of the named methods, and the structures that are sampled. A restriction to one structure
            samples it in any case.

    Returns:
        The sites, in their canonical order.
    """
    allowed, structures = PLACEMENTS.random[placement], methods.sampled_structures
    if placement in ONE_STRUCTURE:
        structures = (ONE_STRUCTURE[placement],)
    return tuple(s for s in inventory.samplable if s.structure in structures and allowed(s, inventory))


def informed_sites(inventory: Inventory) -> tuple[Site, ...]:
    """List the sites from which informed placements choose: scalars that the PLM has, of the samplable sites.

    Args:
        inventory: Sites of the PLM.

    Returns:
        The sites, in their canonical order.
    """
    return tuple(s for s in inventory.samplable if s.structure in FILLERS and s.exists)


def _none(inventory: Inventory, methods: MethodSizes) -> Allocation:
    return {}


def _full(inventory: Inventory, methods: MethodSizes) -> Allocation:
    """Full fine-tuning: every parameter of the PLM once."""
    return {s: s.units for s in inventory.sites if s.structure in FILLERS and s.exists}


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


def _layernorm(inventory: Inventory, methods: MethodSizes) -> Allocation:
    """LayerNorm tuning (Qi et al. 2022, Zhao et al. 2023): weights of all norms, and their biases if they have some."""
    norms = (*sites_of(inventory, "entry", ".norm"), *sites_of(inventory, "bias", ".norm"))
    return {site: site.units for site in norms if site.exists}


def _ia3(inventory: Inventory, methods: MethodSizes) -> Allocation:
    """(IA)³ (Liu et al. 2022): factors of keys, values and the input of the feed-forward network's last map."""
    return {s: s.units for s in sites_of(inventory, "scale", ".key", ".value", ".ffn.down")}


def _prefix(inventory: Inventory, methods: MethodSizes) -> Allocation:
    """Prefix tuning (Li & Liang 2021) without projection, as in PEFT: in the decoder's blocks if there is a decoder."""
    sites = list(sites_of(inventory, "prefix"))
    decoder = [site for site in sites if site.place.startswith("decoder.")]
    return dict.fromkeys(decoder or sites, methods.prefix_length)


def _in_third(number: int) -> Callable[[Site, Inventory], bool]:
    """Select the bottom (0), middle (1) or top (2) third of the blocks."""
    return lambda s, inventory: s.layer is not None and 3 * s.layer // inventory.layers == number


def _in_sublayer(name: str) -> Callable[[Site, Inventory], bool]:
    return lambda s, inventory: f".{name}." in f"{s.place}."


def _of_structure(structure: str) -> Callable[[Site, Inventory], bool]:
    return lambda s, inventory: s.structure == structure


ONE_STRUCTURE = {f"{name}_only": name for name in STRUCTURES}
"""Random placement -> the structure to which it is restricted. Placement names are part of seeds, so renaming a
structure must not change them."""


@dataclass(frozen=True)
class Placements:
    """The closed set of placements."""

    own: dict[str, Callable[[Inventory, MethodSizes], Allocation]]
    """Name of a method -> the units that it takes by default. Their size is the method's own count."""
    random: dict[str, Callable[[Site, Inventory], bool]]
    """Name of a random placement -> whether it may choose a site of a structure that it samples (see `random_sites`).
    `uniform` is APET; the others are restrictions of it."""
    informed: dict[str, bool]
    """Name of an informed placement -> whether it reads training rows. It takes the scalars of `informed_sites` with
    the highest scores."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all placements."""
        return (*self.own, *self.random, *self.informed)


PLACEMENTS = Placements(
    own={
        "none": _none,
        "full": _full,
        "lora": _lora,
        "bitfit": _bitfit,
        "adapter": _adapter,
        "prompt": _prompt,
        "layernorm": _layernorm,
        "ia3": _ia3,
        "prefix": _prefix,
    },
    random={
        "uniform": lambda site, inventory: True,
        "attention": _in_sublayer("attention"),
        "ffn": _in_sublayer("ffn"),
        "bottom": _in_third(0),
        "middle": _in_third(1),
        "top": _in_third(2),
        **{name: _of_structure(structure) for name, structure in ONE_STRUCTURE.items()},
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
