"""Written answers: the library's own greedy ones, with every structure in a PLM, alone and in batches; their cells."""

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
from apet.evaluation import EncodedSplit, GenerationObjective, answer_loss, generate, objective_of
from apet.evaluation.generation import split_loss
from apet.models.families import FAMILIES
from apet.models.loading import PLM
from apet.study.cell_record import METRICS, PREDICTIONS
from apet.training.cell import CellInputs, train_cell
from apet.training.loop import TrainingData
from apet.training.runtime import make_deterministic
from apet.tuning import TunedPLM
from test_data_batches import byte_level
from test_data_encoded import FIELDS, prepared
from test_large import NOTHING, STRUCTURES, plan_of, theta_of
from test_training import RECIPE, cell, contents
from tiny import CONFIGS, DECODER, WORDS, tiny_plm

make_deterministic()
WRITERS = [family for family in CONFIGS if FAMILIES[family].decoder]
PLMS = {family: tiny_plm(family) for family in CONFIGS}
LONGEST, NO_END = 8, -1
TOKENIZER = byte_level()
TOKENIZER.add_special_tokens({"eos_token": "<end>"})
END = TOKENIZER.eos_token_id
GENERATION = {"type": "generation", "verbalizer": {}, "metrics": ("f1", "em"), "max_new_tokens": 4}


def prompts(count: int = 20) -> EncodedSplit:
    """Rows of many lengths, more than a batch holds, with answers of 1 to 4 tokens."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, 9, (count,), generator=generator)
    ids = torch.randint(WORDS, (count, 8), generator=generator)
    ids[torch.arange(8) >= lengths[:, None]] = 0
    targets = torch.randint(WORDS, (count, 4), generator=generator)
    sizes = torch.randint(1, 5, (count,), generator=generator)
    references = [["x"]] * count
    names = [str(i) for i in range(count)]
    return EncodedSplit(names, ids, lengths, torch.empty(0), 0.0, references, targets, sizes)


def written(plm: PLM, data: EncodedSplit, end: int = NO_END, structure: str = "") -> list[list[int]]:
    plan = plan_of(plm, structure) if structure else NOTHING
    with TunedPLM(plm, plan) as tuned:
        return generate(tuned, [theta_of(plan, 0.3)] if structure else [], data, end, LONGEST)


def alone(data: EncodedSplit, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One row of a split, without padding."""
    return data.batch(torch.tensor([row]))


def librarys(plm: PLM, ids: torch.Tensor, end: int | None) -> list[int]:
    """What the library writes itself."""
    start = {"decoder_input_ids": torch.tensor([DECODER])} if plm.family.name == "t5" else {}
    said = len(DECODER) if start else ids.shape[1]
    how = {"do_sample": False, "max_new_tokens": LONGEST, "eos_token_id": end, "pad_token_id": 0}
    return plm.model.generate(ids, attention_mask=torch.ones_like(ids), **start, **how)[0, said:].tolist()


def a_middle_token(answers: list[list[int]]) -> int:
    """A token that ends some answers early, others late and others not at all."""
    counts = {t: sum(t in a for a in answers) for a in answers for t in a}
    return next(t for t, n in counts.items() if 2 < n < len(answers))


@pytest.mark.parametrize("family", WRITERS)
def test_answers_are_the_library_s_own_and_stop_at_the_end(family):
    plm, data = PLMS[family], prompts()
    plm.model.generation_config.update(eos_token_id=None, decoder_start_token_id=DECODER[0])
    answers = written(plm, data)
    assert answers == [librarys(plm, alone(data, row)[0], None) for row in range(len(data))]
    assert {len(answer) for answer in answers} == {LONGEST}
    end = a_middle_token(answers)
    stopped = [librarys(plm, alone(data, row)[0], end) for row in range(len(data))]
    found = written(plm, data, end)
    assert found == [answer[: answer.index(end)] if end in answer else answer for answer in stopped]
    assert len({len(answer) for answer in found}) > 2


@pytest.mark.parametrize("structure", [*STRUCTURES, "all"])
@pytest.mark.parametrize("family", WRITERS)
def test_with_units_in_the_plm_the_cache_changes_no_token(family, structure):
    """Against a loop that reads prompt and answer anew for every token."""
    plm, data = PLMS[family], prompts(12)
    answers = written(plm, data, structure=structure)
    plan = plan_of(plm, structure)
    with TunedPLM(plm, plan) as tuned, torch.no_grad():
        for row, answer in enumerate(answers):
            said = torch.empty(1, 0, dtype=torch.long)
            for token in answer:
                logits = tuned([theta_of(plan, 0.3)], *alone(data, row), None, said)
                assert int(logits.argmax()) == token
                said = torch.cat((said, torch.tensor([[token]])), dim=1)
    assert answers != written(plm, data)


@pytest.mark.parametrize("family", WRITERS)
def test_a_row_writes_the_same_alone_and_in_a_batch(family):
    plm, data = PLMS[family], prompts()
    end = a_middle_token(written(plm, data, structure="all"))
    together = written(plm, data, end, "all")
    for row in range(len(data)):
        ids, lengths = alone(data, row)
        assert written(plm, EncodedSplit(["x"], ids, lengths, torch.empty(0)), end, "all") == [together[row]]


@pytest.mark.parametrize("window", [6, 64])
def test_a_window_of_attention_must_hold_prompt_and_answer(window):
    torch.manual_seed(0)
    sizes = {"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MistralConfig(**sizes, intermediate_size=24, num_key_value_heads=1, sliding_window=window)
    plm, data = replace(PLMS["llama"], model=MistralForCausalLM(config).eval()), prompts()
    plm.model.generation_config.eos_token_id = None
    if window == 6:
        with pytest.raises(ModelError, match=r"more than 6 tokens.*sliding_window"):
            written(plm, data)
    else:
        assert written(plm, data) == [librarys(plm, alone(data, row)[0], None) for row in range(len(data))]


@pytest.mark.parametrize("family", CONFIGS)
def test_the_loss_is_the_library_s_over_every_token_of_the_answer(family):
    """Teacher forcing in one pass where the family can; an encoder is asked for one token after another."""
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
        loss = answer_loss(tuned, [], *data.batch(rows), *data.answers(rows))
        torch.testing.assert_close(loss, torch.stack(losses).mean(), atol=1e-4, rtol=1e-4)
        assert split_loss(tuned, [], data) == pytest.approx(float(loss), rel=1e-4)


def library_logits(plm: PLM, ids: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
    """Logits [1, words] of the token behind those said [1, s]."""
    with torch.no_grad():
        if plm.family.name == "t5":
            start = torch.tensor([DECODER])
            return plm.model(input_ids=ids, decoder_input_ids=torch.cat((start, said), dim=1)).logits[:, -1]
        if plm.family.name == "bert":
            return plm.model(torch.cat((ids[:, :-2], said, ids[:, -2:]), dim=1)).logits[:, -2]
        return plm.model(torch.cat((ids, said), dim=1)).logits[:, -1]


@pytest.mark.parametrize("family", WRITERS)
def test_foretelling_all_tokens_at_once_has_the_gradient_of_one_at_a_time(family):
    plm, data = PLMS[family], prompts(6)
    plan = plan_of(plm, "all")
    theta = theta_of(plan)
    rows = torch.arange(len(data))
    answers, sizes = data.answers(rows)
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
    """A tiny PLM that has the words of a real tokenizer."""
    plm = tiny_plm(family, vocabulary=len(TOKENIZER))
    return replace(plm, tokenizer=TOKENIZER)


def written_task(folder: Path) -> tuple[Path, dict]:
    """Say again the one word that is not the others'."""
    words = ["film", "good", "word", "all"]
    rows = [{"one": f"to {n}", "two": f"{words[n % 4]} it {n}", "label": [words[n % 4]]} for n in range(1, 40)]
    return prepared(folder, rows, **FIELDS, **GENERATION)


@pytest.fixture
def bench(tmp_path) -> CellInputs:
    folder, _ = written_task(tmp_path / "data")
    found = CellInputs.of(sized("bloom"), folder, 60)
    return replace(found, data=replace(found.data, train=found.test, validation=found.test))


def test_a_cell_learns_to_write_and_says_how_well(tmp_path, bench):
    recipe = replace(
        RECIPE, max_steps=120, num_evals=2, learning_rates=replace(RECIPE.learning_rates, entry=0.01, bias=0.01)
    )
    full = cell("full", "@own", draws=1, training=recipe)
    record = train_cell(full, bench, tmp_path / "cell")
    (replicate,) = record["replicates"]
    assert replicate["losses"][-1][1] < 0.5 * replicate["losses"][0][1]
    assert replicate["test"]["score"] > 0.5 > replicate["test"]["loss"] and replicate["test"]["n"] == len(bench.test)
    assert replicate["test"]["metrics"]["f1"] == replicate["test"]["score"] >= replicate["test"]["metrics"]["em"]
    task = record["task"]
    assert (task["metric"], task["metrics"], task["labels"], task["majority"]) == ("f1", ["f1", "em"], None, None)
    assert 0 <= task["chance"] < 1 and task["chance"] == bench.task["chance"]["level"]
    assert (
        task["truncated"]["test"] == bench.test.truncated
        and task["lengths"]["test"]["longest"] == bench.test.lengths.max()
    )
    table = pq.read_table(tmp_path / "cell" / PREDICTIONS)
    assert dict(zip(table.schema.names, map(str, table.schema.types), strict=True)) == {
        "draw": "int16", "rerun": "int16", "id": "string", "prediction": "string", "score": "double"
    }  # fmt: skip
    rows = table.to_pylist()
    assert sum(row["score"] for row in rows) / len(rows) == pytest.approx(replicate["test"]["score"])
    for row, (reference,) in zip(rows, bench.test.references, strict=True):
        assert (row["prediction"] == reference) <= (row["score"] == 1)
    (row,) = tidy([("cell", json.loads((tmp_path / "cell" / METRICS).read_text()))]).itertuples()
    assert (row.score, row.chance) == (replicate["test"]["score"], task["chance"]) and row.labels is NA


@pytest.mark.parametrize("placement", ["none", "lora", "prompt"])
def test_the_same_cell_writes_the_same_bytes(tmp_path, bench, placement):
    same = cell(placement, "@own", draws=1, training=replace(RECIPE, max_steps=4, num_evals=1))
    for folder in ("a", "b"):
        train_cell(same, bench, tmp_path / folder)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("family", WRITERS)
def test_training_makes_the_loss_smaller_in_every_family(tmp_path, bench, family):
    recipe = replace(RECIPE, max_steps=12, num_evals=2)
    other = replace(bench, plm=sized(family))
    record = train_cell(cell("lora", "@own", draws=1, training=recipe), other, tmp_path / "cell")
    losses = record["replicates"][0]["losses"]
    assert losses[1][1] < losses[0][1]


def test_the_answer_ends_with_the_token_it_was_trained_to_end_with(bench):
    objective = bench.splits.objective
    assert isinstance(objective, GenerationObjective) and objective.end == (END,) and objective.longest == 4
    lengths = bench.test.target_lengths
    assert (bench.test.targets[torch.arange(len(lengths)), lengths - 1] == END).all()


def test_a_plm_that_cannot_write_is_refused_before_training(tmp_path):
    folder, task = written_task(tmp_path)
    with pytest.raises(ConfigError, match=r"task toy: .* family bert, an encoder, which writes no text"):
        CellInputs.of(sized("bert"), folder, 60)
    with pytest.raises(ConfigError, match="`head: classification`, whose outputs are labels"):
        objective_of(task, replace(sized("bloom"), head="classification"))
    with pytest.raises(ModelError, match="names no eos_token"):
        objective_of(task, replace(sized("bloom"), tokenizer=byte_level()))


def test_splits_share_one_objective(bench):
    assert isinstance(bench.splits, TrainingData) and set(bench.encoded) == {"train", "validation", "test"}
