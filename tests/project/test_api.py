"""The public Python API: loading tuned models, and the numbers of the pipeline from a model in memory."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

import apet
from apet.cli.app import main
from apet.config.study_config import load_study
from apet.core.hashing import folder_digest
from apet.core.records import write_json_record
from apet.data.prepared_files import read_split, read_task
from apet.errors import ApetError, ConfigError, CorruptError, DataError, ModelError
from apet.study.cell_record import PREDICTIONS, THETA, WITHOUT_WEIGHTS, write_record
from apet.study.paths import ResultPaths
from apet.training.runtime import make_deterministic
from finished_cells import GENERATION, RECIPE, TASK, Finished, finished, rows
from saved import save_plm
from tiny import CONFIGS, tiny_plm
from toy import ROOT

make_deterministic()
PAGE, EXPORTS = ((ROOT / "docs" / name).read_text() for name in ("python.md", "export.md"))
PAIRS = {
    **TASK,
    "name": "pairs",
    "near_duplicates": "drop",
    "text_columns": ["one", "two"],
    "prompt": "{one} w10 {two} w11",
}


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Finished]:
    cached: dict[str, Finished] = {}

    def of(family: str = "bloom", task: dict | None = None, head: str = "lm") -> Finished:
        key = f"{family} {task['name'] if task else ''} {head}"
        if key not in cached:
            cached[key] = finished(tmp_path_factory.mktemp("cells"), family, task, head)
        return cached[key]

    return of


def recorded(cell: Finished, plan: int = 0) -> pd.DataFrame:
    predictions = pd.read_parquet(cell.folder / PREDICTIONS)
    return predictions[predictions.plan_index == plan].reset_index(drop=True)


@pytest.mark.parametrize("head", ["lm", "classification"])
@pytest.mark.parametrize("family", CONFIGS)
def test_loaded_cell_predicts_as_the_pipeline_did(cells, family, head):
    """Logits are equal bit for bit, because the test loss is equal to the last digit."""
    cell = cells(family, head=head)
    test, names = read_split(cell.data, "test"), list(TASK["verbalizer"])
    for draw in range(2):
        model = apet.load_tuned(cell.folder, replicate=f"plan{draw}.seed0")
        logits, label = model.logits(test.text), torch.tensor(test.label.to_numpy(copy=True))
        run = cell.record["replicates"][draw]
        assert float(F.cross_entropy(logits, label)) == run["test"]["loss"]
        assert model.predict(list(test.text)) == [names[n] for n in recorded(cell, draw).prediction]
        assert model.evaluate(cell.data).score == run["test"]["score"]
        assert model.evaluate(cell.data, "validation").loss == run["validation"]["loss"]
    assert len({tuple(apet.load_tuned(cell.folder, replicate=f"plan{d}.seed0").theta.tolist()) for d in range(2)}) == 2


def test_loaded_informed_cell_has_its_saved_plan(tmp_path, monkeypatch):
    cell = finished(tmp_path, placement="gradient", budget="300", num_plans=1)
    (run,) = cell.record["replicates"]
    plm = apet.load_model(cell.root / cell.cell.plm_folder, name=cell.cell.model)
    training = {"loss": RECIPE.loss, "max_length": RECIPE.max_length}
    plan = apet.make_plan(plm, "gradient", 300, run["seeds"]["plan"], data=cell.data, **training)
    assert plan.digest == run["plan_digest"]
    with pytest.raises(ConfigError, match="placement 'gradient': missing training rows"):
        apet.make_plan(plm, "gradient", 300)
    monkeypatch.setattr("apet.training.informed_plans.gradient_scores", lambda *_, **__: 1 / 0)
    model = apet.load_tuned(cell.folder)
    assert model.plan.digest == plan.digest and model.evaluate(cell.data).score == run["test"]["score"]
    apet.export_model(model, "delta", tmp_path / "delta")
    again = apet.load_tuned(tmp_path / "delta", root=cell.root)
    assert again.plan.digest == plan.digest and again.evaluate(cell.data).score == run["test"]["score"]


def test_loaded_cell_generates_as_the_pipeline_did(cells):
    answers = []
    for family in ("bloom", "t5", "llama", "gpt_neox"):
        cell = cells(family, GENERATION)
        model = apet.load_tuned(cell.folder)
        predictions = model.predict(read_split(cell.data, "test").text)
        assert predictions == list(recorded(cell).prediction), family
        with pytest.raises(ConfigError, match="got generation"):
            model.logits(["w8"])
        answers += predictions
    assert len(set(answers)) > 5


def test_predict_on_a_task_of_two_texts_takes_columns(cells):
    cell = cells("bloom", PAIRS)
    model, test = apet.load_tuned(cell.folder), read_split(cell.data, "test")
    predictions = model.predict(test)
    assert predictions == model.predict({"one": list(test.one), "two": list(test.two)})
    assert predictions == [list(PAIRS["verbalizer"])[n] for n in recorded(cell).prediction]
    for texts, message in (
        (["w8"], "one, two"),
        ({"one": ["w8"]}, "missing column 'two'"),
        ({"one": ["w8"], "two": []}, r"\[0, 1\]"),
    ):
        with pytest.raises(DataError, match=message):
            model.predict(texts)


def test_predict_accepts_an_empty_list_and_only_strings(cells):
    model = apet.load_tuned(cells().folder)
    assert repr(model).startswith("<TunedModel uniform, 700 parameters in bloom, for words, test accuracy 0.")
    assert model.predict([]) == [] and model.logits([]).shape == (0, 2)
    for texts, message in (("w8 w9", "got str"), ([8], "got 8"), ([None], "got None")):
        with pytest.raises(DataError, match=message):
            model.predict(texts)


FORMS = ("delta", "merged", "peft")


def test_export_by_command_line_gives_the_bytes_of_the_api(tmp_path):
    """Another process with other string hashes. LoRA in T5 adapts eight modules, whose order must not change."""
    cell = finished(tmp_path / "study", "t5", placement="lora", budget="@own", num_plans=1)
    commands = [["export", cell.cell.path, "--format", form, "--out-dir", str(tmp_path / form)] for form in FORMS]
    code = f"import sys; from apet.cli.app import main; sys.exit(sum(main(c) for c in {commands}))"
    options = {"cwd": cell.root, "capture_output": True, "text": True, "check": False}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": "7"}, **options)
    assert done.returncode == 0 and done.stdout.split() == [str(tmp_path / form) for form in FORMS], done.stderr
    model = apet.load_tuned(cell.folder)
    for form in FORMS:
        assert folder_digest(tmp_path / form) == folder_digest(
            apet.export_model(model, form, tmp_path / f"{form} again")
        )
    back = apet.load_tuned(tmp_path / "delta", root=cell.root)
    texts = list(read_split(cell.data, "test").text)
    assert torch.equal(back.logits(texts), model.logits(texts))
    assert back.run == model.run and back.cell == cell.cell.path


def test_export_error_is_one_line_with_exit_status_2(cells, tmp_path, capsys):
    cell = cells()
    options = ["--results-dir", str(cell.root / "results"), "--project-dir", str(cell.root)]
    options += ["--out-dir", str(tmp_path / "out")]
    for arguments, message in (
        ([cell.cell.path, "--format", "peft"], "'peft' cannot represent"),
        ([cell.cell.path[:-1], "--format", "delta"], f"Did you mean '{cell.cell.path}'"),
        ([cell.cell.path, "--format", "delta", "--replicate", "plan7.seed0"], "Allowed: plan0.seed0, plan1.seed0"),
    ):
        assert main(["export", *arguments, *options]) == 2
        output = capsys.readouterr()
        assert message in output.err and len(output.err.splitlines()) == 1 and not output.out
    assert not (tmp_path / "out").exists()


HARM: dict[str, tuple[Callable[[Finished], object], type[ApetError], str]] = {
    "θ": (lambda c: (c.folder / THETA).write_bytes(b"x" * 100), CorruptError, "theta.safetensors"),
    "θ gone": (lambda c: (c.folder / THETA).unlink(), DataError, "not finished"),
    "θ not published": (lambda c: ((c.folder / THETA).unlink(), (c.folder / WITHOUT_WEIGHTS).touch()), DataError,
                        "come without it"),
    "predictions gone": (lambda c: (c.folder / PREDICTIONS).unlink(), DataError, "not finished"),
    "rows": (lambda c: write_json_record(c.data / "task.json", read_task(c.data) | {"max_length": 13}), DataError,
             "rows differ"),
    "task gone": (lambda c: (c.data / "task.json").unlink(), DataError, "task.json"),
    "PLM": (lambda c: _edit(c.plm / "config.json", layer_norm_epsilon=1e-3), ModelError, "Give the folder of the PLM"),
    "PLM gone": (lambda c: (c.plm / "config.json").unlink(), ModelError, "no config.json"),
    "trainer": (lambda c: _cell(c, trainer_version=1), DataError, "trainer_version: expected .*, got 1"),
    "plan": (lambda c: _cell(c, placement="attention"), CorruptError, "plan: its digest"),
}  # fmt: skip


def _edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _cell(cell: Finished, **values: object) -> None:
    record = cell.record
    write_record(cell.folder, cell.cell.path, record | {"cell": record["cell"] | values})


@pytest.mark.parametrize("what", HARM)
def test_load_tuned_refuses_changed_inputs(tmp_path, what):
    cell = finished(tmp_path, num_plans=1)
    harm, error, message = HARM[what]
    harm(cell)
    with pytest.raises(error, match=message):
        apet.load_tuned(cell.folder)


def test_load_tuned_refuses_other_folders(tmp_path):
    with pytest.raises(DataError, match="expected a finished cell"):
        apet.load_tuned(tmp_path)


# A model in memory


@pytest.fixture
def memory(cells) -> apet.api.PLM:
    """PLM of a finished cell, loaded as in a notebook."""
    folder = cells().plm
    return apet.load_model(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), "bloom")


def test_train_in_memory_gives_the_theta_of_the_pipeline_bit_for_bit(cells, memory):
    cell = cells()
    for draw, run in enumerate(cell.record["replicates"][:1]):
        plan = apet.make_plan(memory, "uniform", 700, seed=run["seeds"]["plan"])
        model = apet.train(memory, plan, cell.data, max_steps=6, batch_size=8, max_length=16)
        assert torch.equal(model.theta, apet.load_tuned(cell.folder, replicate=f"plan{draw}.seed0").theta)
        assert model.run == run


def test_train_leaves_the_plm_in_memory_unchanged(cells, memory):
    before = {name: value.clone() for name, value in memory.model.state_dict().items()}
    models = [apet.train(memory, apet.make_plan(memory, "uniform", 700, s), cells().data, max_steps=3) for s in (1, 2)]
    first = models[0].logits(["w8 w11"])
    assert not torch.equal(first, models[1].logits(["w8 w11"]))
    assert torch.equal(first, models[0].logits(["w8 w11"]))
    assert all(torch.equal(value, before[name]) for name, value in memory.model.state_dict().items())


def test_delta_of_a_model_tuned_in_memory_loads_only_onto_its_plm(cells, memory, tmp_path):
    model = apet.train(memory, apet.make_plan(memory, "lora"), cells().data, max_steps=3)
    out = apet.export_model(model, "delta", tmp_path / "out")
    assert torch.equal(apet.load_tuned(out, plm=memory).theta, model.theta)
    other = AutoModelForCausalLM.from_pretrained(cells().plm)
    with torch.no_grad():
        other.transformer.h[0].mlp.dense_h_to_4h.bias[0] += 1e-3
    with pytest.raises(ModelError, match="Give the folder of the PLM"):
        apet.load_tuned(out, plm=apet.load_model(other, memory.tokenizer, "bloom"))


@pytest.mark.parametrize("saved", ["bert", "bert without its head"])
def test_head_can_be_a_classification_head_of_a_folder_or_a_model_in_memory(cells, tmp_path, saved):
    model = tiny_plm("bert", fused=False).model
    folder = save_plm(model if saved == "bert" else model.bert, tmp_path / "plm")
    plm = apet.load_model(folder, head="classification")
    tuned = apet.train(plm, apet.make_plan(plm, "bitfit"), cells().data, max_steps=3)
    assert len(tuned.head) == 2 * (16 + 1)
    delta = apet.export_model(tuned, "delta", tmp_path / "delta")
    assert torch.equal(apet.load_tuned(delta, plm=folder).head, tuned.head)
    names = set(model.state_dict())
    memory = apet.load_model(model, plm.tokenizer, "plm", head="classification")
    assert memory.inventory.digest == plm.inventory.digest and set(model.state_dict()) == names
    again = apet.train(memory, apet.make_plan(memory, "bitfit"), cells().data, max_steps=3)
    assert torch.equal(again.theta, tuned.theta)
    delta = apet.export_model(again, "delta", tmp_path / "memory")
    assert torch.equal(apet.load_tuned(delta, plm=memory).theta, apet.load_tuned(delta, plm=folder).theta)


def test_imported_lora_predicts_on_a_task(cells, memory, tmp_path):
    plan = apet.make_plan(memory, "lora", methods=apet.MethodSizes(lora_rank=2))
    out = apet.export_model(apet.train(memory, plan, cells().data, max_steps=3), "peft", tmp_path / "out")
    model = apet.TunedModel.from_theta(memory, *apet.plan_from_peft(out, memory), cells().data)
    assert model.plan.digest == plan.digest and set(model.predict(["w8 w11", "w9"])) <= {"eight", "nine"}
    with pytest.raises(DataError, match=r"θ: expected shape .*got \(3,\)"):
        apet.TunedModel.from_theta(memory, plan, torch.zeros(3), cells().data)


def test_prepare_task_splits_rows_in_memory_as_rows_in_a_file(tmp_path):
    some = [{"text": row["text"], "label": row["label"]} for row in rows(120, 5)]
    once = apet.prepare_task(TASK, tmp_path / "once", some, {"train": 30})
    again = apet.prepare_task(TASK, tmp_path / "again", pd.DataFrame(some), {"train": 30})
    assert folder_digest(once) == folder_digest(again)
    assert len(read_split(once, "train")) == 30 and len(read_split(once, "test")) > 5
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, some)))
    (tmp_path / "words.yaml").write_text(json.dumps({**TASK, "local": {"file": "rows.jsonl"}}))
    third = apet.prepare_task(tmp_path / "words.yaml", tmp_path / "file", max_samples={"train": 30})
    assert {f.name: f.read_bytes() for f in third.glob("*.parquet")} == {
        f.name: f.read_bytes() for f in once.glob("*.parquet")
    }


def test_invalid_arguments_raise_one_message(cells, memory, tmp_path):
    data, plan = cells().data, apet.make_plan(memory, "lora")
    headless = AutoModelForCausalLM.from_pretrained(cells().plm).transformer
    for error, message, call in (
        (ConfigError, "unknown key 'step'. Did you mean 'max_steps'", lambda: apet.train(memory, plan, data, step=3)),
        (ConfigError, "apet.train: max_steps: .*0", lambda: apet.train(memory, plan, data, max_steps=0)),
        (ConfigError, "unknown placement 'lara'", lambda: apet.make_plan(memory, "lara", 100)),
        (DataError, "nowhere: no such folder. Prepare the task", lambda: apet.train(memory, plan, "nowhere")),
        (ModelError, "which has no LM head", lambda: apet.load_model(headless, memory.tokenizer)),
        (ModelError, "tokenizer: missing", lambda: apet.load_model(memory.model)),
        (ModelError, "unknown head 'own'. Allowed: classification, lm", lambda: apet.load_model("plm", head="own")),
        (ConfigError, "rows: expected with a task", lambda: apet.prepare_task("sst2", tmp_path / "out", [])),
        (DataError, "unknown label 'ten'",
         lambda: apet.prepare_task(TASK, tmp_path / "out", [{"text": "w8", "label": "ten"}])),
        (DataError, "task: expected words, got echo",
         lambda: apet.load_tuned(cells().folder).evaluate(cells("bloom", GENERATION).data)),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            call()
    with pytest.raises(AttributeError, match="tuna"):
        apet.tuna  # noqa: B018


def test_representations_are_one_line(cells, memory):
    model = apet.load_tuned(cells().folder)
    plan = apet.make_plan(memory, "lora")
    values = (memory, memory.inventory, plan, plan.units[0], model, model.evaluate(cells().data))
    found = list(map(repr, values))
    assert all("\n" not in text and len(text) < 160 for text in found), found
    assert found[0].startswith("<PLM bloom: bloom, ") and found[0].endswith(" sites, LM head, float32, cpu>")
    assert found[2].startswith(f"<Plan lora, seed 1: {plan.budget:,} parameters (lowrank {plan.budget:,}), ")
    assert re.fullmatch(r"<Score 0\.\d{4} \(accuracy 0\.\d{4}\), loss \d\.\d{4}, [\d,]+ rows>", found[-1])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "w8", "label": "eight"}, {"text": "w9", "label": "ten"}], "rows, row 2: unknown label 'ten'"),
        ({"train": [{"text": "w8", "label": "ten"}]}, r"rows\['train'\], row 1: unknown label 'ten'"),
        ([], "split train has no rows"),
    ],
)
def test_errors_of_rows_in_memory_name_no_temporary_file(tmp_path, rows, message):
    with pytest.raises(DataError, match=message) as error:
        apet.prepare_task(TASK, tmp_path / "out", rows)
    assert tempfile.gettempdir() not in str(error.value)


def test_default_training_is_that_of_the_quick_study():
    study = load_study(ROOT / "params.yaml")
    assert study.grid[2].training == apet.QUICK_TRAINING


def test_public_names_are_documented_and_importable():
    for name in apet.__all__:
        assert f"apet.{name}" in PAGE, name
        assert getattr(apet, name) is not None and name in dir(apet)


def test_code_of_the_python_page_runs_unchanged(tmp_path, monkeypatch, capsys, cells):
    """Run the blocks in order, in one namespace, in a folder with the files that the page names."""
    monkeypatch.chdir(tmp_path)
    folder = save_plm(tiny_plm("bloom", fused=False, vocabulary=60).model, Path("my-plm"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["yes", "no"])
    tokenizer.save_pretrained(folder)
    cell = finished(tmp_path, placement="lora", budget="@own", num_plans=1)
    plm = apet.load_model("my-plm")
    plan = apet.make_plan(plm, "lora")
    apet.export_model(apet.TunedModel.from_theta(plm, plan, torch.ones(plan.budget), cell.data), "peft", "my-lora")
    classes = {"eight": "calm", "nine": "urgent"}
    names: dict = {"rows": [{"text": row["text"], "label": classes[row["label"]]} for row in rows(200, 5)]}
    blocks = [part.split("```")[0] for part in PAGE.split("```python\n")[1:]]
    assert len(blocks) == 3
    tuned: list[apet.TunedModel] = []
    for block in blocks:
        exec(block.replace("bloom-64x4/bbc_topics/lora-own-*", cell.cell.path), names)
        tuned.append(names["model"])
    (back,) = [part.split("```")[0] for part in EXPORTS.split("```python\n")[1:]]
    exec(back.replace("models/bloom-64x4-0123456789", "my-plm"), again := {})
    texts = ["The server is down.", "w8 w11"]
    assert torch.equal(again["model"].logits(texts), tuned[1].logits(texts))
    tree = ast.parse(blocks[1])
    assert len([node for node in tree.body if isinstance(node, ast.Assign)]) <= 10
    assert names["score"].n > 5 and Path("my-delta/delta.json").is_file()


def test_load_tuned_works_from_any_current_folder(cells, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert apet.load_tuned(cells().folder).cell == cells().cell.path
    copy = shutil.copytree(cells().folder, tmp_path / "copy")
    assert apet.load_tuned(copy, root=cells().root).cell == cells().cell.path
    assert ResultPaths(cells().root / "results").cells / cells().cell.path == cells().folder
