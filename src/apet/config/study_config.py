"""The study file, params.yaml: its keys with their types, limits, defaults and meaning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator
from pydantic.dataclasses import dataclass

from apet.core.validation import (
    CLOSED,
    DISTINCT,
    LINE,
    LIST,
    MAX_INTEGER,
    NOT_EMPTY,
    Bool,
    Line,
    Lines,
    Number,
    PositiveInt,
    Ratio,
    Seed,
    Whole,
    matching,
    merged,
    validate,
)
from apet.core.yaml_loader import read_yaml
from apet.errors import ConfigError, ErrorCollector, truncated_repr
from apet.placement import PLACEMENTS, MethodSizes

LearningRate = Annotated[Number, Field(gt=0, le=10)]
MaxSamples = Annotated[Whole, Field(ge=2)] | None
Points = Annotated[Number, Field(gt=0, le=100)]


def _budget(value: Any) -> str:
    if not isinstance(value, str) and (type(value) is not int or not 0 <= value <= MAX_INTEGER):
        raise ValueError(f"expected a whole number below 2**53, 0.01%, @lora or @own, got {truncated_repr(value)}.")
    return str(value)


def _model_entry(value: Any) -> str | Mapping[str, Any]:
    if isinstance(value, Mapping) or (isinstance(value, str) and re.fullmatch(LINE, value)):
        return value
    expected = "bloom-64x4, a name of the registry or ./plms/my-plm in one line, or a mapping with name and source"
    raise ValueError(f"expected {expected}, got {truncated_repr(value)}.")


StudyName = Annotated[str, matching("[a-z0-9_-]{1,100}", "lowercase letters, digits, - and _, at most 100")]
BudgetText = Annotated[str, PlainValidator(_budget, json_schema_input_type=int | str)]
TaskEntry = Annotated[str, matching(LINE, "a task's name or the path of a YAML file")]
SourceEntry = Annotated[str, matching(LINE, "hub, wheel, local or a folder")]
PlacementName = Annotated[Line, WithJsonSchema({"enum": list(PLACEMENTS.names)})]
"""Unknown names are reported with those of tasks and models, when the cells are made."""
Placements = Annotated[tuple[PlacementName, ...], NOT_EMPTY, LIST, DISTINCT]
ModelEntry = Annotated[
    str | Mapping[str, Any], PlainValidator(_model_entry, json_schema_input_type=str | dict[str, Any])
]


@dataclass(frozen=True, config=CLOSED)
class LearningRates:
    """Learning rates of AdamW for the parameters of each structure."""

    entry: LearningRate = 0.001
    """Single elements of weights. Full fine-tuning needs a smaller one."""
    bias: LearningRate = 0.003
    """Single elements of biases."""
    lowrank: LearningRate = 0.001
    """Rank-1 components, as in LoRA."""
    bottleneck: LearningRate = 0.001
    """Hidden units of adapters."""
    token: LearningRate = 0.03
    """Virtual tokens."""
    scale: LearningRate = 0.003
    """Factors of hidden states, as in (IA)³."""
    prefix: LearningRate = 0.01
    """Key-value pairs, as in prefix tuning."""
    head: LearningRate = 0.003
    """A classification head (`head: classification`), which is not part of θ."""


@dataclass(frozen=True, config=CLOSED)
class TrainingConfig:
    """Training of a cell."""

    loss: Literal["label_words", "full_vocab"] = "label_words"
    """Cross-entropy over the label words, or over the whole vocabulary as in the paper's code."""
    max_steps: PositiveInt = 1000
    """Optimizer steps."""
    batch_size: PositiveInt = 16
    """Rows in a step."""
    max_length: Annotated[Whole, Field(ge=8)] = 128
    """Maximum number of tokens of a prompt with its text. A task may set a lower limit."""
    learning_rates: LearningRates = field(default_factory=LearningRates)
    """Learning rate of each structure."""
    lr_multipliers: Annotated[tuple[LearningRate, ...], NOT_EMPTY, LIST, DISTINCT] = (1.0,)
    """Factors tried on all learning rates by the first replicate of a cell. The best on validation is used by all."""
    lr_scheduler_type: Literal["linear", "constant"] = "linear"
    """Learning rate after the warm-up: linear to zero, or constant."""
    warmup_ratio: Ratio = 0.1
    """Fraction of the steps in which the learning rate rises."""
    num_evals: PositiveInt = 10
    """Evaluations on validation in a training. θ of the best one is kept."""
    max_grad_norm: Annotated[Number, Field(gt=0)] = 1.0
    """Gradient clipping: the largest norm of θ's gradient."""
    gradient_checkpointing: Bool = False
    """Recompute activations in the backward pass: less memory, a third more time, the same numbers."""
    early_stopping_patience: PositiveInt | None = None
    """Stop after this many evaluations without improvement. null: never stop early."""
    bucket_factor: PositiveInt = 8
    """Length bucketing: number of batches whose rows are sorted by length together. 1: no sorting."""

    @model_validator(mode="after")
    def _check(self) -> TrainingConfig:
        if self.num_evals > self.max_steps:
            raise ValueError(f"num_evals: expected at most the {self.max_steps} of max_steps, got {self.num_evals}.")
        return self

    def override(self, values: Mapping[str, Any], location: str) -> TrainingConfig:
        """Return the configuration with some keys changed, within `learning_rates` too. Raises ConfigError."""
        return validate(TrainingConfig, merged(asdict(self), values), location)


@dataclass(frozen=True, config=CLOSED)
class GridEntry:
    """Cells: every placement × budget of the entry, for every model and task of the study."""

    placements: Placements
    """Names of placements: full, lora, adapter, bitfit, prompt, layernorm, ia3, prefix, uniform, attention, …"""
    budgets: Annotated[tuple[BudgetText, ...], NOT_EMPTY, LIST, DISTINCT]
    """Numbers of trainable parameters: 4096, 0.01%, @lora (as many as LoRA has), @own (the method's own number)."""
    models: Lines | None = None
    """Only for these of the study's models."""
    num_plans: PositiveInt = 1
    """Plans, each with other positions. A method at its own number of parameters has one in any case."""
    num_seeds: PositiveInt = 1
    """Trainings of each plan, each with other initial values and order of data."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Keys of `training` that differ in this entry."""


@dataclass(frozen=True, config=CLOSED)
class Exclusion:
    """Pairs of model and task to skip."""

    models: Lines
    """Names of the study's models."""
    tasks: Lines
    """Names of the study's tasks. Each is skipped for each of the models."""


@dataclass(frozen=True, config=CLOSED)
class AnalysisConfig:
    """Margins of the findings. Changing them retrains no cell."""

    chance_margin: Points = 2.0
    """Points above chance from which on a score exceeds chance."""
    full_ft_margin: Points = 2.0
    """Points below full fine-tuning down to which a score matches it."""
    equivalence_margin: Annotated[Number, Field(gt=0, le=10)] = 0.5
    """Powers of ten (S.D.) within which thresholds on different tasks are about the same."""


@dataclass(frozen=True, config=CLOSED)
class SampleLimits:
    """Maximum number of rows of each split, chosen by a hash of their text. null: all rows."""

    train: MaxSamples = None
    """Train rows."""
    validation: MaxSamples = None
    """Validation rows."""
    test: MaxSamples = None
    """Test rows."""


@dataclass(frozen=True, config=CLOSED)
class PretrainingConfig:
    """Pretraining of ladder models: in float32, all with one recipe. The defaults are those of the shipped ladder.

    With other values, all ladder models of the study are pretrained on this machine.
    """

    vocab_size: Annotated[Whole, Field(ge=270)] = 4096
    """Vocabulary size: 256 bytes, 14 special tokens, merges."""
    max_tokens: PositiveInt = 10_000_000
    """Total number of predicted tokens."""
    batch_size: PositiveInt = 16
    """Rows in a step."""
    block_size: Annotated[Whole, Field(ge=8)] = 128
    """Tokens in a row."""
    muon_lr: Ratio = 0.007
    """Learning rate of Muon, for the matrices of the blocks."""
    embedding_lr: Ratio = 0.01
    """Learning rate of AdamW for the word embeddings."""
    scalar_lr: Ratio = 0.0035
    """Learning rate of AdamW for biases and norms."""
    warmup_ratio: Ratio = 0.05
    """Fraction of the steps in which the learning rates rise from 0."""
    lr_scheduler_type: Literal["linear", "cosine"] = "linear"
    """Learning rate decay to 0 after the warm-up."""
    causal_phase_ratio: Ratio = 0.5
    """BERT and T5: fraction of the steps, at the start, that use a causal mask. BLOOM always has one."""
    seed: Seed = 1
    """Seed of the initial values, the order of documents and what is masked."""

    @property
    def steps(self) -> int:
        """Complete batches in `max_tokens`, at least one."""
        return max(1, self.max_tokens // (self.batch_size * self.block_size))

    def is_causal(self, step: int) -> bool:
        """Check if a step belongs to the causal first phase of BERT and T5."""
        return step < self.causal_phase_ratio * self.steps


@dataclass(frozen=True, config=CLOSED)
class StudyConfig:
    """A study. Required are models, tasks and grid; all other keys have defaults."""

    models: Annotated[tuple[ModelEntry, ...], NOT_EMPTY, LIST, DISTINCT]
    """PLMs: of the ladder (bloom-64x4), of the registry (google/t5-v1_1-base), folders (./plms/my-plm), or mappings
    with the registry's keys."""
    tasks: Annotated[tuple[TaskEntry, ...], NOT_EMPTY, LIST, DISTINCT]
    """Names of shipped tasks, or paths of YAML files."""
    grid: Annotated[tuple[GridEntry, ...], NOT_EMPTY, LIST]
    """The cells."""
    study: StudyName = "study"
    """A name for reports: lowercase letters, digits, - and _, at most 100."""
    seed: Seed = 1
    """All other seeds are hashes of this one and of a cell's coordinates."""
    exclude: Annotated[tuple[Exclusion, ...], LIST] = ()
    """Pairs of model and task to skip."""
    sources: Mapping[str, SourceEntry] = field(default_factory=dict)
    """Task, or `all` -> source of its rows: hub, wheel, local, or a folder of <task>/<split>.jsonl."""
    max_samples: SampleLimits = field(default_factory=SampleLimits)
    """Maximum number of rows of each split."""
    methods: MethodSizes = field(default_factory=MethodSizes)
    """Sizes of the named methods, which decide the budgets @lora, @adapter, @prompt and @prefix, and the structures
    that random placements sample."""
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    """Pretraining of ladder models that are not shipped."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Training of cells. An entry of the grid may change any key."""
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)
    """Margins of the findings."""
    cells_per_job: PositiveInt = 10
    """Maximum number of cells in a training job."""
    measure_costs: Bool = True
    """Measure time and memory of the methods after training, once for each PLM."""


def load_study(path: Path) -> StudyConfig:
    """Read a study.

    Args:
        path: A YAML file.

    Returns:
        The study. Each entry of its grid has a complete `training`.

    Raises:
        ConfigError: If the file is not YAML, or if keys are unknown, missing or wrong; all of them are listed.
    """
    values = read_yaml(path)
    grid = values.get("grid")
    reduced = {**values, "grid": [_without_training(entry) for entry in grid]} if isinstance(grid, list) else values
    errors = ErrorCollector()
    with errors.collect():
        study = validate(StudyConfig, reduced, str(path))
    trainings = []
    with suppress(ConfigError):  # if the study's own `training` is wrong, those of the grid cannot be checked
        base = validate(TrainingConfig, values.get("training", {}), str(path))
        for number, entry in enumerate(grid if isinstance(grid, list) else ()):
            with errors.collect():
                trainings.append(base.override(_training_of(entry), f"{path}: grid.{number}.training"))
    errors.raise_all()
    entries = (replace(entry, training=training) for entry, training in zip(study.grid, trainings, strict=True))
    return replace(study, grid=tuple(entries))


def _training_of(entry: Any) -> Mapping[str, Any]:
    """Return the keys of an entry of the grid that change the study's `training`."""
    training = entry.get("training") if isinstance(entry, dict) else None
    return training if isinstance(training, Mapping) else {}


def _without_training(entry: Any) -> Any:
    """Return an entry of the grid without the keys that change the study's `training`, which are validated with it."""
    return {key: value for key, value in entry.items() if key != "training"} if _training_of(entry) else entry
