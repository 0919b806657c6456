"""Wheels of a few bytes, pinned for one test, and tasks that read them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest

from apet.data import wheels
from apet.data.task_config import Task, parse_task

TAB = "toy/rows.tab"
METADATA = {
    "toy-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n",
    "toy-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "toy-1.0.dist-info/RECORD": "",
}


def pin_toy(monkeypatch: pytest.MonkeyPatch, folder: Path, members: dict[str, str | bytes]) -> Path:
    """Write toy-1.0 with these members into `folder` and make it the only wheel of the registry."""
    folder.mkdir(exist_ok=True)
    path = folder / "toy-1.0-py3-none-any.whl"
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for member, content in {**members, **METADATA}.items():
            archive.writestr(member, content)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(wheels, "known_wheels", lambda: {"toy": wheels.Wheel("toy", "1.0", path.name, sha256)})
    return path


def tab(rows: list[tuple[str, str]]) -> str:
    """An Orange table of (label, text) rows."""
    return "Category\tText\nd\tstring\nclass\t\n\n" + "".join(f"{label}\t{text}\n" for label, text in rows)


def toy_source(**changes: object) -> dict:
    """The wheel source of a task file that reads TAB."""
    column_map = {"text": "Text", "label": "Category"}
    return {"package": "toy", "reader": "tab", "members": {"all": TAB}, "column_map": column_map, **changes}


def toy_task(**changes: object) -> Task:
    """A task over TAB with the classes a and b. A key that is None is left out."""
    values = {
        "name": "toy",
        "version": 1,
        "description": "Toy.",
        "type": "classification",
        "wheel": toy_source(),
        "text_columns": ["text"],
        "prompt": "{text}\nTopic:",
        "metrics": ["accuracy"],
        "max_length": 16,
        "verbalizer": {"a": " apple", "b": " pear"},
    }
    values = {key: value for key, value in {**values, **changes}.items() if value is not None}
    return parse_task(values, "toy.yaml", Path())


def write_jsonl(path: Path, rows: list[dict]) -> None:
    """A file of one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
