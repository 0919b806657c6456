"""The cells and jobs of a study, with their names and folders. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from apet.config.study_config import GridEntry, StudyConfig, load_study
from apet.core.hashing import digest
from apet.core.yaml_loader import read_yaml
from apet.data.corpus import corpus_digest
from apet.data.prepare import task_digest
from apet.data.source_selection import check_overlapping_sources, choose_source
from apet.data.sources import Source
from apet.data.task_config import Task, load_task
from apet.errors import ApetError, ConfigError, ErrorCollector, error_context, unknown_name
from apet.models.checkpoint_files import PRETRAINING, SNAPSHOT
from apet.models.ladder import PRETRAIN_VERSION, LadderModel, ladder_model_digest, shipped_content
from apet.models.registry import Model, ModelSource, head_of, parse_model, slug
from apet.placement import PLACEMENTS, Budget, canonical_budget, check_gradients
from apet.study.cells import OWN, TRAINER_VERSION, Cell, Job, data_folder, plm_folder

Parsed = TypeVar("Parsed")


OWN_BUDGET = "@own"
MAX_ENTRIES = 100
"""Entries of a list that are checked in a study file with invalid keys."""
SMALL_SIZE = 10_000
"""Layers × width² up to which one job trains cells of a ladder model on several tasks."""

MAX_JOBS = 500
"""Maximum number of training jobs, because each is a rule, and many rules slow Snakemake down. Jobs grow instead."""


class Grid:
    """A study's cells, jobs and folders. Construction checks all names and budgets, as far as possible without a PLM.

    Args:
        study: The study.
        params: The study file, for error messages.

    Raises:
        ConfigError: A name is unknown or duplicate, or the study leaves a model or task without cells.
        BudgetError: A budget cannot be parsed.
    """

    def __init__(self, study: StudyConfig, params: Path):
        self.study = study
        self.params = params
        errors = ErrorCollector()
        models = _collected(parse_model, study.models, f"{params}: models", errors)
        tasks = _collected(load_task, study.tasks, f"{params}: tasks", errors)
        for number, entry in enumerate(study.grid):
            _check_names(entry.placements, entry.budgets, f"{params}: grid.{number}", errors)
            with errors.collect(), error_context(f"{params}: grid.{number}.num_plans"):
                _check_num_plans(entry, study)
        errors.raise_all()
        with error_context(params):
            self.recipe = study.pretraining
            with error_context("models"):
                self.models = _named(models)
                self.shipped = self._shipped()
            with error_context("tasks"):
                self.tasks = _tasks(zip(study.tasks, tasks, strict=True))
            self._check_models_and_tasks()
            self.sources, self.task_digests = self._sources_and_digests()
            check_overlapping_sources(self.tasks, self.sources)
            self.model_task_pairs = self._model_task_pairs()
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
        """Return the folder of a prepared task."""
        return data_folder(task, self.task_digests[task])

    def plm_folder(self, model: str) -> str:
        """Return the folder of a PLM."""
        return plm_folder(model, self.plm_digests[model])

    def plm_record(self, model: str) -> str:
        """Return the file with the origin of a PLM. It is written last, so it marks the folder as complete."""
        return f"{self.plm_folder(model)}/{PRETRAINING if isinstance(self.models[model], LadderModel) else SNAPSHOT}"

    @property
    def pretrained_models(self) -> dict[str, LadderModel]:
        """Ladder models that the study pretrains, by name."""
        return {
            n: model for n, model in self.models.items() if isinstance(model, LadderModel) and n not in self.shipped
        }

    @property
    def downloaded_models(self) -> dict[str, ModelSource]:
        """PLMs that are downloaded or copied, by name."""
        return {name: model for name, model in self.models.items() if isinstance(model, ModelSource)}

    def size(self, model: str) -> int:
        """Return the priority of a PLM's jobs, because the largest should start first."""
        source = self.models[model]
        if isinstance(source, LadderModel):
            return source.layers * source.width**2
        return source.num_parameters or 10**9

    def jobs(self) -> list[Job]:
        """Return the training jobs in a fixed order.

        Cells of a job share the model. They share the task too, unless the model is small and the task is in a pinned
        wheel: the preparation of other tasks can fail, which must not stop the cells of the rest.

        Returns:
            The jobs.
        """
        size = max(self.study.cells_per_job, -(-len(self.cells) // MAX_JOBS))
        groups: dict[tuple[str, str], list[Cell]] = {}
        for cell in self.cells:
            mixed = self._is_small(cell.model) and self.sources[cell.task].kind == "wheel"
            groups.setdefault((cell.model, "" if mixed else cell.task), []).append(cell)
        jobs = []
        for (model, _), cells in groups.items():
            jobs += [Job(model, tuple(cells[i : i + size])) for i in range(0, len(cells), size)]
        return jobs

    def _is_small(self, model: str) -> bool:
        """Return True if a job of this PLM takes longer to start than to train many of its cells."""
        return isinstance(self.models[model], LadderModel) and self.size(model) <= SMALL_SIZE

    def record(self) -> dict[str, Any]:
        """Return the resolved study. Jobs read it, so an edit of params.yaml does not change a running job.

        Values that cells share are stored once; `apet.study.resolve.read_cells` restores the cells.

        Returns:
            The record, without the sizes of PLMs.
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

    def _check_models_and_tasks(self) -> None:
        """Raise ConfigError for names in `grid` and `exclude` that are not in `models` and `tasks`."""
        errors, study = ErrorCollector(), self.study
        named = [(f"grid.{number}.models", "model", entry.models or ()) for number, entry in enumerate(study.grid)]
        for number, entry in enumerate(study.exclude):
            named += [
                (f"exclude.{number}.models", "model", entry.models),
                (f"exclude.{number}.tasks", "task", entry.tasks),
            ]
        for key, kind, names in named:
            known = self.models if kind == "model" else self.tasks
            for name in (name for name in names if name not in known):
                with errors.collect():
                    raise ConfigError(unknown_name(kind, name, known, key))
        errors.raise_all()

    def _sources_and_digests(self) -> tuple[dict[str, Source], dict[str, str]]:
        """Return by task its source and the digest of its prepared folder. Raises the errors of all tasks together."""
        errors, study = ErrorCollector(), self.study
        sources: dict[str, Source] = {}
        for name, task in self.tasks.items():
            with errors.collect():
                sources[name] = choose_source(task, study.sources, self.tasks)
        digests: dict[str, str] = {}
        for entry, name in zip(study.tasks, self.tasks, strict=True):
            with errors.collect(), error_context(f"tasks: {entry}"):
                if name in sources:
                    limits = asdict(study.max_samples)
                    digests[name] = task_digest(self.tasks[name], limits, study.seed, sources[name])
        errors.raise_all()
        return sources, digests

    def _shipped(self) -> dict[str, str]:
        """Return the content digest, by name, of each shipped ladder model with the study's pretraining."""
        models = [model for model in self.models.values() if isinstance(model, LadderModel)]
        digests = {model.name: shipped_content(model, self.recipe) for model in models}
        return {name: content for name, content in digests.items() if content}

    def _plm_digest(self, model: Model) -> str:
        if model.name in self.shipped:
            return digest(["shipped", self.shipped[model.name]])
        if isinstance(model, LadderModel):
            return ladder_model_digest(model, self.recipe, self.corpus)
        with error_context(f"{self.params}: models"):
            return model.digest

    def _budgets_by_model(self) -> dict[str, dict[tuple[str, str], GridEntry]]:
        """By model every (placement, budget) with its entry of the grid, without duplicates and unknown models."""
        budgets: dict[str, dict[tuple[str, str], GridEntry]] = {model: {} for model in self.models}
        first_spelling: dict[tuple[str, str, str], tuple[str, str]] = {}
        for number, entry in enumerate(self.study.grid):
            key = f"{self.params}: grid.{number}"
            for pair, model in product(_product(entry), entry.models or self.models):
                first = first_spelling.setdefault((model, *canonical_budget(*pair)), pair)
                if pair in budgets[model] or first != pair:
                    raise ConfigError(
                        f"{key}: duplicate {' at '.join(pair)}, first as {' at '.join(first)}. Remove one."
                    )
                with error_context(f"{key}.placements"):
                    check_gradients(pair[0], model, head_of(self.models[model]))
                budgets[model][pair] = entry
        for model in (model for model, pairs in budgets.items() if not pairs):
            raise ConfigError(f"{self.params}: grid: missing entry for {model!r}. Remove it from `models`.")
        return budgets

    def _model_task_pairs(self) -> tuple[tuple[str, str], ...]:
        """Pairs (model, task), model by model, without those that the study excludes."""
        excluded = {pair for entry in self.study.exclude for pair in product(entry.models, entry.tasks)}
        pairs = tuple(pair for pair in product(self.models, self.tasks) if pair not in excluded)
        used = {name for pair in pairs for name in pair}
        for name in (name for name in (*self.models, *self.tasks) if name not in used):
            raise ConfigError(f"exclude: no cell left of {name!r}. Remove it from `models` or `tasks`.")
        return pairs

    def _cell(self, model: str, task: str, placement: str, budget: str) -> Cell:
        entry, study = self.budgets_by_model[model][placement, budget], self.study
        # A method has one plan of its own size. Without trainable parameters only a classification head needs seeds.
        tuned = placement != "none"
        num_plans = 1 if canonical_budget(placement, budget)[1] == OWN_BUDGET else entry.num_plans
        num_seeds = entry.num_seeds if tuned or head_of(self.models[model]) == "classification" else 1
        shared = (study.seed, study.methods, entry.training, self.plm_digests[model], self.task_digests[task])
        return Cell(model, task, placement, budget, num_plans, num_seeds, *shared)


def load_grid(params: Path) -> Grid:
    """Read a study and its tasks.

    Args:
        params: The study file.

    Returns:
        The study's cells.

    Raises:
        ConfigError: The study is invalid. If a key is, errors in names and in task files are reported too.
        BudgetError: A budget cannot be parsed.
    """
    errors = ErrorCollector()
    with errors.collect():
        study = load_study(params)
    if errors.errors:
        _check_names_of_invalid(params, errors)
        errors.raise_all()
    return Grid(study, params)


def find_task(study: StudyConfig, params: Path, name: str) -> tuple[Task, Source]:
    """Return a task of a study and its source, even if other tasks of the study are invalid.

    Args:
        study: The study.
        params: The study file, for error messages.
        name: Name of the task, or its entry in the study, the path of a YAML file.

    Returns:
        The task and its source.

    Raises:
        ConfigError: The study has no such task, or it is invalid.
    """
    errors = ErrorCollector()
    loaded = _collected(lambda entry: (entry, load_task(entry)), study.tasks, f"{params}: tasks", errors)
    tasks = {task.name: task for _, task in loaded}
    name = next((task.name for entry, task in loaded if Path(entry) == Path(name)), name)
    if name not in tasks:
        errors.raise_all()  # one of the invalid tasks may have the name
        raise ConfigError(unknown_name("task", name, tasks, f"{params}: tasks"))
    with error_context(params):
        return tasks[name], choose_source(tasks[name], study.sources, tasks)


def _check_names_of_invalid(params: Path, errors: ErrorCollector) -> None:
    """Collect the errors in the names of a study file with invalid keys, as far as the file can be read."""
    values: Mapping[str, Any] = {}
    with suppress(ApetError):
        values = read_yaml(params)
    _collected(parse_model, _entries(values, "models", str, dict), f"{params}: models", errors)
    _collected(load_task, _entries(values, "tasks", str), f"{params}: tasks", errors)
    for number, entry in enumerate(_entries(values, "grid", dict)):
        placements, budgets = _entries(entry, "placements", str), _entries(entry, "budgets", str, int)
        _check_names(placements, [str(budget) for budget in budgets], f"{params}: grid.{number}", errors)


def _entries(values: Mapping[str, Any], key: str, *kinds: type) -> list[Any]:
    """Return the first entries of a list that have one of the types, each once; none if there is no list."""
    entries = values.get(key)
    found = [entry for entry in entries if type(entry) in kinds] if isinstance(entries, list) else []
    return [entry for number, entry in enumerate(found[:MAX_ENTRIES]) if entry not in found[:number]]


def _product(entry: GridEntry) -> Iterator[tuple[str, str]]:
    """Return the placements × budgets of one entry of the grid, in canonical spelling."""
    return product(entry.placements, (Budget.parse(text).text for text in entry.budgets))


def _check_names(placements: Iterable[str], budgets: Sequence[str], key: str, errors: ErrorCollector) -> None:
    """Collect the errors in placements and budgets of one entry of the grid."""
    for text in budgets:
        with errors.collect(), error_context(f"{key}.budgets"):
            Budget.parse(text)
    for placement in placements:
        with errors.collect():
            if placement not in PLACEMENTS.names:
                raise ConfigError(unknown_name("placement", placement, PLACEMENTS.names, f"{key}.placements"))
            if "@own" in budgets and placement not in PLACEMENTS.own:
                allowed = ", ".join(PLACEMENTS.own)
                raise ConfigError(f"{key}.budgets: budget '@own': {placement} has no fixed size. For: {allowed}.")


def _check_num_plans(entry: GridEntry, study: StudyConfig) -> None:
    """Raise ConfigError if several plans of an informed placement are certain to be equal."""
    samples, rows = study.methods.num_calibration_samples, study.max_samples.train
    for placement in entry.placements if entry.num_plans > 1 else ():
        if PLACEMENTS.informed.get(placement) is False:
            raise ConfigError(f"expected 1 for {placement}, which has one plan on each PLM, got {entry.num_plans}.")
        if placement in PLACEMENTS.informed and rows and rows <= samples:
            raise ConfigError(
                f"expected 1 for {placement}, whose plans read all {rows} training rows and are equal, got "
                f"{entry.num_plans}. Lower methods.num_calibration_samples."
            )


def _collected(
    parse: Callable[[Any], Parsed], entries: Iterable[Any], location: str, errors: ErrorCollector
) -> list[Parsed]:
    """Parse entries and collect the errors of the others."""
    parsed = []
    for entry in entries:
        with errors.collect(), error_context(location):
            parsed.append(parse(entry))
    return parsed


def _named(models: Iterable[Model]) -> dict[str, Model]:
    """Models by name."""
    named: dict[str, Model] = {}
    for model in models:
        # Some file systems ignore case.
        if slug(model.name).casefold() in (slug(name).casefold() for name in named):
            raise ConfigError(f"duplicate name {model.name!r}. Give one of the models another `name`.")
        named[model.name] = model
    return named


def _tasks(entries: Iterable[tuple[str, Task]]) -> dict[str, Task]:
    """Return the tasks by name, given each entry of the study with its task."""
    named: dict[str, Task] = {}
    for entry, task in entries:
        if task.name.casefold() in map(str.casefold, named):
            raise ConfigError(f"{entry!r}: duplicate name {task.name!r}. Give one of the tasks another `name`.")
        named[task.name] = task
    return named
