from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from apet.data.decontamination import RUN, SHORTEST, NgramIndex

words = st.lists(st.sampled_from("abc"), min_size=0, max_size=18).map(" ".join)


def runs(text: str, n: int) -> set[tuple[str, ...]]:
    found = text.split()
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


def touches(text: str, other: str) -> bool:
    """The definition, one word run at a time."""
    n = min(len(text.split()), len(other.split()), RUN)
    return n >= SHORTEST and not runs(text, n).isdisjoint(runs(other, n))


@given(st.lists(words, max_size=3), words)
@example(["a b c a b"], "c a b c a b c")
@example(["c a b c a b c"], "a b c a b")
@example(["a a a a b"], "a a a a")
def test_guard_agrees_with_the_definition(guarded, text):
    assert NgramIndex(guarded).overlaps(text) == any(touches(text, other) for other in guarded)
