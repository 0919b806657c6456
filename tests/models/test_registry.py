"""Entries of a study's models, and the PLMs of the registry."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from apet.api import load_model
from apet.cli.app import main
from apet.config.study_config import PretrainingConfig
from apet.errors import ApetError, ConfigError, ModelError
from apet.models.download import fetch_snapshot
from apet.models.families import FAMILIES
from apet.models.inventory import inventory_of_config
from apet.models.ladder import LadderModel
from apet.models.registry import FAMILIES as NAMES
from apet.models.registry import ModelSource, parse_model, registry, slug, values_of
from apet.study.grid import load_grid
from apet.study.resolve import sizes
from saved import save_plm
from tiny import tiny_plm
from toy import PARAMS

HUB = {"repo_id": "someone/plm", "revision": "main"}


@pytest.mark.parametrize("name", registry())
def test_registered_plm_has_its_published_size(name, tmp_path):
    snapshot = registry()[name]
    inventory = inventory_of_config(values_of(snapshot, PretrainingConfig(), tmp_path), snapshot.head)
    assert inventory.num_params == snapshot.num_parameters
    assert inventory.family == snapshot.family and snapshot.family in FAMILIES
    weights = snapshot.num_parameters * (4 if snapshot.dtype == "float32" else 2) / 1e9
    assert weights < snapshot.memory_gb < 3 + 1.5 * weights


def test_registry_has_the_paper_pythia_and_smollm2():
    families = [snapshot.family for snapshot in registry().values() if snapshot.kind == "repo_id"]
    assert {f: families.count(f) for f in FAMILIES} == {"bert": 3, "bloom": 3, "t5": 3, "gpt_neox": 8, "llama": 3}


def test_revisions_are_main_or_full_commits():
    revisions = {n: s.source["revision"] for n, s in registry().items() if s.kind == "repo_id"}
    assert all(r == "main" or (len(r) == 40 and int(r, 16)) for r in revisions.values())


def test_entry_may_be_a_name_a_ladder_model_or_a_folder(tmp_path):
    (tmp_path / "my-plm").mkdir()
    assert parse_model("google/t5-v1_1-xxl") is registry()["google/t5-v1_1-xxl"]
    assert isinstance(parse_model("bloom-64x4"), LadderModel)
    assert parse_model(str(tmp_path / "my-plm")) == ModelSource("my-plm", {"folder": str(tmp_path / "my-plm")})


def test_folder_behind_a_symbolic_link_has_the_links_name(tmp_path, monkeypatch):
    save_plm(tiny_plm("bert", fused=False).model, tmp_path / "target")
    (tmp_path / "my-plm").symlink_to(tmp_path / "target")
    monkeypatch.chdir(tmp_path)
    for entry in ("./my-plm", "./my-plm/", str(tmp_path / "my-plm"), "../" + tmp_path.name + "/my-plm"):
        assert parse_model(entry).name == "my-plm"
    assert load_model("my-plm").name == "my-plm"
    fetch_snapshot(parse_model("./my-plm"), tmp_path / "out", Path())
    assert json.loads((tmp_path / "out/snapshot.json").read_text())["name"] == "my-plm"
    monkeypatch.chdir(tmp_path / "target")
    assert parse_model("./").name == "target"


@pytest.mark.parametrize("written", ["~/my-plm", {"name": "my-plm", "source": {"folder": "~/my-plm"}}], ids=type)
def test_folder_may_be_in_the_home_folder(tmp_path, monkeypatch, written):
    save_plm(tiny_plm("bert", fused=False).model, tmp_path / "my-plm")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = parse_model(written)
    assert found.digest == parse_model(str(tmp_path / "my-plm")).digest
    assert values_of(found, PretrainingConfig(), Path())["model_type"] == "bert"
    fetch_snapshot(found, tmp_path / "out", Path())
    assert (tmp_path / "out/snapshot.json").is_file()


def test_mapping_overrides_the_registry():
    own = parse_model({"name": "EleutherAI/pythia-70m", "dtype": "bfloat16"})
    known = registry()["EleutherAI/pythia-70m"]
    assert (own.dtype, own.source, own.config) == ("bfloat16", known.source, known.config)
    assert own.digest != known.digest
    # The number of devices does not change the weights.
    assert parse_model({"name": "EleutherAI/pythia-70m", "num_devices": 2}).digest == known.digest
    moved = parse_model({"name": "EleutherAI/pythia-70m", "source": HUB})
    assert moved.config is moved.memory_gb is moved.num_parameters is None
    assert (moved.family, moved.num_devices) == ("gpt_neox", 1)


@pytest.mark.parametrize("command", ["plan", "resolve"])
def test_folder_without_an_lm_head_is_refused_before_pytorch_is_imported(tmp_path, command):
    save_plm(tiny_plm("bert", fused=False).model.bert, tmp_path / "mini")
    study = {**PARAMS, "models": ["bloom-16x1", "./mini"], "tasks": ["bbc_topics"]}
    (tmp_path / "params.yaml").write_text(json.dumps(study))
    arguments = {"plan": ["--model", "./mini", "--placement", "lora"], "resolve": ["--out-file", "out.json"]}[command]
    code = f"import sys; from apet.cli.app import main; print(main({[command, *arguments]}), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (
        done.stdout == "2 False\n"
        and "{name: mini, source: {folder: mini}, head: classification}" in done.stderr
        and len(done.stderr.splitlines()) == 1
    )


TASK = {
    "name": "films", "version": 1, "type": "classification", "description": "Films.", "metrics": ["accuracy"],
    "text_columns": ["text"], "prompt": "w10 w11 {text} w12", "verbalizer": {"bad": " w13", "good": " w14"},
    "max_length": 9, "local": {"file": "films.csv"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"verbalizer": {"bad": " no", "good": " yes"}}, "label words .*expected distinct token ids"),
        ({"max_length": 3}, "max_length"),
    ],
    ids=["label words that are unknown words", "a prompt that leaves no room for a text"],
)
def test_resolve_refuses_a_task_that_the_tokenizer_of_a_folder_cannot_encode(tmp_path, monkeypatch, changes, expected):
    monkeypatch.chdir(tmp_path)
    save_plm(tiny_plm("bert", fused=False).model, Path("mini"))
    Path("films.csv").write_text("text,label\nw15,bad\nw16,good\n")
    grid = [{"placements": ["lora"], "budgets": ["@own"]}]
    Path("params.yaml").write_text(json.dumps({"models": ["./mini"], "tasks": ["films.yaml"], "grid": grid}))
    Path("films.yaml").write_text(json.dumps(TASK))
    sizes(load_grid(Path("params.yaml")))
    Path("films.yaml").write_text(json.dumps(TASK | changes))
    with pytest.raises(ApetError, match=f"task films: model mini: .*{expected}"):
        sizes(load_grid(Path("params.yaml")))


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("google/t5-v1_1-xl", r"unknown model 'google/t5-v1_1-xl'. Did you mean 'google/t5-v1_1-xxl'\?"),
        ({"name": "a b", "source": HUB}, "name: expected letters, digits .* got 'a b'"),
        ({"source": HUB}, "model: missing key 'name'. Add it."),
        ({"name": "x"}, "model 'x': missing key 'source'. Add it."),
        ({"name": "x", "source": "hub"}, "source: expected {repo_id: …, revision: …}.* got 'hub'"),
        ({"name": "x", "source": {"repo_id": "a/b"}}, "source: missing key 'revision'. Add a commit"),
        (
            {"name": "x", "source": {"folder": "y", "head": "lm"}},
            "source: unknown key 'head'. Write it beside `source`: ",
        ),
        ({"name": "x", "source": {**HUB, "folder": "y"}}, "source: unknown key 'folder'. Allowed: repo_id, revision"),
        ({"name": "x", "source": HUB, "dtype": "int8"}, "dtype: unknown value 'int8'. Allowed: bfloat16"),
        ({"name": "x", "source": HUB, "head": "new"}, "head: unknown value 'new'. Allowed: classification, lm"),
        (
            {"name": "x", "source": HUB, "memory_gb": 0},
            "memory_gb: expected a whole number from 1 to 1,000,000, or null, got 0",
        ),
        ({"name": "x", "source": HUB, "num_devices": 0}, "num_devices: expected a whole number from 1 to 64, got 0"),
        (
            {"name": "x", "source": HUB, "num_devices": True},
            "num_devices: expected a whole number from 1 to 64, got True",
        ),
        ({"name": "x", "source": HUB, "config": {"hidden_size": 8}}, "config: missing key 'family' beside it"),
        (
            {"name": "x", "source": {"repo_id": "a/b", "revision": 3}},
            "source.revision: expected a commit, branch or tag, got 3",
        ),
    ],
)
def test_wrong_entry_raises_clear_error(entry, expected):
    with pytest.raises((ModelError, ConfigError), match=expected):
        parse_model(entry)


def test_digest_of_a_folder_depends_on_its_bytes_only(tmp_path, monkeypatch):
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


def test_unknown_shapes_of_hub_plm_name_the_command(tmp_path):
    model = parse_model({"name": "mine", "source": HUB})
    with pytest.raises(ApetError, match="apet download-model --model mine"):
        values_of(model, PretrainingConfig(), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert values_of(model, PretrainingConfig(), tmp_path) == {"model_type": "bert"}


def test_plan_for_the_largest_plm_needs_no_weights(capsys):
    assert main(["plan", "--model", "google/t5-v1_1-xxl", "--placement", "uniform", "--budget", "@lora"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert sum(made["structures"].values()) == made["budget"] == 6_291_456


def test_slug_is_safe_as_folder_name():
    assert slug("google/t5-v1_1-xxl") == "google--t5-v1_1-xxl"
    assert all("/" not in slug(name) for name in registry())


def test_family_names_equal_the_families() -> None:
    """The registry names them, so that messages need no PyTorch."""
    assert set(NAMES) == set(FAMILIES)
