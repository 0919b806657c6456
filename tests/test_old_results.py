"""Files as older versions wrote them: read as they are, or refused with who wrote them and what to do, not changed."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from apet.config.study_config import load_study
from apet.core.hashing import bytes_digest, digest, file_digest, with_checksum, write_json
from apet.core.records import BLANK, seal_bytes, write_json_record
from apet.study.archive import restore
from apet.study.cell_record import FORMAT, METRICS, is_complete, read_record, write_record
from apet.study.grid import TRAINER_VERSION, Cell, Grid
from apet.training.checkpoint import CellCheckpoint
from apet.training.runtime import SignalHandler
from test_corrupt import Place, Ran

FORMAT_1 = ("format", "cell", "plm", "task", "tunable", "head", "replicates", "files")
"""Keys of a cell's record of format 1."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, Path]]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("made")
        patch.chdir(folder)
        yield Place(), folder


@pytest.fixture
def place(made: tuple[Place, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A copy of the working copy as the present folder."""
    shutil.copytree(made[1], tmp_path / "copy", copy_function=shutil.copy2)
    monkeypatch.chdir(tmp_path / "copy")
    return made[0]


def folder_of(cell: Cell) -> Path:
    return Path("results/cells") / cell.path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def as_format_1(folder: Path) -> None:
    """A cell as versions of format 1 left it: no digest of its own, no path."""
    record = read_record(folder) | {"format": 1}
    write_json(folder / METRICS, {key: record[key] for key in FORMAT_1})


def refused(ran: Ran, *words: str) -> None:
    """Exit status 2 and one last line with these words; no traceback."""
    assert ran.status == 2 and "Traceback" not in ran.said, ran.said
    for word in words:
        assert word in ran.said.splitlines()[-1], ran.said


@pytest.mark.parametrize("command", ["train again", "verify", "aggregate", "show", "export"])
def test_a_cell_of_format_1_is_refused_and_left_as_it_is(place: Place, command: str) -> None:
    folder = folder_of(place.cells[1])
    as_format_1(folder)
    before = contents(folder)
    refused(place.run(*place.commands[command]), f"{folder}/{METRICS}", "of format 1, which an older version",
            f"this one reads {FORMAT}", "`apet prune`")  # fmt: skip
    assert contents(folder) == before


def test_cells_of_format_1_are_counted_put_aside_when_asked_and_trained_again_to_the_same_bytes(place: Place) -> None:
    one, folder = place.cells[1], folder_of(place.cells[1])
    whole = contents(folder)
    as_format_1(folder)
    old = contents(folder)
    said = place.run(*place.commands["status"]).shown
    assert (
        "1 done, 2 left, 1 unreadable" in said and "1 cells, such as plm/words/lora" in said and "of format 1" in said
    )
    assert json.loads(place.run(*place.commands["cost"]).shown)["total"]["done"] == 1

    pruned = place.run("prune", "--params", "study.yaml", "--index", "results/cells.json")
    refused(pruned, f"{folder}/{METRICS}: no such file", "`snakemake cells` trains")
    assert f"moved to .attic: {folder} (format 1; this version of apet reads {FORMAT})" in pruned.shown
    assert not folder.exists() and contents(Path(".attic/format-1") / folder) == old
    # What the study's own cells come back from holds no cell of another format.
    assert str(folder) not in restore(Grid(load_study(Path("study.yaml")), Path("study.yaml")))

    place.must(*place.commands["train again"])
    assert contents(folder) == whole and is_complete(folder, one.path)
    place.must("prune", "--params", "study.yaml")
    assert contents(Path(".attic/format-1") / folder) == old


def test_a_newer_format_and_what_is_no_format_are_refused(place: Place) -> None:
    folder = folder_of(place.cells[1])
    record = read_record(folder)
    for found, said in ((3, "of format 3, which a newer version"), ("two", "its format is 'two'")):
        write_json_record(folder / METRICS, record | {"format": found})
        refused(place.run(*place.commands["show"]), METRICS, said, str(FORMAT))


def test_a_cell_of_an_older_trainer_is_not_loaded_nor_its_study_trained(place: Place) -> None:
    one, folder = place.cells[1], folder_of(place.cells[1])
    record = read_record(folder)
    write_record(folder, one.path, record | {"cell": record["cell"] | {"trainer_version": TRAINER_VERSION - 1}})
    refused(place.run(*place.commands["export"]), METRICS, f"trainer {TRAINER_VERSION - 1}", f"{TRAINER_VERSION}")
    study = json.loads(place.study.read_text())
    study["shared"]["trainer_version"] = TRAINER_VERSION - 1
    write_json_record(place.study, study)
    refused(place.run(*place.commands["train"]), str(place.study), "another version of apet", "`apet check`")


@pytest.mark.parametrize("command", ["train", "verify", "status", "aggregate"])
def test_a_study_without_a_digest_is_refused(place: Place, command: str) -> None:
    study = json.loads(place.study.read_text())
    write_json(place.study, {key: value for key, value in study.items() if key != "digest"})
    refused(place.run(*place.commands[command]), str(place.study), "an older version of apet wrote it", "`apet check`")


def test_a_prepared_task_of_an_older_version_is_refused_and_made_again_with_the_same_rows(place: Place) -> None:
    rows = {path.name: path.read_bytes() for path in place.data.glob("*.parquet")}
    path = place.data / "task.json"
    record = json.loads(path.read_text())
    files = digest({name.removesuffix(".parquet"): found for name, found in record.pop("files").items()})
    write_json(path, record | {"digest": files})
    refused(place.run(*place.commands["train"]), str(path), "an older version of apet wrote it", f"Delete {place.data}")
    shutil.rmtree(place.data)
    place.must("prepare", "--params", "study.yaml", "--task", "words")
    assert rows.items() <= contents(place.data).items()
    place.must(*place.commands["export"])


@pytest.mark.parametrize(("folder", "file"), [("ladder", "corpus.json"), ("ladder/tokenizer", "training.json")])
def test_a_corpus_or_tokenizer_of_an_older_version_is_refused(place: Place, folder: str, file: str) -> None:
    path = Path(folder, file)
    if file == "corpus.json":
        write_json(path, {"digest": bytes_digest(b"of its files")})
    else:
        path.unlink()
    refused(place.run(*place.commands["pretrain"]), str(path), f"Delete {folder} and make it again")


def test_a_plm_of_an_older_version_is_read_since_its_content_is_told(place: Place) -> None:
    """Its record had no digest of its own; making it again may take days."""
    before = place.run(*place.commands["train"]).files
    for folder, name in ((place.plm, "snapshot.json"), (Path("ladder/rung"), "pretraining.json")):
        record = json.loads((folder / name).read_text())
        write_json(folder / name, {key: value for key, value in record.items() if key not in ("files", "digest")})
    assert place.run(*place.commands["train"]).files == before
    assert place.run("load", "ladder/rung").status == 0
    (place.plm / "config.json").write_text((place.plm / "config.json").read_text() + " ")
    refused(place.run(*place.commands["train"]), str(place.plm), "snapshot.json was written for", "Delete")


@pytest.mark.parametrize("columns", [0, 1], ids=["the same columns", "a column less"])
@pytest.mark.parametrize("command", ["findings", "figures", "report"])
def test_an_older_tidy_table_is_refused(place: Place, command: str, columns: int) -> None:
    path = Path("results/tidy.parquet")
    table = pq.read_table(path)
    about = {key: table.schema.metadata[key] for key in (b"study", b"margins", b"missing")}
    pq.write_table(table.select(table.column_names[columns:]).replace_schema_metadata(about), path, compression="zstd")
    refused(place.run(*place.commands[command]), str(path), "of format 1, which an older version of apet wrote",
            "this one reads format 2", "`apet aggregate` makes it")  # fmt: skip


@pytest.mark.parametrize("other", [b"1", b"3"])
def test_a_tidy_table_of_another_format_is_refused_by_name(place: Place, other: bytes) -> None:
    path = Path("results/tidy.parquet")
    table = pq.read_table(path)
    about = {**table.schema.metadata, b"format": other, b"digest": BLANK.encode()}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(about), buffer, compression="zstd")
    path.write_bytes(seal_bytes(buffer.getvalue()))
    refused(place.run(*place.commands["findings"]), str(path), f"of format {other.decode()} (read is 2)")


def test_older_findings_are_refused(place: Place) -> None:
    path = Path("results/findings.json")
    found = json.loads(path.read_text())
    write_json(path, {key: value for key, value in found.items() if key != "digest"})
    refused(
        place.run(*place.commands["report"]), str(path), "an older version of apet wrote it", "`apet findings` makes"
    )


def test_progress_of_an_older_version_is_said_and_not_used(place: Place) -> None:
    one = place.cells[1]
    whole = place.run(*place.commands["train"]).files
    record = read_record(folder_of(one))
    older = digest([1, one.digest, record["plm"]["content"], record["task"]["digest"]])
    kept = CellCheckpoint(Path("results/progress") / one.path, older, {}, SignalHandler(), 0.0)
    kept.save("draw0.rerun0", lambda: {"trained": torch.zeros(3)})
    shutil.rmtree(folder_of(one))
    ran = place.run(*place.commands["train again"])
    assert ran.status == 0 and "or by another version of apet, not used" in ran.said
    assert contents(folder_of(one)) == {
        Path(path).name: content for path, content in whole.items() if f"/{one.path}/" in path
    }


def test_a_state_of_pretraining_of_an_older_version_is_said_and_not_used(place: Place) -> None:
    whole = place.run(*place.commands["pretrain"]).files
    os.makedirs("out")
    torch.save({"key": "0", "model": {}, "optimizers": [], "losses": [1.0]}, "out/.rung.state")
    ran = place.run(*place.commands["pretrain"])
    assert "out/.rung.state: damaged, or kept by an older version of apet, not used" in ran.said
    assert ran.files == whole


def test_remembered_digests_of_an_older_version_are_made_again(place: Place) -> None:
    whole = place.run(*place.commands["check"]).files
    known = {str(path.resolve()): [[0, 0], "0" * 64] for path in Path("plm").iterdir()}
    write_json(Path(".apet/digests.json"), known)
    assert place.run(*place.commands["check"]).files == whole
    written = json.loads(Path(".apet/digests.json").read_text())
    assert written == with_checksum(written)
    assert written["files"][str(Path("plm/config.json").resolve())][1] == file_digest(Path("plm/config.json"))
