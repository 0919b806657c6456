"""JSON Schemas of study and task files, with which editors complete and check them.

`python -m apet.study.schemas` writes them to the folder schemas.
"""

from __future__ import annotations

from pathlib import Path

from apet.config.study_config import StudyConfig
from apet.core.validation import json_schema
from apet.data.task_config import Task


def schemas() -> dict[str, str]:
    """Return file name -> JSON Schema."""
    return {"study.json": json_schema(StudyConfig, "apet study"), "task.json": json_schema(Task, "apet task")}


if __name__ == "__main__":
    for name, text in schemas().items():
        Path("schemas", name).write_text(text, "utf-8")
