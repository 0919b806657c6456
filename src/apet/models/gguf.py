"""Validation of the header of a GGUF file, before a library trusts the counts in it.

The library's reader does not check counts: an array of 2**60 items in a file of 100 bytes keeps it busy for ever and
fills the memory. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 2 and 3, little-endian).
"""

from __future__ import annotations

import os
import struct
from math import prod
from pathlib import Path
from typing import IO

from apet.errors import ModelError

STRING, ARRAY = 8, 9
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Type of a value -> its size in bytes."""

MAX_ENTRIES, MAX_ITEMS, MAX_DIMENSIONS, MAX_NAME = 2**16, 2**20, 4, 2**16
"""Limits of keys or tensors, items of an array (a large vocabulary has a quarter as many), dimensions of a tensor, and
bytes of a name."""


def check_gguf(path: Path) -> None:
    """Refuse a GGUF file whose header is invalid or has counts that exceed the file, with a ModelError."""
    with open(path, "rb") as file:
        header = _Header(file, os.fstat(file.fileno()).st_size)
        try:
            header.walk()
        except (ValueError, struct.error) as error:
            raise ModelError(f"{path.name}: cannot be read as GGUF ({error} at byte {file.tell():,}).") from None


class _Header:
    """A reader that walks the header from front to back, and raises ValueError for a count that exceeds the file."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.size = file, size

    def walk(self) -> None:
        magic, version = self._numbers("<4sI")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError("expected GGUF version 2 or 3")
        tensors, keys = (self._at_most(n, MAX_ENTRIES, "entries") for n in self._numbers("<2Q"))
        for _ in range(keys):
            self._skip(self._length(MAX_NAME))
            self._value(self._numbers("<I")[0])
        for _ in range(tensors):
            self._skip(self._length(MAX_NAME))
            dimensions = self._at_most(self._numbers("<I")[0], MAX_DIMENSIONS, "dimensions")
            self._at_most(prod(self._numbers(f"<{dimensions}Q")), 8 * self.size, "numbers")
            self._skip(12)  # type and offset

    def _value(self, kind: int) -> None:
        if kind == STRING:
            self._skip(self._length(self.size))
        elif kind == ARRAY:
            kind, items = self._numbers("<IQ")
            self._at_most(items, MAX_ITEMS, "items")
            if kind == STRING:
                for _ in range(items):
                    self._skip(self._length(self.size))
            else:
                self._skip(items * self._width(kind))
        else:
            self._skip(self._width(kind))

    def _width(self, kind: int) -> int:
        if kind not in WIDTHS:
            raise ValueError(f"a value of type {kind}")
        return WIDTHS[kind]

    def _length(self, most: int) -> int:
        return self._at_most(self._numbers("<Q")[0], most, "bytes of text")

    def _skip(self, count: int) -> None:
        self._at_most(self.file.tell() + count, self.size, "bytes")
        self.file.seek(count, os.SEEK_CUR)

    def _numbers(self, form: str) -> tuple:
        return struct.unpack(form, self.file.read(struct.calcsize(form)))

    @staticmethod
    def _at_most(count: int, most: int, what: str) -> int:
        if count > most:
            raise ValueError(f"{count:,} {what}, at most {most:,} are possible")
        return count
