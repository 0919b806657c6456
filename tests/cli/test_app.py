"""The command line: help, completion, exit statuses, and one-message errors for invalid input."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from apet.cli.app import COMMANDS, EXITS, main, parser
from apet.cli.terminal import ASCII
from apet.errors import ApetError, Interrupted, MismatchError
from toy import ROOT

TRAIN = ["train", "--resolved", "s", "--model-dir", "p", "--data-dir", "d", "--results-dir", "r", "a/b/c"]
VERIFY = ["verify", "--resolved", "x", "--results-dir", "x"]
BLOOM = {"model_type": "bloom", "vocab_size": 512, "hidden_size": 32, "n_layer": 2, "n_head": 2}


@pytest.fixture
def plm(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(BLOOM))
    return str(tmp_path)


def apet(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "apet.cli.app", *arguments], capture_output=True, text=True, check=False
    )


def in_process(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command in this process, which has the libraries loaded."""
    status = main(arguments)
    output = capsys.readouterr()
    return status, output.out, output.err


def test_help_groups_the_commands_by_stage():
    done = apet("--help")
    blocks = {block.partition("\n")[0]: block.splitlines()[1:] for block in done.stdout.split("\n\n")}
    stages = list(dict.fromkeys(entry.stage for entry in COMMANDS.values()))
    assert done.returncode == 0 and list(blocks)[2:-1] == stages
    listed = [re.split(r"\s{2,}", line.strip()) for stage in stages for line in blocks[stage]]
    assert listed == [[name, entry.summary] for name, entry in COMMANDS.items()]
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_help_imports_neither_torch_nor_pandas():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "apet.cli.app", "--help"], capture_output=True, text=True, check=True
    )
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not {"torch", "pandas", "transformers", "pydantic"} & imported


def test_every_command_has_a_one_line_summary_and_shows_its_examples():
    (subparsers,) = (action.choices for action in parser()._actions if isinstance(action.choices, dict))
    assert list(subparsers) == list(COMMANDS)
    for name, entry in COMMANDS.items():
        assert re.fullmatch(r"[A-Z][^\n]+[^.]", entry.summary) and entry.examples
        assert all(f"\n  {line}" in subparsers[name].format_help() for line in entry.examples)


def test_exit_statuses_are_those_that_the_help_lists():
    """0, 2 and 141 occur in this file, 1 in tests of `apet verify`, 75 where trainings are stopped."""
    assert list(EXITS) == sorted({0, MismatchError.status, ApetError.status, Interrupted.status, 128 + signal.SIGPIPE})
    text = apet("--help").stdout
    assert all(
        re.search(rf"^  {status} +{re.escape(meaning)}$", text, re.MULTILINE) for status, meaning in EXITS.items()
    )


def test_version_is_the_packages():
    assert apet("--version").stdout == f"apet {version('apet')}\n"


def test_bash_completes_commands_options_choices_files_and_cells(tmp_path):
    """In real bash, as its Tab key does."""
    cell = "bloom-32x2/bbc_topics/lora-own-0123456789"
    (tmp_path / "results" / "cells" / cell).mkdir(parents=True)
    completions = {
        "sta": "status", "export --fo": "--format", "export --format p": "peft", "show bloom": cell,
        "plan --see": "--seed", "report --results-dir res": "results", "completion z": "zsh",
    }  # fmt: skip
    script = f"""eval "$({shlex.quote(sys.executable)} -m apet.cli.app completion bash)"
    ask() {{ COMP_WORDS=(apet "$@"); COMP_CWORD=$#; COMPREPLY=(); _shtab_apet 2>/dev/null; echo "${{COMPREPLY[*]}}"; }}
    """ + "".join(f"ask {typed}\n" for typed in completions)
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == list(completions.values())


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "koi8-r"])
def test_output_without_utf8_is_degraded_and_never_fails(monkeypatch, encoding):
    """Help of all commands, an estimate, and an error with a path that no encoding has."""
    monkeypatch.chdir(ROOT)
    commands = [["--help"], *([name, "--help"] for name in COMMANDS), ["estimate"], ["show", "é/中/\udcff"]]
    printed = ""
    for arguments in commands:
        streams = {name: TextIOWrapper(BytesIO(), encoding, errors="strict") for name in ("stdout", "stderr")}
        for name, stream in streams.items():
            monkeypatch.setattr(sys, name, stream)
        with suppress(SystemExit):  # after a help text
            main(arguments)
        for stream in streams.values():
            stream.flush()
            printed += stream.buffer.getvalue().decode(encoding)
    assert "delta: theta and its plan" in printed and "usage: apet COMMAND ..." in printed
    assert "PLMs" in printed and r"/\u4e2d/\udcff: no such" in printed


def test_every_character_of_the_command_line_has_a_form_in_ascii():
    trees = [ast.parse(path.read_text("utf-8")) for path in (ROOT / "src/apet/cli").glob("*.py")]
    constants = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    used = {c for text in constants if isinstance(text, str) for c in text if not c.isascii()}
    assert {"θ", "…", "▁"} < used <= ASCII.keys()


def test_files_are_read_as_utf8_in_any_locale(tmp_path):
    """A prompt that was read in another encoding would be another prompt."""
    (tmp_path / "config.json").write_text('{"model_type": "Müller θ"}', "utf-8")
    options = {"PYTHONIOENCODING": "latin-1", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "apet.cli.app", "plan", "--model", str(tmp_path), "--placement", "lora"]
    done = subprocess.run(command, env={**os.environ, **options}, capture_output=True, check=False)
    assert done.returncode == 2 and "Müller theta" in done.stderr.decode("latin-1")


def test_a_closed_pipe_is_no_error(plm):
    command = [sys.executable, "-m", "apet.cli.app", "plan", "--model", plm, "--placement", "uniform"]
    with subprocess.Popen(
        [*command, "--budget", "@lora"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        error = process.stderr.read()
    assert (process.returncode, error) == (141, "")


def test_plan_needs_only_shapes(plm, capsys):
    status, output, _ = in_process(capsys, "plan", "--model", plm, "--placement", "uniform", "--budget", "@lora")
    plan = json.loads(output)
    assert status == 0
    assert sum(plan["structures"].values()) == plan["budget"] == 2 * 2 * 8 * 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--placement", "unifrom", "--budget", "5"], "Did you mean 'uniform'"),
        (["--placement", "uniform", "--budget", "999999999"], "999,999,999"),
        (["--placement", "uniform", "--budget", "lots"], "'lots'"),
        (["--placement", "uniform"], "uniform has no fixed size. Pass --budget, such as 4096, 0.01% or @lora."),
    ],
)
def test_an_invalid_plan_is_one_message(plm, capsys, arguments, message):
    status, _, error = in_process(capsys, "plan", "--model", plm, *arguments)
    assert status == 2 and message in error and len(error.splitlines()) == 1


def test_an_unsupported_architecture_names_the_supported_ones(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    status, _, error = in_process(capsys, "plan", "--model", str(tmp_path), "--placement", "lora")
    assert status == 2 and all(name in error for name in ("bert", "bloom", "gpt_neox", "llama", "t5"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "--model", "absent", "--placement", "lora"],
        ["figures", "--tidy", "absent", "--out-dir", "out"],
        ["resolve", "--params", "absent", "--out-file", "study.json"],
    ],
)
def test_a_missing_file_is_an_error_that_names_it(tmp_path, arguments):
    done = apet(*(str(tmp_path / "absent") if word == "absent" else word for word in arguments))
    assert done.returncode == 2
    assert str(tmp_path / "absent") in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["plan", "--model", "x", "--placement", "full", "--seed", "-1"],
            "--seed: expected an integer from 0, got '-1'",
        ),
        ([*VERIFY, "--num-cells", "0"], "--num-cells: expected an integer from 1, got '0'"),
        ([*VERIFY, "--num-cells", "-1"], "--num-cells: expected an integer from 1, got '-1'"),
        ([*TRAIN, "--checkpoint-interval", "nan"], "--checkpoint-interval: expected a number above 0, got 'nan'"),
        ([*TRAIN, "--checkpoint-interval", "-5"], "--checkpoint-interval: expected a number above 0, got '-5'"),
    ],
)
def test_an_option_out_of_range_is_refused(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and message in capsys.readouterr().err
