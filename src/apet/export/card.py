"""The model card of an export: what it is, what it scored on how many rows, what it belongs to, how to load it."""

from __future__ import annotations

from apet.analysis.means import wilson
from apet.export.model import TunedModel
from apet.export.said import structures_said
from apet.provenance import bytes_digest

AUTO = {"bert": "AutoModelForMaskedLM", "t5": "AutoModelForSeq2SeqLM"}
"""Family -> transformers' class with an LM head; AutoModelForCausalLM for all others."""


def card(model: TunedModel, to: str, library: str | None) -> str:
    """README.md. to: the export's form. library: for the hub's index of models."""
    plan, plm, task = model.plan, model.plm, model.task
    title = f"{plan.placement} with {plan.budget:,} parameters in {plm.name}, for {task['task']}"
    facts = {
        "PLM": f"{plm.name} ({plm.family.name}), revision {plm.revision or 'none'}, content `{plm.content}`",
        "task": f"{task['task']}, rows `{task['digest']}`",
        "test score": _score(model),
        "tuned": f"{plan.budget:,} parameters: {structures_said(plan)}",
        "plan": f"placement {plan.placement}, seed {plan.seed}, digest `{plan.digest}`",
        "θ": f"digest `{bytes_digest(model.theta.numpy().tobytes())}`",
        "cell": f"{model.cell}, {_replicate(model)}" if model.cell else "none: tuned in memory",
        "form": to,
    }
    rows = [f"| {key} | {value} |" for key, value in facts.items()]
    head = ["---", *([f"library_name: {library}"] if library else []), "tags: [apet]", "---", "", f"# {title}", ""]
    body = ["| | |", "|---|---|", *rows, "", "```python", *how_to_load(model, to), "```", "", *_asked(model)]
    return "\n".join([*head, *body]) + "\n"


def how_to_load(model: TunedModel, to: str) -> list[str]:
    """Lines of Python; FOLDER is the export's."""
    auto, name = AUTO.get(model.plm.family.name, "AutoModelForCausalLM"), model.plm.name
    if to == "peft":
        return [
            "from peft import PeftModel",
            f"from transformers import {auto}",
            "",
            f'plm = {auto}.from_pretrained("{name}")  # or its folder',
            'model = PeftModel.from_pretrained(plm, "FOLDER")',
        ]
    if to == "merged":
        return [f"from transformers import {auto}", "", f'model = {auto}.from_pretrained("FOLDER")']
    return ["import apet", "", 'model = apet.load("FOLDER", plm="the PLM\'s folder")']


def _score(model: TunedModel) -> str:
    """With the interval of one run: Wilson's, over test rows alone."""
    if not model.run:
        return "not measured"
    score, n = model.run["test"]["score"], model.run["test"]["n"]
    low, high = wilson(score, n)
    outcome = "" if model.run["outcome"] == "ok" else f"; the training {model.run['outcome']}"
    sure = f"n = {n}; 95 % interval of this one run {low:.3f} to {high:.3f}"
    return f"{model.task['metric']} {score:.4f} ({sure}){outcome}"


def _replicate(model: TunedModel) -> str:
    return f"draw {model.run['draw']}, rerun {model.run['rerun']}"


def _asked(model: TunedModel) -> list[str]:
    """How a text becomes an answer, for who asks without apet."""
    task, frame, tokenizer = model.task, model.plm.frame, model.plm.tokenizer
    prompt = task["prompts"].get(model.plm.family.name, task["prompt"])
    before, after, decoder = (
        "".join(tokenizer.convert_ids_to_tokens(list(ids))) for ids in (frame.before, frame.after, frame.decoder)
    )
    asked = f"{before}{prompt}{after}".replace("\n", "\\n")
    lines = [f"A text is asked as `{asked}`, at most {model.length} tokens long; the texts are cut."]
    if decoder:
        lines.append(f"The decoder begins with `{decoder}`.")
    if task["labels"]:
        words = ", ".join(f"`{word}` ({name})" for name, word in task["labels"].items())
        lines.append(f"The answer is the likeliest of {words}.")
    else:
        lines.append(f"The answer is written greedily, at most {task['target_length']} tokens long.")
    return lines
