"""Packaging: docstrings of the public API, wheel and source distribution, metadata, snakedeploy."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest
import yaml

import apet
from toy import PARAMS, ROOT

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = {
    path.relative_to(ROOT / "src").as_posix()
    for path in (ROOT / "src" / "apet").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
} | {f"apet/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "ladder").glob("*/*")}
"""All files of the package: code, YAML, report templates, py.typed, the shipped ladder."""


def read_yaml(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


def run(*command: str, folder: Path = ROOT, **environment: str) -> str:
    """Run a command and return its output, which the assertion message contains if the command fails."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    options = {"cwd": folder, "env": {**os.environ, "PATH": path, **environment}, "text": True, "check": False}
    process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    assert process.returncode == 0, process.stdout
    return process.stdout


def public_objects() -> Iterator[tuple[str, Any]]:
    """Functions and classes in `__all__` of apet and its packages, with qualified names."""
    for package in ["apet", *(f"apet.{module.name}" for module in iter_modules(apet.__path__))]:
        module = import_module(package)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                yield f"{package}.{name}", value


def test_public_functions_and_classes_have_complete_docstrings():
    """Sections are present. pydoclint, in `make lint`, checks that they match the signature."""
    incomplete = []
    for name, value in public_objects():
        docstring = value.__doc__ or ""
        missing = not docstring or docstring.startswith(f"{value.__name__}(")  # what a dataclass generates
        if inspect.isfunction(value):
            signature = inspect.signature(value)
            missing |= bool(signature.parameters) and "Args:\n" not in docstring
            missing |= signature.return_annotation not in (None, "None") and "Returns:\n" not in docstring
        incomplete += [name] if missing else []
    assert incomplete == []


def lacks_sections(function: ast.FunctionDef) -> bool:
    """Test for a docstring of several lines without Args or Returns that the signature requires."""
    docstring = ast.get_docstring(function) or ""
    if "\n" not in docstring or any("property" in ast.unparse(node) for node in function.decorator_list):
        return False
    arguments = {node.arg for node in (*function.args.args, *function.args.kwonlyargs)} - {"self", "cls"}
    returns = function.returns is not None and ast.unparse(function.returns) != "None"
    return bool(arguments and "Args:" not in docstring) or (returns and not re.search("(Returns|Yields):", docstring))


def test_public_docstrings_are_one_line_or_complete():
    incomplete = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "src" / "apet").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and lacks_sections(node)
    ]
    assert incomplete == []


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with wheel and source distribution, built from a copy because a build leaves files behind."""
    folder = tmp_path_factory.mktemp("built")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    build = "from setuptools import build_meta as b; b.build_wheel('dist'); b.build_sdist('dist')"
    run(sys.executable, "-W", "error::DeprecationWarning:setuptools", "-c", build, folder=folder)
    return folder / "dist"


def test_wheel_contains_every_file_and_runs_without_the_sources(built: Path, tmp_path: Path):
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


def test_source_distribution_contains_every_file(built: Path):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"src/{name}" for name in SOURCES} | {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_version_and_licence_agree_in_all_metadata():
    citation, changes = read_yaml("CITATION.cff"), (ROOT / "CHANGELOG.md").read_text()
    assert citation["version"] == PROJECT["version"] and PROJECT["version"] in changes
    assert citation["license"] == PROJECT["license"] == "MIT" and "MIT License" in (ROOT / "LICENSE").read_text()


def test_workflow_runs_as_a_module_as_snakedeploy_deploys_it(tmp_path: Path):
    """Module and copy of config/ as snakedeploy makes them, with the flags from the catalog."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    assert (tmp_path / "config/params.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()
    (tmp_path / "config/params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
    module = f'module apet:\n    snakefile: "{ROOT}/workflow/Snakefile"\n    config: config\n'
    text = f'configfile: "config/config.yaml"\n{module}use rule * from apet\n'
    (tmp_path / "Snakefile").write_text(text)
    flags = read_yaml(".snakemake-workflow-catalog.yml")["usage"]["mandatory-flags"]["flags"].split()
    counts = dict(re.findall(r"^(\S+) +(\d+)$", run("snakemake", "-n", *flags, folder=tmp_path), re.MULTILINE))
    assert {"corpus", "pretrain_bloom-16x2", "train_bloom-16x1", "aggregate"} <= set(counts)
