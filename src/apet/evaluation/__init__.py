"""Evaluation: from a prepared split and a tuned PLM to losses, predictions and scores."""

from apet.evaluation.encoding import EncodedSplit, encode_split, label_tokens
from apet.evaluation.generation import answer_loss, generate
from apet.evaluation.metrics import Score, score_answers, score_labels
from apet.evaluation.objectives import (
    ClassificationObjective,
    EvaluationResult,
    GenerationObjective,
    Objective,
    check_can_generate,
    make_objective,
)
from apet.evaluation.verbalizer import LabelTrie, predict

__all__ = [
    "ClassificationObjective",
    "EncodedSplit",
    "EvaluationResult",
    "GenerationObjective",
    "LabelTrie",
    "Objective",
    "Score",
    "answer_loss",
    "check_can_generate",
    "encode_split",
    "generate",
    "label_tokens",
    "make_objective",
    "predict",
    "score_answers",
    "score_labels",
]
