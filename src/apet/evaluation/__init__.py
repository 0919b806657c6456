"""Reading a tuned PLM's answers off a split, and scoring them."""

from apet.evaluation.encoding import Encoded, encode_split, label_tokens
from apet.evaluation.generation import answer_loss, generate
from apet.evaluation.metrics import Score, score, score_answers
from apet.evaluation.objectives import Classify, Evaluated, Objective, Write, check_can_write, objective_of
from apet.evaluation.verbalizer import Labels, predict

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
