"""A toy ladder: equal bytes on every run, killed or not, and an ordinary Hugging Face folder at the end."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from apet.data.corpus import SCHEMA
from apet.data.tables import write_table
from apet.errors import CorruptError, DataError
from apet.plms import pretrain as module
from apet.plms.inventory import inventory_of
from apet.plms.ladder import END, PAD, SPECIAL, Recipe, parse_rung
from apet.plms.load import content_of, load_plm
from apet.plms.objectives import TiedHeadLoss, heldout_loss, training_loss
from apet.plms.packing import heldout_rows, training_rows, unigram_entropy
from apet.plms.pretrain import Run, pretrain, rate_share
from apet.plms.tokenizer import train_tokenizer
from apet.provenance import folder_digest
from apet.training.determinism import make_deterministic

RUNG = parse_rung("bloom-16x1")
RECIPE = Recipe(vocabulary=300, tokens=30 * 4 * 16, batch=4, length=16)
NAMES = ("ada", "bo", "cy", "dee", "eve")
THINGS = ("red box", "tall tree", "old ship", "small dog")


def document(number: int) -> str:
    """Text with an order to learn: what a person has follows from the person."""
    who = number % len(NAMES)
    return f"{NAMES[who]} has a {THINGS[who % 4]}. " * (2 + number % 3) + f"Page {number} ends here."


def write_corpus(folder: Path, train: int, heldout: int) -> Path:
    folder.mkdir()
    for side, numbers in {"train": range(train), "heldout": range(train, train + heldout)}.items():
        ids = [str(n) for n in numbers]
        columns = {"id": ids, "source": ["toy"] * len(ids), "text": [document(n) for n in numbers]}
        write_table(folder / f"{side}.parquet", columns, SCHEMA)
    (folder / "corpus.json").write_text(json.dumps({"digest": f"toy {train} {heldout}"}))
    return folder


@pytest.fixture(scope="module", autouse=True)
def deterministic() -> None:
    make_deterministic()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("toy") / "corpus", 60, 20)


@pytest.fixture(scope="module")
def tokenizer(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "words"
    train_tokenizer(corpus, RECIPE.vocabulary, folder)
    return folder


@pytest.fixture(scope="module")
def plm(corpus: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plm") / RUNG.name
    pretrain(RUNG, RECIPE, corpus, tokenizer, folder)
    return folder


def test_the_tokenizer_has_equal_bytes_twice(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    train_tokenizer(corpus, RECIPE.vocabulary, tmp_path / "again")
    assert folder_digest(tmp_path / "again") == folder_digest(tokenizer)


def test_the_tokenizer_adds_nothing_and_pads_on_the_right(tokenizer: Path) -> None:
    words = AutoTokenizer.from_pretrained(tokenizer)
    assert (words.pad_token_id, words.eos_token_id) == (PAD, END)
    assert words.convert_tokens_to_ids(list(SPECIAL)) == list(range(len(SPECIAL))) and words.bos_token is None
    assert len(words) == RECIPE.vocabulary
    text = "  Eve's ship — 船 \n"
    assert words.decode(words(text)["input_ids"]) == text
    assert words(["a", "a red box"], padding=True)["input_ids"][0][1:][-1] == PAD


def test_the_same_run_gives_the_same_bytes(plm: Path, corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    run_record = tmp_path / "run.json"
    pretrain(RUNG, RECIPE, corpus, tokenizer, tmp_path / "again", run_record)
    assert folder_digest(tmp_path / "again") == folder_digest(plm)
    assert json.loads(run_record.read_text())["seconds"] > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "run.json"]


def test_another_seed_gives_other_weights(plm: Path, corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    pretrain(RUNG, replace(RECIPE, seed=2), corpus, tokenizer, tmp_path / "other")
    assert content_of(tmp_path / "other") != content_of(plm)


class Killed(Exception):
    """Stands for the end of the process."""


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Run._step

    def dying(run: Run, number: int, rows: torch.Tensor) -> float:
        if number == step:
            raise Killed
        return honest(run, number, rows)

    monkeypatch.setattr(Run, "_step", dying)
    monkeypatch.setattr(module, "KEEP_EVERY", 0.0)


def killed(out: Path, corpus: Path, tokenizer: Path, step: int, recipe: Recipe = RECIPE) -> Path:
    """Start a run, kill it before a step, and return the state file that it leaves."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(step, patch)
        pretrain(RUNG, recipe, corpus, tokenizer, out)
    assert not out.exists()
    (state,) = out.parent.iterdir()
    return state


@pytest.mark.parametrize("step", [1, 17])
def test_a_killed_run_goes_on_to_the_same_bytes(
    step: int, plm: Path, corpus: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = killed(tmp_path / "again", corpus, tokenizer, step)
    seen = []
    honest = Run._step
    monkeypatch.setattr(Run, "_step", lambda run, n, rows: seen.append(n) or honest(run, n, rows))
    pretrain(RUNG, RECIPE, corpus, tokenizer, tmp_path / "again")
    assert seen == list(range(step, RECIPE.steps))
    assert folder_digest(tmp_path / "again") == folder_digest(plm)
    assert not state.exists()


def test_another_recipes_state_is_not_gone_on_from(plm: Path, corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    killed(tmp_path / "again", corpus, tokenizer, 5, replace(RECIPE, rate_words=0.5))
    pretrain(RUNG, RECIPE, corpus, tokenizer, tmp_path / "again")
    assert folder_digest(tmp_path / "again") == folder_digest(plm)


def test_a_damaged_state_is_named(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    state = killed(tmp_path / "again", corpus, tokenizer, 5)
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CorruptError, match=r"again\.state"):
        pretrain(RUNG, RECIPE, corpus, tokenizer, tmp_path / "again")


def test_the_folder_is_an_ordinary_one(plm: Path, corpus: Path) -> None:
    names = "config.json generation_config.json model.safetensors pretraining.json tokenizer.json tokenizer_config.json"
    assert sorted(p.name for p in plm.iterdir()) == names.split()
    model, words = AutoModelForCausalLM.from_pretrained(plm), AutoTokenizer.from_pretrained(plm)
    assert model.dtype == torch.float32 and model.config.eos_token_id == words.eos_token_id
    rows = heldout_rows(corpus, words, RECIPE.length).long()
    scores = model(rows[:, :-1]).logits
    loss = F.cross_entropy(scores.flatten(0, 1), rows[:, 1:].flatten()).item()
    record = json.loads((plm / "pretraining.json").read_text())
    assert record["heldout"]["loss"] == pytest.approx(loss, abs=1e-4)
    assert record["heldout"]["tokens"] == rows[:, 1:].numel()
    assert loss < record["heldout"]["unigram_entropy"] - 0.1
    assert record["curve"][-1]["loss"] < record["curve"][0]["loss"] - 0.5
    assert record["curve"][-1]["tokens"] == record["tokens"] == RECIPE.tokens and len(record["curve"]) == 20
    assert record["content"] == load_plm(plm, RUNG.name).content
    assert record["corpus"] == "toy 60 20"


def test_a_tied_head_counts_once(plm: Path) -> None:
    record = json.loads((plm / "pretraining.json").read_text())
    d, layers, words = RUNG.width, RUNG.layers, RECIPE.vocabulary
    blocks = layers * (12 * d * d + 13 * d)
    assert record["non_embedding"] == blocks + 4 * d
    assert record["parameters"] == blocks + 4 * d + words * d
    model = AutoModelForCausalLM.from_pretrained(plm)
    assert model.lm_head.weight is model.transformer.word_embeddings.weight
    assert inventory_of(model).parameters == record["parameters"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_in_chunks_is_cross_entropy(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    states, words = torch.randn(600, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    targets = torch.randint(50, (600,))
    expected = F.cross_entropy(states @ words.T, targets)
    wanted = torch.autograd.grad(expected, [states, words])
    loss = TiedHeadLoss.apply(states, words, targets, dtype)
    found = torch.autograd.grad(loss, [states, words])
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).norm() <= tolerance * b.norm()


def test_training_and_held_out_loss_agree() -> None:
    run = Run.new(RUNG, RECIPE)
    rows = torch.randint(RECIPE.vocabulary, (3, RECIPE.length + 1))
    exact = heldout_loss(run.model, rows)
    assert training_loss(run.model, rows, torch.float32).item() == pytest.approx(exact, rel=1e-5)
    assert training_loss(run.model, rows, torch.bfloat16).item() == pytest.approx(exact, rel=1e-2)


def test_rows_are_the_documents_each_once_an_epoch(corpus: Path, tokenizer: Path) -> None:
    words = AutoTokenizer.from_pretrained(tokenizer)
    texts = [document(n) for n in range(60)]
    tokens = sum(len(words(text)["input_ids"]) + 1 for text in texts)
    recipe = replace(RECIPE, batch=1, length=1, tokens=2 * tokens // 2)
    rows = training_rows(corpus, words, recipe)
    assert rows.shape == (recipe.steps, 2)
    assert (rows == END).sum() == 2 * len(texts)
    joined = words.decode(rows.flatten())
    assert not any(text in joined for text in texts), "rows are not mixed"
    assert torch.equal(rows, training_rows(corpus, words, recipe))
    assert not torch.equal(rows, training_rows(corpus, words, replace(recipe, seed=2)))


def test_unigram_entropy_by_hand() -> None:
    train, heldout = torch.tensor([[0, 0, 1]]), torch.tensor([[2, 0, 2]])
    assert unigram_entropy(train, heldout, 3) == pytest.approx(-(math.log(3 / 6) + math.log(1 / 6)) / 2)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_rates_rise_and_fall(schedule: str) -> None:
    recipe = replace(RECIPE, schedule=schedule, warmup=0.2, tokens=100 * RECIPE.batch * RECIPE.length)
    shares = [rate_share(step, recipe) for step in range(recipe.steps)]
    assert shares[0] > 0 and shares[20] == 1 == max(shares) and 0 < shares[-1] < 0.02
    assert shares[:21] == sorted(shares[:21]) and shares[20:] == sorted(shares[20:], reverse=True)


def test_what_does_not_fit_is_named(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="300 words, and the recipe's vocabulary is 299"):
        pretrain(RUNG, replace(RECIPE, vocabulary=299), corpus, tokenizer, tmp_path / "out")
    with pytest.raises(DataError, match=r"nothing: no tokenizer\.json"):
        pretrain(RUNG, RECIPE, corpus, tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(DataError, match=r"heldout\.parquet: fewer than the 100001 tokens"):
        pretrain(RUNG, replace(RECIPE, length=100_000), corpus, tokenizer, tmp_path / "out")
    short = write_corpus(tmp_path / "short", 0, 3)
    with pytest.raises(DataError, match=r"train\.parquet: no document"):
        pretrain(RUNG, RECIPE, short, tokenizer, tmp_path / "out")
    (short / "corpus.json").write_text("{}")
    write_table(short / "train.parquet", {"id": ["0"], "source": ["toy"], "text": [document(0)]}, SCHEMA)
    with pytest.raises(DataError, match=r"corpus\.json: digest is None"):
        pretrain(RUNG, RECIPE, short, tokenizer, tmp_path / "out")
