"""Tables and numbers as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

UNITS = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))


def table(rows: Iterable[Sequence[str]], indent: str = "", numbers: bool = False) -> list[str]:
    """Format rows as lines with aligned columns.

    Args:
        rows: Cells of the table, of equal number in each row; the first row is the header.
        indent: Text before each line.
        numbers: True to align all columns but the first to the right.

    Returns:
        One line per row.
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        (
            indent
            + "  ".join(
                _pad(text, width, numbers and n > 0) for n, (text, width) in enumerate(zip(row, widths, strict=True))
            )
        ).rstrip()
        for row in rows
    ]


def _pad(text: str, width: int, right: bool) -> str:
    return text.rjust(width) if right else text.ljust(width)


def format_count(count: int) -> str:
    """Format a count in at most five characters: 950, 12.3k, 123k, 1.2M."""
    if count < 10**4:
        return str(count)
    # The unit is that of the rounded count, or 999,960 would be a thousand thousands.
    rounded = int(float(f"{count:.3g}"))
    size, unit = next((size, unit) for size, unit in UNITS if rounded >= size)
    return f"{count / size:.{int(rounded < 100 * size)}f}{unit}"


def format_bytes(number: float) -> str:
    """Format bytes in a unit of powers of 1000: 950 B, 1.5 kB, 12 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            break
        number /= 1000
    return f"{number:,.0f} {unit}" if number >= 10 or unit == "B" else f"{number:.1f} {unit}"


def format_hours(hours: float) -> str:
    """Format hours without a unit: 0, 0.25, 1,234."""
    return f"{hours:,.0f}" if hours >= 10 or not hours else f"{hours:.2g}"


def format_rounded(number: float) -> str:
    """Format a number with two significant digits: 0, 2.1e+12."""
    return f"{number:.2g}" if number else "0"
