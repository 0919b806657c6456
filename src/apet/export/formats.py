"""The forms of an export, each with what it cannot hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from apet.analysis.means import wilson
from apet.core.atomic import atomic_dir, write_text
from apet.core.hashing import bytes_digest
from apet.errors import ConfigError, unknown_name
from apet.export import merged, peft_adapters
from apet.export.delta import write_delta
from apet.export.tuned_model import TunedModel, structures_said


@dataclass(frozen=True)
class Format:
    """what: in a few words. obstacles: what of a model it cannot hold. write: into a folder. library: reads it."""

    what: str
    obstacles: Callable[[TunedModel], list[str]]
    write: Callable[[TunedModel, Path], None]
    library: str | None


FORMATS = {
    "peft": Format("an adapter of PEFT's", peft_adapters.obstacles, peft_adapters.write_peft, "peft"),
    "merged": Format("a checkpoint", merged.obstacles, merged.write_merged, "transformers"),
    "delta": Format("θ, plan and task", lambda model: [], write_delta, None),
}


def export_model(model: TunedModel, format: str, folder: str | Path) -> Path:
    """Write a tuned model as a folder with a model card. Equal models give equal bytes.

    Args:
        model: A tuned model, from a cell or from memory.
        format: `peft` (an adapter for PEFT), `merged` (a checkpoint for transformers) or `delta` (θ, plan and task).
        folder: A new or empty folder. It appears complete or not at all.

    Returns:
        The folder.

    Raises:
        ParamsError: If the format is unknown or cannot hold this model, or if the folder is not empty.
    """
    to, out = format, Path(folder)
    if to not in FORMATS:
        raise ConfigError(unknown_name("form", to, FORMATS, "export"))
    if why := FORMATS[to].obstacles(model):
        instead = [name for name, form in FORMATS.items() if not form.obstacles(model)]
        raise ConfigError(
            f"{model.cell or model.plan.placement}: {FORMATS[to].what} ({to}) has no counterpart for "
            f"{'; '.join(why)}. Allowed for this model: {', '.join(instead)}."
        )
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConfigError(f"{out}: is there already. Give an export a folder of its own, empty or new.")
    with atomic_dir(out) as folder:
        FORMATS[to].write(model, folder)
        write_text(folder / "README.md", card(model, to, FORMATS[to].library))
    return out


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
    return ["import apet", "", 'model = apet.load_tuned("FOLDER", plm="the PLM\'s folder")']


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
    task, frame, tokenizer = model.task, model.plm.special_tokens, model.plm.tokenizer
    prompt = task["prompts"].get(model.plm.family.name, task["prompt"])
    before, after, decoder = (
        "".join(tokenizer.convert_ids_to_tokens(list(ids))) for ids in (frame.before, frame.after, frame.decoder)
    )
    asked = f"{before}{prompt}{after}".replace("\n", "\\n")
    lines = [f"A text is asked as `{asked}`, at most {model.length} tokens long; the texts are cut."]
    if decoder:
        lines.append(f"The decoder begins with `{decoder}`.")
    if task["verbalizer"]:
        words = ", ".join(f"`{word}` ({name})" for name, word in task["verbalizer"].items())
        lines.append(f"The answer is the likeliest of {words}.")
    else:
        lines.append(f"The answer is written greedily, at most {task['target_length']} tokens long.")
    return lines
