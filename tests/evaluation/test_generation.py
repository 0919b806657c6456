"""Generation: answers, losses and cells, compared with transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from pandas import NA
from torch.nn import functional as F
from transformers import MistralConfig, MistralForCausalLM

from apet.analysis.tidy import tidy
from apet.errors import ConfigError, ModelError
from apet.evaluation import EncodedSplit, GenerationObjective, answer_loss, generate, make_objective
from apet.evaluation.generation import split_loss
from apet.models.families import FAMILIES
from apet.models.loading import PLM
from apet.placement import STRUCTURES
from apet.study.cell_record import METRICS, PREDICTIONS
from apet.training.cell import CellInputs, train_cell
from apet.training.loop import TrainingData
from apet.training.runtime import make_deterministic
from apet.tuning import TunedPLM
from byte_tokenizer import byte_level
from tiny import CONFIGS, DECODER, WORDS, library_logits, tiny_plm
from toy_cells import CONFIG, cell, contents
from toy_plans import NOTHING, plan_of, theta_of
from toy_splits import FIELDS, prepared

make_deterministic()
DECODERS = [family for family in CONFIGS if FAMILIES[family].decoder]
PLMS = {family: tiny_plm(family) for family in CONFIGS}
LONGEST, NO_END = 8, -1
TOKENIZER = byte_level()
TOKENIZER.add_special_tokens({"eos_token": "<end>"})
END = TOKENIZER.eos_token_id
GENERATION = {
    "type": "generation", "verbalizer": None, "metrics": ["f1", "em"], "max_new_tokens": 4,
    "target_column": "label",
}  # fmt: skip


def prompts(count: int = 20) -> EncodedSplit:
    """Make rows of different lengths, more than one batch, with answers of 1 to 4 tokens."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, 9, (count,), generator=generator)
    ids = torch.randint(WORDS, (count, 8), generator=generator)
    ids[torch.arange(8) >= lengths[:, None]] = 0
    targets = torch.randint(WORDS, (count, 4), generator=generator)
    sizes = torch.randint(1, 5, (count,), generator=generator)
    references = [["x"]] * count
    names = [str(i) for i in range(count)]
    return EncodedSplit(names, ids, lengths, torch.empty(0), 0.0, references, targets, sizes)


def generated(plm: PLM, data: EncodedSplit, end: int = NO_END, structure: str = "") -> list[list[int]]:
    plan = plan_of(plm, structure) if structure else NOTHING
    with TunedPLM(plm, plan) as tuned:
        return generate(tuned, [theta_of(plan, 0.3)] if structure else [], data, end, LONGEST)


def alone(data: EncodedSplit, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one row of a split, without padding."""
    return data.batch(torch.tensor([row]))


def transformers_answer(plm: PLM, ids: torch.Tensor, end: int | None) -> list[int]:
    """Generate the answer with transformers."""
    start = {"decoder_input_ids": torch.tensor([DECODER])} if plm.family.name == "t5" else {}
    start_length = len(DECODER) if start else ids.shape[1]
    how = {"do_sample": False, "max_new_tokens": LONGEST, "eos_token_id": end, "pad_token_id": 0}
    return plm.model.generate(ids, attention_mask=torch.ones_like(ids), **start, **how)[0, start_length:].tolist()


def a_middle_token(answers: list[list[int]]) -> int:
    """Return a token that some answers contain and others do not."""
    counts = {t: sum(t in a for a in answers) for a in answers for t in a}
    return next(t for t, n in counts.items() if 2 < n < len(answers))


@pytest.mark.parametrize("family", DECODERS)
def test_generate_gives_the_answers_of_transformers_and_stops_at_the_end(family):
    plm, data = PLMS[family], prompts()
    plm.model.generation_config.update(eos_token_id=None, decoder_start_token_id=DECODER[0])
    answers = generated(plm, data)
    assert answers == [transformers_answer(plm, alone(data, row)[0], None) for row in range(len(data))]
    assert {len(answer) for answer in answers} == {LONGEST}
    end = a_middle_token(answers)
    stopped = [transformers_answer(plm, alone(data, row)[0], end) for row in range(len(data))]
    ended = generated(plm, data, end)
    assert ended == [answer[: answer.index(end)] if end in answer else answer for answer in stopped]
    assert len({len(answer) for answer in ended}) > 2


@pytest.mark.parametrize("structure", [*STRUCTURES, "all"])
@pytest.mark.parametrize("family", DECODERS)
def test_generate_with_units_gives_the_answers_of_decoding_without_a_cache(family, structure):
    """The reference computes prompt and answer again for every token."""
    plm, data = PLMS[family], prompts(12)
    answers = generated(plm, data, structure=structure)
    plan = plan_of(plm, structure)
    with TunedPLM(plm, plan) as tuned, torch.no_grad():
        for row, answer in enumerate(answers):
            prefix = torch.empty(1, 0, dtype=torch.long)
            for token in answer:
                logits = tuned([theta_of(plan, 0.3)], *alone(data, row), None, prefix)
                assert int(logits.argmax()) == token
                prefix = torch.cat((prefix, torch.tensor([[token]])), dim=1)
    assert answers != generated(plm, data)


@pytest.mark.parametrize("family", DECODERS)
def test_generate_one_row_gives_the_answer_of_the_batch(family):
    plm, data = PLMS[family], prompts()
    end = a_middle_token(generated(plm, data, structure="all"))
    together = generated(plm, data, end, "all")
    for row in range(len(data)):
        ids, lengths = alone(data, row)
        assert generated(plm, EncodedSplit(["x"], ids, lengths, torch.empty(0)), end, "all") == [together[row]]


@pytest.mark.parametrize("window", [6, 64])
def test_generate_beyond_the_sliding_window_raises_model_error(window):
    torch.manual_seed(0)
    sizes = {"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MistralConfig(**sizes, intermediate_size=24, num_key_value_heads=1, sliding_window=window)
    plm, data = replace(PLMS["llama"], model=MistralForCausalLM(config).eval()), prompts()
    plm.model.generation_config.eos_token_id = None
    if window == 6:
        with pytest.raises(ModelError, match=r"more than 6 tokens.*sliding_window"):
            generated(plm, data)
    else:
        assert generated(plm, data) == [transformers_answer(plm, alone(data, row)[0], None) for row in range(len(data))]


@pytest.mark.parametrize("family", CONFIGS)
def test_answer_loss_is_the_loss_of_transformers_over_all_answer_tokens(family):
    """Decoders compute all tokens in one pass, an encoder needs a pass for each token."""
    plm, data = PLMS[family], prompts(6)
    if family == "bert":
        plm = replace(plm, special_tokens=replace(plm.special_tokens, after=(11, 12)))
        data = replace(
            data, ids=torch.cat((data.ids, torch.zeros(6, 2, dtype=torch.long)), 1), lengths=data.lengths + 2
        )
        data.ids.scatter_(1, data.lengths[:, None] - 2, 11).scatter_(1, data.lengths[:, None] - 1, 12)
    losses = []
    for row in range(len(data)):
        ids = alone(data, row)[0]
        answer = data.targets[row, : data.target_lengths[row]]
        for place, token in enumerate(answer.tolist()):
            losses.append(F.cross_entropy(library_logits(plm, ids, answer[None, :place]), torch.tensor([token])))
    rows = torch.arange(len(data))
    with TunedPLM(plm, NOTHING) as tuned:
        loss = answer_loss(tuned, [], *data.batch(rows), *data.target_batch(rows))
        torch.testing.assert_close(loss, torch.stack(losses).mean(), atol=1e-4, rtol=1e-4)
        assert split_loss(tuned, [], data) == pytest.approx(float(loss), rel=1e-4)


@pytest.mark.parametrize("family", DECODERS)
def test_answer_loss_has_the_gradient_of_one_token_at_a_time(family):
    plm, data = PLMS[family], prompts(6)
    plan = plan_of(plm, "all")
    theta = theta_of(plan)
    rows = torch.arange(len(data))
    answers, sizes = data.target_batch(rows)
    with TunedPLM(plm, plan) as tuned:
        at_once = answer_loss(tuned, [theta], *data.batch(rows), answers, sizes, "sum")
        one_by_one = torch.zeros(())
        for place in range(answers.shape[1]):
            some = (sizes > place).nonzero().flatten()
            logits = tuned([theta], *data.batch(some), None, answers[some, :place])
            one_by_one = one_by_one + F.cross_entropy(logits, answers[some, place], reduction="sum")
        gradients = [torch.autograd.grad(loss, theta)[0] for loss in (at_once, one_by_one)]
    torch.testing.assert_close(at_once, one_by_one, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-3)


def sized(family: str) -> PLM:
    """Make a tiny PLM with the vocabulary of a real tokenizer."""
    plm = tiny_plm(family, vocabulary=len(TOKENIZER))
    return replace(plm, tokenizer=TOKENIZER)


def generation_task(folder: Path) -> tuple[Path, dict]:
    """Prepare a task whose answer is a word of the text."""
    words = ["film", "good", "word", "all"]
    rows = [{"one": f"to {n}", "two": f"{words[n % 4]} it {n}", "label": [words[n % 4]]} for n in range(1, 40)]
    return prepared(folder, rows, **FIELDS, **GENERATION)


@pytest.fixture
def inputs(tmp_path) -> CellInputs:
    folder, _ = generation_task(tmp_path / "data")
    encoded = CellInputs.from_folder(sized("bloom"), folder, 60)
    return replace(encoded, data=replace(encoded.data, train=encoded.test, validation=encoded.test))


def test_train_cell_of_generation_learns_and_records_scores(tmp_path, inputs):
    config = replace(
        CONFIG, max_steps=120, num_evals=2, learning_rates=replace(CONFIG.learning_rates, entry=0.01, bias=0.01)
    )
    full = cell("full", "@own", num_plans=1, training=config)
    record = train_cell(full, inputs, tmp_path / "cell")
    (replicate,) = record["replicates"]
    assert replicate["losses"][-1][1] < 0.5 * replicate["losses"][0][1]
    assert replicate["test"]["score"] > 0.5 > replicate["test"]["loss"] and replicate["test"]["n"] == len(inputs.test)
    assert replicate["test"]["metrics"]["f1"] == replicate["test"]["score"] >= replicate["test"]["metrics"]["em"]
    task = record["task"]
    assert (task["metric"], task["metrics"], task["labels"], task["majority"]) == ("f1", ["f1", "em"], None, None)
    assert 0 <= task["chance"] < 1 and task["chance"] == inputs.task["chance"]["level"]
    assert (
        task["truncated"]["test"] == inputs.test.truncated
        and task["lengths"]["test"]["longest"] == inputs.test.lengths.max()
    )
    table = pq.read_table(tmp_path / "cell" / PREDICTIONS)
    assert dict(zip(table.schema.names, map(str, table.schema.types), strict=True)) == {
        "plan_index": "int16", "seed_index": "int16", "id": "string", "prediction": "string", "score": "double"
    }  # fmt: skip
    rows = table.to_pylist()
    assert sum(row["score"] for row in rows) / len(rows) == pytest.approx(replicate["test"]["score"])
    for row, (reference,) in zip(rows, inputs.test.references, strict=True):
        assert (row["prediction"] == reference) <= (row["score"] == 1)
    (row,) = tidy([("cell", json.loads((tmp_path / "cell" / METRICS).read_text()))]).itertuples()
    assert (row.test_score, row.chance_uniform) == (replicate["test"]["score"], task["chance"])
    assert row.num_labels is NA


@pytest.mark.parametrize("placement", ["none", "lora", "prompt"])
def test_train_cell_of_generation_twice_writes_the_same_bytes(tmp_path, inputs, placement):
    same = cell(placement, "@own", num_plans=1, training=replace(CONFIG, max_steps=4, num_evals=1))
    for folder in ("a", "b"):
        train_cell(same, inputs, tmp_path / folder)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("family", DECODERS)
def test_train_cell_of_generation_reduces_the_loss(tmp_path, inputs, family):
    config = replace(CONFIG, max_steps=12, num_evals=2)
    other = replace(inputs, plm=sized(family))
    record = train_cell(cell("lora", "@own", num_plans=1, training=config), other, tmp_path / "cell")
    losses = record["replicates"][0]["losses"]
    assert losses[1][1] < losses[0][1]


def test_generation_targets_end_with_the_end_token(inputs):
    objective = inputs.data.objective
    assert isinstance(objective, GenerationObjective) and objective.end_ids == (END,) and objective.max_new_tokens == 4
    lengths = inputs.test.target_lengths
    assert (inputs.test.targets[torch.arange(len(lengths)), lengths - 1] == END).all()


def test_make_objective_with_a_plm_that_cannot_generate_raises(tmp_path):
    folder, task = generation_task(tmp_path)
    with pytest.raises(ConfigError, match=r"task toy: .* family bert, an encoder"):
        CellInputs.from_folder(sized("bert"), folder, 60)
    with pytest.raises(ConfigError, match="`head: classification`"):
        make_objective(task, replace(sized("bloom"), head="classification"))
    with pytest.raises(ModelError, match="has no eos_token"):
        make_objective(task, replace(sized("bloom"), tokenizer=byte_level()))


def test_cell_inputs_have_all_splits(inputs):
    assert isinstance(inputs.data, TrainingData) and set(inputs.encoded) == {"train", "validation", "test"}
