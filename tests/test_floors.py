"""A file imports only from floors below its own, and nothing that must be light imports torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "apet"
FLOORS = (
    "errors", "arithmetic", "temporary", "provenance", "sealed", "record", "yamls", "placement", "config", "data",
    "plms", "grid", "demand", "store", "checkout", "status", "tuning", "evaluation", "training", "analysis",
    "figures", "report", "study", "check", "cost", "export", "api", "show", "commands", "cli",
)  # fmt: skip
LIGHT = (
    "apet.arithmetic",
    "apet.plms.shipped",
    "apet.placement",
    "apet.config",
    "apet.data.prepare",
    "apet.grid",
    "apet.record",
    "apet.demand",
    "apet.store",
    "apet.checkout",
    "apet.status",
    "apet.figures",
    "apet.study",
    "apet.show",
    "apet",
    "apet.analysis.table",
    "apet.report.page",
)


def floor(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Floors that a file imports from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("apet."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {name.name.split(".")[1] for name in node.names if name.name.startswith("apet.")}
    return found


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py" or path.parent != PACKAGE]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    own = FLOORS.index(floor(path))
    above = {name for name in imported(path) if FLOORS.index(name) > own}
    assert not above, f"{path.relative_to(PACKAGE)} imports from {above}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_package_does_not_know_its_workflow(path):
    assert "import snakemake" not in path.read_text()
    assert "from snakemake" not in path.read_text()


@pytest.mark.parametrize("module", LIGHT)
def test_what_a_dag_needs_imports_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
