"""Tokenizers of PLMs: their files, and ids that a PLM has no embedding for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from apet.errors import ModelError, first_line, first_names
from apet.models.checkpoint_files import TOKENIZERS
from apet.models.families import Family, SpecialTokens


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read the tokenizer in a folder. Raises ModelError if a file is missing that it needs."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise ModelError(f"{folder}: its tokenizer cannot be read ({first_line(error)}).") from None
    # Without these files the library returns a tokenizer that knows only the special tokens.
    needed = [] if (folder / TOKENIZERS[0]).is_file() else sorted({*tokenizer.vocab_files_names.values()})
    if missing := [file for file in needed if file != TOKENIZERS[0] and not (folder / file).is_file()]:
        kind = type(tokenizer).__name__
        raise ModelError(
            f"{folder}: no {first_names(missing)}, which its tokenizer ({kind}) needs, and no {TOKENIZERS[0]}."
        )
    return tokenizer


def load_tokenizer(
    folder: Path, family: Family, model: PreTrainedModel
) -> tuple[PreTrainedTokenizerBase, SpecialTokens]:
    """Read the tokenizer of a PLM and the special tokens that its family uses.

    Args:
        folder: The PLM's folder.
        family: Its family.
        model: The PLM, or one with the same shapes on the meta device.

    Returns:
        The tokenizer, and the ids around a text.

    Raises:
        ModelError: A file is missing, or the tokenizer does not belong to these weights.
    """
    tokenizer = read_tokenizer(folder)
    words = 1 + max(tokenizer.get_vocab().values(), default=-1)
    embeddings: Any = model.get_input_embeddings()
    rows = len(embeddings.weight)
    special_tokens = family.special_tokens(tokenizer)
    used: set[int | None] = {*special_tokens.before, *special_tokens.after, *special_tokens.decoder}
    if words > rows and not _exclude_from_texts(tokenizer, rows, used):
        raise ModelError(
            f"{folder}: its tokenizer has {words:,} words, and the word embeddings have {rows:,} rows. Use the "
            "tokenizer of these weights."
        )
    if None in used:
        raise ModelError(
            f"{folder}: its tokenizer lacks a token to begin, end or pad a text, or to mark the answer, which a "
            f"{model.config.model_type} model reads. Use the tokenizer of these weights."
        )
    return tokenizer, special_tokens


def _exclude_from_texts(tokenizer: PreTrainedTokenizerBase, rows: int, used: set[int | None]) -> bool:
    """Make a tokenizer never produce ids from `rows` on, such as that of a [PAD] without a row in the embeddings.

    Args:
        tokenizer: The tokenizer. Special tokens that are written in a text become ordinary words for it.
        rows: Rows of the word embeddings.
        used: Ids that the family puts around a text.

    Returns:
        Whether this is possible: only special tokens have such ids, and none of them is used.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return False
    beyond = {index for index in tokenizer.get_vocab().values() if index >= rows}
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    words = set(tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False).values())
    if not beyond <= special - words - used:
        return False
    tokenizer.split_special_tokens = True
    return True
