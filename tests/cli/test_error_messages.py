"""Error messages of the command line that name the key and the fix."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import yaml

from apet.cli.app import main
from apet.core.atomic import atomic_dir, atomic_write
from apet.errors import DataError, StorageError
from toy import edited

TASK = {
    "name": "tickets", "version": 1, "description": "Is it urgent?", "type": "classification",
    "local": {"file": "tickets.csv"}, "text_columns": ["text"], "prompt": "Ticket: {text}",
    "verbalizer": {"calm": " no", "urgent": " yes"}, "metrics": ["accuracy"], "max_length": 24,
}  # fmt: skip
RESOLVE = ("resolve", "--out-file", "study.json")


@pytest.fixture
def error(tmp_path, monkeypatch, capsys):
    """Run a command with a study in a folder, and return its error, line by line."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, task: dict | None = None, **changes) -> list[str]:
        Path("params.yaml").write_text(yaml.safe_dump(edited(**changes)))
        Path("tickets.yaml").write_text(yaml.safe_dump(TASK | (task or {})))
        assert main(arguments) == 2
        return capsys.readouterr().err.removeprefix("apet: ").splitlines()

    return run


@pytest.mark.parametrize("write", [atomic_write, atomic_dir])
def test_errors_name_the_final_file_instead_of_a_temporary_one(tmp_path, write):
    path = tmp_path / "my results" / "study.v1"
    for raised, expected in (
        (lambda temporary: PermissionError(errno.EACCES, "no", str(temporary / "file")), StorageError),
        (lambda temporary: DataError(f"{temporary}: corrupt. See '{temporary.name}'."), DataError),
    ):
        with pytest.raises(expected) as error, write(path) as temporary:
            assert temporary != path
            raise raised(temporary)
        assert str(path) in str(error.value) and ".part" not in str(error.value)


def test_errors_keep_the_users_own_hidden_files():
    text = "a.b: see .x for /d/.git/.data.part and /d/.abc.12345678.txt"
    assert str(DataError(text)) == text


def test_errors_in_models_tasks_placements_and_budgets_are_reported_together(error):
    grid = [{"placements": ["loora"], "budgets": ["@lroa"]}]
    lines = error(*RESOLVE, models=["blom"], tasks=["bbc_topic"], grid=grid)
    keys = ["models: unknown model", "tasks: unknown task", "grid.0.budgets: unknown", "grid.0.placements: unknown"]
    assert len(lines) == 4
    assert all(line.startswith(f"params.yaml: {key}") for line, key in zip(lines, keys, strict=True))


def test_unknown_names_in_grid_and_exclude_are_reported_together(error):
    grid = [{"placements": ["full"], "budgets": ["@own"], "models": ["blom"]}]
    lines = error(*RESOLVE, grid=grid, exclude=[{"models": ["bloom"], "tasks": ["bbc"]}])
    keys = ["grid.0.models: unknown model", "exclude.0.models: unknown model", "exclude.0.tasks: unknown task"]
    assert len(lines) == 3
    assert all(line.startswith(f"params.yaml: {key}") for line, key in zip(lines, keys, strict=True))


def test_unknown_budget_suggests_a_name(error):
    (line,) = error("plan", "--model", "bloom-16x1", "--placement", "uniform", "--budget", "@lroa")
    assert line.startswith("unknown budget '@lroa'. Did you mean '@lora'? Allowed: @adapter, ")


def test_placement_without_a_size_asks_for_a_budget(error):
    lines = error("plan", "--model", "bloom-16x1", "--placement", "uniform")
    assert lines == ["uniform has no fixed size. Pass --budget, such as 4096, 0.01% or @lora."]


def test_plan_of_a_folder_without_config_names_the_file(error):
    (line,) = error("plan", "--model", "./my-plm", "--placement", "lora")
    assert line.startswith("my-plm: no such folder. Name a folder with a PLM, or get one by")
    Path("my-plm").mkdir()
    (line,) = error("plan", "--model", "./my-plm", "--placement", "lora")
    assert line.startswith("my-plm: no config.json. Download a PLM with `apet download-model`")


def test_missing_model_folder_or_config_names_the_key(error):
    (line,) = error(*RESOLVE, models=["./my-plm"])
    assert line.startswith("params.yaml: models: my-plm: no such folder")
    Path("my-plm").mkdir()
    (line,) = error(*RESOLVE, models=["./my-plm"])
    assert line.startswith("params.yaml: models: my-plm: no config.json")


def test_missing_rows_name_the_task_file_and_the_key(error):
    (line,) = error(*RESOLVE, tasks=["tickets.yaml"])
    assert line.startswith("params.yaml: tasks: tickets.yaml: local.file: tickets.csv: no such file.")


def test_missing_resolved_study_names_the_command_that_makes_it(error):
    folders = ["--model-dir", "m", "--data-dir", "d", "--results-dir", "r"]
    (line,) = error("train", "--resolved", "study.json", *folders, "*")
    assert line == "study.json: no such file. Create it with `apet resolve --out-file study.json`."


def test_status_before_the_first_run_counts_no_cell(error, capsys):
    error("status", models=[])
    Path("params.yaml").write_text(yaml.safe_dump(edited()))
    assert main(["status", "--results-dir", "results"]) == 0
    assert " cells: 0 done, " in capsys.readouterr().out
    assert main(["status", "--failed"]) == 0
    assert capsys.readouterr().out.startswith("0 of ")


def test_unknown_model_suggests_a_mapping_only_in_a_study(error):
    (line,) = error("plan", "--model", "blom", "--placement", "lora")
    assert "unknown model 'blom'" in line and "{name:" not in line
    assert "{name: …, source: …}" in error(*RESOLVE, models=["blom"])[0]


def test_prompt_without_a_text_column_names_it(error):
    (line,) = error(*RESOLVE, tasks=["tickets.yaml"], task={"prompt": "Ticket: text"})
    assert line == "params.yaml: tasks: tickets.yaml: prompt: {text} is missing (text_columns: [text])."


def test_too_few_rows_to_split_are_counted(error):
    Path("tickets.csv").write_text("text,label\none,calm\ntwo,urgent\n")
    (line,) = error("prepare-task", "--task", "tickets", tasks=["tickets.yaml"])
    problem = "split validation has no rows: 2 rows are too few to split. Add rows, or give one file per split."
    assert line == f"task tickets: {problem}"


def test_study_name_with_capitals_is_refused(error):
    (line,) = error(*RESOLVE, study="Quick Study")
    assert line == "params.yaml: study: expected lowercase letters, digits, - and _, at most 100, got 'Quick Study'."


def test_plan_uses_the_sizes_of_the_study(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["plan", "--model", "bloom-16x1", "--placement", "prompt"]
    assert main(command) == 0 and json.loads(capsys.readouterr().out)["budget"] == 100 * 16
    Path("other.yaml").write_text(yaml.safe_dump(edited(methods={"num_virtual_tokens": 7})))
    assert main([*command, "--params", "other.yaml"]) == 0
    assert json.loads(capsys.readouterr().out)["budget"] == 7 * 16
