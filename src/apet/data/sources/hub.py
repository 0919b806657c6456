"""Datasets of the hub, streamed: parquet files at a revision, by their paths, so that no code of a repository runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Formatter
from typing import Any

from apet.core.yaml_loader import check_keys
from apet.data.schema import SIDES, Record, Task
from apet.errors import ConfigError, DataError, truncated_repr, unknown_name, without_secrets

FILES = "{config}/{split}/*.parquet"  # on refs/convert/parquet, the branch where the hub keeps copies of all datasets


def check(spec: Any, where: str, folder: Path) -> dict[str, Any]:
    """The spec of a YAML: dataset, config, revision; files, where they lie elsewhere than FILES says; splits, those of
    the task's that are there and labelled, where not all are. ParamsError if it is none.
    """
    check_keys(spec, ("dataset", "config", "revision"), ("files", "splits", "column_map", "label_map"), where)
    for key in ("dataset", "config", "revision", "files"):
        if not isinstance(spec.get(key, FILES), str) or not spec.get(key, FILES) or "@" in spec.get(key, FILES):
            raise ConfigError(f"{where}: {key} is {spec[key]!r}; it must be a name.")
    if not isinstance(spec.get("splits", []), list):
        raise ConfigError(f"{where}: splits is {spec['splits']!r}; it must be a list.")
    for split in spec.get("splits", []):
        if split not in SIDES:
            raise ConfigError(unknown_name("split", split, SIDES, f"{where}: splits"))
    if not _is_pattern(spec.get("files", FILES)):
        allowed = "{config} and {split} are all that may stand in braces"
        raise ConfigError(f"{where}: files is {truncated_repr(spec['files'])}; {allowed}.")
    return spec


def identity(spec: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """The dataset at its revision, and what of it is read. A revision that is a branch may change unseen."""
    names = {key: spec[key] for key in ("dataset", "config", "revision")}
    return {**names, "files": spec.get("files", FILES), "splits": _sides(spec)}


def records(spec: Mapping[str, Any], task: Task, wheels_folder: Path) -> Iterator[Record]:
    """The rows of the splits that the spec lists. DataError if the hub cannot be reached or lacks a file."""
    for side in _sides(spec):
        split = task.splits[side]
        place = f"{spec['dataset']}/{spec['config']}/{split}"
        path = spec.get("files", FILES).format(config=spec["config"], split=split)
        try:
            for number, values in enumerate(stream(f"hf://datasets/{spec['dataset']}@{spec['revision']}/{path}"), 1):
                yield Record(values, side, f"{place}, row {number}")
        except Exception as error:  # the hub's client and its network library each have classes of their own
            said = without_secrets(f"{type(error).__name__}: {error}")
            raise DataError(
                f"task {task.name}: {place}: the hub did not give it ({said}). "
                f"`apet prepare-task --task {task.name} …` fetches it on a machine with network; the folder that it "
                f"writes may be copied here. Or let a local folder stand in, with `sources: {{{task.name}: FOLDER}}` in the "
                f"study, where FOLDER/{task.name}/{split}.jsonl (or csv, tsv, parquet) holds the rows."
            ) from None


def stream(files: str) -> Iterator[dict[str, Any]]:
    """The rows of parquet files (a pattern), a few at a time in memory. The only function that asks the hub."""
    from datasets import load_dataset
    from pyarrow.dataset import ParquetFragmentScanOptions

    # Without the buffer and with small batches, half of the memory.
    few = {"batch_size": 100, "fragment_scan_options": ParquetFragmentScanOptions(pre_buffer=False)}
    return iter(load_dataset("parquet", data_files=files, split="train", streaming=True, **few))


def _is_pattern(files: str) -> bool:
    try:
        found = list(Formatter().parse(files))
    except ValueError:
        return False
    return all(name in (None, "config", "split") and not form and not change for _, name, form, change in found)


def _sides(spec: Mapping[str, Any]) -> list[str]:
    return list(spec.get("splits", reversed(SIDES)))
