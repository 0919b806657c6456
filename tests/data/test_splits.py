"""Split assignment: no text in two splits, stable splits, official splits, joined copies."""

from __future__ import annotations

import unicodedata
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apet.data.schema import PRIORITY, Row
from apet.data.splits import (
    EDGE_CHARS,
    Example,
    Splits,
    edges,
    exact,
    fraction,
    normalise,
    overlaps,
    split_hash,
    split_rows,
    text_id,
)

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


scripts = st.characters(codec="utf-8") | st.sampled_from("दिनाक่้ขကိ်ʼ'̈́ͅ\u200d\ufe0f⃣🙂❤1Ǆ²ﬁß")


@given(st.text(scripts))
def test_normalise_keeps_words_and_is_idempotent(text):
    normal = normalise(text)
    assert normalise(normal) == normal and normal == normalise(f"  {text}\n")
    if any(char.isalnum() for char in unicodedata.normalize("NFKC", text).casefold()):
        assert all(char == " " or char.isalnum() or unicodedata.category(char)[0] == "M" for char in normal)
        assert all(word[0].isalnum() for word in normal.split(" "))
    else:
        assert normal in ("", exact(text))


@given(st.text(scripts), st.sampled_from(["NFC", "NFD"]), st.sampled_from([" ", "\n\t", "\u3000"]))
def test_exact_ignores_encoding_and_white_space_only(text, form, space):
    other = space + space.join(unicodedata.normalize(form, text).split()) + space
    assert exact(other) == exact(text) == exact(exact(text))
    assert exact(text + "!") != exact(text) != exact("A" + text) != exact("a" + text)
    assert normalise(exact(text)) == normalise(text), "equal texts have equal coarse forms"


DIFFERENT = [
    ("What is 7 + 3?", "What is 7 - 3?"),
    (":)", ":("),
    ("🙂", "🙃"),
    ("❤️", "✔️"),
    ("दिन", "दान"),
    ("ไม้", "ไม่"),
    ("கல்", "கல"),
    ("ကို", "ကူ"),
    ("US", "us"),
    ("C", "C++"),
    ("2²", "22"),
    ("½", "1⁄2"),
]


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
def test_different_texts_are_two_rows(first, second):
    splits = split_rows([Row((first,), "x", None, ""), Row((second,), "y", None, "")])
    assert {e.texts[0]: e.label for some in splits.splits.values() for e in some} == {first: "x", second: "y"}
    assert not any(splits.dropped.values())


@pytest.mark.parametrize(("first", "second"), DIFFERENT[1:8])
def test_normalise_keeps_marks_and_texts_without_words(first, second):
    assert "" != normalise(first) != normalise(second) != ""


def test_normalise_of_invisible_text_is_empty():
    assert [normalise(text) for text in ("", " \n\u3000", "\u200b\ufeff", "\x00")] == [""] * 4


def test_combining_marks_do_not_change_the_split():
    """One of the tweets of the shipped ladder's corpus is struck through."""
    struck = normalise("V\u0336P\u0336 \u0336p\u0336i\u0336c\u0336k\u0336 convention")
    assert struck == "v\u0336p\u0336 p\u0336i\u0336c\u0336k\u0336 convention"
    assert split_hash([struck]) == split_hash(["v p p i c k convention"])
    cut = "a" * (EDGE_CHARS - 1) + " b"
    assert split_hash([cut]) == fraction("side", cut[:EDGE_CHARS]), "without marks, the head is hashed as it is"


def test_sums_with_other_operators_are_different_questions_of_one_split():
    solve = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    sums = [(f"What is {a} {sign} {b}?", str(solve[sign](a, b)), f"{a} {b}")
            for a in range(20) for b in range(10) for sign in solve]  # fmt: skip
    splits = split_rows(Row((text,), (answer,), None, "") for text, answer, _ in sums)
    found = {e.texts[0]: (split, e.references) for split, some in splits.splits.items() for e in some}
    assert {text: references for text, (_, references) in found.items()} == {t: (answer,) for t, answer, _ in sums}
    assert len(found) == 600 and found["What is 3 * 9?"][1] == ("27",) and not any(splits.dropped.values())
    assert len({(numbers, found[text][0]) for text, _, numbers in sums}) == 200


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=3))
def test_example_returns_its_texts(texts):
    normals = [normalise(text) for text in texts]
    example = Example.from_texts(texts, normals, "x")
    assert list(example.texts) == texts and example.id == text_id(*map(exact, texts))
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
    kept = [exact(example.texts[0]) for examples in splits.splits.values() for example in examples]
    assert len(kept) == len(set(kept)) == len(rows) - sum(splits.dropped.values())
    assert splits.dropped.get("unlabeled", 0) == sum(row.answer is None for row in rows)
    found = {text: {r.answer for r in rows if exact(r.texts[0]) == text} - {None} for text in kept}
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
    rows = [("One.", "x", "test"), ("One. ", "y", "train"), ("two", "x", "test"), ("\u200b", "x", "train")]
    splits = split_rows(Row((text,), label, split, "") for text, label, split in rows)
    counts = {"drop_rows": 0, "unlabeled": 0, "empty": 0, "conflicting": 1, "duplicate": 0, "near_duplicate": 0}
    assert splits.dropped_by_split == {"test": counts, "train": {**counts, "empty": 1}}
    assert splits.splits["test"] == [one("two")]


def test_references_of_copies_are_joined():
    rows = [("Who is it?", ("B", "A")), ("Who  is it?", ("A", "C")), ("who is it", ("D",))]
    splits = split_rows(Row((text,), references, None, "") for text, references in rows)
    (found,) = [some for some in splits.splits.values() if some]
    assert {e.texts[0]: e.references for e in found} == {"Who  is it?": ("A", "C", "B"), "who is it": ("D",)}
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


def sentence_pairs(official: bool) -> list[Row]:
    """300 different pairs of 40 sentences in train, 30 in test."""
    numbers = [(i % 40, (7 * i + i // 40) % 40) for i in range(330)]
    return [Row((f"sentence {a}", f"sentence {b}"), "x", ("test" if i % 11 == 0 else "train") if official else None, "")
            for i, (a, b) in enumerate(numbers)]  # fmt: skip


@pytest.mark.parametrize("official", [True, False])
def test_kept_near_duplicates_lose_only_equal_rows(official):
    rows = sentence_pairs(official)
    dropped = split_rows(rows).dropped_by_split
    assert dropped["train" if official else "all"]["near_duplicate"] > 100
    splits = split_rows([*rows, rows[0]._replace(texts=tuple(f" {text}" for text in rows[0].texts))], None, True)
    counts = {reason: count for reason, count in splits.dropped.items() if count}
    assert counts == {"duplicate": 1} and sum(map(len, splits.splits.values())) == 330
    assert overlaps(splits.splits)["test/train"] > 100, "the overlap is reported"
    assert all(splits.splits.values())


@given(st.one_of(drawn, official), st.booleans())
def test_drops_are_counted_by_split(rows, keep):
    splits = split_rows(rows, None, keep)
    read = {split: sum((row.split or "all") == split for row in rows) for split in ("all", "train", "test")}
    assert splits.read == {split: count for split, count in read.items() if count}
    assert all(sum(counts.values()) <= read[split] for split, counts in splits.dropped_by_split.items())
    assert sum(splits.dropped.values()) == len(rows) - sum(map(len, splits.splits.values()))
    assert not keep or not splits.dropped.get("near_duplicate")


@given(drawn, drawn)
def test_added_rows_move_no_kept_near_duplicate(rows, more):
    def sides(some: list[Row]) -> dict[str, str]:
        splits = split_rows(some, None, True).splits
        return {exact(example.texts[0]): split for split, examples in splits.items() for example in examples}

    before, after = sides(rows), sides(more + rows)
    assert all(after[text] == split for text, split in before.items() if text in after)
