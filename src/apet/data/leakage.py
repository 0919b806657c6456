"""Whether a document shares words with a text that must stay unseen."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

RUN = 12  # words in a row that make two texts share content
SHORTEST = 5  # a text of fewer words says too little to be looked for inside another


class Guard:
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
        self._parts = {n: _merged(arrays) for n, arrays in runs.items()}
        self._wholes = {n: _merged(arrays) for n, arrays in wholes.items() if arrays}

    def touches(self, normal: str) -> bool:
        """Whether the text and a guarded one share RUN words in a row, or the shorter stands whole in the other.

        Texts of fewer than SHORTEST words neither touch nor are touched.
        """
        runs = self._runs(normal)
        if not runs:
            return False
        longest = max(runs)
        if _meet(runs[longest], self._parts[longest]):
            return True
        return any(_meet(runs[n], whole) for n, whole in self._wholes.items() if n in runs)

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


def _merged(arrays: list[np.ndarray]) -> np.ndarray:
    return np.sort(np.concatenate(arrays)) if arrays else np.empty(0, np.uint64)


def _meet(hashes: np.ndarray, known: np.ndarray) -> bool:
    if not len(known):
        return False
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return bool((known[places] == hashes).any())
