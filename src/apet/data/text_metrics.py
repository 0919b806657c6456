"""Scores of generated answers against references: SQuAD's exact match and F1, and ROUGE-L.

Each function takes one answer and at least one reference, and returns a fraction, for the best reference. In ASCII
texts, the scores are those of SQuAD's evaluation and of the `rouge_score` package, which drops all other letters. In
scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese), each letter is a word, as Chinese
characters are in MLQA's evaluation.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from apet.data.unicode_words import characters, words

ARTICLES = re.compile(r"\b(a|an|the)\b")


class _WithoutPunctuation(dict[int, str]):
    """Code point -> the character, or nothing for punctuation, including `+`, `$` and other symbols of ASCII."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        self[code] = "" if char in string.punctuation or unicodedata.category(char)[0] == "P" else char
        return self[code]


_WITHOUT_PUNCTUATION = _WithoutPunctuation()


def plain(answer: str) -> str:
    """Normalise an answer as SQuAD's evaluation does: lower case, no punctuation, no articles, single spaces."""
    kept = unicodedata.normalize("NFC", answer).lower().translate(_WITHOUT_PUNCTUATION)
    return " ".join(part for word in ARTICLES.sub(" ", kept).split() for part in characters(word))


def rouge_words(text: str) -> list[str]:
    """Split a text into words in lower case: letters, digits and marks. ASCII words are those of `rouge_score`."""
    parts = (part for word in words(unicodedata.normalize("NFC", text).lower()) for part in characters(word))
    return [word for part in parts for word in (_ascii_tokenizer().tokenize(part) if part.isascii() else [part])]


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Return 1 if the normalised answer is one of the normalised references, else 0 (Rajpurkar et al., 2016)."""
    return float(plain(answer) in {plain(reference) for reference in references})


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Return F1 of the words of the normalised answer, with their counts (Rajpurkar et al., 2016).

    Args:
        answer: The generated answer.
        references: Correct answers, at least one.

    Returns:
        The largest F1 over the references, a fraction. An answer and a reference of which one has no words score 1 if
        both have none, else 0, as in SQuAD 2.0's evaluation.
    """
    return max(_word_f1(plain(answer).split(), plain(reference).split()) for reference in references)


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """Return F of the longest common subsequence of stemmed words (Lin, 2004), from the `rouge_score` package."""
    return max(score["rougeL"].fmeasure for score in (_scorer().score(r, answer) for r in references))


TEXT_METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "em": exact_match,
    "f1": token_f1,
    "rouge_l": rouge_l,
}


def answer_scores(metric: str, answers: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Return the score of each answer, fractions [n]."""
    score = TEXT_METRICS[metric]
    return np.array([score(a, r) for a, r in zip(answers, references, strict=True)], float)


def shuffled_scores(metric: str, references: Sequence[Sequence[str]]) -> np.ndarray:
    """Score answers that do not depend on their inputs: for each row, the first reference of the next row.

    The order of the rows must not depend on their content; that of prepared rows does not.

    Args:
        metric: A key of `TEXT_METRICS`.
        references: Correct answers of each of n rows.

    Returns:
        Scores, fractions of shape [n].
    """
    answers = [reference[0] for reference in references]
    return answer_scores(metric, answers[1:] + answers[:1], references)


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # half a second, only if a task needs it

    return RougeScorer(["rougeL"], tokenizer=_Tokenizer())


class _Tokenizer:
    """The tokenizer of RougeScorer."""

    def tokenize(self, text: str) -> list[str]:
        return rouge_words(text)


@cache
def _ascii_tokenizer() -> Any:
    from rouge_score.tokenizers import DefaultTokenizer

    return DefaultTokenizer(use_stemmer=True)


def _word_f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    common = sum((Counter(answer) & Counter(reference)).values())
    return 2 * common / (len(answer) + len(reference))
