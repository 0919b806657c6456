"""The ladder's tokenizer: byte-level BPE, trained on the corpus, and saved as the library's own fast tokenizer."""

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
"""What a tokenizer was trained on, and the digests of its files."""


def train_tokenizer(corpus_folder: Path, vocabulary: int, out_folder: Path) -> None:
    """Write `out_folder` whole: a tokenizer of at most `vocabulary` words, trained on the corpus' train side.

    It adds no token of its own to a text, and pads on the right. `SPECIAL` are its first words, whatever the family.
    Equal corpora give equal bytes.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
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
    origin = {"corpus": read_corpus_record(corpus_folder)["digest"], "vocabulary": vocabulary}
    with atomic_dir(out_folder) as folder:
        fast.save_pretrained(folder)
        files = {name: file_digest(folder / name) for name in TOKENIZER_FILES}
        write_json_record(folder / RECORD, {**origin, "files": files})


def check_tokenizer(folder: Path) -> None:
    """Raises DataError where a folder holds no tokenizer of `train_tokenizer`, CorruptError where its bytes differ."""
    if not (folder / TOKENIZER_FILES[0]).is_file():
        raise DataError(f"{folder}: no {TOKENIZER_FILES[0]}. Make it with `apet train-tokenizer`.")
    remedy = (
        f"Delete {folder} and make it again (`apet train-tokenizer`, or the same `snakemake`): it comes out the same."
    )
    check_files(folder, read_json_record(folder / RECORD, remedy)["files"], RECORD, remedy)
