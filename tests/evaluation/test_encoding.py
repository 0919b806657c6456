"""A row has the ids of the filled prompt in plain transformers: in the pipeline, in exports, in every family."""

from __future__ import annotations

import random
import re
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from apet.data import tokenization
from apet.data.text_beginnings import Beginnings
from apet.data.tokenization import encode, encode_targets
from apet.evaluation import encode_split, label_tokens
from apet.export.formats import export_model
from apet.export.tuned_model import TunedModel
from apet.models.families import template_of
from apet.models.loading import PLM, load_plm
from apet.placement import MethodSizes, Plan, make_plan, own_count
from hub_tokenizers import CORPUS, GPT4, KINDS
from tiny import CONFIGS
from toy_splits import prepared

TEXTS = ["the morning was good", "Good film to the question, yes", "no 12345 film"]
PROMPTS = ["Input: text: {text} Output:", "{text}\nTopic:", "Input:\n{text}\nTopic: no, or"]
MARK = {"bert": "[MASK]", "t5": "<extra_id_0>"}
"""Family -> the word that marks the answer in its filled prompt."""


@pytest.fixture(scope="module")
def plms(tmp_path_factory):
    """Kind of tokenizer -> a tiny PLM with it."""
    root, found = tmp_path_factory.mktemp("plms"), {}

    def of(kind: str) -> PLM:
        if kind not in found:
            family, write = KINDS[kind]
            folder = root / kind.replace(" ", "-")
            torch.manual_seed(0)
            CONFIGS[family](400, 16).save_pretrained(folder)
            write(folder)
            found[kind] = load_plm(folder, str(folder))
        return found[kind]

    return of


def plain_ids(tokenizer, family: str, filled: str) -> list[int]:
    """Ids of plain transformers, without an end before the answer of a decoder."""
    ids = tokenizer(filled + MARK.get(family, ""))["input_ids"]
    after = () if family in MARK else template_of(tokenizer)[1]
    return ids[: len(ids) - len(after)]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("kind", KINDS)
def test_pipeline_has_the_ids_of_the_filled_prompt(plms, kind, prompt):
    plm, special = plms(kind), plms(kind).special_tokens
    rows = encode({"text": TEXTS}, plm.tokenizer, prompt, 200, before=special.before, after=special.after).ids
    assert rows == [plain_ids(plm.tokenizer, plm.family.name, prompt.format(text=text)) for text in TEXTS]


@pytest.mark.parametrize("kind", KINDS)
def test_label_words_and_answers_have_the_ids_of_a_continued_prompt(plms, kind):
    plm = plms(kind)
    tokenizer, words = plm.tokenizer, {"a": " no", "b": " yes", "c": " morning was"}
    ids = label_tokens({"task": "toy", "verbalizer": words}, tokenizer)
    assert ids == encode_targets(list(words.values()), tokenizer, 99).ids
    if plm.family.name in MARK:
        assert ids == [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words.values()]
        return
    start = plain_ids(tokenizer, plm.family.name, "Input: film\nTopic:")
    for word, found in zip(words.values(), ids, strict=True):
        assert start + found == plain_ids(tokenizer, plm.family.name, f"Input: film\nTopic:{word}")


@pytest.mark.parametrize(
    ("kind", "before"),
    [("llama 2", "<s>"), ("mistral", "<s>"), ("llama 3", "<bos>"), ("llama with an end", "<bos>"), ("pythia", ""),
     ("bloom", ""), ("bloom with <bos>", "<bos>"), ("bert", "[CLS]"), ("t5", "")],
)  # fmt: skip
def test_text_begins_as_in_pretraining(plms, kind, before):
    plm = plms(kind)
    assert "".join(plm.tokenizer.convert_ids_to_tokens(list(plm.special_tokens.before))) == before
    assert plm.family.name in MARK or plm.special_tokens.after == ()


@pytest.mark.parametrize("kind", KINDS)
def test_split_export_and_model_card_have_the_same_ids(plms, tmp_path, kind):
    plm = plms(kind)
    rows = [{"one": text, "two": "good film", "label": 0} for text in TEXTS] + [{"one": "no", "two": "yes", "label": 1}]
    prompt = "Input: one: {one} two: {two} Output:"
    folder, task = prepared(tmp_path, rows, text_columns=["one", "two"], prompt=prompt)
    split = encode_split(folder, "test", task, plm, 200)
    found = {tuple(ids[:size]) for ids, size in zip(split.ids.tolist(), split.lengths.tolist(), strict=True)}
    filled = [prompt.format(**row) for row in rows]
    assert found == {tuple(plain_ids(plm.tokenizer, plm.family.name, text)) for text in filled}

    plan = make_plan(plm.inventory, "lora", own_count("lora", plm.inventory, MethodSizes()), 3)
    model = TunedModel(plm, plan, torch.zeros(plan.budget), {**task, "prompts": {}}, 200)
    out = export_model(model, "merged", tmp_path / "merged")
    card, tokenizer = (out / "README.md").read_text(), AutoTokenizer.from_pretrained(out)
    (call,) = re.findall(r"Encode it with (.*)", card)
    text = re.search(r" as `(.*)`: the tokenizer adds", call)
    written = text[1] if text else re.search(r"Input: `(.*)`, truncated", card)[1]
    ids = {tuple(tokenizer(written.format(**row), add_special_tokens=bool(text))["input_ids"]) for row in rows}
    assert ("Drop the last 1 of the ids" in call) == (kind == "llama with an end")
    assert {row[:-1] for row in ids} == found if kind == "llama with an end" else ids == found


CLASSES = {
    "one token": {"a": " no", "b": " yes", "c": " good"},
    "several tokens": {"a": " good film", "b": " good", "c": " good morning was", "d": " no"},
}


@pytest.mark.parametrize(
    ("kind", "words"),
    [*((kind, "one token") for kind in KINDS), *product(("bert", "t5", "bloom", "llama 2"), ("several tokens",)),
     *product(("t5", "bloom", "llama 2"), ("generation",))],
)  # fmt: skip
def test_code_of_the_model_card_predicts_as_the_pipeline(plms, tmp_path, kind, words):
    """With plain PEFT or transformers: for short rows, rows at the limit and much longer ones."""
    plm = plms(kind)
    texts = [" ".join((TEXTS * 9)[start : start + size]) for start in range(2) for size in (1, 4, 9)]
    several = words != "one token" and plm.family.name != "bert"  # which has few positions
    rows = {"one": texts, "class": ["no", "yes", *texts[:4]]} if several else {"one": texts}
    task = {
        "task": "toy", "type": "generation" if words == "generation" else "classification", "text_columns": list(rows),
        "prompt": "Input: {one}\nTopic:" if len(rows) == 1 else "{one} two: {class} Output:", "prompts": {},
        "verbalizer": CLASSES.get(words, {}), "metric": "accuracy", "metrics": ["accuracy"], "digest": "0" * 64,
        "max_new_tokens": 5 if words == "generation" else 0,
    }  # fmt: skip
    limit = len(plm.tokenizer(task["prompt"])["input_ids"]) + (20 if several else 8)
    form = "peft" if words == "one token" else "merged"
    placement = "prompt" if form == "peft" and plm.family.name != "t5" else "lora"
    sizes = MethodSizes(num_virtual_tokens=3)
    plan = make_plan(plm.inventory, placement, own_count(placement, plm.inventory, sizes), 3, sizes)
    theta = torch.randn(plan.budget, generator=torch.Generator().manual_seed(1))
    model = TunedModel(plm, plan, theta, task, limit)
    expected = model.predict(rows)
    out = export_model(model, form, tmp_path / "out")
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0].replace("FOLDER", str(out))
    names: dict = {}
    exec(code, names)
    assert [names["predict"](*row) for row in zip(*rows.values(), strict=True)] == expected
    encoded = [names["encode"](*row) for row in zip(*rows.values(), strict=True)]
    data = model._encode(rows)
    assert encoded == [ids[:n] for ids, n in zip(data.ids.tolist(), data.lengths.tolist(), strict=True)]
    assert max(map(len, encoded)) == limit > min(map(len, encoded))
    if words == "one token":
        logits = torch.stack([names["next_logits"](ids)[list(names["LABELS"].values())] for ids in encoded])
        assert torch.allclose(logits, model.logits(rows), atol=1e-5)


@pytest.mark.parametrize("kind", ["llama 2", "mistral", "llama 3"])
def test_score_is_the_librarys_on_the_filled_prompt(plms, tmp_path, kind):
    plm = plms(kind)
    task = {
        "task": "toy", "type": "classification", "text_columns": ["text"], "prompt": PROMPTS[1], "prompts": {},
        "verbalizer": {"a": " no", "b": " yes"}, "metric": "accuracy", "metrics": ["accuracy"], "max_new_tokens": 0,
        "digest": "0" * 64,
    }  # fmt: skip
    model = TunedModel(plm, Plan("none", 0, 0, ()), torch.zeros(0), task, 64)
    no, yes = label_tokens(task, plm.tokenizer)
    scores = model.logits(TEXTS)
    for row, text in enumerate(TEXTS):
        filled = PROMPTS[1].format(text=text)
        batch = [plm.tokenizer(filled + word, return_tensors="pt").input_ids for word in (" no", " yes")]
        with torch.no_grad():
            logs = [plm.model(input_ids=ids).logits[0].log_softmax(-1) for ids in batch]
        size = len(plm.tokenizer(filled)["input_ids"])
        first = next(i for i, (a, b) in enumerate(zip(no, yes, strict=False)) if a != b)
        expected = [float(log[size - 1 + first, ids[first]]) for log, ids in zip(logs, (no, yes), strict=True)]
        assert float(scores[row, 0] - scores[row, 1]) == pytest.approx(expected[0] - expected[1], abs=1e-4)


SIGNS = [*"abcXYZ019 .,:!?-'\n\té日本🙂", "  ", " the", " of", "\u0301", "\u00a0", "ﬁ", "<s>"]
long_texts = st.lists(st.one_of(st.sampled_from(SIGNS), st.sampled_from([" good", " film", " morning"])), max_size=300)


@pytest.mark.parametrize("prompt", ["{one} two: {two} Output:", "Input: {one}\n{two}"])
@pytest.mark.parametrize("kind", KINDS)
def test_beginnings_of_long_texts_have_the_ids_of_whole_texts(plms, monkeypatch, kind, prompt):
    tokenizer = plms(kind).tokenizer

    @given(long_texts, long_texts, st.integers(20, 60))
    @settings(max_examples=40, database=None)
    def check(one, two, length):
        texts = {"one": ["".join(one), "".join(two), "good"], "two": ["".join(two), "no", "".join(one) * 2]}
        found = {}
        for characters in (1, 2, 10**6):
            monkeypatch.setattr(tokenization, "CHARACTERS", characters)
            targets = encode_targets(texts["one"], tokenizer, 9, [7])
            found[characters] = encode(texts, tokenizer, prompt, length, before=[1]), targets
        assert found[1] == found[2] == found[10**6]

    check()


def test_token_that_spans_a_space_needs_the_whole_text(tmp_path):
    """Otherwise a text could be cut inside of it."""
    KINDS["bloom"][1](tmp_path)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    text = ["good film to the question " * 400]
    once = encode({"text": text}, tokenizer, "{text}\nTopic:", 40)
    tokenizer.add_tokens(["film to"])
    assert tokenizer.tokenize("film to the")[0] == "film to"
    again = encode({"text": text}, tokenizer, "{text}\nTopic:", 40)
    assert once.cut == again.cut == [True] and once.ids != again.ids
    assert again.ids[0][:30] == tokenizer(text[0])["input_ids"][:30]


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_beginning_of_a_long_document_is_tokenised(plms, monkeypatch, kind):
    tokenizer, seen = plms(kind).tokenizer, []
    plain = tokenization._ids
    monkeypatch.setattr(tokenization, "_ids", lambda t, texts: seen.extend(map(len, texts)) or plain(t, texts))
    document = " ".join(CORPUS * 40)
    encoded = encode({"text": [document, "no"]}, tokenizer, "{text}\nTopic:", 128)
    assert len(encoded.ids[0]) == 128 and encoded.cut == [True, False]
    assert len(document) > 10**6 and max(seen) < 10**4


CHINESE, THAI = "的一是在不了有和人这中大为上个国我以要他时来", "กขคงจฉชซญดตถทนบปผพาิีุเแไ่้์ำ"
LATIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
SPACELESS = st.lists(st.sampled_from([*CHINESE, *THAI, *LATIN, *SIGNS, "가", "\u1100\u1161", "ﾊﾞ", "'re"]), max_size=90)


def spaceless_tokenizer(model, trainer, normalizer=None, pre_tokenizer=None) -> PreTrainedTokenizerFast:
    """Train a tokenizer on Chinese, Thai and Latin words without spaces."""
    generator, lines = random.Random(0), []
    for alphabet in (CHINESE, THAI, LATIN):
        words = ["".join(generator.choices(alphabet, k=generator.randint(1, 4))) for _ in range(60)]
        lines += ["".join(generator.choices(words, k=20)) for _ in range(80)]
    tokenizer = Tokenizer(model)
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def trainer_of(name: str, **options):
    return getattr(trainers, f"{name}Trainer")(show_progress=False, special_tokens=["<unk>"], **options)


BYTES = {"vocab_size": 900, "initial_alphabet": sorted(pre_tokenizers.ByteLevel.alphabet())}
WITHOUT_SPACES = {
    "bytes": lambda: spaceless_tokenizer(
        models.BPE(), trainer_of("Bpe", **BYTES), None, pre_tokenizers.ByteLevel(add_prefix_space=False)
    ),
    "bytes, NFC, split as GPT-4": lambda: spaceless_tokenizer(
        models.BPE(), trainer_of("Bpe", **BYTES), normalizers.NFC(),
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(GPT4), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        ),
    ),
    "SentencePiece BPE": lambda: spaceless_tokenizer(
        models.BPE(unk_token="<unk>", fuse_unk=True), trainer_of("Bpe", vocab_size=600),
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    ),
    "unigram, NFKC": lambda: spaceless_tokenizer(
        models.Unigram(), trainer_of("Unigram", vocab_size=500, unk_token="<unk>"), normalizers.NFKC(),
        pre_tokenizers.Metaspace(),
    ),
    "WordPiece": lambda: spaceless_tokenizer(
        models.WordPiece(unk_token="<unk>"), trainer_of("WordPiece", vocab_size=500), normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WITHOUT_SPACES)
def test_beginning_of_a_text_without_spaces_has_its_first_ids(kind):
    tokenizer = WITHOUT_SPACES[kind]()
    beginnings = Beginnings(tokenizer)

    @given(SPACELESS, st.integers(8, 60))
    @settings(max_examples=250, database=None)
    def check(parts, size):
        text = "".join(parts)
        begin = beginnings.beginning(text, size)
        ids = tokenization._ids(tokenizer, [begin, text])
        assert text.startswith(begin) and ids[1][: len(ids[0])] == ids[0]

    check()
    for alphabet in (CHINESE, LATIN) if kind != "WordPiece" else (CHINESE,):
        text = "".join(random.Random(1).choices(alphabet, k=10**5))
        begin = beginnings.beginning(text, 1000)
        assert 500 <= len(begin) <= 1000
        cut = tokenization._ids(tokenizer, [begin, text])
        assert cut[1][: len(cut[0])] == cut[0]


def test_whole_word_in_the_vocabulary_needs_the_whole_text():
    """With `ignore_merges`, a word that is a token is not merged, so that a cut inside of a word could change it."""
    tokenizer = WITHOUT_SPACES["bytes"]()
    tokenizer.backend_tokenizer.model.ignore_merges = True
    text = CHINESE * 50
    assert Beginnings(tokenizer).beginning(text, 100) == text


def test_template_is_what_the_tokenizer_adds(tmp_path: Path):
    for begin, end in ((None, None), ("<bos>", None), (None, "<eos>"), ("<bos>", "<eos>")):
        folder = tmp_path / f"{begin}{end}"
        KINDS["bloom"][1](folder, begin, end)
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        expected = tuple(tokenizer.convert_tokens_to_ids([token]) if token else [] for token in (begin, end))
        assert template_of(tokenizer) == tuple(map(tuple, expected))
