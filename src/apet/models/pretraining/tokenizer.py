"""The ladder's tokenizer: byte-level BPE, trained on the corpus and saved as a fast tokenizer of the library."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from apet.core.atomic import atomic_dir
from apet.core.hashing import file_digest
from apet.core.records import check_files, read_json_record, write_json_record
from apet.data.corpus import read_corpus, read_corpus_record
from apet.errors import DataError
from apet.models.ladder import SENTINELS, SPECIAL

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
RECORD = "training.json"
"""Record of the corpus, and digests of the tokenizer's files."""


def train_tokenizer(corpus_folder: Path, vocab_size: int, out_folder: Path) -> None:
    """Train a tokenizer on the train split of a corpus.

    The tokenizer adds no special tokens to a text and pads on the right. Its first tokens are `SPECIAL`, for all
    families. Equal corpora give equal bytes.

    Args:
        corpus_folder: The corpus.
        vocab_size: Most tokens of the vocabulary.
        out_folder: The folder to make.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(read_corpus(corpus_folder, "train")["text"], trainer)
    pad, end, mask, unknown, first, last = SPECIAL[: -len(SENTINELS)]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        eos_token=end,
        mask_token=mask,
        unk_token=unknown,
        cls_token=first,
        sep_token=last,
        extra_special_tokens=list(SENTINELS),
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    assert fast.convert_tokens_to_ids(list(SPECIAL)) == list(range(len(SPECIAL)))
    origin = {"corpus": read_corpus_record(corpus_folder)["digest"], "vocabulary": vocab_size}
    with atomic_dir(out_folder) as folder:
        fast.save_pretrained(folder)
        files = {name: file_digest(folder / name) for name in TOKENIZER_FILES}
        write_json_record(folder / RECORD, {**origin, "files": files})


def check_tokenizer(folder: Path) -> None:
    """Verify a tokenizer of `train_tokenizer`.

    Args:
        folder: The folder.

    Raises:
        DataError: The folder contains no such tokenizer.
        CorruptError: A file has other bytes than the record names.
    """
    if not (folder / TOKENIZER_FILES[0]).is_file():
        raise DataError(f"{folder}: no {TOKENIZER_FILES[0]}. Make it with `apet train-tokenizer`.")
    fix = f"Delete {folder} and run `apet train-tokenizer` or the same `snakemake` command again."
    check_files(folder, read_json_record(folder / RECORD, fix)["files"], RECORD, fix)
