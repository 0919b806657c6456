"""Where a task's rows come from: the hub, a local folder or file, or a wheel.

A kind is a module with three functions: `check` (a YAML's spec, or ParamsError), `identity` (what enters a digest and
a record; no path of this machine) and `records` (the rows).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apet.data.schema import Row, Task, to_rows
from apet.data.sources import hub, local, wheel

KINDS = {"hub": hub, "local": local, "wheel": wheel}


@dataclass(frozen=True)
class Source:
    """One source of a task: its kind (see KINDS) and what is said about it there."""

    kind: str
    spec: Mapping[str, Any]

    def identity(self, task: Task) -> dict[str, Any]:
        """Plain values that decide the rows. A local source's files are read for it; nothing is fetched."""
        mapping = {key: self.spec[key] for key in ("column_map", "label_map") if key in self.spec}
        return {"kind": self.kind, **KINDS[self.kind].identity(self.spec, task), **mapping}

    def rows(self, task: Task, wheels_folder: Path) -> Iterator[Row]:
        """The rows of a task. DataError, with file and line, for what is not as it should be."""
        return to_rows(KINDS[self.kind].records(self.spec, task, wheels_folder), task, self.spec)
