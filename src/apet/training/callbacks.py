"""What goes along with a cell and never into its bytes: kept progress, the report, an optional logger."""

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
    """Of a cell that nobody looks after: nothing is kept, said or logged."""

    def find(self, name: str) -> Any | None:
        """The value that was kept under a name."""
        return None

    def finished(self, name: str, value: Callable[[], Any]) -> None:
        """Keep a value under a name."""

    def watch(self, name: str, part: float, share: float) -> TrainerCallback:
        """For a run of this name: the part of the cell that was done before, and the run's share of it."""
        return TrainerCallback()


NO_CALLBACKS = CellCallbacks()


@dataclass
class JobCallbacks(CellCallbacks):
    """Of a cell in a block. logger: opens one in a folder below `logs`."""

    kept: CellCheckpoint
    report: CellProgress
    logger: Callable[[Path, int], Logger] | None
    logs: Path

    def find(self, name: str) -> Any | None:
        return self.kept.find(name)

    def finished(self, name: str, value: Callable[[], Any]) -> None:
        self.kept.finished(name, value)

    def watch(self, name: str, part: float, share: float) -> TrainerCallback:
        return ReplicateCallback(self, name, part, share)


@dataclass
class ReplicateCallback(TrainerCallback):
    """One run: set further to where it was kept, and followed step by step."""

    journal: JobCallbacks
    name: str
    part: float
    share: float
    log: Logger | None = None

    @property
    def _kept(self) -> str:
        return f"{self.name}.running"

    def on_train_begin(self, run: TrainingState) -> None:
        if state := self.journal.kept.find(self._kept):
            run.load_state_dict(state)
        self.journal.report.begin_run(self._part(run))
        if self.journal.logger:
            self.log = self.journal.logger(self.journal.logs / self.name, run.step)

    def __exit__(self, *error: object) -> None:
        if self.log:
            self.log.close()

    def on_step_end(self, run: TrainingState) -> None:
        self.journal.report.step(self.name, run.step, run.recipe.max_steps, run.losses[-1], self._part(run))
        if self.log:
            values = {"train/loss": run.losses[-1]}
            if run.evals and run.evals[-1][0] == run.step:
                seen = run.evals[-1][1]
                values |= {"validation/score": seen.score, "validation/loss": seen.loss}
            self.log.log(run.step, values)
        self.journal.kept.under_way(self._kept, run.state_dict)

    def _part(self, run: TrainingState) -> float:
        return self.part + self.share * run.step / run.recipe.max_steps


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
        raise ConfigError(
            f"--logger {name}: its package is not installed ({error}). `pip install 'apet[loggers]'` brings it."
        ) from None
    return LOGGERS[name]
