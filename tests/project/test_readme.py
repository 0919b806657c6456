"""README and docs/study_file.md: their examples run, and the paths they name exist."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import yaml

from apet.cli.app import main
from apet.data.prepared_files import read_split, read_task
from toy import PARAMS, ROOT

README = (ROOT / "README.md").read_text()
STUDY_FILE = (ROOT / "docs" / "study_file.md").read_text()


def block(page: str, start: str) -> str:
    """Code block of a page that starts with a text."""
    return next(code for code in re.findall(r"```\w*\n(.*?)```", page, re.DOTALL) if code.startswith(start))


def test_custom_task_of_the_readme_can_be_prepared(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("my_task.yaml").write_text(block(README, "# my_task.yaml"))
    rows = [f'"ticket {i}: {"the server is down" if i % 3 else "a question"}",{"urgent" if i % 3 else "calm"}'
            for i in range(200)]  # fmt: skip
    Path("tickets.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    study = copy.deepcopy(PARAMS) | {
        "tasks": ["my_task.yaml"],
        "max_samples": {"train": 50, "validation": 10, "test": None},
    }
    Path("params.yaml").write_text(yaml.safe_dump(study))
    assert main(["prepare-task", "--task", "my_task"]) == 0
    (folder,) = Path("data/tasks").iterdir()
    record = read_task(folder)
    assert record["rows"]["train"] == 50 and record["rows"]["validation"] == 10 and record["rows"]["test"] > 20
    assert set(record["overlap"].values()) == {0}
    assert set(read_split(folder, "test")["label"]) == {0, 1}
    assert main(["resolve", "--out-file", "study.json"]) == 0
    assert "my_task" in Path("study.json").read_text()


def test_plan_command_of_the_study_file_page_runs_as_written(capsys):
    command = block(STUDY_FILE, "$ apet plan").splitlines()[0]
    assert main(command.split("#")[0].split()[2:]) == 0
    assert '"budget": 6291456' in capsys.readouterr().out


def test_paths_in_the_readme_exist():
    linked = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README)
    named = re.findall(r"`((?:studies|docs|src|workflow)/[\w./]+)`", README)
    missing = [path for path in {*linked, *named} if not path.startswith("http") and not (ROOT / path).exists()]
    assert missing == []


def test_readme_is_short():
    assert len(README.splitlines()) <= 140 and len(README.split()) <= 1000
