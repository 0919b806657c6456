"""Hugging Face folders of tiny PLMs, with a word-level tokenizer."""

from __future__ import annotations

import struct
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tiny import WORDS

SPECIAL = ("<pad>", "<unk>", "</s>", "[CLS]", "[MASK]", "[SEP]", "<extra_id_0>")


def save_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Save a tokenizer of WORDS words, the first of which are the special tokens of all families."""
    words = [*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), WORDS))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", cls_token="[CLS]",
        mask_token="[MASK]", sep_token="[SEP]", additional_special_tokens=["<extra_id_0>"],
    )  # fmt: skip
    fast.save_pretrained(folder)
    return fast


def save_plm(model: PreTrainedModel, folder: Path, **options) -> Path:
    """Save a model and a tokenizer in a folder. The options are those of `save_pretrained`."""
    model.save_pretrained(folder, **options)
    save_tokenizer(folder)
    return folder


def gguf(**changes: int) -> bytes:
    """A header with values of several types and one tensor; changes: counts that it says."""
    printed = {"tensors": 1, "keys": 3, "items": 2, "name": 1, "dimensions": 2, "size": 4} | changes
    text = lambda content: struct.pack("<Q", len(content)) + content  # noqa: E731
    return b"".join(
        [
            struct.pack("<4sIQQ", b"GGUF", 3, printed["tensors"], printed["keys"]),
            text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama"),
            text(b"llama.block_count") + struct.pack("<II", 4, 1),
            text(b"tokens") + struct.pack("<IIQ", 9, 8, printed["items"]) + text(b"a") + text(b"b"),
            struct.pack("<Q", printed["name"]) + b"w" + struct.pack("<I", printed["dimensions"]),
            struct.pack("<QQ", printed["size"], 2) + struct.pack("<IQ", 0, 0) + b"\0" * 64,
        ]
    )
