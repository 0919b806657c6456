"""Output on terminals without UTF-8: characters that they lack are replaced, and printing never fails."""

from __future__ import annotations

import codecs
import io
import sys

ASCII = {
    **{"θ": "theta", "σ": "sigma", "ε": "epsilon", "√": "sqrt", "×": "x", "±": "+-", "≤": "<=", "≥": ">="},
    **{"…": "...", "–": "-", "−": "-", "·": ".", "→": "->", "’": "'", "“": '"', "”": '"', "\u00a0": " "},
    **dict(zip("▁▂▃▄▅▆▇█", "12345678", strict=True)),
}
"""Character -> its form in ASCII. All others, and bytes that are not UTF-8, become escapes such as \\u4e2d."""

HANDLER = "apet-ascii"
"""Name of the error handler of `codecs`."""


def replace_missing_characters() -> None:
    """Let standard output and standard error replace characters that their encoding lacks."""
    codecs.register_error(HANDLER, _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not in a notebook
            stream.reconfigure(errors=HANDLER)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    escaped = (ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in characters)
    return "".join(escaped), error.end
