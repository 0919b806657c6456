"""The columns of the tidy table: what each is called, holds and means, and where in a cell's record it stands."""

from __future__ import annotations

from dataclasses import dataclass

LIST = "object"
"""dtype of a column of float32 arrays."""
METRICS = ("accuracy", "f1", "em", "rouge_l")
"""Every metric a task may ask for; one of them is its `score`."""


@dataclass(frozen=True)
class Column:
    """A column of the tidy table, its dtype in pandas, and the dotted key of `metrics.json` that fills it (empty:
    derived here).

    `empty` says when the key may be null: "never", "diverged" (the replicate has no score), or "always".
    """

    name: str
    dtype: str
    key: str
    meaning: str
    empty: str = "never"


COLUMNS = (
    Column("model", "str", "cell.model", "name of the PLM in the study"),
    Column("family", "str", "plm.family", "architecture of the PLM"),
    Column("parameters", "int64", "plm.parameters", "parameters of the PLM"),
    Column("non_embedding", "int64", "plm.non_embedding", "parameters outside the embeddings: the scale of the PLM"),
    Column("task", "str", "cell.task", "name of the task"),
    Column("metric", "str", "task.metric", "what `score` measures"),
    Column("placement", "str", "cell.placement", "rule that spreads the budget"),
    Column("budget", "str", "cell.budget", "budget as the study writes it"),
    Column("tunable", "int64", "tunable", "tunable parameters, the budget as a number"),
    Column("share", "float64", "", "tunable / parameters"),
    Column("head", "int64", "head.parameters", "parameters of a trained classification head, apart from `tunable`"),
    Column("draw", "int64", "replicate.draw", "draw of the plan: which positions"),
    Column("rerun", "int64", "replicate.rerun", "repetition of one plan: other initialisation and data order"),
    Column("entry", "int64", "replicate.structures.entry", "tunable parameters in scalars of frozen weights"),
    Column("bias", "int64", "replicate.structures.bias", "tunable parameters in output biases"),
    Column("lowrank", "int64", "replicate.structures.lowrank", "tunable parameters in rank-1 components"),
    Column("bottleneck", "int64", "replicate.structures.bottleneck", "tunable parameters in hidden units of adapters"),
    Column("token", "int64", "replicate.structures.token", "tunable parameters in virtual tokens"),
    Column("chance", "float64", "task.chance", "score of a uniform guess, fraction"),
    Column("majority", "float64", "task.majority", "score of always the best label (none in generation)", "always"),
    Column("labels", "Int64", "task.labels", "number of labels (none in generation)", "always"),
    Column("n", "int64", "replicate.test.n", "test rows scored"),
    Column("score", "float64", "replicate.test.score", "test score, fraction", "diverged"),
    *(Column(name, "float64", "", f"test {name}, fraction (where the task asks for it)", "always") for name in METRICS),
    Column("test_loss", "float64", "replicate.test.loss", "mean test loss, nats", "always"),
    Column("validation_score", "float64", "replicate.validation.score", "validation score, fraction", "diverged"),
    Column("validation_n", "int64", "replicate.validation.n", "validation rows scored"),
    Column("rate", "float64", "replicate.rate", "learning rate chosen on validation", "always"),
    Column("best_step", "int64", "replicate.best_step", "step of the checkpoint chosen on validation"),
    Column("steps", "int64", "replicate.steps", "steps trained"),
    Column("outcome", "str", "replicate.outcome", "ok, or diverged"),
    Column("seed", "int64", "cell.seed", "seed of the study, of which with the coordinates all others are hashes"),
    Column("content", "str", "plm.content", "digest of the PLM's weights and tokenizer"),
    Column("data", "str", "task.digest", "digest of the prepared task"),
    Column("trainer", "int64", "cell.trainer_version", "version of the trainer's numerics"),
    Column("plan", "str", "replicate.plan", "digest of the plan"),
    Column("theta", "str", "replicate.theta", "digest of the tuned parameters"),
    Column("cell", "str", "", "folder of the cell, relative to the root of the cells"),
    Column(
        "rows", LIST, "", "score on each test row, in one order for all replicates of a task; their mean is `score`"
    ),
)
SCHEMA: dict[str, str] = {column.name: column.dtype for column in COLUMNS}
FLAT = [column.name for column in COLUMNS if column.dtype != LIST]
"""Columns of the CSV file."""
TYPES = {"str": "text", "int64": "integer", "Int64": "integer", "float64": "number", LIST: "list of float32"}
EMPTY = {
    "never": "",
    "diverged": "where the replicate diverged, so that no mean counts it",
    "always": "where there is none",
}
