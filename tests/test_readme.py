"""What the README shows, done."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import yaml

from apet.cli.app import main
from apet.data.prepare import read_split, read_task
from toy import PARAMS

README = (Path(__file__).parent.parent / "README.md").read_text()


def block(begins: str) -> str:
    """The code block that begins so."""
    return next(code for code in re.findall(r"```\w*\n(.*?)```", README, re.DOTALL) if code.startswith(begins))


def test_a_task_of_ones_own_is_a_yaml_and_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("my_task.yaml").write_text(block("# my_task.yaml"))
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


def test_the_plans_command_works_as_written(capsys):
    command = next(line for line in block("$ apet plan").splitlines() if line.startswith("$ apet plan"))
    assert main(command.split("#")[0].split()[2:]) == 0
    assert '"budget": 6291456' in capsys.readouterr().out


def test_every_path_it_names_is_there():
    root = Path(__file__).parent.parent
    linked = re.findall(r"\]\(([^)#]+)\)", README)
    named = re.findall(r"`((?:studies|docs|src|workflow)/[\w./]+)`", README)
    missing = [path for path in {*linked, *named} if not path.startswith("http") and not (root / path).exists()]
    assert missing == []
