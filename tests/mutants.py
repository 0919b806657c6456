"""Mutation testing of placement and analysis: small errors put into the code, one at a time; do the tests see them?

    python tests/mutants.py [MODULE ...] [--each N] [--processes N] [--results FILE]

Cosmic Ray knows the errors: another operator, a number one higher, a condition turned round. Of a module's mutants a
sample is tried, those of the smallest hash. Each is tried in a forked process that imports the mutant in the module's
stead, so no file changes; a test that fails kills it. Exit status 1 where one survives that docs/mutants.md does not
list. The results file holds what has been tried: a run goes on where another was stopped, and tries survivors again.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import functools
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, ModuleType

import hypothesis
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.ast.ast_query import ASTQuery
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
OURS = (str(SOURCE), str(ROOT / "tests"))
PAGE = ROOT / "docs/mutants.md"
EACH = 20
LIMIT = 90
"""Seconds of CPU after which a mutant that runs for ever is dead."""
CRUDE = re.compile(r"Operator_(Add|Sub|Mul|Div|FloorDiv|Mod|Pow)_(Mod|Pow|.Shift|Bit.+)|_Is(Not)?$|_Invert$")
"""Operators that are left out: a shift or a bit operation in the place of arithmetic dies at the first call."""
PLACEMENT = ("test_placement", "test_counts")
TIDY = ("test_analysis_tidy",)
TABLE = ("test_analysis_table",)
FINDINGS = ("test_findings",)
TESTS = {
    "placement.budgets": PLACEMENT,
    "placement.plans": PLACEMENT,
    "placement.rules": PLACEMENT,
    "placement.sites": PLACEMENT,
    "analysis.claims": ("test_analysis_claims", "test_analysis_trends", *FINDINGS),
    "analysis.columns": TIDY,
    "analysis.components": ("test_analysis_components",),
    "analysis.confidence": ("test_analysis_confidence",),
    "analysis.costs": TABLE,
    "analysis.differences_table": TABLE,
    "analysis.dispersion": ("test_analysis_thresholds", *FINDINGS),
    "analysis.findings": FINDINGS,
    "analysis.findings_page": ("test_analysis_findings_page",),
    "analysis.findings_table": TABLE,
    "analysis.latex": TABLE,
    "analysis.means": ("test_analysis_means",),
    "analysis.moderation": ("test_analysis_moderation",),
    "analysis.predictions": TIDY,
    "analysis.resampling": ("test_analysis_resampling",),
    "analysis.summary": ("test_analysis_means",),
    "analysis.table": TABLE,
    "analysis.tasks": ("test_analysis_tasks",),
    "analysis.thresholds": ("test_analysis_thresholds",),
    "analysis.tidy": TIDY,
    "analysis.tidy_file": (*TIDY, "test_old_results"),
    "analysis.trends": ("test_analysis_trends", "test_analysis_thresholds"),
    "analysis.wording": TABLE,
}
"""Module -> the test files that are to kill its mutants."""
SLOW = (
    "test_random_plan_meets_any_budget_exactly",
    "test_components_of_studies_hit_the_truth_on_average",
    "test_intervals_hold_the_truth_as_often_as_they_say",
    "test_tasks_as_a_sample_hold_the_mean_of_all_tasks",
    "test_slope_of_the_high_threshold_holds_the_truth",
    "test_variance_of_truth_is_not_that_of_the_noise",
    "test_what_cannot_be_decided_is_undecided",
    "test_files_and_the_cells_behind_each_finding",
    "test_rows_in_any_order_and_a_second_time_give_the_same_document",
    "test_missing_cells_and_diverged_replicates_at_random",
    "test_true_claims_are_supported",
    "test_false_claims_are_contradicted",
    "test_without_full_fine_tuning_the_other_claims_stand",
    "test_a_budget_that_one_plm_lacks_is_compared_on_none",
)
"""Simulations of many seconds, left out."""


@dataclass(frozen=True)
class Mutant:
    """One small error in a module: an operator of Cosmic Ray at its `occurrence`-th place there."""

    module: str
    where: str
    """Function that holds it; empty outside of functions."""
    line: str
    place: tuple[int, int]
    operator: str
    occurrence: int
    step: int
    """Which of the operator's changes at the place."""

    @property
    def hash(self) -> str:
        """Of what it is, not of the line's number: an edit elsewhere in the module changes no other mutant's."""
        known = (self.module, self.where, self.line, self.place[1], self.operator, self.step)
        return hashlib.sha256(repr(known).encode()).hexdigest()

    @functools.cached_property
    def code(self) -> str:
        """The whole module with the error; empty where it cannot be compiled."""
        found = mutate_code(file_of(self.module).read_text(), get_operator(self.operator)(), self.occurrence)
        try:
            compile(found, self.module, "exec")
        except SyntaxError:
            return ""
        return found

    @property
    def change(self) -> str:
        """The lines that differ, before and after."""
        diff = difflib.ndiff(file_of(self.module).read_text().splitlines(), self.code.splitlines())
        lines = [line for line in diff if line[:2] in ("- ", "+ ")]
        return " → ".join("`" + " ".join(x[2:].strip() for x in lines if x.startswith(sign)) + "`" for sign in "-+")


def file_of(module: str) -> Path:
    return SOURCE.joinpath("apet", *module.split(".")).with_suffix(".py")


def mutants(module: str) -> list[Mutant]:
    """All mutants of a module, but not of its annotations, which change nothing when it runs."""
    code = file_of(module).read_text()
    tree, lines, found = get_ast(code), code.splitlines(), []
    bounds = [
        ((a.lineno, a.col_offset), (a.end_lineno, a.end_col_offset))
        for node in ast.walk(ast.parse(code))
        for a in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if a is not None
    ]
    for name in operator_names():
        if CRUDE.search(name) or (kind := get_operator(name)).arguments():
            continue
        places = [(node, start) for node in ast_nodes(tree) for start, _ in kind().mutation_positions(node)]
        for occurrence, (node, place) in enumerate(places):
            if not any(start <= place < end for start, end in bounds):
                where = ASTQuery(node).get_definition_name() or ""
                step = sum(earlier == place for _, earlier in places[:occurrence])
                found.append(Mutant(module, where, lines[place[0] - 1].strip(), place, name, occurrence, step))
    return found


def sample(found: list[Mutant], number: int) -> list[Mutant]:
    """Those of the smallest hash, one at a place."""
    chosen: dict[tuple[int, int], Mutant] = {}
    for mutant in sorted(found, key=lambda m: m.hash):
        if len(chosen) < number and mutant.place not in chosen and mutant.code:
            chosen[mutant.place] = mutant
    return list(chosen.values())


class Mutated(importlib.machinery.SourceFileLoader):
    """Loads a mutant in its module's stead."""

    def __init__(self, name: str, mutant: Mutant) -> None:
        super().__init__(name, str(file_of(mutant.module)))
        self.mutant = mutant

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.mutant.code, self.path, "exec")


class Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self.name, self.mutant = f"apet.{mutant.module}", mutant

    def find_spec(
        self, name: str, path: object = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(name, Mutated(name, self.mutant)) if name == self.name else None


def warm_up() -> None:
    """Import once, before the forks, what the tests need; the processes then import only our own modules anew."""
    sys.path[:0] = [str(SOURCE), str(ROOT / "tests")]
    for name in sorted({name for names in TESTS.values() for name in names}):
        importlib.import_module(name)


def run_tests(module: str, mutant: Mutant | None, log: Path) -> None:
    """In a process of its own: pytest's exit status, of the tests that are to see the mutant."""
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 5))
    for name, loaded in list(sys.modules.items()):
        if name != "__main__" and (getattr(loaded, "__file__", None) or "").startswith(OURS):
            del sys.modules[name]
    hypothesis.settings.register_profile("mutants", database=None, derandomize=True, deadline=None)
    hypothesis.settings.load_profile("mutants")
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if mutant is not None:
        sys.meta_path.insert(0, Finder(mutant))
    files = [str(ROOT / f"tests/{name}.py") for name in TESTS[module]]
    without = "not (" + " or ".join(SLOW) + ")"
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "xdist.plugin", "-k", without, "--rootdir", str(ROOT)]
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os._exit(int(pytest.main([*options, *files])))


def attempt(module: str, mutant: Mutant | None, folder: Path) -> tuple[str, float]:
    """killed, survived or endless, and seconds."""
    begin = time.monotonic()
    log = folder / f"{module}.{mutant.hash[:8] if mutant else 'whole'}.log"
    process = multiprocessing.get_context("fork").Process(target=run_tests, args=(module, mutant, log))
    process.start()
    process.join()
    if process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL):
        return "endless", time.monotonic() - begin
    if process.exitcode not in (0, 1, 2):
        raise SystemExit(f"{module}: pytest could not run (status {process.exitcode}): see {log}")
    return "killed" if process.exitcode else "survived", time.monotonic() - begin


def try_module(module: str, given: argparse.Namespace) -> None:
    """Try the module's sample, and append a line a mutant to the results."""
    found = mutants(module)
    done = {row["hash"] for row in read_results(given.results) if row["outcome"] != "survived"}
    chosen = [mutant for mutant in sample(found, given.each) if mutant.hash not in done]
    if not chosen:
        return
    outcome, seconds = attempt(module, None, given.logs)
    print(f"{module}: {len(chosen)} of {len(found)} mutants; {seconds:.0f} s without one", flush=True)
    if outcome != "survived":
        raise SystemExit(f"{module}: its tests fail without a mutant: see {given.logs}/{module}.whole.log")
    with ThreadPoolExecutor(given.processes) as pool:
        outcomes = pool.map(lambda mutant: attempt(module, mutant, given.logs)[0], chosen)
        for mutant, outcome in zip(chosen, outcomes, strict=True):
            told = {"hash": mutant.hash, "change": mutant.change, "outcome": outcome, "of": len(found)}
            with given.results.open("a") as file:
                file.write(json.dumps(asdict(mutant) | told, ensure_ascii=False) + "\n")
            if outcome == "survived":
                print(f"  survived, {mutant.where}: {mutant.change}", flush=True)


def read_results(path: Path) -> list[dict]:
    """The last of each mutant: survivors are tried again."""
    rows = map(json.loads, path.read_text().splitlines() if path.exists() else ())
    return list({row["hash"]: row for row in rows}.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", default=list(TESTS), metavar="MODULE", help="as analysis.means")
    parser.add_argument("--each", type=int, default=EACH, help="mutants of a module")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=ROOT / "build/mutants/results.jsonl")
    given = parser.parse_args()
    given.logs = given.results.parent
    given.logs.mkdir(parents=True, exist_ok=True)
    warm_up()
    for module in given.modules:
        try_module(module, given)
    rows = [row for row in read_results(given.results) if row["module"] in given.modules]
    print("| module | mutants | tried | killed | survived |\n|---|---:|---:|---:|---:|")
    for module in given.modules:
        own = [row for row in rows if row["module"] == module]
        survived = sum(row["outcome"] == "survived" for row in own)
        print(f"| {module} | {own[0]['of'] if own else 0} | {len(own)} | {len(own) - survived} | {survived} |")
    page = PAGE.read_text()
    if unlisted := [row for row in rows if row["outcome"] == "survived" and row["change"] not in page]:
        lines = "\n".join(f"{row['module']}, {row['where']}: {row['change']}" for row in unlisted)
        raise SystemExit(f"survived, and not in {PAGE.relative_to(ROOT)}:\n{lines}")


if __name__ == "__main__":
    main()
