"""Tuned models: a frozen PLM, a plan with its θ, and the task it was tuned for. Texts in, answers out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apet.core.text import plural
from apet.data.prepared_files import read_task
from apet.data.tokenization import encode
from apet.errors import ConfigError, DataError
from apet.evaluation import (
    ClassificationObjective,
    EncodedSplit,
    GenerationObjective,
    Objective,
    Score,
    encode_split,
    generate,
    make_objective,
    predict,
)
from apet.evaluation.encoding import padded, prompt_of
from apet.models.loading import PLM
from apet.placement import STRUCTURES, Plan, Units
from apet.tuning import tune

Texts = Sequence[str] | Mapping[str, Sequence[str]]
"""A list of texts; for a task with several text columns, column -> list of texts (or a data frame)."""

TASK_KEYS = (
    "task",
    "type",
    "text_columns",
    "prompt",
    "prompts",
    "verbalizer",
    "metric",
    "metrics",
    "max_new_tokens",
    "digest",
)
"""Keys of a prepared task's record that determine prompts and scores."""


def no_head() -> Tensor:
    """Create the empty tensor that stands for a missing classification head."""
    return torch.zeros(0)


@dataclass(frozen=True, eq=False, repr=False)
class TunedModel:
    """A frozen PLM with the trained parameters of one replicate, for one task.

    The PLM is not changed, so several tuned models can share it. Raises DataError if tensors do not fit plan or PLM.
    """

    plm: PLM
    plan: Plan
    theta: Tensor
    """Trainable parameters [budget], float32."""
    task: Mapping[str, Any]
    """Record of a prepared task, restricted to `TASK_KEYS`."""
    max_length: int
    """Maximum number of tokens of a text in its prompt."""
    head: Tensor = field(default_factory=no_head)
    """Parameters of the classification head [labels × (d + 1)], float32; empty if the PLM's LM head is used."""
    run: Mapping[str, Any] = field(default_factory=dict)
    """The replicate's part of a cell record (learning rate, scores, losses, …); empty if nothing was trained."""
    cell: str | None = None
    """Path of the cell in a study."""
    plm_folder: str | None = None
    """The study's folder of the PLM."""

    def __post_init__(self) -> None:
        for name, tensor, size in (
            ("θ", self.theta, self.plan.budget),
            ("head", self.head, self.plm.head_size(self.objective.num_labels)),
        ):
            if tensor.shape != (size,):
                raise DataError(f"{name}: expected shape ({size},), got {tuple(tensor.shape)}.")

    def __repr__(self) -> str:
        plan, task = self.plan, self.task["task"]
        score = f", test {self.task['metric']} {self.run['test']['score']:.4f}" if self.run else ""
        return (
            f"<TunedModel {plan.placement}, {plural(plan.budget, 'parameter')} in {self.plm.name}, for {task}{score}>"
        )

    @classmethod
    def from_theta(
        cls, plm: PLM, plan: Plan, theta: Tensor, data: str | Path, max_length: int | None = None
    ) -> TunedModel:
        """Build a tuned model from an existing θ and a prepared task.

        Args:
            plm: The frozen PLM.
            plan: The plan that θ belongs to.
            theta: Trainable parameters [budget], float32.
            data: The folder of a prepared task.
            max_length: Maximum number of tokens of a text in its prompt. Default: the task's own.

        Returns:
            The tuned model.
        """
        task = read_task(Path(data))
        return cls(plm, plan, theta, {key: task[key] for key in TASK_KEYS}, max_length or task["max_length"])

    @cached_property
    def objective(self) -> Objective:
        """Objective of the task: classification or generation."""
        return make_objective(self.task, self.plm)

    @property
    def tensors(self) -> list[Tensor]:
        """Nonempty tensors of θ and head, as a TunedPLM takes them."""
        return [tensor for tensor in (self.theta, self.head) if len(tensor)]

    def predict(self, texts: Texts) -> list[str]:
        """Predict the answer to each text, exactly as the pipeline does.

        Args:
            texts: A list of texts, or for a task with several text columns a mapping from column to list.

        Returns:
            One answer per text: the name of a class, or generated text.

        Raises:
            DataError: If the texts do not fit the task's text columns.
        """
        data, objective = self._encode(texts), self.objective
        if not len(data):
            return []
        if isinstance(objective, ClassificationObjective):
            names = list(self.task["verbalizer"])
            return [names[label] for label in self._logits(data, objective).argmax(dim=1).tolist()]
        assert isinstance(objective, GenerationObjective)
        with tune(self.plm, self.plan) as tuned:
            theta = tuned.distribute(self.tensors)
            with tuned.merged_for_inference(theta):
                ids = generate(tuned, theta, data, objective.end_ids[0], objective.max_new_tokens)
        return [text.strip() for text in self.plm.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def logits(self, texts: Texts) -> Tensor:
        """Compute the logits of the label words.

        Args:
            texts: As for `predict`.

        Returns:
            Logits [n, labels] in the order of `task["verbalizer"]`: log-probabilities up to a constant per row.

        Raises:
            ConfigError: If the task is a generation task.
            DataError: If the texts do not fit the task's text columns.
        """
        if not isinstance(self.objective, ClassificationObjective):
            raise ConfigError(f"task {self.task['task']}: expected a classification task, got generation. Use predict.")
        return self._logits(self._encode(texts), self.objective)

    def evaluate(self, data: str | Path, split: str = "test") -> Score:
        """Score the model on a split of a prepared task.

        Args:
            data: The folder of the prepared task, which must be the model's own task.
            split: `train`, `validation` or `test`.

        Returns:
            Score as a fraction, number of rows, mean loss (nats) and all metrics.

        Raises:
            DataError: If the folder contains another task.
        """
        folder, objective = Path(data), self.objective
        if (name := read_task(folder)["task"]) != self.task["task"]:
            raise DataError(f"{folder}: task: expected {self.task['task']}, got {name}.")
        rows = encode_split(folder, split, self.task, self.plm, self.max_length, objective.end_ids)
        with tune(self.plm, self.plan) as tuned:
            return objective.evaluate(tuned, tuned.distribute(self.tensors), rows).score

    def _logits(self, data: EncodedSplit, objective: ClassificationObjective) -> Tensor:
        if not len(data):
            return torch.empty(0, objective.num_labels)
        with tune(self.plm, self.plan) as tuned:
            theta = tuned.distribute(self.tensors)
            with tuned.merged_for_inference(theta):
                return predict(tuned, theta, data, objective.trie)

    def _encode(self, texts: Texts) -> EncodedSplit:
        special = self.plm.special_tokens
        prompt = prompt_of(self.task, self.plm.family.name)
        affixes = {"before": special.before, "after": special.after}
        rows = encode(self._columns(texts), self.plm.tokenizer, prompt, self.max_length, **affixes).ids
        ids, lengths = padded(rows) if rows else (torch.empty(0, 0), torch.empty(0))
        row_ids = [str(number) for number in range(len(rows))]
        return EncodedSplit(row_ids, ids, lengths, torch.empty(0, dtype=torch.long))

    def _columns(self, texts: Texts) -> dict[str, list[str]]:
        """Texts by column. Raises DataError if they do not fit the task's text columns."""
        names, task = self.task["text_columns"], self.task["task"]
        if isinstance(texts, Mapping) or hasattr(texts, "columns"):
            if missing := [name for name in names if name not in texts]:
                raise DataError(f"texts: missing column {missing[0]!r}. Task {task} needs: {', '.join(names)}.")
            columns = {name: list(texts[name]) for name in names}
        elif len(names) == 1 and not isinstance(texts, str):
            columns = {names[0]: list(texts)}
        else:
            expected = "a list of texts" if len(names) == 1 else f"a mapping with the columns {', '.join(names)}"
            raise DataError(f"texts: task {task}: expected {expected}, got {type(texts).__name__}.")
        if invalid := [text for column in columns.values() for text in column if not isinstance(text, str)]:
            raise DataError(f"texts: expected strings, got {invalid[0]!r}.")
        if len(sizes := {len(column) for column in columns.values()}) > 1:
            raise DataError(f"texts: expected columns of equal length, got lengths {sorted(sizes)}.")
        return columns


MAX_NAMED = 3
"""Sites of a structure that a message lists by name."""


def describe_sites(units: Sequence[Units]) -> str:
    """List structures with their sites: `bias at 12 sites (decoder.0.attention.query, …), token at decoder.input`."""
    parts = []
    for structure in STRUCTURES:
        places = [u.site.place for u in units if u.site.structure == structure]
        if len(places) == 1:
            parts.append(f"{structure} at {places[0]}")
        elif places:
            names = ", ".join(places[:MAX_NAMED]) + (", …" if len(places) > MAX_NAMED else "")
            parts.append(f"{structure} at {len(places)} sites ({names})")
    return ", ".join(parts)
