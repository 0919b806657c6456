"""params.yaml as frozen dataclasses. A wrong file is one ParamsError: file, key, value, what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

from apet.errors import ParamsError, unknown
from apet.placement import Methods
from apet.yamls import read_yaml

SCHEMA = Path(__file__).with_name("params.schema.yaml")


@dataclass(frozen=True)
class Rates:
    """Adam's step size for each structure's parameters, and for a trained classification head."""

    entry: float
    bias: float
    lowrank: float
    bottleneck: float
    token: float
    head: float


@dataclass(frozen=True)
class Training:
    """How a cell is trained. See params.yaml for what each key does."""

    loss: str
    steps: int
    batch: int
    length: int
    rates: Rates
    rate_grid: tuple[float, ...]
    schedule: str
    warmup: float
    evaluations: int
    clip: float
    checkpointing: bool
    patience: int | None = None
    buckets: int = 8

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Training:
        grid = tuple(float(x) for x in values["rate_grid"])
        rates = Rates(**{k: float(v) for k, v in values["rates"].items()})
        # 1 and 1.0 are one value, so they must give one name.
        plain = {key: float(values[key]) for key in ("warmup", "clip")}
        return cls(**{**values, **plain, "rates": rates, "rate_grid": grid})

    def override(self, values: Mapping[str, Any]) -> Training:
        """The same training with some keys changed (within `rates`, some rates)."""
        merged = asdict(self) | dict(values)
        merged["rates"] = asdict(self.rates) | dict(values.get("rates", {}))
        return Training.of(merged)


@dataclass(frozen=True)
class Axis:
    """One entry of the grid: the product of its placements and budgets, with draws × reruns replicates each."""

    placements: tuple[str, ...]
    budgets: tuple[str, ...]
    draws: int
    reruns: int
    training: Training


@dataclass(frozen=True)
class Study:
    """A whole params.yaml, resolved."""

    name: str
    seed: int
    models: tuple[str | Mapping[str, Any], ...]
    tasks: tuple[str, ...]
    exclude: tuple[Mapping[str, list[str]], ...]
    sources: Mapping[str, str]
    rows: Mapping[str, int | None]
    methods: Methods
    pretraining: Mapping[str, Any] = field(repr=False)
    grid: tuple[Axis, ...] = field(repr=False)
    cells_per_job: int


def load_study(path: Path) -> Study:
    """Read a study. Raises ParamsError for a file that is not YAML, or that the schema does not allow."""
    values = read_yaml(path)
    _validate(values, path)
    training = Training.of(values["training"])
    return Study(
        name=values["study"],
        seed=values["seed"],
        models=tuple(values["models"]),
        tasks=tuple(values["tasks"]),
        exclude=tuple(values["exclude"]),
        sources=values["sources"],
        rows=values["rows"],
        methods=replace(Methods(), **values["methods"]),
        pretraining=values["pretraining"],
        grid=tuple(_axis(entry, training) for entry in values["grid"]),
        cells_per_job=values["cells_per_job"],
    )


def _axis(entry: Mapping[str, Any], training: Training) -> Axis:
    return Axis(
        placements=tuple(entry["placements"]),
        budgets=tuple(str(b) for b in entry["budgets"]),
        draws=entry.get("draws", 1),
        reruns=entry.get("reruns", 1),
        training=training.override(entry.get("training", {})),
    )


@cache
def _validator() -> jsonschema.protocols.Validator:
    return jsonschema.Draft202012Validator(read_yaml(SCHEMA))


def _validate(values: Any, path: Path) -> None:
    """The first error in the order of the file's keys, as one sentence."""
    error = min(_validator().iter_errors(values), key=lambda e: (len(e.path), str(list(e.path))), default=None)
    if error is None:
        return
    key = ".".join(map(str, error.absolute_path)) or "the top level"
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        extra = next(k for k in error.instance if k not in known)
        raise ParamsError(unknown("key", extra, known, f"{path}: {key}"))
    if error.validator == "enum":
        raise ParamsError(unknown("value", error.instance, error.validator_value, f"{path}: {key}"))
    said = error.schema.get("description", "")
    raise ParamsError(f"{path}: {key}: {error.message}." + (f" Allowed: {said}" if said else ""))
