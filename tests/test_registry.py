"""What a study may call a PLM, and what the registry says of those it knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apet.cli.app import main
from apet.config.study_config import PretrainingConfig
from apet.errors import ApetError, ConfigError, ModelError
from apet.models.download import fetch_snapshot
from apet.models.families import FAMILIES
from apet.models.ladder import LadderModel
from apet.models.loading import inventory_of_config
from apet.models.registry import FAMILIES as NAMES
from apet.models.registry import ModelSource, parse_model, registry, slug, values_of
from saved import save_plm
from tiny import tiny_plm

HUB = {"repo_id": "someone/plm", "revision": "main"}


@pytest.mark.parametrize("name", registry())
def test_every_registered_plm_has_the_published_size(name, tmp_path):
    snapshot = registry()[name]
    inventory = inventory_of_config(values_of(snapshot, PretrainingConfig(), tmp_path), snapshot.head)
    assert inventory.parameters == snapshot.num_parameters
    assert inventory.family == snapshot.family and snapshot.family in FAMILIES
    weights = snapshot.num_parameters * (4 if snapshot.dtype == "float32" else 2) / 1e9
    assert weights < snapshot.memory_gb < 3 + 1.5 * weights


def test_the_registry_holds_the_paper_pythia_and_smollm2():
    families = [snapshot.family for snapshot in registry().values() if snapshot.kind == "repo_id"]
    assert {f: families.count(f) for f in FAMILIES} == {"bert": 3, "bloom": 3, "t5": 3, "gpt_neox": 8, "llama": 3}


def test_commits_are_whole():
    revisions = {n: s.source["revision"] for n, s in registry().items() if s.kind == "repo_id"}
    assert all(r == "main" or (len(r) == 40 and int(r, 16)) for r in revisions.values())


def test_an_entry_may_be_a_name_a_rung_or_a_folder(tmp_path):
    (tmp_path / "my-plm").mkdir()
    assert parse_model("google/t5-v1_1-xxl") is registry()["google/t5-v1_1-xxl"]
    assert isinstance(parse_model("bloom-64x4"), LadderModel)
    assert parse_model(str(tmp_path / "my-plm")) == ModelSource("my-plm", {"folder": str(tmp_path / "my-plm")})


@pytest.mark.parametrize("written", ["~/my-plm", {"name": "my-plm", "source": {"folder": "~/my-plm"}}], ids=type)
def test_a_folder_may_lie_in_ones_home(tmp_path, monkeypatch, written):
    save_plm(tiny_plm("bert", fused=False).model, tmp_path / "my-plm")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = parse_model(written)
    assert found.digest == parse_model(str(tmp_path / "my-plm")).digest
    assert values_of(found, PretrainingConfig(), Path())["model_type"] == "bert"
    fetch_snapshot(found, tmp_path / "out", Path())
    assert (tmp_path / "out/snapshot.json").is_file()


def test_a_mapping_changes_what_the_registry_says():
    own = parse_model({"name": "EleutherAI/pythia-70m", "dtype": "bfloat16"})
    known = registry()["EleutherAI/pythia-70m"]
    assert (own.dtype, own.source, own.config) == ("bfloat16", known.source, known.config)
    assert own.digest != known.digest
    # On how many devices a PLM lies says nothing about what it is.
    assert parse_model({"name": "EleutherAI/pythia-70m", "devices": 2}).digest == known.digest
    moved = parse_model({"name": "EleutherAI/pythia-70m", "source": HUB})
    assert moved.config is None and moved.family == "gpt_neox"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("google/t5-v1_1-xl", r"unknown model 'google/t5-v1_1-xl'. Did you mean 'google/t5-v1_1-xxl'\?"),
        ({"name": "a b", "source": HUB}, "name is 'a b'"),
        ({"source": HUB}, "name is None"),
        ({"name": "x"}, "key 'source' is missing"),
        ({"name": "x", "source": "hub"}, "source is 'hub'"),
        ({"name": "x", "source": {"repo_id": "a/b"}}, "key 'revision' is missing"),
        ({"name": "x", "source": {**HUB, "folder": "y"}}, "unknown key 'folder'"),
        ({"name": "x", "source": HUB, "dtype": "int8"}, "unknown value 'int8'"),
        ({"name": "x", "source": HUB, "head": "new"}, "unknown value 'new'"),
        ({"name": "x", "source": HUB, "memory_gb": 0}, "memory_gb is 0"),
        ({"name": "x", "source": HUB, "devices": 0}, "devices is 0"),
        ({"name": "x", "source": HUB, "devices": True}, "devices is True"),
        ({"name": "x", "source": HUB, "config": {"hidden_size": 8}}, "with `family` beside it"),
        ({"name": "x", "source": {"repo_id": "a/b", "revision": 3}}, "revision is 3"),
    ],
)
def test_a_wrong_entry_is_one_clear_error(entry, said):
    with pytest.raises((ModelError, ConfigError), match=said):
        parse_model(entry)


def test_a_folders_digest_is_of_its_bytes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "plm"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"one")
    first = parse_model("./plm").digest
    assert parse_model(str(folder)).digest == first  # not of its path
    (folder / "model.safetensors").write_bytes(b"two")
    assert parse_model("./plm").digest != first
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        assert parse_model("./plm").digest


def test_shapes_of_an_unfetched_hub_plm_name_the_command(tmp_path):
    model = parse_model({"name": "mine", "source": HUB})
    with pytest.raises(ApetError, match="apet download-model --model mine"):
        values_of(model, PretrainingConfig(), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert values_of(model, PretrainingConfig(), tmp_path) == {"model_type": "bert"}


def test_a_plan_for_the_largest_plm_needs_no_weights(capsys):
    assert main(["plan", "--model", "google/t5-v1_1-xxl", "--placement", "uniform", "--budget", "@lora"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert sum(made["structures"].values()) == made["budget"] == 6_291_456


def test_names_are_safe_as_folders():
    assert slug("google/t5-v1_1-xxl") == "google--t5-v1_1-xxl"
    assert all("/" not in slug(name) for name in registry())


def test_families_are_known_by_name_without_torch() -> None:
    """The registry names them for messages that come before PyTorch is loaded."""
    assert set(NAMES) == set(FAMILIES)
