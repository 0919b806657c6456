"""Names of rungs, recipes, and the digests that name their folders."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from apet.errors import ModelError, ParamsError
from apet.placement.sites import Inventory
from apet.plms.inventory import inventory_of, shapes_of
from apet.plms.ladder import FAMILIES, HEAD_WIDTH, Recipe, Rung, parse_rung, rung_digest

CORPUS = "data/corpus/0123456789"


@given(st.sampled_from(sorted(FAMILIES)), st.integers(1, 64), st.integers(1, 48))
def test_a_name_says_all_of_a_rung(family: str, sixteenths: int, layers: int) -> None:
    width = HEAD_WIDTH * sixteenths
    name = f"{family}-{width}x{layers}"
    assert parse_rung(name) == Rung(name, family, width, layers, sixteenths)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bloom", "<family>-<width>x<layers>"),
        ("bloom-64", "<family>-<width>x<layers>"),
        ("bloom-064x4", "<family>-<width>x<layers>"),
        ("bloom-64x0", "<family>-<width>x<layers>"),
        ("bloom-64x4 ", "<family>-<width>x<layers>"),
        ("bloom-٦٤x4", "<family>-<width>x<layers>"),
        ("blom-64x4", "Did you mean 'bloom'?"),
        ("bloom-40x4", "multiple of 16"),
    ],
)
def test_another_form_is_refused(name: str, said: str) -> None:
    with pytest.raises(ModelError, match="model") as error:
        parse_rung(name)
    assert repr(name) in str(error.value) and said in str(error.value)


def test_a_recipe_is_the_defaults_and_an_override() -> None:
    assert Recipe.of({}) == Recipe()
    assert Recipe.of({"tokens": 5000, "rate_words": 1, "precision": "float32"}) == replace(
        Recipe(), tokens=5000, rate_words=1.0, precision="float32"
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"token": 5}, "unknown key 'token'. Did you mean 'tokens'?"),
        ({"tokens": 0}, "pretraining.tokens: 0. Allowed: a whole number from 1."),
        ({"tokens": 1e6}, "pretraining.tokens: 1000000.0"),
        ({"tokens": True}, "pretraining.tokens: True"),
        ({"vocabulary": 200}, "a whole number from 270"),
        ({"length": 7}, "pretraining.length: 7. Allowed: a whole number from 8."),
        ({"causal_share": -0.1}, "pretraining.causal_share: -0.1. Allowed: a number from 0 to 1."),
        ({"warmup": 1.5}, "a number from 0 to 1"),
        ({"rate_words": float("nan")}, "a number from 0 to 1"),
        ({"seed": -1}, "a whole number from 0"),
        ({"schedule": "step"}, "Allowed: cosine, linear"),
        ({"precision": ["float32"]}, "Allowed: bfloat16, float32"),
    ],
)
def test_a_wrong_recipe_is_refused(values: dict, said: str) -> None:
    with pytest.raises(ParamsError) as error:
        Recipe.of(values)
    assert said in str(error.value)


def test_steps_are_whole_batches_and_at_least_one() -> None:
    assert Recipe(tokens=1000, batch=4, length=50).steps == 5
    assert Recipe(tokens=1000, batch=4, length=60).steps == 4
    assert Recipe(tokens=1, batch=4, length=60).steps == 1


def test_the_digest_knows_rung_recipe_and_corpus() -> None:
    rung, recipe = parse_rung("bloom-32x2"), Recipe()
    other = {"schedule": "cosine", "precision": "float32"}
    changed = [replace(recipe, **{f.name: other.get(f.name, getattr(recipe, f.name) * 2)}) for f in fields(Recipe)]
    digests = [
        rung_digest(rung, recipe, CORPUS),
        rung_digest(parse_rung("bloom-32x3"), recipe, CORPUS),
        rung_digest(rung, recipe, CORPUS + "0"),
        *(rung_digest(rung, r, CORPUS) for r in changed),
    ]
    assert len(set(digests)) == len(digests)
    assert digests[0] == rung_digest(parse_rung("bloom-32x2"), Recipe.of({}), CORPUS)


def test_the_causal_phase_comes_first_and_takes_its_share() -> None:
    recipe = Recipe(tokens=10 * 4 * 50, batch=4, length=50, causal_share=0.3)
    assert [recipe.is_causal(step) for step in range(10)] == [True] * 3 + [False] * 7
    assert not any(replace(recipe, causal_share=0.0).is_causal(step) for step in range(10))
    assert all(replace(recipe, causal_share=1.0).is_causal(step) for step in range(10))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_ladder_spans_a_factor_of_thirty(family: str) -> None:
    small, middle, large = (inventory(f"{family}-{size}").non_embedding for size in ("32x2", "64x4", "128x6"))
    assert small * 6 < middle
    assert small * 30 < large


def test_layers_of_t5_are_in_each_stack_and_its_head_is_its_own() -> None:
    words, width, layers, ffn = Recipe().vocabulary, 64, 4, 160
    attention, feed = 4 * width * width, 3 * width * ffn
    blocks = layers * (attention + feed + 2 * width) + layers * (2 * attention + feed + 3 * width)
    sizes = inventory("t5-64x4")
    assert sizes.non_embedding == blocks + 2 * width
    assert sizes.parameters == sizes.non_embedding + 2 * words * width + 2 * 32 * 4


def inventory(name: str) -> Inventory:
    return inventory_of(shapes_of(AutoConfig.for_model(**parse_rung(name).config(Recipe()))))


def test_names_and_digests_need_no_torch() -> None:
    code = "import sys, apet.plms.ladder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
