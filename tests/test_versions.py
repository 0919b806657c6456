"""The code that decides numbers has a version in the hash of what it makes, and cannot change without saying so."""

from __future__ import annotations

import ast
import json

import pytest

import numerics
from numerics import APART, FOLDERS, NONE, PACKAGE, VERSIONS, complaint, digest, modules, present, recorded, relative

CODE = '"""Doc."""\nA = 1\n"""What A is."""\n\ndef f(x: int) -> str:\n    """Doc."""\n    return f"{x:.3f} {A}"\n'


@pytest.mark.parametrize("version", VERSIONS)
def test_code_changes_only_with_its_version(version):
    said = complaint(version, recorded().get(version), present()[version])
    assert said is None, said


def test_every_module_belongs_to_a_version_or_says_why_not():
    counted = {path for version in VERSIONS for path in modules(version)}
    apart = {PACKAGE / name for names in APART.values() for name in names}
    for path in sorted(PACKAGE.rglob("*.py")):
        first = relative(path).split("/")[0]
        assert path in counted or {first, relative(path)} & NONE.keys() or path in apart, (
            f"{relative(path)} belongs to no version"
        )


def test_every_exception_is_there_and_has_a_reason():
    for names in (*APART.values(), NONE):
        for name, reason in names.items():
            assert (PACKAGE / name).exists(), name
            assert reason
    for version, names in APART.items():
        for name in names:
            assert name.startswith(tuple(folder for folder in FOLDERS[version])), name


def test_every_version_that_is_declared_is_watched():
    found = {
        target.id
        for path in PACKAGE.rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id.endswith("_VERSION")
    }
    assert found == set(VERSIONS)


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("", "", True),
        ('"""Doc."""', '"""Another."""', True),
        ('"""What A is."""', "", True),
        ("A = 1", "A = 1  # one", True),
        ("def f(x: int)", "def f(\n    x: int,\n)", True),
        ("def f(x: int) -> str", "def f(x: float)", True),
        ("A = 1", "A = 2", False),
        (":.3f", ":.4f", False),
        ("A = 1", "A = True", False),
    ],
)
def test_only_what_the_code_does_counts(old, new, same):
    shapes = [json.dumps(numerics.shape(ast.parse(text))) for text in (CODE, CODE.replace(old, new, 1))]
    assert (shapes[0] == shapes[1]) is same


def test_a_new_module_is_counted_without_being_named(tmp_path, monkeypatch):
    for name in ("models", "placement", "tuning", "evaluation", "training", "data", "core", "study"):
        (tmp_path / name).mkdir()
    for name in ("data/tokenization.py", "core/hashing.py", "core/arithmetic.py"):
        (tmp_path / name).write_text("")
    (tmp_path / "study/grid.py").write_text("class Cell:\n    seed = 1\n\nclass Grid:\n    size = 1\n")
    monkeypatch.setattr(numerics, "PACKAGE", tmp_path)
    before = digest("TRAINER_VERSION")
    (tmp_path / "tuning" / "new.py").write_text("x = 1\n")
    after = digest("TRAINER_VERSION")
    assert after != before
    (tmp_path / "study/grid.py").write_text("class Cell:\n    seed = 1\n\nclass Grid:\n    size = 2\n")
    assert digest("TRAINER_VERSION") == after
    (tmp_path / "study/grid.py").write_text("class Cell:\n    seed = 2\n\nclass Grid:\n    size = 2\n")
    assert digest("TRAINER_VERSION") != after


def test_what_to_do_is_said_and_recording_says_what_it_replaced(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(numerics, "RECORD", tmp_path / "numerics.json")
    assert numerics.main([]) == 1
    assert numerics.main(["--record"]) == 0 == numerics.main([])
    was = recorded()
    was["TRAINER_VERSION"]["digest"] = "0" * 64
    was["DATA_VERSION"]["version"] -= 1
    numerics.RECORD.write_text(json.dumps(was))
    capsys.readouterr()
    assert numerics.main([]) == 1
    said = capsys.readouterr().out
    assert "raise TRAINER_VERSION in apet/study/grid.py" in said and "python tests/numerics.py --record" in said
    assert f"DATA_VERSION was {was['DATA_VERSION']['version']} and is" in said and "PRETRAIN" not in said
    assert numerics.main(["--record"]) == 0
    said = capsys.readouterr().out
    assert "TRAINER_VERSION: " in said and "000000000000 -> " in said and "the version stays" in said
    assert "DATA_VERSION: " in said and "PRETRAIN" not in said
