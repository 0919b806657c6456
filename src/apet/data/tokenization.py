"""Tokenisation of prompts, texts and label words. Only the texts are truncated, never the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from apet.data.task_config import PLACEHOLDER
from apet.data.text_beginnings import Beginnings
from apet.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


SPACE = "▁"
"""SentencePiece's space, with which its tokens of a new word begin."""

ANCHOR = "\n"
"""A text before a continuation, because SentencePiece tokenizers add a space to the beginning of every text."""


CHARACTERS = 8
"""Characters of a long text that are tokenised for each of its tokens; more if they do not suffice."""


class Encoding(NamedTuple):
    """Encoded rows."""

    ids: list[list[int]]
    """Token ids of each row, without padding."""
    cut: list[bool]
    """Whether each row was truncated."""


class EncodedPrompt(NamedTuple):
    """A prompt as token ids around its texts."""

    columns: list[str]
    """Text columns in the prompt's order."""
    leads: list[str]
    """What each text begins with: a space or nothing."""
    ids: list[list[int]]
    """Token ids before, between and after the texts."""
    continued: bool
    """Whether the first text continues words of the prompt, as the others do."""


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str, before: Sequence[int] = (), after: Sequence[int] = ()
) -> EncodedPrompt:
    """Tokenise the parts of a prompt. The arguments are those of `encode`."""
    # Split at its placeholders, a prompt is: words, column, words, column, …, words.
    words, columns = PLACEHOLDER.split(prompt)[::2], PLACEHOLDER.split(prompt)[1::2]
    leads = [" " if part.endswith(" ") else "" for part in words[:-1]] + [""]
    first, *others = (part[: len(part) - len(lead)] for part, lead in zip(words, leads, strict=True))
    ids = [*_ids(tokenizer, [first]), *continuation_ids(tokenizer, others)]
    ids = [[*before, *ids[0]], *ids[1:-1], [*ids[-1], *after]]
    return EncodedPrompt(columns, leads[:-1], ids, bool(first))


def encode(
    texts: Mapping[str, Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    length: int,
    *,
    before: Sequence[int] = (),
    after: Sequence[int] = (),
) -> Encoding:
    """Encode rows in their prompt.

    The parts of the prompt and the texts are tokenised separately and concatenated: otherwise a token could span both,
    and truncation would remove the end of the prompt, where the label is predicted. If a row is too long, its longest
    text is truncated first. A space before a placeholder goes to the text, because tokenizers keep a space with the
    following word; other spaces around a text are dropped, so that "good" and " good" have the same ids. The ids are
    those of the filled prompt as one text, unless a token of that spans two parts.

    Args:
        texts: Text column -> one text for each row.
        tokenizer: The PLM's tokenizer.
        prompt: The prompt, with each text column once in braces.
        length: Most tokens of a row.
        before: Ids before each row, such as [CLS] or <s>, which count towards `length`. No other special tokens are
            added.
        after: Ids after each row, such as [MASK] and [SEP], which count too.

    Returns:
        Token ids, and whether each row was truncated.

    Raises:
        ConfigError: If the prompt leaves less than one token for each text.
    """
    columns, leads, fixed, continued = encode_prompt(tokenizer, prompt, before, after)
    room = length - sum(map(len, fixed))
    if room < len(columns):
        raise ConfigError(
            f"max_length: expected at least {length - room + len(columns)} for the prompt {prompt!r}, got {length}."
        )
    stripped = [[lead + text.strip() for text in texts[name]] for name, lead in zip(columns, leads, strict=True)]
    ids, cut = [], []
    for row in _first_ids(tokenizer, stripped, room, continued):
        sizes = shares([len(part) for part in row], room)
        cut.append(sum(map(len, row)) > sum(sizes))
        ids.append(
            [*fixed[0], *(i for part, n, end in zip(row, sizes, fixed[1:], strict=True) for i in part[:n] + end)]
        )
    return Encoding(ids, cut)


def encode_targets(
    targets: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, end: Sequence[int] = ()
) -> Encoding:
    """Encode answers as they follow the prompt, at most `length` tokens with the ids of `end` (such as </s>)."""
    room = length - len(end)
    rows = [ids for (ids,) in _first_ids(tokenizer, [[" " + target.strip() for target in targets]], room, True)]
    return Encoding([[*ids[:room], *end] for ids in rows], [len(ids) > room for ids in rows])


def shares(sizes: Sequence[int], room: int) -> list[int]:
    """Reduce sizes so that their sum fits into `room`.

    The largest are reduced to one level. A remainder goes to the largest, of equal ones to the first.

    Args:
        sizes: Tokens of each part.
        room: Most tokens of all parts together.

    Returns:
        The tokens that each part keeps, in the same order.
    """
    kept, left = list(sizes), room
    smallest_first = sorted(range(len(sizes)), key=lambda number: (sizes[number], -number))
    for rank, number in enumerate(smallest_first):
        kept[number] = min(sizes[number], left // (len(sizes) - rank))
        left -= kept[number]
    return kept


def label_ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each label word. Raises DataError if a word has none, or if two have the same."""
    encoded = continuation_ids(tokenizer, list(words))
    for ids in encoded:
        same = [word for word, others in zip(words, encoded, strict=True) if others == ids]
        if not ids or len(same) > 1:
            raise DataError(f"label words {same}: expected distinct token ids, got {ids} for each. Choose other words.")
    return encoded


def continuation_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Return the token ids of texts that continue another one, without a space that the tokenizer adds to a text."""
    own = _ids(tokenizer, texts)
    anchor = anchor_ids(tokenizer)
    if not (anchor and texts):
        return own
    after = _ids(tokenizer, [ANCHOR + text for text in texts])
    size = len(anchor)
    return [ids[size:] if ids[:size] == anchor else alone for ids, alone in zip(after, own, strict=True)]


def anchor_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids of ANCHOR if the tokenizer adds a space to the beginning of a text, and else none."""
    (anchor,) = _ids(tokenizer, [ANCHOR])
    return anchor if anchor and str(tokenizer.convert_ids_to_tokens(anchor)[0]).startswith(SPACE) else []


def _first_ids(
    tokenizer: PreTrainedTokenizerBase, columns: Sequence[list[str]], room: int, continued: bool
) -> list[tuple[list[int], ...]]:
    """Tokenise the texts of rows as far as `shares` needs them.

    Of a long text, only a beginning is tokenised, whose ids are the first ids of the text. It suffices if it has more
    ids than there is room for, and more than the other texts of its row, because `shares` then does not depend on its
    exact number. Otherwise a longer beginning is tokenised, and at last the text.

    Args:
        tokenizer: The tokenizer.
        columns: Texts of each column.
        room: Most ids of a row that are kept.
        continued: Whether the first column continues another text, as the others do.

    Returns:
        For each row the ids of its texts, all of them or more than are kept.
    """
    rows: dict[int, tuple[list[int], ...]] = {}
    pending, size = list(range(len(columns[0]) if columns else 0)), CHARACTERS * (max(room, 0) + 1)
    beginnings = Beginnings(tokenizer)
    while pending:
        parts = [[beginnings.beginning(texts[row], size) for row in pending] for texts in columns]
        encoded = [
            continuation_ids(tokenizer, part) if number or continued else _ids(tokenizer, part)
            for number, part in enumerate(parts)
        ]
        for row, starts, ids in zip(pending, zip(*parts, strict=True), zip(*encoded, strict=True), strict=True):
            sizes = [len(part) for part in ids]
            unfinished = [n for n, start in enumerate(starts) if len(start) < len(columns[n][row])]
            others = [count for n, count in enumerate(sizes) if n not in unfinished]
            if not unfinished or (len(unfinished) == 1 and sizes[unfinished[0]] > max([room, *others])):
                rows[row] = ids
        pending, size = [row for row in pending if row not in rows], 4 * size
    return [rows[row] for row in range(len(rows))]


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
