"""What a task asks of a tuned PLM: its loss, its score, and what is written down of each row."""

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
from apet.evaluation.metrics import Score, score, score_answers, text_metrics
from apet.evaluation.verbalizer import LabelTrie, predict
from apet.models.families import Family
from apet.models.loading import PLM
from apet.tuning import TunedPLM

Theta = Sequence[Tensor]
Columns = Mapping[str, pa.DataType]


@dataclass(frozen=True)
class EvaluationResult:
    """The score of a split, and columns of its rows, as the objective's `columns` names them."""

    score: Score
    rows: dict[str, Any]


class Objective(Protocol):
    """columns: name -> type of what is written down of each row. labels: how many there are, 0 in generation. end: ids
    that close an answer.
    """

    @property
    def columns(self) -> Columns: ...

    @property
    def labels(self) -> int: ...

    @property
    def end(self) -> tuple[int, ...]: ...

    def loss(self, tuned: TunedPLM, theta: Theta, data: EncodedSplit, rows: Tensor, over: str) -> Tensor:
        """What training makes small, of rows [k] of a split. over: a recipe's loss, label_words or full_vocab."""

    def evaluate(self, tuned: TunedPLM, theta: Theta, data: EncodedSplit) -> EvaluationResult:
        """A split's score."""


@dataclass(frozen=True)
class ClassificationObjective:
    """The likeliest label word is the answer. metrics: the first is the score."""

    words: LabelTrie
    metrics: tuple[str, ...] = ("accuracy",)
    columns: ClassVar[Columns] = {"label": pa.int16(), "prediction": pa.int16(), "correct": pa.bool_()}
    end: ClassVar[tuple[int, ...]] = ()

    @property
    def labels(self) -> int:
        return len(self.words)

    def loss(self, tuned: TunedPLM, theta: Theta, data: EncodedSplit, rows: Tensor, over: str) -> Tensor:
        """label_words: how likely the right one is among them. full_vocab: cross-entropy over all words of every token
        of its word, as the published code does.
        """
        right = data.labels[rows]
        if over == "label_words":
            return self.words.loss(tuned, theta, *data.batch(rows), right)
        return answer_loss(tuned, theta, *data.batch(rows), *self.words.answers(right))

    def evaluate(self, tuned: TunedPLM, theta: Theta, data: EncodedSplit) -> EvaluationResult:
        with tuned.merged_for_inference(theta):
            scores = predict(tuned, theta, data, self.words)
        prediction = scores.argmax(dim=1)
        rows = {"label": data.labels, "prediction": prediction, "correct": data.labels == prediction}
        return EvaluationResult(score(scores, data.labels, self.metrics), {name: c.numpy() for name, c in rows.items()})


@dataclass(frozen=True)
class GenerationObjective:
    """The answer is written, greedily, and compared with the references. end: the id that closes it; longest: most
    tokens with it. metrics: the first is the score.
    """

    tokenizer: PreTrainedTokenizerBase
    end: tuple[int, ...]
    longest: int
    metrics: tuple[str, ...]
    columns: ClassVar[Columns] = {"prediction": pa.string(), "score": pa.float64()}
    labels: ClassVar[int] = 0

    def loss(self, tuned: TunedPLM, theta: Theta, data: EncodedSplit, rows: Tensor, over: str) -> Tensor:
        """Cross-entropy over all words, whatever `over` says: an answer has no others to be compared with."""
        return answer_loss(tuned, theta, *data.batch(rows), *data.answers(rows))

    def evaluate(self, tuned: TunedPLM, theta: Theta, data: EncodedSplit) -> EvaluationResult:
        with tuned.merged_for_inference(theta):
            ids = generate(tuned, theta, data, self.end[0], self.longest)
            loss = split_loss(tuned, theta, data)
        answers = [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]
        found = text_metrics(self.metrics, answers, data.references)
        rows = {"prediction": answers, "score": found[self.metrics[0]]}
        return EvaluationResult(score_answers(found, loss), rows)


def objective_of(task: Mapping[str, Any], plm: PLM) -> Objective:
    """What a prepared task asks of a PLM. Raises as `check_can_generate`, and DataError as `label_tokens`."""
    metrics = tuple(task["metrics"])
    if task["type"] == "generation":
        check_can_generate(task["task"], plm.name, plm.family, plm.head)
        return GenerationObjective(plm.tokenizer, (_end(plm),), task["max_new_tokens"], metrics)
    if plm.head == "classification":
        # It has a row a label, and none of them needs a word.
        return ClassificationObjective(LabelTrie.of([[number] for number in range(len(task["verbalizer"]))]), metrics)
    return ClassificationObjective(LabelTrie.of(label_tokens(task, plm.tokenizer)), metrics)


def check_can_generate(task: str, name: str, family: Family, head: str) -> None:
    """Raises ParamsError where a PLM cannot write the answers that a generation task wants."""
    if head == "classification":
        raise ConfigError(
            f"task {task}: its answers are written, and PLM {name!r} has `head: classification`, whose outputs are labels and "
            "not words. Allowed for it: classification tasks."
        )
    if not family.decoder:
        raise ConfigError(
            f"task {task}: its answers are written, and PLM {name!r} is of family {family.name}, an encoder, which "
            "writes no text. Allowed for it: classification tasks."
        )


def _end(plm: PLM) -> int:
    if plm.tokenizer.eos_token_id is None:
        raise ModelError(f"PLM {plm.name!r}: its tokenizer names no eos_token, with which a written answer ends.")
    return plm.tokenizer.eos_token_id
