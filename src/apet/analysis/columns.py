"""Columns of the tidy table: name, type, source key in a cell's record, and meaning."""

from __future__ import annotations

from dataclasses import dataclass

from apet.data.task_config import ALL_METRICS

LIST = "object"
"""dtype of a column of float32 arrays."""


@dataclass(frozen=True)
class Column:
    """A column of the tidy table."""

    name: str
    dtype: str
    """pandas dtype."""
    key: str
    """Dotted key of `metrics.json`; empty if the column is derived."""
    meaning: str
    empty: str = "never"
    """When the key may be null: "never", "diverged" (the replicate has no score) or "always"."""


_STRUCTURES = {
    "entry": "scalars of frozen weights",
    "bias": "output biases",
    "lowrank": "rank-1 components",
    "bottleneck": "hidden units of adapters",
    "token": "virtual tokens",
    "scale": "factors of hidden states",
    "prefix": "key-value pairs of prefixes",
}
TIDY_COLUMNS = (
    Column("model", "str", "cell.model", "name of the PLM in the study"),
    Column("family", "str", "plm.family", "architecture of the PLM"),
    Column("num_params", "int64", "plm.num_params", "parameters of the PLM"),
    Column("non_embedding_params", "int64", "plm.non_embedding_params", "parameters outside the embeddings: PLM size"),
    Column("task", "str", "cell.task", "name of the task"),
    Column("metric", "str", "task.metric", "metric of `test_score`"),
    Column("placement", "str", "cell.placement", "rule that places the budget"),
    Column("budget", "str", "cell.budget", "budget as the study writes it"),
    Column("trainable_params", "int64", "trainable_params", "trainable parameters: the budget as a number"),
    Column("trainable_fraction", "float64", "", "trainable_params / num_params"),
    Column("head_params", "int64", "head.parameters", "parameters of a trained head, not in `trainable_params`"),
    Column("plan_index", "int64", "replicate.plan_index", "index of the plan, which fixes the positions"),
    Column("seed_index", "int64", "replicate.seed_index", "index of the seed of initialization and data order"),
    *(
        Column(f"params_{name}", "int64", f"replicate.structures.{name}", f"trainable parameters in {meaning}")
        for name, meaning in _STRUCTURES.items()
    ),
    Column("chance_uniform", "float64", "task.chance", "score of a uniform guess, fraction"),
    Column("chance_majority", "float64", "task.majority", "score of the best constant label, fraction", "always"),
    Column("num_labels", "Int64", "task.labels", "number of labels (classification)", "always"),
    Column("n_test", "int64", "replicate.test.n", "test rows scored"),
    Column("test_score", "float64", "replicate.test.score", "test score, fraction", "diverged"),
    *(Column(name, "float64", "", f"test {name}, fraction (if the task uses it)", "always") for name in ALL_METRICS),
    Column("test_loss", "float64", "replicate.test.loss", "mean test loss, nats", "always"),
    Column("validation_score", "float64", "replicate.validation.score", "validation score, fraction", "diverged"),
    Column("n_validation", "int64", "replicate.validation.n", "validation rows scored"),
    Column("lr_multiplier", "float64", "replicate.lr_multiplier", "learning rate multiplier, by validation", "always"),
    Column("best_step", "int64", "replicate.best_step", "step of the checkpoint chosen on validation"),
    Column("num_steps", "int64", "replicate.num_steps", "steps trained"),
    Column("outcome", "str", "replicate.outcome", "ok or diverged"),
    Column("seed", "int64", "cell.seed", "seed of the study; all other seeds are hashes of it and the coordinates"),
    Column("model_digest", "str", "plm.content", "digest of the PLM's weights and tokenizer"),
    Column("data_digest", "str", "task.digest", "digest of the prepared task"),
    Column("trainer_version", "int64", "cell.trainer_version", "version of the trainer's numerics"),
    Column("plan_digest", "str", "replicate.plan_digest", "digest of the plan"),
    Column("theta_digest", "str", "replicate.theta_digest", "digest of the trained parameters"),
    Column("cell_path", "str", "", "folder of the cell, relative to the folder of all cells"),
    Column("row_scores", LIST, "", "score on each test row, in one order for all replicates of a task"),
)
TIDY_SCHEMA: dict[str, str] = {column.name: column.dtype for column in TIDY_COLUMNS}
CSV_COLUMNS = [column.name for column in TIDY_COLUMNS if column.dtype != LIST]
TYPE_NAMES = {"str": "text", "int64": "integer", "Int64": "integer", "float64": "number", LIST: "list of float32"}
EMPTY_NOTES = {
    "never": "",
    "diverged": "if the replicate diverged; means leave it out",
    "always": "if not applicable",
}
