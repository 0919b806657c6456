"""A frozen PLM with a plan's units in it, as a function of θ. The library's model is hooked, never edited or copied."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from apet.models.families import Inputs, ModuleSpec
from apet.models.loading import PLM
from apet.placement.plans import Plan
from apet.tuning import output_updates
from apet.tuning.gradient_checkpointing import (
    CheckpointedBlocks,
    ContextStack,
    ForwardContext,
    ParameterOverrides,
    Pieces,
)
from apet.tuning.low_rank_updates import FactoredSlice, Factors, is_thin
from apet.tuning.output_updates import OutputUpdate
from apet.tuning.structures import Scatter, Sparse
from apet.tuning.theta import ThetaSlice, cut, layout

ORDER = ("entry", "bottleneck", "bias")
"""In which structures act on a module's output, after the thin updates of its map: a bias stands behind an adapter."""


class TunedPLM:
    """θ -> logits. Use as a context manager, or call `remove`, to take the hooks off the PLM again.

    A few numbers of a map, and low-rank units, act as thin factors; embeddings and the LM head by the rows and products
    that a text needs; adapters and absent biases on a module's output; virtual tokens lengthen the input. Norms, biases
    and maps that are trained as a whole become tensors that stand in for the PLM's parameters during one call (in
    float32; otherwise see `beside`). θ is float32 whatever the PLM's dtype. Nothing frozen gets a gradient.
    checkpointing: compute the blocks' activations again in the backward pass instead of keeping them.
    """

    def __init__(self, plm: PLM, plan: Plan, checkpointing: bool = False):
        self.plm, self.model, self.family = plm, plm.model, plm.family
        self.slots = layout(plan)
        self.calls = ContextStack()
        self.scatters: dict[tuple[str, str], list[tuple[int, Scatter]]] = defaultdict(list)
        self.parts: dict[str, list[FactoredSlice]] = defaultdict(list)
        self.effects: dict[str, list[tuple[int, OutputUpdate]]] = defaultdict(list)
        self.words: list[tuple[int, Callable]] = []
        self.virtual: dict[str, int] = {}
        places = {p.name: p for p in self.family.places(self.model)}
        plugged = {s.units.site.place for s in self.slots if s.units.site.structure == "bottleneck"}
        for number, slot in enumerate(self.slots):
            place = places[slot.units.site.place]
            self._enter(number, slot, place, place.name in plugged)
        self.factors = {path: self._factors(path) for path in self.parts}
        self.settled: tuple[Pieces, ParameterOverrides] | None = None
        touched = dict.fromkeys([*self.parts, *self.effects])
        self.handles: list[RemovableHandle | CheckpointedBlocks]
        self.handles = [self.model.get_submodule(m).register_forward_hook(self._acts(m)) for m in touched]
        self.mean = plm.head == "classification" and self.family.mean_pool
        if (narrow := self.family.last_attention(self.model.config)) and not self.mean:
            last = self.model.get_submodule(narrow)
            self.handles.append(last.register_forward_pre_hook(self._narrow, with_kwargs=True))
        if checkpointing:
            self.handles.append(CheckpointedBlocks(self.family.stacked(self.model), self.calls, self._inside))

    def __enter__(self) -> TunedPLM:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Take the hooks off: the PLM is as it was."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def leaves(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """θ's parts and a head's numbers, in order, as an optimiser trains them: by name, or as `name.0`, `name.1`, …
        where a part is trained in several.
        """
        return {name: part.to(self.plm.device, copy=True).requires_grad_() for name, part in parts.items()}

    def spread(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Whole parts of θ, and of a head, as a call takes them."""
        return [part.to(self.plm.device) for part in parts]

    def __call__(
        self,
        theta: Sequence[Tensor],
        ids: Tensor,
        lengths: Tensor,
        words: Tensor | None,
        said: Tensor | None = None,
        every: bool = False,
    ) -> Tensor:
        """Logits [rows, k] of `words` [k] (None: of every word), float32, for right-padded ids [rows, longest] of
        lengths [rows], where tokens said [rows, s] of the answer may follow.

        theta: θ in consecutive parts (one, or one a structure), in order; where the PLM is read through a trained head,
        its numbers [k × (d + 1)] as one more part at the end, and `words` only says how many labels there are.
        every: logits [rows, s + 1, k], of each said token's place and the next; said may be right-padded then. Not for
        an encoder, which would see what it is asked for. θ and logits are on the PLM's device; all else may be
        elsewhere.
        """
        theta = list(theta)
        head = theta.pop() if self.plm.head == "classification" else None
        inputs, call = self._prepared(theta, ids, lengths, said, every)
        with self.calls.during(call):
            states = self.family.states(self.model, inputs)
            words = None if words is None else words.to(self.plm.device)
            return self.read(states, words, call) if head is None else classify(states, head)

    @contextmanager
    def merged_for_inference(self, theta: Sequence[Tensor]) -> Iterator[None]:
        """For many calls with this θ and no gradient: what follows from θ alone is computed once. Where the PLM is in
        float32, small updates are added to copies of the maps they update, which live as long.
        """
        theta = list(theta)[: -1 if self.plm.head == "classification" else None]
        with torch.no_grad():
            pieces = self._split(theta)
            values = {(module, name): value for module, name, value in self._stand_ins(pieces)}
            for path, factors in self.factors.items():
                module = self.model.get_submodule(path)
                weight = module.get_parameter("weight")
                if weight.dtype == torch.float32:
                    values[module, "weight"] = factors.added(values.get((module, "weight"), weight), pieces)
            self.settled = pieces, tuple((*place, value) for place, value in values.items())
        try:
            yield
        finally:
            self.settled = None

    def generate(self, theta: Sequence[Tensor], ids: Tensor, lengths: Tensor) -> GenerationState:
        """Answers under way to ids and lengths as above, read by the PLM's own head; for families that can write."""
        return GenerationState(self, *self._prepared(theta, ids, lengths))

    def read(self, states: Tensor, words: Tensor | None, call: ForwardContext) -> Tensor:
        """Logits [..., k] of states [..., d] by the PLM's own head, with what θ changes about it; inside a call."""
        flat = self.family.transform(self.model, states.flatten(0, -2))
        logits = self.family.project(self.model, flat, words)
        for number, change in self.words:
            logits = logits + change(flat.float(), words, call.theta_slices[number])
        return logits.view(*states.shape[:-1], -1)

    def _prepared(
        self, theta: Sequence[Tensor], ids: Tensor, lengths: Tensor, said: Tensor | None = None, every: bool = False
    ) -> tuple[Inputs, ForwardContext]:
        """What a family's forward pass reads, and what the hooks do."""
        pieces, stand_ins = self.settled or self._values(theta)
        virtual = {place: pieces[n].view(-1, self.slots[n].units.site.cost) for place, n in self.virtual.items()}
        ids, lengths = ids.to(self.plm.device), lengths.to(self.plm.device)
        inputs = Inputs(ids, lengths, virtual, self.family.answer_offset, self.plm.special_tokens.decoder, self.mean)
        if said is not None:
            inputs = inputs.saying(said.to(self.plm.device), len(self.plm.special_tokens.after), every)
        return inputs, ForwardContext(pieces, inputs.position(self.family.input), stand_ins, bool(self.settled))

    def _values(self, theta: Sequence[Tensor]) -> tuple[Pieces, ParameterOverrides]:
        pieces = self._split(theta)
        return pieces, self._stand_ins(pieces)

    def _split(self, theta: Sequence[Tensor]) -> Pieces:
        """θ slot by slot."""
        return tuple(cut(theta, [s.stop - s.start for s in self.slots]))

    def _inside(self, block: int, call: ForwardContext) -> ForwardContext:
        """What a block works with in a call."""
        return call

    def _stand_ins(self, pieces: Pieces) -> ParameterOverrides:
        """Of the parameters whose values are at hand."""
        found = []
        for (path, name), scatters in self.scatters.items():
            if pieces[scatters[0][0]] is None:
                continue
            module = self.model.get_submodule(path)
            value: Tensor = module.get_parameter(name)
            for number, scatter in scatters:
                value = scatter(value, pieces[number])
            found.append((module, name, value))
        return tuple(found)

    def _enter(self, number: int, slot: ThetaSlice, place: ModuleSpec, plugged: bool) -> None:
        """Decide how a slot's values reach the PLM."""
        site = slot.units.site
        index = None if slot.units.indices is None else torch.as_tensor(slot.units.indices).to(self.plm.device)
        rows = rows_of(place, self.plm)
        if site.structure == "token":
            self.virtual[place.name] = number
        elif place.kind in ("embedding", "head"):
            self._enter_words(number, slot, place, index)
        elif place.kind == "linear" and is_thin(slot):
            self.parts[place.module].append(FactoredSlice(number, slot, rows))
        elif effect := self._effect(slot, place, rows, index, plugged):
            self.effects[place.module].append((number, effect))
        else:
            parameter = "weight" if site.structure == "entry" else "bias"
            self.scatters[place.module, parameter].append((number, Scatter(site.shape, rows, index)))

    def _enter_words(self, number: int, slot: ThetaSlice, place: ModuleSpec, index: Tensor | None) -> None:
        """An embedding acts where words are looked up, and on their logits too where the head is tied to it."""
        module, site = self.model.get_submodule(place.module), slot.units.site
        if site.structure == "bias":
            self.words.append((number, _word_biases(site.shape[0], index)))
            return
        if place.kind == "embedding":
            self.effects[place.module].append((number, output_updates.embedding_entries(site.shape, index)))
        head = None if self.plm.head == "classification" else self.model.get_submodule(self.family.head)
        if head is not None and head.weight is module.weight:
            self.words.append((number, Sparse(site.shape, index).products))

    def _effect(
        self, slot: ThetaSlice, place: ModuleSpec, rows: Tensor | None, index: Tensor | None, plugged: bool
    ) -> OutputUpdate | None:
        """How a slot acts on its module's output; None where a stand-in for the parameter does it."""
        site, module = slot.units.site, self.model.get_submodule(place.module)
        exact = module.weight.dtype == torch.float32
        if site.structure == "bottleneck":
            return output_updates.adapter(site.shape)
        if site.structure == "bias":
            behind = plugged or not site.exists or not exact
            return output_updates.bias_entries(rows, site.shape[0], index) if behind else None
        if exact:
            return None
        if place.kind == "norm":
            return output_updates.norm_entries(module, site.shape[0], index)
        return output_updates.linear_entries(site.shape, rows, index)

    def _acts(self, path: str) -> Callable:
        """The hook of a module: thin updates of its map, then its effects in their order."""
        effects = sorted(self.effects[path], key=lambda e: ORDER.index(self.slots[e[0]].units.site.structure))
        factors = self.factors.get(path)

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            call = self.calls.now
            pieces = call.theta_slices
            # Otherwise they are in the weight already.
            if factors and not (call.merged and module.weight.dtype == torch.float32):
                output = factors(inputs[0], output, pieces)
            for number, effect in effects:
                output = effect(inputs[0], output, pieces[number])
            return output

        return hook

    def _factors(self, path: str) -> Factors:
        outputs, inputs = self.model.get_submodule(path).get_parameter("weight").shape
        return Factors(outputs, inputs, self.parts[path], self.plm.device)

    def _narrow(self, _: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Tell the last attention which positions are read: what follows it does not mix positions."""
        return args, {**kwargs, "read": self.calls.now.position}


def classify(states: Tensor, head: Tensor) -> Tensor:
    """Logits [rows, labels] of a linear classifier on states [rows, d]; head [labels × (d + 1)]: a row is w, then b."""
    rows = head.view(-1, states.shape[1] + 1)
    return F.linear(states.float(), rows[:, :-1], rows[:, -1])


def rows_of(place: ModuleSpec, plm: PLM) -> Tensor | None:
    """The rows of a fused weight that are this place; None where the whole weight is."""
    if place.fused is None:
        return None
    outputs = plm.model.get_submodule(place.module).get_parameter("weight").shape[0]
    return place.fused.rows(outputs, plm.model.config.num_attention_heads).to(plm.device)


def _word_biases(words: int, index: Tensor | None) -> Callable:
    def change(states: Tensor, chosen: Tensor | None, values: Tensor) -> Tensor:
        biases = output_updates.scatter_vector(values, words, index)
        return biases if chosen is None else biases[chosen]

    return change


class GenerationState:
    """Answers under way, a row each, over a cache of keys and values. logits [rows, words]: of the next token."""

    def __init__(self, tuned: TunedPLM, inputs: Inputs, call: ForwardContext):
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
