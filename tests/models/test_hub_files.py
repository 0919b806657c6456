"""Miniatures of the files in each registered repository of the hub, from the download to a forward pass or a cell.

The files are those that the repositories held when their entries were written: names, formats, and names of weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import apet
from apet.data.tokenization import encode
from apet.models.download import fetch_snapshot
from apet.models.families import FAMILIES
from apet.models.loading import load_plm
from apet.models.registry import ModelSource, registry
from apet.placement import Plan
from apet.tuning import TunedPLM
from hub_tokenizers import WORDS, byte_level, llama2, spiece, wordpiece, write_json
from tiny import CONFIGS

VOCABULARY = 400


class Files(NamedTuple):
    """Files of a repository."""

    formats: tuple[str, ...]
    """`safetensors` or `bin`, with `shards` if there are several files."""
    tokenizer: Callable[[Path], None]
    """Writes the tokenizer."""
    rename: Callable[[str], str] = lambda name: name
    """Name of a weight in the library's model -> name in the files."""
    extra: tuple[str, ...] = ()
    """Names of buffers in the files that the library no longer has."""


def old_norms(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def fast_bert(folder: Path) -> None:
    """`tokenizer.json` beside `vocab.txt`."""
    wordpiece(folder)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    config = folder / "config.json"
    tokenizer = AutoTokenizer.from_pretrained(folder) if config.is_file() else None
    assert tokenizer is not None
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))


def fast_llama(folder: Path) -> None:
    """`tokenizer.json` beside `tokenizer.model`."""
    llama2(folder)
    AutoTokenizer.from_pretrained(folder).backend_tokenizer.save(str(folder / "tokenizer.json"))


def gpt2(folder: Path) -> None:
    """`vocab.json` and `merges.txt` beside `tokenizer.json`."""
    byte_level(folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    write_json(folder / "vocab.json", model["vocab"])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<eos>"}
    write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False} | named
    )


BERT_BUFFERS = ("bert.embeddings.position_ids", "cls.seq_relationship.weight", "cls.seq_relationship.bias")
BOTH, SHARDS = ("safetensors", "bin"), ("safetensors shards", "bin shards")
MINI = Files(("bin",), wordpiece, extra=BERT_BUFFERS)
BERT = Files(BOTH, fast_bert, old_norms, BERT_BUFFERS)
T5 = Files(("bin",), spiece, extra=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",))
BLOOM = Files(BOTH, byte_level, lambda name: name.removeprefix("transformer."))
PYTHIA_BUFFERS = tuple(f"gpt_neox.layers.0.attention.{n}" for n in ("bias", "masked_bias", "rotary_emb.inv_freq"))
PYTHIA = Files(BOTH, byte_level, lambda name: name.replace("lm_head.", "embed_out."), PYTHIA_BUFFERS)
SMOLLM = Files(("safetensors",), gpt2)
REPOSITORIES = {
    "google/bert_uncased_L-4_H-512_A-8": MINI,
    "google-bert/bert-base-uncased": BERT,
    "google-bert/bert-large-uncased": BERT,
    "bigscience/bloom-560m": BLOOM,
    "bigscience/bloom-1b1": BLOOM,
    "bigscience/bloom-7b1": BLOOM._replace(formats=SHARDS),
    "google/t5-v1_1-small": T5,
    "google/t5-v1_1-base": T5,
    "google/t5-v1_1-xxl": T5,
    **{f"EleutherAI/pythia-{size}": PYTHIA for size in ("70m", "160m", "410m", "1b", "1.4b", "2.8b")},
    **{f"EleutherAI/pythia-{size}": PYTHIA._replace(formats=SHARDS) for size in ("6.9b", "12b")},
    **{f"HuggingFaceTB/SmolLM2-{size}": SMOLLM for size in ("135M", "360M", "1.7B")},
}
OTHERS = {
    "llama 2": ("llama", Files(SHARDS, fast_llama)),
    "llama 2, without tokenizer.json": ("llama", Files(("bin shards",), llama2)),
}
"""Repositories that a study may name, of kinds that the registry does not have."""

KINDS = {  # one of each: the others have the same files
    "bert mini": ("bert", MINI), "bert": ("bert", BERT), "bloom": ("bloom", BLOOM),
    "bloom-7b1": ("bloom", BLOOM._replace(formats=SHARDS)), "t5": ("t5", T5), "pythia": ("gpt_neox", PYTHIA),
    "pythia-12b": ("gpt_neox", PYTHIA._replace(formats=SHARDS)), "smollm": ("llama", SMOLLM), **OTHERS,
}  # fmt: skip


def repository(folder: Path, family: str, files: Files):
    """Write a miniature repository, and return its model."""
    torch.manual_seed(0)
    model = CONFIGS[family](VOCABULARY, 16)
    FAMILIES[family].untie_head(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.eval().config.save_pretrained(folder)
    if family == "t5":  # as the library wrote it when the repositories were made
        values = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
        values.pop("scale_decoder_outputs", None)
        write_json(folder / "config.json", values)
    tied = {"bert": {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}, "bloom": {"lm_head.weight"}}
    kept = [name for name in model.state_dict() if name not in tied.get(family, ())]
    tensors = {files.rename(name): model.state_dict()[name].clone() for name in kept}
    tensors |= {name: torch.zeros(2, 3) for name in files.extra}
    for form in files.formats:
        write_weights(folder, tensors, form)
    files.tokenizer(folder)
    return model


def write_weights(folder: Path, tensors: dict[str, torch.Tensor], form: str) -> None:
    kind, _, sharded = form.partition(" ")
    stem, save = ("model", save_file) if kind == "safetensors" else ("pytorch_model", torch.save)
    options = ({"format": "pt"},) if kind == "safetensors" else ()
    if not sharded:
        save(tensors, folder / f"{stem}.{kind}", *options)
        return
    names, index = list(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-0000{number}-of-00002.{kind}"
        save({name: tensors[name] for name in part}, folder / file, *options)
        index |= dict.fromkeys(part, file)
    write_json(folder / f"{stem}.{kind}.index.json", {"metadata": {}, "weight_map": index})


def test_every_registered_repository_has_a_miniature():
    assert set(REPOSITORIES) == {name for name, source in registry().items() if source.kind == "repo_id"}
    described = {(family, *files) for family, files in KINDS.values()}
    assert all((registry()[name].family, *files) in described for name, files in REPOSITORIES.items())


@pytest.mark.parametrize("kind", KINDS)
def test_repository_is_loaded_with_its_weights_and_tokenizer(tmp_path, kind):
    family, files = KINDS[kind]
    model = repository(tmp_path / "hub", family, files)
    own = AutoTokenizer.from_pretrained(tmp_path / "hub")
    fetch_snapshot(ModelSource("mine", {"folder": str(tmp_path / "hub")}), tmp_path / "out", Path())
    assert not list((tmp_path / "out").glob("*.bin*")) and list((tmp_path / "out").glob("*.safetensors"))
    shutil.rmtree(tmp_path / "hub")
    plm = load_plm(tmp_path / "out", "mine")
    special, texts = plm.special_tokens, ["good film to yes.", "no to the question"]
    assert own(texts)["input_ids"] == plm.tokenizer(texts)["input_ids"]
    unknown = own.unk_token_id if family in ("bert", "t5") else None
    assert not any(unknown in row for row in own(texts)["input_ids"])
    rows = encode({"text": texts[:1]}, plm.tokenizer, "{text}\nTopic:", 60, before=special.before, after=special.after)
    ids = torch.tensor(rows.ids)
    with TunedPLM(plm, Plan("none", 0, 0, ())) as tuned, torch.no_grad():
        found = tuned([], ids, torch.tensor([ids.shape[1]]), None)
        if family == "t5":
            expected = model(input_ids=ids, decoder_input_ids=torch.tensor([special.decoder])).logits[:, -1]
        else:
            expected = model(input_ids=ids).logits[:, -plm.family.answer_offset]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_t5_repository_becomes_a_trained_cell(tmp_path):
    """`spiece.model` and pickled weights, without `tokenizer.json`."""
    repository(tmp_path / "hub", "t5", T5)
    fetch_snapshot(ModelSource("mine", {"folder": str(tmp_path / "hub")}), tmp_path / "out", Path())
    plm = apet.load_model(tmp_path / "out", name="mine")
    task = {
        "name": "toy", "version": 1, "description": "Toy.", "type": "classification", "text_columns": ["text"],
        "prompt": "{text}\nTopic:", "verbalizer": {"good": " good", "film": " film"}, "metrics": ["accuracy"],
        "max_length": 32,
    }  # fmt: skip
    words = WORDS[2:16]
    rows = [
        {"text": f"{one} {two} {label}", "label": label} for one in words for two in words for label in ("good", "film")
    ]
    folder = apet.prepare_task(task, tmp_path / "task", rows)
    plan = apet.make_plan(plm, "uniform", 50)
    tuned = apet.train(plm, plan, folder, max_steps=3, num_evals=1)
    assert tuned.run["outcome"] == "ok" and tuned.theta.abs().max() > 0
    assert len(load_file(next((tmp_path / "out").glob("*.safetensors")))) > 40
