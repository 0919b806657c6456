"""Which PLMs and tasks a figure has places for: those of the study, be there data or not."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from apet.analysis.means import MEAN, over_tasks
from apet.analysis.resampling import Draws

PLM = ["family", "non_embedding", "model"]


def pairs(frame: pd.DataFrame) -> pd.DataFrame:
    """family, non_embedding, model, task of every pair of the study: with data, or with a cell that is missing.

    Sorted by family, size and task. A PLM of which nothing is there has no size and no place; its cells are counted in
    the notes.
    """
    missing = pd.DataFrame(
        list(frame.attrs.get("missing", ())), columns=["model", "task", "placement", "budget", "reason"]
    )
    found = pd.concat([frame[["model", "task"]], missing[["model", "task"]]]).drop_duplicates()
    facts = frame[PLM].drop_duplicates("model")
    return found.merge(facts, on="model")[[*PLM, "task"]].sort_values([*PLM, "task"], ignore_index=True)


def with_mean(found: pd.DataFrame) -> pd.DataFrame:
    """`pairs`, and each PLM's mean over the tasks of its family."""
    means = found[PLM].drop_duplicates().assign(task=MEAN)
    whole = pd.concat([found, means]).assign(last=lambda f: f.task.eq(MEAN))
    return whole.sort_values(["family", "last", "task", "non_embedding", "model"], ignore_index=True).drop(
        columns="last"
    )


def by_family(draws: Draws, found: pd.DataFrame) -> Iterator[tuple[Draws, list[str]]]:
    """A family's draws and its tasks, for means over tasks: BERT, which writes no text, has fewer than others."""
    for family, group in found.groupby("family"):
        yield draws.select(draws.cells.family.eq(family)), sorted(group.task.unique())


def family_means(draws: Draws, found: pd.DataFrame) -> pd.DataFrame:
    """`over_tasks`, each family over its own tasks."""
    return pd.concat([over_tasks(own, tasks) for own, tasks in by_family(draws, found)]).assign(task=MEAN)


def column_blocks(found: pd.DataFrame, most: int) -> list[list[str]]:
    """PLMs by family and size, in blocks of at most `most` columns; a family that fits stands in one block."""
    blocks: list[list[str]] = [[]]
    for _, group in found.groupby("family"):
        models = list(group.drop_duplicates("model").sort_values(["non_embedding", "model"]).model)
        while models:
            room = most - len(blocks[-1])
            if blocks[-1] and (len(models) > room):
                blocks.append([])
                room = most
            blocks[-1] += models[:room]
            models = models[room:]
    return blocks
