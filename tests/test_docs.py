"""The documentation's site: it builds without a warning, its links lead somewhere, and its lists are the code's."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from pkgutil import iter_modules
from urllib.parse import unquote, urldefrag
from xml.etree import ElementTree

import pytest

import apet
from apet.cli.app import COMMANDS, EXITS
from apet.placement import STRUCTURES
from toy import ROOT

DOCS = ROOT / "docs"
PACKAGES = sorted(module.name for module in iter_modules(apet.__path__))
PAGES = [path for path in sorted(DOCS.rglob("*.md")) if "_build" not in path.parts]


class Links(HTMLParser):
    """What a page leads to and loads, and the places in it that others may lead to."""

    def __init__(self, page: Path):
        super().__init__()
        self.leads, self.loads, self.places = [], [], {""}
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.places |= {found.get("id"), found.get("name")}
        if tag == "a" and found.get("href"):
            self.leads.append(found["href"])
        elif address := found.get("src") or (found.get("href") if tag == "link" else None):
            self.loads.append(address)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-qW", "--keep-going", "-d", folder / "trees", DOCS, folder / "html"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-3000:]
    return folder / "html"


def test_every_link_leads_to_a_page_and_a_place_in_it(site):
    pages = {page.resolve(): Links(page) for page in site.rglob("*.html")}
    assert len(pages) > len(PAGES) + len(PACKAGES)
    broken = []
    for page, links in pages.items():
        for address in {*links.leads, *links.loads}:
            path, place = urldefrag(address)
            if re.match(r"\w+:", address):
                continue
            target = (page.parent / unquote(path.partition("?")[0])).resolve() if path else page
            if not target.is_file() or (place and target in pages and unquote(place) not in pages[target].places):
                broken.append(f"{page.relative_to(site)}: {address}")
    assert broken == []


def test_reading_it_asks_for_nothing_from_the_network(site):
    assert [a for page in site.rglob("*.html") for a in Links(page).loads if re.match(r"(\w+:)?//", a)] == []


def test_it_documents_every_package_and_every_command(site):
    for name in PACKAGES:
        text = (site / "_generated" / f"apet.{name}.html").read_text()
        assert f'id="module-apet.{name}"' in text
    commands = (site / "commands.html").read_text()
    assert all(f'id="apet-{name}"' in commands for name in COMMANDS)
    assert "the library's model is hooked" in (site / "_generated" / "apet.tuning.html").read_text().lower().replace(
        "’", "'"
    )


def test_pages_are_markdown_whose_links_work_without_the_site():
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
    drawn = ElementTree.parse(DOCS / "architecture.svg").getroot()
    bands = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text") if "left" in text.get("class", "")]
    assert [name for band in bands for name in band.split(" · ")] == rows
    assert re.findall(r"_generated/apet\.(\w+)", (DOCS / "reference.md").read_text()) == rows[::-1]


def test_the_table_of_exit_statuses_is_that_of_the_help():
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", (DOCS / "commands.md").read_text(), re.MULTILINE)
    assert {int(status): meaning for status, meaning in rows} == EXITS


def test_the_glossary_knows_every_structure():
    text = (DOCS / "glossary.md").read_text()
    assert all(f"`{name}`" in text for name in STRUCTURES)
