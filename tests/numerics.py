"""The code behind each version: which modules decide numbers, and a digest of what they do.

    python tests/numerics.py              # which versions' code has changed
    python tests/numerics.py --record     # write the present digests into numerics.json, saying which it replaced

A version stands in the hash of what was made under it, so it must be raised when its code gives other numbers. A module
belongs to a version by its folder; what does not is named in `APART`, with the reason.
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
    "TRAINER_VERSION": "apet.study.grid",
}
"""Version -> the module that declares it."""

FOLDERS = {
    "DATA_VERSION": ("data", "core/hashing.py"),
    "PRETRAIN_VERSION": ("models", "core/hashing.py", "core/arithmetic.py"),
    "SNAPSHOT_VERSION": ("models/download.py", "models/checkpoint_files.py"),
    "TRAINER_VERSION": (
        *("placement", "tuning", "evaluation", "training", "models"),
        *("data/tokenization.py", "core/hashing.py", "core/arithmetic.py", "study/grid.py:Cell"),
    ),
}
"""Version -> folders, files, and parts of files whose code decides its numbers. A folder includes later files."""

APART = {
    "DATA_VERSION": {
        "data/tokenization.py": "tokenises for training, so it belongs to TRAINER_VERSION",
    },
    "PRETRAIN_VERSION": {
        "models/gguf.py": "refuses files of PLMs made elsewhere",
        "models/pretraining/rebuild.py": "which rungs, in which order, and a comparison",
        "models/registry.py": "names of PLMs made elsewhere",
        "models/sharding.py": "PLMs in several processes, for training cells",
        "models/download.py": "fetches PLMs made elsewhere",
    },
    "SNAPSHOT_VERSION": {},
    "TRAINER_VERSION": {
        "models/gguf.py": "refuses files of PLMs",
        "models/ladder.py": "recipes and copies of ladder PLMs, whose content is in a cell's record",
        "models/pretraining/__init__.py": "pretraining",
        "models/pretraining/losses.py": "pretraining",
        "models/pretraining/muon.py": "pretraining",
        "models/pretraining/packing.py": "pretraining",
        "models/pretraining/pretrain.py": "pretraining",
        "models/pretraining/rebuild.py": "pretraining",
        "models/pretraining/tokenizer.py": "trains a tokenizer, which is part of a PLM's content",
        "models/registry.py": "names and places of PLMs",
        "models/download.py": "fetches PLMs, whose content is in a cell's record",
        "training/callbacks.py": "follows a run",
        "training/checkpoint.py": "gives values back as they were, which tests/test_resume.py shows",
        "training/distributed.py": "which cells, in which order, in several processes",
        "training/job.py": "which cells, in which order; no numbers",
        "training/verify.py": "compares bytes",
    },
}
"""Version -> file in its folders -> why a change of it cannot change its numbers."""

NONE = {
    "analysis": "tables of finished cells",
    "api.py": "hands a notebook's values on",
    "cli": "reads options and hands them on",
    "config": "a study's values, which are in the hash of all that they decide",
    "core/__init__.py": "no code",
    "core/atomic.py": "writes files",
    "core/progress.py": "messages",
    "core/records.py": "detects corrupt files",
    "core/yaml_loader.py": "reads files whose values are hashed",
    "errors.py": "messages",
    "export": "reads finished cells and writes them in other forms",
    "figures": "drawings of finished cells",
    "report": "a page about finished cells",
    "study": "names cells and keeps their files; seeds are Cell's",
    "__init__.py": "names of the public functions",
}
"""Folders and files of the package in which no version's numbers are made, and why."""


def modules(version: str) -> list[Path]:
    """The whole files whose code decides a version's numbers, sorted."""
    found = []
    for name in FOLDERS[version]:
        path = PACKAGE / name
        if ":" not in name:
            found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return [path for path in sorted(found) if relative(path) not in APART[version]]


def parts(version: str) -> list[tuple[str, ast.AST]]:
    """The parts of files that do, each a class or function at the top of its file."""
    found = []
    for name in FOLDERS[version]:
        file, _, wanted = name.partition(":")
        if wanted:
            body = ast.parse((PACKAGE / file).read_text("utf-8")).body
            (part,) = (node for node in body if getattr(node, "name", None) == wanted)
            found.append((name, part))
    return found


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def number(version: str) -> int:
    """A version as it is declared now."""
    return getattr(import_module(VERSIONS[version]), version)


def digest(version: str) -> str:
    """SHA-256 over what the modules of a version do: neither comments, docstrings, types nor formatting count."""
    code = [(relative(path), ast.parse(path.read_text("utf-8"))) for path in modules(version)]
    code = [[name, shape(tree)] for name, tree in [*code, *parts(version)]]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


UNCOUNTED = ("kind", "annotation", "returns")
"""Fields of a syntax tree that do nothing: whether a text was written as u"…", and types."""


def shape(node: Any) -> Any:
    """A syntax tree as lists, without types and texts that stand alone as statements; the same in every Python."""
    if isinstance(node, ast.AST):
        fields = ((name, getattr(node, name, None)) for name in node._fields if name not in UNCOUNTED)
        return [type(node).__name__, *([name, shape(value)] for name, value in fields if value not in (None, []))]
    if isinstance(node, list):
        return [shape(part) for part in node if not is_text(part)]
    return node if isinstance(node, str | int | bool) else repr(node)


def is_text(node: Any) -> bool:
    """A docstring, or a string under a constant that says what it is."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def present() -> dict[str, dict[str, Any]]:
    return {version: {"version": number(version), "digest": digest(version)} for version in VERSIONS}


def recorded() -> dict[str, dict[str, Any]]:
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def complaint(version: str, was: dict[str, Any] | None, now: dict[str, Any]) -> str | None:
    """What to do about a version whose code or number is not what is recorded; None where both are."""
    if was == now:
        return None
    record = "python tests/numerics.py --record"
    if was is None:
        return f"{version} is not recorded: say `{record}`."
    if was["digest"] == now["digest"] or was["version"] != now["version"]:
        return f"{version} was {was['version']} and is {now['version']}: say `{record}`."
    return (
        f"{version} is {now['version']} as before, and its code is another. If numbers may have changed, raise "
        f"{version} in {VERSIONS[version].replace('.', '/')}.py, so that old results are not taken for new. If they "
        f"have not, show it (the same bytes of θ before and after: apet verify). Then say `{record}`."
    )


def main(arguments: list[str]) -> int:
    was, now = recorded(), present()
    complaints = [said for version in VERSIONS if (said := complaint(version, was.get(version), now[version]))]
    if arguments == ["--record"]:
        for version in VERSIONS:
            old, new = was.get(version), now[version]
            if old != new:
                before = f"{old['version']} {old['digest'][:12]}" if old else "nothing"
                kept = "" if not old or old["version"] != new["version"] else " (the version stays: θ must be the same)"
                print(f"{version}: {before} -> {new['version']} {new['digest'][:12]}{kept}")
        RECORD.write_text(json.dumps(now, indent=2) + "\n")
        return 0
    print("\n".join(complaints) or "all versions are recorded")
    return 2 if arguments else bool(complaints)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
