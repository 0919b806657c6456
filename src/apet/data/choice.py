"""Which of its sources a task is read from, in a study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from apet.data.sources import KINDS, Source
from apet.data.tasks import Task, load_task, task_names
from apet.errors import ParamsError, unknown

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
            raise ParamsError(unknown("task", key, (ALL, task.name, *names, *task_names()), "sources"))
    key = task.name if task.name in sources else ALL
    if key not in sources:
        return _own(task, next(iter(task.sources), ""), "sources")
    chosen = sources[key]
    if chosen in KINDS:
        return _own(task, chosen, f"sources: {key}")
    folder = Path(chosen) / task.name
    if not Path(chosen).is_dir():
        kinds = ", ".join(task.sources)
        raise ParamsError(f"sources: {key} is {chosen!r}: no folder, nor a kind of source. {task.name} has: {kinds}.")
    if not folder.is_dir():
        raise ParamsError(f"sources: {key} is {chosen!r}, which has no folder {task.name!r}. Give {task.name} its own.")
    return Source("local", {"folder": str(folder)})


def sisters_of(task: Task, source: Source) -> list[tuple[Task, Source]]:
    """The task's sisters (see Task) that are in the same place: the hub, the wheels, or the same folder of tasks."""
    found = []
    for name in task.sisters:
        sister = load_task(name)
        folder = Path(source.spec["folder"]).parent / name if "folder" in source.spec else None
        if source.kind == "local":
            if folder and folder.is_dir():
                found.append((sister, Source("local", {"folder": str(folder)})))
        elif source.kind in sister.sources:
            found.append((sister, Source(source.kind, sister.sources[source.kind])))
    return found


def check_sisters(tasks: Mapping[str, Task], sources: Mapping[str, Source]) -> None:
    """ParamsError if two sisters of one study are read from different places: only in one place does each leave out of
    its train what the other holds out. Both mappings are by the task's name.
    """
    for name, task in tasks.items():
        together = {sister.name: source for sister, source in sisters_of(task, sources[name])}
        for sister in task.sisters:
            if sister in tasks and together.get(sister) != sources[sister]:
                raise ParamsError(
                    f"sources: {name} and {sister} hold the same texts, and {name} is read from {sources[name].kind}, "
                    f"{sister} from elsewhere, so one could train on what the other tests. Give both the same source."
                )


def _own(task: Task, kind: str, where: str) -> Source:
    if kind not in task.sources:
        kinds = ", ".join(task.sources) or "none"
        raise ParamsError(f"{where}: task {task.name} has no source {kind or 'of its own'!r}. It has: {kinds}.")
    return Source(kind, task.sources[kind])
