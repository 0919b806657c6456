"""Sphinx configuration. `make docs` builds the site in docs/_build from these pages and the docstrings."""

from __future__ import annotations

import re
import shutil
from importlib.metadata import version as installed
from pathlib import Path
from pkgutil import iter_modules, walk_packages
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

import apet
from apet.cli.app import parser

project = "apet"
version = release = installed("apet")
author = "the apet authors"
html_title = f"apet {version}"
html_theme = "furo"
html_show_copyright = html_show_sphinx = False
html_copy_source = False

extensions = ["sphinx.ext.napoleon", "myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
default_role = "code"
autodoc_default_options = {"members": True, "ignore-module-all": True}
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True


def write_packages(folder: Path) -> None:
    """Write one page for each package with all of its modules. reference.md lists the pages."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for package in iter_modules(apet.__path__, "apet."):
        paths = [str(Path(path, package.name.removeprefix("apet."))) for path in apet.__path__] if package.ispkg else []
        names = [package.name, *(module.name for module in walk_packages(paths, f"{package.name}."))]
        parts = [f"{name}\n{('-' if number else '=') * len(name)}\n\n.. automodule:: {name}\n"
                 for number, name in enumerate(names)]  # fmt: skip
        (folder / f"{package.name}.rst").write_text("\n".join(parts), "utf-8")


class Commands(Directive):
    """Directive that inserts the `--help` of each command below a heading."""

    def run(self) -> list[nodes.Node]:
        top = parser()
        (commands,) = (action.choices for action in top._actions if isinstance(action.choices, dict))
        sections = [self._section("apet", top.format_help())]
        return sections + [self._section(f"apet {name}", sub.format_help()) for name, sub in commands.items()]

    def _section(self, title: str, text: str) -> nodes.section:
        section = nodes.section("", nodes.title("", title), nodes.literal_block(text, text, language="text"))
        section["names"].append(nodes.fully_normalize_name(title))
        self.state.document.note_implicit_target(section, section)
        return section


ATTRIBUTES: dict[str, list[str]] = {}
"""Docstrings of attributes before Napoleon, which would take the text before a colon for a type."""


def keep_attribute(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Remember the docstring of an attribute."""
    if what in ("attribute", "data"):
        ATTRIBUTES[name] = list(lines)


def escape_markup(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escape characters of docstrings (*, |, a trailing _) that reStructuredText would take for markup."""
    lines[:] = ATTRIBUTES.pop(name, lines)
    for number, line in enumerate(lines):
        parts = re.split(r"(`[^`]*`)", line)
        parts[::2] = [re.sub(r"([*|\\]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2]]
        lines[number] = "".join(parts)


def setup(app: Sphinx) -> None:
    app.add_directive("commands", Commands)
    app.connect("autodoc-process-docstring", keep_attribute, priority=1)
    app.connect("autodoc-process-docstring", escape_markup)
    app.connect("builder-inited", lambda app: write_packages(Path(app.srcdir) / "_generated"))
