"""Search for documents that share words with texts that must not be trained on."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

NGRAM = 12
"""Consecutive words that two overlapping texts share."""
MIN_WORDS = 5
"""Shorter texts are too unspecific to be searched for in others."""


class NgramIndex:
    """A set of normalised texts, as 64-bit hashes of their n-grams of MIN_WORDS to NGRAM words.

    A collision of hashes can only report one document too many, and never misses one.
    """

    def __init__(self, normalised: Iterable[str]) -> None:
        self._codes = _WordCodes()
        ngrams: dict[int, list[np.ndarray]] = {n: [] for n in range(MIN_WORDS, NGRAM + 1)}
        full_texts: dict[int, list[np.ndarray]] = {n: [] for n in range(MIN_WORDS, NGRAM + 1)}
        for text in normalised:
            hashes = self._hashes(text)
            for n in hashes:
                ngrams[n].append(hashes[n])
            longest = max(hashes, default=0)
            if longest and len(hashes[longest]) == 1:
                full_texts[longest].append(hashes[longest])
        self._ngrams = {n: _HashSet(arrays) for n, arrays in ngrams.items()}
        self._full_texts = {n: _HashSet(arrays) for n, arrays in full_texts.items() if arrays}

    def overlaps(self, normalised: str) -> bool:
        """Check if a text and an indexed one share NGRAM consecutive words, or if one contains the other.

        Args:
            normalised: The normalised text.

        Returns:
            True if they overlap. Texts of fewer than MIN_WORDS words never do.
        """
        hashes = self._hashes(normalised)
        if not hashes:
            return False
        longest = max(hashes)
        if self._ngrams[longest].intersects(hashes[longest]):
            return True
        return any(texts.intersects(hashes[n]) for n, texts in self._full_texts.items() if n in hashes)

    def _hashes(self, normalised: str) -> dict[int, np.ndarray]:
        """Map n to the hashes of all n-grams: polynomials in the words' codes, modulo 2**64."""
        codes = np.array([self._codes[word] for word in normalised.split()], np.uint64)
        by_length, hashes = {}, codes
        for n in range(2, min(NGRAM, len(codes)) + 1):
            hashes = hashes[:-1] * np.uint64(0x9E3779B97F4A7C15) + codes[n - 1 :]
            if n >= MIN_WORDS:
                by_length[n] = hashes
        return by_length


class _WordCodes(dict[str, int]):
    def __missing__(self, word: str) -> int:
        self[word] = int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "big")
        return self[word]


class _HashSet:
    """Hashes: a table of their last bits answers most queries, a binary search the others."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self._sorted = np.sort(np.concatenate(arrays)) if arrays else np.empty(0, np.uint64)
        self._mask = np.uint64((1 << (4 * len(self._sorted) + 1).bit_length()) - 1)
        self._table = np.zeros(int(self._mask) + 1, bool)
        self._table[self._sorted & self._mask] = True

    def intersects(self, hashes: np.ndarray) -> bool:
        likely = hashes[self._table[hashes & self._mask]]
        if not len(likely):
            return False
        positions = np.minimum(np.searchsorted(self._sorted, likely), len(self._sorted) - 1)
        return bool((self._sorted[positions] == likely).any())
