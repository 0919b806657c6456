"""Versions of code that determines numbers: a change of the code needs a new version or a new record."""

from __future__ import annotations

import ast

import pytest

from numerics import APART, FOLDERS, NONE, PACKAGE, VERSIONS, modules, present, problem, recorded, relative


@pytest.mark.parametrize("version", VERSIONS)
def test_code_changes_only_with_its_version(version):
    message = problem(version, recorded().get(version), present()[version])
    assert message is None, message


def test_every_module_belongs_to_a_version_or_is_excluded():
    counted = {path for version in VERSIONS for path in modules(version)}
    apart = {PACKAGE / name for names in APART.values() for name in names}
    for path in sorted(PACKAGE.rglob("*.py")):
        first = relative(path).split("/")[0]
        assert path in counted or {first, relative(path)} & NONE.keys() or path in apart, (
            f"{relative(path)} belongs to no version"
        )


def test_every_excluded_file_exists_and_has_a_reason():
    for names in (*APART.values(), NONE):
        for name, reason in names.items():
            assert (PACKAGE / name).exists(), name
            assert reason
    for version, names in APART.items():
        for name in names:
            assert name.startswith(tuple(folder for folder in FOLDERS[version])), name


def test_every_declared_version_is_recorded():
    declared = {
        target.id
        for path in PACKAGE.rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id.endswith("_VERSION")
    }
    assert declared == set(VERSIONS)
