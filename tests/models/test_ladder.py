"""Ladder models: names, pretraining settings, and the digests that name their folders."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apet.config.study_config import PretrainingConfig
from apet.core.validation import validate
from apet.errors import ConfigError, ModelError
from apet.models.inventory import inventory_of_config
from apet.models.ladder import FAMILIES, HEAD_WIDTH, LadderModel, ladder_model_digest, parse_ladder_model
from apet.models.ladder_inventory import ladder_inventory
from apet.placement.sites import Inventory

CORPUS = "data/corpus/0123456789"


def recipe_of(values: dict) -> PretrainingConfig:
    return validate(PretrainingConfig, values, "pretraining")


@given(st.sampled_from(sorted(FAMILIES)), st.integers(1, 64), st.integers(1, 48))
def test_parse_ladder_model_name_gives_family_and_size(family: str, sixteenths: int, layers: int) -> None:
    width = HEAD_WIDTH * sixteenths
    name = f"{family}-{width}x{layers}"
    assert parse_ladder_model(name) == LadderModel(name, family, width, layers, sixteenths)


@pytest.mark.parametrize(
    ("name", "message"),
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
def test_parse_ladder_model_invalid_name_is_refused(name: str, message: str) -> None:
    with pytest.raises(ModelError, match="model") as error:
        parse_ladder_model(name)
    assert repr(name) in str(error.value) and message in str(error.value)


def test_pretraining_config_missing_keys_get_defaults() -> None:
    assert recipe_of({}) == PretrainingConfig()
    expected = replace(PretrainingConfig(), max_tokens=5000, embedding_lr=1.0)
    assert recipe_of({"max_tokens": 5000, "embedding_lr": 1}) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_token": 5}, "unknown key 'max_token'. Did you mean 'max_tokens'?"),
        ({"max_tokens": 0}, "pretraining: max_tokens: expected a whole number of at least 1, got 0."),
        ({"max_tokens": 1e6}, "pretraining: max_tokens: expected a whole number of at least 1, got 1000000.0"),
        ({"max_tokens": True}, "pretraining: max_tokens: expected a whole number of at least 1, got True"),
        ({"vocab_size": 200}, "expected a whole number of at least 270, got 200"),
        ({"block_size": 7}, "pretraining: block_size: expected a whole number of at least 8, got 7."),
        ({"causal_phase_ratio": -0.1}, "pretraining: causal_phase_ratio: expected a number from 0 to 1, got -0.1."),
        ({"warmup_ratio": 1.5}, "expected a number from 0 to 1, got 1.5"),
        ({"scalar_lr": float("nan")}, "expected a number from 0 to 1, got nan"),
        ({"seed": -1}, "expected a whole number of at least 0, got -1"),
        ({"lr_scheduler_type": "step"}, "Allowed: cosine, linear"),
        ({"lr_scheduler_type": ["linear"]}, "Allowed: cosine, linear"),
    ],
)
def test_pretraining_config_invalid_value_is_refused(values: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        recipe_of(values)
    assert message in str(error.value)


def test_pretraining_config_steps_are_complete_batches() -> None:
    assert PretrainingConfig(max_tokens=1000, batch_size=4, block_size=50).steps == 5
    assert PretrainingConfig(max_tokens=1000, batch_size=4, block_size=60).steps == 4
    assert PretrainingConfig(max_tokens=1, batch_size=4, block_size=60).steps == 1


def test_ladder_model_digest_depends_on_model_recipe_and_corpus() -> None:
    model, recipe = parse_ladder_model("bloom-32x2"), PretrainingConfig()
    other = {"lr_scheduler_type": "cosine"}
    changed = [
        replace(recipe, **{f.name: other.get(f.name, getattr(recipe, f.name) * 2)}) for f in fields(PretrainingConfig)
    ]
    digests = [
        ladder_model_digest(model, recipe, CORPUS),
        ladder_model_digest(parse_ladder_model("bloom-32x3"), recipe, CORPUS),
        ladder_model_digest(model, recipe, CORPUS + "0"),
        *(ladder_model_digest(model, r, CORPUS) for r in changed),
    ]
    assert len(set(digests)) == len(digests)
    assert digests[0] == ladder_model_digest(parse_ladder_model("bloom-32x2"), recipe_of({}), CORPUS)


def test_pretraining_config_causal_phase_comes_first() -> None:
    recipe = PretrainingConfig(max_tokens=10 * 4 * 50, batch_size=4, block_size=50, causal_phase_ratio=0.3)
    assert [recipe.is_causal(step) for step in range(10)] == [True] * 3 + [False] * 7
    assert not any(replace(recipe, causal_phase_ratio=0.0).is_causal(step) for step in range(10))
    assert all(replace(recipe, causal_phase_ratio=1.0).is_causal(step) for step in range(10))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_ladder_sizes_span_a_factor_of_thirty(family: str) -> None:
    small, middle, large = (inventory(f"{family}-{size}").non_embedding_params for size in ("32x2", "64x4", "128x6"))
    assert small * 6 < middle
    assert small * 30 < large


def test_t5_config_has_layers_in_both_stacks_and_untied_head() -> None:
    words, width, layers, ffn = PretrainingConfig().vocab_size, 64, 4, 160
    attention, feed = 4 * width * width, 3 * width * ffn
    blocks = layers * (attention + feed + 2 * width) + layers * (2 * attention + feed + 3 * width)
    sizes = inventory("t5-64x4")
    assert sizes.non_embedding_params == blocks + 2 * width
    assert sizes.num_params == sizes.non_embedding_params + 2 * words * width + 2 * 32 * 4


def inventory(name: str) -> Inventory:
    return inventory_of_config(parse_ladder_model(name).config(PretrainingConfig()))


def test_ladder_import_needs_no_torch() -> None:
    code = "import sys, apet.models.ladder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["bloom-32x2", "bloom-48x3", "bert-32x2", "bert-48x3", "t5-32x2", "t5-48x3"])
def test_inventory_from_sizes_is_that_of_the_librarys_model(name):
    model, recipe = parse_ladder_model(name), PretrainingConfig(vocab_size=600)
    assert ladder_inventory(model, recipe) == inventory_of_config(model.config(recipe))
