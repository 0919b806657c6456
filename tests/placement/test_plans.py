"""Budgets and plans: exact, pure, independent of order, with the paper's counts."""

from dataclasses import FrozenInstanceError, replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apet.errors import BudgetError, ConfigError
from apet.models.inventory import inventory_of_config
from apet.placement import (
    PLACEMENTS,
    Budget,
    Inventory,
    MethodSizes,
    Site,
    check_plan,
    informed_sites,
    make_plan,
    max_virtual_tokens,
    own_count,
    random_sites,
    resolve,
    virtual_tokens,
)
from apet.placement.sites import SAMPLED, SCALARS, STRUCTURES, capacity


def bloom(width: int, layers: int, vocabulary: int = 4096) -> Inventory:
    config = {"model_type": "bloom", "vocab_size": vocabulary, "hidden_size": width, "n_layer": layers}
    return inventory_of_config(config | {"n_head": max(2, width // 64)})


SMALL = bloom(32, 2, 100)
NAMED = ["lora", "adapter", "prompt", "bitfit", "layernorm", "ia3", "prefix"]
LARGE = bloom(1024, 24, 250880)
RANDOM = sorted(PLACEMENTS.random)


def paper(width: int, layers: int) -> dict[str, int]:
    """Return the published code's counts for BLOOM, as formulas of width d and layers L."""
    d, n = width, layers
    return {"lora": 32 * d * n, "adapter": 2 * n * (49 * d + 24), "prompt": 100 * d, "bitfit": 11 * d * n + 2 * d}


SIZES = [(1024, 24, 786_432), (1536, 24, 1_179_648), (4096, 30, 3_932_160)]


@pytest.mark.parametrize(("width", "layers", "lora"), SIZES)
def test_own_count_bloom_matches_paper(width, layers, lora):
    inventory = bloom(width, layers, 250880)
    counts = {name: own_count(name, inventory, MethodSizes()) for name in ("lora", "adapter", "prompt", "bitfit")}
    assert counts == paper(width, layers)
    assert counts["lora"] == lora
    assert own_count("full", inventory, MethodSizes()) == inventory.num_params
    assert own_count("none", inventory, MethodSizes()) == 0


@settings(max_examples=150, deadline=None)
@given(placement=st.sampled_from(RANDOM), share=st.floats(0, 1), seed=st.integers(0, 2**63 - 1), large=st.booleans())
def test_random_plan_meets_any_budget_exactly(placement, share, seed, large):
    inventory = LARGE if large else SMALL
    allowed = random_sites(inventory, placement, MethodSizes())
    top = min(capacity(allowed), inventory.num_params, 50_000_000)
    budget = max(1, int(top * share**4))
    try:
        plan = make_plan(inventory, placement, budget, seed)
    except BudgetError:
        assert not any(s.structure in ("entry", "bias") for s in allowed) or budget > top // 2
        return
    assert sum(u.size for u in plan.units) == budget
    for units in plan.units:
        assert 0 < units.count <= units.site.units
        assert units.site.samplable
        if units.indices is not None:
            assert len(units.indices) == units.count
            assert len(set(units.indices.tolist())) == units.count
            assert 0 <= units.indices.min() <= units.indices.max() < units.site.units


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(NAMED), st.floats(0, 1), st.integers(0, 2**32))
def test_named_placement_meets_any_budget_within_capacity(placement, share, seed):
    holds = capacity(PLACEMENTS.own[placement](SMALL, MethodSizes()))
    budget = max(1, int(min(holds, SMALL.num_params) * share))
    plan = make_plan(SMALL, placement, budget, seed)
    assert sum(u.size for u in plan.units) == budget


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NAMED), st.floats(0, 1))
def test_check_plan_says_whether_plans_depend_on_their_seed(placement, share):
    available = min(SMALL.num_params, capacity(PLACEMENTS.own[placement](SMALL, MethodSizes())))
    budget = max(1, int(share * available))
    digests = {make_plan(SMALL, placement, budget, seed).digest for seed in range(5)}
    depends = check_plan(SMALL, placement, budget, MethodSizes())
    assert depends or len(digests) == 1
    assert len(digests) > 1 or not depends or budget > available - 3


def test_named_placement_at_own_count_takes_default_units():
    for name in (*NAMED, "full"):
        own = PLACEMENTS.own[name](SMALL, MethodSizes())
        plan = make_plan(SMALL, name, own_count(name, SMALL, MethodSizes()), seed=7)
        assert {u.site: u.count for u in plan.units} == own
    lora = make_plan(SMALL, "lora", own_count("lora", SMALL, MethodSizes()), seed=7)
    assert {u.site.place.rsplit(".", 1)[1] for u in lora.units} == {"query", "value"}


def test_adapter_of_half_the_width_keeps_its_output_biases():
    half = own_count("adapter", SMALL, MethodSizes(adapter_bottleneck_dim=12))
    plan = make_plan(SMALL, "adapter", half, seed=7)
    assert {u.count for u in plan.units if u.site.structure == "bottleneck"} == {12}
    assert {u.count for u in plan.units if u.site.structure == "bias"} == {32}


@given(seed=st.integers(0, 2**32), order=st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_plan_does_not_depend_on_the_order_of_sites(seed, order):
    shuffled = list(SMALL.sites)
    order.shuffle(shuffled)
    again = Inventory.from_sites(SMALL.family, SMALL.layers, SMALL.num_params, SMALL.non_embedding_params, shuffled)
    assert again == SMALL
    assert make_plan(again, "uniform", 5000, seed).digest == make_plan(SMALL, "uniform", 5000, seed).digest


def test_plan_depends_on_seed():
    digests = [make_plan(SMALL, "uniform", 2000, seed).digest for seed in (1, 1, 2, 3)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_uniform_samples_sites_with_equal_probability():
    """The counts of sites of the same cost have a chi-square far below its 99.99 % point."""
    wide = [replace(s, shape=(4096, 4096)) for s in SMALL.sites if s.structure == "lowrank"]
    entries = [s for s in SMALL.sites if s.structure == "entry"]
    inventory = Inventory.from_sites("bloom", 2, 10**9, 10**9, [*wide, *entries])
    plan = make_plan(inventory, "lowrank_only", 8192 * 8000, seed=5)
    counts = [u.count for u in plan.units if u.site.structure == "lowrank"]
    assert len(counts) == len(wide)
    mean = sum(counts) / len(counts)
    assert sum((c - mean) ** 2 for c in counts) / mean < 3 * len(counts)


def test_restricted_placement_takes_only_allowed_sites():
    inventory = bloom(32, 6, 100)
    for name, inside in {
        "bottom": lambda s: s.layer in (0, 1),
        "middle": lambda s: s.layer in (2, 3),
        "top": lambda s: s.layer in (4, 5),
        "attention": lambda s: ".attention." in s.place,
        "ffn": lambda s: ".ffn." in s.place,
    }.items():
        plan = make_plan(inventory, name, 3001, seed=3)
        assert all(inside(u.site) for u in plan.units), name


@pytest.mark.parametrize("placement", [*PLACEMENTS.random, *NAMED])
def test_virtual_tokens_match_plan_and_stay_below_maximum(placement):
    inventory, most = bloom(64, 2), 0
    for seed, budget in product(range(5), (100, 1_000, 10_000, 40_000)):
        try:
            plan = make_plan(inventory, placement, budget, seed)
        except BudgetError:
            continue
        tokens = sum(units.count for units in plan.units if units.site.structure == "token")
        tokens += max((units.count for units in plan.units if units.site.structure == "prefix"), default=0)
        assert tokens == virtual_tokens(inventory, placement, budget, seed, MethodSizes())
        assert tokens <= max_virtual_tokens(inventory, placement, budget, MethodSizes())
        most = max(most, tokens)
    assert (most > 0) == (placement in ("uniform", "token_only", "prompt", "prefix", "prefix_only"))


@pytest.mark.parametrize("placement", ["uniform", "attention", "bottom"])
def test_random_placement_samples_the_papers_structures_unless_methods_name_others(placement):
    def structures(methods: MethodSizes) -> set[str]:
        plans = [make_plan(SMALL, placement, 300, seed, methods) for seed in range(20)]
        return {units.site.structure for plan in plans for units in plan.units}

    assert structures(MethodSizes()) <= set(SAMPLED)
    assert structures(MethodSizes(sampled_structures=STRUCTURES)) >= {"scale", "prefix"}
    assert structures(MethodSizes(sampled_structures=("scale", "bias"))) == {"bias", "scale"}
    assert MethodSizes(sampled_structures=("scale", "bias")).sampled_structures == ("bias", "scale")


@pytest.mark.parametrize("structure", STRUCTURES)
def test_restriction_to_a_structure_samples_it_in_any_case(structure):
    plan = make_plan(SMALL, f"{structure}_only", 200, 1, MethodSizes(sampled_structures=("lowrank",)))
    assert plan.structures[structure] >= 100


def test_uniform_small_budget_takes_only_scalars():
    plan = make_plan(SMALL, "uniform", 31, seed=1)
    assert plan.structures["entry"] + plan.structures["bias"] == 31


@pytest.mark.parametrize(
    ("written", "count"),
    [("4096", 4096), (4096, 4096), ("50%", 0.5), ("0.01%", 0.0001), ("@lora", "lora"), ("@full", "full")],
)
def test_budget_each_form_resolves_to_count(written, count):
    expected = own_count(count, SMALL, MethodSizes()) if isinstance(count, str) else count
    expected = round(expected * SMALL.num_params) if isinstance(expected, float) else expected
    assert resolve(Budget.parse(written), "uniform", SMALL, MethodSizes()) == expected


@pytest.mark.parametrize("written", ["-1", -5, "many", "101%", "0%", "1.5", "@lorra", "", "1e3", True])
def test_budget_invalid_text_is_refused(written):
    with pytest.raises(BudgetError, match="budget"):
        Budget.parse(written)


@pytest.mark.parametrize(
    ("placement", "budget"),
    [("uniform", 0), ("uniform", 10**12), ("full", 5), ("none", 5), ("bitfit", 100_000), ("prompt", 32 * 512 + 40)],
)
def test_make_plan_impossible_budget_is_refused(placement, budget):
    with pytest.raises(BudgetError, match=placement):
        make_plan(SMALL, placement, budget, seed=1)


def test_make_plan_unknown_placement_gets_suggestion():
    with pytest.raises(ConfigError, match="Did you mean 'uniform'"):
        make_plan(SMALL, "unifrom", 5, seed=1)


@pytest.mark.parametrize("placement", PLACEMENTS.informed)
def test_check_plan_of_an_informed_placement_counts_existing_scalars(placement):
    most = sum(s.units for s in informed_sites(SMALL))
    assert {(s.structure, s.samplable, s.exists) for s in informed_sites(SMALL)} <= {
        ("entry", True, True),
        ("bias", True, True),
    }
    check_plan(SMALL, placement, most, MethodSizes())
    for budget in (0, most + 1):
        with pytest.raises(BudgetError, match=placement):
            check_plan(SMALL, placement, budget, MethodSizes())
    assert virtual_tokens(SMALL, placement, 1000, 1, MethodSizes()) == 0
    assert max_virtual_tokens(SMALL, placement, 1000, MethodSizes()) == 0
    with pytest.raises(ConfigError, match="depends on the weights of the PLM"):
        make_plan(SMALL, placement, 100, seed=1)


def test_own_budget_of_random_placement_is_refused():
    with pytest.raises(BudgetError, match="no fixed size"):
        resolve(Budget.parse("@own"), "uniform", SMALL, MethodSizes())


def test_key_biases_and_embeddings_are_not_samplable():
    sites = {s.name: s for s in SMALL.sites}
    assert not sites["decoder.0.attention.key/bias"].samplable
    assert not sites["decoder.embedding/entry"].samplable
    assert {s.structure for s in SMALL.sites} == set(STRUCTURES)
    assert isinstance(SMALL.sites[0], Site)


def test_adapter_takes_units_in_turn_and_biases_if_budget_allows():
    """Width 48 and two blocks: 4 adapters of 97 a unit and their 192 output biases."""
    inventory = bloom(48, 2, 100)
    for budget, biases, each in ((388, 0, 1), (580, 192, 1), (968, 192, 2)):
        plan = make_plan(inventory, "adapter", budget, seed=1)
        assert plan.structures["bias"] == biases
        assert {u.count for u in plan.units if u.site.structure == "bottleneck"} == {each}
    assert [u.count for u in make_plan(inventory, "lora", 11 * 96, seed=1).units] == [3, 3, 3, 2]


def test_round_robin_skips_full_sites():
    """Maps of rank 2, 4 and 8, whose units cost 4, 8 and 16."""
    sites = [Site(f"decoder.{i}.attention.query", "lowrank", (rank, rank)) for i, rank in enumerate((2, 4, 8))]
    inventory = Inventory.from_sites("bloom", 3, 10**6, 10**6, sites)
    for counts in ((1, 1, 1), (2, 2, 2), (2, 3, 3), (2, 4, 4), (2, 4, 7), (2, 4, 8)):
        plan = make_plan(inventory, "lora", sum(n * site.cost for n, site in zip(counts, sites, strict=True)), seed=1)
        assert tuple(u.count for u in plan.units) == counts


def test_units_have_indices_only_for_some_scalars_of_a_site():
    for plan in (make_plan(SMALL, "uniform", 2000, seed=1), make_plan(SMALL, "scale_only", 300, seed=1)):
        for units in plan.units:
            part = units.site.structure in SCALARS and units.count < units.site.units
            assert (units.indices is not None) == part
            assert not part or (len(units.indices) == units.count and (units.indices[1:] > units.indices[:-1]).all())
    own = make_plan(SMALL, "bitfit", own_count("bitfit", SMALL, MethodSizes()), seed=1)
    assert all(units.indices is None for units in own.units)


def test_inventory_sorts_sites_naturally():
    """The order of sites is the order of θ, so it must not change."""
    places = ["encoder.0.ffn.up", "encoder.2.ffn.up", "encoder.10.ffn.up", "encoder.embedding", "head"]
    sites = [Site(place, structure, (4,)) for structure in ("entry", "bias") for place in places]
    inventory = Inventory.from_sites("bert", 11, 100, 100, sites[::-1])
    assert inventory.sites == tuple(sites)
    with pytest.raises(FrozenInstanceError):
        inventory.sites = ()


def test_site_cost_and_units_follow_shape():
    for structure, shape, cost, units in (
        ("entry", (3, 5), 1, 15),
        ("bias", (3,), 1, 3),
        ("lowrank", (3, 5), 8, 3),
        ("bottleneck", (6,), 13, 24),
        ("token", (6,), 6, 512),
        ("scale", (6,), 1, 6),
        ("prefix", (6,), 12, 512),
    ):
        site = Site("decoder.0.ffn.up", structure, shape)
        assert (site.cost, site.units) == (cost, units), structure


def test_budget_smallest_share_is_one_parameter():
    assert resolve(Budget.parse("0.000001%"), "uniform", SMALL, MethodSizes()) == 1


def test_budget_error_names_problem_and_full_share_is_the_plm():
    with pytest.raises(BudgetError, match="unknown budget '@lorra'"):
        Budget.parse("@lorra")
    with pytest.raises(BudgetError, match="expected a whole number"):
        Budget.parse("many")
    assert resolve(Budget.parse("100%"), "uniform", SMALL, MethodSizes()) == SMALL.num_params
