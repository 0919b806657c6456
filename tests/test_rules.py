"""The rules as files: clean by Snakemake's own lint and formatter, environments that pin what is pinned elsewhere, and
dry runs that need neither the hub nor a PLM.
"""

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

NOT_IN_JOBS = {"dvc", "snakemake-executor-plugin-slurm"}
"""What versions data and starts jobs stands around them, not in them."""


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "study", None)


def test_lint_has_nothing_to_say(checkout: Checkout):
    """Of a study with every kind of rule: rungs, a snapshot, tasks from wheels and from the hub."""
    changes = {"models": ["bloom-16x1", "EleutherAI/pythia-70m"], "tasks": ["rotten_tomatoes", "rte"]}
    checkout.write({**copy.deepcopy(PARAMS), **changes})
    assert "Congratulations, your workflow is in a good condition!" in checkout.snakemake("--lint")


def test_snakefmt_agrees(checkout: Checkout):
    done = checkout.run("snakefmt", "--check", "Snakefile", "workflow")
    assert "would be left unchanged" in done.stdout + done.stderr


def test_the_papers_study_dry_runs_without_hub_and_plm(checkout: Checkout):
    checkout.folder.joinpath("params.yaml").write_text((ROOT / "studies/paper.yaml").read_text())
    said = checkout.snakemake("-n")
    counts = dict(re.findall(r"^(\S+) +(\d+)$", said, re.MULTILINE))
    training = [name for name in counts if name.startswith("train_")]
    assert len(training) == 435 and not any("--bert" in n and "samsum" in n for n in training)
    assert sum(name.startswith("snapshot_") for name in counts) == 9 and counts["task"] == "11"
    assert not (checkout.folder / "models").exists() and not (checkout.folder / "data").exists()


def test_a_job_that_gets_a_gpu_trains_on_it_unless_told_otherwise(checkout: Checkout):
    def devices(*options: str) -> set[str]:
        return set(re.findall(r"--device (\S+)", checkout.snakemake("-n", "--printshellcmds", *options)))

    assert devices() == {"cpu"}
    assert devices("--default-resources", "gpu=1") == {"cuda"}
    assert devices("--default-resources", "gpu=1", "--config", "device=cpu") == {"cpu"}


def pins(lines: list[str]) -> dict[str, str]:
    """Package -> version, names as the index writes them."""
    found = [re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", line.strip()) for line in lines]
    assert all(found), "only exact versions"
    return {normal(match[1]): match[2] for match in found}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(name: str) -> dict[str, str]:
    """What a lock pins, without platforms and hashes."""
    lines = (ROOT / "envs" / name).read_text().splitlines()
    return pins([re.split(r" ;| \\", line)[0] for line in lines if line[:1] not in ("#", " ", "")])


LOCK = locked("requirements.lock") | locked("torch.lock")
INSTALLED = {normal(dist.name) for dist in distributions()}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def needed(lines: list[str]) -> set[str]:
    return {normal(re.match(r"[A-Za-z0-9._-]+", line)[0]) for line in lines}


def test_the_lock_holds_all_that_the_project_needs():
    wanted = needed(PROJECT["dependencies"]) | needed(PROJECT["optional-dependencies"]["test"])
    assert wanted <= set(LOCK)


def make(*arguments: str, status: int = 0) -> str:
    options = {"cwd": ROOT, "text": True, "check": False, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(["make", *arguments], **options)
    assert done.returncode == status, done.stdout
    return done.stdout


def test_every_file_of_the_lock_has_a_hash_and_the_install_asks_for_it():
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
def test_uv_installs_and_pip_takes_over_if_uv_fails(tmp_path: Path, failing, installs, status):
    """With stand-ins for Python and uv that write down what they are asked for."""
    said, programs = tmp_path / "said", tmp_path / "venv/bin"
    programs.mkdir(parents=True)
    call = '"${0##*/} $*"'
    pattern = failing.replace(" ", "\\ ")
    for name in ("python", "uv"):
        (programs / name).write_text(f"#!/bin/sh\necho {call} >> '{said}'\ncase {call} in {pattern}) exit 1 ;; esac\n")
        (programs / name).chmod(0o755)
    output = make(f"PYTHON={programs}/python", f"VENV={tmp_path}/venv", f"{tmp_path}/venv/.ready", status=status)
    calls = [line.split() for line in said.read_text().splitlines() if "pip install" in line]
    assert [f"{words[0]} {words[-1].removeprefix('envs/')}" for words in calls] == installs
    assert output.count("pip installs the packages instead") == (BY_PIP[0] in installs)
    assert (tmp_path / "venv/.ready").exists() == (status == 0)


def test_the_lock_holds_all_that_its_packages_need():
    """For it is installed without asking what they need."""
    for name in LOCK:
        for line in (requires(name) or []) if name in INSTALLED else []:
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                assert normal(wanted.name) in LOCK, f"{name} needs {line}"
                assert wanted.specifier.contains(LOCK[normal(wanted.name)], prereleases=True), f"{name} needs {line}"


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.name)
def test_an_environment_pins_what_the_lock_pins(path: Path):
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


def test_every_rule_that_runs_names_an_environment_that_is_there():
    for path in sorted((ROOT / "workflow/rules").glob("*.smk")):
        text = path.read_text()
        named = re.findall(r'conda:\n\s+"([^"]+)"', text)
        assert len(named) == text.count("shell:"), path.name
        assert all((path.parent / name).resolve() in ENVIRONMENTS for name in named)


def test_a_new_environment_gets_the_package():
    """Snakemake runs <environment>.post-deploy.sh in it."""
    for path in ENVIRONMENTS:
        script = path.with_suffix(".post-deploy.sh").read_text()
        assert script.startswith("#!") and "pip install --no-deps ." in script


def test_a_pair_that_cannot_be_done_is_refused_and_may_be_left_out(checkout: Checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout.folder)
    pairs = {"models": ["bloom-16x1", "bert-16x1"], "tasks": ["rotten_tomatoes", "bbc_titles"]}
    checkout.write({**copy.deepcopy(PARAMS), **pairs})
    assert main(["resolve", "--out-file", "study.json"]) == 2
    said = capsys.readouterr().err
    assert "bert-16x1" in said and "name it under `exclude`" in said
    checkout.write({**copy.deepcopy(PARAMS), **pairs, "exclude": [{"models": ["bert-16x1"], "tasks": ["bbc_titles"]}]})
    assert main(["resolve", "--out-file", "study.json"]) == 0
    assert len({(c.model, c.task) for c in read_cells(Path("study.json"))}) == 3


def test_the_index_names_every_cells_record_and_misses_none(checkout: Checkout, monkeypatch):
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
