"""The habits of the house: clean by its tools, a package that is whole when installed, files for those outside."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from toy import PARAMS, ROOT

BIN = Path(sys.executable).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = {
    path.relative_to(ROOT / "src").as_posix()
    for path in (ROOT / "src" / "apet").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
} | {f"apet/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "ladder").glob("*/*")}
"""Every file of the package: code, YAML, the report's page, the mark that it is typed, the shipped rungs."""


def read_yaml(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


def run(*command: str, folder: Path = ROOT, **environment: str) -> str:
    """A command's output; the error holds it where the command fails."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    options = {"cwd": folder, "env": {**os.environ, "PATH": path, **environment}, "text": True, "check": False}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_lint_is_clean():
    run("make", "--old-file", ".venv/.ready", "lint", f"BIN={BIN}")


def test_a_notebook_sees_the_types_of_what_it_is_given(tmp_path: Path):
    """With the cache that lint has left. `reveal_type` is mypy's own word."""
    calls = {
        "apet.load_model('my-plm').inventory": "apet.placement.sites.Inventory",
        "apet.load_tuned('cell')": "apet.export.tuned_model.TunedModel",
        "apet.load_tuned('cell').evaluate('data').score": "float",
    }
    (tmp_path / "notebook.py").write_text("import apet\n" + "".join(f"reveal_type({call})\n" for call in calls))
    said = run("mypy", "--no-pretty", str(tmp_path / "notebook.py"))
    assert re.findall(r'Revealed type is "(.*)"', said) == list(calls.values())


def test_hooks_are_the_tools_of_lint():
    """snakemake --lint reads the whole workflow and is left to `make lint`."""
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    tools = re.findall(r"\$\(BIN\)/(.*)", recipe[1])
    hooks = [hook for repo in read_yaml(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    entries = [hook["entry"].removeprefix(".venv/bin/") for hook in hooks if hook["language"] == "system"]
    without_paths = [re.sub(r"( \.| Snakefile workflow)$", "", tool) for tool in tools]
    assert [entry.removesuffix(" --force-exclude") for entry in entries] == without_paths


@pytest.mark.parametrize(
    ("message", "passes"),
    [
        ("feat: a placement on norms", True),
        ("fix(figures)!: NaN leaves a gap\n\nLonger words.\n", True),
        ("Merge branch 'main'", True),
        ("A placement on norms", False),
        ("feat:nothing", False),
        ("notes\n\nfeat: not in the first line\n", False),
    ],
)
def test_a_commit_says_what_kind_it_is(message, passes):
    hooks = [hook for repo in read_yaml(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    (pattern,) = (hook["entry"] for hook in hooks if hook["language"] == "pygrep")
    assert bool(re.search(pattern, message, re.MULTILINE | re.DOTALL)) is passes


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel and source distribution, by what this environment has, from a copy: a build leaves files behind."""
    folder = tmp_path_factory.mktemp("built")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    build = "from setuptools import build_meta as b; b.build_wheel('dist'); b.build_sdist('dist')"
    run(sys.executable, "-W", "error::DeprecationWarning:setuptools", "-c", build, folder=folder)
    return folder / "dist"


def test_the_wheel_holds_every_file_and_works_alone(built: Path, tmp_path: Path):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    (info,) = {name.split("/")[0] for name in names if ".dist-info" in name}
    assert {name for name in names if not name.startswith(info)} == SOURCES
    assert f"{info}/licenses/LICENSE" in names
    assert "apet = apet.cli.app:main" in (tmp_path / "installed" / info / "entry_points.txt").read_text()

    def installed(*arguments: str) -> str:
        return run(sys.executable, *arguments, folder=tmp_path, PYTHONPATH=str(tmp_path / "installed"))

    assert Path(installed("-c", "import apet; print(apet.__file__)").strip()).is_relative_to(tmp_path)
    assert "plan" in installed("-m", "apet.cli.app", "--help")
    planned = installed(
        "-m", "apet.cli.app", "plan", "--model", "bloom-32x2", "--placement", "lora", "--budget", "@own"
    )
    assert '"budget"' in planned


def test_the_source_distribution_holds_every_file(built: Path):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"src/{name}" for name in SOURCES} | {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_one_version_and_one_licence_everywhere():
    citation, changes = read_yaml("CITATION.cff"), (ROOT / "CHANGELOG.md").read_text()
    assert citation["version"] == PROJECT["version"] and PROJECT["version"] in changes
    assert citation["license"] == PROJECT["license"] == "MIT" and "MIT License" in (ROOT / "LICENSE").read_text()


def test_ci_runs_what_the_makefile_has_on_the_pythons_that_are_promised():
    jobs = read_yaml(".github/workflows/ci.yml")["jobs"]
    promised = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+", c)]
    assert jobs["test"]["strategy"]["matrix"]["python-version"] == promised
    targets = {step["run"].split()[1] for job in jobs.values() for step in job["steps"] if "run" in step}
    assert targets == {"lint", "test", "docs"}
    assert targets <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_the_workflow_runs_where_snakedeploy_puts_it(tmp_path: Path):
    """The same module and copy of config/ that snakedeploy makes, and the flags that the catalog names."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    assert (tmp_path / "config/params.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()
    (tmp_path / "config/params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
    module = f'module apet:\n    snakefile: "{ROOT}/workflow/Snakefile"\n    config: config\n'
    text = f'configfile: "config/config.yaml"\n{module}use rule * from apet\n'
    (tmp_path / "Snakefile").write_text(text)
    flags = read_yaml(".snakemake-workflow-catalog.yml")["usage"]["mandatory-flags"]["flags"].split()
    counts = dict(re.findall(r"^(\S+) +(\d+)$", run("snakemake", "-n", *flags, folder=tmp_path), re.MULTILINE))
    assert {"corpus", "pretrain_bloom-16x2", "train_bloom-16x1_rotten_tomatoes-0", "aggregate"} <= set(counts)
