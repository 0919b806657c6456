"""Export formats, and the model card that each export contains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from apet.analysis.means import run_interval
from apet.core.atomic import atomic_dir, write_text
from apet.core.hashing import bytes_digest
from apet.errors import ConfigError, unknown_name
from apet.export import merged, peft_adapters
from apet.export.delta import write_delta
from apet.export.tuned_model import TunedModel, describe_structures
from apet.models.families import template_of


@dataclass(frozen=True)
class ExportFormat:
    """A format that tuned models can be exported to."""

    description: str
    unsupported: Callable[[TunedModel], list[str]]
    """Lists the parts of a model that the format cannot represent."""
    write: Callable[[TunedModel, Path], None]
    library: str | None
    """The library that loads the format, for the hub's model index."""


FORMATS = {
    "peft": ExportFormat("a PEFT adapter", peft_adapters.unsupported, peft_adapters.write_peft, "peft"),
    "merged": ExportFormat("a Hugging Face model folder", merged.unsupported, merged.write_merged, "transformers"),
    "delta": ExportFormat("θ, plan and task", lambda model: [], write_delta, None),
}


def export_model(model: TunedModel, format: str, folder: str | Path) -> Path:
    """Write a tuned model and its model card to a folder. Equal models give equal bytes.

    Args:
        model: A tuned model, from a cell or from memory.
        format: `peft` (an adapter for PEFT), `merged` (a model folder for transformers) or `delta` (θ, plan and task).
        folder: A new or empty folder. It appears complete or not at all.

    Returns:
        The folder.

    Raises:
        ConfigError: If the format is unknown or cannot represent this model, or if the folder is not empty.
    """
    out = Path(folder)
    if format not in FORMATS:
        raise ConfigError(unknown_name("format", format, FORMATS, "export"))
    if parts := FORMATS[format].unsupported(model):
        allowed = [name for name, other in FORMATS.items() if not other.unsupported(model)]
        raise ConfigError(
            f"{model.cell or model.plan.placement}: format: {format!r} cannot represent {'; '.join(parts)}. "
            f"Allowed for this model: {', '.join(allowed)}."
        )
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConfigError(f"{out}: already exists. Give a new or empty folder.")
    with atomic_dir(out) as temporary:
        FORMATS[format].write(model, temporary)
        write_text(temporary / "README.md", model_card(model, format))
    return out


AUTO_CLASSES = {"bert": "AutoModelForMaskedLM", "t5": "AutoModelForSeq2SeqLM"}
"""transformers' class with an LM head for each family; all others have AutoModelForCausalLM."""


def model_card(model: TunedModel, format: str) -> str:
    """Render README.md of an export: facts, loading code, and the input format."""
    plan, plm, task = model.plan, model.plm, model.task
    library = FORMATS[format].library
    title = f"{plan.placement} with {plan.budget:,} parameters in {plm.name}, for {task['task']}"
    facts = {
        "PLM": f"{plm.name} ({plm.family.name}), revision {plm.revision or 'none'}, content `{plm.content}`",
        "task": f"{task['task']}, rows `{task['digest']}`",
        "test score": _describe_score(model),
        "trainable parameters": f"{plan.budget:,}: {describe_structures(plan)}",
        "plan": f"placement {plan.placement}, seed {plan.seed}, digest `{plan.digest}`",
        "θ": f"digest `{bytes_digest(model.theta.numpy().tobytes())}`",
        "cell": f"{model.cell}, {_describe_replicate(model)}" if model.cell else "none: tuned in memory",
        "format": format,
    }
    rows = [f"| {key} | {value} |" for key, value in facts.items()]
    head = ["---", *([f"library_name: {library}"] if library else []), "tags: [apet]", "---", "", f"# {title}", ""]
    code = ["```python", *_loading_code(model, format), "```"]
    return "\n".join([*head, "| | |", "|---|---|", *rows, "", *code, "", *_describe_input(model)]) + "\n"


def _loading_code(model: TunedModel, format: str) -> list[str]:
    """Lines of Python that load an export. FOLDER stands for the export's folder."""
    auto, name = AUTO_CLASSES.get(model.plm.family.name, "AutoModelForCausalLM"), model.plm.name
    # Names without an owner, such as those of ladder models, are not on the hub.
    plm = f'"{name}")  # or its folder' if "/" in name or not model.plm_folder else f'"{model.plm_folder}")'
    if format == "peft":
        return [
            "from peft import PeftModel",
            f"from transformers import {auto}",
            "",
            f"plm = {auto}.from_pretrained({plm}",
            'model = PeftModel.from_pretrained(plm, "FOLDER")',
        ]
    if format == "merged":
        return [f"from transformers import {auto}", "", f'model = {auto}.from_pretrained("FOLDER")']
    return ["import apet", "", 'model = apet.load_tuned("FOLDER", plm="the PLM\'s folder")']


def _describe_score(model: TunedModel) -> str:
    """Test score of one replicate with its interval over test rows, if the metric has one."""
    if not model.run:
        return "not measured"
    score, n = model.run["test"]["score"], model.run["test"]["n"]
    interval = run_interval(model.task, score, n)
    outcome = "" if model.run["outcome"] == "ok" else f"; the training {model.run['outcome']}"
    text = f"; 95 % interval of this run {interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
    return f"{model.task['metric']} {score:.4f} (n = {n}{text}){outcome}"


def _describe_replicate(model: TunedModel) -> str:
    return f"plan {model.run['plan_index']}, seed {model.run['seed_index']}"


def _describe_input(model: TunedModel) -> list[str]:
    """Sentences about prompt, decoder start and answers, for use without apet."""
    task, special = model.task, model.plm.special_tokens
    prompt = task["prompts"].get(model.plm.family.name, task["prompt"])
    filled = f"{_words(model, special.before)}{prompt}{_words(model, special.after)}".replace("\n", "\\n")
    lines = [f"Input: `{filled}`, truncated to {model.max_length} tokens by shortening the texts."]
    lines.append(_describe_encoding(model, prompt))
    if special.decoder:
        lines.append(f"The decoder starts with `{_words(model, special.decoder)}`.")
    if task["verbalizer"]:
        label_words = ", ".join(f"`{word}` ({name})" for name, word in task["verbalizer"].items())
        lines.append(f"The answer is the most probable of {label_words}.")
    else:
        lines.append(f"The answer is generated greedily, with at most {task['max_new_tokens']} tokens.")
    return lines


def _words(model: TunedModel, ids: Sequence[int]) -> str:
    return "".join(model.plm.tokenizer.convert_ids_to_tokens(list(ids)))


def _describe_encoding(model: TunedModel, prompt: str) -> str:
    """Describe the call of the tokenizer that gives the input's ids."""
    special = model.plm.special_tokens
    before, after = template_of(model.plm.tokenizer)
    own = special.after[: len(special.after) - len(after)]
    if not (before or after) or special.before != before or special.after not in ((*own, *after), ()):
        return "Encode it with `tokenizer(…, add_special_tokens=False)`."
    text = f"{prompt}{_words(model, own)}".replace("\n", "\\n")
    added = " and ".join(f"`{_words(model, ids)}`" for ids in (before, after) if ids)
    dropped = f" Drop the last {len(after)} of the ids." if after and not special.after else ""
    return f"Encode it with `tokenizer(…)` as `{text}`: the tokenizer adds {added} itself.{dropped}"
