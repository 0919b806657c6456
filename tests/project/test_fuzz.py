"""Whatever a file says: a result or one clear error, soon and in little memory. Studies, plans, records, and every
reader of what others wrote.

    pytest tests/project/test_fuzz.py                    # a few examples of each, always the same ones
    APET_FUZZ=5000 pytest tests/project/test_fuzz.py     # so many new samples of each
"""

from __future__ import annotations

import bz2
import copy
import io
import json
import os
import string
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from apet.config.study_config import load_study
from apet.core.signals import SignalHandler
from apet.data.prepared_files import read_record, read_table, write_table
from apet.data.readers import read_articles, read_csv, read_dialogue, read_tab
from apet.data.schema import Record
from apet.data.sources import LocalSource
from apet.data.wheels import open_archive
from apet.errors import ApetError, BudgetError
from apet.export.peft_adapters import plan_from_peft
from apet.models.gguf import check_gguf
from apet.models.inventory import inventory_of_config
from apet.placement import PLACEMENTS, MethodSizes, Plan, make_plan
from apet.study.cell_record import read_record as read_cell
from apet.study.cell_record import write_record
from apet.study.grid import Grid
from apet.study.resolve import read_cells, resolve_study
from apet.training.checkpoint import CellCheckpoint
from saved import gguf
from tiny import tiny_plm
from toy import PARAMS
from toy_wheels import tab

LONG = os.environ.get("APET_FUZZ")


def fuzz(examples: int) -> settings:
    """As many examples as this test can take in a second, or as many as are asked for."""
    return settings(
        max_examples=int(LONG or examples), derandomize=not LONG, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def is_clear(error: ApetError) -> bool:
    """Whether an error can be shown: each line `file: problem`, short, in characters that a terminal prints."""
    lines = str(error).split("\n")
    return ": " in lines[0] and all(line.isprintable() and len(line) < 1000 for line in lines)


def read_or_refuse(read: Callable[[Path], Any], name: str, content: bytes) -> Any:
    """Read a file of these bytes. Return what the reader returns, or None if it refuses them with a clear error."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            return read(path)
        except ApetError as error:
            assert is_clear(error), repr(str(error))
    return None


PIECES = b"\xff" * 8, b"\0" * 8, b"\x7f", b"\x80", b"[" * 3000, b'"', b"\n", b"\xed\xa0\x80", b"\\ud800"
DEEP = b"[" * 5000, b'{"a":' * 5000, b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}"


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes with a few places changed, cut out, doubled or overwritten with what readers stumble over."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        piece = draw(st.sampled_from(PIECES))
        match draw(st.sampled_from(["flip", "write", "insert", "cut", "drop", "double"])):
            case "flip":
                content[at : at + 1] = bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in content[at : at + 1])
            case "write":
                content[at : at + len(piece)] = piece
            case "insert":
                content[at:at] = piece
            case "cut":
                del content[at:]
            case "drop":
                del content[at : at + draw(st.integers(1, 16))]
            case "double":
                content[at:at] = content[at : at + 64]
    return bytes(content)


def any_of(*wholes: bytes) -> st.SearchStrategy[bytes]:
    """Arbitrary bytes, or one of these files, damaged."""
    return st.one_of(st.binary(max_size=200), st.sampled_from(DEEP), *map(damaged, wholes))


# Studies

ODD = st.sampled_from(
    [
        *(None, True, False, 0, 1, -1, 2, 10**9, 2**53, 10**30, 0.5, -0.0, 1e-320, 1e308),
        *(
            "",
            "all",
            "@own",
            "@lora",
            "1%",
            "0.0001%",
            "100%",
            "local",
            "hub",
            "none",
            "bloom-16x1",
            "t5-32x2",
            "~",
            "/",
        ),
        *("rte", "../x", "x; touch pwned", "e\u0301", "\u00e9", "\u202e", "a" * 200, "\U0001f600", "-", "nan", ".inf"),
        *([], {}, [[]], [None], {"": ""}, {"models": []}, [1, 1], {"repo_id": "a/b", "revision": "main"}),
    ]
)


def places(value: Any, at: tuple = ()) -> list[tuple]:
    """The path of everything inside a value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, part in parts for place in places(part, (*at, key)))]


@st.composite
def changed(draw: st.DrawFn, whole: dict) -> dict:
    """A document with one to three of its parts replaced, removed, renamed, doubled or taken from elsewhere in it."""
    value = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from([place for place in places(value) if place]))
        home = value
        for key in way:
            home = home[key]
        match draw(st.sampled_from(["replace", "replace", "remove", "rename", "double", "move"])):
            case "replace":
                home[last] = copy.deepcopy(draw(ODD))
            case "remove":
                del home[last]
            case "rename" if isinstance(home, dict):
                home[draw(st.sampled_from(["x", "", "seed", 1, str(last).upper()]))] = home.pop(last)
            case "double" if isinstance(home, list):
                home.append(copy.deepcopy(home[last]))
            case _:
                there = value
                for key in draw(st.sampled_from(places(value))):
                    there = there[key]
                home[last] = copy.deepcopy(there)
        if not any(places(value)):
            break
    return value


STUDY = {**PARAMS, "exclude": [{"models": ["bloom-16x2"], "tasks": ["rte"]}], "tasks": ["rotten_tomatoes", "rte"]}


@fuzz(60)
@given(changed(STUDY))
def test_a_study_is_a_grid_or_an_error(values):
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    grid = read_or_refuse(lambda path: Grid(load_study(path), path), "params.yaml", text.encode())
    assert grid is None or grid.cells


@fuzz(60)
@given(any_of(yaml.safe_dump(STUDY, sort_keys=False).encode()))
def test_bytes_for_a_study_are_a_grid_or_an_error(content):
    read_or_refuse(lambda path: Grid(load_study(path), path), "params.yaml", content)


@pytest.fixture(scope="module")
def resolved(tmp_path_factory) -> tuple[Grid, dict]:
    """A study, and the record that `apet resolve` writes of it."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    resolve_study(folder / "params.yaml", folder / "study.json")
    return Grid(load_study(folder / "params.yaml"), folder / "params.yaml"), json.loads(
        (folder / "study.json").read_text()
    )


def test_a_resolved_study_gives_the_cells_back(resolved, tmp_path):
    grid, record = resolved
    (tmp_path / "study.json").write_text(json.dumps(record))
    found = {cell.path: cell for cell in read_cells(tmp_path / "study.json")}
    assert found == {cell.path: cell for cell in grid.cells}


@fuzz(60)
@given(st.data())
def test_a_resolved_study_is_read_or_refused(resolved, data):
    whole = json.dumps(resolved[1]).encode()
    content = data.draw(st.one_of(any_of(whole), changed(resolved[1]).map(lambda value: json.dumps(value).encode())))
    read_or_refuse(read_cells, "study.json", content)


# Plans


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    """The configuration of a PLM of any family: widths, layers, heads and words."""
    heads, layers, words = draw(st.integers(1, 4)), draw(st.integers(1, 13)), draw(st.integers(8, 5000))
    width = heads * draw(st.sampled_from([4, 8, 24, 64]))
    common = {"vocab_size": words, "num_attention_heads": heads, "num_hidden_layers": layers, "hidden_size": width}
    inner = {"intermediate_size": draw(st.integers(1, 4 * width))}
    t5 = {"d_model": width, "d_kv": width // heads, "d_ff": inner["intermediate_size"], "num_heads": heads}
    feed = draw(st.sampled_from(["relu", "gated-gelu"]))
    return draw(
        st.sampled_from(
            [
                {"model_type": "bloom", "vocab_size": words, "hidden_size": width, "n_layer": layers, "n_head": heads},
                {"model_type": "bert", **common, **inner},
                {"model_type": "gpt_neox", **common, **inner},
                {"model_type": "llama", **common, **inner, "num_key_value_heads": draw(st.sampled_from([1, heads]))},
                {"model_type": "t5", "vocab_size": words, "num_layers": layers, "feed_forward_proj": feed, **t5},
            ]
        )
    )


@fuzz(25)
@given(st.data())
def test_a_plan_has_exactly_its_budget_or_there_is_none(data):
    inventory = inventory_of_config(data.draw(shapes()))
    budgets = st.integers(-1, 300) | st.floats(0, 1.1).map(lambda share: int(share**3 * inventory.num_params))
    for placement in data.draw(
        st.lists(st.sampled_from([*PLACEMENTS.own, *PLACEMENTS.random]), min_size=1, max_size=4, unique=True)
    ):
        budget, seed = data.draw(budgets), data.draw(st.integers(0, 2**63 - 1))
        methods = MethodSizes(*(data.draw(st.integers(1, 40)) for _ in range(3)))
        try:
            plan = make_plan(inventory, placement, budget, seed, methods)
        except BudgetError as error:
            assert f"{budget:,}" in str(error) or f"budget {budget} " in str(error) or "of the budget" in str(error)
            continue
        check(plan, budget, inventory)
        assert make_plan(inventory, placement, budget, seed, methods).digest == plan.digest


def check(plan: Plan, budget: int, inventory: Any) -> None:
    """The laws of a plan, and that its record says what it is."""
    assert sum(units.size for units in plan.units) == budget == sum(plan.structures.values())
    assert len({units.site for units in plan.units}) == len(plan.units)
    for units in plan.units:
        assert 0 < units.count <= units.site.units and units.site in inventory.sites
        assert units.indices is None or (len(units.indices) == units.count and np.all(np.diff(units.indices) > 0))
    record = json.loads(json.dumps(plan.record()))
    sites = {site.name: site for site in inventory.sites}
    assert sum(sites[name].cost * count for name, count in record["units"].items()) == record["budget"] == budget
    assert record["digest"] == plan.digest and record["structures"] == plan.structures


# Records: what is written comes back, what is damaged does not

NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@fuzz(40)
@given(st.dictionaries(st.text("abcdefgh", min_size=1), VALUES, max_size=4), st.data())
def test_a_cells_record_comes_back_or_is_refused(record, data):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written = write_record(folder, "m/t/c", {key: value for key, value in record.items() if key != "files"})
        path = folder / "metrics.json"
        assert read_cell(folder, "m/t/c") == json.loads(path.read_text()) == json.loads(json.dumps(written))
        whole = path.read_bytes()
        content = data.draw(damaged(whole))
        path.write_bytes(content)
        with suppress(ApetError):
            assert read_cell(folder, "m/t/c") == json.loads(whole)


TENSORS = st.sampled_from([torch.float32, torch.int64, torch.bfloat16]).flatmap(
    lambda dtype: st.lists(st.integers(0, 3), max_size=3).map(lambda shape: torch.ones(shape).to(dtype))
)


@fuzz(40)
@given(st.dictionaries(st.text("ab", min_size=1), VALUES | TENSORS, max_size=3), st.data())
def test_what_is_kept_of_a_cell_comes_back_or_is_not_used(value, data):
    with tempfile.TemporaryDirectory() as folder:
        kept = CellCheckpoint(Path(folder), "identity", {"cpu": "one"}, SignalHandler(), interval=0)
        kept.save("run", lambda: value)
        assert same(kept.load("run"), value)
        path = Path(folder) / "run.safetensors"
        path.write_bytes(data.draw(any_of(path.read_bytes())))
        again = kept.load("run")
        assert again is None or same(again, value)


def same(one: Any, two: Any) -> bool:
    if isinstance(two, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(two, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in two)
    return one == two


SCHEMA = pa.schema({"text": pa.string(), "label": pa.int16()})


@fuzz(40)
@given(st.lists(st.tuples(st.text(max_size=5), st.integers(-(2**15), 2**15 - 1)), max_size=5))
def test_a_table_comes_back(rows):
    with tempfile.TemporaryDirectory() as folder:
        columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
        write_table(Path(folder) / "t.parquet", columns, SCHEMA)
        frame = read_table(Path(folder) / "t.parquet", SCHEMA)
        assert {name: frame[name].tolist() for name in frame} == columns


# Readers of what others wrote


def parquet(**options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"text": ["a", "b"] * 20, "label": [0, 1] * 20}, SCHEMA), out, **options)
    return out.getvalue()


PARQUET = parquet(), parquet(compression="none", use_dictionary=False)
JSONL = (
    b'{"text": "one", "label": 0}\n{"text": "two\\u00e9", "label": [1, {"a": null}]}\n\n{"text": "x", "label": 1e3}\n'
)
CSV = b'\xef\xbb\xbftext,label\n"one, ""two""\nthree",a\r\n\nfour,b\n'


def _records(path: Path) -> list[Record]:
    return list(LocalSource(file=str(path)).records("mine", {}, path.parent))


@pytest.mark.parametrize(("form", "wholes"), [("jsonl", [JSONL]), ("csv", [CSV]), ("tsv", [CSV.replace(b",", b"\t")])])
@fuzz(60)
@given(data=st.data())
def test_rows_of_a_file_are_read_or_refused(form, wholes, data):
    read_or_refuse(_records, f"rows.{form}", data.draw(any_of(*wholes)))


@fuzz(60)
@example(PARQUET[0].replace(b"text", b"\x80ext"))  # a column's name
@example(PARQUET[1].replace(b"\x01\x00\x00\x00a", b"\x01\x00\x00\x00\x80"))  # a cell
@given(any_of(*PARQUET))
def test_a_parquet_file_is_read_or_refused(content):
    read_or_refuse(lambda path: read_table(path, SCHEMA), "t.parquet", content)
    read_or_refuse(_records, "t.parquet", content)


@fuzz(60)
@given(any_of(b'{"a": [1, 2.5, null], "b": {"c": "\\u00e9"}}'))
def test_a_json_record_is_read_or_refused(content):
    read_or_refuse(read_record, "record.json", content)


def wheel(packed: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    members = {
        "t.tab": tab([("a", "one"), ("b", "two")]),
        "d.tab": "S\tWho\tQuote\nd\td\ts\n\t\t\n1\tAnn\tHi!\n1\tBob\tHo.\n",
        "t.csv.bz2": bz2.compress(b'a,b\n1,"x\ny"\n2,z\n'),
        "d/x/1.txt": "Title\nBody.",
    }
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, packed)
    return out.getvalue()


def read_all(path: Path) -> None:
    """Every reader over what an archive holds."""
    for read, arguments in (
        (read_tab, {"members": {"all": "t.tab"}, "quoted": True}),
        (read_tab, {"members": {"all": "t.tab"}}),
        (read_dialogue, {"member": "d.tab", "group": "S", "speaker": "Who", "quote": "Quote"}),
        (read_csv, {"member": "t.csv.bz2"}),
        (read_articles, {"folder": "d"}),
    ):
        with suppress(ApetError), open(path, "rb") as file, open_archive(file, path) as archive:
            list(read(archive, **arguments))


@fuzz(40)
@given(any_of(wheel(), wheel(zipfile.ZIP_STORED), wheel(zipfile.ZIP_BZIP2), wheel(zipfile.ZIP_LZMA)))
def test_a_wheel_is_read_or_refused(content):
    read_or_refuse(read_all, "w.whl", content)


@fuzz(60)
@given(st.data())
def test_a_member_of_a_wheel_is_read_or_refused(data):
    table = tab([("a", "one"), ("b", '"two')]).encode()
    packed = bz2.compress(CSV)
    members = {
        "t.tab": data.draw(any_of(table)),
        "d.tab": data.draw(any_of(b"S\tWho\tQuote\nd\td\ts\n\t\t\n1\tAnn\tHi!\n")),
        "t.csv.bz2": data.draw(st.one_of(any_of(packed), damaged(CSV).map(bz2.compress))),
        "d/x/1.txt": data.draw(any_of(b"Title\nBody.")),
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    read_or_refuse(read_all, "w.whl", out.getvalue())


def library_reads(path: Path) -> None:
    """What passes our look at the header ends soon in the library too, if only with an error of its own."""
    from gguf import GGUFReader

    check_gguf(path)
    with suppress(Exception):
        GGUFReader(path)


@fuzz(80)
@given(any_of(gguf()))
def test_a_gguf_header_is_read_or_refused(content):
    read_or_refuse(library_reads, "m.gguf", content)


@pytest.mark.parametrize("count", ["tensors", "keys", "items", "name", "dimensions", "size"])
@pytest.mark.parametrize("value", [2**21, 2**31, 2**60, 2**64 - 1])
def test_an_absurd_count_in_a_gguf_header_is_refused(tmp_path, count, value):
    whole, broken = tmp_path / "whole.gguf", tmp_path / "broken.gguf"
    whole.write_bytes(gguf())
    check_gguf(whole)
    broken.write_bytes(gguf(**{count: min(value, 2**32 - 1) if count == "dimensions" else value}))
    with pytest.raises(ApetError, match=r"broken.gguf: cannot be read as GGUF"):
        check_gguf(broken)


# PEFT's adapters

PLM = tiny_plm("llama")
MODULE = next(place.module for place in PLM.family.module_specs(PLM.model) if place.kind == "linear")
ROWS, COLUMNS = PLM.model.get_submodule(MODULE).weight.shape
SIDES = {
    f"base_model.model.{MODULE}.lora_A.weight": torch.ones(2, COLUMNS),
    f"base_model.model.{MODULE}.lora_B.weight": torch.ones(ROWS, 2),
}
CONFIG = {"peft_type": "LORA", "lora_alpha": 4, "bias": "none", "alpha_pattern": {"q_proj": 8}, "use_rslora": False}


ADAPTERS = {
    "LORA": (CONFIG, SIDES),
    "PROMPT_TUNING": ({"num_virtual_tokens": 3}, {"prompt_embeddings": torch.ones(3, 16)}),
    "PREFIX_TUNING": ({"num_virtual_tokens": 3}, {"prompt_embeddings": torch.ones(3, 2 * 2 * 8)}),
    "IA3": ({}, {"base_model.model.model.layers.0.self_attn.k_proj.ia3_l": torch.ones(8, 1)}),
    "LN_TUNING": ({}, {"base_model.model.model.norm.ln_tuning_layers.weight": torch.ones(16)}),
}
"""`peft_type` -> configuration and weights of an adapter that can be read."""


def read_adapter(config: bytes, weights: bytes) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "adapter_config.json").write_bytes(config)
        (Path(folder) / "adapter_model.safetensors").write_bytes(weights)
        try:
            return plan_from_peft(folder, PLM)
        except ApetError as error:
            assert is_clear(error), repr(str(error))
    return None


@pytest.mark.parametrize(("kind", "budget"), [*zip(ADAPTERS, (2 * (ROWS + COLUMNS), 48, 96, 8, 16), strict=True)])
def test_adapters_that_are_damaged_below_are_read_whole(kind, budget):
    config, weights = ADAPTERS[kind]
    plan, theta = read_adapter(json.dumps(config | {"peft_type": kind}).encode(), save(weights))
    assert plan.budget == len(theta) == budget


@pytest.mark.parametrize("kind", ADAPTERS)
@fuzz(40)
@given(data=st.data())
def test_an_adapter_is_a_plan_or_an_error(kind, data):
    values, weights = ADAPTERS[kind]
    written = json.dumps(values | {"peft_type": kind}).encode()
    odd = changed(json.loads(written)).map(lambda value: json.dumps(value).encode())
    config = data.draw(st.one_of(st.just(written), odd, any_of(written)))
    sides = dict(weights)
    for name in data.draw(st.lists(st.sampled_from(sorted(sides)), unique=True, max_size=2)):
        shape = data.draw(st.lists(st.integers(0, 20), max_size=3))
        sides[name] = torch.zeros(shape).to(data.draw(st.sampled_from([torch.float16, torch.int8, torch.bool])))
    found = read_adapter(config, data.draw(st.one_of(st.just(save(sides)), any_of(save(weights)))))
    assert found is None or sum(units.size for units in found[0].units) == len(found[1])


@pytest.mark.parametrize(
    "pattern", [r"([a-z._0-9]+)+x", "(.*)*x", ".*.*.*.*x", "(l|l)(a|a)", "(", "[", "a{9}{9}", "", "\\"]
)
def test_a_pattern_that_could_run_for_hours_is_refused(tmp_path, pattern):
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG | {"alpha_pattern": {pattern: 1}}))
    save_file(SIDES, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ApetError, match="alpha_pattern: invalid key"):
        plan_from_peft(tmp_path, PLM)


@fuzz(80)
@given(st.text(string.ascii_letters + r"\d+.*()|[]{}^$?-", max_size=40))
def test_a_pattern_of_a_lora_takes_no_time(pattern):
    read_adapter(json.dumps(CONFIG | {"alpha_pattern": {pattern: 1}}).encode(), save(SIDES))
