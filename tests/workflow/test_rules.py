"""The rules: Snakemake's lint and formatter, pinned environments, and dry runs without hub and PLMs."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import tomllib
from importlib.metadata import distributions, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from apet.cli.app import main
from apet.config.study_config import load_study
from apet.study.cell_record import write_record
from apet.study.grid import Grid
from apet.study.resolve import read_cells
from toy import PARAMS, ROOT, Checkout

ENVIRONMENTS = sorted((ROOT / "envs").glob("*.yaml"))

NOT_IN_JOBS = {"dvc", "snakemake-executor-plugin-slurm", "snakemake-logger-plugin-rich"}
"""Packages that only start jobs or version data, so that jobs do not need them."""


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "study", None)


@pytest.mark.slow
def test_snakemake_lint_is_clean(checkout: Checkout):
    """The study has every kind of rule: ladder models, a download, tasks from wheels and from the hub."""
    changes = {"models": ["bloom-16x1", "EleutherAI/pythia-70m"], "tasks": ["rotten_tomatoes", "rte"]}
    checkout.write({**copy.deepcopy(PARAMS), **changes})
    assert "Congratulations, your workflow is in a good condition!" in checkout.snakemake("--lint")


@pytest.mark.slow
def test_snakefmt_is_clean(checkout: Checkout):
    done = checkout.run("snakefmt", "--check", "Snakefile", "workflow")
    assert "would be left unchanged" in done.stdout + done.stderr


@pytest.mark.slow
def test_dry_run_of_the_papers_study_needs_no_hub_and_no_plm(checkout: Checkout):
    checkout.folder.joinpath("params.yaml").write_text((ROOT / "studies/paper.yaml").read_text())
    output = checkout.snakemake("-n")
    counts = dict(re.findall(r"^ (\S.*?) +(\d+) *$", output, re.MULTILINE))
    training = [int(count) for name, count in counts.items() if name.startswith("train ")]
    assert len(training) == 9 and sum(training) == 435
    assert sum(name.startswith("snapshot ") for name in counts) == 9 and counts["task"] == "11"
    assert not (checkout.folder / "models").exists() and not (checkout.folder / "data").exists()


@pytest.mark.slow
def test_job_with_a_gpu_trains_on_it_unless_device_is_set(checkout: Checkout):
    def devices(*options: str) -> set[str]:
        done = checkout.run("snakemake", "--cores", "1", "-n", "--printshellcmds", *options)
        return set(re.findall(r"--device (\S+)", done.stdout + done.stderr))

    assert devices() == {"cpu"}
    assert devices("--default-resources", "gpu=1") == {"cuda"}
    assert devices("--default-resources", "gpu=1", "--config", "device=cpu") == {"cpu"}


def pins(lines: list[str]) -> dict[str, str]:
    """Return the pinned versions by normalised package name."""
    found = [re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", line.strip()) for line in lines]
    assert all(found), "only exact versions"
    return {normal(match[1]): match[2] for match in found}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(name: str) -> dict[str, str]:
    """Return the pins of a lock file, without platforms and hashes."""
    lines = (ROOT / "envs" / name).read_text().splitlines()
    return pins([re.split(r" ;| \\", line)[0] for line in lines if line[:1] not in ("#", " ", "")])


LOCK = locked("requirements.lock") | locked("torch.lock")
INSTALLED = {normal(dist.name) for dist in distributions()}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def needed(lines: list[str]) -> set[str]:
    return {normal(re.match(r"[A-Za-z0-9._-]+", line)[0]) for line in lines}


def test_lock_contains_all_dependencies_of_the_project():
    wanted = needed(PROJECT["dependencies"]) | needed(PROJECT["optional-dependencies"]["test"])
    assert wanted <= set(LOCK)


def make(*arguments: str, status: int = 0) -> str:
    options = {"cwd": ROOT, "text": True, "check": False, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(["make", *arguments], **options)
    assert done.returncode == status, done.stdout
    return done.stdout


def test_locks_have_hashes_and_the_install_requires_them():
    commands = re.split(r"\n|&&|\|\|", make("--dry-run", "--always-make", ".venv/.ready"))
    for name, times in {"requirements.lock": 2, "build.lock": 1, "installer.lock": 1}.items():
        entries = re.findall(r"^[a-z].*(?:\n .*)*", (ROOT / "envs" / name).read_text(), re.MULTILINE)
        assert entries and all(re.search(r"( \\\n    --hash=sha256:[0-9a-f]{64})+$", entry) for entry in entries), name
        installs = [command for command in commands if f"-r envs/{name}" in command]
        assert len(installs) == times and all("--no-deps --require-hashes" in command for command in installs)
        assert times == 1 or all("--no-build-isolation" in command for command in installs)
    assert locked("build.lock").items() <= LOCK.items()


FIRST = ["python build.lock", "python installer.lock"]
BY_UV = ["uv requirements.lock", "uv ."]
BY_PIP = ["python requirements.lock", "python ."]
TORCH = ["python torch.lock"]


@pytest.mark.parametrize(
    ("failing", "installs", "status"),
    [
        ("nothing", FIRST + BY_UV + TORCH, 0),
        ("python *installer.lock", FIRST + BY_PIP + TORCH, 0),
        ("uv *", FIRST + BY_UV[:1] + BY_PIP + TORCH, 0),
        ("uv *editable*", FIRST + BY_UV + BY_PIP + TORCH, 0),
        ("*requirements.lock", FIRST + BY_UV[:1] + BY_PIP[:1], 2),
        ("*torch.lock", FIRST + BY_UV + TORCH, 2),
    ],
)
def test_install_falls_back_to_pip_if_uv_fails(tmp_path: Path, failing, installs, status):
    """Python and uv are replaced by scripts that log their arguments."""
    calls_log, programs = tmp_path / "calls", tmp_path / "venv/bin"
    programs.mkdir(parents=True)
    call = '"${0##*/} $*"'
    pattern = failing.replace(" ", "\\ ")
    for name in ("python", "uv"):
        (programs / name).write_text(
            f"#!/bin/sh\necho {call} >> '{calls_log}'\ncase {call} in {pattern}) exit 1 ;; esac\n"
        )
        (programs / name).chmod(0o755)
    output = make(f"PYTHON={programs}/python", f"VENV={tmp_path}/venv", f"{tmp_path}/venv/.ready", status=status)
    calls = [line.split() for line in calls_log.read_text().splitlines() if "pip install" in line]
    assert [f"{words[0]} {words[-1].removeprefix('envs/')}" for words in calls] == installs
    assert output.count("pip installs the packages instead") == (BY_PIP[0] in installs)
    assert (tmp_path / "venv/.ready").exists() == (status == 0)


def test_lock_contains_all_dependencies_of_its_packages():
    """It is installed with --no-deps."""
    for name in LOCK:
        for line in (requires(name) or []) if name in INSTALLED else []:
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                assert normal(wanted.name) in LOCK, f"{name} needs {line}"
                assert wanted.specifier.contains(LOCK[normal(wanted.name)], prereleases=True), f"{name} needs {line}"


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.name)
def test_environment_pins_the_versions_of_the_lock(path: Path):
    found = yaml.safe_load(path.read_text())
    assert set(found) == {"channels", "dependencies"} and found["channels"][-1] == "nodefaults"
    packages = [entry for entry in found["dependencies"] if isinstance(entry, str)]
    assert all(re.fullmatch(r"[a-z0-9-]+=[\d.]+", entry) for entry in packages)
    (pip,) = (entry["pip"] for entry in found["dependencies"] if isinstance(entry, dict))
    pinned = pins(pip)
    assert pinned == {name: LOCK.get(name) for name in pinned}
    assert set(pinned) == needed(PROJECT["dependencies"]) - NOT_IN_JOBS
    python = next(entry.split("=")[1] for entry in packages if entry.startswith("python="))
    least = PROJECT["requires-python"].removeprefix(">=")
    assert [int(n) for n in python.split(".")] >= [int(n) for n in least.split(".")]


def test_slurm_profile_names_rules_of_the_workflow():
    rules = {
        name
        for path in ROOT.glob("workflow/rules/*.smk")
        for name in re.findall(r"^rule (\w+):", path.read_text(), re.M)
    }
    named = yaml.safe_load((ROOT / "slurm/config.yaml").read_text())["set-resources"]
    assert set(named) == {"corpus", "tokenizer", "aggregate", "tabulate_costs"} and set(named) <= rules


def test_every_rule_with_a_command_has_an_environment():
    for path in sorted((ROOT / "workflow/rules").glob("*.smk")):
        text = path.read_text()
        named = re.findall(r'conda:\n\s+"([^"]+)"', text)
        assert len(named) == text.count("shell:"), path.name
        assert all((path.parent / name).resolve() in ENVIRONMENTS for name in named)


def test_new_environment_installs_the_package():
    """Snakemake runs <environment>.post-deploy.sh."""
    for path in ENVIRONMENTS:
        script = path.with_suffix(".post-deploy.sh").read_text()
        assert script.startswith("#!") and "pip install --no-deps ." in script


def test_impossible_pair_is_an_error_unless_excluded(checkout: Checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout.folder)
    pairs = {"models": ["bloom-16x1", "bert-16x1"], "tasks": ["rotten_tomatoes", "bbc_titles"]}
    checkout.write({**copy.deepcopy(PARAMS), **pairs})
    assert main(["resolve", "--out-file", "study.json"]) == 2
    message = capsys.readouterr().err
    assert "bert-16x1" in message and "add it to `exclude`" in message
    checkout.write({**copy.deepcopy(PARAMS), **pairs, "exclude": [{"models": ["bert-16x1"], "tasks": ["bbc_titles"]}]})
    assert main(["resolve", "--out-file", "study.json"]) == 0
    assert len({(c.model, c.task) for c in read_cells(Path("study.json"))}) == 3


def test_index_names_every_record_and_fails_if_one_is_missing(checkout: Checkout, monkeypatch):
    monkeypatch.chdir(checkout.folder)
    grid = Grid(load_study(Path("params.yaml")), Path("params.yaml"))
    for cell in grid.cells:
        write_record(Path("results/cells") / cell.path, cell.path, {})
    assert main(["archive", "--digest-index", "results/cells.json"]) == 0
    index = json.loads(Path("results/cells.json").read_text())
    assert set(index) == {cell.path for cell in grid.cells} and len(set(index.values())) == len(grid.cells)
    last = grid.cells[-1].path
    write_record(Path("results/cells") / last, last, {"cell": "other"})
    assert main(["archive", "--digest-index", "results/cells.json"]) == 0
    assert json.loads(Path("results/cells.json").read_text())[last] != index[last]
    Path("results/cells", last, "metrics.json").unlink()
    assert main(["archive", "--digest-index", "results/cells.json"]) == 2
