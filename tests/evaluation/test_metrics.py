"""Metrics against other implementations of their definitions."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer
from rouge_score.tokenizers import DefaultTokenizer

from apet.data.label_metrics import positive_f1
from apet.data.text_metrics import answer_scores, exact_match, plain, rouge_l, rouge_words, shuffled_scores, token_f1
from apet.errors import ConfigError
from apet.evaluation import Score, score_answers, score_labels
from apet.evaluation.metrics import label_metrics, text_metrics

WORDS = ["the", "a", "An", "cat", "cats", "running", "sat", "Mat.", "mat", "it's", "U.S.", "1,000", "ponies", "--", ""]
sentences = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)
pairs = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30)


def confusion(predicted: list[int], labels: list[int]) -> Counter:
    return Counter(zip(predicted, labels, strict=True))


@given(pairs)
def test_label_metrics_agree_with_the_confusion_matrix(rows):
    predicted, labels = map(list, zip(*rows, strict=True))
    table = confusion(predicted, labels)
    precision = Fraction(table[1, 1], max(1, table[1, 1] + table[1, 0]))
    recall = Fraction(table[1, 1], max(1, table[1, 1] + table[0, 1]))
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0
    metrics = label_metrics(["accuracy", "f1"], torch.tensor(predicted), torch.tensor(labels))
    assert metrics == {
        "accuracy": pytest.approx((table[0, 0] + table[1, 1]) / len(rows)),
        "f1": pytest.approx(float(f1)),
    }


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_macro_f1_and_mcc_agree_with_their_definitions(rows):
    predicted, labels = np.array(rows).T
    classes = sorted({*predicted, *labels})
    f1s = [positive_f1((predicted == k).astype(int), (labels == k).astype(int)) for k in classes]
    indicators = (np.concatenate([values == k for k in classes]).astype(float) for values in (predicted, labels))
    pair = [one.reshape(len(classes), -1) for one in indicators]
    p, y = (one - one.mean(axis=1, keepdims=True) for one in pair)
    scale = np.sqrt((p * p).sum() * (y * y).sum())
    metrics = label_metrics(["macro_f1", "mcc"], torch.tensor(predicted), torch.tensor(labels))
    assert metrics["macro_f1"] == pytest.approx(np.mean(f1s))
    assert metrics["mcc"] == pytest.approx((p * y).sum() / scale if scale > 1e-9 else 0.0)


def test_score_labels_uses_the_first_metric_as_score():
    logits, labels = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0], [1.0, 1.0]]), torch.tensor([1, 0, 0, 0])
    by_default = score_labels(logits, labels)
    assert (by_default.score, by_default.n, by_default.metrics) == (0.75, 4, {"accuracy": 0.75})
    both = score_labels(logits, labels, ("f1", "accuracy"))
    assert both.score == both.metrics["f1"] == pytest.approx(2 / 3) and both.metrics["accuracy"] == 0.75
    assert both.loss == by_default.loss == pytest.approx(float(torch.logsumexp(logits, 1).sub(
        logits[range(4), labels]).mean()))  # fmt: skip
    assert Score(0.5, 2, 1.0).metrics == {}


def test_plain_normalizes_like_squad():
    assert plain("The  Cat's (hat), an “A”-team!") == "cats hat ateam"
    assert plain("a.b. the") == "ab" and plain("Theatre another") == "theatre another"
    assert plain("U.S.") == "us" and plain("the an a") == ""


def squad_words(text: str) -> list[str]:
    """SQuAD's normalisation, a character and a word at a time."""
    kept = "".join(c for c in text.lower() if c not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
    spans = [m.span() for m in re.finditer(r"\w+", kept) if m.group() in ("a", "an", "the")]
    for start, end in reversed(spans):
        kept = kept[:start] + " " + kept[end:]
    return kept.split()


@given(sentences, st.lists(sentences, min_size=1, max_size=3))
def test_exact_match_and_token_f1_take_the_best_reference(answer, references):
    mine = squad_words(answer)
    matches, f1s = [], []
    for reference in map(squad_words, references):
        matches.append(mine == reference)
        left, common = list(reference), 0
        for word in mine:
            if word in left:
                left.remove(word)
                common += 1
        precision = common / len(mine) if mine else 0
        recall = common / len(reference) if reference else 0
        f1s.append(2 * precision * recall / (precision + recall) if common else float(mine == reference == []))
    assert exact_match(answer, references) == max(matches)
    assert token_f1(answer, references) == pytest.approx(max(f1s))


def longest_common(one: list[str], other: list[str]) -> int:
    """Hunt and Szymanski: the longest strictly increasing sequence of matching positions, by patience sorting."""
    piles: list[int] = []
    for word in one:
        for place in (i for i in reversed(range(len(other))) if other[i] == word):
            left = sum(top < place for top in piles)
            piles[left : left + 1] = [place]
    return len(piles)


def stems(text: str) -> list[str]:
    """Letters and digits in lower case, words of more than three letters stemmed."""
    stemmer = PorterStemmer()
    words = re.split(r"[^a-z0-9]+", text.lower())
    return [stemmer.stem(word) if len(word) > 3 else word for word in words if word]


@given(sentences, st.lists(sentences, min_size=1, max_size=3))
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(answer, references):
    mine, best = stems(answer), 0.0
    for reference in map(stems, references):
        common = longest_common(mine, reference)
        best = max(best, 2 * common / (len(mine) + len(reference)) if common else 0.0)
    assert rouge_l(answer, references) == pytest.approx(best)


def test_rouge_l_stems_and_takes_the_best_reference():
    assert rouge_l("the cat was running", ["a dog", "the cats run"]) == pytest.approx(2 * 3 / 7)


SAMPLES = [
    "Москва столица России", "北京是中国的首都", "東京タワー", "القاهرة عاصمة مصر", "दिल्ली भारत की राजधानी",
    "서울은 수도이다", "กรุงเทพมหานคร", "ရန်ကုန်မြို့", "ភ្នំពេញ", "ວຽງຈັນ", "Größe und Übermut", "Hà Nội là thủ đô",
    "ירושלים", "Αθήνα",
]  # fmt: skip


@pytest.mark.parametrize("text", SAMPLES)
def test_text_metrics_in_any_script(text):
    other = SAMPLES[SAMPLES.index(text) - 3]
    for metric in (exact_match, token_f1, rouge_l):
        assert metric(text, [text]) == metric(unicodedata.normalize("NFD", text), [f" {text}。"]) == 1
        assert metric(text, [other]) == 0
    half = text[: len(text) // 2]
    assert exact_match(half, [text]) == 0 < rouge_l(half, [text]) < 1 or " " not in text


def test_rouge_words_split_scripts_without_spaces_by_letter():
    assert rouge_words("BERT模型2024年") == ["bert", "模", "型", "2024", "年"]
    assert rouge_words("Größen der Ponies") == ["größen", "der", "poni"]
    assert rouge_words("ไม่กิน") == ["ไ", "ม่", "กิ", "น"]
    assert token_f1("中国北京", ["北京。"]) == pytest.approx(2 * 2 / 6)


@given(st.text(st.characters(codec="ascii"), max_size=40) | sentences)
def test_ascii_words_are_those_of_rouge_score_and_squad(text):
    assert rouge_words(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)
    assert plain(text).split() == squad_words(text)


def test_score_answers_averages_text_metrics():
    answers, references = ["Paris", "in 1999", "x"], [["paris", "Lyon"], ["1999"], ["y"]]
    metrics = text_metrics(["em", "f1"], answers, references)
    assert metrics["em"].tolist() == [1, 0, 0] and metrics["f1"].tolist() == pytest.approx([1, 2 / 3, 0])
    scored = score_answers(text_metrics(["f1", "em"], answers, references), loss=2.5)
    assert scored == Score(pytest.approx(5 / 9), 3, 2.5, {"f1": pytest.approx(5 / 9), "em": pytest.approx(1 / 3)})
    with pytest.raises(ValueError):
        answer_scores("em", answers, references[:2])


def test_shuffled_scores_compare_different_rows():
    references = [["a b"], ["b c", "x"], ["c d"]]  # a is an article
    assert shuffled_scores("f1", references).tolist() == pytest.approx([2 / 3, 1 / 2, 0])


def test_metrics_with_an_unknown_name_raise_config_error():
    with pytest.raises(ConfigError, match=r"unknown metric 'rouge_1'\. Did you mean 'rouge_l'"):
        text_metrics(["rouge_1"], ["x"], [["x"]])
    with pytest.raises(ConfigError, match="Allowed: accuracy, f1"):
        label_metrics(["em"], torch.tensor([1]), torch.tensor([1]))
