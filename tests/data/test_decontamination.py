"""N-gram index: agreement with a direct definition of overlapping texts."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from apet.data.decontamination import MIN_WORDS, NGRAM, NgramIndex

words = st.lists(st.sampled_from("abc"), min_size=0, max_size=18).map(" ".join)


def ngrams(text: str, n: int) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def texts_overlap(text: str, other: str) -> bool:
    """The definition, one n-gram at a time."""
    n = min(len(text.split()), len(other.split()), NGRAM)
    return n >= MIN_WORDS and not ngrams(text, n).isdisjoint(ngrams(other, n))


@given(st.lists(words, max_size=3), words)
@example(["a b c a b"], "c a b c a b c")
@example(["c a b c a b c"], "a b c a b")
@example(["a a a a b"], "a a a a")
def test_index_agrees_with_definition(indexed, text):
    assert NgramIndex(indexed).overlaps(text) == any(texts_overlap(text, other) for other in indexed)
