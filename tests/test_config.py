"""params.yaml: what ships is valid, what is wrong is one clear error, and cells have names of their own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from apet.config.study_config import load_study
from apet.core.hashing import digest
from apet.core.records import write_json_record
from apet.errors import ApetError, ConfigError
from apet.study.grid import Grid
from apet.study.resolve import read_cells, sizes

ROOT = Path(__file__).parent.parent
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())


def grid_of(folder: Path, values: dict) -> Grid:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return Grid(load_study(path), path)


def changed(key: str, value: object) -> dict:
    """The shipped study with one key (dotted; numbers are positions in a list) set to something else."""
    values = yaml.safe_load(yaml.safe_dump(PARAMS))
    place, parts = values, key.split(".")
    for part in parts[:-1]:
        place = place[int(part) if isinstance(place, list) else part]
    place[int(parts[-1]) if isinstance(place, list) else parts[-1]] = value
    return values


STUDIES = [ROOT / "params.yaml", *sorted((ROOT / "studies").glob("*.yaml"))]


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.name)
def test_every_shipped_study_is_valid(path):
    grid = Grid(load_study(path), path)
    assert grid.cells
    assert len({c.path for c in grid.cells}) == len(grid.cells)
    assert sizes(grid).keys() == grid.models.keys()


def test_excluded_pairs_have_no_cells_and_rename_no_other(tmp_path):
    whole = grid_of(tmp_path, PARAMS)
    part = grid_of(tmp_path, changed("exclude", [{"models": ["bloom-32x2"], "tasks": ["reuters8"]}]))
    gone = {c.path for c in whole.cells} - {c.path for c in part.cells}
    assert {c.path for c in part.cells} < {c.path for c in whole.cells}
    assert {tuple(path.split("/")[:2]) for path in gone} == {("bloom-32x2", "reuters8")}
    assert {(b.model, task) for b in part.jobs() for task in b.tasks} == set(part.pairs) and len(part.pairs) == 5


def test_an_entry_of_the_grid_may_be_for_some_models_alone(tmp_path):
    """Another entry may then train the same placement and budget of the others otherwise."""
    entry = {"placements": ["attention"], "budgets": [64], "models": ["bloom-64x4"]}
    others = {**entry, "models": ["bloom-32x2"], "training": {"max_steps": 7}}
    whole, part = grid_of(tmp_path, PARAMS), grid_of(tmp_path, changed("grid", [*PARAMS["grid"], entry, others]))
    more = [cell for cell in part.cells if cell.path not in {c.path for c in whole.cells}]
    assert {(cell.model, cell.training.max_steps) for cell in more} == {("bloom-64x4", 60), ("bloom-32x2", 7)}
    with pytest.raises(ConfigError, match="attention at 64 stands twice"):
        grid_of(tmp_path, changed("grid", [*PARAMS["grid"], entry, entry]))
    with pytest.raises(ConfigError, match="grid has no entry for 'bloom-32x2'"):
        grid_of(tmp_path, changed("grid", [entry]))


WRONG = [
    ("exclude", [{"models": ["bloom-32x3"], "tasks": ["reuters8"]}], "Did you mean 'bloom-32x2'"),
    ("exclude", [{"models": ["bloom-32x2"], "tasks": ["rte"]}], "exclude.0.tasks: unknown task 'rte'"),
    ("exclude", [{"models": ["bloom-32x2"], "tasks": PARAMS["tasks"]}], "leaves nothing of 'bloom-32x2'"),
    ("exclude", [{"models": ["bloom-32x2"]}], "exclude.0"),
    ("exclude", {"bloom-32x2": "reuters8"}, "exclude"),
    ("models", ["bloom-33x2"], "bloom-33x2"),
    ("models", ["blom-32x2"], "blom"),
    ("models", [], "at least one"),
    ("models", ["bloom-32x2", "bloom-32x2"], "different"),
    ("tasks", ["bbc_topic"], "Did you mean 'bbc_topics'"),
    ("tasks", ["x; touch pwned"], "task"),
    ("grid.0.placements", ["loora"], "Did you mean 'lora'"),
    ("grid.0.budgets", [-5], "budgets"),
    ("grid.0.budgets", ["-5"], "budget '-5'"),
    ("grid.0.budgets", ["200%"], "100"),
    ("grid.0.budgets", ["@foo"], "@lora"),
    ("grid.0.budgets", [], "different budgets"),
    ("grid.3.budgets", ["@own"], "no count of its own"),
    ("grid.0.draws", 0, "from 1"),
    ("grid.0.seeds", 3, "unknown key 'seeds'"),
    ("stduy", "x", "Did you mean 'study'"),
    ("study", "My Study", "small letters"),
    ("seed", -1, "from 0"),
    ("seed", "one", "whole number"),
    ("max_samples.train", 0, "from 2"),
    ("rows.dev", 5, "unknown key 'dev'"),
    ("methods.lora_rank", 0, "from 1"),
    ("methods.rank", 8, "unknown key 'rank'"),
    ("training.max_steps", 0, "from 1"),
    ("training.max_steps", 1.5, "whole number"),
    ("training.loss", "all", "Allowed: full_vocab, label_words"),
    ("training.lr_scheduler_type", "cosine", "Allowed: constant, linear"),
    ("training.learning_rates.entry", 0, "above 0"),
    ("training.learning_rates.lora", 0.1, "unknown key 'lora'"),
    ("training.lr_multipliers", [], "factors"),
    ("training.rate", 0.1, "Did you mean"),
    ("pretraining.max_tokns", 5, "max_tokens"),
    ("cells_per_job", 0, "from 1"),
]


@pytest.mark.parametrize(("key", "value", "said"), WRONG, ids=[f"{k}={v}" for k, v, _ in WRONG])
def test_a_wrong_study_is_one_clear_error(tmp_path, key, value, said):
    with pytest.raises(ApetError) as caught:
        grid_of(tmp_path, changed(key, value))
    message = str(caught.value)
    assert said in message
    assert "params.yaml" in message
    assert len(message.splitlines()) <= 5


OPTIONAL = {"analysis"}


@pytest.mark.parametrize("key", sorted({*PARAMS} - OPTIONAL))
def test_every_key_is_required(tmp_path, key):
    with pytest.raises(ApetError, match=key):
        grid_of(tmp_path, {k: v for k, v in PARAMS.items() if k != key})


NO_STUDY = ["", "- a\n", "study: [\n", "study: a\nstudy: b\n", "\tstudy: a\n", "!!python/object:x {}"]


@pytest.mark.parametrize("text", NO_STUDY)
def test_what_is_not_a_study_at_all_is_refused(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ApetError, match=r"params\.yaml"):
        load_study(path)


def test_same_pair_twice_is_refused(tmp_path):
    entry = {"placements": ["lora"], "budgets": ["@own"]}
    values = changed("grid", [entry, dict(entry)])
    with pytest.raises(ApetError, match="stands twice"):
        grid_of(tmp_path, values)


def test_one_axis_edited_renames_only_its_cells(tmp_path):
    before = {c.path for c in grid_of(tmp_path, PARAMS).cells}
    after = {c.path for c in grid_of(tmp_path, changed("grid.2.reruns", 5)).cells}
    gone = before - after
    assert {path.split("/")[2].split("-")[0] for path in gone} == {"lora", "adapter", "bitfit", "prompt"}
    assert len(gone) == len(after - before) == 4 * len(PARAMS["models"]) * len(PARAMS["tasks"])


@pytest.mark.parametrize("key", ["training.max_steps", "seed", "max_samples.train"])
def test_what_decides_all_bytes_renames_all_cells(tmp_path, key):
    before = {c.path for c in grid_of(tmp_path, PARAMS).cells}
    after = {c.path for c in grid_of(tmp_path, changed(key, 77)).cells}
    assert not before & after


@pytest.mark.parametrize(("key", "value"), [("study", "other"), ("cells_per_job", 3)])
def test_what_decides_no_byte_renames_nothing(tmp_path, key, value):
    assert grid_of(tmp_path, PARAMS).id == grid_of(tmp_path, changed(key, value)).id


def test_seeds_never_coincide(tmp_path):
    cells = grid_of(tmp_path, PARAMS).cells
    seeds = [c.seed_of(s, d, r) for c in cells for d, r in c.replicates for s in ("plan", "start", "order")]
    assert len(set(seeds)) == len(seeds)


def test_a_cell_survives_its_record(tmp_path):
    grid = grid_of(tmp_path, PARAMS)
    write_json_record(tmp_path / "study.json", grid.record())
    assert read_cells(tmp_path / "study.json") == list(grid.cells)
    last = grid.cells[-1]
    assert read_cells(tmp_path / "study.json", [last.path]) == [last] and last.digest == digest(asdict(last))


def test_blocks_hold_every_cell_once_and_stay_few(tmp_path):
    grid = grid_of(tmp_path, changed("cells_per_job", 10))
    blocks = grid.jobs()
    assert sorted(c.path for b in blocks for c in b.cells) == sorted(c.path for c in grid.cells)
    assert all(len({c.model for c in b.cells}) == 1 and len(b.cells) <= 10 for b in blocks)
    assert len({b.job for b in blocks}) == len(blocks)
    assert all(len(b.tasks) == 1 for b in blocks if b.model == "bloom-128x4")
    assert any(len(b.tasks) > 1 for b in blocks if b.model == "bloom-32x2")
