"""Digests of the code that determines numbers, for each version.

    python tests/numerics.py              # list versions whose code has changed
    python tests/numerics.py --record     # write the current digests to numerics.json and print the changes

A version is part of the hash of all results made with it, so it must be raised when its code gives other numbers. The
folder of a module determines its versions; exceptions are in `APART`, with reasons.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent.parent / "src" / "apet"
RECORD = Path(__file__).with_name("numerics.json")

VERSIONS = {
    "DATA_VERSION": "apet.data.prepare",
    "PRETRAIN_VERSION": "apet.models.ladder",
    "SNAPSHOT_VERSION": "apet.models.registry",
    "TRAINER_VERSION": "apet.study.cells",
}
"""Version -> module that declares it."""

FOLDERS = {
    "DATA_VERSION": ("data", "core/hashing.py"),
    "PRETRAIN_VERSION": ("models", "core/hashing.py", "core/arithmetic.py"),
    "SNAPSHOT_VERSION": ("models/download.py", "models/checkpoint_files.py"),
    "TRAINER_VERSION": (
        *("placement", "tuning", "evaluation", "training", "models"),
        *("data/tokenization.py", "data/text_beginnings.py", "data/label_metrics.py", "data/text_metrics.py"),
        *("core/hashing.py", "core/arithmetic.py", "study/cells.py:Cell"),
    ),
}
"""Version -> folders, files, and classes or functions of files that determine its numbers."""

APART = {
    "DATA_VERSION": {
        "data/text_beginnings.py": "tokenizes for training, so it belongs to TRAINER_VERSION",
        "data/tokenization.py": "tokenizes for training, so it belongs to TRAINER_VERSION",
    },
    "PRETRAIN_VERSION": {
        "models/gguf.py": "refuses invalid files of existing PLMs",
        "models/pretraining/rebuild.py": "selection and order of ladder models, and a comparison",
        "models/registry.py": "names of existing PLMs",
        "models/sharding.py": "PLMs in several processes, for training cells",
        "models/download.py": "downloads existing PLMs",
    },
    "SNAPSHOT_VERSION": {},
    "TRAINER_VERSION": {
        "models/gguf.py": "refuses invalid files of PLMs",
        "models/ladder.py": "recipes and copies of ladder models, whose content is in a cell's record",
        "models/pretraining/__init__.py": "pretraining",
        "models/pretraining/losses.py": "pretraining",
        "models/pretraining/muon.py": "pretraining",
        "models/pretraining/packing.py": "pretraining",
        "models/pretraining/pretrain.py": "pretraining",
        "models/pretraining/rebuild.py": "pretraining",
        "models/pretraining/tokenizer.py": "trains a tokenizer, which is part of a PLM's content",
        "models/registry.py": "names and sources of PLMs",
        "models/download.py": "downloads PLMs, whose content is in a cell's record",
        "training/callbacks.py": "observes a training",
        "training/checkpoint.py": "restores values exactly, as tests/training/test_resume.py verifies",
        "training/distributed.py": "selection and order of cells in several processes",
        "training/job.py": "selection and order of cells",
        "training/measure.py": "times training steps whose θ is not kept",
        "training/verify.py": "compares bytes",
    },
}
"""Version -> file in its folders -> reason why the file cannot change its numbers."""

NONE = {
    "analysis": "tables of finished cells",
    "api.py": "passes arguments of notebooks on",
    "cli": "passes options on",
    "config": "values of a study, which are part of hashes",
    "core/__init__.py": "no code",
    "core/atomic.py": "temporary files",
    "core/progress.py": "messages",
    "core/records.py": "detects corrupt files",
    "core/signals.py": "stops a process",
    "core/text.py": "messages",
    "core/validation.py": "checks of values that are hashed",
    "core/yaml_loader.py": "reads values that are hashed",
    "errors.py": "messages",
    "export": "converts finished cells",
    "figures": "figures of finished cells",
    "report": "a page about finished cells",
    "study": "names and files of cells; seeds are in Cell",
    "__init__.py": "names of the public functions",
}
"""Folders and files of the package that belong to no version, with reasons."""


def modules(version: str) -> list[Path]:
    """Files that determine the numbers of a version, sorted."""
    files = []
    for name in FOLDERS[version]:
        path = PACKAGE / name
        if ":" not in name:
            files += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return [path for path in sorted(files) if relative(path) not in APART[version]]


def parts(version: str) -> list[tuple[str, ast.AST]]:
    """Top-level classes and functions that determine the numbers of a version."""
    nodes = []
    for name in FOLDERS[version]:
        file, _, definition = name.partition(":")
        if definition:
            body = ast.parse((PACKAGE / file).read_text("utf-8")).body
            (node,) = (node for node in body if getattr(node, "name", None) == definition)
            nodes.append((name, node))
    return nodes


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def number(version: str) -> int:
    """Current value of a version."""
    return getattr(import_module(VERSIONS[version]), version)


def digest(version: str) -> str:
    """SHA-256 of the code of a version without comments, docstrings, types and formatting."""
    code = [(relative(path), ast.parse(path.read_text("utf-8"))) for path in modules(version)]
    code = [[name, shape(tree)] for name, tree in [*code, *parts(version)]]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


IGNORED_FIELDS = ("kind", "annotation", "returns")
"""Fields of a syntax tree without effect: the u of u"…", and types."""


def shape(node: Any) -> Any:
    """Syntax tree as lists, without types and docstrings; equal in all Python versions."""
    if isinstance(node, ast.AST):
        fields = ((name, getattr(node, name, None)) for name in node._fields if name not in IGNORED_FIELDS)
        return [type(node).__name__, *([name, shape(value)] for name, value in fields if value not in (None, []))]
    if isinstance(node, list):
        return [shape(part) for part in node if not is_text(part)]
    return node if isinstance(node, str | int | bool) else repr(node)


def is_text(node: Any) -> bool:
    """Test for a docstring of a module, class, function or constant."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def present() -> dict[str, dict[str, Any]]:
    return {version: {"version": number(version), "digest": digest(version)} for version in VERSIONS}


def recorded() -> dict[str, dict[str, Any]]:
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def problem(version: str, was: dict[str, Any] | None, now: dict[str, Any]) -> str | None:
    """Describe how a version differs from its record, and the fix; None if it does not."""
    if was == now:
        return None
    record = "python tests/numerics.py --record"
    if was is None:
        return f"{version}: not recorded. Run `{record}`."
    if was["digest"] == now["digest"] or was["version"] != now["version"]:
        return f"{version}: changed from {was['version']} to {now['version']}. Run `{record}`."
    return (
        f"{version}: its code has changed, but the version is still {now['version']}. If numbers may have changed, "
        f"raise {version} in {VERSIONS[version].replace('.', '/')}.py. Otherwise verify that θ has the same bytes as "
        f"before (apet verify). Then run `{record}`."
    )


def main(arguments: list[str]) -> int:
    was, now = recorded(), present()
    problems = [message for version in VERSIONS if (message := problem(version, was.get(version), now[version]))]
    if arguments == ["--record"]:
        for version in VERSIONS:
            old, new = was.get(version), now[version]
            if old != new:
                before = f"{old['version']} {old['digest'][:12]}" if old else "nothing"
                note = "" if not old or old["version"] != new["version"] else " (same version: θ must be equal)"
                print(f"{version}: {before} -> {new['version']} {new['digest'][:12]}{note}")
        RECORD.write_text(json.dumps(now, indent=2) + "\n")
        return 0
    print("\n".join(problems) or "all versions are recorded")
    return 2 if arguments else bool(problems)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
