"""The command line: helps, computes, and says an input's fault in one message with exit status 2."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from apet.cli.app import EXAMPLES, EXITS, STAGES, main, parser
from apet.errors import ApetError, Interrupted, MismatchError

TRAIN = ["train", "--study", "s", "--plm", "p", "--data", "d", "--results", "r", "a/b/c"]
BLOOM = {"model_type": "bloom", "vocab_size": 512, "hidden_size": 32, "n_layer": 2, "n_head": 2}


@pytest.fixture
def plm(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(BLOOM))
    return str(tmp_path)


def apet(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "apet.cli.app", *arguments], capture_output=True, text=True, check=False
    )


def here(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The same in this process, which has the libraries loaded: exit status, standard output, standard error."""
    status = main(arguments)
    said = capsys.readouterr()
    return status, said.out, said.err


def test_help_shows_the_way_of_the_data():
    done = apet("--help")
    titles = [line for line in done.stdout.splitlines() if line and line in {stage.__doc__ for stage in STAGES}]
    assert titles == [stage.__doc__ for stage in STAGES] and done.returncode == 0
    (commands,) = (action.choices for action in parser()._actions if isinstance(action.choices, dict))
    told = re.findall(r"^  ([a-z]+) +\S.* -> ", done.stdout, re.MULTILINE)
    assert told == list(commands) and max(map(len, done.stdout.splitlines())) <= 120


def test_every_command_shows_its_examples():
    for name, examples in EXAMPLES.items():
        (sub,) = (action.choices[name] for action in parser()._actions if isinstance(action.choices, dict))
        assert all(f"\n  {line}" in sub.format_help() for line in examples)


def test_exit_statuses_are_those_that_the_help_lists():
    """0, 2 and 141 are met in this file, 1 in tests of `apet verify`, 75 where trainings are stopped."""
    assert list(EXITS) == sorted({0, MismatchError.status, ApetError.status, Interrupted.status, 128 + signal.SIGPIPE})
    said = apet("--help").stdout
    assert all(
        re.search(rf"^  {status} +{re.escape(meaning)}$", said, re.MULTILINE) for status, meaning in EXITS.items()
    )


def test_version_is_the_packages():
    assert apet("--version").stdout == f"apet {version('apet')}\n"


def test_a_shell_completes_commands_options_choices_files_and_cells(tmp_path):
    """Real bash, asked as its Tab key asks."""
    cell = "bloom-32x2/bbc_topics/lora-own-0123456789"
    (tmp_path / "results" / "cells" / cell).mkdir(parents=True)
    asked = {
        "st": "status", "export --t": "--to", "export --to p": "peft", "show bloom": cell, "plan --see": "--seed",
        "report --results res": "results", "completion z": "zsh",
    }  # fmt: skip
    script = f"""eval "$({sys.executable} -m apet.cli.app completion bash)"
    ask() {{ COMP_WORDS=(apet "$@"); COMP_CWORD=$#; COMPREPLY=(); _shtab_apet 2>/dev/null; echo "${{COMPREPLY[*]}}"; }}
    """ + "".join(f"ask {words}\n" for words in asked)
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == list(asked.values())


def test_a_reader_that_has_had_enough_is_no_error(plm):
    command = [
        sys.executable,
        "-m",
        "apet.cli.app",
        "plan",
        "--model",
        plm,
        "--placement",
        "uniform",
        "--budget",
        "@lora",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (141, "")


def test_plan_from_shapes_alone(plm, capsys):
    status, said, _ = here(capsys, "plan", "--model", plm, "--placement", "uniform", "--budget", "@lora")
    plan = json.loads(said)
    assert status == 0
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
def test_a_wrong_plan_is_one_message(plm, capsys, arguments, said):
    status, _, error = here(capsys, "plan", "--model", plm, *arguments)
    assert status == 2 and said in error and len(error.splitlines()) == 1


def test_an_unsupported_architecture_names_the_supported_ones(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    status, _, error = here(capsys, "plan", "--model", str(tmp_path), "--placement", "lora")
    assert status == 2 and all(name in error for name in ("bert", "bloom", "gpt_neox", "llama", "t5"))


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    for command in (["plan", "--model", str(tmp_path / "no"), "--placement", "lora"],
                    ["figures", "--tidy", str(tmp_path / "no"), "--out", str(tmp_path)],
                    ["check", "--params", str(tmp_path / "no"), "--out", str(tmp_path / "study.json")]):  # fmt: skip
        done = apet(*command)
        assert done.returncode == 2, command
        assert str(tmp_path / "no") in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "--model", "x", "--placement", "full", "--seed", "-1"], "--seed: invalid natural value: '-1'"),
        (["verify", "--study", "x", "--results", "x", "--sample", "0"], "--sample: invalid count value: '0'"),
        (["verify", "--study", "x", "--results", "x", "--sample", "-1"], "--sample: invalid count value: '-1'"),
        ([*TRAIN, "--keep-every", "nan"], "--keep-every: invalid positive value: 'nan'"),
        ([*TRAIN, "--keep-every", "-5"], "--keep-every: invalid positive value: '-5'"),
    ],
)
def test_a_number_that_means_nothing_is_refused(capsys, arguments, said):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and said in capsys.readouterr().err
