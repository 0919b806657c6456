"""The model card of an export: facts, and code that predicts as the pipeline does with plain libraries."""

from __future__ import annotations

from collections.abc import Sequence
from keyword import iskeyword

from apet.analysis.single_run import run_interval
from apet.core.hashing import bytes_digest
from apet.core.text import plural
from apet.data.tokenization import anchor_ids, encode_prompt
from apet.evaluation import ClassificationObjective, GenerationObjective
from apet.evaluation.encoding import prompt_of
from apet.export.tuned_model import TunedModel
from apet.models.families import template_of
from apet.placement import describe_structures

AUTO_CLASSES = {"bert": "AutoModelForMaskedLM", "t5": "AutoModelForSeq2SeqLM"}
"""transformers' class with an LM head for each family; all others have AutoModelForCausalLM."""


def model_card(model: TunedModel, format: str, library: str | None) -> str:
    """Render README.md of an export: facts, code that predicts, and the input format.

    Args:
        model: The tuned model.
        format: A key of `apet.export.formats.FORMATS`.
        library: The library that loads the format, for the hub's model index.

    Returns:
        Markdown.
    """
    plan, plm, task = model.plan, model.plm, model.task
    title = f"{plan.placement} with {plural(plan.budget, 'parameter')} in {plm.name}, for {task['task']}"
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
    code = ["```python", *_code(model, format), "```"]
    return "\n".join([*head, "| | |", "|---|---|", *rows, "", *code, "", *_describe_input(model)]) + "\n"


def _code(model: TunedModel, format: str) -> list[str]:
    """Lines of Python that load an export and predict as the pipeline does. FOLDER stands for the export's folder."""
    columns = model.task["text_columns"]
    if format == "delta":
        texts = "['…']" if len(columns) == 1 else repr({name: ["…"] for name in columns})
        load = 'model = apet.load_tuned("FOLDER", plm="the PLM\'s folder")'
        return ["import apet", "", load, f"# model.predict({texts}) returns a list of answers"]
    auto, name = AUTO_CLASSES.get(model.plm.family.name, "AutoModelForCausalLM"), model.plm.name
    # Names without an owner, such as those of ladder models, are not on the hub.
    is_name = "/" in name or not model.plm_folder
    source, note = (name, "  # or its folder") if is_name else (model.plm_folder, "")
    lines = ["import torch", *(["from peft import PeftModel"] if format == "peft" else [])]
    lines += [f"from transformers import {auto}, AutoTokenizer", ""]
    if format == "peft":
        lines += [
            f'tokenizer = AutoTokenizer.from_pretrained("{source}"){note}',
            f'plm = {auto}.from_pretrained("{source}", dtype="{model.plm.dtype}"){note}',
            'model = PeftModel.from_pretrained(plm, "FOLDER").eval()',
        ]
    else:
        lines += [
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
            f'model = {auto}.from_pretrained("FOLDER").eval()',
        ]
    return [*lines, "", *_encoding_code(model), "", "", *_logits_code(model), "", "", *_prediction_code(model)]


def _encoding_code(model: TunedModel) -> list[str]:
    """Lines of Python with a function `encode` from the texts of a row to its token ids."""
    plm, special = model.plm, model.plm.special_tokens
    prompt = encode_prompt(plm.tokenizer, prompt_of(model.task, plm.family.name), special.before, special.after)
    names = _parameters(prompt.columns)
    anchor, room = anchor_ids(plm.tokenizer), model.max_length - sum(map(len, prompt.ids))
    lines = [f"PROMPT = {prompt.ids}  # token ids before, between and after the texts"]
    lines += [f"ROOM = {room}  # tokens of the texts: {model.max_length} without those of the prompt", "", ""]
    if anchor:
        lines += [
            "def continuation(text):",
            '    """Token ids without the space that the tokenizer adds to the beginning of a text."""',
            '    ids = tokenizer("\\n" + text, add_special_tokens=False).input_ids',
            f"    if ids[:{len(anchor)}] == {anchor}:",
            f"        return ids[{len(anchor)}:]",
            "    return tokenizer(text, add_special_tokens=False).input_ids",
            "",
            "",
        ]
    parts = []
    for number, (name, lead) in enumerate(zip(names, prompt.leads, strict=True)):
        text = f'"{lead}" + {name}.strip()' if lead else f"{name}.strip()"
        continued = anchor and (number or prompt.continued)
        parts.append(f"continuation({text})" if continued else f"tokenizer({text}, add_special_tokens=False).input_ids")
    lines.append(f"def encode({', '.join(names)}):")
    if len(parts) == 1:
        return [*lines, f"    return PROMPT[0] + {parts[0]}[:ROOM] + PROMPT[1]"]
    pieces = " + ".join(f"texts[{number}] + PROMPT[{number + 1}]" for number in range(len(parts)))
    return [
        *lines,
        "    texts, room = [",
        *(f"        {part}," for part in parts),
        "    ], ROOM",
        "    shortest_first = sorted(range(len(texts)), key=lambda n: (len(texts[n]), -n))",
        "    for rank, n in enumerate(shortest_first):  # only the longest texts are truncated",
        "        texts[n] = texts[n][: room // (len(texts) - rank)]",
        "        room -= len(texts[n])",
        f"    return PROMPT[0] + {pieces}",
    ]


def _parameters(columns: Sequence[str]) -> list[str]:
    """Return names of parameters for text columns."""
    usable = [name.isidentifier() and not iskeyword(name) for name in columns]
    return [name if fits else f"text_{number}" for number, (name, fits) in enumerate(zip(columns, usable, strict=True))]


def _logits_code(model: TunedModel) -> list[str]:
    """Lines of Python with a function `next_logits` from token ids and the answer so far to logits [vocabulary]."""
    special, offset = model.plm.special_tokens, model.plm.family.answer_offset
    end = len(special.after)
    lines = ["@torch.no_grad()", "def next_logits(ids, answer=()):"]
    if special.decoder:
        return [
            *lines,
            f"    ids, start = torch.tensor([ids]), torch.tensor([[{', '.join(map(str, special.decoder))}, *answer]])",
            "    mask = torch.ones_like(ids)",
            "    return model(input_ids=ids, attention_mask=mask, decoder_input_ids=start).logits[0, -1]",
        ]
    inserted = f"[*ids[:-{end}], *answer, *ids[-{end}:]]" if end else "[*ids, *answer]"
    return [
        *lines,
        f"    ids = torch.tensor([{inserted}])",
        f"    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -{offset}]",
    ]


def _prediction_code(model: TunedModel) -> list[str]:
    """Lines of Python with a function `predict` from the texts of a row to its answer."""
    task, names = model.task, ", ".join(_parameters(model.task["text_columns"]))
    objective = model.objective
    if isinstance(objective, GenerationObjective):
        return [
            f"def predict({names}):",
            f"    ids, answer = encode({names}), []",
            f"    while len(answer) < {task['max_new_tokens']}:",
            "        token = int(next_logits(ids, answer).argmax())",
            f"        if token == {objective.end_ids[0]}:",
            "            break",
            "        answer.append(token)",
            "    return tokenizer.decode(answer, skip_special_tokens=True).strip()",
        ]
    assert isinstance(objective, ClassificationObjective)
    labels, nodes = list(task["verbalizer"]), objective.trie.nodes
    if len(nodes) == 1 and not nodes[0].prefix and not nodes[0].has_end:
        first = {label: word[0] for label, word in zip(labels, objective.trie.tokens, strict=True)}
        return [
            f"LABELS = {first}  # first tokens of the label words, which differ",
            "",
            "",
            f"def predict({names}):",
            f"    logits = next_logits(encode({names}))",
            "    return max(LABELS, key=lambda label: logits[LABELS[label]])",
        ]
    branches = [(list(n.prefix), n.tokens.tolist(), n.has_end, n.next_index.tolist()) for n in nodes]
    return [
        f"LABELS = {labels}",
        "NODES = [  # where label words branch: tokens before, tokens of the branches, whether a word ends here, and",
        "    # the branch of each label, -1 if none",
        *(f"    {branch}," for branch in branches),
        "]",
        "",
        "",
        f"def predict({names}):",
        f"    ids, scores = encode({names}), torch.zeros(len(LABELS))",
        "    for prefix, tokens, has_end, branch_of in NODES:",
        "        logits = next_logits(ids, prefix)",
        "        branches = logits[tokens]",
        "        if has_end:  # any other token",
        "            rest = logits.index_fill(0, torch.tensor(tokens), -torch.inf).logsumexp(0, keepdim=True)",
        "            branches = torch.cat((branches, rest))",
        "        log_probs = branches.log_softmax(0)",
        "        scores += torch.stack([log_probs[b] if b >= 0 else torch.tensor(0.0) for b in branch_of])",
        "    return LABELS[int(scores.argmax())]",
    ]


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
    order = "" if len(task["text_columns"]) == 1 else ", the longest of a row first"
    lines = [
        f"Input: `{filled}`, truncated to {model.max_length} tokens, all special tokens included. Only the texts are "
        f"truncated, at their end{order}; the prompt is complete. White space around a text is dropped.",
        "The prompt is encoded apart from the texts, so that truncation keeps it. If the filled prompt is encoded at "
        "once, the ids are the same for texts that need no truncation, unless a token spans text and prompt. "
        f"{_describe_encoding(model, prompt)}",
    ]
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
