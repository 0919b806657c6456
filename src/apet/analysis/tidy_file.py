"""The tidy table as files: Parquet with its own digest, CSV, and what each column means."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from apet.analysis.columns import COLUMNS, EMPTY, FLAT, SCHEMA, TYPES
from apet.config import Margins
from apet.errors import CorruptError, DataError
from apet.provenance import bytes_digest, write_bytes, write_text
from apet.sealed import BLANK, is_whole, seal_bytes

FORMAT = 2
"""Of tidy.parquet; another is not read. 1: without a digest of its own."""

ABOUT = ("study", "margins", "missing")
"""Keys of the Parquet file's metadata and of a frame's attrs."""
REMEDY = "`apet aggregate` makes it from the cells."


class Missing(list):
    """Missing cells in a frame's attrs, which pandas copies deeply at every step: thousands are not copied."""

    def __deepcopy__(self, memo: dict) -> Missing:
        return self


def write_tidy(
    frame: pd.DataFrame,
    folder: Path,
    study: str,
    margins: Margins | None = None,
    missing: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write `tidy.parquet`, `tidy.csv` without the column `rows`, and `tidy_columns.csv`, what each column means.

    study: its id; missing: model, task, placement, budget and reason of the study's cells that are not in the table.
    With the margins they stand in the Parquet file's metadata. Equal tables give equal bytes.
    """
    whole = {"margins": asdict(margins or Margins()), "missing": list(missing)}
    about = {"study": study, **{key: json.dumps(value) for key, value in whole.items()}}
    buffer = io.BytesIO()
    pq.write_table(_table(frame, about | {"format": str(FORMAT), "digest": BLANK}), buffer, compression="zstd")
    write_bytes(folder / "tidy.parquet", seal_bytes(buffer.getvalue()))
    write_text(folder / "tidy.csv", frame[FLAT].to_csv(index=False, lineterminator="\n"))
    columns = [(c.name, TYPES[c.dtype], EMPTY[c.empty], c.meaning) for c in COLUMNS]
    described = pd.DataFrame(columns, columns=["column", "type", "empty", "meaning"])
    write_text(folder / "tidy_columns.csv", described.to_csv(index=False, lineterminator="\n"))


def _table(frame: pd.DataFrame, about: Mapping[str, str]) -> pa.Table:
    """The frame for Parquet: each column with its meaning, and what the whole is about."""
    flat = pa.Table.from_pandas(frame[FLAT], preserve_index=False)
    ends = np.cumsum([0, *frame.rows.map(len)])
    values = np.concatenate([*frame.rows]).astype(np.float32, copy=False)
    lists = pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), pa.array(values))
    table = flat.append_column("rows", lists).select(list(SCHEMA))
    fields = [table.field(c.name).with_metadata({"meaning": c.meaning}) for c in COLUMNS]
    return table.cast(pa.schema(fields, {**flat.schema.metadata, **about}))


def read_tidy(path: Path) -> pd.DataFrame:
    """A tidy table from its parquet file. `attrs`: "study", its id; "margins", dict; "missing", a list of the cells
    that are not in it, dicts of model, task, placement, budget and reason; "digest", the SHA-256 of the file. DataError
    if it is not a tidy table, or one of another version; CorruptError if it is damaged.
    """
    content = _whole(path)
    table = pq.read_table(pa.BufferReader(content))
    about = table.schema.metadata
    odd = sorted({*table.column_names} ^ {*SCHEMA}) or [key for key in ABOUT if key.encode() not in about]
    if odd or about[b"format"] != str(FORMAT).encode():
        found, listed = about.get(b"format", b"unknown").decode(), ", ".join(odd) or "none"
        raise DataError(
            f"{path}: not a tidy table that this version of apet reads: of format {found} (read is {FORMAT}), missing "
            f"or unknown columns: {listed}. {REMEDY}"
        )
    frame = table.replace_schema_metadata(None).to_pandas().astype(SCHEMA)
    study, margins, missing = (about[key.encode()].decode() for key in ABOUT)
    told = {"margins": json.loads(margins), "missing": Missing(json.loads(missing))}
    frame.attrs = {"study": study, **told, "digest": bytes_digest(content)}
    return frame


def _whole(path: Path) -> bytes:
    """A file's bytes, which are what their own digest says."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). {REMEDY}") from None
    whole = is_whole(content)
    if whole is None and content[:4] == content[-4:] == b"PAR1":
        raise DataError(
            f"{path}: not a tidy table, or one of format 1, which an older version of apet wrote without a digest of "
            f"its own; this one reads format {FORMAT}. {REMEDY}"
        )
    if not whole:
        raise CorruptError(f"{path}: damaged: its bytes are not what its own digest says. {REMEDY}")
    return content
