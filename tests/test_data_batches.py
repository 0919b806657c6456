from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from apet.data.batches import encode, label_ids
from apet.errors import DataError, ParamsError

WORDS = ["good morning to all of you", "It was a good film", "Input: a long text of many words", "Topic: business"]


def byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(WORDS * 9, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZER = byte_level()
PROMPTS = ["{text}\nTopic:", "{text} It was", "Input: {text} Output:", "Input:\n{text}"]
prompts = st.sampled_from(PROMPTS)


@given(st.lists(st.text(max_size=60), max_size=3), prompts, st.integers(20, 60))
def test_length_holds_and_the_prompt_stays_whole(texts, prompt, length):
    head, tail = prompt.split("{text}")
    encoded = encode(texts, TOKENIZER, prompt, length)
    assert len(encoded) == len(texts)
    for ids in encoded:
        assert len(ids) <= length
        decoded = TOKENIZER.decode(ids)
        assert decoded.startswith(head.rstrip(" ")) and decoded.endswith(tail)


@given(st.text("good mrnigtaly .", max_size=40), prompts)
def test_a_text_that_fits_is_rendered_as_written(text, prompt):
    (ids,) = encode([text], TOKENIZER, prompt, 200)
    assert TOKENIZER.decode(ids) == prompt.replace("{text}", text.strip())
    assert encode([f" {text}\n"], TOKENIZER, prompt, 200) == [ids]


@given(st.text(min_size=1, max_size=60), prompts, st.integers(20, 40))
def test_a_cut_takes_only_the_texts_last_tokens(text, prompt, length):
    (whole,), (cut,) = (encode([text], TOKENIZER, prompt, n) for n in (1000, length))
    tail = TOKENIZER(prompt.split("{text}")[1], add_special_tokens=False)["input_ids"]
    body = cut[: len(cut) - len(tail)]
    assert cut[len(body) :] == tail and body == whole[: len(body)]
    assert len(cut) == min(length, len(whole))


def test_a_space_before_the_slot_stays_with_the_first_word():
    (ids,) = encode(["good"], TOKENIZER, "Input: {text} Output:", 30)
    assert ids == [token for part in ("Input:", " good", " Output:") for token in TOKENIZER(part)["input_ids"]]


def test_ids_of_the_family_count_into_the_length():
    (ids,) = encode(["good " * 50], TOKENIZER, "{text} It was", 12, before=[7], after=[8, 9])
    assert len(ids) == 12 and ids[0] == 7 and ids[-2:] == [8, 9]


def test_a_prompt_that_fills_the_length_is_an_error():
    need = len(TOKENIZER("\nTopic:")["input_ids"])
    assert len(encode(["good"], TOKENIZER, "{text}\nTopic:", need + 1)[0]) == need + 1
    with pytest.raises(ParamsError, match=f"length is {need}; the prompt .* alone takes {need} tokens"):
        encode(["good"], TOKENIZER, "{text}\nTopic:", need)


def test_label_words_have_ids_of_their_own():
    assert [TOKENIZER.decode(ids) for ids in label_ids(TOKENIZER, [" good", " business"])] == [" good", " business"]
    with pytest.raises(DataError, match=r"label words \[' good', ' good'\]"):
        label_ids(TOKENIZER, [" good", " film", " good"])
    with pytest.raises(DataError, match=r"label words \[''\]"):
        label_ids(TOKENIZER, ["", " film"])


def test_words_outside_a_closed_vocabulary_are_told_apart_or_refused():
    closed = Tokenizer(models.WordLevel({"[UNK]": 0, "film": 1}, unk_token="[UNK]"))
    closed.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(DataError, match="same ids"):
        label_ids(PreTrainedTokenizerFast(tokenizer_object=closed), [" film", " good", " bad"])
