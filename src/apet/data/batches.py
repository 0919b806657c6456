"""From texts and label words to token ids. The prompt always survives whole; only the text is cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from apet.data.tasks import SLOT
from apet.errors import DataError, ParamsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    length: int,
    *,
    before: Sequence[int] = (),
    after: Sequence[int] = (),
) -> list[list[int]]:
    """Token ids of each text in its prompt, at most `length` of them, not padded.

    The parts of the prompt and the text are tokenised apart and joined: tokenised as one string, a token might span
    the seam, and a cut at `length` would lose the prompt's end, where the label is read. A space before the slot goes
    to the text, because tokenizers keep a space with the word that follows it; spaces around the text itself are
    dropped, so that "good" and " good" give the same ids. `before` and `after` are ids that a family puts around
    (such as [CLS], [MASK] and [SEP]) and count into `length`. No special token is added otherwise.

    ParamsError if the prompt leaves no room for a token of text.
    """
    head, tail = prompt.split(SLOT)
    lead = " " if head.endswith(" ") else ""
    start = [*before, *_ids(tokenizer, [head[: len(head) - len(lead)]])[0]]
    end = [*_ids(tokenizer, [tail])[0], *after]
    room = length - len(start) - len(end)
    if room < 1:
        raise ParamsError(f"length is {length}; the prompt {prompt!r} alone takes {length - room} tokens.")
    return [[*start, *ids[:room], *end] for ids in _ids(tokenizer, [lead + text.strip() for text in texts])]


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
