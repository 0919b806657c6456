"""Cells per CPU hour of apet, compared with PEFT and transformers.Trainer with dynamic padding.

Both sides train LoRA (rank 8 on query and value) on the same PLM, rows, batch size, steps, threads and dtype, with the
same loss over the label words (or a classification head, for PLMs that need one), and evaluate the validation rows
twice and the test rows once. Repeats alternate, each side in a separate process. Results are CPU seconds, medians over
all cells. Start-up (imports, PLM, data) is measured separately: a PEFT script needs it for every cell, apet once per
job.

    python benchmarks/speed.py --plm models/bloom-64x4-… --data data/tasks/bbc_topics-…
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path

BLOCK = 20
"""Cells that share the start-up of apet: `cells_per_job`."""


def main() -> None:
    args = arguments()
    if args.side:
        print(json.dumps(SIDES[args.side](args)))
        return
    runs: dict[str, list[dict]] = {side: [] for side in SIDES}
    for repeat in range(args.repeats):
        for side in SIDES:
            print(f"repeat {repeat + 1} of {args.repeats}: {side} …", file=sys.stderr)
            runs[side].append(child(side, repeat))
    report(args, runs)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plm", type=Path, required=True, help="a PLM's folder")
    parser.add_argument("--data", type=Path, required=True, help="a prepared task's folder")
    parser.add_argument("--cells", type=int, default=2, help="cells a repeat and side (default: 2)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=36, help="most tokens of a row")
    parser.add_argument("--rate", type=float, default=0.03)
    parser.add_argument("--modules", default="", help="PEFT's target modules (default: those of query and value)")
    parser.add_argument("--side", choices=("apet", "peft"), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def child(side: str, repeat: int) -> dict:
    """One side in a process of its own, single-threaded; its last line is what it measured."""
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--seed", str(repeat)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["TOKENIZERS_PARALLELISM"] = "false"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def study_cells(args: argparse.Namespace) -> list:
    """The cells of this run, alike but for their seeds."""
    from apet.config.study_config import LearningRates, TrainingConfig
    from apet.placement import MethodSizes
    from apet.study.cells import Cell

    rates = LearningRates(*[args.rate] * len(fields(LearningRates)))
    training = TrainingConfig(
        max_steps=args.steps, batch_size=args.batch, max_length=args.length, num_evals=2, learning_rates=rates
    )
    name, task = args.plm.name, args.data.name
    seeds = range(args.seed * args.cells, (args.seed + 1) * args.cells)
    return [Cell(name, task, "lora", "@own", 1, 1, seed, MethodSizes(), training, "plm", "data") for seed in seeds]


def apet(args: argparse.Namespace) -> dict:
    start = time.process_time()
    from apet.models.loading import load_plm
    from apet.training.cell import CellInputs, train_cell
    from apet.training.runtime import keep_freed_memory, make_deterministic

    make_deterministic()
    keep_freed_memory()
    bench = CellInputs.from_folder(load_plm(args.plm, args.plm.name), args.data, args.length)
    startup = time.process_time() - start
    cells = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, cell in enumerate(study_cells(args)):
            start = time.process_time()
            record = train_cell(cell, bench, Path(scratch) / str(number))
            test = record["replicates"][0]["test"]["score"]
            cells.append({"cpu": time.process_time() - start, "accuracy": test, "tunable": record["trainable_params"]})
    return {"startup": startup, "cells": cells}


def peft(args: argparse.Namespace) -> dict:
    start = time.process_time()
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    torch.set_num_threads(1)
    rows, words = peer_rows(args)
    headed = trained_head(args.plm)
    startup = time.process_time() - start

    class LabelTrainer(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **_):
            labels = inputs["labels"]
            logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
            if not headed:
                last = inputs["attention_mask"].sum(1) - 1
                logits = logits[torch.arange(len(last)), last][:, words]
            loss = torch.nn.functional.cross_entropy(logits, labels)
            return (loss, {"logits": logits}) if return_outputs else loss

        def prediction_step(self, model, inputs, *_, **__):
            with torch.no_grad():
                loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
            return loss, outputs["logits"], inputs["labels"]

    def pad(batch: list[dict]) -> dict:
        longest = max(len(row["input_ids"]) for row in batch)
        ids = [row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in batch]
        mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in batch]
        labels = torch.tensor([row["label"] for row in batch])
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "labels": labels}

    def accuracy(found) -> dict:
        return {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())}

    cells = []
    for number in range(args.cells):
        start = time.process_time()
        seed = args.seed * args.cells + number
        set_seed(seed)
        if headed:
            model = AutoModelForSequenceClassification.from_pretrained(args.plm, num_labels=len(words))
        else:
            model = AutoModelForCausalLM.from_pretrained(args.plm, dtype=torch.float32)
        modules = args.modules.split(",") if args.modules else MODULES[model.config.model_type]
        kind = "SEQ_CLS" if headed else "CAUSAL_LM"
        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=8, target_modules=modules, task_type=kind))
        with tempfile.TemporaryDirectory() as scratch:
            settings = TrainingArguments(
                scratch, max_steps=args.steps, per_device_train_batch_size=args.batch, per_device_eval_batch_size=64,
                learning_rate=args.rate, warmup_steps=max(1, args.steps // 10), weight_decay=0.0, seed=seed,
                use_cpu=True,
                eval_strategy="steps", eval_steps=max(1, args.steps // 2), logging_steps=max(1, args.steps // 2),
                save_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False,
            )  # fmt: skip
            trainer = LabelTrainer(model, settings, pad, rows["train"], rows["validation"], compute_metrics=accuracy)
            with silent():
                trainer.train()
                test = trainer.predict(rows["test"]).metrics["test_accuracy"]
        tunable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        cells.append({"cpu": time.process_time() - start, "accuracy": test, "tunable": tunable})
    return {"startup": startup, "cells": cells}


MODULES = {
    "bert": ["query", "value"],
    "bloom": ["query_key_value"],
    "gpt_neox": ["query_key_value"],
    "llama": ["q_proj", "v_proj"],
}


def trained_head(plm: Path) -> bool:
    """Whether the PLM's folder asks for a classification head."""
    stated = plm / "snapshot.json"
    return stated.is_file() and json.loads(stated.read_text()).get("head") == "trained"


def peer_rows(args: argparse.Namespace) -> tuple[dict, list[int]]:
    """The same tokens as apet's, as the rows of a dataset; and each label's word, or its number for a trained head."""
    from transformers import AutoConfig, AutoTokenizer

    from apet.data.prepare import SPLITS
    from apet.data.prepared_files import read_split, read_task
    from apet.data.tokenization import encode, label_ids
    from apet.models.families import family_of

    tokenizer, task = AutoTokenizer.from_pretrained(args.plm), read_task(args.data)
    frame = family_of(AutoConfig.from_pretrained(args.plm).model_type).special_tokens(tokenizer)
    around = {"before": frame.before, "after": frame.after}
    rows = {}
    for split in SPLITS:
        table = read_split(args.data, split)
        texts = {name: table[name].tolist() for name in task["text_columns"]}
        ids = encode(texts, tokenizer, task["prompt"], min(args.length, task["max_length"]), **around).ids
        rows[split] = [{"input_ids": i, "label": int(label)} for i, label in zip(ids, table["label"], strict=True)]
    if trained_head(args.plm):
        return rows, list(range(len(task["labels"])))
    return rows, [ids[0] for ids in label_ids(tokenizer, list(task["verbalizer"].values()))]


def silent():
    """What the trainer prints goes nowhere: the last line of a side is its measurement."""
    from contextlib import redirect_stdout

    return redirect_stdout(open(os.devnull, "w"))


SIDES = {"apet": apet, "peft": peft}


def report(args: argparse.Namespace, runs: dict[str, list[dict]]) -> None:
    """A table, and the ratios of cells per CPU hour."""
    print(f"{args.plm.name}, {args.data.name}: {args.steps} steps of {args.batch} rows, at most {args.length} tokens")
    print(f"{'':6} {'start-up':>10} {'a cell':>10} {'cells / CPU hour':>18} {'accuracy':>16} {'tunable':>9}   n")
    hourly = {}
    for side, found in runs.items():
        startup = statistics.median(run["startup"] for run in found)
        cells = [cell for run in found for cell in run["cells"]]
        cpu = statistics.median(cell["cpu"] for cell in cells)
        whole = cpu + startup / (BLOCK if side == "apet" else 1)
        hourly[side] = 3600 / whole, 3600 / cpu
        scores = [100 * cell["accuracy"] for cell in cells]
        spread = f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores) if len(scores) > 1 else 0:.1f}"
        print(
            f"{side:6} {startup:8.2f} s {cpu:8.2f} s {hourly[side][0]:18.0f} {spread:>14} %"
            f" {cells[0]['tunable']:9,}   {len(cells)}"
        )
    whole, alone = (hourly["apet"][n] / hourly["peft"][n] for n in (0, 1))
    print(f"apet trains {whole:.1f} × the cells per CPU hour; without start-up {alone:.1f} ×")


if __name__ == "__main__":
    main()
