"""Which of its sources a task is read from, in a study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from apet.core.yaml_loader import is_path
from apet.data.schema import FOLDER, Task
from apet.data.sources import KINDS, Source
from apet.data.task_config import load_task, task_names
from apet.errors import ConfigError, truncated_repr, unknown_name

ALL = "all"


def choose_source(task: Task, sources: Mapping[str, str] | None = None, names: Iterable[str] = ()) -> Source:
    """The source that a study's `sources` (task, or `all` → hub, wheel, local or a folder) names for a task.

    A folder holds `<task>/<split>.jsonl` (or csv, tsv, parquet) in the task's own column names. Without an entry the
    task's first own source is taken. `names`: further tasks that the study knows. ParamsError for an unknown task or
    kind, a kind that the task does not have, or a folder without the task's.
    """
    sources = sources or {}
    for key in sources:
        if key not in (ALL, task.name, *names, *task_names()):
            raise ConfigError(unknown_name("task", key, (ALL, task.name, *names, *task_names()), "sources"))
    key = task.name if task.name in sources else ALL
    if key not in sources:
        return _own(task, next(iter(task.sources), ""), "sources")
    chosen = sources[key]
    if chosen in KINDS:
        return _own(task, chosen, f"sources: {key}")
    folder = Path(chosen) / task.name
    if not is_path(folder) or not Path(chosen).is_dir():
        kinds = ", ".join(task.sources)
        said = f"sources: {key} is {truncated_repr(chosen)}: no folder, nor a kind of source"
        raise ConfigError(f"{said}. {task.name} has: {kinds}.")
    if not folder.is_dir():
        raise ConfigError(
            f"sources: {key} is {truncated_repr(chosen)}, which has no folder {task.name!r}. Give {task.name} its own."
        )
    return Source("local", {"folder": str(folder)})


def sisters_of(task: Task, source: Source) -> list[tuple[Task, Source]]:
    """The task's sisters (see Task) that are in the same place: the hub, the wheels, or the same folder of tasks. One
    that is named by its YAML file and is not there is read from its own source; ParamsError if it has none.
    """
    found = []
    for name, sister in _sisters(task).items():
        place = _beside(task, source, sister)
        if place is None and name.endswith(".yaml"):
            place = _own(sister, next(iter(sister.sources), ""), f"task {task.name}: overlapping_tasks: {name}")
        if place is not None:
            found.append((sister, place))
    return found


def check_sisters(tasks: Mapping[str, Task], sources: Mapping[str, Source]) -> None:
    """ParamsError if two sisters of one study are read from different places: only in one place does each leave out of
    its train what the other holds out. Both mappings are by the task's name.
    """
    for name, task in tasks.items():
        together = {sister.name: _place(source) for sister, source in sisters_of(task, sources[name])}
        for sister in (sister.name for sister in _sisters(task).values()):
            if sister in tasks and together.get(sister) != _place(sources[sister]):
                raise ConfigError(
                    f"sources: {name} and {sister} hold the same texts, and {name} is read from {sources[name].kind}, "
                    f"{sister} from elsewhere, so one could train on what the other tests. Give both the same source."
                )


def _sisters(task: Task) -> dict[str, Task]:
    return {name: load_task(task.folder / name if name.endswith(".yaml") else name) for name in task.overlapping_tasks}


def _beside(task: Task, source: Source, sister: Task) -> Source | None:
    """A sister's source of the same kind. A folder that a study names has each task's below its name; where a task's
    own YAML names one, so does the sister's, but for those that come with apet.
    """
    own = Source(source.kind, sister.sources[source.kind]) if source.kind in sister.sources else None
    if source.kind != "local" or "folder" not in source.spec:
        return own
    if source.spec == task.sources.get("local") and sister.folder != FOLDER:
        return own
    folder = Path(source.spec["folder"]).parent / sister.name
    return Source("local", {"folder": str(folder)}) if is_path(folder) and folder.is_dir() else own


def _place(source: Source) -> tuple[str, dict[str, Any]]:
    """A source, the same by whatever path its files are found."""
    paths = ("file", "folder") if source.kind == "local" else ()
    return source.kind, {key: Path(value).resolve() if key in paths else value for key, value in source.spec.items()}


def _own(task: Task, kind: str, where: str) -> Source:
    if kind not in task.sources:
        kinds = ", ".join(task.sources) or "none"
        raise ConfigError(f"{where}: task {task.name} has no source {kind or 'of its own'!r}. It has: {kinds}.")
    return Source(kind, task.sources[kind])
