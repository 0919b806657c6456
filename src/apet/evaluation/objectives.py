"""Objectives of tasks: training loss, evaluation, and the predictions to write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import pyarrow as pa
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from apet.errors import ConfigError, ModelError
from apet.evaluation.encoding import EncodedSplit, label_tokens
from apet.evaluation.generation import answer_loss, generate, split_loss
from apet.evaluation.metrics import Score, score_answers, score_labels, text_metrics
from apet.evaluation.verbalizer import LabelTrie, predict
from apet.models.families import Family
from apet.models.loading import PLM
from apet.tuning import TunedPLM

Theta = Sequence[Tensor]
"""θ, and the head if there is one, as consecutive tensors."""
Columns = Mapping[str, pa.DataType]
"""Column name -> type."""


@dataclass(frozen=True)
class EvaluationResult:
    """The evaluation of a split."""

    score: Score
    """The score."""
    rows: dict[str, Any]
    """Columns of predictions, with the names of the objective's `columns`."""


class Objective(Protocol):
    """The objective of a task, as training and evaluation use it."""

    @property
    def columns(self) -> Columns:
        """Columns of the predictions."""

    @property
    def num_labels(self) -> int:
        """Number of labels. 0 for generation."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Token ids that end an answer. Empty for classification."""

    def loss(self, tuned: TunedPLM, theta: Theta, data: EncodedSplit, rows: Tensor, kind: str) -> Tensor:
        """Compute the training loss.

        Args:
            tuned: the tuned PLM.
            theta: trained tensors.
            data: the training split.
            rows: row numbers of the batch, shape [k].
            kind: `label_words` or `full_vocab`, the key `training.loss` of a study.

        Returns:
            The loss in nats, a scalar.
        """

    def evaluate(self, tuned: TunedPLM, theta: Theta, data: EncodedSplit) -> EvaluationResult:
        """Predict and score a split."""


@dataclass(frozen=True)
class ClassificationObjective:
    """Classification: the answer is the label with the most likely word."""

    trie: LabelTrie
    """The label words."""
    metrics: tuple[str, ...] = ("accuracy",)
    """Metrics, of which the first is the score."""
    columns: ClassVar[Columns] = {"label": pa.int16(), "prediction": pa.int16(), "correct": pa.bool_()}
    end_ids: ClassVar[tuple[int, ...]] = ()

    @property
    def num_labels(self) -> int:
        """Number of labels."""
        return len(self.trie)

    def loss(self, tuned: TunedPLM, theta: Theta, data: EncodedSplit, rows: Tensor, kind: str) -> Tensor:
        """Compute the cross-entropy of the correct label.

        Args:
            tuned: the tuned PLM.
            theta: trained tensors.
            data: the training split.
            rows: row numbers of the batch, shape [k].
            kind: `label_words`: over the label words. `full_vocab`: of each token of the label's word over the
                vocabulary, as in the code of Su et al. (EMNLP 2023), and of its end if another word continues it.

        Returns:
            The mean over the batch in nats, a scalar.
        """
        labels = data.labels[rows]
        if kind == "label_words":
            return self.trie.loss(tuned, theta, *data.batch(rows), labels)
        return self.trie.full_vocab_loss(tuned, theta, *data.batch(rows), labels)

    def evaluate(self, tuned: TunedPLM, theta: Theta, data: EncodedSplit) -> EvaluationResult:
        """Predict and score a split."""
        with tuned.merged_for_inference(theta):
            scores = predict(tuned, theta, data, self.trie)
        prediction = scores.argmax(dim=1)
        rows = {"label": data.labels, "prediction": prediction, "correct": data.labels == prediction}
        score = score_labels(scores, data.labels, self.metrics)
        return EvaluationResult(score, {name: column.numpy() for name, column in rows.items()})


@dataclass(frozen=True)
class GenerationObjective:
    """Generation: the answer is decoded greedily and compared with the references."""

    tokenizer: PreTrainedTokenizerBase
    """The PLM's tokenizer."""
    end_ids: tuple[int, ...]
    """The token id that ends an answer."""
    max_new_tokens: int
    """Most tokens of an answer, its end included."""
    metrics: tuple[str, ...]
    """Metrics, of which the first is the score."""
    columns: ClassVar[Columns] = {"prediction": pa.string(), "score": pa.float64()}
    num_labels: ClassVar[int] = 0

    def loss(self, tuned: TunedPLM, theta: Theta, data: EncodedSplit, rows: Tensor, kind: str) -> Tensor:
        """Compute the cross-entropy of the target tokens over the vocabulary, for both kinds of loss."""
        return answer_loss(tuned, theta, *data.batch(rows), *data.target_batch(rows))

    def evaluate(self, tuned: TunedPLM, theta: Theta, data: EncodedSplit) -> EvaluationResult:
        """Generate and score the answers of a split."""
        with tuned.merged_for_inference(theta):
            ids = generate(tuned, theta, data, self.end_ids[0], self.max_new_tokens)
            loss = split_loss(tuned, theta, data)
        answers = [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]
        values = text_metrics(self.metrics, answers, data.references)
        rows = {"prediction": answers, "score": values[self.metrics[0]]}
        return EvaluationResult(score_answers(values, loss), rows)


def make_objective(task: Mapping[str, Any], plm: PLM) -> Objective:
    """Make the objective of a task for a PLM.

    Args:
        task: record of the prepared task.
        plm: the PLM.

    Returns:
        The objective of the task's type.

    Raises:
        ConfigError: the PLM cannot generate the answers of the task.
        ModelError: the PLM's tokenizer has no end-of-sequence token, which generation needs.
        DataError: a label word has no tokens, or two words have the same.
    """
    metrics = tuple(task["metrics"])
    if task["type"] == "generation":
        check_can_generate(task["task"], plm.name, plm.family, plm.head)
        return GenerationObjective(plm.tokenizer, (_eos_id(plm),), task["max_new_tokens"], metrics)
    if plm.head == "classification":
        # The head's outputs are labels, so the numbers of labels take the place of token ids.
        return ClassificationObjective(
            LabelTrie.from_tokens([[number] for number in range(len(task["verbalizer"]))]), metrics
        )
    return ClassificationObjective(LabelTrie.from_tokens(label_tokens(task, plm.tokenizer)), metrics)


def check_can_generate(task: str, name: str, family: Family, head: str) -> None:
    """Check that a PLM can generate the answers of a task.

    Args:
        task: name of the generation task.
        name: name of the PLM.
        family: family of the PLM.
        head: `lm` or `classification`.

    Raises:
        ConfigError: the PLM has a classification head or is an encoder.
    """
    if head == "classification":
        raise ConfigError(
            f"task {task}: a generation task needs an LM head, and PLM {name!r} has `head: classification`. Use a "
            "classification task."
        )
    if not family.decoder:
        raise ConfigError(
            f"task {task}: a generation task needs a decoder, and PLM {name!r} is of family {family.name}, an encoder. "
            "Use a classification task."
        )


def _eos_id(plm: PLM) -> int:
    if plm.tokenizer.eos_token_id is None:
        raise ModelError(f"PLM {plm.name!r}: the tokenizer has no eos_token, which ends a generated answer.")
    return plm.tokenizer.eos_token_id
