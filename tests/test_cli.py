"""The command line: helps, computes, and says an input's fault in one message with exit status 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BLOOM = {"model_type": "bloom", "vocab_size": 512, "hidden_size": 32, "n_layer": 2, "n_head": 2}


@pytest.fixture
def plm(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(BLOOM))
    return str(tmp_path)


def apet(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "apet.cli", *arguments], capture_output=True, text=True, check=False)


def test_help_names_every_step():
    text = apet("--help").stdout
    data = ("check", "fetch", "corpus", "prepare", "tokenizer", "pretrain")
    for command in (*data, "snapshot", "plan", "train", "verify", "aggregate", "findings", "figures", "report"):
        assert command in text
    for command in ("cost", "status", "prune", "show", "export"):
        assert command in text


def test_a_reader_that_has_had_enough_is_no_error(plm):
    command = [sys.executable, "-m", "apet.cli", "plan", "--model", plm, "--placement", "uniform", "--budget", "@lora"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (141, "")


def test_plan_from_shapes_alone(plm):
    plan = json.loads(apet("plan", "--model", plm, "--placement", "uniform", "--budget", "@lora").stdout)
    assert sum(plan["structures"].values()) == plan["budget"] == 2 * 2 * 8 * 64


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--placement", "unifrom", "--budget", "5"], "Did you mean 'uniform'"),
        (["--placement", "uniform", "--budget", "999999999"], "999,999,999"),
        (["--placement", "uniform", "--budget", "lots"], "'lots'"),
        (["--placement", "uniform"], "no count of its own"),
    ],
)
def test_a_wrong_plan_is_one_message(plm, arguments, said):
    done = apet("plan", "--model", plm, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_unsupported_architecture_names_the_supported_ones(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    done = apet("plan", "--model", str(tmp_path), "--placement", "lora")
    assert done.returncode == 2
    assert all(name in done.stderr for name in ("bert", "bloom", "gpt_neox", "llama", "t5"))


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    for command in (["plan", "--model", str(tmp_path / "no"), "--placement", "lora"],
                    ["figures", "--tidy", str(tmp_path / "no"), "--out", str(tmp_path)],
                    ["check", "--params", str(tmp_path / "no"), "--out", str(tmp_path / "study.json")]):  # fmt: skip
        done = apet(*command)
        assert done.returncode == 2, command
        assert str(tmp_path / "no") in done.stderr
        assert "Traceback" not in done.stderr
