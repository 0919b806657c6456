"""What is kept of a cell under way, so that a killed job loses a minute, and going on gives the same bytes."""

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
"""Seconds of work that a killed process may lose, apart from a pass over validation or test rows it was in."""

SHARE = 0.1
"""Most of the time that writing may take: what takes long to write is written less often."""


class CellCheckpoint:
    """Named values of one cell in a folder of its own, each a file of tensors and numbers, whole or not there.

    identity: of all that decides the cell's bytes; what was kept for another is not used, nor what is damaged. machine:
    the class of this one; what another has kept is used, and said, for it may differ in the last bits from what this
    one would have made. Nothing is written before `every` seconds have passed.
    """

    def __init__(
        self,
        folder: Path,
        identity: str,
        machine: Mapping[str, Any],
        stop: SignalHandler,
        every: float = CHECKPOINT_SECONDS,
    ):
        self.folder, self.identity, self.machine, self.stop = folder, identity, dict(machine), stop
        self.every, self.next = every, time.monotonic() + every
        self.waiting: dict[str, Callable[[], Any]] = {}
        self.used = False
        self.others: list[dict[str, Any]] = []

    def find(self, name: str) -> Any | None:
        """A value as it was kept; None where there is none that can be used, which is said if there is a file."""
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            tensors, record = _read(path)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            _say(f"{path}: damaged, not used ({str(error).splitlines()[0]})")
            return None
        if record["identity"] != self.identity:
            _say(f"{path}: kept for another cell, PLM or data, or by another version of apet, not used")
            return None
        if record["machine"] != self.machine and record["machine"] not in self.others:
            _say(f"{path}: kept on another class of machine; bytes may differ from those of one machine")
            self.others.append(record["machine"])
        _say(f"going on from {path}")
        self.used = True
        return _joined(record["value"], tensors)

    def finished(self, name: str, value: Callable[[], Any]) -> None:
        """Keep a value for good, with the next writing."""
        self.waiting[name] = value
        self._write_if_due({})

    def under_way(self, name: str, value: Callable[[], Any]) -> None:
        """Keep a value that will change, if it is time."""
        self._write_if_due({name: value})

    def _write_if_due(self, present: Mapping[str, Callable[[], Any]]) -> None:
        start = time.monotonic()
        if not self.stop.signal_name and start < self.next:
            return
        for name, value in {**self.waiting, **present}.items():
            tensors: dict[str, Tensor] = {}
            record = {"identity": self.identity, "machine": self.machine, "value": _parted(value(), tensors)}
            _write(self._path(name), tensors, record)
        self.waiting = {}
        end = time.monotonic()
        self.next = end + max(self.every, (end - start) / SHARE)
        self.stop.raise_if_requested()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def discard(folder: Path) -> None:
    """Remove what is kept of a cell, for it is finished, and the parents that this leaves empty."""
    shutil.rmtree(folder, ignore_errors=True)
    for parent in list(folder.parents)[:2]:
        with suppress(OSError):  # it is not empty, or not there
            parent.rmdir()


def _parted(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value with each tensor replaced by its name in `tensors`, where it is put."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {key: _parted(part, tensors) for key, part in value.items()}
    return [_parted(part, tensors) for part in value] if isinstance(value, list | tuple) else value


def _joined(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that `_parted` took apart; tuples have become lists."""
    if isinstance(value, dict):
        if value.keys() == {"tensor"}:
            return tensors[value["tensor"]]
        return {key: _joined(part, tensors) for key, part in value.items()}
    return [_joined(part, tensors) for part in value] if isinstance(value, list) else value


def _write(path: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    # NaN is a loss like any other here, so this is not the canonical JSON of results.
    text = json.dumps(record)
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, {"record": text, "digest": _digest(tensors, text)})


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and record of a file. Raises ValueError where its digest is another."""
    with safe_open(path, "pt") as file:
        tensors, said = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    if _digest(tensors, said["record"]) != said["digest"]:
        raise ValueError("its digest is another")
    return tensors, json.loads(said["record"])


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors and a text, without a copy of them."""
    found = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(canonical([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
