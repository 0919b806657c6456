"""The text of `apet prepare-task`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from apet.cli.render import table
from apet.core.text import plural

SHARES = {"half": "median", "a tenth": "p90"}
"""Share of the rows -> quantile that fewer rows exceed."""
MAX_NAME = 12
"""Characters of a class in the table of a task, which has to fit into 80 columns."""


def task_lines(record: Mapping[str, Any], max_lengths: Collection[int]) -> list[str]:
    """Format the record of a prepared task.

    Args:
        record: The record in task.json.
        max_lengths: Maximum numbers of tokens of a prompt with its texts, in the study's cells.

    Returns:
        Lines: a table of the splits, a table of the source's rows, overlap, chance and truncation.
    """
    splits, lengths = list(record["rows"]), record["text_lengths"]
    rows = [["split", *splits], ["rows", *(f"{count:,}" for count in record["rows"].values())]]
    rows.append(["cut by max_samples", *(f"{record['rows_uncapped'][s] - record['rows'][s]:,}" for s in splits)])
    rows.append(["origin", *(origin.replace(" of the source", " of source") for origin in record["origin"].values())])
    if record["verbalizer"]:
        for name, choose in (("largest class", max), ("smallest class", min)):
            rows.append([name, *(_class_share(record["label_counts"][split], choose) for split in splits)])
    for unit in ("words", "characters"):
        sizes = [lengths[split][unit] for split in splits]
        rows.append([f"{unit}, median / max", *(f"{size['median']:,} / {size['max']:,}" for size in sizes)])
    return [
        *table(rows, indent="  "),
        "",
        *table(_source_rows(record), indent="  ", numbers=True),
        "",
        f"  overlap before  {_overlap(record['overlap_before_drops'])}",
        f"  overlap now     {_overlap(record['overlap'])}",
        f"  chance          {record['metric']} {record['chance']['level']:.3f} on test",
        *_truncation(lengths["train"]["words"], sorted(max_lengths)),
    ]


def _truncation(words: Mapping[str, int], max_lengths: Sequence[int]) -> list[str]:
    """State the limit of tokens, and if many train rows exceed it whatever the tokenizer: a word is a token or more."""
    limit = f"  truncation      at {' or '.join(f'{n:,}' for n in max_lengths)} tokens with the prompt"
    exceeded = next((share for share, quantile in SHARES.items() if words[quantile] > max_lengths[-1]), "")
    known = [f"{exceeded} of the train rows or more have more words than that"] if exceeded else []
    known.append("truncated rows of each PLM: results/tasks.csv, after training")
    return [limit, *(" " * 18 + line for line in known)]


def _class_share(counts: Mapping[str, int], choose: Callable[..., str]) -> str:
    name = choose(counts, key=lambda label: (counts[label], label))
    return f"{counts[name] / sum(counts.values()):.1%} {name if len(name) <= MAX_NAME else f'{name[: MAX_NAME - 1]}…'}"


def _source_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Table of the source's rows: read, dropped by reason, kept."""
    read, dropped = record["read"], record["dropped_by_split"]
    reasons = [reason for reason, count in record["dropped"].items() if count]
    rows = [[f"source ({record['source']['kind']})", *read], ["read", *(f"{count:,}" for count in read.values())]]
    rows += [[f"dropped: {reason}", *(f"{dropped.get(s, {}).get(reason, 0):,}" for s in read)] for reason in reasons]
    kept = (count - sum(dropped.get(split, {}).values()) for split, count in read.items())
    return [*rows, ["kept", *(f"{count:,}" for count in kept)]]


def _overlap(counts: Mapping[str, int]) -> str:
    pairs = [(pair.split("/"), count) for pair, count in counts.items() if count]
    return ", ".join(f"{plural(count, f'{second} row')} in {first}" for (first, second), count in pairs) or "none"
