"""Prepared splits as tensors, with a real tokenizer: text columns, special tokens, truncation, label words."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from apet.data.prepared_files import read_split
from apet.errors import ConfigError
from apet.evaluation import encode_split, label_tokens
from apet.models.families import FAMILIES, SpecialTokens
from byte_tokenizer import TOKENIZER
from toy_splits import FIELDS, PAIRS, prepared


def plm(family: str = "bloom", **special: tuple[int, ...]) -> SimpleNamespace:
    return SimpleNamespace(tokenizer=TOKENIZER, family=FAMILIES[family], special_tokens=SpecialTokens(**special))


def test_long_rows_are_truncated_and_counted_and_keep_the_family_prompt(tmp_path):
    folder, task = prepared(
        tmp_path, PAIRS, **FIELDS | {"prompt": {"default": FIELDS["prompt"], "bert": "{one} it was {two}"}}
    )
    encoded = encode_split(folder, "test", task, plm(after=(9,)), 30)
    assert encoded.row_ids == read_split(folder, "test").id.tolist() and len(encoded) == 29
    assert encoded.labels.tolist() == read_split(folder, "test").label.tolist()
    tail = TOKENIZER(" Topic:")["input_ids"] + [9]
    for ids, length in zip(encoded.ids.tolist(), encoded.lengths.tolist(), strict=True):
        assert length <= 30 and ids[length - len(tail) : length] == tail and not any(ids[length:])
    whole = encode_split(folder, "test", task, plm(after=(9,)), 500)
    assert whole.truncated == 0 and encoded.truncated == (whole.lengths > 30).sum() / 29 > 0.3
    bert = encode_split(folder, "test", task, plm("bert"), 500)
    assert TOKENIZER.decode(bert.ids[0, : bert.lengths[0]]).count(" it was film ") == 1


def test_prompt_of_unknown_family_is_named(tmp_path):
    folder, task = prepared(tmp_path, PAIRS, **FIELDS | {"prompt": {"default": FIELDS["prompt"], "brt": "{one} {two}"}})
    with pytest.raises(ConfigError, match=r"unknown family 'brt'\. Did you mean 'bert'"):
        encode_split(folder, "test", task, plm(), 30)


def test_generation_task_has_targets_and_references(tmp_path):
    rows = [{"one": f"good {n} to", "two": "all of it", "label": [f"film {n}", "word"]} for n in range(1, 20)]
    generation = {
        "type": "generation",
        "verbalizer": None,
        "metrics": ["em"],
        "max_new_tokens": 3,
        "target_column": "label",
    }
    folder, task = prepared(tmp_path, rows, **FIELDS, **generation)
    encoded = encode_split(folder, "test", task, plm(), 60, end_ids=(9,))
    assert encoded.references == [[first, "word"] for first, _ in encoded.references] and not len(encoded.labels)
    for ids, length, (first, _) in zip(
        encoded.targets.tolist(), encoded.target_lengths, encoded.references, strict=True
    ):
        assert ids[:length] == [*TOKENIZER(" " + first)["input_ids"][:2], 9] and not any(ids[length:])


def test_label_words_with_common_beginning_are_distinguished():
    task = {"task": "toy", "verbalizer": {"a": " good film", "b": " good word", "c": " it"}}
    found = label_tokens(task, TOKENIZER)
    assert [TOKENIZER.decode(ids) for ids in found] == list(task["verbalizer"].values()) and found[0][0] == found[1][0]
    task["verbalizer"]["d"] = " good"
    assert label_tokens(task, TOKENIZER)[3] == found[0][:1]
