"""Loading of PLMs: logits match the library's, records set dtype and head, and no weight is random."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from apet.core.arithmetic import compute_dtype
from apet.core.records import write_json_record
from apet.data.tokenization import encode
from apet.errors import CorruptError, ModelError
from apet.models.checkpoint_files import open_folder
from apet.models.families import FAMILIES
from apet.models.inventory import inventory_of_config
from apet.models.loading import check_folder, load_plm
from apet.models.registry import read_config
from apet.models.weight_names import LM_HEADS, check_source
from apet.placement import Plan
from apet.tuning import TunedPLM
from saved import save_plm
from tiny import CONFIGS, WORDS, tiny_plm

NOTHING = Plan("none", 0, 0, ())
TIED_T5 = T5Config(vocab_size=WORDS, d_model=16, d_kv=6, d_ff=24, num_layers=2, num_heads=2)


def model_of(name: str):
    """Make a model of a family with weights of std 0.3; `t5-tied` is version 1.0 with a tied, scaled head."""
    if name != "t5-tied":
        return tiny_plm(name, fused=False).model
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(TIED_T5).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def write_record(folder: Path, **values) -> Path:
    write_json_record(folder / "snapshot.json", values)
    return folder


def tuned_logits(plm, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows with the family's special tokens, and our logits of every word."""
    before, after = torch.tensor(plm.special_tokens.before).long(), torch.tensor(plm.special_tokens.after).long()
    rows = torch.stack([torch.cat((before, row, after)) for row in ids])
    with TunedPLM(plm, NOTHING) as tuned, torch.no_grad():
        return rows, tuned([], rows, torch.full((len(rows),), rows.shape[1]), torch.arange(WORDS))


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "4KB"}], ids=["one file", "shards"])
@pytest.mark.parametrize("name", [*CONFIGS, "t5-tied"])
def test_load_plm_saved_model_gives_library_logits(tmp_path, name, shards):
    model = model_of(name)
    plm = load_plm(save_plm(model, tmp_path, **shards), name)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == bool(shards)
    ids, ours = tuned_logits(plm, torch.randint(7, WORDS, (3, 6), generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        if name.startswith("t5"):
            assert plm.special_tokens.decoder == (0, 6)
            theirs = model(input_ids=ids, decoder_input_ids=torch.tensor([[0, 6]] * len(ids))).logits[:, -1]
        else:
            theirs = model(input_ids=ids).logits[:, ids.shape[1] - plm.family.answer_offset]
    torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=2e-5)
    with TunedPLM(plm, NOTHING) as tuned, torch.no_grad():
        lengths = torch.full((len(ids),), ids.shape[1])
        torch.testing.assert_close(tuned([], ids, lengths, None), theirs, atol=5e-5, rtol=2e-5)
    assert plm.inventory.digest == inventory_of_config(read_config(tmp_path)).digest


def test_load_plm_t5_head_is_tied_only_if_checkpoint_ties_it(tmp_path):
    own = load_plm(save_plm(model_of("t5"), tmp_path / "own"), "own").model
    tied = load_plm(save_plm(model_of("t5-tied"), tmp_path / "tied"), "tied").model
    assert own.lm_head.weight is not own.shared.weight and not own.config.scale_decoder_outputs
    assert tied.lm_head.weight is tied.shared.weight and tied.config.scale_decoder_outputs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_load_plm_uses_dtype_of_snapshot_record(tmp_path, dtype):
    folder = write_record(save_plm(model_of("llama"), tmp_path), dtype=dtype, family="llama")
    assert load_plm(folder, "x").model.dtype == getattr(torch, compute_dtype(dtype, "cpu"))


@pytest.mark.parametrize(("values", "message"), [({"dtype": "bf16"}, "bfloat16"), ({"head": "new"}, "classification")])
def test_load_plm_invalid_snapshot_record_names_allowed_values(tmp_path, values, message):
    folder = write_record(save_plm(model_of("llama"), tmp_path), **values)
    with pytest.raises(ModelError, match=message):
        load_plm(folder, "x")


def test_load_plm_snapshot_record_that_is_no_object_is_corrupt(tmp_path):
    (save_plm(model_of("llama"), tmp_path) / "snapshot.json").write_text("[]")
    with pytest.raises(CorruptError, match="expected an object, got list"):
        load_plm(tmp_path, "x")


@pytest.mark.parametrize("content", ["[]", "{", '{"dtype": "float32"}'])
def test_load_plm_corrupt_snapshot_record_is_refused(tmp_path, content):
    save_plm(model_of("llama"), tmp_path)
    (tmp_path / "snapshot.json").write_text(content)
    with pytest.raises(CorruptError, match=r"snapshot\.json: corrupt"):
        load_plm(tmp_path, "x")


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "4KB"}], ids=["one file", "shards"])
def test_load_plm_changed_file_names_its_record(tmp_path, shards):
    folder = save_plm(model_of("llama"), tmp_path, **shards)
    content = open_folder(folder).content
    write_record(folder, content=content)
    assert load_plm(folder, "x").content == content
    own = [*folder.glob("*.safetensors*"), folder / "config.json", folder / "tokenizer.json"]
    for file in own:
        whole = file.read_bytes()
        file.write_bytes(whole + b" ")
        with pytest.raises(CorruptError, match=r"snapshot.json.*[Dd]elete"):
            load_plm(folder, "x")
        file.write_bytes(whole)
    write_record(folder)
    write_json_record(folder / "pretraining.json", {"content": "0" * 64})
    with pytest.raises(CorruptError, match=r"pretraining.json"):
        load_plm(folder, "x")


def test_load_plm_missing_file_is_named(tmp_path):
    folder = save_plm(model_of("bert"), tmp_path)
    for name in ("tokenizer.json", "model.safetensors", "config.json"):
        (folder / name).unlink()
        with pytest.raises(ModelError, match="no tokenizer" if "tokenizer" in name else name):
            load_plm(folder, "x")


def test_load_plm_pickled_weights_are_refused(tmp_path):
    folder = save_plm(model_of("bert"), tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model.bin.*as safetensors"):
        load_plm(folder, "x")


@pytest.mark.parametrize("shard", ["../elsewhere.safetensors", "model-00009-of-00009.safetensors"])
def test_load_plm_shard_outside_folder_is_refused(tmp_path, shard):
    folder = save_plm(model_of("llama"), tmp_path, max_shard_size="4KB")
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"]["lm_head.weight"] = shard
    index.write_text(json.dumps(values))
    with pytest.raises(ModelError, match=shard):
        load_plm(folder, "x")


@pytest.mark.parametrize("name", [*CONFIGS, "t5-tied"])
def test_load_plm_missing_weight_is_an_error(tmp_path, name):
    file = save_plm(model_of(name), tmp_path) / "model.safetensors"
    weights = load_file(file)
    gone = next(key for key in sorted(weights) if "layer" in key or "block" in key or ".h." in key)
    del weights[gone]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ModelError, match=gone.removeprefix("model.")):
        load_plm(tmp_path, "x")


def test_load_plm_truncated_weights_name_the_folder(tmp_path):
    file = save_plm(model_of("llama"), tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=str(tmp_path)):
        load_plm(tmp_path, "x")


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("llama", "rope_theta", 100_000_000),
        ("llama", "max_position_embeddings", 10_485_760),
        ("llama", "trained_tokens", 15 * 10**12),
        ("gpt_neox", "rotary_emb_base", 100_000_000),
        ("bert", "bos_token_id", 100_000_000),
    ],
)
def test_load_plm_large_number_that_is_no_size_is_accepted(tmp_path, family, key, value):
    folder = save_plm(model_of(family), tmp_path)
    values = read_config(folder)
    if "rope" in key or "rotary" in key:  # as older versions of the library write it
        values.pop("rope_parameters")
    (folder / "config.json").write_text(json.dumps(values | {key: value}))
    plm = load_plm(folder, "x")
    if "rope" in key:
        assert plm.model.config.rope_parameters["rope_theta"] == value
    assert plm.inventory.digest == inventory_of_config(read_config(folder)).digest


@pytest.mark.parametrize(
    ("family", "key"),
    [("llama", "hidden_size"), ("llama", "num_hidden_layers"), ("bert", "max_position_embeddings"),
     ("bloom", "n_embed"), ("t5", "num_decoder_layers"), ("llama", "num_labels"), ("gpt_neox", "vocab_size")],
)  # fmt: skip
def test_load_plm_large_size_is_refused(tmp_path, family, key):
    folder = save_plm(model_of(family), tmp_path)
    (folder / "config.json").write_text(json.dumps(read_config(folder) | {key: 10**8}))
    with pytest.raises(ModelError, match=f"{key} is 100000000. Allowed: at most"):
        load_plm(folder, "x")


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "unheard-of"])
def test_load_plm_quantized_weights_are_refused(tmp_path, method):
    folder = save_plm(model_of("bert"), tmp_path)
    values = read_config(folder) | {"quantization_config": {"quant_method": method, "bits": 4, "load_in_4bit": True}}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match=f"{folder}.*quantization_config is .*{method}.*not quantised"):
        load_plm(folder, "x")


@pytest.mark.parametrize("weights", [True, False])
def test_load_plm_tokenizer_larger_than_embeddings_is_refused(tmp_path, weights):
    folder = save_plm(tiny_plm("bloom", fused=False, vocabulary=WORDS - 1).model, tmp_path)
    with pytest.raises(ModelError, match=f"{folder}: its tokenizer has {WORDS} words.* have {WORDS - 1} rows"):
        load_plm(folder, "x", weights=weights)


@pytest.mark.parametrize("weights", [True, False])
def test_load_plm_unused_padding_token_beyond_the_embeddings_is_never_produced(tmp_path, weights):
    folder = save_plm(tiny_plm("llama", fused=False).model, tmp_path)
    tokenizer = load_plm(folder, "x").tokenizer
    plain = tokenizer("w8 w9 [MASK]")["input_ids"]
    assert tokenizer.add_special_tokens({"pad_token": "[PAD]"}) == 1 and tokenizer.pad_token_id == WORDS
    tokenizer.save_pretrained(folder)
    assert tokenizer("w8 [PAD] w9")["input_ids"][1] == WORDS
    plm = load_plm(folder, "x", weights=weights)
    assert plm.tokenizer("w8 w9")["input_ids"] == plain[:2]
    encoded = encode({"text": ["w8 [PAD] w9", "[PAD]", "w8[PAD]w9"]}, plm.tokenizer, "{text} [PAD] w10", 20)
    assert max(map(max, encoded.ids)) < WORDS


@pytest.mark.parametrize("what", ["an ordinary word", "a token that the family reads"])
def test_load_plm_token_beyond_the_embeddings_that_is_used_is_refused(tmp_path, what):
    family = "llama" if what == "an ordinary word" else "t5"
    folder = save_plm(model_of(family), tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    if family == "llama":
        tokenizer.add_tokens(["new"])
    else:
        tokenizer.add_special_tokens({"eos_token": "</end>"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=f"{folder}: its tokenizer has {WORDS + 1} words.* have {WORDS} rows"):
        load_plm(folder, "x")


def test_load_plm_t5_without_sentinel_is_refused(tmp_path):
    folder = save_plm(model_of("t5"), tmp_path)
    for path in folder.glob("tokenizer*.json"):
        path.write_text(path.read_text().replace("<extra_id_0>", "<another>"))
    with pytest.raises(ModelError, match=f"{folder}: its tokenizer lacks a token .* a t5 model reads"):
        load_plm(folder, "x")


@pytest.mark.parametrize(("name", "token"), [("bert", "mask"), ("bert", "cls"), ("t5", "eos"), ("t5", "pad")])
def test_load_plm_tokenizer_without_special_token_is_refused(tmp_path, name, token):
    folder = save_plm(model_of(name), tmp_path)
    values = json.loads((folder / "tokenizer_config.json").read_text())
    del values[f"{token}_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match=f"{folder}: its tokenizer lacks a token .* a {name} model reads"):
        load_plm(folder, "x")


@pytest.mark.parametrize("kind", [ImportError, KeyError, AttributeError])
def test_load_plm_any_library_error_is_reported(tmp_path, monkeypatch, kind):
    folder = save_plm(model_of("bert"), tmp_path)

    def fail(*args, **options):
        raise kind("of its own")

    monkeypatch.setattr("transformers.BertForMaskedLM.from_pretrained", fail)
    with pytest.raises(ModelError, match=f"{folder}: its weights cannot be read .*of its own"):
        load_plm(folder, "x")


def test_load_plm_encoder_without_head_needs_classification(tmp_path):
    torch.manual_seed(0)
    encoder = BertModel(model_of("bert").config)
    folder = save_plm(encoder, tmp_path)
    with pytest.raises(ModelError, match="head: classification"):
        load_plm(folder, "mini")
    plm = load_plm(write_record(folder, head="classification"), "mini")
    pooler = sum(p.numel() for p in encoder.pooler.parameters())
    assert plm.inventory.num_params == sum(p.numel() for p in encoder.parameters()) - pooler
    assert not [site for site in plm.inventory.sites if site.place.startswith("head")]
    assert inventory_of_config(read_config(folder), "classification").digest == plm.inventory.digest
    for key, value in encoder.state_dict().items():
        if not key.startswith("pooler"):
            assert torch.equal(plm.model.state_dict()[f"bert.{key}"], value)


def refusal(check, folder: Path) -> str:
    """Return the part of an error message about the head, or an empty text."""
    try:
        check(folder, "x", "lm")
    except ModelError as error:
        return str(error).partition("(the weights lack")[0]
    return ""


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "4KB"}], ids=["one file", "shards"])
@pytest.mark.parametrize("saved", ["with its head", "without", "without, tied"])
@pytest.mark.parametrize("name", CONFIGS)
def test_check_of_the_weights_names_predicts_whether_a_plm_with_its_head_loads(tmp_path, name, saved, shards):
    model = model_of(name)
    family = FAMILIES[name]
    if saved != "with its head":
        model.config.tie_word_embeddings = saved.endswith("tied")
        if name == "t5":
            model.config.scale_decoder_outputs = saved.endswith("tied")
        family.drop_lm_head(model)
    save_plm(model, tmp_path, **shards)
    by_names, by_library = (refusal(check, tmp_path) for check in (check_source, check_folder))
    assert by_names == by_library
    assert bool(by_names) == (saved == "without" or (saved == "without, tied" and name == "bert"))
    check_source(tmp_path, "x", "classification")
    assert load_plm(tmp_path, "x", head="classification").head == "classification"


def test_every_architecture_has_the_name_of_its_head():
    assert set(LM_HEADS) == {model_type for family in FAMILIES.values() for model_type in family.classes}


@pytest.mark.parametrize("name", CONFIGS)
def test_load_plm_classification_drops_lm_head_in_every_family(tmp_path, name):
    plm = load_plm(write_record(save_plm(model_of(name), tmp_path), head="classification"), "x")
    present = sum(s.units for s in plm.inventory.sites if s.structure in ("entry", "bias") and s.exists)
    assert present == plm.inventory.num_params == sum(p.numel() for p in plm.model.parameters())
    assert not [site for site in plm.inventory.sites if site.place.startswith("head")]
    assert plm.family is FAMILIES[name]


def test_load_plm_prints_nothing(tmp_path, capfd):
    load_plm(save_plm(model_of("t5"), tmp_path), "x")
    capfd.readouterr()
    load_plm(tmp_path, "x")
    assert capfd.readouterr() == ("", "")
