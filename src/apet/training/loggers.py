"""Optional loggers of losses and scores. Imported only when asked for; never part of a cell's hash or bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from apet.errors import ParamsError


class Logger(Protocol):
    """Where the numbers of one run go."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Values by name, at a step."""

    def close(self) -> None:
        """No more of this run."""


class TensorBoard:
    """An event file in a folder. A run that goes on hides what was logged beyond its step."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class DVCLive:
    """DVCLive's folder of tables, one a value, without touching git or DVC."""

    def __init__(self, folder: Path, step: int) -> None:
        from dvclive import Live

        quiet: dict[str, Any] = {"report": None, "dvcyaml": None, "save_dvc_exp": False, "monitor_system": False}
        self.live = Live(str(folder), resume=step > 0, **quiet)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.live.step = step
        for name, value in values.items():
            self.live.log_metric(name, value)

    def close(self) -> None:
        self.live.end()


LOGGERS: dict[str, Callable[[Path, int], Logger]] = {"tensorboard": TensorBoard, "dvclive": DVCLive}


def opener(name: str) -> Callable[[Path, int], Logger]:
    """What opens a logger in a folder, for a run that is at a step.

    Raises ParamsError, before anything is trained, where its package is not installed.
    """
    try:
        if name == "tensorboard":
            import torch.utils.tensorboard  # noqa: F401
        else:
            import dvclive  # noqa: F401
    except ImportError as error:
        raise ParamsError(
            f"--logger {name}: its package is not installed ({error}). `pip install 'apet[loggers]'` brings it."
        ) from None
    return LOGGERS[name]
