"""Shipped ladder models: their use in studies, refused files, and their reproduction."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM

from apet.config.study_config import PretrainingConfig, load_study
from apet.errors import CorruptError, ModelError
from apet.models import ladder as ladder_module
from apet.models.checkpoint_files import PRETRAINING, file_digests, read_origin, write_origin
from apet.models.ladder import LADDER, copy_shipped, parse_ladder_model, shipped_content, shipped_names
from apet.models.loading import load_plm
from apet.models.pretraining import rebuild
from apet.study.grid import Grid
from toy import PARAMS
from toy_corpus import RECIPE, write_corpus

MODEL = parse_ladder_model("bloom-32x2")
NAMES = shipped_names()
MOST_BYTES = 25_000_000


@pytest.fixture
def ladder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the two smallest shipped ladder models and use the copy as the ladder."""
    for name in NAMES[:2]:
        shutil.copytree(LADDER / name, tmp_path / "ladder" / name)
    monkeypatch.setattr(ladder_module, "LADDER", tmp_path / "ladder")
    return tmp_path / "ladder"


def grid_of(folder: Path, **changes: object) -> Grid:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump({**PARAMS, **changes}))
    return Grid(load_study(path), path)


def test_shipped_sizes_span_a_factor_of_hundred() -> None:
    sizes = [read_origin(LADDER / name, PRETRAINING)["non_embedding"] for name in NAMES]
    assert len(sizes) >= 5 and sizes == sorted(sizes) and sizes[-1] >= 100 * sizes[0]


@pytest.mark.parametrize("name", NAMES)
def test_shipped_model_matches_its_record(name: str) -> None:
    record = read_origin(LADDER / name, PRETRAINING)
    assert record["ladder_model"] == asdict(parse_ladder_model(name)) and record["recipe"] == asdict(
        PretrainingConfig()
    )
    assert (
        record["tokens"] == PretrainingConfig().steps * PretrainingConfig().batch_size * PretrainingConfig().block_size
    )
    plm = load_plm(LADDER / name, name)
    assert (plm.content, plm.dtype) == (record["content"], "float32")
    assert plm.inventory.non_embedding_params == record["non_embedding"]
    assert len(record["curve"]) == 20 and record["curve"][0]["loss"] > record["curve"][-1]["loss"]


def test_shipped_larger_models_have_lower_loss() -> None:
    losses = [read_origin(LADDER / name, PRETRAINING)["heldout"]["loss"] for name in NAMES]
    assert losses == sorted(losses, reverse=True)


def test_shipped_ladder_stays_small() -> None:
    assert sum(path.stat().st_size for path in LADDER.rglob("*") if path.is_file()) <= MOST_BYTES


def test_shipped_model_loads_in_transformers_as_float32() -> None:
    assert AutoModelForCausalLM.from_pretrained(LADDER / NAMES[0]).dtype.itemsize == 4


def test_study_with_default_recipe_uses_shipped_models(tmp_path: Path) -> None:
    models = [MODEL.name, "bloom-16x1"]
    grid = grid_of(tmp_path, models=models, pretraining={})
    assert list(grid.shipped) == [MODEL.name] and list(grid.pretrained_models) == ["bloom-16x1"]
    assert grid.plm_record(MODEL.name).endswith("/pretraining.json")
    other = grid_of(tmp_path, models=models, pretraining={}, seed=2)
    assert other.plm_digests[MODEL.name] == grid.plm_digests[MODEL.name], "the study's seed changes no PLM"


def test_study_with_other_recipe_pretrains_all_ladder_models(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, models=[MODEL.name], pretraining={"max_tokens": 8192})
    assert not grid.shipped and list(grid.pretrained_models) == [MODEL.name]


def test_copy_shipped_copies_equal_bytes(tmp_path: Path) -> None:
    copy_shipped(MODEL, tmp_path / "plm")
    content = shipped_content(MODEL, PretrainingConfig())
    assert load_plm(tmp_path / "plm", MODEL.name).content == content is not None
    assert shipped_content(MODEL, replace(PretrainingConfig(), seed=2)) is None


def damage(ladder: Path, kind: str) -> None:
    weights = ladder / MODEL.name / "model.safetensors"
    if kind == "cut off":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif kind == "another model's":
        shutil.copyfile(ladder / NAMES[1] / "model.safetensors", weights)
    else:
        weights.unlink()


@pytest.mark.parametrize("kind", ["cut off", "another model's", "missing"])
def test_copy_shipped_corrupt_weights_are_refused(kind: str, ladder: Path, tmp_path: Path) -> None:
    damage(ladder, kind)
    with pytest.raises(CorruptError) as error:
        copy_shipped(MODEL, tmp_path / "plm")
    text = str(error.value)
    assert text.startswith(f"{ladder / MODEL.name / 'model.safetensors'}: ")
    assert f"git checkout -- ladder/{MODEL.name}" in text and not (tmp_path / "plm").exists()


def test_shipped_content_swapped_folders_are_refused(ladder: Path, tmp_path: Path) -> None:
    shutil.rmtree(ladder / MODEL.name)
    (ladder / NAMES[1]).rename(ladder / MODEL.name)
    with pytest.raises(CorruptError, match=f"expected the record of {MODEL.name}"):
        shipped_content(MODEL, PretrainingConfig())


def test_shipped_content_corrupt_record_is_refused(ladder: Path) -> None:
    path = ladder / MODEL.name / PRETRAINING
    path.write_text(path.read_text().replace('"width": 32', '"width": 33'))
    with pytest.raises(CorruptError, match="git checkout"):
        shipped_content(MODEL, PretrainingConfig())


def test_copy_shipped_unknown_model_names_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"bloom-16x1: no such folder.*{MODEL.name}"):
        copy_shipped(parse_ladder_model("bloom-16x1"), tmp_path / "plm")


@pytest.fixture
def rebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a ladder model with `rebuild_ladder` from a toy corpus with toy settings."""
    monkeypatch.setattr(rebuild, "PretrainingConfig", lambda: RECIPE)
    monkeypatch.setattr(rebuild, "LADDER", tmp_path / "shipped")
    out = tmp_path / "made"
    out.mkdir()
    write_corpus(out / "corpus", 60, 20)
    (line,) = (c.line() for c in rebuild.rebuild_ladder([parse_ladder_model("bloom-16x1")], tmp_path, out))
    assert "none is shipped" in line
    return out


def test_rebuild_ladder_equal_model_is_reported_equal(rebuilt: Path, tmp_path: Path) -> None:
    made = rebuilt / "bloom-16x1"
    shutil.copytree(made, tmp_path / "shipped" / "bloom-16x1")
    before = made.stat().st_mtime_ns
    (comparison,) = rebuild.rebuild_ladder([parse_ladder_model("bloom-16x1")], tmp_path, rebuilt)
    assert made.stat().st_mtime_ns == before, "a finished model is kept"
    assert comparison.line().startswith("bloom-16x1: equal byte for byte, held-out loss ")


def test_compare_different_weights_reports_largest_difference(rebuilt: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(rebuilt / "bloom-16x1", tmp_path / "shipped" / "bloom-16x1")
    weights = load_file(other / "model.safetensors")
    name = next(iter(weights))
    weights[name] = weights[name].clone()
    weights[name].view(-1)[0] += 0.5
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    record = json.loads((other / PRETRAINING).read_text())
    record = {k: v for k, v in record.items() if k not in ("files", "content", "digest")}
    write_origin(other, PRETRAINING, record, file_digests(other))
    comparison = rebuild.compare(other, rebuilt / "bloom-16x1")
    assert comparison.differing == ("model.safetensors",) and comparison.largest == pytest.approx(0.5, abs=0.01)
    assert "model.safetensors differ: weights by at most 0.5" in comparison.line()
