"""Words of a text in any script: letters and digits with their combining marks."""

from __future__ import annotations

import re
import unicodedata

ASCII_WORD = re.compile(r"[^\W_]+", re.ASCII)


class _Spaces(dict[int, str]):
    """Code point -> itself if it is a letter, a digit or a combining mark, else a space."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        self[code] = char if char.isalnum() or is_mark(char) else " "
        return self[code]


_SPACES = _Spaces()

UNSPACED = re.compile(
    "[\u0e01-\u0e3a\u0e40-\u0e4e"  # Thai, without its digits
    "\u0e80-\u0ecf\u0edc-\u0eff"  # Lao
    "\u1000-\u103f\u104a-\u108f\u109a-\u109f\ua9e0-\ua9ef\ua9fa-\ua9ff\uaa60-\uaa7f"  # Burmese
    "\u1780-\u17df"  # Khmer
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u303c\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese
    "\u3041-\u30ff\u3100-\u312f\u31a0-\u31bf\u31f0-\u31ff\uff66-\uff9f\U0001aff0-\U0001b16f]"  # kana, bopomofo
)
"""A letter or mark of a script that writes words without spaces between them."""


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


def characters(word: str) -> list[str]:
    """Split a word where its script has no spaces between words.

    Args:
        word: A run of characters without white space.

    Returns:
        Each letter of such a script with its marks, and the parts in other scripts.
    """
    if word.isascii() or not UNSPACED.search(word):
        return [word]
    parts: list[str] = []
    is_open = False  # the last part may get another letter
    for char in word:
        unspaced = UNSPACED.match(char) is not None
        if parts and (is_mark(char) or (is_open and not unspaced)):
            parts[-1] += char
        else:
            parts.append(char)
            is_open = not unspaced
    return parts


def is_mark(char: str) -> bool:
    """Check for a combining mark."""
    return unicodedata.category(char)[0] == "M"
