"""Answers that a tuned PLM writes, one token after another, its units active in every step."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from apet.plms.families import Inputs
from apet.tuning.recompute import Call

if TYPE_CHECKING:
    from apet.tuning.tuned import TunedPLM


class Written:
    """Answers under way, a row each, over a cache of keys and values. logits [rows, words]: of the next token."""

    def __init__(self, tuned: TunedPLM, inputs: Inputs, call: Call):
        self.tuned, self.call = tuned, call
        assert tuned.family.write is not None  # no other family is asked for answers
        with tuned.calls.during(call):
            self.rows = tuned.family.write(tuned.model, inputs)
            self.logits = tuned.read(self.rows.states, None, call)

    def step(self, tokens: Tensor, kept: Tensor) -> None:
        """Go on with the rows of numbers `kept` [k] alone, which say tokens [k]."""
        if len(kept) < len(self.logits):
            self.rows.keep(kept)
        tokens = tokens.to(self.tuned.plm.device)
        # What is computed is one position a row, and that one is read.
        call = replace(self.call, position=torch.zeros(len(kept), 1, dtype=torch.long, device=tokens.device))
        with self.tuned.calls.during(call):
            self.logits = self.tuned.read(self.rows.step(tokens), None, call)
