"""The documentation site: it builds without warnings, links resolve, and lists agree with the code."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from pkgutil import iter_modules
from urllib.parse import unquote, urldefrag

import pytest

import apet
from apet.cli.app import COMMANDS, EXITS
from apet.placement import STRUCTURES
from toy import ROOT

pytestmark = pytest.mark.slow

DOCS = ROOT / "docs"
PACKAGES = sorted(module.name for module in iter_modules(apet.__path__))
PAGES = [path for path in sorted(DOCS.rglob("*.md")) if "_build" not in path.parts]


class Page(HTMLParser):
    """Links, loaded files and anchors of an HTML page."""

    def __init__(self, page: Path):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], {""}
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.anchors |= {values.get("id"), values.get("name")}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        elif address := values.get("src") or (values.get("href") if tag == "link" else None):
            self.loads.append(address)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the site, built as by `make docs`."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-qW", "--keep-going", "-d", folder / "trees", DOCS, folder / "html"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, ""), process.stderr[-3000:]
    return folder / "html"


def test_site_links_resolve_to_pages_and_anchors(site):
    pages = {page.resolve(): Page(page) for page in site.rglob("*.html")}
    assert len(pages) > len(PAGES) + len(PACKAGES)
    broken = []
    for page, content in pages.items():
        for address in {*content.links, *content.loads}:
            path, anchor = urldefrag(address)
            if re.match(r"\w+:", address):
                continue
            target = (page.parent / unquote(path.partition("?")[0])).resolve() if path else page
            if not target.is_file() or (anchor and target in pages and unquote(anchor) not in pages[target].anchors):
                broken.append(f"{page.relative_to(site)}: {address}")
    assert broken == []


def test_site_loads_nothing_from_the_network(site):
    assert [a for page in site.rglob("*.html") for a in Page(page).loads if re.match(r"(\w+:)?//", a)] == []


def test_site_documents_every_package_and_command(site):
    for name in PACKAGES:
        text = (site / "_generated" / f"apet.{name}.html").read_text()
        assert f'id="module-apet.{name}"' in text
    commands = (site / "commands.html").read_text()
    assert all(f'id="apet-{name}"' in commands for name in COMMANDS)
    assert "Trainable parameters [budget], float32." in (site / "_generated" / "apet.export.html").read_text()


def test_markdown_links_resolve_without_the_site():
    broken = []
    for page in PAGES:
        for address in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
            path = address.partition("#")[0]
            if path and not address.startswith("http") and not (page.parent / path).exists():
                broken.append(f"{page.relative_to(DOCS)}: {address}")
    assert broken == []


def test_architecture_and_reference_list_every_package():
    rows = re.findall(r"^\| `(\w+)` \|", (DOCS / "architecture.md").read_text(), re.MULTILINE)
    assert sorted(rows) == PACKAGES
    assert re.findall(r"_generated/apet\.(\w+)", (DOCS / "reference.md").read_text()) == rows[::-1]


def test_commands_page_lists_the_exit_statuses():
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", (DOCS / "commands.md").read_text(), re.MULTILINE)
    assert {int(status): meaning for status, meaning in rows} == EXITS


def test_glossary_lists_every_structure():
    text = (DOCS / "glossary.md").read_text()
    assert all(f"`{name}`" in text for name in STRUCTURES)
