"""Tokenizers of the kinds that repositories of the hub hold, trained on a few sentences, as files in a folder."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaTokenizer

SENTENCE = "good film morning was topic business input output text the of to no yes question sentence Input Topic"
WORDS = SENTENCE.split()
CORPUS = [" ".join(random.Random(n).choices(WORDS, k=9)) + random.Random(n).choice(".!?:") for n in range(500)]
GPT4 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def write_json(path: Path, values: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def sentencepiece_model(kind: str, size: int, **ids: int) -> bytes:
    """Train a SentencePiece model of kind unigram or bpe. ids: the ids of its special tokens."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=file, model_type=kind, vocab_size=size, minloglevel=2,
        hard_vocab_limit=False, byte_fallback=kind == "bpe", add_dummy_prefix=True, num_threads=1, **ids,
    )  # fmt: skip
    return file.getvalue()


def spiece(folder: Path) -> None:
    """T5: `spiece.model`, without `tokenizer.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(sentencepiece_model("unigram", 70, pad_id=0, eos_id=1, unk_id=2, bos_id=-1))
    sentinels = [f"<extra_id_{number}>" for number in range(100)]
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "additional_special_tokens": sentinels}
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "tokenizer_config.json", {**special, "extra_ids": 100})


def llama2(folder: Path) -> None:
    """Llama 2: `tokenizer.model` of BPE with bytes, which begins every text with <s> and a space."""
    folder.mkdir(parents=True, exist_ok=True)
    model = sentencepiece_model("bpe", 360, unk_id=0, bos_id=1, eos_id=2, pad_id=-1)
    (folder / "tokenizer.model").write_bytes(model)
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    added = {"add_bos_token": True, "add_eos_token": False}
    write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "legacy": False, **added, **named}
    )


def prepending(folder: Path) -> None:
    """Mistral's `tokenizer.json`: a normalizer adds the space, so that it is doubled before a text with a space."""
    llama2(folder)
    tokenizer = LlamaTokenizer.from_pretrained(folder).backend_tokenizer
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = None  # type: ignore[assignment]
    (folder / "tokenizer.model").unlink()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", {**config, "tokenizer_class": "PreTrainedTokenizerFast"})


def byte_level(folder: Path, begin: str | None = None, end: str | None = None, split: str | None = None) -> None:
    """BLOOM, Pythia, SmolLM2 and Llama 3: `tokenizer.json` of byte-level BPE. begin, end: tokens that it adds."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    parts = [] if split is None else [pre_tokenizers.Split(Regex(split), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*parts, byte])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<pad>", "<bos>", "<eos>"], initial_alphabet=sorted(alphabet),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    if begin or end:
        single = [*([begin] if begin else []), "$A", *([end] if end else [])]
        special = [(token, tokenizer.token_to_id(token)) for token in (begin, end) if token]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **named})


def wordpiece(folder: Path) -> None:
    """BERT: only `vocab.txt`."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [prefix + letter for letter in "abcdefghijklmnopqrstuvwxyz" for prefix in ("", "##")]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = dict.fromkeys([*special, *".,:!?", *letters, *(word.lower() for word in WORDS)])
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")


KINDS = {
    "bert": ("bert", wordpiece),
    "t5": ("t5", spiece),
    "bloom": ("bloom", byte_level),
    "bloom with <bos>": ("bloom", lambda folder: byte_level(folder, "<bos>")),
    "pythia": ("gpt_neox", byte_level),
    "pythia with <bos>": ("gpt_neox", lambda folder: byte_level(folder, "<bos>")),
    "llama without <s>": ("llama", byte_level),
    "llama 2": ("llama", llama2),
    "llama with an end": ("llama", lambda folder: byte_level(folder, "<bos>", "<eos>")),
    "llama 3": ("llama", lambda folder: byte_level(folder, "<bos>", split=GPT4)),
    "mistral": ("llama", prepending),
}
"""Kind -> (family, function that writes the tokenizer's files)."""
