"""Words of a text in any script: letters and digits with their combining marks."""

from __future__ import annotations

import re
import unicodedata

ASCII_WORD = re.compile(r"[^\W_]+", re.ASCII)


class _Spaces(dict[int, str]):
    """Code point -> itself if it is a letter, a digit or a combining mark, else a space."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        self[code] = char if char.isalnum() or unicodedata.category(char)[0] == "M" else " "
        return self[code]


_SPACES = _Spaces()


def words(text: str) -> list[str]:
    """Return the words of a text.

    A mark belongs to the letter or digit before it (the vowel signs of Hindi, the tones of Thai). Without one, as after
    an emoji, it belongs to no word.

    Args:
        text: Any text.

    Returns:
        Its words, in their own case.
    """
    if text.isascii():
        return ASCII_WORD.findall(text)
    parts = text.translate(_SPACES).split()
    return [word for part in parts if (word := part if part[0].isalnum() else _without_first_marks(part))]


def _without_first_marks(part: str) -> str:
    first = next((place for place, char in enumerate(part) if char.isalnum()), len(part))
    return part[first:]
