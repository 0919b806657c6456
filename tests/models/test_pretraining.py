"""Pretraining of toy ladder models: equal bytes on every run, also after a kill, in an ordinary Hugging Face folder."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

from apet.config.study_config import PretrainingConfig
from apet.core.hashing import folder_digest
from apet.errors import CorruptError, DataError
from apet.models.checkpoint_files import open_folder
from apet.models.families import FAMILIES, family_of
from apet.models.inventory import inventory_of
from apet.models.ladder import CLS, END, MASK, PAD, SENTINEL, SEP, SPECIAL, LadderModel, parse_ladder_model
from apet.models.loading import load_plm
from apet.models.pretraining import pretrain as module
from apet.models.pretraining.losses import (
    OBJECTIVES,
    SPAN,
    SPAN_INTERVAL,
    HeadLoss,
    corrupt_spans,
    heldout_loss,
    masked_positions,
    masking_generator,
    training_loss,
)
from apet.models.pretraining.packing import heldout_rows, training_rows, unigram_entropy
from apet.models.pretraining.pretrain import PretrainingState, lr_factor, pretrain
from apet.models.pretraining.tokenizer import train_tokenizer
from apet.training.runtime import make_deterministic
from toy_corpus import RECIPE, document, write_corpus

MODEL = parse_ladder_model("bloom-16x1")
OTHERS = [parse_ladder_model("bert-16x1"), parse_ladder_model("t5-16x1")]


@pytest.fixture(scope="module", autouse=True)
def deterministic() -> None:
    make_deterministic()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("toy") / "corpus", 60, 20)


@pytest.fixture(scope="module")
def tokenizer(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "words"
    train_tokenizer(corpus, RECIPE.vocab_size, folder)
    return folder


@pytest.fixture(scope="module")
def plm(corpus: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plm") / MODEL.name
    pretrain(MODEL, RECIPE, corpus, tokenizer, folder)
    return folder


def test_train_tokenizer_twice_gives_equal_bytes(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    train_tokenizer(corpus, RECIPE.vocab_size, tmp_path / "again")
    assert folder_digest(tmp_path / "again") == folder_digest(tokenizer)


def test_tokenizer_adds_no_tokens_and_pads_right(tokenizer: Path) -> None:
    words = AutoTokenizer.from_pretrained(tokenizer)
    assert (words.pad_token_id, words.eos_token_id) == (PAD, END)
    assert words.convert_tokens_to_ids(list(SPECIAL)) == list(range(len(SPECIAL))) and words.bos_token is None
    assert words.decode(words("a red box")["input_ids"] + [MASK, SENTINEL], skip_special_tokens=True) == "a red box"
    assert len(words) == RECIPE.vocab_size
    text = "  Eve's ship — 船 \n"
    assert words.decode(words(text)["input_ids"]) == text
    assert words(["a", "a red box"], padding=True)["input_ids"][0][1:][-1] == PAD


def test_tokenizer_has_special_tokens_of_every_family(tokenizer: Path) -> None:
    words = AutoTokenizer.from_pretrained(tokenizer)
    bert, t5 = FAMILIES["bert"].special_tokens(words), FAMILIES["t5"].special_tokens(words)
    assert (bert.before, bert.after) == ((CLS,), (MASK, SEP))
    assert (t5.after, t5.decoder) == ((SENTINEL, END), (PAD, SENTINEL))


def test_pretrain_twice_gives_equal_bytes(plm: Path, corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    run_record = tmp_path / "run.json"
    pretrain(MODEL, RECIPE, corpus, tokenizer, tmp_path / "again", run_record)
    assert folder_digest(tmp_path / "again") == folder_digest(plm)
    assert json.loads(run_record.read_text())["seconds"] > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "run.json"]


def test_pretrain_other_seed_gives_other_weights(plm: Path, corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    pretrain(MODEL, replace(RECIPE, seed=2), corpus, tokenizer, tmp_path / "other")
    assert open_folder(tmp_path / "other").content != open_folder(plm).content


class Killed(Exception):
    """The end of the process."""


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = PretrainingState._step

    def dying(run: PretrainingState, number: int, rows: torch.Tensor) -> float:
        if number == step:
            raise Killed
        return honest(run, number, rows)

    monkeypatch.setattr(PretrainingState, "_step", dying)
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.0)


def killed(
    out: Path,
    corpus: Path,
    tokenizer: Path,
    step: int,
    recipe: PretrainingConfig = RECIPE,
    ladder_model: LadderModel = MODEL,
) -> Path:
    """Start a run, kill it before a step, and return its checkpoint."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(step, patch)
        pretrain(ladder_model, recipe, corpus, tokenizer, out)
    assert not out.exists()
    (state,) = out.parent.iterdir()
    return state


@pytest.mark.parametrize("step", [1, 17])
def test_pretrain_killed_run_resumes_to_equal_bytes(
    step: int, plm: Path, corpus: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = killed(tmp_path / "again", corpus, tokenizer, step)
    seen = []
    honest = PretrainingState._step
    monkeypatch.setattr(PretrainingState, "_step", lambda run, n, rows: seen.append(n) or honest(run, n, rows))
    pretrain(MODEL, RECIPE, corpus, tokenizer, tmp_path / "again")
    assert seen == list(range(step, RECIPE.steps))
    assert folder_digest(tmp_path / "again") == folder_digest(plm)
    assert not state.exists()


@pytest.mark.parametrize("ladder_model", OTHERS, ids=lambda model: model.family)
@pytest.mark.parametrize("step", [5, 12])
def test_pretrain_killed_run_hides_same_tokens_in_both_phases(
    step: int, ladder_model: LadderModel, corpus: Path, tokenizer: Path, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, max_tokens=16 * RECIPE.batch_size * RECIPE.block_size)
    pretrain(ladder_model, recipe, corpus, tokenizer, tmp_path / "whole" / "plm")
    killed(tmp_path / "killed" / "plm", corpus, tokenizer, step, recipe, ladder_model)
    pretrain(ladder_model, recipe, corpus, tokenizer, tmp_path / "killed" / "plm")
    assert folder_digest(tmp_path / "killed") == folder_digest(tmp_path / "whole")


def test_pretrain_checkpoint_of_other_recipe_is_ignored(
    plm: Path, corpus: Path, tokenizer: Path, tmp_path: Path
) -> None:
    killed(tmp_path / "again", corpus, tokenizer, 5, replace(RECIPE, embedding_lr=0.5))
    pretrain(MODEL, RECIPE, corpus, tokenizer, tmp_path / "again")
    assert folder_digest(tmp_path / "again") == folder_digest(plm)


def test_pretrain_corrupt_checkpoint_is_reported_and_ignored(
    plm: Path, corpus: Path, tokenizer: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state = killed(tmp_path / "again", corpus, tokenizer, 5)
    content = state.read_bytes()
    state.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
    pretrain(MODEL, RECIPE, corpus, tokenizer, tmp_path / "again")
    assert "again.state: corrupt checkpoint, ignored" in capfd.readouterr().err
    assert folder_digest(tmp_path / "again") == folder_digest(plm)


def test_pretrain_folder_loads_in_transformers(plm: Path, corpus: Path) -> None:
    names = "config.json generation_config.json model.safetensors pretraining.json tokenizer.json tokenizer_config.json"
    assert sorted(p.name for p in plm.iterdir()) == names.split()
    model, words = AutoModelForCausalLM.from_pretrained(plm), AutoTokenizer.from_pretrained(plm)
    assert model.dtype == torch.float32 and model.config.eos_token_id == words.eos_token_id
    rows = heldout_rows(corpus, words, RECIPE.block_size).long()
    scores = model(rows[:, :-1]).logits
    loss = F.cross_entropy(scores.flatten(0, 1), rows[:, 1:].flatten()).item()
    record = json.loads((plm / "pretraining.json").read_text())
    assert record["heldout"]["loss"] == pytest.approx(loss, abs=1e-4)
    assert record["heldout"]["tokens"] == rows[:, 1:].numel()
    assert loss < record["heldout"]["unigram_entropy"] - 0.1
    assert record["curve"][-1]["loss"] < record["curve"][0]["loss"] - 0.5
    assert record["curve"][-1]["tokens"] == record["tokens"] == RECIPE.max_tokens and len(record["curve"]) == 20
    assert record["content"] == load_plm(plm, MODEL.name).content
    assert record["corpus"] == json.loads((corpus / "corpus.json").read_text())["digest"]


@pytest.mark.parametrize("ladder_model", OTHERS, ids=lambda model: model.family)
def test_pretrain_bert_and_t5_learn_and_load_in_transformers(
    ladder_model: LadderModel, corpus: Path, tokenizer: Path, tmp_path: Path
) -> None:
    ladder_model = parse_ladder_model(f"{ladder_model.family}-32x2")
    recipe = replace(RECIPE, max_tokens=100 * RECIPE.batch_size * RECIPE.block_size)
    pretrain(ladder_model, recipe, corpus, tokenizer, tmp_path / "plm")
    record = json.loads((tmp_path / "plm" / "pretraining.json").read_text())
    assert record["heldout"]["loss"] < record["heldout"]["unigram_entropy"] - 0.1
    assert record["content"] == load_plm(tmp_path / "plm", ladder_model.name).content
    words = AutoTokenizer.from_pretrained(tmp_path / "plm")
    rows = heldout_rows(corpus, words, RECIPE.block_size).long()[:16]
    model = (AutoModelForMaskedLM if ladder_model.family == "bert" else AutoModelForSeq2SeqLM).from_pretrained(
        tmp_path / "plm"
    )
    assert library_loss(model, rows) == pytest.approx(heldout_loss(model, rows)[0], abs=1e-4)


def library_loss(model: torch.nn.Module, rows: torch.Tensor) -> float:
    """Compute the library's loss for the same hidden tokens."""
    generator = masking_generator("heldout", 0)
    if model.config.model_type == "bert":
        places = masked_positions(rows, generator) + 1
        ids = F.pad(F.pad(rows, (1, 0), value=CLS), (0, 1), value=SEP)
        labels = torch.full_like(ids, -100).scatter(1, places, ids.gather(1, places))
        return model(input_ids=ids.scatter(1, places, MASK), labels=labels).loss.item()
    text, answer, _ = corrupt_spans(rows, generator)
    # The decoder's input is the answer after its start token.
    labels = answer.masked_fill((answer >= SENTINEL) & (answer < len(SPECIAL)), -100)
    return model(input_ids=text, decoder_input_ids=model._shift_right(answer), labels=labels).loss.item()


def test_record_counts_tied_head_once(plm: Path) -> None:
    record = json.loads((plm / "pretraining.json").read_text())
    d, layers, words = MODEL.width, MODEL.layers, RECIPE.vocab_size
    blocks = layers * (12 * d * d + 13 * d)
    assert record["non_embedding"] == blocks + 4 * d
    assert record["parameters"] == blocks + 4 * d + words * d
    model = AutoModelForCausalLM.from_pretrained(plm)
    assert model.lm_head.weight is model.transformer.word_embeddings.weight
    assert inventory_of(model, family_of(model.config.model_type)).num_params == record["parameters"]


def test_head_loss_matches_cross_entropy() -> None:
    torch.manual_seed(0)
    states, words = torch.randn(600, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    targets = torch.randint(50, (600,))
    expected = F.cross_entropy(states @ words.T, targets)
    wanted = torch.autograd.grad(expected, [states, words])
    loss = HeadLoss.apply(states, words, targets)
    found = torch.autograd.grad(loss, [states, words])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("ladder_model", [MODEL, *OTHERS], ids=lambda model: model.family)
def test_training_loss_and_heldout_loss_agree(ladder_model: LadderModel) -> None:
    model = stirred(ladder_model)
    rows = rows_of(3)
    exact, targets = heldout_loss(model, rows)
    loss = training_loss(model, rows, False, masking_generator("heldout", 0))
    assert loss.item() == pytest.approx(exact, rel=1e-5)
    assert torch.equal(targets, heldout_loss(stirred(replace(ladder_model, layers=2)), rows)[1]), (
        "another ladder_model, other targets"
    )


def stirred(ladder_model: LadderModel) -> torch.nn.Module:
    """Make a ladder model in evaluation mode with weights large enough that every visible token matters."""
    torch.manual_seed(1)
    model = PretrainingState.initial(ladder_model, RECIPE).model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def rows_of(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(len(SPECIAL), RECIPE.vocab_size, (count, RECIPE.block_size + 1), generator=generator)


def moved(ladder_model: LadderModel, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Find, for each token of a row, the states [tokens, targets] that change with it, and return the target ids
    [targets].
    """
    model, objective = stirred(ladder_model).double(), OBJECTIVES[ladder_model.family]
    row = torch.arange(100, 100 + RECIPE.block_size + 1)[None]
    with torch.no_grad():
        states, targets = objective(model, row, causal, masking_generator(1))
        found = []
        for place in range(row.shape[1]):
            changed = row.clone()
            changed[0, place] += 100
            found.append((objective(model, changed, causal, masking_generator(1))[0] != states).any(1))
    return torch.stack(found), targets - 100


@pytest.mark.parametrize("ladder_model", [MODEL, *OTHERS], ids=lambda model: model.family)
def test_objective_causal_phase_depends_on_all_previous_tokens_only(ladder_model: LadderModel) -> None:
    seen, places = moved(ladder_model, True)
    shown = torch.ones(len(seen), dtype=torch.bool)
    if ladder_model.family == "bert":
        shown[masked_positions(rows_of(1), masking_generator(1))] = False
    before = torch.arange(len(seen))[:, None] < places
    assert torch.equal(seen, before & shown[:, None])
    # BERT names a row's first token too, after [CLS], and its last one twice: where it is masked, and before.
    assert len(places) == RECIPE.block_size + 2 * (ladder_model.family == "bert")


def test_masked_lm_depends_on_visible_tokens_only() -> None:
    seen, places = moved(OTHERS[0], False)
    assert len(places) == round(0.3 * (RECIPE.block_size + 1)) and places[-1] == RECIPE.block_size
    shown = torch.ones(len(seen), dtype=torch.bool)
    shown[places] = False
    assert torch.equal(seen, shown[:, None].expand_as(seen))


def test_span_corruption_depends_on_text_and_previous_spans() -> None:
    seen, places = moved(OTHERS[1], False)
    order = torch.full((len(seen),), -1)
    order[places] = torch.arange(len(places))
    # A hidden token is visible after the decoder has generated it; all others are always visible.
    assert torch.equal(seen, order[:, None] < torch.arange(len(places)))


def test_corrupt_spans_orders_spans_from_the_end() -> None:
    rows = rows_of(5)
    texts, answers, targets = corrupt_spans(rows, masking_generator(1))
    spans = (RECIPE.block_size + 1) // SPAN_INTERVAL
    assert targets.shape == (5, spans, SPAN)
    assert torch.equal(targets[:, 0], rows[:, -SPAN:])
    assert (texts[:, -2] == SENTINEL).all() and (texts[:, -1] == END).all()
    for row, text, answer, span in zip(rows, texts, answers, targets, strict=True):
        filled = [t for i in text[:-1] for t in (span[i - SENTINEL].tolist() if i - SENTINEL < spans else [i.item()])]
        assert filled == row.tolist()
        assert answer.tolist() == [t for n in range(spans) for t in (SENTINEL + n, *span[n].tolist())]


def test_masked_positions_always_include_last_token() -> None:
    places = masked_positions(rows_of(100), masking_generator(1))
    assert (places[:, -1] == RECIPE.block_size).all() and (places.diff(dim=1) > 0).all()
    assert set(places.flatten().tolist()) == set(range(RECIPE.block_size + 1))


def test_masking_depends_on_seed_and_step() -> None:
    rows = rows_of(4)
    assert torch.equal(masked_positions(rows, masking_generator(1, 7)), masked_positions(rows, masking_generator(1, 7)))
    for other in (masking_generator(1, 8), masking_generator(2, 7)):
        assert not torch.equal(masked_positions(rows, masking_generator(1, 7)), masked_positions(rows, other))


@pytest.mark.parametrize("ladder_model", [MODEL, *OTHERS], ids=lambda model: model.family)
def test_initialize_makes_every_block_the_identity(ladder_model: LadderModel) -> None:
    model = PretrainingState.initial(ladder_model, RECIPE).model
    ends = [p for p in FAMILIES[ladder_model.family].module_specs(model) if p.adapter_after]
    assert ends and not any(model.get_submodule(p.module).weight.any() for p in ends)
    own_head = model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    assert own_head == (ladder_model.family == "t5") and model.get_output_embeddings().weight.any() != own_head


@pytest.mark.parametrize("ladder_model", [MODEL, *OTHERS], ids=lambda model: model.family)
def test_optimizers_cover_every_weight_once(ladder_model: LadderModel) -> None:
    run = PretrainingState.initial(ladder_model, RECIPE)
    adamw, muon = ([p for g in o.param_groups for p in g["params"]] for o in run.optimizers)
    assert sorted(map(id, adamw + muon)) == sorted(map(id, run.model.parameters()))
    tables = {id(m.weight) for m in run.model.modules() if isinstance(m, torch.nn.Embedding)}
    head = id(run.model.get_output_embeddings().weight)
    assert muon and not any(id(p) in tables or id(p) == head or p.ndim != 2 for p in muon)


def test_training_rows_contain_each_document_once_an_epoch(corpus: Path, tokenizer: Path) -> None:
    words = AutoTokenizer.from_pretrained(tokenizer)
    texts = [document(n) for n in range(60)]
    tokens = sum(len(words(text)["input_ids"]) + 1 for text in texts)
    recipe = replace(RECIPE, batch_size=1, max_tokens=tokens)
    # Rows of two tokens, below the limit for users, fill exactly two epochs.
    object.__setattr__(recipe, "block_size", 1)
    rows = training_rows(corpus, words, recipe)
    assert rows.shape == (recipe.steps, 2)
    assert (rows == END).sum() == 2 * len(texts)
    joined = words.decode(rows.flatten())
    assert not any(text in joined for text in texts), "rows are not mixed"
    assert torch.equal(rows, training_rows(corpus, words, recipe))
    object.__setattr__(recipe, "seed", 2)
    assert not torch.equal(rows, training_rows(corpus, words, recipe))


def test_unigram_entropy_matches_hand_calculation() -> None:
    train, targets = torch.tensor([[0, 0, 1]]), torch.tensor([0, 2])
    assert unigram_entropy(train, targets, 3) == pytest.approx(-(math.log(3 / 6) + math.log(1 / 6)) / 2)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_lr_factor_rises_then_falls(schedule: str) -> None:
    tokens = 100 * RECIPE.batch_size * RECIPE.block_size
    recipe = replace(RECIPE, lr_scheduler_type=schedule, warmup_ratio=0.2, max_tokens=tokens)
    shares = [lr_factor(step, recipe) for step in range(recipe.steps)]
    assert shares[0] > 0 and shares[20] == 1 == max(shares) and 0 < shares[-1] < 0.02
    assert shares[:21] == sorted(shares[:21]) and shares[20:] == sorted(shares[20:], reverse=True)


def test_pretrain_unusable_input_is_named(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected at most 299 words \(pretraining.vocab_size\), got 300"):
        pretrain(MODEL, replace(RECIPE, vocab_size=299), corpus, tokenizer, tmp_path / "out")
    with pytest.raises(DataError, match=r"nothing: no tokenizer\.json"):
        pretrain(MODEL, RECIPE, corpus, tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(DataError, match=r"heldout\.parquet: fewer than the 100001 tokens"):
        pretrain(MODEL, replace(RECIPE, block_size=100_000), corpus, tokenizer, tmp_path / "out")
    short = write_corpus(tmp_path / "short", 0, 3)
    with pytest.raises(DataError, match=r"train\.parquet: no document"):
        pretrain(MODEL, RECIPE, short, tokenizer, tmp_path / "out")
    (short / "corpus.json").write_text("{}")
    with pytest.raises(CorruptError, match=r"corpus\.json: corrupt: wrong checksum"):
        pretrain(MODEL, RECIPE, short, tokenizer, tmp_path / "out")
