from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from apet.data.readers import Row
from apet.data.splits import EDGE, SIDES, Example, edges, normalise, overlaps, split_rows

BLOCKS = ["", "alpha " * 60, "beta " * 60]  # a block is longer than EDGE, so rows that share one are near-duplicates
texts = st.builds(
    lambda head, body, tail: head + body + " " + tail,
    st.sampled_from(BLOCKS),
    st.text(st.sampled_from("abc  .ß"), max_size=6),
    st.sampled_from(BLOCKS),
)
labels = st.sampled_from(["x", "y"])
drawn = st.lists(st.builds(lambda text, label: Row(text, label, None, ""), texts, labels), max_size=30)
splits = st.sampled_from(["train", "test"])
official = st.lists(st.builds(lambda *cells: Row(*cells, ""), texts, labels, splits), max_size=30)


def sides_of(rows: list[Row]) -> dict[str, str]:
    return {example.normal: side for side, examples in split_rows(rows).sides.items() for example in examples}


@given(st.text())
def test_normalising_keeps_letters_and_digits_and_is_idempotent(text):
    normal = normalise(text)
    assert normalise(normal) == normal
    assert normal == normalise(f"  {text.upper().lower()!s}\n") or not text.isascii()
    assert all(word.isalnum() for word in normal.split(" ") if word)


def test_normalising_joins_forms_of_one_text():
    assert normalise("Ｔhe  “Straße”, 1²!") == normalise("the strasse 12") == "the strasse 12"


@given(st.one_of(drawn, official))
def test_no_text_and_no_near_duplicate_is_on_two_sides(rows):
    sides = split_rows(rows).sides
    assert list(sides) == list(SIDES)
    for first in SIDES:
        for second in SIDES:
            for one in sides[first]:
                for other in sides[second]:
                    if first != second:
                        assert not {one.normal[:EDGE], one.normal[-EDGE:]} & {other.normal[:EDGE], other.normal[-EDGE:]}
    assert set(overlaps(sides).values()) == {0}


@given(st.one_of(drawn, official))
def test_every_row_is_kept_or_counted(rows):
    splits = split_rows(rows)
    kept = [example.normal for examples in splits.sides.values() for example in examples]
    assert len(kept) == len(set(kept)) == len(rows) - sum(splits.dropped.values())
    by_text = {normal: {row.label for row in rows if normalise(row.text) == normal} for normal in kept}
    assert all(len(found) == 1 for found in by_text.values())


@given(drawn, drawn)
def test_more_rows_move_no_text_to_another_side(rows, more):
    before, after = sides_of(rows), sides_of(more + rows)
    assert all(after[normal] == side for normal, side in before.items() if normal in after)


@given(st.one_of(drawn, official), st.randoms())
def test_the_order_of_rows_does_not_matter(rows, random):
    shuffled = random.sample(rows, len(rows))
    for side in SIDES:
        assert sorted(split_rows(rows).sides[side]) == sorted(split_rows(shuffled).sides[side])


@given(official.filter(lambda rows: any(row.split == "test" for row in rows)))
def test_an_official_test_text_never_leaves_test(rows):
    sides = sides_of(rows)
    unique = {normalise(row.text) for row in rows if row.split == "test"}
    assert all(sides.get(normal, "test") == "test" for normal in unique)
    assert all(normal in unique for normal, side in sides.items() if side == "test")


def test_conflicting_labels_go_with_all_their_copies():
    rows = [("One.", "x", "test"), ("one", "y", "train"), ("two", "x", "test"), ("!", "x", "train")]
    splits = split_rows(Row(*row, "") for row in rows)
    assert splits.dropped == {"empty": 1, "conflicting": 2, "duplicate": 0, "near_duplicate": 0}
    assert splits.sides["test"] == [Example("two", "two", "x")]


def test_shares_are_a_fifth_a_tenth_and_the_rest():
    sides = split_rows([Row(f"text {i}", "x", None, "") for i in range(5000)]).sides
    assert abs(len(sides["test"]) / 5000 - 0.2) < 0.02
    assert abs(len(sides["validation"]) / 5000 - 0.1) < 0.015


def test_overlaps_sees_a_shared_edge():
    story = "word " * 50
    sides = {side: [Example(text, text, "x")] for side, text in [("test", story + "a"), ("train", story + "b")]}
    assert edges(story + "a")[0] == edges(story + "b")[0]
    assert overlaps(sides) == {"test/train": 1}


def test_stories_with_one_beginning_stand_on_one_side_and_none_is_dropped():
    rows = [f"story {i} " + "goes on " * 30 + f"{i} {end} " * 90 for i in range(50) for end in ("well", "badly")]
    splits = split_rows(Row(text, "x", None, "") for text in rows)
    assert splits.dropped["near_duplicate"] == 0
    stories = [{example.normal[:EDGE] for example in examples} for examples in splits.sides.values()]
    assert all(stories) and sum(map(len, stories)) == len(set.union(*stories)) == 50
