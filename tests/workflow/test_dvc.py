"""DVC on the toy study: comparisons, remotes, partial pulls, experiments. The commands are those of docs/dvc.md."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer

from saved import save_plm
from tiny import tiny_plm
from toy import PARAMS, ROOT, Checkout, edited, trainings

pytestmark = pytest.mark.slow

REVISIONS = ("older", "newer")
RESULTS = {"figures", "costs"}
"""Stages after the cells."""
GUIDE = (ROOT / "docs" / "dvc.md").read_text()


def documented(start: str) -> str:
    """Return the command of the guide that starts like this, with continuation lines, without its comment."""
    lines = iter(line for block in re.findall(r"```\w*\n(.*?)```", GUIDE, re.DOTALL) for line in block.splitlines())
    command = next(line for line in lines if line.startswith(f"$ {start}"))[2:]
    while command.endswith("\\"):
        command = command[:-1] + next(lines)
    return command.split("  #")[0].strip()


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def results(checkout: Checkout) -> dict[str, bytes]:
    """Return the outputs of the stage `figures`."""
    stage = yaml.safe_load((checkout.folder / "dvc.yaml").read_text())["stages"]["figures"]
    made = [name.removeprefix("results/") for out in (*stage["outs"], *stage["metrics"]) for name in out]
    found = files(checkout.folder / "results")
    return {name: content for name, content in found.items() if name.split("/")[0] in made}


def known(metrics: str) -> object:
    """Return metrics.json as DVC shows it: without nulls."""
    without = {"object_pairs_hook": lambda pairs: {key: value for key, value in pairs if value is not None}}
    return json.loads(metrics, **without)


def weights(checkout: Checkout) -> list[Path]:
    """Return all safetensors files in the working copy and in DVC's cache."""
    folders = [checkout.folder / name for name in ("models", "results/cells")]
    named = [path for folder in folders for path in folder.rglob("*.safetensors")]
    large = [
        p
        for p in (checkout.folder / ".dvc" / "cache").rglob("*")
        if p.is_file() and b'"__metadata__"' in p.read_bytes()[:400]
    ]
    return named + large


def test_dvc_shows_status_metrics_and_params(finished):
    assert finished.nothing_to_do("dvc repro")
    (metrics,) = json.loads(finished.run("dvc", "metrics", "show", "--json").stdout)[""]["data"].values()
    assert set(metrics["data"]["score"]["bloom-16x1"]) == {"none@own", "lora@own", "uniform@lora", "uniform@5"}
    assert metrics["data"] == known(finished.metrics())
    changes = json.loads(finished.run("dvc", "metrics", "diff", "older", "newer", "--json").stdout)
    changed = changes["results/metrics.json"]
    assert {key.split(".")[-1] for key in changed if key.startswith("score.")} == {"uniform@lora", "uniform@5"}
    params = json.loads(finished.run("dvc", "params", "diff", "older", "newer", "--json").stdout)
    assert set(params["params.yaml"]) == {"grid"}


EDITS = {
    "prompt": ("tickets.yaml", lambda content: content.replace(b"Urgent:", b"Hurry?:")),
    "rows": ("tickets.csv", lambda content: content.replace(b"ticket 7:", b"ticket x:")),
    "weights": ("plm/model.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
    "tokenizer": ("plm/tokenizer.json", lambda content: content + b"\n"),
}
"""What is edited -> file, and its new content."""


def tickets(tmp_path: Path) -> Checkout:
    """Return a working copy whose task, rows and PLM are files that dvc.yaml does not name."""
    checkout = Checkout(tmp_path / "study", None)
    save_plm(tiny_plm("bloom", fused=False).model, checkout.folder / "plm")
    rows = [f"ticket {n}: w{n % 9},{('calm', 'urgent')[n % 2]}" for n in range(90)]
    (checkout.folder / "tickets.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    task = {
        "name": "tickets", "version": 1, "description": "Urgent or not.", "type": "classification",
        "local": {"file": "tickets.csv"}, "text_columns": ["text"], "prompt": "Ticket: {text} Urgent:",
        "verbalizer": {"calm": " w20", "urgent": " w30"}, "metrics": ["accuracy"], "max_length": 24,
    }  # fmt: skip
    (checkout.folder / "tickets.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    checkout.write(edited(models=["./plm"], tasks=["tickets.yaml"], grid=PARAMS["grid"][:1]))
    checkout.git("init", "--quiet")
    return checkout


@contextmanager
def edited_file(checkout: Checkout, what: str) -> Iterator[None]:
    """Make one of `EDITS` and revert it, with the same time of the file, as `rsync --times` does."""
    name, edit = EDITS[what]
    path = checkout.folder / name
    content, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    for bytes_ in (edit(content), content):
        path.write_bytes(bytes_)
        os.utime(path, ns=times)
        if bytes_ != content:
            yield


def test_edits_of_a_custom_task_and_plm_are_seen_made_and_reverted(tmp_path, expect_trained):
    checkout = tickets(tmp_path)
    checkout.enter("dvc repro", "cells")
    first = checkout.trained()
    assert len(first) == 2 and checkout.stale_stages() == RESULTS
    for what in EDITS:
        with edited_file(checkout, what):
            checkout.enter("dvc repro", "inputs")
            assert checkout.stale_stages() == {"data", "models", "cells"} | RESULTS, what
    checkout.enter("dvc repro", "inputs")
    assert checkout.stale_stages() == RESULTS
    with edited_file(checkout, "weights"):
        checkout.enter("dvc repro", "cells")
        second = checkout.trained()
        assert len(trainings(first, second)) == 2 and checkout.stale_stages() == RESULTS
    checkout.enter("dvc repro", "cells")
    assert checkout.stale_stages() == RESULTS
    expect_trained("weights edited and reverted", "dvc repro", trainings(second, checkout.trained()), set())


def test_guide_compares_two_revisions(finished):
    guide = (ROOT / "docs" / "guides" / "compare.md").read_text()
    commands = re.findall(r"^\$ (dvc \w+ diff older newer)\b", guide, re.MULTILINE)
    output = {command.split()[1]: finished.run(*command.split()).stdout for command in commands}
    assert "grid" in output["params"] and "uniform@lora" in output["metrics"]
    assert "older" in (finished.folder / "dvc_plots" / "index.html").read_text() and "index.html" in output["plots"]


def plots(html: str) -> dict[str, dict]:
    """Return the Vega-Lite specifications on a page of `dvc plots` by data file."""
    specs = [json.loads(spec) for spec in re.findall(r"var spec = (\{.*\});\n", html)]
    return {spec["data"]["values"][0]["filename"]: spec for spec in specs}


def test_dvc_plots_contain_both_revisions(finished, tmp_path):
    finished.run("dvc", "plots", "diff", "older", "newer", "--out", str(tmp_path))
    drawn = plots((tmp_path / "index.html").read_text())
    declared = yaml.safe_load((finished.folder / "dvc.yaml").read_text())["plots"]
    assert set(drawn) == {name for plot in declared if isinstance(plot, dict) for name in plot}
    for name, spec in drawn.items():
        rows = list(csv.DictReader((finished.folder / name).open()))
        newer = [point for point in spec["data"]["values"] if point["rev"] == "newer"]
        assert [{key: point[key] for key in rows[0]} for point in newer] == rows
        assert "<DVC_METRIC" not in json.dumps(spec)
        fields = set(re.findall(r"datum\.(\w+)", json.dumps(spec))) - {"x", "y"}
        assert fields <= {"placement", "method", "threshold", "kind", "task", "model", "trainable_params"}
    # The older study has no data for some figures, and the same as the newer one for others.
    assert set(REVISIONS) in [{point["rev"] for point in spec["data"]["values"]} for spec in drawn.values()]
    pairs = [
        [(tmp_path / "static" / f"{revision}_results_figures_{Path(plot).name}").read_bytes() for revision in REVISIONS]
        for plot in declared
        if isinstance(plot, str)
    ]
    assert [newer for _, newer in pairs] == [
        (finished.folder / plot).read_bytes() for plot in declared if isinstance(plot, str)
    ]
    assert any(older != newer for older, newer in pairs)


def test_pulled_figures_stage_can_be_drawn_again_without_cells(finished, tmp_path):
    clone = finished.clone(tmp_path / "clone")
    clone.run("bash", "-c", documented("dvc pull figures"))
    assert results(clone) == results(finished)
    assert not (clone.folder / "results" / "cells").exists() and not weights(clone)
    for path in (clone.folder / "results" / "figures").iterdir():
        path.unlink()
    clone.run("bash", "-c", documented("apet figures"))
    assert files(clone.folder / "results" / "figures") == files(finished.folder / "results" / "figures")


def test_pulled_records_and_predictions_give_all_results(finished, tmp_path):
    clone = finished.clone(tmp_path / "clone")
    clone.run("bash", "-c", documented("dvc ls"))
    kept = {name: content for name, content in finished.cells().items() if not name.endswith(".safetensors")}
    assert clone.cells() == kept
    assert not weights(clone)
    clone.run("bash", "-c", documented("apet results"))
    assert results(clone) == results(finished)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """Start an S3 server and return its URL and the name of an empty bucket."""
    for name, value in {"ACCESS_KEY_ID": "toy", "SECRET_ACCESS_KEY": "toy", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=url).create_bucket(Bucket="apet")
    yield url, "apet"
    server.stop()


def test_s3_remote_restores_everything_in_a_fresh_clone(copied, tmp_path, bucket):
    url, name = bucket
    copied.run(*documented("dvc remote add --default s3").replace("my-bucket", name).split())
    copied.run(*documented("dvc remote modify").replace("https://minio.example.org:9000", url).split())
    copied.record("remote")
    copied.run("dvc", "push")
    assert "in sync" in copied.run("dvc", "status", "--cloud").stdout
    stored = boto3.client("s3", endpoint_url=url).list_objects_v2(Bucket=name)["Contents"]
    assert all(entry["Key"].startswith("study/files/md5/") for entry in stored)

    clone = copied.clone(tmp_path / "clone")
    clone.run("dvc", "pull")
    assert clone.cells() == copied.cells()
    assert results(clone) == results(copied)
    assert clone.nothing_to_do()


def test_dvc_experiment_runs_and_is_listed(copied, recorded):
    (copied.folder / "notes.txt").write_text("an untracked file\n")
    before = copied.trained()
    copied.run(*documented("dvc exp run").replace("training.max_steps=300", "training.max_steps=4").split())
    assert len(trainings(before, copied.trained())) == 8
    assert (copied.folder / "notes.txt").exists()

    workspace, newer = json.loads(copied.run("dvc", "exp", "show", "--json").stdout)
    (listed,) = newer["experiments"]
    assert listed["name"] == "longer"
    (experiment,) = listed["revs"]
    assert experiment["data"]["params"]["params.yaml"]["data"]["training"]["max_steps"] == 4
    assert experiment["data"]["metrics"]["results/metrics.json"]["data"] == known(copied.metrics())
    assert newer["data"]["metrics"]["results/metrics.json"]["data"] == known(recorded.published["newer"])
    assert workspace["data"]["metrics"] == experiment["data"]["metrics"] != newer["data"]["metrics"]
    changes = json.loads(copied.run("dvc", "params", "diff", "--json").stdout)["params.yaml"]
    assert changes == {"training.max_steps": {"old": 3, "new": 4, "diff": 1}}

    copied.run("git", "checkout", "--quiet", ".")
    copied.run("dvc", "checkout", "--quiet")
    assert copied.metrics() == recorded.published["newer"]
    assert copied.nothing_to_do("dvc repro")


def test_dvc_experiment_with_an_unknown_key_fails_with_its_name(copied):
    done = copied.run("dvc", "exp", "run", "-S", "+max_samples.dev=5", check=False)
    assert done.returncode
    assert "unknown key 'dev'" in done.stdout + done.stderr
    assert copied.run("dvc", "exp", "list", "--name-only").stdout == ""
