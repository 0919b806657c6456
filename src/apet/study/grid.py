"""From a study to its cells: what each one is, what it is called, where it lies. No tensors, no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Any

from apet.config.study_config import GridEntry, StudyConfig, TrainingConfig
from apet.core.hashing import digest, seed_for
from apet.core.validation import validate
from apet.data.corpus import corpus_digest
from apet.data.prepare import task_digest
from apet.data.source_selection import check_overlapping_sources, choose_source
from apet.data.task_config import Task, load_task
from apet.errors import ConfigError, error_context, unknown_name
from apet.models.checkpoint_files import PRETRAINING, SNAPSHOT
from apet.models.ladder import PRETRAIN_VERSION, LadderModel, ladder_model_digest, shipped_content
from apet.models.registry import Model, ModelSource, head_of, parse_model, slug
from apet.placement import PLACEMENTS, Budget, MethodSizes, canonical_budget

TRAINER_VERSION = 4
"""Raised whenever the numerics (tuning, training, evaluation) change, so that old cells are not taken for new ones."""

SMALL_RUNG = 10_000
"""Layers × width² of a rung up to which one job trains cells of several tasks."""

MOST_JOBS = 500
"""A workflow with more training jobs than this gets larger ones: one rule a job slows Snakemake down beyond it."""


@dataclass(frozen=True)
class Cell:
    """One (model, task, budget, placement) with its replicates: all that decides its bytes.

    plm and data are the digests that name the PLM's and the prepared task's folders.
    """

    model: str
    task: str
    placement: str
    budget: str
    num_plans: int
    num_seeds: int
    seed: int
    methods: MethodSizes
    training: TrainingConfig
    model_digest: str
    data_digest: str
    trainer_version: int = TRAINER_VERSION

    @cached_property
    def digest(self) -> str:
        return digest({**{name: getattr(self, name) for name in FIELDS}, **_nested(self.methods, self.training)})

    @cached_property
    def path(self) -> str:
        """The cell's folder below the cells' root: readable first, then a short hash of everything."""
        return f"{slug(self.model)}/{self.task}/{self.placement}-{_slug(self.budget)}-{self.digest[:10]}"

    @property
    def plm_folder(self) -> str:
        return plm_folder(self.model, self.model_digest)

    @property
    def data_folder(self) -> str:
        return data_folder(self.task, self.data_digest)

    @property
    def replicates(self) -> Iterator[tuple[int, int]]:
        """(draw, rerun): a draw has its plan, a rerun its own initial values and order of data."""
        return ((d, r) for d in range(self.num_plans) for r in range(self.num_seeds))

    def seed_of(self, stream: str, *replicate: int) -> int:
        """The seed of one stream (plan, start, order) of one replicate: a hash of the cell's coordinates."""
        return seed_for(stream, self.seed, self.model, self.task, self.placement, self.budget, *replicate)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Cell:
        """The cell that `asdict` was taken of."""
        nested = {
            "methods": MethodSizes(**values["methods"]),
            "training": validate(TrainingConfig, values["training"], "training"),
        }
        return cls(**{**values, **nested})


FIELDS = tuple(field.name for field in fields(Cell))
OWN = ("model", "task", "placement", "budget", "num_plans", "num_seeds")
"""What a cell does not share with all others of its study, PLM, task or recipe."""


@cache
def _nested(methods: MethodSizes, training: TrainingConfig) -> dict[str, Any]:
    """What thousands of cells share, taken apart once."""
    return {"methods": asdict(methods), "training": asdict(training)}


@dataclass(frozen=True)
class Job:
    """Cells of one model that one job trains, so that start-up, PLM and data are paid for once.

    They share the task too, except those of a small rung.
    """

    model: str
    number: int
    cells: tuple[Cell, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The cells' tasks, in their order."""
        return tuple(dict.fromkeys(cell.task for cell in self.cells))

    @property
    def name(self) -> str:
        """Readable, and part of files' names."""
        return f"{slug(self.model)}/{self.tasks[0] if len(self.tasks) == 1 else 'tasks'}-{self.number}"

    @property
    def job(self) -> str:
        """The same in one word."""
        return self.name.replace("/", "_")


class Grid:
    """A study's cells and folders. Building it checks every name and budget as far as that needs no PLM."""

    def __init__(self, study: StudyConfig, params: Path):
        self.study = study
        self.params = params
        with error_context(params):
            self.recipe = study.pretraining
            with error_context("models"):
                self.models = _named(parse_model(entry) for entry in study.models)
                self.shipped = self._shipped()
            with error_context("tasks"):
                self.tasks = _tasks(study.tasks)
            self.sources = {n: choose_source(t, study.sources, self.tasks) for n, t in self.tasks.items()}
            check_overlapping_sources(self.tasks, self.sources)
            self.model_task_pairs = self._model_task_pairs()
            self.task_digests = {name: self._task_digest(name) for name in self.tasks}
        self.budgets_by_model = self._budgets_by_model()
        self.decontaminated_tasks = tuple(name for name, source in self.sources.items() if source.kind != "wheel")
        corpus = corpus_digest(study.seed, [self.task_digests[name] for name in self.decontaminated_tasks])
        self.corpus = f"data/corpus/{corpus[:10]}"
        self.tokenizer = f"models/tokenizer-{digest([PRETRAIN_VERSION, self.corpus, self.recipe.vocab_size])[:10]}"
        self.plm_digests = {name: self._plm_digest(model) for name, model in self.models.items()}
        self.cells = tuple(
            self._cell(*pair, *spent) for pair in self.model_task_pairs for spent in self.budgets_by_model[pair[0]]
        )
        self.id = digest({"cells": [cell.path for cell in self.cells], "analysis": study.analysis})

    def task_folder(self, task: str) -> str:
        return data_folder(task, self.task_digests[task])

    def plm_folder(self, model: str) -> str:
        return plm_folder(model, self.plm_digests[model])

    def plm_record(self, model: str) -> str:
        """The file that tells where a PLM is from, the last to be there when its folder is whole."""
        return f"{self.plm_folder(model)}/{PRETRAINING if isinstance(self.models[model], LadderModel) else SNAPSHOT}"

    @property
    def pretrained_models(self) -> dict[str, LadderModel]:
        """The PLMs that are pretrained here."""
        return {
            n: model for n, model in self.models.items() if isinstance(model, LadderModel) and n not in self.shipped
        }

    @property
    def downloaded_models(self) -> dict[str, ModelSource]:
        """The PLMs that are fetched."""
        return {name: model for name, model in self.models.items() if isinstance(model, ModelSource)}

    def size(self, model: str) -> int:
        """Rank of a PLM by cost, for the order of jobs: the largest should start first."""
        found = self.models[model]
        if isinstance(found, LadderModel):
            return found.layers * found.width**2
        return found.num_parameters or 10**9

    def jobs(self) -> list[Job]:
        """The training jobs, in a fixed order; cells of one job share the model and, unless it is small, the task."""
        size = max(self.study.cells_per_job, -(-len(self.cells) // MOST_JOBS))
        together: dict[tuple[str, str], list[Cell]] = {}
        for cell in self.cells:
            together.setdefault((cell.model, "" if self._is_small(cell.model) else cell.task), []).append(cell)
        found = []
        for (model, _), cells in together.items():
            parts = [tuple(cells[i : i + size]) for i in range(0, len(cells), size)]
            found += [Job(model, number, part) for number, part in enumerate(parts)]
        return found

    def _is_small(self, model: str) -> bool:
        """Whether a job of this PLM takes longer to start than many of its cells take to train."""
        return isinstance(self.models[model], LadderModel) and self.size(model) <= SMALL_RUNG

    def record(self) -> dict[str, Any]:
        """The resolved study, as jobs read it: one edit of params.yaml cannot change a job that is under way.

        What cells share stands once; `apet.analysis.aggregate.read_study` makes the cells again.
        """
        trainings = list(dict.fromkeys(axis.training for axis in self.study.grid))
        number = {training: n for n, training in enumerate(trainings)}
        return {
            "study": self.id,
            "name": self.study.study,
            "shared": {
                "seed": self.study.seed,
                "methods": asdict(self.study.methods),
                "trainer_version": TRAINER_VERSION,
            },
            "digests": {"model_digest": self.plm_digests, "data_digest": self.task_digests},
            "trainings": [asdict(training) for training in trainings],
            "analysis": asdict(self.study.analysis),
            "cells": {c.path: {n: getattr(c, n) for n in OWN} | {"training": number[c.training]} for c in self.cells},
        }

    def _task_digest(self, task: str) -> str:
        return task_digest(self.tasks[task], asdict(self.study.max_samples), self.study.seed, self.sources[task])

    def _shipped(self) -> dict[str, str]:
        """The content, by name, of each rung that comes with apet and was pretrained as the study asks."""
        rungs = [model for model in self.models.values() if isinstance(model, LadderModel)]
        found = {rung.name: shipped_content(rung, self.recipe) for rung in rungs}
        return {name: content for name, content in found.items() if content}

    def _plm_digest(self, model: Model) -> str:
        if model.name in self.shipped:
            return digest(["shipped", self.shipped[model.name]])
        if isinstance(model, LadderModel):
            return ladder_model_digest(model, self.recipe, self.corpus)
        with error_context(self.params):
            return model.digest

    def _budgets_by_model(self) -> dict[str, dict[tuple[str, str], GridEntry]]:
        """By model every (placement, budget) with its entry of the grid. Raises ParamsError for one that stands twice,
        and for a model that the study does not have or that no entry leaves a cell.
        """
        found: dict[str, dict[tuple[str, str], GridEntry]] = {model: {} for model in self.models}
        plain: dict[tuple[str, str, str], tuple[str, str]] = {}
        for number, axis in enumerate(self.study.grid):
            where = f"{self.params}: grid.{number}"
            for name in (name for name in axis.models or () if name not in self.models):
                raise ConfigError(unknown_name("model", name, self.models, f"{where}.models"))
            for spent, model in product(_product(axis, where), axis.models or self.models):
                first = plain.setdefault((model, *canonical_budget(*spent)), spent)
                if spent in found[model] or first != spent:
                    raise ConfigError(f"{where}: {' at '.join(spent)} stands twice, first as {' at '.join(first)}.")
                found[model][spent] = axis
        for model in (model for model, own in found.items() if not own):
            raise ConfigError(f"{self.params}: grid has no entry for {model!r}: take it out of `models`.")
        return found

    def _model_task_pairs(self) -> tuple[tuple[str, str], ...]:
        """(model, task), model by model, without those that the study excludes. Raises ParamsError for a name that is
        not the study's, and for a model or task that would be left alone.
        """
        excluded = set()
        for number, entry in enumerate(self.study.exclude):
            for key, known in (("models", self.models), ("tasks", self.tasks)):
                for name in (name for name in getattr(entry, key) if name not in known):
                    raise ConfigError(unknown_name(key[:-1], name, known, f"exclude.{number}.{key}"))
            excluded |= set(product(entry.models, entry.tasks))
        pairs = tuple(pair for pair in product(self.models, self.tasks) if pair not in excluded)
        kept = {name for pair in pairs for name in pair}
        for name in (name for name in (*self.models, *self.tasks) if name not in kept):
            raise ConfigError(f"exclude leaves nothing of {name!r}: take it out of `models` or `tasks`.")
        return pairs

    def _cell(self, model: str, task: str, placement: str, budget: str) -> Cell:
        axis = self.budgets_by_model[model][placement, budget]
        # Without parameters nothing is drawn, and nothing is trained but a head: one replicate says it all.
        tuned = placement != "none"
        draws = axis.num_plans if tuned else 1
        reruns = axis.num_seeds if tuned or head_of(self.models[model]) == "classification" else 1
        plm, data = self.plm_digests[model], self.task_digests[task]
        study = self.study
        return Cell(model, task, placement, budget, draws, reruns, study.seed, study.methods, axis.training, plm, data)


def _product(axis: GridEntry, where: str) -> Iterator[tuple[str, str]]:
    """The placements × budgets of one entry of the grid, budgets in the one way of writing them."""
    for placement in axis.placements:
        if placement not in PLACEMENTS.names:
            raise ConfigError(unknown_name("placement", placement, PLACEMENTS.names, f"{where}.placements"))
        for written in axis.budgets:
            with error_context(f"{where}.budgets"):
                budget = Budget.parse(written)
                if budget.placement == "own" and placement not in PLACEMENTS.own:
                    allowed = ", ".join(PLACEMENTS.own)
                    raise ConfigError(f"budget '@own': {placement!r} has no count of its own. For: {allowed}.")
            yield placement, budget.text


def plm_folder(model: str, digest: str) -> str:
    """Where a PLM lies in a working copy."""
    return f"models/{slug(model)}-{digest[:10]}"


def data_folder(task: str, digest: str) -> str:
    """Where a prepared task lies in a working copy."""
    return f"data/tasks/{task}-{digest[:10]}"


def _named(models: Iterable[Model]) -> dict[str, Model]:
    """Models by name. Raises ParamsError for two that could not be told apart on disk."""
    found: dict[str, Model] = {}
    for model in models:
        # Some disks take two names for one that differ in capitals alone.
        if slug(model.name).casefold() in (slug(name).casefold() for name in found):
            raise ConfigError(f"{model.name!r} stands twice. Give one of them another `name`.")
        found[model.name] = model
    return found


def _tasks(entries: Iterable[str]) -> dict[str, Task]:
    """Tasks by name. Raises ParamsError for two of one name."""
    found: dict[str, Task] = {}
    for entry in entries:
        task = load_task(entry)
        if task.name.casefold() in map(str.casefold, found):
            raise ConfigError(f"{entry!r}: a task named {task.name!r} stands twice.")
        found[task.name] = task
    return found


def _slug(budget: str) -> str:
    """A budget as part of a file's name: @lora -> lora, 0.01% -> 0.01pct."""
    return re.sub(r"[^A-Za-z0-9.]", "", budget.replace("%", "pct"))
