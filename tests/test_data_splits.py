from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from apet.data.schema import SIDES, Row
from apet.data.splits import EDGE, Example, Splits, edges, normalise, overlaps, split_rows, text_id

BLOCKS = ["", "alpha " * 60, "beta " * 60]  # a block is longer than EDGE, so rows that share one are near-duplicates
texts = st.builds(
    lambda head, body, tail: head + body + " " + tail,
    st.sampled_from(BLOCKS),
    st.text(st.sampled_from("abc  .ß"), max_size=6),
    st.sampled_from(BLOCKS),
)
labels = st.sampled_from(["x", "y", None])
splits = st.sampled_from(["train", "test"])
drawn = st.lists(st.builds(lambda text, label: Row((text,), label, None, ""), texts, labels), max_size=30)
official = st.lists(st.builds(lambda text, label, split: Row((text,), label, split, ""), texts, labels, splits))
questions = st.sampled_from([f"question {i}" for i in range(12)])
pairs = st.lists(st.builds(lambda one, other: Row((one, other), "x", None, ""), questions, questions), max_size=20)


def one(text: str, label: str = "x") -> Example:
    return Example.of([text], [normalise(text)], label)


def normal(example: Example) -> str:
    return "\n".join(map(normalise, example.texts))


def sides_of(rows: list[Row]) -> dict[str, str]:
    return {normal(example): side for side, examples in split_rows(rows).sides.items() for example in examples}


def rows_of(count: int, *official: str | None) -> list[Row]:
    return [Row((f"{split} text {i}",), "x", split, "") for split in official for i in range(count)]


@given(st.text())
def test_normalising_keeps_letters_and_digits_and_is_idempotent(text):
    normal = normalise(text)
    assert normalise(normal) == normal
    assert normal == normalise(f"  {text.upper().lower()!s}\n") or not text.isascii()
    assert all(word.isalnum() for word in normal.split(" ") if word)


def test_normalising_joins_forms_of_one_text():
    assert normalise("Ｔhe  “Straße”, 1²!") == normalise("the strasse 12") == "the strasse 12"


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=3))
def test_an_example_gives_its_texts_back(texts):
    normals = [normalise(text) for text in texts]
    example = Example.of(texts, normals, "x")
    assert list(example.texts) == texts and example.id == text_id(*normals)
    assert example.keys == {edge for normal in normals for edge in edges(normal)}


@given(st.one_of(drawn, official))
def test_no_text_and_no_near_duplicate_is_on_two_sides(rows):
    sides = split_rows(rows).sides
    assert list(sides) == list(SIDES)
    for first, second in combinations(SIDES, 2):
        for mine in map(normal, sides[first]):
            for other in map(normal, sides[second]):
                assert not {mine[:EDGE], mine[-EDGE:]} & {other[:EDGE], other[-EDGE:]}
    assert set(overlaps(sides).values()) == {0}


@given(pairs)
def test_all_rows_that_are_connected_by_common_texts_are_on_one_side(rows):
    found = split_rows(rows)
    parent: dict[str, str] = {}

    def root(text: str) -> str:
        while parent.setdefault(text, text) != text:
            text = parent[text]
        return text

    examples = [(example, side) for side, some in found.sides.items() for example in some]
    for example, _ in examples:
        first, second = map(root, example.texts)
        parent[first] = second
    sides: dict[str, set[str]] = {}
    for example, side in examples:
        sides.setdefault(root(example.texts[0]), set()).add(side)
    assert all(len(some) == 1 for some in sides.values())


@given(pairs, pairs)
def test_more_pairs_move_no_pair_to_another_side(rows, more):
    before, after = sides_of(rows), sides_of(more + rows)
    assert all(after[pair] == side for pair, side in before.items() if pair in after)


def test_a_group_keeps_its_texts_on_one_side_and_lets_the_others_repeat():
    rows = [Row((f"premise {i // 3}", f"hypothesis {i % 3}"), "x", None, "") for i in range(3000)]
    found = split_rows(rows, group=[0])
    premises = [{example.texts[0] for example in examples} for examples in found.sides.values()]
    assert sum(map(len, premises)) == len(set.union(*premises)) == 1000 and all(premises)
    assert found.dropped["near_duplicate"] == 0
    assert split_rows(rows).dropped["near_duplicate"] > 500


@given(st.one_of(drawn, official))
def test_every_row_is_kept_or_counted(rows):
    splits = split_rows(rows)
    kept = [normal(example) for examples in splits.sides.values() for example in examples]
    assert len(kept) == len(set(kept)) == len(rows) - sum(splits.dropped.values())
    assert splits.dropped["unlabelled"] == sum(row.answer is None for row in rows)
    found = {text: {r.answer for r in rows if normalise(r.texts[0]) == text} - {None} for text in kept}
    assert all(len(some) == 1 for some in found.values())


@given(drawn, drawn)
def test_more_rows_move_no_text_to_another_side(rows, more):
    before, after = sides_of(rows), sides_of(more + rows)
    assert all(after[normal] == side for normal, side in before.items() if normal in after)


@given(st.one_of(drawn, official), st.randoms())
def test_the_order_of_rows_does_not_matter(rows, random):
    shuffled = random.sample(rows, len(rows))
    for side in SIDES:
        assert sorted(split_rows(rows).sides[side]) == sorted(split_rows(shuffled).sides[side])


@given(official.filter(lambda rows: any(row.split == "test" and row.answer for row in rows)))
def test_an_official_test_text_never_leaves_test(rows):
    sides = sides_of(rows)
    unique = {normalise(row.texts[0]) for row in rows if row.split == "test" and row.answer}
    assert all(sides.get(normal, "test") == "test" for normal in unique)
    if all(row.answer for row in rows):
        assert all(normal in unique for normal, side in sides.items() if side == "test")


def origins(found: Splits) -> dict[str, set[str]]:
    """Side → the official splits that its rows are from."""
    return {side: {example.texts[0].split()[0] for example in examples} for side, examples in found.sides.items()}


def test_official_labelled_splits_are_kept():
    found = split_rows(rows_of(100, "train", "validation", "test"))
    assert origins(found) == {side: {side} for side in SIDES}
    assert set(found.origin.values()) == {f"{side} of the source" for side in SIDES}


def test_without_a_labelled_test_validation_is_the_test_and_validation_is_drawn_out_of_train():
    secret = [Row((f"secret {i}",), None, "test", "") for i in range(50)]
    found = split_rows([*rows_of(300, "train", "validation"), *secret])
    assert origins(found) == {"test": {"validation"}, "validation": {"train"}, "train": {"train"}}
    assert len(found.sides["test"]) == 300 and 10 < len(found.sides["validation"]) < 50
    assert found.dropped["unlabelled"] == 50
    assert found.origin["test"] == "validation of the source" and found.origin["validation"] == "drawn out of train"


def test_without_validation_it_is_drawn_out_of_train():
    found = split_rows(rows_of(300, "train", "test"))
    assert origins(found) == {"test": {"test"}, "validation": {"train"}, "train": {"train"}}


def test_conflicting_labels_go_with_all_their_copies():
    rows = [("One.", "x", "test"), ("one", "y", "train"), ("two", "x", "test"), ("!", "x", "train")]
    splits = split_rows(Row((text,), label, split, "") for text, label, split in rows)
    assert splits.dropped == {"unlabelled": 0, "empty": 1, "conflicting": 2, "duplicate": 0, "near_duplicate": 0}
    assert splits.sides["test"] == [one("two")]


def test_references_of_copies_are_joined():
    rows = [Row(("Who?",), ("B", "A"), None, ""), Row(("who",), ("A", "C"), None, "")]
    splits = split_rows(rows)
    (example,) = [example for examples in splits.sides.values() for example in examples]
    assert (example.texts, example.references) == (("Who?",), ("B", "A", "C"))
    assert splits.dropped["duplicate"] == 1 and splits.dropped["conflicting"] == 0


def test_shares_are_a_fifth_a_tenth_and_the_rest():
    sides = split_rows(rows_of(5000, None)).sides
    assert abs(len(sides["test"]) / 5000 - 0.2) < 0.02
    assert abs(len(sides["validation"]) / 5000 - 0.1) < 0.015


def test_a_sentence_is_on_the_same_side_in_every_task_that_draws():
    alone = sides_of([Row((f"sentence {i}",), "x", None, "") for i in range(200)])
    others = [*(Row((f"sentence {i}",), "y", None, "") for i in range(0, 200, 2)), *rows_of(50, None)]
    both = sides_of(others)
    assert {alone[f"sentence {i}"] for i in range(200)} == set(SIDES)
    assert all(both[f"sentence {i}"] == alone[f"sentence {i}"] for i in range(0, 200, 2))


def test_overlaps_sees_a_shared_edge():
    story = "word " * 50
    sides = {"test": [one(story + "a")], "train": [one(story + "b")]}
    assert edges(story + "a")[0] == edges(story + "b")[0]
    assert overlaps(sides) == {"test/train": 1}


def test_stories_with_one_beginning_stand_on_one_side_and_none_is_dropped():
    rows = [f"story {i} " + "goes on " * 30 + f"{i} {end} " * 90 for i in range(50) for end in ("well", "badly")]
    splits = split_rows(Row((text,), "x", None, "") for text in rows)
    assert splits.dropped["near_duplicate"] == 0
    stories = [{normal(example)[:EDGE] for example in examples} for examples in splits.sides.values()]
    assert all(stories) and sum(map(len, stories)) == len(set.union(*stories)) == 50
