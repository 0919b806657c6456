"""Imports of the package: its layers (contracts in pyproject.toml), and modules that must not import PyTorch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from toy import ROOT

LIGHT = (
    "apet",
    "apet.analysis.aggregate",
    "apet.cli.app",
    "apet.cli.show",
    "apet.cli.status_summary",
    "apet.cli.study_summary",
    "apet.cli.task_summary",
    "apet.config.study_config",
    "apet.core.arithmetic",
    "apet.data.prepare",
    "apet.figures",
    "apet.models.ladder",
    "apet.placement",
    "apet.report.page",
    "apet.report.result_tables",
    "apet.study.archive",
    "apet.study.cell_record",
    "apet.study.grid",
    "apet.study.measurements",
    "apet.study.resources",
    "apet.study.status",
    "apet.study.workdir",
)
"""Modules that a dry run of the workflow or a quick command imports. PyTorch takes more than a second to import."""


def test_import_contracts_hold():
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("module", LIGHT)
def test_light_module_does_not_import_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
