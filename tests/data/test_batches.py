"""Tokenisation: truncation, prompts, label words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from apet.data.tokenization import encode, encode_targets, label_ids, shares
from apet.errors import ConfigError, DataError
from byte_tokenizer import TOKENIZER

PROMPTS = ["{text}\nTopic:", "{text} It was", "Input: {text} Output:", "Input:\n{text}"]
prompts = st.sampled_from(PROMPTS)


PAIR = "Input: one: {one} [SEP] two: {two} Output:"


def ids_of(texts: list[str], prompt: str, length: int) -> list[list[int]]:
    return encode({"text": texts}, TOKENIZER, prompt, length).ids


@given(st.lists(st.text(max_size=60), max_size=3), prompts, st.integers(20, 60))
def test_encode_respects_length_and_keeps_the_prompt(texts, prompt, length):
    head, tail = prompt.split("{text}")
    encoded = ids_of(texts, prompt, length)
    assert len(encoded) == len(texts)
    for ids in encoded:
        assert len(ids) <= length
        decoded = TOKENIZER.decode(ids)
        assert decoded.startswith(head.rstrip(" ")) and decoded.endswith(tail)


@given(st.text("good mrnigtaly .", max_size=40), prompts)
def test_encode_keeps_a_text_that_fits(text, prompt):
    (ids,) = ids_of([text], prompt, 200)
    assert TOKENIZER.decode(ids) == prompt.replace("{text}", text.strip())
    assert ids_of([f" {text}\n"], prompt, 200) == [ids]


@given(st.text(min_size=1, max_size=60), prompts, st.integers(20, 40))
def test_encode_truncates_the_end_of_the_text_and_counts_it(text, prompt, length):
    (whole,) = ids_of([text], prompt, 1000)
    encoded = encode({"text": [text]}, TOKENIZER, prompt, length)
    (cut,) = encoded.ids
    tail = TOKENIZER(prompt.split("{text}")[1], add_special_tokens=False)["input_ids"]
    body = cut[: len(cut) - len(tail)]
    assert cut[len(body) :] == tail and body == whole[: len(body)]
    assert len(cut) == min(length, len(whole)) and encoded.cut == [len(whole) > len(cut)]


short = st.text("good mrnigtaly.", min_size=1, max_size=30).map(str.strip)


@given(short, short, st.integers(50, 80))
def test_encode_truncates_the_longer_text_first(one, two, length):
    def tokens(text: str) -> list[int]:
        return TOKENIZER(text, add_special_tokens=False)["input_ids"]

    encoded = encode({"two": [two], "one": [one]}, TOKENIZER, PAIR, length)
    first, second = tokens(" " + one), tokens(" " + two)
    start, middle, end = tokens("Input: one:"), tokens(" [SEP] two:"), tokens(" Output:")
    kept = length - len(start) - len(middle) - len(end)
    a, b = shares([len(first), len(second)], kept)
    assert encoded.ids == [start + first[:a] + middle + second[:b] + end]
    assert encoded.cut == [len(first) + len(second) > a + b]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(4, 90))
def test_shares_equal_truncating_the_longest_one_by_one(sizes, room):
    kept = list(sizes)
    while sum(kept) > room:
        longest = max(kept)
        kept[len(kept) - 1 - kept[::-1].index(longest)] -= 1
    found = shares(sizes, room)
    assert sum(found) == min(room, sum(sizes)) and all(1 <= a <= b for a, b in zip(found, sizes, strict=True))
    assert sorted(found) == sorted(kept)


def test_encode_moves_space_before_placeholder_to_the_text():
    (ids,) = ids_of(["good"], "Input: {text} Output:", 30)
    assert ids == [token for part in ("Input:", " good", " Output:") for token in TOKENIZER(part)["input_ids"]]


def test_encode_counts_special_tokens_towards_the_length():
    ((ids,), cut) = encode({"text": ["good " * 50]}, TOKENIZER, "{text} It was", 12, before=[7], after=[8, 9])
    assert len(ids) == 12 and ids[0] == 7 and ids[-2:] == [8, 9] and cut == [True]


def test_encode_prompt_that_fills_the_length_raises_config_error():
    need = len(TOKENIZER("\nTopic:")["input_ids"])
    assert len(ids_of(["good"], "{text}\nTopic:", need + 1)[0]) == need + 1
    with pytest.raises(ConfigError, match=rf"max_length: expected at least {need + 1} for the prompt .*, got {need}\."):
        ids_of(["good"], "{text}\nTopic:", need)
    need = sum(len(TOKENIZER(part)["input_ids"]) for part in ("Input: one:", " [SEP] two:", " Output:"))
    with pytest.raises(
        ConfigError, match=rf"max_length: expected at least {need + 2} for the prompt .*, got {need + 1}\."
    ):
        encode({"one": ["good"], "two": ["film"]}, TOKENIZER, PAIR, need + 1)


def test_encode_targets_truncates_and_appends_end():
    (whole, cut), counts = encode_targets(["good", " good film " * 9], TOKENIZER, 6, end=[3])
    assert whole == [*TOKENIZER(" good")["input_ids"], 3]
    assert len(cut) == 6 and cut[-1] == 3 and counts == [False, True]


def test_label_ids_are_distinct():
    assert [TOKENIZER.decode(ids) for ids in label_ids(TOKENIZER, [" good", " business"])] == [" good", " business"]
    with pytest.raises(DataError, match=r"label words \[' good', ' good'\]"):
        label_ids(TOKENIZER, [" good", " film", " good"])
    with pytest.raises(DataError, match=r"label words \[''\]"):
        label_ids(TOKENIZER, ["", " film"])


def test_label_ids_of_unknown_words_are_refused():
    closed = Tokenizer(models.WordLevel({"[UNK]": 0, "film": 1}, unk_token="[UNK]"))
    closed.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(DataError, match="expected distinct token ids"):
        label_ids(PreTrainedTokenizerFast(tokenizer_object=closed), [" film", " good", " bad"])
