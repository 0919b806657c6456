"""Reading a tuned PLM's answers off a split, and scoring them."""

from apet.evaluation.encoding import EncodedSplit, encode_split, label_tokens
from apet.evaluation.generation import answer_loss, generate
from apet.evaluation.metrics import Score, score, score_answers
from apet.evaluation.objectives import (
    ClassificationObjective,
    EvaluationResult,
    GenerationObjective,
    Objective,
    check_can_generate,
    objective_of,
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
    "objective_of",
    "predict",
    "score",
    "score_answers",
]
