"""Reading a tuned PLM's answers off a split, and scoring them."""

from apet.evaluation.encoded import Encoded, encode_split, label_tokens
from apet.evaluation.generate import answer_loss, generate
from apet.evaluation.labels import Labels, predict
from apet.evaluation.objective import Classify, Evaluated, Objective, Write, check_can_write, objective_of
from apet.evaluation.score import Score, score, score_answers

__all__ = [
    "Classify",
    "Encoded",
    "Evaluated",
    "Labels",
    "Objective",
    "Score",
    "Write",
    "answer_loss",
    "check_can_write",
    "encode_split",
    "generate",
    "label_tokens",
    "objective_of",
    "predict",
    "score",
    "score_answers",
]
