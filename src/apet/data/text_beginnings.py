"""Beginnings of long texts whose token ids are the first token ids of the text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOUNDARY = re.compile("[0-9A-Za-z](?= [0-9A-Za-z])")
"""The character before a space at which a text can be cut."""

SPANNING = re.compile("[0-9A-Za-z][ ▁Ġ]")
"""Part of a token that spans such a space, in a vocabulary of words, of SentencePiece or of bytes."""

LETTERS = re.compile(r"(?<=[^\W\d_]{4})(?=[^\W\d_]{4})")
"""A place between four letters and four others, at which a text without spaces may be cut. Patterns of tokenizers, such
as that of an apostrophe with `re`, do not look as far."""

WINDOW = 16
"""Characters on each side of a cut that are normalised together, to see whether the normalisation changes there."""


class Beginnings:
    """Beginnings of texts for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer

    def beginning(self, text: str, size: int) -> str:
        """Return a beginning whose ids are the first ids of the text.

        It ends before a space between letters or digits if no token of the vocabulary spans one. Otherwise it ends
        between two letters that no token of the vocabulary contains in this order: then no token of the text spans the
        place, and the tokens before it depend only on the text before it.

        Args:
            text: Any text.
            size: Most characters of the beginning; it has at least half as many.

        Returns:
            The beginning, or the text if it is not longer or has no such place, as one letter a million times.
        """
        if len(text) <= size:
            return text
        if self._splits_at_spaces and (ends := [match.end() for match in BOUNDARY.finditer(text, size // 2, size)]):
            return text[: ends[-1]]
        places = (match.end() for match in LETTERS.finditer(text, size // 2, size))
        return next((text[:place] for place in places if self._is_cut(text, place)), text)

    @cached_property
    def _splits_at_spaces(self) -> bool:
        return not any(map(SPANNING.search, self.tokenizer.get_vocab()))

    @cached_property
    def _kind(self) -> str:
        """Kind of a model that can be cut inside a word: Unigram or BPE; WordPiece only at white space; or nothing."""
        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None or any(token.single_word for token in self.tokenizer.added_tokens_decoder.values()):
            return ""
        model, kind = backend.model, type(backend.model).__name__
        depends_on_end = kind == "BPE" and (model.ignore_merges or model.end_of_word_suffix or model.dropout)
        return "" if depends_on_end or kind not in ("BPE", "Unigram", "WordPiece") else kind

    @cached_property
    def _pairs(self) -> set[tuple[bytes, bytes]]:
        """Neighbours in tokens: UTF-8 of characters, or of their parts at the ends of a token of bytes."""
        return {pair for token in self.tokenizer.get_vocab() for form in _forms(token) for pair in _neighbours(form)}

    def _is_cut(self, text: str, place: int) -> bool:
        """Test whether no token of the text spans a place, given the letters around it."""
        if not self._kind:
            return False
        before, after = text[max(0, place - WINDOW) : place], text[place : place + WINDOW]
        left, both = self._normalised(before), self._normalised(before + after)
        if not both.startswith(left) or not left or left == both:
            return False
        last, first = left[-1], both[len(left)]
        if self._kind == "WordPiece":
            return last.isspace() or first.isspace()
        ends, starts = last.encode(), first.encode()
        return self._pairs.isdisjoint(
            (ends[i:], starts[:j]) for i in range(len(ends)) for j in range(1, len(starts) + 1)
        )

    def _normalised(self, text: str) -> str:
        normalizer = self.tokenizer.backend_tokenizer.normalizer
        return normalizer.normalize_str(text) if normalizer else text


def _byte_alphabet() -> dict[str, int]:
    """Return the characters that stand for bytes in a byte-level vocabulary: printable ones for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTES = _byte_alphabet()


def _forms(token: str) -> Iterator[bytes]:
    """Yield the texts that a token may stand for: its characters, and bytes if all of its characters stand for some."""
    yield token.encode(errors="surrogatepass")
    if not token.isascii() and all(character in BYTES for character in token):
        yield bytes(BYTES[character] for character in token)


CHARACTER = re.compile(rb"[\x00-\x7f]|[\xc0-\xff][\x80-\xbf]*|[\x80-\xbf]+")
"""UTF-8 of a character, or a part of one at the end or beginning of a token."""


def _neighbours(form: bytes) -> Iterator[tuple[bytes, bytes]]:
    return pairwise(CHARACTER.findall(form))
