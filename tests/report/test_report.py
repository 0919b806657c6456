"""Report: content, security policy, and behaviour in a real browser."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Iterator
from hashlib import sha256
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from apet.analysis.aggregate import write_tasks
from apet.analysis.tidy import read_tidy, write_tidy
from apet.core.records import write_json_record
from apet.errors import ApetError, DataError
from apet.figures import FIGURES, draw_all
from apet.report import write_report
from apet.report.claim_summary import BAR_WIDTH, read_claims, tally
from apet.report.content import read_content
from apet.report.findings_text import verdict_text
from browser import Browser
from made_findings import SECTIONS, VERDICTS, finding, findings
from simulated_study import SWEEP, frame_of, record, study
from toy import ROOT

CSS = (ROOT / "src" / "apet" / "report" / "page.css").read_text()
GAP = {"model": "bloom-mid", "task": "topics", "placement": "lora", "budget": "@own", "reason": "out of memory"}
TABLES = {"methods", "differences", "tasks", "cells", "costs", "incomplete"}


def make_results(folder: Path, records: list, missing: list[dict[str, str]], study: str = "simulated") -> None:
    write_tidy(frame_of(records), folder, study, missing=missing)
    make_findings(folder)


def make_findings(folder: Path) -> None:
    """Of the table that is there."""
    about = read_tidy(folder / "tidy.parquet").attrs
    write_json_record(folder / "findings.json", findings(about["digest"]) | {"study": about["study"]})


def make_costs(folder: Path, cells: list[str]) -> None:
    run = {"seconds": 12.5, "cpu_seconds": 36.0, "peak_memory_mb": 640, "finished": "2026-01-02T03:04:05Z"}
    rows = [
        {"cell_path": cell, **run, "host": f"node-{i % 2}", "versions.torch": "2.13.0"} for i, cell in enumerate(cells)
    ]
    pd.DataFrame(rows).to_csv(folder / "costs.csv", index=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with figures, in which one cell is missing and a replicate of another has diverged."""
    folder = tmp_path_factory.mktemp("results")
    records = [(cell, metrics) for cell, metrics in study() if cell != "bloom-mid/topics/lora-@own"]
    first = records[0][1]["replicates"][0]
    first |= {"outcome": "diverged", "theta_digest": "0123456789abcdef-and-more"}
    first["test"]["score"] = first["validation"]["score"] = None
    make_results(folder, records, missing=[GAP])
    make_costs(folder, [cell for cell, _ in records])
    write_tasks((metrics for _, metrics in records), folder)
    draw_all(folder / "tidy.parquet", folder / "figures")
    write_report(folder, folder / "report.html")
    return folder


@pytest.fixture(scope="module")
def page(results: Path) -> Path:
    return results / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    made = Browser()
    yield made
    made.quit()


def rewritten(results: Path, folder: Path, *without: str) -> Path:
    """The report on a copy of results that lacks some files."""
    shutil.copytree(results, folder, ignore=shutil.ignore_patterns("report.html", *without))
    write_report(folder, folder / "report.html")
    return folder / "report.html"


# What it says


def test_report_has_its_sections_in_order(page: Path) -> None:
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", page.read_text()) == SECTIONS


@pytest.mark.parametrize(
    ("found", "printed"),
    [
        (finding("supported", -2.0, -3.0, -1.0, 0.01, 0.02), "The whole interval is on the claim's side of 0."),
        (finding("contradicted", 2.0, 1.0, 3.0, 0.01, 0.02), "The whole interval is on the other side of 0"),
        (finding("undecided", -2.0, -5.0, 1.0, 0.2, 0.4), "The interval includes 0"),
        (finding("undecided", -2.0, None, 1.0, 0.2, 0.4), "The interval includes 0"),
        (finding("undecided", 2.0, -1.0, None, 0.2, 0.4), "The interval includes 0"),
        (finding("undecided", 2.0, 1.0, None, 0.02, 0.06), "The unadjusted interval excludes 0; after correction"),
        (finding("not tested", reason="one task."), "One task."),
    ],
)
def test_verdict_text_is_no_stronger_than_the_interval(found: dict, printed: str) -> None:
    assert verdict_text(found).startswith(printed)
    assert ("contradict the claim" in verdict_text(found)) == (found["verdict"] == "contradicted")


def test_claim_bars_are_at_the_positions_of_their_numbers() -> None:
    claims = {claim.name: claim for claim in read_claims(findings())}
    bar = claims["positions"].overall.findings[0].bar
    assert 0 < bar["low"] < bar["estimate"] < bar["high"] < BAR_WIDTH / 2
    assert (bar["high"] - bar["low"]) / (bar["high"] - bar["estimate"]) == pytest.approx(40.5 / 19.34, rel=0.02)
    widest = claims["positions"].overall.findings[1].bar
    assert widest["low"] == pytest.approx(BAR_WIDTH / 2 * (1 - 1 / 1.12), abs=0.1)  # both on one scale
    assert widest["estimate"] == bar["estimate"]
    open_ended = claims["chance_threshold"].overall.findings[1].bar
    assert open_ended["low"] == 0 and len(open_ended["ends"]) == 1 and BAR_WIDTH / 2 < open_ended["high"] < BAR_WIDTH
    assert claims["full_ft_threshold"].overall.findings[0].bar is None


def test_report_shows_verdict_numbers_and_basis_of_each_claim(page: Path) -> None:
    text = page.read_text()
    assert (
        tally(read_claims(findings()))
        == "Of 4 claims, on these tasks: 1 supported, 1 contradicted, 1 undecided, 1 not tested."
    )
    articles = re.findall(r"<article.*?</article>", text, flags=re.DOTALL)
    badges = [re.search(r'class="badge ([\w-]+)"', article)[1].replace("-", " ") for article in articles]
    assert badges == list(VERDICTS.values())
    assert (
        "−31.24 points² per tenfold increase in parameters" in articles[0]
        and "−52.4 to −11.9, adjusted p\u00a00.006" in articles[0]
    )
    assert "From 3 PLMs, 2 tasks, 24 cells, 1,072 replicates." in articles[0]
    assert "bloom: supported on these tasks, not tested on similar tasks" in articles[0]
    assert articles[1].count("not tested") == 1 and "From " not in articles[1] and "<details>" not in articles[1]
    assert "Nearly all thresholds lie beyond" in articles[1]
    assert "<title>tiny: " in text and re.search(r"<h1>tiny: ", text)
    assert "−∞ to 2.5" in articles[2] and "Two tasks were left out." in articles[3]


def test_cells_table_has_scores_outcomes_costs_and_provenance(results: Path) -> None:
    table = read_content(results).cells
    rows = {tuple(row[:4]): (row, i) for i, row in enumerate(table.rows)}
    assert len(rows) == len(study())
    labels = [column.label for column in table.columns]
    gap, _ = rows["bloom-mid", "topics", "lora", "@own"]
    assert gap[-1] == "missing" and gap[labels.index("Score, %")] == [None, "—"]
    first = study()[0]
    broken, i = rows["bloom-small", "topics", "full", "@own"]
    assert first[0] == "bloom-small/topics/full-@own"
    assert broken[-1] == "1 of 2 diverged" and broken[labels.index("Replicates")] == [1.0, "1"]
    left = 100 * first[1]["replicates"][1]["test"]["score"]
    assert broken[labels.index("Score, %")][0] == pytest.approx(left)
    assert broken[labels.index("Seconds")] == [12.5, "12.5"]
    run = dict(zip([column.label for column in table.details.columns], table.details.runs[i][0], strict=True))
    assert run["Outcome"] == "diverged" and run["Test score, %"] == [None, "—"]
    assert run["θ digest"] == "0123456789abcdef" and run["Plan digest"] == "a0" and run["Best step"] == [80.0, "80"]
    facts = dict(zip(table.details.labels, table.details.facts[i], strict=True))
    assert facts["Folder"] == first[0] and facts["Host"] == "node-0" and facts["Chance"] == "23.7 %"
    assert facts["Study seed"] == "1" and facts["PLM digest"] == "c0"


def test_incomplete_table_lists_missing_and_diverged_cells(results: Path) -> None:
    assert read_content(results).incomplete.rows == [
        [*list(GAP.values())[:4], "missing", "out of memory"],
        ["bloom-small", "topics", "full", "@own", "diverged", "1 of 2 replicates"],
    ]


def test_report_names_the_design_of_the_study(page: Path, results: Path) -> None:
    design = dict(read_content(results).design)
    assert list(design) == ["PLMs", "Tasks", "Placements", "Budgets", "Seed"]
    assert design["PLMs"] == "bloom-small, bloom-mid, bloom-large" and design["Seed"] == "1"
    assert set(design["Budgets"].split(", ")) == {"@own", "0", "@lora", "@adapter", "@prompt", "@bitfit", *SWEEP}
    question = re.search(r'<section id="question".*?</section>', page.read_text(), flags=re.DOTALL)[0]
    assert all(f"<dt>{label}</dt><dd>{text}</dd>" in question for label, text in design.items())


def test_report_has_costs_and_machines_of_the_run_records(results: Path) -> None:
    content = read_content(results)
    assert content.spent == "0.77 CPU hours for training all 77 cells, without preparing texts and PLMs."
    assert [row[0] for row in content.costs.rows] == ["bloom-small", "bloom-mid", "bloom-large"]
    assert content.costs.rows[1][2:4] == [[25.0, "25"], [0.25, "0.25"]]
    assert [dict(machine) for machine in content.machines] == [
        {"cells": "39", "host": "node-0", "torch": "2.13.0"},
        {"cells": "38", "host": "node-1", "torch": "2.13.0"},
    ]


def test_report_embeds_figures_and_their_numbers(results: Path) -> None:
    """Except a figure without numbers, of which the study contains nothing."""
    text = (results / "report.html").read_text()
    empty = [name for name in FIGURES if len((results / "figures" / f"{name}.csv").read_text().splitlines()) == 1]
    assert len(empty) <= 1 and not any(f'id="figure-{name}"' in text for name in empty)
    for name in (name for name in FIGURES if name not in empty):
        for form, kind in (("svg", "image/svg+xml"), ("csv", "text/csv")):
            content = base64.b64encode((results / "figures" / f"{name}.{form}").read_bytes()).decode()
            assert f"data:{kind};base64,{content}" in text


def test_report_of_equal_results_has_equal_bytes(results: Path, page: Path, tmp_path: Path) -> None:
    assert rewritten(results, tmp_path / "again").read_bytes() == page.read_bytes()


def test_report_without_optional_files_says_so(results: Path, tmp_path: Path) -> None:
    text = rewritten(results, tmp_path / "bare", "costs.csv", "tasks.csv", "figures").read_text()
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", text) == SECTIONS
    for printed in ("There are no figures", "Machines and versions are unknown", "The cost is unknown"):
        assert printed in text


def test_report_with_wrong_findings_names_the_file(results: Path, tmp_path: Path) -> None:
    shutil.copy(results / "tidy.parquet", tmp_path)
    path = tmp_path / "findings.json"
    with pytest.raises(DataError, match=r"findings\.json: no such file"):
        write_report(tmp_path, tmp_path / "report.html")
    for content, printed in (("{", "not a JSON document"), ("[]", "got list"), ('{"study": 1}', "wrong checksum")):
        path.write_text(content)
        with pytest.raises(ApetError, match=rf"findings\.json: .*{printed}"):
            write_report(tmp_path, tmp_path / "report.html")
    other = findings() | {"study": "other"}
    for found, printed in (
        ({"study": "simulated", "table": ""}, "missing keys: claims"),
        ({"study": "simulated"}, "missing keys: claims, .*table"),
        (other, "expected study simulated of tidy.parquet, got other"),
        (findings("0" * 64), "made from another table than tidy.parquet beside it. Run `apet findings`"),
    ):
        write_json_record(path, found)
        with pytest.raises(DataError, match=rf"findings\.json: .*{printed}"):
            write_report(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("content", "printed"),
    [
        ("model\nbloom-mid\n", "missing column 'cell_path'"),
        ("cell_path,seconds,cpu_seconds\na,1,1\n", "missing column 'peak_memory_mb'"),
        (
            "cell_path,seconds,cpu_seconds,peak_memory_mb\na,1,1,1\nb,1,soon,1\n",
            "cpu_seconds of b: expected a number, got 'soon'",
        ),
        ("cell_path,seconds,cpu_seconds,peak_memory_mb\na,inf,1,1\n", "seconds of a: expected a number, got 'inf'"),
    ],
)
def test_report_with_malformed_costs_names_file_and_value(
    results: Path, tmp_path: Path, content: str, printed: str
) -> None:
    for name in ("tidy.parquet", "findings.json"):
        shutil.copy(results / name, tmp_path)
    (tmp_path / "costs.csv").write_text(content)
    with pytest.raises(DataError, match=rf"costs\.csv: {printed}"):
        write_report(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_report_ignores_costs_of_another_study(results: Path, tmp_path: Path) -> None:
    for name in ("tidy.parquet", "findings.json"):
        shutil.copy(results / name, tmp_path)
    make_costs(tmp_path, ["other/topics/full-@own"])
    content = read_content(tmp_path)
    assert content.machines == [] and content.costs is None and content.spent.startswith("The cost is unknown")


# What it may do


def test_report_policy_allows_only_its_style_and_script(page: Path) -> None:
    text = page.read_text()
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', text)[1].replace("&#39;", "'")
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    for kind in ("style", "script"):
        (content,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, flags=re.DOTALL)
        digest = base64.b64encode(sha256(content.encode()).digest()).decode()
        assert rules.pop(f"{kind}-src") == f"'sha256-{digest}'"
    assert rules == {"default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'"}
    assert "http://" not in text and "https://" not in text


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_report_text_has_sufficient_contrast(theme: int) -> None:
    """Contrast of at least 4.5 (WCAG 2.2, level AA)."""

    def luminance(colour: str) -> float:
        colour = colour * 2 if len(colour) == 3 else colour
        parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(w * part for w, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    colours = dict(re.findall(r"--(\w+): #(\w+);", re.findall(r":root \{(.*?)\}", CSS, flags=re.DOTALL)[theme]))
    for ink, ground in product(
        ("ink", "quiet", "accent", "supported", "contradicted", "undecided"), ("ground", "card", "soft")
    ):
        dark, light = sorted([luminance(colours[ink]), luminance(colours[ground])])
        assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{ink} on {ground}"


# In a browser


def column(browser: Browser, table: str, index: int) -> list[str]:
    """All texts of a column, page after page."""
    return browser.run(
        """
        const section = document.querySelector(`[data-table="${arguments[0]}"]`), found = [];
        const [before, after] = section.querySelectorAll(".pages button");
        for (;;) {
            found.push(...[...section.querySelectorAll("tbody > tr")].map(row => row.cells[arguments[1]].textContent));
            if (after.hidden || after.disabled) return found;
            after.click();
        }""",
        table,
        index,
    )


def part(browser: Browser, table: str, what: str):
    return browser.driver.find_element(By.CSS_SELECTOR, f'[data-table="{table}"] {what}')


@pytest.mark.chromium
@pytest.mark.parametrize("width", [1280, 375])
def test_report_renders_without_requests_or_console_messages(browser: Browser, page: Path, width: int, tmp_path: Path):
    browser.open(page, width)
    shown = browser.run("return [...document.querySelectorAll('[data-table]')].map(table => table.dataset.table)")
    assert set(shown) == TABLES
    assert browser.run("return [...document.images].every(image => !image.src || image.naturalWidth > 100)")
    browser.run("document.querySelectorAll('details').forEach(details => details.open = true)")
    part(browser, "cells", ".open").click()
    assert browser.run("return document.documentElement.scrollWidth") == width
    path = tmp_path / f"{width}.png"
    path.write_bytes(browser.picture())
    image = Image.open(io.BytesIO(path.read_bytes()))
    assert image.width == width and len(image.convert("RGB").getcolors(maxcolors=10**7)) > 100
    assert {url for url in browser.requests if not url.startswith("data:")} == {page.as_uri()}
    assert browser.console == []


@pytest.mark.chromium
def test_report_tables_sort_in_both_directions(browser: Browser, results: Path, page: Path) -> None:
    browser.open(page)
    content = read_content(results)
    for table in (
        content.methods,
        content.differences,
        content.tasks,
        content.cells,
        content.costs,
        content.incomplete,
    ):
        for i, head in enumerate(table.columns):
            button = part(browser, table.name, f"thead th:nth-child({i + 1}) button")
            button.send_keys(Keys.ENTER)
            up = column(browser, table.name, i)
            button.click()
            down = column(browser, table.name, i)
            entries = [row[i] for row in table.rows]
            if head.number:
                there, gone = ([e for e in entries if (e[0] is None) == absent] for absent in (False, True))
                for sign, shown in ((1, up), (-1, down)):
                    expected = sorted(there, key=lambda entry: sign * entry[0]) + gone
                    assert shown == [text for _, text in expected], head.label
            else:
                assert sorted(up) == sorted(entries)
                assert list(dict.fromkeys(down)) == list(dict.fromkeys(up))[::-1], head.label
            sorts = browser.run(
                "return [...arguments[0].closest('tr').cells].map(head => head.getAttribute('aria-sort'))", button
            )
            assert sorts == ["descending" if j == i else "none" for j in range(len(table.columns))]
    assert up[0] != up[-1]


@pytest.mark.chromium
def test_report_tables_filter_by_text_and_choice(browser: Browser, page: Path) -> None:
    browser.open(page)
    search = part(browser, "cells", "input")
    search.send_keys("BitFit topics")
    found = column(browser, "cells", 3)
    assert len(found) == 6 and set(found) == {"@own", "@bitfit"}
    part(browser, "cells", 'select[data-column="PLM"]').send_keys("bloom-mid")
    part(browser, "cells", 'select[data-column="Placement"]').send_keys("uniform")
    assert column(browser, "cells", 0) == ["bloom-mid"] and column(browser, "cells", 3) == ["@bitfit"]
    assert part(browser, "cells", "[role=status]").text == "1–1 of 1 row (78 in all)"
    search.send_keys(" nowhere")
    assert column(browser, "cells", 0) == []
    assert part(browser, "cells", "[role=status]").text == "0 rows (78 in all)"


@pytest.mark.chromium
def test_report_tables_page_and_open_rows(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert part(browser, "cells", "[role=status]").text == "1–30 of 78 rows"
    part(browser, "cells", ".after").click()
    part(browser, "cells", ".after").click()
    assert part(browser, "cells", "[role=status]").text == "61–78 of 78 rows"
    assert not part(browser, "cells", ".after").is_enabled()
    part(browser, "cells", "input").send_keys("diverged")
    button = part(browser, "cells", ".open")
    button.send_keys(Keys.ENTER)
    assert button.get_attribute("aria-expanded") == "true"
    opened = part(browser, "cells", "tr.details").text
    assert "bloom-small/topics/full-@own" in opened and "0123456789abcdef" in opened and "and-more" not in opened
    button.click()
    assert not browser.driver.find_elements(By.CSS_SELECTOR, "tr.details")


@pytest.mark.chromium
def test_report_figure_can_be_enlarged_and_saved(browser: Browser, results: Path, page: Path) -> None:
    browser.open(page)
    name = next(iter(FIGURES))
    browser.driver.find_element(By.CSS_SELECTOR, f"#figure-{name} .zoom").click()
    large = browser.driver.find_element(By.CSS_SELECTOR, "dialog[open] img")
    assert large.size["width"] > 900 and large.get_attribute("alt")
    browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not browser.driver.find_elements(By.CSS_SELECTOR, "dialog[open]")
    link = browser.driver.find_element(By.CSS_SELECTOR, f"#figure-{name} a.image")
    held = base64.b64decode(link.get_attribute("href").partition(",")[2])
    assert link.get_attribute("download") == f"{name}.svg"
    assert held == (results / "figures" / f"{name}.svg").read_bytes()


@pytest.mark.chromium
def test_report_follows_dark_scheme_and_print(browser: Browser, page: Path) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor"
    browser.open(page, scheme="dark")
    assert browser.run(ground) == "rgb(18, 20, 24)"
    assert (
        browser.run("return getComputedStyle(document.querySelector('.zoom')).backgroundColor") == "rgb(255, 255, 255)"
    )
    browser.open(page, scheme="dark", media="print")
    assert browser.run(ground) == "rgb(255, 255, 255)"
    assert not browser.driver.find_element(By.TAG_NAME, "nav").is_displayed()
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert len(browser.driver.find_elements(By.CSS_SELECTOR, '[data-table="cells"] tbody tr')) == 78


@pytest.mark.chromium
def test_report_escapes_names(browser: Browser, tmp_path: Path) -> None:
    evil = "</script><script>window.hit=1</script><img src=x onerror=window.hit=1>\"'&"
    cell, metrics = record("bloom-mid", "topics", "lora", "@own", [[0.8, 0.7]], 19_200)
    metrics["cell"]["task"] = metrics["cell"]["model"] = metrics["replicates"][0]["plan_digest"] = evil
    make_results(tmp_path, [(f"{cell}{evil}", metrics)], missing=[{**GAP, "reason": evil}], study=evil)
    found = findings(read_tidy(tmp_path / "tidy.parquet").attrs["digest"])
    found["study"] = found["claims"]["positions"]["statement"] = evil
    write_json_record(tmp_path / "findings.json", found)
    pd.DataFrame(
        {"cell_path": [f"{cell}{evil}"], "host": [evil], "cpu_seconds": [1.0], "seconds": [1.0], "peak_memory_mb": [1]}
    ).to_csv(tmp_path / "costs.csv", index=False)
    pd.DataFrame({"task": [evil]}).to_csv(tmp_path / "tasks.csv", index=False)
    write_report(tmp_path, tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
    part(browser, "cells", ".open").click()
    assert browser.run("return window.hit") is None
    assert browser.run("return document.images.length") == 1  # the empty one in which figures are enlarged
    for text in (
        "h3",
        "#environment code",
        "[data-table=cells] .open",
        "[data-table=tasks] tbody th",
        ".machine div:last-child dd",
    ):
        assert evil in browser.driver.find_element(By.CSS_SELECTOR, text).get_attribute("textContent")
    assert browser.console == []


@pytest.mark.chromium
def test_report_of_thousands_of_cells_sorts_quickly(browser: Browser, tmp_path: Path) -> None:
    frame = frame_of([cell for cell in study() if "/uniform-" in cell[0]])
    frame = frame.assign(
        theta_digest="0" * 64, plan_digest="1" * 64, n_test=20, row_scores=frame.row_scores.map(lambda rows: rows[:20])
    )
    copies = [frame.assign(budget=frame.budget + f" {i}", cell_path=frame.cell_path + f" {i}") for i in range(99)]
    frame = pd.concat(copies, ignore_index=True)
    write_tidy(frame, tmp_path, "simulated")
    make_findings(tmp_path)
    make_costs(tmp_path, list(frame.cell_path.unique()))
    write_report(tmp_path, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 12e6
    browser.open(tmp_path / "report.html")
    assert part(browser, "cells", "[role=status]").text == "1–30 of 4,158 rows"
    took = browser.run(
        """
        const heads = document.querySelectorAll('[data-table=cells] thead button');
        return [...heads].map(head => {
            const start = performance.now();
            head.click();
            document.body.getBoundingClientRect();
            return performance.now() - start;
        });"""
    )
    assert len(took) == 11 and max(took) < 1000
