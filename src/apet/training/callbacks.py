"""Callbacks on a cell: checkpoints, progress and loggers. None of them can change a result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from apet.core.progress import CellProgress
from apet.errors import ConfigError
from apet.training.checkpoint import CellCheckpoint
from apet.training.loop import TrainerCallback, TrainingState


class CellCallbacks:
    """Base class of callbacks on one cell, which save and report nothing."""

    def load(self, name: str) -> Any | None:
        """Return a saved value, or None."""
        return None

    def save(self, name: str, value: Callable[[], Any]) -> None:
        """Save a finished value. `value` is called only if it is written."""

    def on_training(self, name: str, done: float, share: float) -> TrainerCallback:
        """Return the callback on a training of this cell.

        Args:
            name: name of the training within the cell.
            done: share of the cell's work before this training, from 0 to 1.
            share: share of the cell's work in this training, from 0 to 1.

        Returns:
            A callback, to be used as a context manager around the training.
        """
        return TrainerCallback()


NO_CALLBACKS = CellCallbacks()
"""No checkpoints, no progress, no logger."""


class Logger(Protocol):
    """Destination of the losses and scores of one training."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log named values of a step."""

    def close(self) -> None:
        """Finish the log."""


OpenLogger = Callable[[Path, int], Logger]
"""(folder, step at which training starts or resumes) -> logger."""


@dataclass
class JobCallbacks(CellCallbacks):
    """Callbacks on a cell of a job."""

    checkpoint: CellCheckpoint
    """Checkpoint of the cell."""
    progress: CellProgress
    """Progress of the job."""
    open_logger: OpenLogger | None
    """Opens the logger of a training."""
    log_folder: Path
    """Folder of the cell's logs, with a folder for each training."""

    def load(self, name: str) -> Any | None:
        return self.checkpoint.load(name)

    def save(self, name: str, value: Callable[[], Any]) -> None:
        self.checkpoint.save(name, value)

    def on_training(self, name: str, done: float, share: float) -> TrainerCallback:
        return ReplicateCallback(self, name, done, share)


@dataclass
class ReplicateCallback(TrainerCallback):
    """Callback on one training: resumes it from its checkpoint, and saves, reports and logs its steps."""

    callbacks: JobCallbacks
    name: str
    done: float
    share: float
    logger: Logger | None = None

    def on_train_begin(self, state: TrainingState) -> None:
        if saved := self.callbacks.load(self._running):
            state.load_state_dict(saved)
        self.callbacks.progress.begin_run(self._cell_done(state))
        if self.callbacks.open_logger:
            self.logger = self.callbacks.open_logger(self.callbacks.log_folder / self.name, state.step)

    def on_step_end(self, state: TrainingState) -> None:
        loss, max_steps = state.losses[-1], state.config.max_steps
        self.callbacks.progress.step(self.name, state.step, max_steps, loss, self._cell_done(state))
        if self.logger:
            values = {"train/loss": loss}
            if state.evals and state.evals[-1][0] == state.step:
                score = state.evals[-1][1]
                values |= {"validation/score": score.score, "validation/loss": score.loss}
            self.logger.log(state.step, values)
        self.callbacks.checkpoint.save_running(self._running, state.state_dict)

    def __exit__(self, *error: object) -> None:
        if self.logger:
            self.logger.close()

    @property
    def _running(self) -> str:
        return f"{self.name}.running"

    def _cell_done(self, state: TrainingState) -> float:
        return self.done + self.share * state.step / state.config.max_steps


class TensorBoard:
    """Logger that writes a TensorBoard event file. After resuming, later steps of the previous log are hidden."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class DVCLive:
    """Logger that writes DVCLive's tables, without touching Git or DVC."""

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


LOGGERS: dict[str, OpenLogger] = {"tensorboard": TensorBoard, "dvclive": DVCLive}


def logger_named(name: str) -> OpenLogger:
    """Return the function that opens a logger.

    Args:
        name: key of `LOGGERS`.

    Returns:
        Function from a folder and the step at which training starts to a logger.

    Raises:
        ConfigError: the logger's package is not installed.
    """
    try:
        if name == "tensorboard":
            import torch.utils.tensorboard  # noqa: F401
        else:
            import dvclive  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--logger {name}: its package is not installed ({error}). Run `pip install 'apet[loggers]'`."
        ) from None
    return LOGGERS[name]
