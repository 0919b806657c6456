"""A tuned model: a frozen PLM, a plan's θ in it, and the task it was tuned for. Texts in, answers out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apet.data.prepare import read_task
from apet.data.tokenization import encode
from apet.errors import ConfigError, DataError
from apet.evaluation import (
    ClassificationObjective,
    EncodedSplit,
    GenerationObjective,
    Objective,
    Score,
    encode_split,
    generate,
    objective_of,
    predict,
)
from apet.evaluation.encoding import padded, prompt_of
from apet.models.loading import PLM
from apet.placement import STRUCTURES, Plan, Units
from apet.tuning import tune

Texts = Sequence[str] | Mapping[str, Sequence[str]]
"""A list of texts; where a task has several fields, field -> list of texts (a data frame will do)."""

ASKED = (
    "task",
    "type",
    "text_columns",
    "prompt",
    "prompts",
    "verbalizer",
    "metric",
    "metrics",
    "max_new_tokens",
    "digest",
)
"""What of a prepared task's record decides how texts are asked and answers scored."""


def no_head() -> Tensor:
    """The numbers of a trained head where there is none."""
    return torch.zeros(0)


@dataclass(frozen=True, eq=False, repr=False)
class TunedModel:
    """theta [budget], float32. task: the record of a prepared task, `ASKED` of it. length: most tokens of a text in its
    prompt. head [labels × (d + 1)]: a trained head's numbers, none where the PLM reads by its own. run: the replicate's
    part of a cell's record (rate, scores, losses …), empty where nothing was trained. cell: its path in a study, and
    plm_folder where that study has the PLM; None outside a study.

    The PLM is not changed: it may be shared by many. Raises DataError for numbers that do not fit plan or PLM.
    """

    plm: PLM
    plan: Plan
    theta: Tensor
    task: Mapping[str, Any]
    length: int
    head: Tensor = field(default_factory=no_head)
    run: Mapping[str, Any] = field(default_factory=dict)
    cell: str | None = None
    plm_folder: str | None = None

    def __post_init__(self) -> None:
        for what, found, needed in (
            ("θ", self.theta, self.plan.budget),
            ("the head", self.head, self.plm.head_size(self.objective.labels)),
        ):
            if found.shape != (needed,):
                raise DataError(f"{what} has the shape {tuple(found.shape)}; plan and PLM need ({needed},).")

    def __repr__(self) -> str:
        plan, task = self.plan, self.task["task"]
        return f"<{plan.placement} with {plan.budget:,} parameters in {self.plm.name}, for {task}>"

    @classmethod
    def of(cls, plm: PLM, plan: Plan, theta: Tensor, data: str | Path, length: int | None = None) -> TunedModel:
        """θ from elsewhere, asked as a prepared task's folder says. length: the task's own by default."""
        task = read_task(Path(data))
        return cls(plm, plan, theta, {key: task[key] for key in ASKED}, length or task["max_length"])

    @cached_property
    def objective(self) -> Objective:
        return objective_of(self.task, self.plm)

    @property
    def parts(self) -> list[Tensor]:
        """What a TunedPLM takes as its θ."""
        return [part for part in (self.theta, self.head) if len(part)]

    def predict(self, texts: Texts) -> list[str]:
        """The answer to each text, as the pipeline gives it: a class's name, or what is written."""
        data, objective = self._encoded(texts), self.objective
        if not len(data):
            return []
        if isinstance(objective, ClassificationObjective):
            names = list(self.task["verbalizer"])
            return [names[number] for number in self._scores(data, objective).argmax(dim=1).tolist()]
        assert isinstance(objective, GenerationObjective)
        with tune(self.plm, self.plan) as tuned:
            theta = tuned.distribute(self.parts)
            with tuned.merged_for_inference(theta):
                ids = generate(tuned, theta, data, objective.end[0], objective.longest)
        return [text.strip() for text in self.plm.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def scores(self, texts: Texts) -> Tensor:
        """Logits [n, labels] of the label words (their log-probabilities up to a number a row), in the labels' order.

        Raises ParamsError for a task whose answers are written.
        """
        if not isinstance(self.objective, ClassificationObjective):
            raise ConfigError(f"task {self.task['task']}: its answers are written, so no label has a score.")
        return self._scores(self._encoded(texts), self.objective)

    def evaluate(self, data: str | Path, split: str = "test") -> Score:
        """The score on a split of a prepared folder of the same task. Raises DataError for another task's."""
        folder, objective = Path(data), self.objective
        if (name := read_task(folder)["task"]) != self.task["task"]:
            raise DataError(f"{folder}: holds task {name}; this model was tuned for {self.task['task']}.")
        rows = encode_split(folder, split, self.task, self.plm, self.length, objective.end)
        with tune(self.plm, self.plan) as tuned:
            return objective.evaluate(tuned, tuned.distribute(self.parts), rows).score

    def _scores(self, data: EncodedSplit, objective: ClassificationObjective) -> Tensor:
        if not len(data):
            return torch.empty(0, objective.labels)
        with tune(self.plm, self.plan) as tuned:
            theta = tuned.distribute(self.parts)
            with tuned.merged_for_inference(theta):
                return predict(tuned, theta, data, objective.words)

    def _encoded(self, texts: Texts) -> EncodedSplit:
        columns, frame = self._columns(texts), self.plm.special_tokens
        prompt = prompt_of(self.task, self.plm.family.name)
        around = {"before": frame.before, "after": frame.after}
        rows = encode(columns, self.plm.tokenizer, prompt, self.length, **around).ids
        ids, lengths = padded(rows) if rows else (torch.empty(0, 0), torch.empty(0))
        return EncodedSplit(
            [str(number) for number in range(len(rows))], ids, lengths, torch.empty(0, dtype=torch.long)
        )

    def _columns(self, texts: Texts) -> dict[str, list[str]]:
        """Texts by field. Raises DataError where they are not what the task's prompt has slots for."""
        fields = self.task["text_columns"]
        if isinstance(texts, Mapping) or hasattr(texts, "columns"):
            if missing := [name for name in fields if name not in texts]:
                raise DataError(f"texts: no field {missing[0]!r}. Task {self.task['task']} asks about {fields}.")
            columns = {name: list(texts[name]) for name in fields}
        elif len(fields) == 1 and not isinstance(texts, str):
            columns = {fields[0]: list(texts)}
        else:
            wanted = "a list of texts" if len(fields) == 1 else f"lists of texts by field: {', '.join(fields)}"
            raise DataError(f"texts: a {type(texts).__name__} where task {self.task['task']} needs {wanted}.")
        if wrong := [text for column in columns.values() for text in column if not isinstance(text, str)]:
            raise DataError(f"texts: {wrong[0]!r} is no text; each row needs one a field.")
        if len(sizes := {len(column) for column in columns.values()}) > 1:
            raise DataError(f"texts: fields of {sorted(sizes)} texts; each row needs one a field.")
        return columns


FEW = 3
"""Sites that are named; of more, their number."""


def sites_said(units: Sequence[Units]) -> str:
    """Structures with their sites: `bias at 12 sites (decoder.0.attention.query, …), token at decoder.input`."""
    said = []
    for structure in STRUCTURES:
        places = [u.site.place for u in units if u.site.structure == structure]
        if len(places) == 1:
            said.append(f"{structure} at {places[0]}")
        elif places:
            shown = ", ".join(places[:FEW]) + (", …" if len(places) > FEW else "")
            said.append(f"{structure} at {len(places)} sites ({shown})")
    return ", ".join(said)


def structures_said(plan: Plan) -> str:
    """Parameters by structure: `entry 12, lowrank 4,084`."""
    return ", ".join(f"{name} {count:,}" for name, count in plan.structures.items() if count) or "nothing"
