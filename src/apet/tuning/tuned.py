"""A frozen PLM with a plan's units in it, as a function of θ. The library's model is hooked, never edited or copied."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from apet.placement.plans import Plan
from apet.plms.families import Inputs, Place
from apet.plms.load import PLM
from apet.tuning.factors import Factors, Part, is_thin
from apet.tuning.structures import bottleneck
from apet.tuning.structures.entry import Scatter
from apet.tuning.theta import Slot, layout

Effect = Callable[[Tensor, Tensor], Tensor]
"""(output of a module so far, the slot's values) -> its output."""


class Reader(nn.Module):
    """The PLM from rows of token ids to the logits of a few words where the answer is read."""

    def __init__(self, plm: PLM):
        super().__init__()
        self.model = plm.model
        self.family = plm.family

    def forward(self, inputs: Inputs, words: Tensor) -> Tensor:
        """Logits [rows, k] of words [k]."""
        return self.family.logits(self.model, self.family.states(self.model, inputs), words)


class TunedPLM:
    """θ -> logits. Use as a context manager, or call `remove`, to take the hooks off the PLM again.

    Scalars (entry, bias) become tensors that stand in for the PLM's parameters during one call; larger structures act
    on a module's output through a hook; virtual tokens lengthen the input. Nothing frozen gets a gradient.
    """

    def __init__(self, plm: PLM, plan: Plan):
        self.reader = Reader(plm)
        self.plm = plm
        self.slots = layout(plan)
        self.scatters: dict[str, list[tuple[int, Scatter]]] = defaultdict(list)
        self.effects: dict[str, list[tuple[int, Effect]]] = defaultdict(list)
        self.virtual: dict[str, int] = {}
        self.head: list[tuple[int, Scatter]] = []
        self.pieces: tuple[Tensor, ...] = ()
        self.position = torch.zeros(0, dtype=torch.long)
        self.parts: dict[str, list[Part]] = defaultdict(list)
        places = {p.name: p for p in plm.family.places(plm.model)}
        plugged = {s.units.site.place for s in self.slots if s.units.site.structure == "bottleneck"}
        for number, slot in enumerate(self.slots):
            place = places[slot.units.site.place]
            self._enter(number, slot, place, rows_of(place, plm), place.name in plugged)
        touched = dict.fromkeys([*self.parts, *self.effects])
        self.handles = [plm.model.get_submodule(m).register_forward_hook(self._acts(m)) for m in touched]
        if narrow := plm.family.narrow(plm.model.config):
            self.handles.append(plm.model.get_submodule(narrow).register_forward_hook(self._narrow))

    def __enter__(self) -> TunedPLM:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Take the hooks off: the PLM is as it was."""
        for handle in self.handles:
            handle.remove()

    def __call__(self, theta: Sequence[Tensor], ids: Tensor, lengths: Tensor, words: Tensor) -> Tensor:
        """Logits [rows, k] of `words` [k] for right-padded ids [rows, longest] of lengths [rows].

        theta: θ in consecutive parts (one, or one a structure), in order.
        """
        self.pieces = self._split(theta)
        virtual = {place: self.pieces[n].view(-1, self.slots[n].units.site.cost) for place, n in self.virtual.items()}
        inputs = Inputs(ids, lengths, virtual, self.plm.family.slot, self.plm.frame.decoder)
        self.position = inputs.position(self.plm.family.input)
        standing_in = {}
        for name, scatters in self.scatters.items():
            value = self.reader.get_parameter(name)
            for number, scatter in scatters:
                value = scatter(value, self.pieces[number])
            standing_in[name] = value
        logits = functional_call(self.reader, standing_in, (inputs, words))
        for number, scatter in self.head:
            absent = logits.new_zeros(self.slots[number].units.site.shape)
            logits = logits + scatter(absent, self.pieces[number])[words]
        return logits

    def _split(self, theta: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """One tensor a slot, by one split of each part, whose gradient is one concatenation."""
        sizes = iter([s.stop - s.start for s in self.slots])
        pieces: list[Tensor] = []
        for part in theta:
            taken, rest = [], len(part)
            while rest:
                taken.append(next(sizes))
                rest -= taken[-1]
            pieces.extend(part.split(taken))
        return tuple(pieces)

    def _enter(self, number: int, slot: Slot, place: Place, rows: Tensor | None, plugged: bool) -> None:
        """Decide how a slot's values reach the PLM."""
        site, index = slot.units.site, slot.units.index
        if site.structure == "token":
            self.virtual[place.name] = number
        elif place.kind == "linear" and is_thin(slot):
            self.parts[place.module].append(Part(number, slot, rows))
        elif site.structure == "bottleneck":
            self.effects[place.module].append((number, _bottleneck(site.shape)))
        else:
            scatter = Scatter(site.shape, rows, None if index is None else torch.from_numpy(index))
            if place.kind == "head" and site.structure == "bias" and not site.present:
                self.head.append((number, scatter))
            elif site.structure == "bias" and (plugged or not site.present):
                self.effects[place.module].append((number, _added_bias(scatter)))
            else:
                parameter = "weight" if site.structure == "entry" else "bias"
                self.scatters[f"model.{place.module}.{parameter}"].append((number, scatter))

    def _acts(self, module: str) -> Callable:
        """The hook of a module: thin updates of its map, then adapters, then the biases that stand behind them."""
        order = {"bottleneck": 0, "bias": 1}
        effects = sorted(self.effects[module], key=lambda e: order[self.slots[e[0]].units.site.structure])
        factors = None
        if parts := self.parts[module]:
            outputs, inputs = self.plm.model.get_submodule(module).weight.shape
            factors = Factors(outputs, inputs, parts)

        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if factors:
                output = factors(inputs[0], output, self.pieces)
            for number, effect in effects:
                output = effect(output, self.pieces[number])
            return output

        return hook

    def _narrow(self, _: nn.Module, inputs: object, output: Tensor | tuple) -> Tensor | tuple:
        """Keep only the position that is read: what follows the last attention does not mix positions."""
        states = output[0] if isinstance(output, tuple) else output
        states = states[torch.arange(len(states)), self.position].unsqueeze(1)
        return (states, *output[1:]) if isinstance(output, tuple) else states


def rows_of(place: Place, plm: PLM) -> Tensor | None:
    """The rows of a fused weight that are this place; None where the whole weight is."""
    if place.fused is None:
        return None
    outputs = plm.model.get_submodule(place.module).weight.shape[0]
    return place.fused.rows(outputs, plm.model.config.num_attention_heads)


def _bottleneck(shape: tuple[int, ...]) -> Effect:
    return lambda y, values: y + bottleneck.update(y, values, shape)


def _added_bias(scatter: Scatter) -> Effect:
    return lambda y, values: y + scatter(y.new_zeros(y.shape[-1]), values)
