"""Datasets of the hub: parquet files at a revision, streamed. No code of a repository runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from apet.core.validation import CLOSED, DISTINCT, LIST, Line, matching
from apet.data.schema import SPLITS, Record, SourceConfig
from apet.errors import DataError, truncated_repr, without_secrets

HubName = Annotated[str, matching(r"[^@\x00-\x1f\x7f]+", "a name in one line, without @")]


def _pattern(value: str) -> str:
    try:
        fields = list(Formatter().parse(value))
    except ValueError:
        fields = [("", "", None, None)]
    if any(name not in (None, "config", "split") or form or change for _, name, form, change in fields):
        raise ValueError(f"expected only {{config}} and {{split}} in braces, got {truncated_repr(value)}.")
    return value


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class HubSource(SourceConfig):
    """A dataset of the hub."""

    kind: ClassVar[str] = "hub"

    dataset: HubName
    """Repository of the dataset, such as nyu-mll/glue."""
    config: HubName
    """Name of its configuration (subset)."""
    revision: HubName
    """A commit, or a branch, whose content may change."""
    files: Annotated[Line, AfterValidator(_pattern)] = "{config}/{split}/*.parquet"
    """Paths of the parquet files. The default is the layout of refs/convert/parquet, the hub's branch of copies."""
    splits: Annotated[tuple[Literal["train", "validation", "test"], ...], LIST, DISTINCT] = SPLITS  # type: ignore[assignment]
    """Splits of the task that the dataset has, with labels."""

    def identity(self, splits: Mapping[str, str]) -> dict[str, Any]:
        """Return plain values that determine the rows, except for the content of a branch."""
        names = {key: getattr(self, key) for key in ("dataset", "config", "revision", "files")}
        return {"kind": self.kind, **names, "splits": list(self.splits), **self.mapping()}

    def notes(self, splits: Mapping[str, str]) -> list[str]:
        """Return nothing: a source of this kind has no files that are not read."""
        return []

    def records(self, task: str, splits: Mapping[str, str], wheels_folder: Path) -> Iterator[Record]:
        """Yield the rows. Raises DataError if the hub cannot be reached or lacks a file."""
        for split in self.splits:
            theirs = splits[split]
            location = f"{self.dataset}/{self.config}/{theirs}"
            path = self.files.format(config=self.config, split=theirs)
            try:
                for number, values in enumerate(stream(f"hf://datasets/{self.dataset}@{self.revision}/{path}"), 1):
                    yield Record(values, split, f"{location}, row {number}")
            except Exception as error:  # the hub's client and its network library have many classes of errors
                cause = without_secrets(f"{type(error).__name__}: {error}")
                raise DataError(
                    f"{location}: download failed ({cause}). Run `apet prepare-task --task {task} …` on a machine with "
                    f"network and copy the folder that it writes, or set `sources: {{{task}: FOLDER}}` in the study, "
                    f"with the rows in FOLDER/{task}/{theirs}.jsonl (or csv, tsv, parquet)."
                ) from None


def stream(files: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of parquet files (a pattern), a few at a time in memory. The only function that asks the hub."""
    from datasets import load_dataset
    from pyarrow.dataset import ParquetFragmentScanOptions

    # Without the buffer and with small batches, half of the memory.
    few = {"batch_size": 100, "fragment_scan_options": ParquetFragmentScanOptions(pre_buffer=False)}
    return iter(load_dataset("parquet", data_files=files, split="train", streaming=True, **few))
