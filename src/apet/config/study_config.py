"""params.yaml as frozen dataclasses. A wrong file is one ParamsError: file, key, value, what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

from apet.core.yaml_loader import MOST, is_integer, read_yaml
from apet.errors import ConfigError, truncated_repr, unknown_name
from apet.placement import MethodSizes

SCHEMA = Path(__file__).with_name("params.schema.yaml")


@dataclass(frozen=True)
class LearningRates:
    """Adam's step size for each structure's parameters, and for a trained classification head."""

    entry: float
    bias: float
    lowrank: float
    bottleneck: float
    token: float
    head: float


@dataclass(frozen=True)
class TrainingConfig:
    """How a cell is trained. See params.yaml for what each key does."""

    loss: str
    max_steps: int
    batch_size: int
    max_length: int
    learning_rates: LearningRates
    lr_multipliers: tuple[float, ...]
    lr_scheduler_type: str
    warmup_ratio: float
    num_evals: int
    max_grad_norm: float
    gradient_checkpointing: bool
    early_stopping_patience: int | None = None
    bucket_factor: int = 8

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TrainingConfig:
        grid = tuple(float(x) for x in values["rate_grid"])
        rates = LearningRates(**{k: float(v) for k, v in values["rates"].items()})
        # 1 and 1.0 are one value, so they must give one name.
        plain = {key: float(values[key]) for key in ("warmup", "clip")}
        return cls(**{**values, **plain, "rates": rates, "rate_grid": grid})

    def override(self, values: Mapping[str, Any]) -> TrainingConfig:
        """The same training with some keys changed (within `rates`, some rates)."""
        merged = asdict(self) | dict(values)
        merged["rates"] = asdict(self.learning_rates) | dict(values.get("rates", {}))
        return TrainingConfig.of(merged)


@dataclass(frozen=True)
class GridEntry:
    """One entry of the grid: the product of its placements and budgets, with draws × reruns replicates each, for some
    of the study's models (None: for all).
    """

    placements: tuple[str, ...]
    budgets: tuple[str, ...]
    num_plans: int
    num_seeds: int
    training: TrainingConfig
    models: tuple[str, ...] | None = None


@dataclass(frozen=True)
class AnalysisConfig:
    """What counts as above chance and as below full fine-tuning (points), and as about the same budget (decades)."""

    chance_margin: float = 2.0
    full_ft_margin: float = 2.0
    equivalence_decades: float = 0.5

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> AnalysisConfig:
        return cls(**{name: float(value) for name, value in values.items()})


@dataclass(frozen=True)
class StudyConfig:
    """A whole params.yaml, resolved."""

    name: str
    seed: int
    models: tuple[str | Mapping[str, Any], ...]
    tasks: tuple[str, ...]
    exclude: tuple[Mapping[str, list[str]], ...]
    sources: Mapping[str, str]
    max_samples: Mapping[str, int | None]
    methods: MethodSizes
    pretraining: Mapping[str, Any] = field(repr=False)
    grid: tuple[GridEntry, ...] = field(repr=False)
    analysis: AnalysisConfig
    cells_per_job: int


def load_study(path: Path) -> StudyConfig:
    """Read a study. Raises ParamsError for a file that is not YAML, or that the schema does not allow."""
    values = read_yaml(path)
    check_values(values, path)
    training = _possible(TrainingConfig.of(values["training"]), f"{path}: training")
    return StudyConfig(
        name=values["study"],
        seed=values["seed"],
        models=tuple(values["models"]),
        tasks=tuple(values["tasks"]),
        exclude=tuple(values["exclude"]),
        sources=values["sources"],
        max_samples=values["rows"],
        methods=replace(MethodSizes(), **values["methods"]),
        pretraining=values["pretraining"],
        grid=tuple(_axis(entry, training, f"{path}: grid.{n}") for n, entry in enumerate(values["grid"])),
        analysis=AnalysisConfig.of(values.get("analysis", {})),
        cells_per_job=values["cells_per_job"],
    )


def _axis(entry: Mapping[str, Any], training: TrainingConfig, where: str) -> GridEntry:
    return GridEntry(
        placements=tuple(entry["placements"]),
        budgets=tuple(str(b) for b in entry["budgets"]),
        num_plans=entry.get("draws", 1),
        num_seeds=entry.get("reruns", 1),
        training=_possible(training.override(entry.get("training", {})), f"{where}.training"),
        models=tuple(entry["models"]) if "models" in entry else None,
    )


def _possible(training: TrainingConfig, where: str) -> TrainingConfig:
    """The same; ParamsError for keys that are each allowed, and not together."""
    if training.num_evals > training.max_steps:
        raise ConfigError(
            f"{where}.evaluations: {training.num_evals}. Allowed: at most the {training.max_steps} steps."
        )
    return training


_Draft = jsonschema.Draft202012Validator
_Schema = jsonschema.validators.extend(
    _Draft,
    # Without 1.0 for 1, NaN, infinity, and what JSON's readers would round.
    type_checker=_Draft.TYPE_CHECKER.redefine_many(
        {
            "integer": lambda _, value: is_integer(value, -MOST),
            "number": lambda _, value: type(value) in (int, float) and abs(value) <= MOST,
        }
    ),
)


@cache
def _validator(part: str | None) -> jsonschema.protocols.Validator:
    schema = read_yaml(SCHEMA)
    schema = schema if part is None else {"$ref": f"#/$defs/{part}", "$defs": schema["$defs"]}
    return _Schema(schema)


def check_values(values: Any, path: object, part: str | None = None) -> None:
    """The first error in the order of the file's keys, as one sentence. part: a definition of the schema's, such as
    training; None: a whole study.
    """
    errors = _validator(part).iter_errors(values)
    error = min(errors, key=lambda e: (len(e.path), str(list(e.path))), default=None)
    if error is not None:
        key = ".".join(map(str, error.absolute_path)) or "the top level"
        raise ConfigError(f"{path}: {_sentence(key, error)}")


def _sentence(key: str, error: jsonschema.ValidationError) -> str:
    """What is wrong at a key, in the words of the schema's descriptions."""
    value, rule = error.instance, error.validator_value
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        return unknown_name("key", next(k for k in value if k not in known), known, key)
    if error.validator == "required":
        return f"{key}: key {next(k for k in rule if k not in value)!r} is missing. Required: {', '.join(rule)}."
    if error.validator == "enum":
        return unknown_name("value", value, rule, key)
    allowed = error.schema.get("description") or f"{error.validator} {rule}"
    if type(value) is int and abs(value) > MOST:
        allowed += ", below 2**53"
    if error.validator == "uniqueItems":
        twice = next(v for n, v in enumerate(value) if v in value[:n])
        return f"{key}: {truncated_repr(twice)} stands twice. Allowed: {allowed}."
    return f"{key}: {truncated_repr(value)}. Allowed: {allowed}."
