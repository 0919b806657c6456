"""Checkpoints of unfinished cells, from which an interrupted job resumes to the same bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from apet.core.atomic import atomic_write
from apet.core.hashing import canonical
from apet.core.signals import SignalHandler

CHECKPOINT_SECONDS = 60.0
"""Default interval: seconds of work that a killed process may lose, and the evaluation pass in which it is killed."""

MAX_WRITE_SHARE = 0.1
"""Largest share of the time spent on writing. Checkpoints that take long to write are written less often."""


class CellCheckpoint:
    """Checkpoint of one cell: named values of numbers and tensors, one safetensors file each.

    Args:
        folder: folder of the files.
        identity: hash of the inputs that determine the cell's bytes. Values of another identity are ignored.
        machine: machine type. Values of another machine type are used with a warning.
        signals: signal handler. After a signal, the next save writes at once and raises Interrupted.
        interval: seconds between two writes.
    """

    def __init__(
        self,
        folder: Path,
        identity: str,
        machine: Mapping[str, Any],
        signals: SignalHandler,
        interval: float = CHECKPOINT_SECONDS,
    ):
        self.folder, self.identity, self.machine, self.signals = folder, identity, dict(machine), signals
        self.interval, self.next_write = interval, time.monotonic() + interval
        self.unwritten: dict[str, Callable[[], Any]] = {}
        self.resumed = False
        self.other_machines: list[dict[str, Any]] = []

    def load(self, name: str) -> Any | None:
        """Return a saved value, with lists in place of tuples.

        Args:
            name: name of the value.

        Returns:
            The value. None if there is no file. None with a warning if the file is corrupt or has another identity.
        """
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            tensors, record = _read(path)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            _warn(f"{path}: corrupt checkpoint, ignored ({str(error).splitlines()[0]}).")
            return None
        if record["identity"] != self.identity:
            _warn(f"{path}: checkpoint of another cell, PLM or data, or of another version of apet, ignored.")
            return None
        if record["machine"] != self.machine and record["machine"] not in self.other_machines:
            _warn(f"{path}: checkpoint of another machine type. Results may differ in the last bits.")
            self.other_machines.append(record["machine"])
        _warn(f"resuming from {path}")
        self.resumed = True
        return _with_tensors(record["value"], tensors)

    def save(self, name: str, value: Callable[[], Any]) -> None:
        """Save a finished value, at the latest with the next write."""
        self.unwritten[name] = value
        self._write_if_due({})

    def save_running(self, name: str, value: Callable[[], Any]) -> None:
        """Save the present state of a value that is going to change, if a write is due."""
        self._write_if_due({name: value})

    def _write_if_due(self, running: Mapping[str, Callable[[], Any]]) -> None:
        start = time.monotonic()
        if not self.signals.signal_name and start < self.next_write:
            return
        for name, value in {**self.unwritten, **running}.items():
            tensors: dict[str, Tensor] = {}
            record = {"identity": self.identity, "machine": self.machine, "value": _without_tensors(value(), tensors)}
            _write(self._path(name), tensors, record)
        self.unwritten = {}
        end = time.monotonic()
        self.next_write = end + max(self.interval, (end - start) / MAX_WRITE_SHARE)
        self.signals.raise_if_requested()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def discard_checkpoint(folder: Path) -> None:
    """Delete the checkpoint of a finished cell, and parent folders that become empty."""
    shutil.rmtree(folder, ignore_errors=True)
    for parent in list(folder.parents)[:2]:
        with suppress(OSError):  # not empty, or missing
            parent.rmdir()


def _without_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Replace each tensor in a value by its name in `tensors`, and add it there."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {key: _without_tensors(item, tensors) for key, item in value.items()}
    return [_without_tensors(item, tensors) for item in value] if isinstance(value, list | tuple) else value


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Invert `_without_tensors`."""
    if isinstance(value, dict):
        if value.keys() == {"tensor"}:
            return tensors[value["tensor"]]
        return {key: _with_tensors(item, tensors) for key, item in value.items()}
    return [_with_tensors(item, tensors) for item in value] if isinstance(value, list) else value


def _write(path: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    text = json.dumps(record)  # not canonical JSON, which has no NaN, because a loss may be NaN
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, {"record": text, "digest": _checksum(tensors, text)})


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    if _checksum(tensors, metadata["record"]) != metadata["digest"]:
        raise ValueError("wrong checksum")
    return tensors, json.loads(metadata["record"])


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """Return the SHA-256 over a text and the names, types, shapes and bytes of tensors."""
    checksum = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        checksum.update(canonical([name, str(tensor.dtype), list(tensor.shape)]).encode())
        checksum.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return checksum.hexdigest()


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
