"""Split assignment: no text in two splits, stable splits, official splits, joined copies."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from apet.data.schema import PRIORITY, Row
from apet.data.splits import EDGE_CHARS, Example, Splits, edges, normalise, overlaps, split_rows, text_id

BLOCKS = [
    "",
    "alpha " * 60,
    "beta " * 60,
]  # a block is longer than EDGE_CHARS, so rows that share one are near-duplicates
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
    return Example.from_texts([text], [normalise(text)], label)


def normal(example: Example) -> str:
    return "\n".join(map(normalise, example.texts))


def splits_of(rows: list[Row]) -> dict[str, str]:
    return {normal(example): split for split, examples in split_rows(rows).splits.items() for example in examples}


def rows_of(count: int, *official: str | None) -> list[Row]:
    return [Row((f"{split} text {i}",), "x", split, "") for split in official for i in range(count)]


@given(st.text())
def test_normalise_keeps_letters_and_digits_and_is_idempotent(text):
    normal = normalise(text)
    assert normalise(normal) == normal
    assert normal == normalise(f"  {text.upper().lower()!s}\n") or not text.isascii()
    assert all(word.isalnum() for word in normal.split(" ") if word)


def test_normalise_unifies_forms_of_one_text():
    assert normalise("Ｔhe  “Straße”, 1²!") == normalise("the strasse 12") == "the strasse 12"


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=3))
def test_example_returns_its_texts(texts):
    normals = [normalise(text) for text in texts]
    example = Example.from_texts(texts, normals, "x")
    assert list(example.texts) == texts and example.id == text_id(*normals)
    assert example.keys == {edge for normal in normals for edge in edges(normal)}


@given(st.one_of(drawn, official))
def test_no_text_or_near_duplicate_is_in_two_splits(rows):
    by_split = split_rows(rows).splits
    assert list(by_split) == list(PRIORITY)
    for first, second in combinations(PRIORITY, 2):
        for mine in map(normal, by_split[first]):
            for other in map(normal, by_split[second]):
                assert not {mine[:EDGE_CHARS], mine[-EDGE_CHARS:]} & {other[:EDGE_CHARS], other[-EDGE_CHARS:]}
    assert set(overlaps(by_split).values()) == {0}


@given(pairs)
def test_rows_connected_by_common_texts_are_in_one_split(rows):
    found = split_rows(rows)
    parent: dict[str, str] = {}

    def root(text: str) -> str:
        while parent.setdefault(text, text) != text:
            text = parent[text]
        return text

    examples = [(example, split) for split, some in found.splits.items() for example in some]
    for example, _ in examples:
        first, second = map(root, example.texts)
        parent[first] = second
    by_split: dict[str, set[str]] = {}
    for example, split in examples:
        by_split.setdefault(root(example.texts[0]), set()).add(split)
    assert all(len(some) == 1 for some in by_split.values())


@given(pairs, pairs)
def test_added_pairs_move_no_pair_to_another_split(rows, more):
    before, after = splits_of(rows), splits_of(more + rows)
    assert all(after[pair] == split for pair, split in before.items() if pair in after)


def test_grouped_texts_are_in_one_split_and_other_texts_may_repeat():
    rows = [Row((f"premise {i // 3}", f"hypothesis {i % 3}"), "x", None, "") for i in range(3000)]
    found = split_rows(rows, group=[0])
    premises = [{example.texts[0] for example in examples} for examples in found.splits.values()]
    assert sum(map(len, premises)) == len(set.union(*premises)) == 1000 and all(premises)
    assert found.dropped["near_duplicate"] == 0
    assert split_rows(rows).dropped["near_duplicate"] > 500


@given(st.one_of(drawn, official))
def test_every_row_is_kept_or_counted_as_dropped(rows):
    splits = split_rows(rows)
    kept = [normal(example) for examples in splits.splits.values() for example in examples]
    assert len(kept) == len(set(kept)) == len(rows) - sum(splits.dropped.values())
    assert splits.dropped["unlabeled"] == sum(row.answer is None for row in rows)
    found = {text: {r.answer for r in rows if normalise(r.texts[0]) == text} - {None} for text in kept}
    assert all(len(some) == 1 for some in found.values())


@given(drawn, drawn)
def test_added_rows_move_no_text_to_another_split(rows, more):
    before, after = splits_of(rows), splits_of(more + rows)
    assert all(after[normal] == split for normal, split in before.items() if normal in after)


@given(st.one_of(drawn, official), st.randoms())
def test_order_of_rows_does_not_change_splits(rows, random):
    shuffled = random.sample(rows, len(rows))
    for split in PRIORITY:
        assert sorted(split_rows(rows).splits[split]) == sorted(split_rows(shuffled).splits[split])


@given(official.filter(lambda rows: any(row.split == "test" and row.answer for row in rows)))
def test_official_test_text_stays_in_test(rows):
    by_split = splits_of(rows)
    unique = {normalise(row.texts[0]) for row in rows if row.split == "test" and row.answer}
    assert all(by_split.get(normal, "test") == "test" for normal in unique)
    if split_rows(rows).origin["test"] == "test of the source" and all(row.answer for row in rows):
        assert all(normal in unique for normal, split in by_split.items() if split == "test")


def origins(found: Splits) -> dict[str, set[str]]:
    """Split -> the official splits that its rows are from."""
    return {split: {example.texts[0].split()[0] for example in examples} for split, examples in found.splits.items()}


def test_official_labelled_splits_are_kept():
    found = split_rows(rows_of(100, "train", "validation", "test"))
    assert origins(found) == {split: {split} for split in PRIORITY}
    assert set(found.origin.values()) == {f"{split} of the source" for split in PRIORITY}


def test_without_labelled_test_split_validation_becomes_test():
    secret = [Row((f"secret {i}",), None, "test", "") for i in range(50)]
    found = split_rows([*rows_of(300, "train", "validation"), *secret])
    assert origins(found) == {"test": {"validation"}, "validation": {"train"}, "train": {"train"}}
    assert len(found.splits["test"]) == 300 and 10 < len(found.splits["validation"]) < 50
    assert found.dropped["unlabeled"] == 50
    assert found.origin["test"] == "validation of the source" and found.origin["validation"] == "split off train"


def test_without_validation_it_is_split_off_train():
    found = split_rows(rows_of(300, "train", "test"))
    assert origins(found) == {"test": {"test"}, "validation": {"train"}, "train": {"train"}}


def test_copies_with_conflicting_labels_are_all_dropped():
    rows = [("One.", "x", "test"), ("one", "y", "train"), ("two", "x", "test"), ("!", "x", "train")]
    splits = split_rows(Row((text,), label, split, "") for text, label, split in rows)
    assert splits.dropped == {"unlabeled": 0, "empty": 1, "conflicting": 2, "duplicate": 0, "near_duplicate": 0}
    assert splits.splits["test"] == [one("two")]


def test_references_of_copies_are_joined():
    rows = [Row(("Who?",), ("B", "A"), None, ""), Row(("who",), ("A", "C"), None, "")]
    splits = split_rows(rows)
    (example,) = [example for examples in splits.splits.values() for example in examples]
    assert (example.texts, example.references) == (("Who?",), ("B", "A", "C"))
    assert splits.dropped["duplicate"] == 1 and splits.dropped["conflicting"] == 0


def test_fractions_are_a_fifth_a_tenth_and_the_rest():
    by_split = split_rows(rows_of(5000, None)).splits
    assert abs(len(by_split["test"]) / 5000 - 0.2) < 0.02
    assert abs(len(by_split["validation"]) / 5000 - 0.1) < 0.015


def test_sentence_is_in_the_same_split_of_every_task():
    alone = splits_of([Row((f"sentence {i}",), "x", None, "") for i in range(200)])
    others = [*(Row((f"sentence {i}",), "y", None, "") for i in range(0, 200, 2)), *rows_of(50, None)]
    both = splits_of(others)
    assert {alone[f"sentence {i}"] for i in range(200)} == set(PRIORITY)
    assert all(both[f"sentence {i}"] == alone[f"sentence {i}"] for i in range(0, 200, 2))


def test_overlaps_counts_shared_edge():
    story = "word " * 50
    by_split = {"test": [one(story + "a")], "train": [one(story + "b")]}
    assert edges(story + "a")[0] == edges(story + "b")[0]
    assert overlaps(by_split) == {"test/train": 1}


def test_texts_with_one_beginning_are_in_one_split_and_none_is_dropped():
    rows = [f"story {i} " + "goes on " * 30 + f"{i} {end} " * 90 for i in range(50) for end in ("well", "badly")]
    splits = split_rows(Row((text,), "x", None, "") for text in rows)
    assert splits.dropped["near_duplicate"] == 0
    stories = [{normal(example)[:EDGE_CHARS] for example in examples} for examples in splits.splits.values()]
    assert all(stories) and sum(map(len, stories)) == len(set.union(*stories)) == 50
