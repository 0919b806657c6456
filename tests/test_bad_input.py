"""Wrong params.yaml, study and task files, handed to the real commands: one message that says where and what, exit
status 2 within seconds, and nothing written.

A row of a table is what is wrong, and the parts that the message must have: key, value, what is allowed.
"""

from __future__ import annotations

import copy
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from apet.cli.app import main
from apet.core.yaml_loader import MOST_BYTES, read_yaml
from apet.data.schema import FOLDER
from saved import save_plm
from tiny import tiny_plm
from toy import PARAMS, Checkout, edited
from toy_wheels import write_jsonl

MARK = "what-the-row-says"
SECONDS = 5
"""Of processor time, so that a busy machine fails no test."""

REVIEWS = {**yaml.safe_load((FOLDER / "rotten_tomatoes.yaml").read_text("utf-8")), "name": "mine"}
TITLES = {**yaml.safe_load((FOLDER / "bbc_titles.yaml").read_text("utf-8")), "name": "mine"}

STUDY = [
    # the top level
    ("study", "My Study", "study: 'My Study'", "small letters"),
    ("study", '"toy\\n"', r"study: 'toy\n'", "small letters"),
    ("study", "../../etc", "study: '../../etc'", "small letters"),
    ("study", "5", "study: 5", "small letters"),
    ("study", "x" * 5000, "study: 'xxx", "at most 100"),
    ("study", "null", "study: None", "small letters"),
    ("stduy", "toy", "unknown key 'stduy'", "Did you mean 'study'"),
    ("<<", "{seed: 2}", "unknown key '<<'"),
    ("1", "2", "unknown key '1'", "cells_per_job, exclude"),
    # numbers
    ("seed", "-1", "seed: -1", "a whole number from 0"),
    ("seed", "one", "seed: 'one'", "a whole number from 0"),
    ("seed", "yes", "seed: 'yes'", "a whole number from 0"),
    ("seed", "true", "seed: True", "a whole number from 0"),
    ("seed", "010", "seed: '010'", "a whole number from 0"),
    ("seed", "0o10", "seed: '0o10'", "a whole number from 0"),
    ("seed", "0x10", "seed: '0x10'", "a whole number from 0"),
    ("seed", "1:30", "seed: '1:30'", "a whole number from 0"),
    ("seed", "1_000", "seed: '1_000'", "a whole number from 0"),
    ("seed", "2026-11-25", "seed: '2026-11-25'", "a whole number from 0"),
    ("seed", "2026-13-45", "seed: '2026-13-45'", "a whole number from 0"),
    ("seed", "1.0", "seed: 1.0", "a whole number from 0"),
    ("seed", "1e3", "seed: 1000.0", "a whole number from 0"),
    ("seed", ".nan", "seed: '.nan'", "a whole number from 0"),
    ("seed", "null", "seed: None", "a whole number from 0"),
    ("seed", "[1]", "seed: [1]", "a whole number from 0"),
    ("seed", "9" * 30, "seed: 999999999999999999999999999999", "2**53"),
    ("seed", "9" * 5000, "seed: '9999", "a whole number from 0"),
    ("cells_per_job", "0", "cells_per_job: 0", "a whole number from 1"),
    ("cells_per_job", "on", "cells_per_job: 'on'", "a whole number from 1"),
    ("max_samples.train", "0", "max_samples.train: 0", "from 2"),
    ("max_samples.test", "false", "max_samples.test: False", "from 2"),
    ("max_samples.test", "all", "max_samples.test: 'all'", "null for all"),
    ("rows.dev", "5", "rows: unknown key 'dev'", "Allowed: test, train, validation"),
    ("rows", "{train: 40, test: 30}", "rows: key 'validation' is missing"),
    ("rows", "40", "rows: 40", "mapping"),
    # models
    ("models", "[]", "models: []", "at least one"),
    ("models", "bloom-16x1", "models: 'bloom-16x1'", "a list"),
    ("models", "{bloom-16x1: null}", "models: {'bloom-16x1': None}", "a list"),
    ("models", "[bloom-16x1, bloom-16x1]", "models: 'bloom-16x1' stands twice"),
    ("models", "[blom-16x1]", "models: model 'blom-16x1': unknown family 'blom'", "Did you mean 'bloom'"),
    ("models", "[bloom-17x1]", "bloom-17x1", "a multiple of 16"),
    ("models", "[bloom-16x0]", "models: unknown model 'bloom-16x0'", "rung"),
    ("models", "[bloom-16x99999999]", "model bloom-16x99999999", "n_layer is 99999999", "at most 1,000"),
    ("models", "[bloom-1600000000x1]", "model bloom-1600000000x1", "hidden_size is 1600000000", "at most"),
    ("models", "[google/t5-v1_1-xl]", "unknown model", "Did you mean 'google/t5-v1_1-xxl'"),
    ("models", "[Google/T5-v1_1-xxl]", "unknown model", "Did you mean 'google/t5-v1_1-xxl'"),
    ("models", "['blооm-16x1']", "unknown model 'blооm-16x1'", "rung"),  # the letters o are Cyrillic
    ("models", "['x; touch pwned']", "unknown model 'x; touch pwned'", "rung"),
    ("models", "['-rf']", "unknown model '-rf'"),
    ("models", "[./none]", "none: no such folder"),
    ("models", "[~/none-here]", "none-here: no such folder"),
    ("models", "[~nobody-here/plm]", "~nobody-here/plm: no such folder"),
    ("models", f"[bloom-{'1' * 5000}x2]", "models: unknown model 'bloom-111", "rung"),
    ("models", "['./my plm']", "models: model name is 'my plm'", "source: {folder: './my plm'}"),
    ("models", '["./a\\nb"]', r"models.0: './a\nb'", "one line"),
    ("models", '["./a\\0b"]', r"models.0: './a\x00b'", "one line"),
    ("models", "['']", "models.0: ''"),
    ("models", "[5]", "models.0: 5", "a rung"),
    ("models", "[[bloom-16x1]]", "models.0: ['bloom-16x1']", "a rung"),
    # tasks, exclude, sources
    ("tasks", "[]", "tasks: []", "at least one"),
    ("tasks", "[rotten_tomato]", "unknown task 'rotten_tomato'", "Did you mean 'rotten_tomatoes'"),
    ("tasks", "[rotten_tomatoes, rotten_tomatoes]", "tasks: 'rotten_tomatoes' stands twice"),
    ("tasks", "['x; touch pwned']", "unknown task 'x; touch pwned'", "Allowed: bbc_match"),
    ("tasks", "[../../etc/passwd]", "unknown task '../../etc/passwd'"),
    ("tasks", "[none.yaml]", "none.yaml: cannot be read", "No such file"),
    ("tasks", '["a\\0.yaml"]', r"tasks.0: 'a\x00.yaml'", "one line"),
    ("tasks", "[1]", "tasks.0: 1", "a task's name"),
    ("exclude", "{bloom-16x1: rotten_tomatoes}", "exclude: {'bloom-16x1': 'rotten_tomatoes'}", "a list of"),
    ("exclude", "[{models: [bloom-16x3], tasks: [rotten_tomatoes]}]", "exclude.0.models", "Did you mean 'bloom-16x"),
    ("exclude", "[{models: [bloom-16x1], tasks: [rte]}]", "exclude.0.tasks: unknown task 'rte'", "rotten_tomatoes"),
    ("exclude", "[{models: [bloom-16x1], tasks: [rotten_tomatoes]}]", "exclude leaves nothing of 'bloom-16x1'"),
    ("exclude", "[{models: [bloom-16x1]}]", "exclude.0: key 'tasks' is missing"),
    ("exclude", "[{model: [bloom-16x1], tasks: [x]}]", "exclude.0: unknown key 'model'", "Did you mean 'models'"),
    ("sources", "{reuters: hub}", "sources: unknown task 'reuters'", "Did you mean 'reuters8'"),
    ("sources", "{all: hubb}", "sources: all is 'hubb'", "rotten_tomatoes has: wheel, hub"),
    ("sources", "{all: local}", "sources: all", "'local'", "It has: wheel, hub"),
    ("sources", "{all: 5}", "sources.all: 5", "a folder"),
    ("sources", "[hub]", "sources: ['hub']", "mapping"),
    # methods, pretraining
    ("methods.lora_rank", "0", "methods.lora_rank: 0", "from 1"),
    ("methods.rank", "8", "methods: unknown key 'rank'", "lora_rank"),
    ("methods.num_virtual_tokens", "513", "methods.num_virtual_tokens: 513", "1 to 512"),
    ("methods.adapter_bottleneck_dim", "9007199254740992", "methods.adapter_bottleneck_dim: 9007199254740992", "2**53"),
    ("methods", "[lora_rank]", "methods: ['lora_rank']", "mapping"),
    ("pretraining.max_tokns", "5", "pretraining: unknown key 'max_tokns'", "Did you mean 'max_tokens'"),
    ("pretraining.max_tokens", "0", "pretraining.max_tokens: 0", "from 1"),
    ("pretraining.max_tokens", "1.5", "pretraining.max_tokens: 1.5", "from 1"),
    ("pretraining.warmup_ratio", "1.5", "pretraining.warmup_ratio: 1.5", "from 0 to 1"),
    ("pretraining.muon_lr", ".nan", "pretraining.muon_lr: '.nan'", "from 0 to 1"),
    ("pretraining.precision", "float32", "pretraining: unknown key 'precision'", "Allowed"),
    ("pretraining.vocab_size", "9007199254740992", "pretraining.vocab_size: 9007199254740992", "below 2**53"),
    ("pretraining.vocab_size", "100", "pretraining.vocab_size: 100", "from 270"),
    ("pretraining", "null", "pretraining: None", "mapping"),
    # training
    ("training.loss", "all", "training.loss: unknown value 'all'", "Allowed: full_vocab, label_words"),
    ("training.loss", "label", "training.loss: unknown value 'label'", "Did you mean 'label_words'"),
    ("training.max_steps", "0", "training.max_steps: 0", "from 1"),
    ("training.max_steps", "-3", "training.max_steps: -3", "from 1"),
    ("training.max_steps", "1.5", "training.max_steps: 1.5", "whole number"),
    ("training.max_steps", "50.0", "training.max_steps: 50.0", "whole number"),
    ("training.max_steps", "'50'", "training.max_steps: '50'", "whole number"),
    ("training.max_length", "7", "training.max_length: 7", "from 8"),
    ("training.learning_rates.entry", "0", "training.learning_rates.entry: 0", "above 0"),
    ("training.learning_rates.entry", "-0.1", "training.learning_rates.entry: -0.1", "above 0"),
    ("training.learning_rates.entry", "11", "training.learning_rates.entry: 11", "at most 10"),
    ("training.learning_rates.entry", ".nan", "training.learning_rates.entry: '.nan'", "above 0"),
    ("training.learning_rates.entry", ".inf", "training.learning_rates.entry: '.inf'", "above 0"),
    ("training.learning_rates.entry", "1e-999", "training.learning_rates.entry: 0.0", "above 0"),
    ("training.learning_rates.lora", "0.1", "training.learning_rates: unknown key 'lora'", "lowrank"),
    ("training.learning_rates", "{entry: 0.1}", "training.learning_rates: key 'bias' is missing"),
    ("training.lr_multipliers", "[]", "training.lr_multipliers: []", "factors above 0"),
    ("training.lr_multipliers", "[1, 1.0]", "training.lr_multipliers: 1.0 stands twice", "factors above 0"),
    ("training.lr_multipliers", "[0]", "training.lr_multipliers.0: 0", "above 0"),
    ("training.lr_multipliers", "1.0", "training.lr_multipliers: 1.0", "factors"),
    ("training.warmup_ratio", "1.1", "training.warmup_ratio: 1.1", "between 0 and 1"),
    ("training.warmup_ratio", ".nan", "training.warmup_ratio: '.nan'", "between 0 and 1"),
    ("training.lr_scheduler_type", "cosine", "training.lr_scheduler_type: unknown value 'cosine'", "constant, linear"),
    ("training.num_evals", "4", "training.num_evals: 4", "at most the 3 steps"),
    ("training.num_evals", "0", "training.num_evals: 0", "from 1"),
    ("training.early_stopping_patience", "0", "training.early_stopping_patience: 0", "null for all steps"),
    ("training.max_grad_norm", "0", "training.max_grad_norm: 0", "above 0"),
    ("training.max_grad_norm", ".inf", "training.max_grad_norm: '.inf'", "above 0"),
    ("training.max_grad_norm", "1" + "0" * 400, "training.max_grad_norm: 1000", "above 0"),
    ("training.gradient_checkpointing", "yes", "training.gradient_checkpointing: 'yes'", "true or false"),
    ("training.gradient_checkpointing", "1", "training.gradient_checkpointing: 1", "true or false"),
    ("training.rate", "0.1", "training: unknown key 'rate'", "Did you mean 'learning_rates'"),
    ("training", "[]", "training: []", "mapping"),
    # the grid
    ("grid", "[]", "grid: []", "at least one"),
    ("grid", "{placements: [lora]}", "grid: {'placements': ['lora']}", "a list of entries"),
    ("grid.0", "lora", "grid.0: 'lora'", "placements"),
    ("grid.0.models", "[]", "grid.0.models: []", "different names"),
    ("grid.0.models", "[blom-16x1]", "grid.0.models: unknown model 'blom-16x1'", "Did you mean 'bloom-16x1'"),
    ("grid.0.placements", "[]", "grid.0.placements: []", "different placements"),
    ("grid.0.placements", "[loora]", "grid.0.placements: unknown placement 'loora'", "Did you mean 'lora'"),
    ("grid.0.placements", "[lora, lora]", "grid.0.placements: 'lora' stands twice", "different placements"),
    ("grid.0.placements", "lora", "grid.0.placements: 'lora'", "different placements"),
    ("grid.0.placements", "[low_rank_only]", "unknown placement 'low_rank_only'", "Did you mean 'lowrank_only'"),
    ("grid.0.budgets", "[]", "grid.0.budgets: []", "different budgets"),
    ("grid.0.budgets", "[-5]", "grid.0.budgets.0: -5", "4096, 0.01%"),
    ("grid.0.budgets", "['-5']", "grid.0.budgets: budget '-5'", "0.01%"),
    ("grid.0.budgets", "['200%']", "grid.0.budgets: budget '200%'", "at most at 100 %"),
    ("grid.0.budgets", "['0%']", "grid.0.budgets: budget '0%'", "above 0 %"),
    ("grid.0.budgets", "['1e-9%']", "grid.0.budgets: budget '1e-9%'", "0.01%"),
    ("grid.0.budgets", f"['0.{'0' * 300}1%']", "grid.0.budgets: budget '0.000", "0.01%"),
    ("grid.0.budgets", f"[{'9' * 40}]", "grid.0.budgets.0: 9999", "2**53"),
    ("grid.0.budgets", f"['{'9' * 40}']", "grid.0.budgets: budget '9999", "0.01%"),
    ("grid.0.budgets", "['4０９6']", "grid.0.budgets: budget '4０９6'", "0.01%"),
    ("grid.0.budgets", "['@unknown']", "grid.0.budgets: budget '@unknown'", "@lora"),
    ("grid.0.budgets", "['@uniform']", "grid.0.budgets: budget '@uniform'", "@lora"),
    ("grid.0.budgets", "['@Lora']", "grid.0.budgets: budget '@Lora'", "@lora"),
    ("grid.0.budgets", "[010]", "grid.0.budgets: budget '010'", "0.01%"),
    ("grid.0.budgets", "[1.5]", "grid.0.budgets.0: 1.5", "4096, 0.01%"),
    ("grid.0.budgets", "[true]", "grid.0.budgets.0: True", "4096, 0.01%"),
    ("grid.0.budgets", "[5, '5']", "grid.0: none at 5 stands twice"),
    ("grid.1.budgets", "['1%', '1.0%']", "grid.1: uniform at 1% stands twice"),
    ("grid.1.budgets", "['@own']", "grid.1.budgets: budget '@own'", "'uniform' has no count of its own"),
    ("grid.1.budgets", "[1000000000]", "model bloom-16x1", "1,000,000,000", "uniform", "it holds"),
    ("grid.1.budgets", "[0]", "model bloom-16x1", "budget 0", "at least 1"),
    ("grid.0.budgets", "[5]", "model bloom-16x1", "'none' takes 0 parameters", "not 5"),
    ("grid.0", "{placements: [full], budgets: [7]}", "model bloom-16x1", "'full' takes", "not 7"),
    ("grid.0", "{placements: [lora], budgets: ['100%']}", "model bloom-16x1", "'lora'", "it holds"),
    ("grid.1", "{placements: [lora], budgets: ['@own']}", "grid.1: lora at @own stands twice"),
    ("grid.1", "{placements: [lora], budgets: ['@lora']}", "grid.1: lora at @lora stands twice, first as lora at @own"),
    ("grid.1", "{placements: [none], budgets: [7]}", "grid.1: none at 7 stands twice, first as none at"),
    ("grid.1.draws", "0", "grid.1.draws: 0", "from 1"),
    ("grid.1.reruns", "no", "grid.1.reruns: 'no'", "from 1"),
    ("grid.1.seeds", "3", "grid.1: unknown key 'seeds'", "Allowed: budgets"),
    ("grid.1.training", "{rates: {entry: 0}}", "grid.1.training.learning_rates.entry: 0", "above 0"),
    ("grid.1.training", "{stpes: 3}", "grid.1.training: unknown key 'stpes'", "Did you mean 'max_steps'"),
    ("grid.1.training", "{steps: 1, evaluations: 2}", "grid.1.training.num_evals: 2", "at most the 1 step"),
]

HUB = "source: {repo_id: me/x, revision: main}"
SHAPES = "vocab_size: 64, hidden_size: 16, n_layer: 1, n_head: 1"
MODELS = [
    ("{name: x}", "model 'x': key 'source' is missing"),
    ("{name: x, source: hub}", "model 'x': source is 'hub'", "{repo_id: id, revision: …}"),
    ("{name: x, source: {repo_id: me/x}}", "model 'x': source: key 'revision' is missing"),
    ("{name: x, source: {repo_id: me/x, revision: main, folder: y}}", "source: unknown key 'folder'", "hub, revision"),
    ("{name: x, source: {repo_id: me/x, revision: 3}}", "source: revision is 3"),
    ("{name: x, source: {repo_id: me/x, revision: ''}}", "source: revision is ''"),
    ("{name: x, source: {repo_id: me/x, revision: ../../main}}", "source: revision is '../../main'", "a commit"),
    ("{name: x, source: {repo_id: me/x, revision: 'a b; touch pwned'}}", "revision is 'a b; touch pwned'", "a commit"),
    ("{name: x, source: {repo_id: me/x/y, revision: main}}", "source: hub is 'me/x/y'", "one / at most"),
    ("{name: x, source: {repo_id: ../x, revision: main}}", "source: hub is '../x'", "one / at most"),
    ("{name: x, source: {wheel: nltkk}}", "source: unknown wheel 'nltkk'"),
    ("{name: x, source: {folder: ./none}}", "none: no such folder"),
    ("{name: x, source: {folder: ~nobody-here/none}}", "~nobody-here/none: no such folder"),
    ('{name: x, source: {folder: "a\\0b"}}', r"source: folder is 'a\x00b'", "one line"),
    (f"{{name: ../x, {HUB}}}", "models: model name is '../x'", "one / at most"),
    (f"{{name: a/b/c, {HUB}}}", "models: model name is 'a/b/c'", "one / at most"),
    (f"{{name: -rf, {HUB}}}", "models: model name is '-rf'", "letters, digits"),
    (f"{{name: 'x; touch pwned', {HUB}}}", "models: model name is 'x; touch pwned'", "letters, digits"),
    (f'{{name: "x\\n", {HUB}}}', r"models: model name is 'x\n'", "letters, digits"),
    (f"{{name: mоdel, {HUB}}}", "models: model name is 'mоdel'", "letters, digits"),  # the letter o is Cyrillic
    (f"{{name: {'x' * 101}, {HUB}}}", "models: model name is 'xxx", "at most 100"),
    (f"{{name: 5, {HUB}}}", "models: model name is 5", "letters, digits"),
    (f"{{name: x, {HUB}, dtype: int8}}", "model 'x': dtype: unknown value 'int8'", "bfloat16, float16, float32"),
    (f"{{name: x, {HUB}, dtype: [float32]}}", "model 'x': dtype: unknown value ['float32']"),
    (f"{{name: x, {HUB}, dtpye: float32}}", "model 'x': unknown key 'dtpye'", "Did you mean 'dtype'"),
    (f"{{name: x, {HUB}, head: new}}", "model 'x': head: unknown value 'new'", "own, trained"),
    (f"{{name: x, {HUB}, family: gpt2, config: {{{SHAPES}}}}}", "model 'x': family: unknown value 'gpt2'", "bloom"),
    (f"{{name: x, {HUB}, memory_gb: 0}}", "model 'x': memory_gb is 0", "a whole number from 1"),
    (f"{{name: x, {HUB}, devices: true}}", "model 'x': devices is True", "a whole number from 1"),
    (f"{{name: x, {HUB}, devices: 1000}}", "model 'x': devices is 1000", "a whole number from 1 to"),
    (f"{{name: x, {HUB}, parameters: 1.5}}", "model 'x': parameters is 1.5", "a whole number from 1"),
    (f"{{name: x, {HUB}, config: {{{SHAPES}}}}}", "model 'x': config is", "with `family` beside it"),
    (f"{{name: x, {HUB}, family: bloom, config: 5}}", "model 'x': config is 5", "a mapping"),
    (f"{{name: x, {HUB}, family: bloom, config: {{5: 6}}}}", "model 'x': config has the key 5", "texts"),
    (f"{{name: x, {HUB}, family: bloom, config: {{a: [{{b: 1, null: 2}}]}}}}", "config has the key None", "texts"),
    (f"{{name: x, {HUB}, family: bloom, config: {{n_layer: 100000000}}}}", "n_layer is 100000000", "at most 1,000"),
    (
        f"{{name: x, {HUB}, family: bloom, config: {{hidden_size: -8}}}}",
        "model x: config.json: no PLM",
        "'hidden_size': -8",
    ),
    (f"{{name: x, {HUB}, family: bloom, config: {{hidden_size: wide}}}}", "model x", "'hidden_size': 'wide'"),
    (f"{{name: x, {HUB}, family: bloom, config: {{hidden_size: 17, n_head: 2}}}}", "model x", "'hidden_size': 17"),
    (f"{{name: x, {HUB}}}", "params.yaml: model 'x': its shapes are not known", "apet snapshot --model x"),
    (f"{{name: X, {HUB}}}, {{name: x, {HUB}}}", "models: 'x' stands twice", "another `name`"),
    (f"{{name: a/b, {HUB}}}, {{name: a--b, {HUB}}}", "models: 'a--b' stands twice", "another `name`"),
]

TASK = [
    (REVIEWS, "lenght", "3", "unknown key 'lenght'", "Did you mean 'max_length'"),
    (REVIEWS, "max_length", "0", "length is 0", "from 1"),
    (REVIEWS, "max_length", "36.0", "length is 36.0", "a whole number"),
    (REVIEWS, "version", "true", "version is True", "a whole number"),
    (REVIEWS, "version", "9" * 30, "version is 999", "a whole number from 1 to"),
    (REVIEWS, "name", "../mine", "name is '../mine'", "letters, digits"),
    (REVIEWS, "name", "-rf", "name is '-rf'", "letters, digits"),
    (REVIEWS, "name", "'x; touch pwned'", "name is 'x; touch pwned'", "letters, digits"),
    (REVIEWS, "name", '"mine\\n"', r"name is 'mine\n'", "letters, digits"),
    (REVIEWS, "name", "tаsk", "name is 'tаsk'", "letters, digits"),  # the first a is Cyrillic
    (REVIEWS, "name", "x" * 101, "name is 'xxx", "at most 100"),
    (REVIEWS, "type", "regression", "unknown type 'regression'", "classification, generation"),
    (REVIEWS, "type", "[classification]", "unknown type ['classification']", "classification, generation"),
    (REVIEWS, "metrics", "[acuracy]", "metrics: unknown metric 'acuracy'", "Did you mean 'accuracy'"),
    (REVIEWS, "metrics", "[rouge_l]", "metrics: unknown metric 'rouge_l'", "accuracy, f1"),
    (REVIEWS, "metrics", "accuracy", "metrics is 'accuracy'", "a list of names"),
    (REVIEWS, "metrics", "[accuracy, accuracy]", "metrics", "'accuracy' stands twice"),
    (REVIEWS, "text_columns", "[]", "text_columns is []", "a list of names"),
    (REVIEWS, "text_columns", "['te xt']", "text_columns has 'te xt'", "a word"),
    (REVIEWS, "text_columns", "[label]", "text_columns has 'label'", "other than id, label and targets"),
    (REVIEWS, "group_by", "[txt]", "group_by: unknown field 'txt'", "Did you mean 'text'"),
    (REVIEWS, "prompt", "It was", "prompt (default) is 'It was'", "{text} once"),
    (REVIEWS, "prompt", "'{text} {text}'", "prompt (default) is '{text} {text}'", "{text} once"),
    (REVIEWS, "prompt", "'{txt} It was'", "prompt (default) is '{txt} It was'", "{text} once"),
    (REVIEWS, "prompt", "'{text} It was '", "prompt (default) is '{text} It was '", "without a space"),
    (REVIEWS, "prompt", "{text} It was", "mine.yaml: line ", "column"),
    (REVIEWS, "prompt", "{bert: '{text} It was'}", "prompt is {'bert': '{text} It was'}", "`default`"),
    (REVIEWS, "prompt", "{default: '{text}', brt: '{text}'}", "prompt: unknown family 'brt'", "Did you mean 'bert'"),
    (REVIEWS, "labels", "{negative: ' a'}", "labels is {'negative': ' a'}", "two or more"),
    (REVIEWS, "labels", "[' a', ' b']", "labels is [' a', ' b']", "two or more"),
    (REVIEWS, "labels", "{negative: ' a', positive: ' a'}", "labels have the word ' a' more than once"),
    (REVIEWS, "labels", "{negative: ' a', negative: ' b'}", "line ", "key 'negative' stands twice"),
    (REVIEWS, "labels", "{negative: ' a', positive: ''}", "label 'positive' has the word ''"),
    (REVIEWS, "labels", "{true: ' a', false: ' b'}", "label True has the word ' a'", "lines of text"),
    (REVIEWS, "labels", '{negative: " a", positive: " \\0"}', r"'positive' has the word ' \x00'", "lines of text"),
    (REVIEWS, "splits", "{dev: validation}", "splits: unknown key 'dev'", "validation"),
    (REVIEWS, "splits", "{validation: ../x}", "splits: validation is '../x'"),
    (REVIEWS, "splits", "{validation: ..}", "splits: validation is '..'"),
    (REVIEWS, "splits", "[train]", "splits: is ['train']", "mapping"),
    (REVIEWS, "overlapping_tasks", "[sst3]", "overlapping_tasks: unknown task 'sst3'", "Did you mean 'sst2'"),
    (REVIEWS, "wheel.reader", "cvs", "wheel: unknown reader 'cvs'", "Did you mean 'csv'"),
    (REVIEWS, "wheel.reader", "[csv]", "wheel: unknown reader ['csv']", "csv"),
    (REVIEWS, "wheel.package", "[a]", "wheel: unknown wheel ['a']"),
    (REVIEWS, "wheel.folder", "x", "wheel: unknown key 'folder'"),
    (REVIEWS, "wheel", "null", "wheel: unknown reader None"),
    (REVIEWS, "hub.revision", "3", "hub: revision is 3"),
    (REVIEWS, "hub.splits", "[dev]", "unknown split 'dev'", "train"),
    (REVIEWS, "hub.splits", "[[train]]", "unknown split ['train']", "train"),
    (REVIEWS, "local", "{file: 3}", "local: file is 3", "a path"),
    (REVIEWS, "local", "{path: x}", "local: unknown key 'path'"),
    (REVIEWS, "local", "rows.csv", "local: is 'rows.csv'", "mapping"),
    (TITLES, "max_new_tokens", "0", "max_new_tokens is 0", "from 1"),
    (TITLES, "labels", "{a: ' a', b: ' b'}", "unknown key 'labels'"),
    (TITLES, "metrics", "[accuracy]", "metrics: unknown metric 'accuracy'", "em, f1, rouge_l"),
]

GOOD = yaml.safe_dump(PARAMS, sort_keys=False)
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
BYTES = [
    ("empty", b"", "holds nothing", "mapping"),
    ("only a comment", b"# study: toy\n", "holds nothing", "mapping"),
    ("a list at the top", b"- study\n- seed\n", "holds a list", "mapping"),
    ("a text at the top", b"study\n", "holds a str", "mapping"),
    ("unclosed", b"study: [\n", "line 2"),
    ("a key twice", GOOD.encode() + b"seed: 2\n", f"line {GOOD.count(chr(10)) + 1}", "key 'seed' stands twice"),
    ("a nested key twice", b"rows: {train: 2, train: 3}\n", "line 1", "key 'train' stands twice"),
    ("a list as a key", b"? [a, b]\n: c\n", "line 1", "key"),
    ("a tab", b"study: toy\n\tseed: 1\n", "line 2"),
    ("two documents", b"study: toy\n---\nstudy: toy\n", "line 2"),
    ("NUL", GOOD.encode().replace(b"toy", b"to\0y"), "#x0000"),
    ("invalid UTF-8", GOOD.encode().replace(b"toy", b"to\xff\xfey"), "UTF-8"),
    ("UTF-16", GOOD.encode("utf-16"), "UTF-8"),
    ("Latin-1", "study: é\n".encode("latin-1"), "UTF-8"),
    ("binary", bytes(range(256)) * 8, "UTF-8"),
    ("an object", b"study: !!python/object/apply:os.mkdir [pwned]\n", "line 1", "!!python/object/apply:os.mkdir"),
    ("a name of Python", b"study: !!python/name:os.system ''\n", "line 1", "!!python/name:os.system"),
    ("a tag of its own", b"study: !mine toy\n", "line 1", "!mine"),
    ("a tag that fits not", b"seed: !!int one\n", "line 1", "!!int"),
    ("a binary", b"study: !!binary AAAA\n", "line 1", "!!binary"),
    ("anchors that blow up", LAUGHS.encode(), "line ", "values"),
    ("an anchor in itself", b"models: &a [*a]\n", "line 1", "itself"),
    ("an anchor that is not there", b"models: *a\n", "line 1", "'a'"),
    ("merge keys", b"rows: &r {train: 2}\ntraining: {<<: *r}\n" + GOOD.encode(), "key"),
    ("10,000 brackets", b"models: " + b"[" * 10_000 + b"]" * 10_000, "line 1", "deep"),
    ("10,000 braces", b"models: " + b"{a: " * 10_000 + b"}" * 10_000, "line 1", "deep"),
    ("10,000 blocks", b"- " * 10_000 + b"a\n", "line 1", "deep"),
    ("a million values", b"models: [" + b"a," * 500_000 + b"]\n", "values"),
    ("100 MB", None, "100,000,000 bytes", f"{MOST_BYTES:,}"),
]


def shown(base: dict, key: str, raw: str) -> str:
    """A YAML file: `base` with one key (dotted, numbers are positions in a list) as the row says it, word for word."""
    values = place = copy.deepcopy(base)
    *parts, last = key.split(".")
    for part in parts:
        place = place[int(part) if isinstance(place, list) else part]
    place[int(last) if isinstance(place, list) else last] = MARK
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=10_000).replace(MARK, raw)


def listing(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Run a command in tmp_path; assert the law of this file, and that the message has all parts."""
    monkeypatch.chdir(tmp_path)

    def check(parts: tuple[str, ...], *command: str) -> None:
        before, start = listing(tmp_path), time.process_time()
        status = main(list(command))
        seconds = time.process_time() - start
        out, said = capsys.readouterr()
        assert status == 2, said
        assert not out and said.startswith("apet: ")
        assert len(said.splitlines()) <= 5 and len(said) < 2000 and "Traceback" not in said, said
        for part in parts:
            assert part in said
        assert seconds < SECONDS
        assert listing(tmp_path) == before

    return check


def seconds_of_processes() -> float:
    """Processor time of all processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


CHECK = ("check", "--params", "params.yaml", "--out", "made/study.json")


@pytest.mark.parametrize("row", STUDY, ids=lambda row: f"{row[0]}={row[1]}"[:40])
def test_a_wrong_study(refused, row):
    key, raw, *parts = row
    Path("params.yaml").write_text(shown(PARAMS, key, raw), "utf-8")
    refused(("params.yaml: ", *parts), *CHECK)


@pytest.mark.parametrize("row", MODELS, ids=lambda row: row[0][:60])
def test_a_wrong_model(refused, row):
    raw, *parts = row
    Path("params.yaml").write_text(shown(PARAMS, "models", f"[bloom-16x1, {raw}]"), "utf-8")
    refused(("params.yaml: ", *parts), *CHECK)


LONG = [
    ({"methods": {**PARAMS["methods"], "num_virtual_tokens": 500}}, "prompt", "@own", 500),
    ({}, "prompt", 500 * 16, 500),
    ({}, "token_only", 500 * 16, 500),
    ({"training": {**PARAMS["training"], "max_length": 500}}, "uniform", 8000, None),
    ({"training": {**PARAMS["training"], "max_length": 600}}, "lora", "@own", 0),
]


@pytest.mark.parametrize(("changes", "placement", "budget", "tokens"), LONG, ids=lambda value: str(value)[:30])
def test_a_text_that_is_longer_than_a_plms_positions(refused, changes, placement, budget, tokens):
    """A ladder's BERT has 512 of them."""
    changes = {**changes, "grid": [{"placements": [placement], "budgets": [budget], "num_plans": 3}]}
    Path("mine.yaml").write_text(yaml.safe_dump(REVIEWS | {"max_length": 1000}))
    params = edited(models=["bert-16x1"], tasks=["mine.yaml"], **changes)
    Path("params.yaml").write_text(yaml.safe_dump(params))
    length = params["training"]["max_length"]
    said = () if tokens is None else (f"texts of up to {length} tokens with {tokens}", f"which are {length + tokens}")
    refused(("params.yaml: model bert-16x1: task mine", *said, "at most 512", "training.max_length"), *CHECK)


def test_a_text_that_a_plms_positions_hold_is_not_refused(refused, capsys):
    """What a budget could pay counts as little for a random placement as a length that the task cuts."""
    training = {**PARAMS["training"], "max_length": 600}
    grid = [
        {"placements": ["uniform"], "budgets": [3000, 8000], "num_plans": 3},
        {"placements": ["lora"], "budgets": [9]},
    ]
    params = edited(models=["bert-16x1", "bloom-16x1"], training=training, grid=grid)
    Path("params.yaml").write_text(yaml.safe_dump(params))
    assert main(list(CHECK)) == 0, capsys.readouterr().err


@pytest.mark.parametrize("row", TASK, ids=lambda row: f"{row[0]['name']} {row[1]}={row[2]}"[:60])
def test_a_wrong_task(refused, row):
    base, key, raw, *parts = row
    Path("params.yaml").write_text(yaml.safe_dump(edited(tasks=["mine.yaml"])))
    Path("mine.yaml").write_text(shown(base, key, raw), "utf-8")
    refused(("params.yaml: ", "mine", *parts), *CHECK)


@pytest.mark.parametrize("row", BYTES, ids=lambda row: row[0])
def test_a_file_that_is_no_study(refused, row):
    _, content, *parts = row
    with open("params.yaml", "wb") as file:
        file.write(content or b"")
        if content is None:
            file.truncate(100_000_000)
    refused(("params.yaml: ", *parts), *CHECK)


@pytest.mark.parametrize("kind", ["missing", "directory", "loop", "pipe", "device", "long"])
def test_what_is_no_file(refused, kind):
    path = Path("x" * 300 if kind == "long" else "params.yaml")
    make = {
        "directory": path.mkdir,
        "loop": lambda: path.symlink_to(path),
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
    }
    make.get(kind, lambda: None)()
    refused((f"{path}: cannot be read",), "check", "--params", str(path), "--out", "study.json")


COMMANDS = [
    ("check", "--out", "made/study.json"),
    ("cost",),
    ("prepare", "--task", "rotten_tomatoes", "--out", "made"),
    ("tokenizer", "--corpus", "none", "--out", "made"),
    ("pretrain", "--model", "bloom-16x1", "--corpus", "none", "--tokenizer", "none", "--out", "made"),
    ("snapshot", "--model", "x", "--out", "made"),
    ("status",),
    ("prune", "--index", "made/cells.json"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_every_command_that_reads_a_study_says_the_same(refused, command):
    Path("params.yaml").write_text(shown(PARAMS, "training.max_steps", "0"))
    refused(("params.yaml: ", "training.max_steps: 0", "from 1"), command[0], "--params", "params.yaml", *command[1:])


LITTLE = (
    "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)); "
    "from apet.cli.app import main; sys.exit(main())"
)
"""The command in a process that can have 1 GiB, of which the libraries take a third."""


@pytest.mark.parametrize("limit", ["anchors that blow up", "10,000 brackets", "a million values", "100 MB"])
def test_a_fresh_process_stops_soon_and_in_little_memory(tmp_path, limit):
    (content,) = (content for name, content, *_ in BYTES if name == limit)
    with open(tmp_path / "params.yaml", "wb") as file:
        file.write(content or b"")
        file.truncate(len(content) if content else 100_000_000)
    start = seconds_of_processes()
    done = subprocess.run([sys.executable, "-c", LITTLE, *CHECK], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("apet: params.yaml: "), done.stderr
    assert len(done.stderr.splitlines()) == 1 and seconds_of_processes() - start < SECONDS
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize("shape", ["a byte order mark", "CRLF", "CR", "anchors", "an exponent", "words of YAML 1.1"])
def test_what_yaml_allows_is_read(tmp_path, shape):
    path, values = tmp_path / "params.yaml", copy.deepcopy(PARAMS)
    if shape == "an exponent":
        values["training"]["learning_rates"]["entry"] = MARK
    text = {
        "a byte order mark": "\ufeff" + GOOD,
        "CRLF": GOOD.replace("\n", "\r\n"),
        "CR": GOOD.replace("\n", "\r"),
        "anchors": GOOD.replace("- bloom-16x1\n", "- &first bloom-16x1\n").replace("study: toy", "study: toy"),
        "an exponent": yaml.safe_dump(values, sort_keys=False).replace(MARK, "1e-2"),
        "words of YAML 1.1": "a: {no: no, on: 1:30, y: 010}\n",
    }[shape]
    path.write_bytes(text.encode())
    expected = {"a": {"no": "no", "on": "1:30", "y": "010"}} if shape == "words of YAML 1.1" else PARAMS
    assert read_yaml(path) == expected


def test_an_alias_is_what_it_stands_for(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("a: &rates {entry: 0.1, bias: [1, 2]}\nb: *rates\nc: [*rates, *rates]\n")
    rates = {"entry": 0.1, "bias": [1, 2]}
    assert read_yaml(path) == {"a": rates, "b": rates, "c": [rates, rates]}


RESOLVED = [
    (b"", "line 1"),
    (b"[]", "not a resolved study"),
    (b"{}", "an older version of apet wrote it"),
    (b'{"cells": 5}', "not a resolved study"),
    (b'{"cells": []}', "not a resolved study"),
    (b"\xff\xfe", "not a resolved study"),
    (b"[" * 100_000, "not a resolved study"),
]


@pytest.mark.parametrize(("content", "said"), RESOLVED, ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("command", ["train", "verify", "status", "aggregate"])
def test_a_file_that_is_no_resolved_study(refused, command, content, said):
    Path("study.json").write_bytes(content)
    options = {
        "train": ("--plm", "p", "--data", "d", "--results", "r", "a/b/c"),
        "verify": ("--results", "r", "a/b/c"),
        "status": (),
        "aggregate": ("--results", "r", "--out", "o"),
    }
    refused(("study.json: ", said), command, "--study", "study.json", *options[command])


CONFIGS = [
    (b"", "plm/config.json: cannot be read"),
    (b"[]", "plm/config.json: holds a list"),
    (b"[" * 100_000, "plm/config.json: cannot be read"),
    (b"{}", "unknown architecture"),
    (b'{"model_type": ["bloom"]}', "unknown architecture"),
    (b'{"model_type": "gpt2"}', "unknown architecture 'gpt2'"),
    (b'{"model_type": "bloom", "n_layer": 100000000}', "n_layer is 100000000"),
    (b'{"model_type": "bloom", "hidden_size": NaN}', "config.json: no PLM has the shapes"),
    (b'{"model_type": "bloom", "hidden_size": -1}', "config.json: no PLM has the shapes"),
    (b'{"model_type": "llama", "rope_scaling": 5}', "config.json: no PLM has the shapes"),
]


@pytest.mark.parametrize(("content", "said"), CONFIGS, ids=lambda value: str(value)[:60])
def test_a_plm_whose_shapes_cannot_be(refused, content, said):
    Path("plm").mkdir()
    Path("plm/config.json").write_bytes(content)
    refused((said,), "plan", "--model", "./plm", "--placement", "lora")


PLANS = [
    ("--model bloom-17x1 --placement lora", "bloom-17x1", "a multiple of 16"),
    ("--model ./none --placement lora", "none/config.json", "No such file"),
    ("--model bloom-16x1 --placement loora", "unknown placement 'loora'", "Did you mean 'lora'"),
    ("--model bloom-16x1 --placement lora --budget @unknown", "budget '@unknown'", "Allowed: @own, @adapter"),
    ("--model bloom-16x1 --placement lora --budget 99%", "placement 'lora'", "at most"),
    ("--model bloom-16x1 --placement uniform --budget=", "budget ''", "expected"),
]


@pytest.mark.parametrize("row", PLANS, ids=lambda row: row[0])
def test_a_wrong_plan(refused, row):
    options, *said = row
    refused(tuple(said), "plan", *options.split())


WORKFLOW = [
    ("params.yaml", GOOD.replace("seed: 1", "seed: -1"), "params.yaml: seed: -1"),
    ("params.yaml", "study: &a [*a]\n", "itself"),
    ("params.yaml", GOOD.replace("bloom-16x1", "x; touch pwned"), "unknown model 'x; touch pwned'"),
    ("x; touch pwned.yaml", "", "x; touch pwned.yaml: holds nothing"),
]


@pytest.mark.parametrize(("name", "text", "said"), WORKFLOW, ids=[row[2] for row in WORKFLOW])
def test_snakemake_refuses_it_too(tmp_path, name, text, said):
    checkout = Checkout(tmp_path / "study", None)
    (checkout.folder / name).write_text(text)
    before = listing(checkout.folder)
    start = seconds_of_processes()
    output = checkout.snakemake("-n", "--config", f"params={name}", check=False)
    assert seconds_of_processes() - start < SECONDS
    assert said in output and "Traceback" not in output
    made = set(listing(checkout.folder)) - set(before)
    assert not {path for path in made if not path.startswith((".snakemake", "src", "workflow"))}, made


ROOT = Path(__file__).parent.parent
SAFE = {
    "params.program": "of apet.study.resources, by the number of devices",
    "STUDY": "results/studies/ and 12 hex digits",
    "snakemake": "a variable of dvc.yaml itself",
}
"""What a shell sees as it is, and why it may."""


def shells() -> str:
    """All that the pipeline hands to a shell: of each rule, of the Snakefile's handlers, of each stage of DVC."""
    rules = [path.read_text("utf-8") for path in (ROOT / "Snakefile", *ROOT.glob("workflow/rules/*.smk"))]
    found = [text for rule in rules for text in re.findall(r"shell:\n((?:\s+\".*\"\n?)+)|shell\((.*)\)", rule)]
    assert len(found) == "".join(rules).count("shell:") + "".join(rules).count("shell(")
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"].values()
    return "\n".join(["".join(pair) for pair in found] + [str(stage["cmd"]) for stage in stages])


def test_no_shell_sees_a_parameter_unquoted():
    names = set(re.findall(r"\{(.*?)\}", shells()))
    assert {name for name in names if not name.endswith(":q")} == set(SAFE)
    assert {"params.cells:q", "params.params:q", "params.device:q", "params.logger:q", "log:q"} <= names
    source = "".join(path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py"))
    assert not re.search(r"shell=|os\.system|popen\(", source)


def test_a_study_runs_in_any_folder_with_anyones_names(tmp_path):
    """Spaces, quotes, semicolons and letters of all kinds in folders, files, fields, classes and a PLM's name."""
    checkout = Checkout(tmp_path / "stu\u0308dy; touch pwned\n$(touch pwned) `touch pwned` 'a \"b \u00fc %s \\ &", None)
    save_plm(tiny_plm("llama", fused=False).model, checkout.folder / "a plm; ü")
    (checkout.folder / "tâsks & more").mkdir()
    labels = "très mal; rm", "gut 'ü' $HOME"
    rows = [{"tëxt": f"w{n % 9 + 9} w{n // 9 + 9}", "label": labels[n % 2]} for n in range(80)]
    write_jsonl(checkout.folder / "tâsks & more" / "rows of mine.jsonl", rows)
    task = {
        "name": "mine", "version": 1, "description": "Ça.", "type": "classification", "metrics": ["accuracy"],
        "text_columns": ["tëxt"], "prompt": "{tëxt} w9", "max_length": 16, "local": {"file": "rows of mine.jsonl"},
        "labels": dict(zip(labels, (" w20", " w30"), strict=True)),
    }  # fmt: skip
    (checkout.folder / "tâsks & more" / "my task.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    plm = {"name": "me/My.plm", "source": {"folder": "./a plm; ü"}}
    params = edited(models=[plm], tasks=["tâsks & more/my task.yaml"], grid=PARAMS["grid"][:1])
    name = "x; touch pwned $(touch pwned) é.yaml"
    (checkout.folder / name).write_text(yaml.safe_dump(params, sort_keys=False))
    checkout.snakemake("cells", "--config", f"params={name}")
    cells = [path.parent.parent for path in (checkout.folder / "results/cells").rglob("metrics.json")]
    assert [cell.relative_to(checkout.folder).as_posix() for cell in cells] == 2 * ["results/cells/me--My.plm/mine"]
    (study,) = (checkout.folder / "results/studies").iterdir()
    checkout.run("apet", "aggregate", "--study", str(study), "--results", "results", "--out", "results")
    assert "me/My.plm" in (checkout.folder / "results/tidy.csv").read_text()
    assert not list(tmp_path.rglob("pwned"))
