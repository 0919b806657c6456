"""Reading a tuned PLM's answers off a split, and scoring them."""

from apet.evaluation.encoded import Encoded, encode_split, label_words
from apet.evaluation.predict import predict
from apet.evaluation.score import Score, score

__all__ = ["Encoded", "Score", "encode_split", "label_words", "predict", "score"]
