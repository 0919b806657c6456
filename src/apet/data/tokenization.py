"""From texts and label words to token ids. The prompt always survives whole; only the texts are cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from apet.data.task_config import SLOT
from apet.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoding(NamedTuple):
    """Token ids of each row, not padded, and how many tokens of its texts were cut."""

    ids: list[list[int]]
    cut: list[int]


def encode(
    texts: Mapping[str, Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    length: int,
    *,
    before: Sequence[int] = (),
    after: Sequence[int] = (),
) -> Encoding:
    """Token ids of each row in its prompt, at most `length` of them. `texts`: field → one text a row.

    The parts of the prompt and the texts are tokenised apart and joined: tokenised as one string, a token might span
    the seam, and a cut at `length` would lose the prompt's end, where the label is read. Where a row is too long, its
    longest text loses its end first. A space before a slot goes to the text, because tokenizers keep a space with the
    word that follows it; spaces around the text itself are dropped, so that "good" and " good" give the same ids.
    `before` and `after` are ids that a family puts around (such as [CLS], [MASK] and [SEP]) and count into `length`.
    No special token is added otherwise.

    ParamsError if the prompt leaves no room for a token of each text.
    """
    # Split at its slots, a prompt is: words, field, words, field, …, words.
    words, fields = SLOT.split(prompt)[::2], SLOT.split(prompt)[1::2]
    leads = [" " if part.endswith(" ") else "" for part in words[:-1]] + [""]
    fixed = _ids(tokenizer, [part[: len(part) - len(lead)] for part, lead in zip(words, leads, strict=True)])
    fixed = [[*before, *fixed[0]], *fixed[1:-1], [*fixed[-1], *after]]
    room = length - sum(map(len, fixed))
    if room < len(fields):
        raise ConfigError(f"length is {length}; the prompt {prompt!r} alone takes {length - room} tokens.")
    columns = [
        _ids(tokenizer, [lead + text.strip() for text in texts[field]])
        for field, lead in zip(fields, leads, strict=False)
    ]
    ids, cut = [], []
    for row in zip(*columns, strict=True):
        sizes = shares([len(part) for part in row], room)
        cut.append(sum(map(len, row)) - sum(sizes))
        ids.append(
            [*fixed[0], *(i for part, n, end in zip(row, sizes, fixed[1:], strict=True) for i in part[:n] + end)]
        )
    return Encoding(ids, cut)


def encode_targets(
    targets: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, end: Sequence[int] = ()
) -> Encoding:
    """Token ids of answers as they follow the prompt, each with the ids of `end` (such as </s>), at most `length`."""
    found = _ids(tokenizer, [" " + target.strip() for target in targets])
    room = length - len(end)
    return Encoding([[*ids[:room], *end] for ids in found], [max(0, len(ids) - room) for ids in found])


def shares(sizes: Sequence[int], room: int) -> list[int]:
    """How much of each size is kept so that all fit into `room`: the largest are cut down to one level, and a rest that
    cannot be shared goes to the largest, of equal ones to the first.
    """
    kept, left = list(sizes), room
    smallest_first = sorted(range(len(sizes)), key=lambda number: (sizes[number], -number))
    for rank, number in enumerate(smallest_first):
        kept[number] = min(sizes[number], left // (len(sizes) - rank))
        left -= kept[number]
    return kept


def label_ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[list[int]]:
    """Token ids of each label word, as they follow the prompt. DataError if a word has none, or two have the same."""
    found = _ids(tokenizer, list(words))
    for ids in found:
        same = [word for word, others in zip(words, found, strict=True) if others == ids]
        if not ids or len(same) > 1:
            raise DataError(f"label words {same}: the tokenizer gives the same ids {ids}; each must have its own.")
    return found


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
