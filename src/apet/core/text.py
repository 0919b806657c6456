"""Words in messages and tables."""

from __future__ import annotations


def plural(count: int, noun: str) -> str:
    """Format a count with its noun: `1 cell`, `1,200 cells`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
