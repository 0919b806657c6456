"""Exports, compared with the libraries that load them: equal logits for all structures, errors, equal bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import (
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, PreTrainedModel

from apet.core.records import write_json_record
from apet.errors import ApetError, ConfigError, CorruptError, DataError, ModelError
from apet.export import formats
from apet.export.delta import MANIFEST, TENSORS
from apet.export.formats import FORMATS, export_model
from apet.export.peft_adapters import plan_from_peft
from apet.export.restore import load_tuned
from apet.export.tuned_model import TunedModel
from apet.models.loading import PLM, load_plm
from apet.placement import STRUCTURES, MethodSizes, Plan, Site, Units, make_plan, own_count
from apet.placement.sites import SCALARS
from apet.tuning import TunedPLM
from saved import save_plm
from tiny import CONFIGS, WORDS, tiny_plm

torch.set_num_threads(1)
TASK = {
    "task": "words", "type": "classification", "text_columns": ["text"], "prompt": "{text} w10", "prompts": {},
    "verbalizer": {"eight": " w20", "nine": " w30"}, "metric": "accuracy", "metrics": ["accuracy"], "max_new_tokens": 0,
    "digest": "0" * 64,
}  # fmt: skip
Change = Callable[[torch.Tensor], torch.Tensor]
AUTO = {"bert": AutoModelForMaskedLM, "t5": AutoModelForSeq2SeqLM}
WITH_BIASES = ("bert", "bloom", "gpt_neox")


@pytest.fixture(scope="module")
def plms(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PLM]:
    """Family -> its tiny PLM, loaded from a folder."""
    root, found = tmp_path_factory.mktemp("plms"), {}

    def of(family: str) -> PLM:
        if family not in found:
            save_plm(tiny_plm(family, fused=False).model, root / family)
            found[family] = load_plm(root / family, str(root / family))
        return found[family]

    return of


def take(site: Site, number: int, rank: int | None = None) -> Units:
    """Select some scalars of a scalar site, or one to three units of another site."""
    count = min(rank or 1 + number % 3, site.units)
    if site.structure not in SCALARS:
        return Units(site, count)
    chosen = np.random.default_rng(number).choice(site.units, min(7, site.units), replace=False)
    return Units(site, len(chosen), np.sort(chosen))


def model_of(plm: PLM, plan: Plan, spread: float = 0.2) -> TunedModel:
    theta = spread * torch.randn(plan.budget, generator=torch.Generator().manual_seed(2))
    return TunedModel(plm, plan, theta, TASK, 16)


def at(plm: PLM, keep: Callable[[Site], bool], spread: float = 0.2) -> TunedModel:
    """Model with random θ at all sites that `keep` selects, with different numbers of units."""
    sites = [site for site in plm.inventory.sites if keep(site)]
    assert sites
    units = tuple(take(site, number) for number, site in enumerate(sites))
    return model_of(plm, Plan("test", sum(u.size for u in units), 0, units), spread)


def of_structure(*structures: str) -> Callable[[Site], bool]:
    return lambda site: site.structure in structures


def of_input(plm: PLM) -> Callable[[Site], bool]:
    return lambda site: site.structure == "token" and site.place == plm.family.input


def full(plm: PLM) -> TunedModel:
    """Model whose θ changes every parameter: embeddings, norms, heads, tied or not."""
    return model_of(plm, make_plan(plm.inventory, "full", own_count("full", plm.inventory, MethodSizes()), 1), 0.05)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of three lengths, padded to the right."""
    ids = torch.randint(7, WORDS, (3, 9), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([9, 6, 8])
    return ids.masked_fill(torch.arange(9) >= lengths[:, None], 0), lengths


def ours(model: TunedModel) -> torch.Tensor:
    with TunedPLM(model.plm, model.plan) as tuned, torch.no_grad():
        return tuned(model.tensors, *batch(), None)


def theirs(model: PreTrainedModel | PeftModel, plm: PLM, tokens: int = 0) -> torch.Tensor:
    """Logits of the library's model at the answer's position, with its own mask and positions."""
    (ids, lengths), rows = batch(), torch.arange(3)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    with torch.no_grad():
        if plm.family.name == "t5":
            begun = torch.tensor(plm.special_tokens.decoder).expand(len(ids), -1)
            return model(input_ids=ids, attention_mask=mask, decoder_input_ids=begun).logits[:, -1]
        return model(input_ids=ids, attention_mask=mask).logits[rows, lengths - plm.family.answer_offset + tokens]


def library(plm: PLM, folder: str | Path) -> PreTrainedModel:
    return AUTO.get(plm.family.name, AutoModelForCausalLM).from_pretrained(folder).eval()


def assert_equal(found: torch.Tensor, expected: torch.Tensor, frozen: torch.Tensor) -> None:
    """Compare relative to the largest logit, and check that θ has an effect."""
    assert (expected - frozen).abs().max() > 1e-2
    assert (found - expected).abs().max() / expected.abs().max() < 1e-5


def frozen_logits(plm: PLM) -> torch.Tensor:
    return ours(model_of(plm, Plan("none", 0, 0, ())))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


# Export: PEFT


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("named", [True, False], ids=["lora", "every linear map, ranks of their own"])
def test_peft_export_of_lowrank_units_loads_as_lora_with_equal_logits(plms, tmp_path, family, named):
    plm = plms(family)
    lora = make_plan(plm.inventory, "lora", own_count("lora", plm.inventory, MethodSizes()), 3)
    model = model_of(plm, lora) if named else at(plm, of_structure("lowrank"))
    out = export_model(model, "peft", tmp_path / "out")
    config = json.loads((out / "adapter_config.json").read_text())
    assert bool(config["rank_pattern"]) is not named
    loaded = PeftModel.from_pretrained(library(plm, plm.name), out).eval()
    assert_equal(theirs(loaded, plm), ours(model), frozen_logits(plm))


@pytest.mark.parametrize("family", CONFIGS)
def test_peft_export_of_virtual_tokens_loads_as_prompt_tuning_with_equal_logits(plms, tmp_path, family):
    plm = plms(family)
    (site,) = (site for site in plm.inventory.sites if of_input(plm)(site))
    model = model_of(plm, Plan("test", 3 * site.cost, 0, (Units(site, 3),)))
    loaded = PeftModel.from_pretrained(library(plm, plm.name), export_model(model, "peft", tmp_path / "out")).eval()
    assert isinstance(loaded.active_peft_config, PromptTuningConfig)
    tokens = 0 if family == "t5" else 3
    assert_equal(theirs(loaded, plm, tokens), ours(model), frozen_logits(plm))


VECTORS = {
    "norms": lambda site: site.structure in ("entry", "bias") and site.place.endswith(".norm") and site.exists,
    "factors": lambda site: site.structure == "scale",
}


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("kind", VECTORS)
def test_peft_export_of_norms_and_factors_loads_with_equal_logits(plms, tmp_path, family, kind):
    plm = plms(family)
    model = at(plm, VECTORS[kind])
    loaded = PeftModel.from_pretrained(library(plm, plm.name), export_model(model, "peft", tmp_path / "out")).eval()
    assert_equal(theirs(loaded, plm), ours(model), frozen_logits(plm))


def prefix_of(plm: PLM, *counts: int) -> TunedModel:
    """Model with a prefix. In PEFT, both halves of a T5's decoder have the same pairs."""
    own = make_plan(plm.inventory, "prefix", own_count("prefix", plm.inventory, MethodSizes()), 3)
    units = tuple(Units(u.site, n) for u, n in zip(own.units, counts, strict=True))
    model = model_of(plm, Plan("test", sum(u.size for u in units), 0, units), 0.5)
    if plm.family.name == "t5" and len(set(counts)) == 1:
        model.theta[len(model.theta) // 2 :] = model.theta[: len(model.theta) // 2]
    return model


@pytest.mark.parametrize("family", CONFIGS)
def test_peft_export_of_a_prefix_loads_as_prefix_tuning_with_equal_logits(plms, tmp_path, family):
    plm = plms(family)
    model = prefix_of(plm, 3, 3)
    loaded = PeftModel.from_pretrained(library(plm, plm.name), export_model(model, "peft", tmp_path / "out")).eval()
    assert isinstance(loaded.active_peft_config, PrefixTuningConfig)
    assert_equal(theirs(loaded, plm), ours(model), frozen_logits(plm))


# Export: merged checkpoint


MERGEABLE = [
    *((family, "full") for family in CONFIGS),
    *((family, "lowrank") for family in CONFIGS),
    *((family, "entry") for family in CONFIGS),
    *((family, "scale") for family in CONFIGS),
    *((family, "all of them") for family in CONFIGS),
    *((family, "bias") for family in WITH_BIASES),
]


@pytest.mark.parametrize(("family", "what"), MERGEABLE)
def test_merged_export_loads_with_equal_logits(plms, tmp_path, family, what):
    plm = plms(family)
    before = {name: value.clone() for name, value in plm.model.state_dict().items()}
    chosen = ("entry", "bias", "lowrank", "scale") if what == "all of them" else (what,)
    absent = [s for s in plm.inventory.sites if s.structure == "bias" and not s.exists]
    model = full(plm) if what == "full" else at(plm, lambda s: s.structure in chosen and s not in absent)
    out = export_model(model, "merged", tmp_path / "out")
    assert_equal(theirs(library(plm, out), plm), ours(model), frozen_logits(plm))
    assert all(torch.equal(value, before[name]) for name, value in plm.model.state_dict().items())
    again = model_of(load_plm(out, "merged"), Plan("none", 0, 0, ()))
    assert_equal(ours(again), ours(model), frozen_logits(plm))


def test_merged_export_of_a_bfloat16_plm_keeps_small_updates(plms, tmp_path):
    plm = plms("bloom")
    half = replace(plm, model=library(plm, plm.name).bfloat16(), dtype="bfloat16")
    site = next(s for s in plm.inventory.sites if s.name == "decoder.1.ffn.up/entry")
    plan = Plan("test", 1, 0, (Units(site, 1, np.array([5])),))
    export_model(TunedModel(half, plan, torch.tensor([1e-4]), TASK, 16), "merged", tmp_path / "out")
    weight = load_file(tmp_path / "out" / "model.safetensors")["transformer.h.1.mlp.dense_h_to_4h.weight"].flatten()
    frozen = half.model.transformer.h[1].mlp.dense_h_to_4h.weight.flatten()
    assert weight.dtype == torch.float32
    assert float((weight[5] - frozen[5].float()).detach()) == pytest.approx(1e-4, rel=0.01)
    assert torch.equal(weight[6:], frozen[6:].float())


# Export and import: delta


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("structures", [*((s,) for s in STRUCTURES), STRUCTURES], ids=lambda s: "+".join(s))
def test_delta_export_restores_every_structure(plms, tmp_path, family, structures):
    plm = plms(family)
    model = at(plm, of_structure(*structures))
    out = export_model(model, "delta", tmp_path / "out")
    back = load_tuned(out, plm=plm.name)
    assert back.plan.digest == model.plan.digest and torch.equal(back.theta, model.theta)
    assert (back.task, back.max_length) == (model.task, model.max_length)
    assert torch.equal(ours(back), ours(model))


def headed(plm: PLM) -> TunedModel:
    """Model with a classification head."""
    model = library(plm, plm.name).requires_grad_(False)
    plm.family.drop_lm_head(model)
    beheaded = replace(plm, model=model, head="classification")
    plan = make_plan(beheaded.inventory, "lora", own_count("lora", beheaded.inventory, MethodSizes()), 3)
    head = torch.randn(beheaded.head_size(2), generator=torch.Generator().manual_seed(3))
    return TunedModel(beheaded, plan, torch.ones(plan.budget) * 0.1, TASK, 16, head)


def test_delta_export_restores_a_classification_head(plms, tmp_path):
    model = headed(plms("bert"))
    back = load_tuned(export_model(model, "delta", tmp_path / "out"), plm=model.plm)
    texts = ["w8 w11 w12", "w9 w13"]
    assert torch.equal(back.logits(texts), model.logits(texts)) and back.logits(texts).abs().max() > 0


def test_delta_with_another_plm_is_refused(plms, tmp_path):
    out = export_model(at(plms("bloom"), of_structure("lowrank")), "delta", tmp_path / "out")
    other = tiny_plm("bloom", fused=False).model
    with torch.no_grad():
        other.transformer.h[0].mlp.dense_h_to_4h.bias[0] += 1e-3
    save_plm(other, tmp_path / "other")
    with pytest.raises(ModelError, match=rf"content {plms('bloom').content[:12]}, got .*other with content"):
        load_tuned(out, plm=tmp_path / "other")
    with pytest.raises(DataError, match=r"missing PLM.*Give plm="):
        load_tuned(out)


@pytest.mark.parametrize(
    "harm",
    ["a changed byte", "numbers gone", "another count", "no task", "another prompt", "another format", "no manifest"],
)
def test_corrupt_delta_is_refused(plms, tmp_path, harm):
    plm = plms("bloom")
    out = export_model(at(plm, of_structure("lowrank")), "delta", tmp_path / "out")
    numbers, manifest = out / TENSORS, json.loads((out / MANIFEST).read_text())
    if harm == "a changed byte":
        content = bytearray(numbers.read_bytes())
        content[-1] ^= 1
        numbers.write_bytes(content)
    elif harm == "numbers gone":
        numbers.unlink()
    elif harm == "another count":
        manifest["plan"]["units"][next(iter(manifest["plan"]["units"]))] += 1
    elif harm == "no task":
        del manifest["task"]["prompt"]
    elif harm == "another prompt":
        manifest["task"]["prompt"] += " "
    elif harm == "another format":
        manifest["format"] = 0
    (out / MANIFEST).write_text("{" if harm == "no manifest" else json.dumps(manifest))
    with pytest.raises((CorruptError, DataError), match=rf"{out}.*(delta.json|delta.safetensors)"):
        load_tuned(out, plm=plm)


def test_delta_of_another_format_or_without_checksum_is_refused(plms, tmp_path):
    plm = plms("bloom")
    out = export_model(at(plm, of_structure("lowrank")), "delta", tmp_path / "out")
    manifest = json.loads((out / MANIFEST).read_text())
    write_json_record(out / MANIFEST, manifest | {"format": 2})
    with pytest.raises(DataError, match=r"delta\.json: format: expected 1, got 2"):
        load_tuned(out, plm=plm)
    del manifest["digest"]
    (out / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CorruptError, match=r"delta\.json: corrupt"):
        load_tuned(out, plm=plm)


# Refusals


def other_halves(plm: PLM) -> TunedModel:
    model = prefix_of(plm, 3, 3)
    model.theta[0] += 1
    return model


def refusals(plms: Callable[[str], PLM]) -> dict[str, tuple[TunedModel, str, str, str]]:
    """Case -> (model, format, part of the message, formats that the message allows)."""
    bloom, llama, t5, bert = (plms(name) for name in ("bloom", "llama", "t5", "bert"))
    return {
        "entries in peft": (full(bloom), "peft", r"entry at \d+ sites \(decoder\.", "merged, delta"),
        "adapters in peft": (at(bloom, of_structure("bottleneck")), "peft", "bottleneck at 4 sites", "delta"),
        "adapters merged": (at(bloom, of_structure("bottleneck")), "merged", "bottleneck at 4 sites", "delta"),
        "tokens merged": (at(bloom, of_structure("token")), "merged", "token at decoder.input", "peft, delta"),
        "absent biases": (at(llama, of_structure("bias")), "merged", "no bias", "delta"),
        "tokens of a decoder": (at(t5, of_structure("token")), "peft", "token at decoder.input", "delta"),
        "two adapters": (at(bloom, of_structure("token", "lowrank")), "peft", "together", "delta"),
        "a short prefix": (prefix_of(bloom, 3, 2), "peft", "different numbers of pairs", "delta"),
        "a prefix of a T5": (prefix_of(t5, 3, 2), "peft", "different numbers of pairs", "delta"),
        "an encoder's prefix": (at(t5, of_structure("prefix")), "peft", "an encoder with a decoder", "delta"),
        "other pairs in a T5": (other_halves(t5), "peft", "second half of blocks", "delta"),
        "a head in peft": (headed(bert), "peft", "a classification head", "delta"),
        "a head merged": (headed(bert), "merged", "a classification head", "delta"),
        "nothing": (model_of(bloom, Plan("none", 0, 0, ())), "peft", "tunes nothing", "merged, delta"),
    }


@pytest.mark.parametrize("case", range(14))
def test_export_of_an_unsupported_structure_names_the_allowed_formats(plms, tmp_path, case):
    model, form, message, allowed = list(refusals(plms).values())[case]
    with pytest.raises(ConfigError, match=rf"'{form}' cannot represent .*{message}.*Allowed.*: {allowed}\.$"):
        export_model(model, form, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    for form in allowed.split(", "):
        assert export_model(model, form, tmp_path / form).is_dir()


def test_export_keeps_existing_files_and_leaves_no_partial_folder(plms, tmp_path, monkeypatch):
    model = at(plms("bloom"), of_structure("lowrank"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"mine: already exists"):
        export_model(model, "delta", tmp_path / "mine")
    assert contents(tmp_path / "mine") == {"thesis.txt": b"years of work"}
    with pytest.raises(ConfigError, match=r"unknown format 'peft2'. Did you mean 'peft'"):
        export_model(model, "peft2", tmp_path / "out")

    def full_disk(*_: object) -> str:
        raise OSError("no space left")

    monkeypatch.setattr(formats, "model_card", full_disk)
    for form in FORMATS:
        with pytest.raises(OSError, match="no space"):
            export_model(model, form, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("form", FORMATS)
def test_export_of_equal_models_gives_equal_bytes(plms, tmp_path, form):
    plm = plms("gpt_neox")
    first, second = (
        contents(export_model(at(one, of_structure("lowrank")), form, tmp_path / str(number)))
        for number, one in enumerate((plm, load_plm(Path(plm.name), plm.name)))
    )
    assert first == second and "README.md" in first


@pytest.mark.parametrize("form", FORMATS)
def test_model_card_states_facts_and_its_code_loads_the_export(plms, tmp_path, form):
    plm = plms("llama")
    model = at(plm, of_structure("lowrank"))
    run = {"plan_index": 0, "seed_index": 1, "outcome": "ok", "test": {"score": 0.85, "n": 400}}
    out = export_model(replace(model, run=run, cell="llama/words/test-1"), form, tmp_path / "out")
    card = (out / "README.md").read_text()
    assert "accuracy 0.8500 (n = 400; 95 % interval of this run 0.812 to 0.882)" in card  # Wilson's
    for fact in (
        plm.content,
        model.plan.digest,
        f"{model.plan.budget:,} parameters",
        "test-1, plan 0, seed 1",
    ):
        assert fact in card
    code = (
        card.split("```python\n")[1].split("```")[0].replace("FOLDER", str(out)).replace("the PLM's folder", plm.name)
    )
    names: dict = {}
    exec(code, names)
    loaded = names["model"]
    found = ours(loaded) if form == "delta" else theirs(loaded.eval(), plm)
    assert_equal(found, ours(model), frozen_logits(plm))


# Import: PEFT adapters


TARGETS = {
    "bloom": (["query_key_value", "dense_4h_to_h"], "dense_4h_to_h"),
    "gpt_neox": (["query_key_value", "dense_4h_to_h"], "dense_4h_to_h"),
    "llama": (["q_proj", "gate_proj"], "gate_proj"),
    "bert": (["query", "value", "transform.dense"], "query"),
    "t5": (["q", "wo"], "wo"),
}
"""Family -> (target modules, the module with its own rank and α)."""


def trained_by_peft(plm: PLM, folder: Path, steps: int = 4, **options) -> torch.Tensor:
    """Train an adapter with PEFT alone, save it, and return its logits."""
    targets, other = TARGETS[plm.family.name]
    own = {"rank_pattern": {other: 3}, "alpha_pattern": {f"1.*{other}": 12}}
    config = LoraConfig(**{"r": 2, "lora_alpha": 8, "target_modules": targets, "lora_dropout": 0.1, **own, **options})
    torch.manual_seed(4)
    model = get_peft_model(library(plm, plm.name), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.03)
    ids, _ = batch()
    begun = {"decoder_input_ids": ids} if plm.family.name == "t5" else {}
    for _ in range(steps):
        model(input_ids=ids, labels=ids, **begun).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return theirs(model.eval(), plm)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("rslora", [False, True], ids=["alpha / r", "alpha / sqrt r"])
def test_imported_lora_has_equal_logits_and_exports_again(plms, tmp_path, family, rslora):
    plm = plms(family)
    options = {"use_rslora": True, "rank_pattern": {}, "alpha_pattern": {}} if rslora else {}
    expected = trained_by_peft(plm, tmp_path / "theirs", **options)
    plan, theta = plan_from_peft(tmp_path / "theirs", plm)
    model = TunedModel(plm, plan, theta, TASK, 16)
    assert plan.structures["lowrank"] == plan.budget == len(theta)
    assert_equal(ours(model), expected, frozen_logits(plm))
    out = export_model(model, "peft", tmp_path / "ours")
    assert_equal(
        theirs(PeftModel.from_pretrained(library(plm, plm.name), out).eval(), plm), expected, frozen_logits(plm)
    )
    again, values = plan_from_peft(out, plm)
    assert again.digest == plan.digest and torch.equal(values, theta)


@pytest.mark.parametrize("family", ["bloom", "llama"])
def test_exported_lora_is_imported_as_the_same_plan(plms, tmp_path, family):
    """Including a fused map, where query and value have different units."""
    model = at(plms(family), lambda s: s.structure == "lowrank" and s.place.endswith(("query", "value")))
    plan, theta = plan_from_peft(export_model(model, "peft", tmp_path / "out"), plms(family))
    assert plan.digest == model.plan.digest and torch.equal(theta, model.theta)


def test_untrained_lora_is_imported_with_all_units(plms, tmp_path):
    plm = plms("bloom")
    trained_by_peft(plm, tmp_path / "theirs", steps=0)
    plan, theta = plan_from_peft(tmp_path / "theirs", plm)
    places = {u.site.place: u.count for u in plan.units}
    assert [places[f"decoder.1.attention.{part}"] for part in ("query", "key", "value")] == [2, 2, 2]
    assert places["decoder.1.ffn.down"] == 3 and theta.abs().max() > 0
    assert torch.equal(ours(TunedModel(plm, plan, theta, TASK, 16)), frozen_logits(plm))


@pytest.mark.parametrize("family", CONFIGS)
def test_imported_prompt_has_equal_logits_and_exports_again(plms, tmp_path, family):
    """PEFT creates the adapter. For T5 it also saves unused tokens for the decoder."""
    plm, kinds = plms(family), {"t5": "SEQ_2_SEQ_LM", "bert": "FEATURE_EXTRACTION"}
    torch.manual_seed(4)
    config = PromptTuningConfig(task_type=kinds.get(family, "CAUSAL_LM"), num_virtual_tokens=3)
    peft = get_peft_model(library(plm, plm.name), config)
    peft.save_pretrained(tmp_path / "theirs")
    saved = load_file(tmp_path / "theirs" / "adapter_model.safetensors")["prompt_embeddings"]
    assert len(saved) == (6 if family == "t5" else 3)
    plan, theta = plan_from_peft(tmp_path / "theirs", plm)
    model = TunedModel(plm, plan, theta, TASK, 16)
    assert [(units.site.place, units.count) for units in plan.units] == [(plm.family.input, 3)]
    assert_equal(ours(model), theirs(peft.eval(), plm, 0 if family == "t5" else 3), frozen_logits(plm))
    again, values = plan_from_peft(export_model(model, "peft", tmp_path / "ours"), plm)
    assert again.digest == plan.digest and torch.equal(values, theta)


DEFAULT_KINDS = {
    "IA3": (IA3Config, CONFIGS),
    "LN_TUNING": (LNTuningConfig, ("bloom", "llama", "t5")),
    "PREFIX_TUNING": (lambda **kind: PrefixTuningConfig(num_virtual_tokens=3, **kind), CONFIGS),
}
"""`peft_type` -> its configuration with PEFT's defaults, and the families that have defaults."""


@pytest.mark.parametrize(("kind", "family"), [(k, f) for k, (_, families) in DEFAULT_KINDS.items() for f in families])
def test_imported_adapter_with_default_modules_has_equal_logits_and_exports_again(plms, tmp_path, kind, family):
    plm, tasks = plms(family), {"t5": "SEQ_2_SEQ_LM", "bert": "FEATURE_EXTRACTION"}
    options = {"token_dim": 12} if (kind, family) == ("PREFIX_TUNING", "t5") else {}  # whose heads are narrower than d
    config = DEFAULT_KINDS[kind][0](task_type=tasks.get(family, "CAUSAL_LM"), **options)
    torch.manual_seed(4)
    peft = get_peft_model(library(plm, plm.name), config)
    for parameter in peft.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    peft.save_pretrained(tmp_path / "theirs")
    plan, theta = plan_from_peft(tmp_path / "theirs", plm)
    model = TunedModel(plm, plan, theta, TASK, 16)
    assert_equal(ours(model), theirs(peft.eval(), plm), frozen_logits(plm))
    again, values = plan_from_peft(export_model(model, "peft", tmp_path / "ours"), plm)
    assert again.digest == plan.digest
    torch.testing.assert_close(values, theta)


@pytest.mark.parametrize(
    ("kind", "config", "tensors", "error", "message"),
    [
        ("IA3", {}, {"transformer.h.0.mlp.dense_h_to_4h.ia3_l": (64, 1)}, ConfigError, "no site for factors"),
        ("IA3", {}, {"transformer.h.0.mlp.dense_4h_to_h.ia3_l": (16, 1)}, ConfigError, "no site for factors"),
        ("IA3", {}, {"transformer.h.0.self_attention.query_key_value.ia3_l": (6, 1)}, ConfigError, "no site for"),
        ("IA3", {"modules_to_save": ["lm_head"]}, {}, ModelError, "modules_to_save: expected no value"),
        ("LN_TUNING", {}, {"transformer.ln_f.ln_tuning_layers.weight": (8,)}, ConfigError, "not a parameter of a norm"),
        ("LN_TUNING", {}, {"transformer.ln_f.ln_tuning_layers.scale": (16,)}, ConfigError, "not a parameter of a norm"),
        ("LN_TUNING", {}, {"lm_head.ln_tuning_layers.weight": (50, 16)}, ConfigError, "not a parameter of a norm"),
        ("LN_TUNING", {}, {"transformer.ln_f.weight": (16,)}, ConfigError, "unexpected tensor"),
        ("LN_TUNING", {}, {}, CorruptError, "missing ln_tuning_layers of norms"),
    ],
)
def test_invalid_norms_and_factors_are_refused(plms, tmp_path, kind, config, tensors, error, message):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind} | config))
    named = {f"base_model.model.{name}": torch.ones(shape) for name, shape in tensors.items()}
    save_file(named, tmp_path / "adapter_model.safetensors")
    with pytest.raises(error, match=message):
        plan_from_peft(tmp_path, plms("bloom"))


PREFIX = {"peft_type": "PREFIX_TUNING"}


@pytest.mark.parametrize(
    ("values", "width", "error", "message"),
    [
        ({"num_virtual_tokens": 4}, 16, CorruptError, "expected 1 × 4 virtual tokens, got 3"),
        ({"num_virtual_tokens": None}, 16, ModelError, "num_virtual_tokens: expected at least 1, got None"),
        ({}, 24, ConfigError, "at most 512 virtual tokens of width 16.*got 3 of width 24"),
        ({"peft_type": "P_TUNING"}, 16, ModelError, "Allowed: 'LORA', 'PROMPT_TUNING'"),
        (PREFIX, 16, ConfigError, "at most 512 rows of 2 pairs of width 16.*got 3 of 16 numbers"),
        (PREFIX | {"num_virtual_tokens": 4}, 64, CorruptError, "expected 4 rows of pairs, got 3"),
        (PREFIX | {"num_transformer_submodules": 2}, 64, ModelError, "num_transformer_submodules: expected 1, got 2"),
    ],
)
def test_invalid_prompt_adapter_is_refused(plms, tmp_path, values, width, error, message):
    config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3, "num_transformer_submodules": 1}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | values))
    save_file({"prompt_embeddings": torch.zeros(3, width)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(error, match=message):
        plan_from_peft(tmp_path, plms("bloom"))


def edit(folder: Path, **values: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def cut(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def rewrite(folder: Path, a: Change, b: Change = lambda tensor: tensor) -> None:
    """Change every A and B."""
    path = folder / "adapter_model.safetensors"
    changed = {name: (a if "lora_A" in name else b)(tensor) for name, tensor in load_file(path).items()}
    save_file({name: tensor.contiguous() for name, tensor in changed.items()}, path)


REFUSED: Sequence[tuple[Callable[[Path], None], str, type[ApetError], str]] = (
    (lambda folder: edit(folder, peft_type="VERA"), "bloom", ModelError, "peft_type: got 'VERA'"),
    (lambda folder: edit(folder, use_dora=True), "bloom", ModelError, "use_dora: expected no value, got True"),
    (lambda folder: edit(folder, bias="all"), "bloom", ModelError, "bias: expected 'none', got 'all'"),
    (lambda folder: edit(folder, init_lora_weights="pissa"), "bloom", ModelError, "'pissa' changes the weights"),
    (lambda folder: edit(folder, modules_to_save=["lm_head"]), "bloom", ModelError, "modules_to_save"),
    (cut, "bloom", CorruptError, "cannot be read as safetensors"),
    (lambda folder: (folder / "adapter_model.safetensors").unlink(), "bloom", CorruptError, "adapter_model"),
    (lambda folder: (folder / "adapter_config.json").unlink(), "bloom", DataError, "adapter_config.json"),
    (lambda folder: edit(folder, lora_alpha=None), "bloom", ModelError, "lora_alpha: expected a number, got None"),
    (lambda folder: None, "llama", ConfigError, "not a linear map of"),
    (lambda folder: rewrite(folder, lambda t: t.repeat(1, 2)), "bloom", ConfigError,
     r"expected shape \(16, 64\).*got \(16, 128\)"),
    (lambda folder: rewrite(folder, lambda t: t.repeat(20, 1), lambda t: t.repeat(1, 20)), "bloom", ConfigError,
     "decoder.0.attention.key: expected a rank of at most 16, got 40"),
    (lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"), "bloom", CorruptError,
     "adapter_model.safetensors: no such file, only adapter_model.bin, which is a pickle"),
    (lambda folder: (folder / "adapter_config.json").unlink(), "bloom", DataError,
     "as JSON: No such file or directory$"),
    (lambda folder: rewrite(folder, lambda t: t[:1]), "bloom", CorruptError, "do not match"),
)  # fmt: skip


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_unsupported_adapter_is_refused(plms, tmp_path, case):
    harm, family, error, message = REFUSED[case]
    trained_by_peft(plms("bloom"), tmp_path / "theirs", steps=0)
    harm(tmp_path / "theirs")
    with pytest.raises(error, match=message):
        plan_from_peft(tmp_path / "theirs", plms(family))
