"""Whether a document shares words with a text that must stay unseen."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

RUN = 12  # words in a row that make two texts share content
SHORTEST = 5  # a text of fewer words says too little to be looked for inside another


class NgramIndex:
    """Knows a set of normalised texts by 64-bit hashes of their word runs.

    A collision of hashes can only report a document too many, never miss one.
    """

    def __init__(self, normals: Iterable[str]) -> None:
        self._codes = _WordCodes()
        runs: dict[int, list[np.ndarray]] = {n: [] for n in range(SHORTEST, RUN + 1)}
        wholes: dict[int, list[np.ndarray]] = {n: [] for n in range(SHORTEST, RUN + 1)}
        for normal in normals:
            hashes = self._runs(normal)
            for n in hashes:
                runs[n].append(hashes[n])
            longest = max(hashes, default=0)
            if longest and len(hashes[longest]) == 1:
                wholes[longest].append(hashes[longest])
        self._parts = {n: _Known(arrays) for n, arrays in runs.items()}
        self._wholes = {n: _Known(arrays) for n, arrays in wholes.items() if arrays}

    def overlaps(self, normal: str) -> bool:
        """Whether the text and a guarded one share RUN words in a row, or the shorter stands whole in the other.

        Texts of fewer than SHORTEST words neither touch nor are touched.
        """
        runs = self._runs(normal)
        if not runs:
            return False
        longest = max(runs)
        if self._parts[longest].meets(runs[longest]):
            return True
        return any(whole.meets(runs[n]) for n, whole in self._wholes.items() if n in runs)

    def _runs(self, normal: str) -> dict[int, np.ndarray]:
        """Hashes of all runs of n words, n from SHORTEST to RUN: polynomials in the words' codes, modulo 2**64."""
        codes = np.array([self._codes[word] for word in normal.split()], np.uint64)
        found, hashes = {}, codes
        for n in range(2, min(RUN, len(codes)) + 1):
            hashes = hashes[:-1] * np.uint64(0x9E3779B97F4A7C15) + codes[n - 1 :]
            if n >= SHORTEST:
                found[n] = hashes
        return found


class _WordCodes(dict[str, int]):
    def __missing__(self, word: str) -> int:
        self[word] = int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "big")
        return self[word]


class _Known:
    """A set of hashes, asked for many at a time: a table of their last bits answers most, a search the rest."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self._sorted = np.sort(np.concatenate(arrays)) if arrays else np.empty(0, np.uint64)
        self._mask = np.uint64((1 << (4 * len(self._sorted) + 1).bit_length()) - 1)
        self._table = np.zeros(int(self._mask) + 1, bool)
        self._table[self._sorted & self._mask] = True

    def meets(self, hashes: np.ndarray) -> bool:
        """Whether one of these hashes is in the set."""
        likely = hashes[self._table[hashes & self._mask]]
        if not len(likely):
            return False
        places = np.minimum(np.searchsorted(self._sorted, likely), len(self._sorted) - 1)
        return bool((self._sorted[places] == likely).any())
