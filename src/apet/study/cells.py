"""Cells and jobs of a study: what each is, its name, its folder and its seeds. Imports no PyTorch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cache, cached_property
from typing import Any

from apet.config.study_config import TrainingConfig
from apet.core.hashing import digest, seed_for
from apet.core.validation import validate
from apet.models.registry import slug
from apet.placement import MethodSizes
from apet.study.resolved import num_trainings

TRAINER_VERSION = 7
"""Raised whenever the numerics of tuning, training or evaluation change, so that new cells get other names."""


@dataclass(frozen=True)
class Cell:
    """One (model, task, placement, budget) with its replicates: everything that decides the bytes of its results."""

    model: str
    task: str
    placement: str
    budget: str
    num_plans: int
    """Number of plans."""
    num_seeds: int
    """Number of seeds per plan."""
    seed: int
    """Seed of the study."""
    methods: MethodSizes
    training: TrainingConfig
    model_digest: str
    """Digest in the name of the PLM's folder."""
    data_digest: str
    """Digest in the name of the prepared task's folder."""
    trainer_version: int = TRAINER_VERSION

    @cached_property
    def digest(self) -> str:
        """The hash of all fields."""
        return digest({**{name: getattr(self, name) for name in FIELDS}, **_nested(self.methods, self.training)})

    @cached_property
    def path(self) -> str:
        """Path below results/cells: readable names and a short hash of all fields."""
        return f"{slug(self.model)}/{self.task}/{self.placement}-{_slug(self.budget)}-{self.digest[:10]}"

    @property
    def plm_folder(self) -> str:
        """The PLM's folder."""
        return plm_folder(self.model, self.model_digest)

    @property
    def data_folder(self) -> str:
        """The prepared task's folder."""
        return data_folder(self.task, self.data_digest)

    @property
    def replicates(self) -> Iterator[tuple[int, int]]:
        """Pairs (plan index, seed index). A seed index decides initial values and the order of the data."""
        return ((plan, seed) for plan in range(self.num_plans) for seed in range(self.num_seeds))

    @property
    def num_trainings(self) -> int:
        """Number of trainings of a cell with trainable parameters."""
        return num_trainings(self.num_plans, self.num_seeds, len(self.training.lr_multipliers))

    def seed_of(self, stream: str, *replicate: int) -> int:
        """Return the seed of a stream of one replicate: a hash of the cell's coordinates.

        Args:
            stream: plan, start (initial values) or order (of the data).
            *replicate: Plan index, and seed index except for plan.

        Returns:
            The seed.
        """
        return seed_for(stream, self.seed, self.model, self.task, self.placement, self.budget, *replicate)

    @classmethod
    def from_record(cls, values: dict[str, Any]) -> Cell:
        """Return the cell whose `asdict` was recorded."""
        nested = {
            "methods": MethodSizes(**values["methods"]),
            "training": validate(TrainingConfig, values["training"], "training"),
        }
        return cls(**{**values, **nested})


FIELDS = tuple(field.name for field in fields(Cell))


OWN = ("model", "task", "placement", "budget", "num_plans", "num_seeds")
"""Fields that a resolved study contains for each cell. Cells share the values of the others."""


@cache
def _nested(methods: MethodSizes, training: TrainingConfig) -> dict[str, Any]:
    """Convert what thousands of cells share only once."""
    return {"methods": asdict(methods), "training": asdict(training)}


@dataclass(frozen=True)
class Job:
    """Cells of one model that one job trains, so that start-up and loading happen once.

    They share the task too, unless the model is a small ladder model.
    """

    model: str
    cells: tuple[Cell, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of the cells, in order."""
        return tuple(dict.fromkeys(cell.task for cell in self.cells))

    @cached_property
    def name(self) -> str:
        """Readable name that ends with a short hash of the cells, used in file names."""
        cells = digest([cell.path for cell in self.cells])
        return f"{self.tasks[0] if len(self.tasks) == 1 else 'tasks'}-{cells[:10]}"


def plm_folder(model: str, digest: str) -> str:
    """Return the folder of a PLM in a working copy."""
    return f"models/{slug(model)}-{digest[:10]}"


def data_folder(task: str, digest: str) -> str:
    """Return the folder of a prepared task in a working copy."""
    return f"data/tasks/{task}-{digest[:10]}"


def _slug(budget: str) -> str:
    """Convert a budget to a part of a file name: @lora -> lora, 0.01% -> 0.01pct."""
    return re.sub(r"[^A-Za-z0-9.]", "", budget.replace("%", "pct"))
