"""A frozen PLM with the units of a plan, as a function of θ. The library's model is hooked, never edited or copied."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from apet.models.families import Inputs, ModuleSpec
from apet.models.loading import PLM
from apet.placement.plans import Plan, Units
from apet.placement.sites import Site
from apet.tuning.gradient_checkpointing import (
    CheckpointedBlocks,
    ContextStack,
    ForwardContext,
    ParameterOverrides,
    ReplacedForward,
)
from apet.tuning.low_rank_updates import MapSlice, add_factors, are_factors_cheaper, merged, updated_linear
from apet.tuning.output_updates import (
    OutputUpdate,
    adapter,
    add_rounded,
    embedding_entries,
    linear_entries,
    norm_entries,
    scale,
)
from apet.tuning.prefixes import attention_of, prefix_lengths, prefixed_forward
from apet.tuning.scattered import Key, ScatteredTensors, ThetaReader, Values, segments
from apet.tuning.structures import SparseUpdate, flat_positions
from apet.tuning.theta import layout

ORDER = ("entry", "bottleneck", "bias", "scale")
"""Order in which structures update a module's output: a bias comes after an adapter, and a factor is last."""

REPLACED = ("weight", "bias")
"""Names of tensors that replace parameters."""


class TunedPLM:
    """A function from θ to logits.

    Use it as a context manager, or call `remove`, to take the hooks off the PLM again. θ is float32 whatever the dtype
    of the PLM. Frozen parameters get no gradient. A slice of θ acts in one of these ways:

    - low-rank units, and a few entries of a linear map, as thin factors beside the map, or in a copy of its weight if
      that is cheaper;
    - entries of embeddings and of the LM head by the rows and products that a text needs;
    - adapters, biases that the PLM lacks, and factors, on the output of a module; other factors on its input;
    - virtual tokens in front of the input, and pairs in front of the keys and values of an attention;
    - norms, biases and completely trained maps as tensors that replace parameters during a forward pass, if the PLM is
      in float32; otherwise on the output of a module (see `output_updates`).

    Args:
        plm: The PLM.
        plan: The plan.
        gradient_checkpointing: Recompute activations of the blocks in the backward pass instead of storing them.
    """

    def __init__(self, plm: PLM, plan: Plan, gradient_checkpointing: bool = False):
        self.plm, self.model, self.family = plm, plm.model, plm.family
        self.slices = layout(plan)
        self.contexts = ContextStack()
        self.handles: list[RemovableHandle | ReplacedForward | CheckpointedBlocks] = []
        self.tensors: dict[int | None, ScatteredTensors] = defaultdict(ScatteredTensors)
        self.map_slices: dict[str, list[MapSlice]] = defaultdict(list)
        self.factored_maps: list[str] = []
        self.whole_weights: list[tuple[str, MapSlice]] = []
        self.output_updates: dict[str, dict[Key, tuple[str, OutputUpdate, list[Key]]]] = defaultdict(dict)
        self.scaled_inputs: list[str] = []
        self.logit_updates: list[tuple[Key, Callable]] = []
        self.virtual_tokens: dict[str, int] = {}
        self.prefixes: dict[str, int] = {}
        specs = {spec.name: spec for spec in self.family.module_specs(self.model)}
        with_adapter = {s.units.site.place for s in self.slices if s.units.site.structure == "bottleneck"}
        for number, theta_slice in enumerate(self.slices):
            spec = specs[theta_slice.units.site.place]
            self._add_units(number, theta_slice.units, spec, spec.name in with_adapter)
        for mapped in self.map_slices:
            self._add_map(mapped)
        self._add_prefixes(plan, specs)
        numbers = [self._block_of(specs[s.units.site.place].module) for s in self.slices]
        self.segments = segments(self.slices, numbers)
        self.readers = {
            number: ThetaReader([s for s in self.segments if s.block == number], self.tensors[number])
            for number in (None, *range(len(self.family.all_blocks(self.model))))
        }
        self.merged: tuple[Values, ParameterOverrides] | None = None
        for updated in dict.fromkeys([*self.factored_maps, *self.output_updates, *self.scaled_inputs]):
            module = self.model.get_submodule(updated)
            self.handles.append(ReplacedForward(module, self._forward(updated, module)))
        self.mean_pool = plm.head == "classification" and self.family.mean_pool
        path = self.family.last_attention(self.model.config)
        if path and not self.mean_pool:
            attention = self.model.get_submodule(path)
            self.handles.append(attention.register_forward_pre_hook(self._pass_query_positions, with_kwargs=True))
        if gradient_checkpointing:
            blocks = self.family.all_blocks(self.model)
            self.handles.append(CheckpointedBlocks(blocks, self.contexts, self._enter_block))

    def __enter__(self) -> TunedPLM:
        """Return the tuned PLM."""
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the hooks."""
        self.remove()

    def remove(self) -> None:
        """Remove the hooks, so that the PLM is as it was before."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def leaves(self, theta_by_structure: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Make the leaf tensors that an optimizer trains.

        Args:
            theta_by_structure: θ by structure, and the parameters of a classification head.

        Returns:
            Name -> leaf tensor, in order. A structure that is trained as several tensors has names `structure.0`, ….
        """
        device = self.plm.device
        return {name: values.to(device, copy=True).requires_grad_() for name, values in theta_by_structure.items()}

    def distribute(self, theta: Sequence[Tensor]) -> list[Tensor]:
        """Move complete tensors of θ to where a forward pass needs them.

        Args:
            theta: Consecutive tensors of θ, and the parameters of a classification head.

        Returns:
            Tensors that can be passed to a call.
        """
        return [values.to(self.plm.device) for values in theta]

    def __call__(
        self,
        theta: Sequence[Tensor],
        ids: Tensor,
        lengths: Tensor,
        vocab_ids: Tensor | None,
        answer_ids: Tensor | None = None,
        all_positions: bool = False,
    ) -> Tensor:
        """Compute logits.

        θ and the logits are on the device of the PLM. The other tensors may be elsewhere.

        Args:
            theta: Consecutive tensors of θ (one, or one a structure). If the PLM has a classification head, its
                parameters [k × (d + 1)] come last.
            ids: Right-padded token ids [rows, longest].
            lengths: Lengths of the rows [rows].
            vocab_ids: Vocabulary ids [k] whose logits are asked for; None for the whole vocabulary. A classification
                head uses only their number, which is the number of labels.
            answer_ids: First tokens [rows, s] of the answer, after which logits are computed.
            all_positions: Compute logits before and after each answer token; rows of `answer_ids` may then be
                right-padded. Not for an encoder, which would see the tokens that it must predict.

        Returns:
            Logits [rows, k], or [rows, s + 1, k] with `all_positions`, float32.
        """
        theta = list(theta)
        head = theta.pop() if self.plm.head == "classification" else None
        inputs, context = self._prepare(theta, ids, lengths, answer_ids, all_positions)
        with self.contexts.active(context):
            states = self.family.states(self.model, inputs)
            vocab_ids = None if vocab_ids is None else vocab_ids.to(self.plm.device)
            return self.read(states, vocab_ids, context) if head is None else classify(states, head)

    @contextmanager
    def merged_for_inference(self, theta: Sequence[Tensor]) -> Iterator[None]:
        """Compute everything that depends on θ only once, for many calls with this θ and without gradients.

        If the PLM is in float32, low-rank updates are added to copies of the weights. The copies live as long as the
        context.

        Args:
            theta: See `__call__`.

        Yields:
            Nothing.
        """
        theta = list(theta)[: -1 if self.plm.head == "classification" else None]
        with torch.no_grad():
            self.merged = self._values_and_overrides(theta, merge=True)
        try:
            yield
        finally:
            self.merged = None

    def generate(self, theta: Sequence[Tensor], ids: Tensor, lengths: Tensor) -> GenerationState:
        """Start to generate answers with the PLM's own head, for a family with a decoder.

        Args:
            theta: See `__call__`.
            ids: Right-padded token ids [rows, longest].
            lengths: Lengths of the rows [rows].

        Returns:
            The state before the first token.
        """
        return GenerationState(self, *self._prepare(theta, ids, lengths, None, False))

    def read(self, states: Tensor, vocab_ids: Tensor | None, context: ForwardContext) -> Tensor:
        """Compute logits [..., k] from states [..., d] with the PLM's own head, inside a forward pass."""
        flat = self.family.transform(self.model, states.flatten(0, -2))
        logits = self.family.project(self.model, flat, vocab_ids)
        for key, logit_update in self.logit_updates:
            logits = logits + logit_update(flat.float(), vocab_ids, context.values[key])
        return logits.view(*states.shape[:-1], -1)

    def _prepare(
        self, theta: Sequence[Tensor], ids: Tensor, lengths: Tensor, answer_ids: Tensor | None, all_positions: bool
    ) -> tuple[Inputs, ForwardContext]:
        """Make the inputs of the family's forward pass and of the hooks."""
        values, overrides = self.merged or self._values_and_overrides(theta)
        virtual = {
            place: values[number].view(-1, self.slices[number].units.site.cost)
            for place, number in self.virtual_tokens.items()
        }
        special_tokens, device = self.plm.special_tokens, self.plm.device
        ids, lengths = ids.to(device), lengths.to(device)
        offset, start = self.family.answer_offset, special_tokens.decoder
        inputs = Inputs(ids, lengths, virtual, offset, start, self.mean_pool, first_position=self.longest_prefix)
        if answer_ids is not None:
            inputs = inputs.with_answer(answer_ids.to(device), len(special_tokens.after), all_positions)
        position = inputs.position(self.family.input)
        return inputs, ForwardContext(values, position, overrides)

    def _values(self, theta: Sequence[Tensor], block: int | None = None) -> Values:
        """Read θ, or the part of it that acts in a block."""
        return self.readers[block](theta)

    def _values_and_overrides(
        self, theta: Sequence[Tensor], block: int | None = None, merge: bool = False
    ) -> tuple[Values, ParameterOverrides]:
        """Read θ and compute the replaced parameters; with `merge`, low-rank updates go into all float32 weights."""
        values = self._values(theta, block)
        overrides = {key: values.pop(key) for key in self.tensors[block].shapes if key[1] in REPLACED}
        for path, part in self.whole_weights:
            if part.number in values:
                weight = overrides.get((path, "weight"), self._parameter(path, "weight"))
                overrides[path, "weight"] = part.added_to(weight, values.pop(part.number))
        for path in self.factored_maps if merge else ():
            weight = self._parameter(path, "weight")
            if weight.dtype == torch.float32:
                overrides[path, "weight"] = merged(weight, values.pop((path, "a")), values.pop((path, "u")))
        return values, tuple((self.model.get_submodule(path), name, value) for (path, name), value in overrides.items())

    def _parameter(self, path: str, name: str) -> Tensor:
        return self.model.get_submodule(path).get_parameter(name)

    def _block_of(self, module: str) -> int | None:
        """Return the index of the block that reads θ for a module; None if θ is read once for all modules."""
        return None

    def _enter_block(self, block: int, context: ForwardContext) -> ForwardContext:
        """Return the context inside a block."""
        return context

    def _add_units(self, number: int, units: Units, spec: ModuleSpec, with_adapter: bool) -> None:
        """Choose how the units of a slice of θ act."""
        site, path = units.site, spec.module
        index = None if units.indices is None else torch.as_tensor(units.indices).to(self.plm.device)
        rows = rows_of(spec, self.plm)
        if site.structure == "token":
            self.virtual_tokens[spec.name] = number
        elif site.structure == "prefix":
            self.prefixes[spec.name] = number
        elif site.structure == "scale":
            self._add_factors(number, spec, flat_positions(site.shape, rows, index))
        elif spec.kind in ("embedding", "head"):
            self._add_vocab_units(number, site, spec, index)
        elif site.structure == "bottleneck":
            self._add_adapter(number, units, path)
        elif site.structure == "bias":
            has_bias = site.exists or spec.kind == "linear"
            on_output = with_adapter or not has_bias or not self._is_exact(path)
            self._scatter(path, "added bias" if on_output else "bias", number, flat_positions(site.shape, rows, index))
            if on_output:
                self._update_output(path, site.structure, add_rounded, "added bias")
        elif spec.kind == "linear":
            self.map_slices[path].append(MapSlice(number, units, rows, index))
        else:
            name = "weight" if self._is_exact(path) else "added weight"
            self._scatter(path, name, number, flat_positions(site.shape, rows, index))
            if name == "added weight":
                self._update_output(path, site.structure, norm_entries(self.model.get_submodule(path)), name)

    def _update_output(self, path: str, structure: str, update: OutputUpdate, *names: str) -> None:
        """Update the output of a module with tensors of these names, in the place that the structure has in `ORDER`."""
        self.output_updates[path][path, names[0]] = structure, update, [(path, name) for name in names]

    def _is_exact(self, path: str) -> bool:
        """Check that a module's parameters are float32, so that θ may be added to them."""
        return self._parameter(path, "weight").dtype == torch.float32

    def _scatter(self, path: str, name: str, number: int, positions: Tensor) -> None:
        """Let a slice of θ act at flat positions of a replaced parameter, or of a vector of the size of the output."""
        module, tensors = self.model.get_submodule(path), self.tensors[self._block_of(path)]
        if getattr(module, name, None) is not None:
            start = tensors.add((path, name), getattr(module, name).shape, lambda: getattr(module, name).flatten())
        else:
            zeros = torch.zeros(len(self._parameter(path, "weight")), device=self.plm.device)
            start = tensors.add((path, name), zeros.shape, lambda: zeros)
        tensors.positions[number] = start + positions.to(self.plm.device)

    def _add_factors(self, number: int, spec: ModuleSpec, positions: Tensor) -> None:
        """Multiply the output of a module by factors 1 + θ, or the input of the feed-forward network's last map."""
        path, (outputs, inputs) = spec.module, self._parameter(spec.module, "weight").shape
        name, size = ("input factors", inputs) if spec.name.endswith(".ffn.down") else ("factors", outputs)
        ones, tensors = torch.ones(size, device=self.plm.device), self.tensors[self._block_of(path)]
        start = tensors.add((path, name), ones.shape, lambda: ones)
        tensors.positions[number] = start + positions.to(self.plm.device)
        if name == "factors":
            self._update_output(path, "scale", scale, name)
        else:
            self.scaled_inputs.append(path)

    def _add_prefixes(self, plan: Plan, specs: Mapping[str, ModuleSpec]) -> None:
        """Put pairs in front of the keys and values of self-attentions."""
        lengths = prefix_lengths(plan)
        self.longest_prefix = max(lengths.values(), default=0)
        for name, spec in specs.items() if lengths else ():
            if name.endswith(".attention.key"):
                attention, read_pairs = self.model.get_submodule(attention_of(spec.module)), partial(self._pairs, name)
                forward = prefixed_forward(
                    self.family, attention, lengths.get(name, 0), self.longest_prefix, read_pairs
                )
                self.handles.append(ReplacedForward(attention, forward))

    def _pairs(self, place: str) -> Tensor:
        """Return the pairs of the prefix at a place in the forward pass in progress."""
        return self.contexts.current.values[self.prefixes[place]]

    def _add_adapter(self, number: int, units: Units, path: str) -> None:
        (width,), tensors, count = units.site.shape, self.tensors[self._block_of(path)], units.count
        zeros = torch.zeros(count * width, device=self.plm.device)
        rows, columns = torch.arange(count)[:, None], torch.arange(width)
        down, up = (tensors.add((path, name), (count, width), lambda: zeros) for name in ("down", "up"))
        inner = tensors.add((path, "inner"), (count, 1), lambda: zeros[:count])
        positions = torch.cat((down + rows * width + columns, inner + rows, up + rows * width + columns), dim=1)
        tensors.positions[number] = positions.flatten().to(self.plm.device)
        self._update_output(path, "bottleneck", adapter, "down", "inner", "up")

    def _add_map(self, path: str) -> None:
        """Choose how all slices of θ that update the weight of a linear map act."""
        slices, is_exact, tensors = self.map_slices[path], self._is_exact(path), self.tensors[self._block_of(path)]
        weight = self._parameter(path, "weight")
        cheaper = are_factors_cheaper(slices, *weight.shape)
        factored = [part for part in slices if cheaper or part.is_lowrank]
        for part in [] if cheaper else [part for part in slices if not part.is_lowrank]:
            if not is_exact:
                self.output_updates[path][part.number] = "entry", linear_entries(*part.place), [part.number]
            elif part.index is None:
                self.whole_weights.append((path, part))
            else:
                self._scatter(path, "weight", part.number, flat_positions(*part.place))
        if factored:
            add_factors(tensors, path, factored, weight)
            if is_exact and not cheaper:
                tensors.add((path, "weight"), weight.shape, lambda: self._parameter(path, "weight").flatten())
                tensors.merged_maps.append(path)
            else:
                self.factored_maps.append(path)

    def _add_vocab_units(self, number: int, site: Site, spec: ModuleSpec, index: Tensor | None) -> None:
        """Let an embedding act where words are looked up, and on the logits too if the head is tied to it."""
        module = self.model.get_submodule(spec.module)
        if site.structure == "bias":
            self._scatter(spec.module, "added bias", number, flat_positions(site.shape, None, index))
            self.logit_updates.append(((spec.module, "added bias"), _logit_biases))
            return
        if spec.kind == "embedding":
            update = embedding_entries(site.shape, index)
            self.output_updates[spec.module][number] = site.structure, update, [number]
        head = None if self.plm.head == "classification" else self.model.get_submodule(self.family.head)
        if head is not None and head.weight is module.weight:
            self.logit_updates.append((number, SparseUpdate(site.shape, index).products))

    def _forward(self, path: str, module: Any) -> Callable[[Tensor], Tensor]:
        """Make the forward method of a module: its map with factors, then updates of its output in `ORDER`."""
        forward, a, u = module.forward, (path, "a"), (path, "u")
        is_factored, factors = path in self.factored_maps, (path, "input factors")
        updates = sorted(self.output_updates[path].values(), key=lambda entry: ORDER.index(entry[0]))

        def updated_forward(x: Tensor) -> Tensor:
            values = self.contexts.current.values
            if factors in values:
                x = scale(x, x, values[factors])
            if is_factored and a in values:
                y = updated_linear(x, module.weight, module.bias, values[a], values[u])
            else:
                y = forward(x)
            for _, output_update, keys in updates:
                y = output_update(x, y, *(values[key] for key in keys))
            return y

        return updated_forward

    def _pass_query_positions(self, _: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Tell the last attention which positions are read, because nothing after it mixes positions."""
        return args, {**kwargs, "query_positions": self.contexts.current.position}


def classify(states: Tensor, head: Tensor) -> Tensor:
    """Compute the logits of a classification head.

    Args:
        states: states that are read, shape [rows, d].
        head: weights and bias of each label, shape [labels × (d + 1)].

    Returns:
        Logits, shape [rows, labels].
    """
    rows = head.view(-1, states.shape[1] + 1)
    return F.linear(states.float(), rows[:, :-1], rows[:, -1])


def rows_of(spec: ModuleSpec, plm: PLM) -> Tensor | None:
    """Find the rows of a fused weight that belong to a place; None if the whole weight does."""
    if spec.fused is None:
        return None
    outputs = plm.model.get_submodule(spec.module).get_parameter("weight").shape[0]
    return spec.fused.rows(outputs, plm.model.config.num_attention_heads).to(plm.device)


def _logit_biases(states: Tensor, vocab_ids: Tensor | None, biases: Tensor) -> Tensor:
    return biases if vocab_ids is None else biases[vocab_ids]


class GenerationState:
    """Answers in generation, one a row, over a cache of keys and values.

    Args:
        tuned: The tuned PLM.
        inputs: The prompts.
        context: Context of the forward passes.

    Attributes:
        logits: Logits of the next token [rows, vocab].
    """

    logits: Tensor

    def __init__(self, tuned: TunedPLM, inputs: Inputs, context: ForwardContext):
        self.tuned, self.context = tuned, context
        assert tuned.family.decoder is not None  # `check_can_generate` has refused other families
        with tuned.contexts.active(context):
            self.decoder = tuned.family.decoder(tuned.model, inputs)
            self.logits = tuned.read(self.decoder.states, None, context)

    def step(self, tokens: Tensor, active: Tensor) -> None:
        """Append a token to each active row, and drop all other rows.

        Args:
            tokens: Token ids [k].
            active: Indices [k] of the active rows among the current ones.
        """
        if len(active) < len(self.logits):
            self.decoder.keep(active)
        tokens = tokens.to(self.tuned.plm.device)
        # One position a row is computed, and this position is read.
        context = replace(self.context, position=torch.zeros(len(active), 1, dtype=torch.long, device=tokens.device))
        with self.tuned.contexts.active(context):
            self.logits = self.tuned.read(self.decoder.step(tokens), None, context)
