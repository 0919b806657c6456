"""Choice of a task's source in a study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from apet.core.yaml_loader import is_path
from apet.data.sources import KINDS, LocalSource, Source
from apet.data.task_config import Task, load_task, task_names
from apet.errors import ConfigError, truncated_repr, unknown_name

ALL = "all"


def choose_source(task: Task, sources: Mapping[str, str] | None = None, names: Iterable[str] = ()) -> Source:
    """Choose the source of a task.

    Args:
        task: The task.
        sources: `sources` of a study: a task, or `all`, -> hub, wheel, local, or a folder with `<task>/<split>.jsonl`
            (or csv, tsv, parquet) in the task's own column names. Without an entry, the task's first source is used.
        names: Names of the study's other tasks.

    Returns:
        One of the task's own sources, or the folder.

    Raises:
        ConfigError: For an unknown task or kind, a kind that the task does not have, or a folder without the task's.
    """
    sources = sources or {}
    known = (ALL, task.name, *names, *task_names())
    for key in sources:
        if key not in known:
            raise ConfigError(unknown_name("task", key, known, "sources"))
    key = task.name if task.name in sources else ALL
    if key not in sources:
        return _own_source(task, next(iter(task.sources), ""), "sources")
    chosen = sources[key]
    if chosen in KINDS:
        return _own_source(task, chosen, f"sources.{key}")
    folder = Path(chosen) / task.name
    if not is_path(folder) or not Path(chosen).is_dir():
        kinds = ", ".join(task.sources)
        raise ConfigError(
            f"sources.{key}: expected a folder or a source of {task.name} ({kinds}), got {truncated_repr(chosen)}."
        )
    if not folder.is_dir():
        raise ConfigError(
            f"sources.{key}: {truncated_repr(chosen)} has no folder {task.name!r}. Add a key {task.name} to sources."
        )
    return LocalSource(folder=str(folder))


def overlapping_sources(task: Task, source: Source) -> list[tuple[Task, Source]]:
    """Return the overlapping tasks that are in the same location: the hub, the wheels, or the same folder of tasks.

    A task that is given by its YAML file and is missing there is read from its own source.

    Args:
        task: The task whose `overlapping_tasks` are looked up.
        source: Source of the task.

    Returns:
        Each overlapping task with the source that it is read from.

    Raises:
        ConfigError: If a task that is given by its YAML file has no source.
    """
    pairs = []
    for name, other in _overlapping_tasks(task).items():
        sibling = _sibling_source(task, source, other, is_shipped=not name.endswith(".yaml"))
        if sibling is None and name.endswith(".yaml"):
            location = f"task {task.name}: overlapping_tasks: {Path(name).name}"
            sibling = _own_source(other, next(iter(other.sources), ""), location)
        if sibling is not None:
            pairs.append((other, sibling))
    return pairs


def check_overlapping_sources(tasks: Mapping[str, Task], sources: Mapping[str, Source]) -> None:
    """Check that overlapping tasks of a study are read from one location.

    Otherwise, neither drops from its train split what the other holds out.

    Args:
        tasks: Name -> task.
        sources: Name of a task -> its source.

    Raises:
        ConfigError: If two overlapping tasks are read from different locations.
    """
    for name, task in tasks.items():
        siblings = {other.name: _location(source) for other, source in overlapping_sources(task, sources[name])}
        for other in (other.name for other in _overlapping_tasks(task).values()):
            if other in tasks and siblings.get(other) != _location(sources[other]):
                raise ConfigError(
                    f"sources: {name} and {other} have the same texts, but {name} is read from {sources[name].kind} "
                    f"and {other} from elsewhere, so one could train on what the other tests. Give both the same "
                    "source."
                )


def _overlapping_tasks(task: Task) -> dict[str, Task]:
    return {name: load_task(name) for name in task.overlapping_tasks}


def _sibling_source(task: Task, source: Source, other: Task, is_shipped: bool) -> Source | None:
    """Return an overlapping task's source of the same kind.

    A folder that a study gives has a folder for each task. If the folder is that of the task's own file, the other
    task has its own folder too, unless it is a shipped one.
    """
    own = other.sources.get(source.kind)
    if not isinstance(source, LocalSource) or not source.folder:
        return own
    if source == task.local and not is_shipped:
        return own
    folder = Path(source.folder).parent / other.name
    return LocalSource(folder=str(folder)) if is_path(folder) and folder.is_dir() else own


def _location(source: Source) -> Source:
    """Return a source, equal for all paths of the same files."""
    if not isinstance(source, LocalSource):
        return source
    file, folder = (path and str(Path(path).resolve()) for path in (source.file, source.folder))
    return replace(source, file=file, folder=folder)


def _own_source(task: Task, kind: str, location: str) -> Source:
    if kind not in task.sources:
        kinds = ", ".join(task.sources) or "none"
        raise ConfigError(f"{location}: task {task.name} has no source {kind or 'of its own'!r}. It has: {kinds}.")
    return task.sources[kind]
