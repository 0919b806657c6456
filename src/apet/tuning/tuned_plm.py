"""A frozen PLM with the units of a plan, as a function of θ. The library's model is hooked, never edited or copied."""

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
from apet.placement.plans import Plan, Units
from apet.placement.sites import Site
from apet.tuning.gradient_checkpointing import (
    CheckpointedBlocks,
    ContextStack,
    ForwardContext,
    ParameterOverrides,
    ThetaSlices,
)
from apet.tuning.low_rank_updates import FactoredSlice, LowRankUpdate, is_factored
from apet.tuning.output_updates import (
    OutputUpdate,
    adapter,
    bias_entries,
    embedding_entries,
    linear_entries,
    norm_entries,
    scatter_vector,
)
from apet.tuning.structures import Scatter, SparseUpdate
from apet.tuning.theta import layout, split_to_sizes

ORDER = ("entry", "bottleneck", "bias")
"""Order in which structures update a module's output, after the low-rank update: a bias comes after an adapter."""


class TunedPLM:
    """A function from θ to logits.

    Use it as a context manager, or call `remove`, to take the hooks off the PLM again. θ is float32 whatever the dtype
    of the PLM. Frozen parameters get no gradient. A slice of θ acts in one of these ways:

    - low-rank units, and a few entries of a linear map, as thin factors beside the map;
    - entries of embeddings and of the LM head by the rows and products that a text needs;
    - adapters, and biases that the PLM lacks, on the output of a module;
    - virtual tokens in front of the input;
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
        self.scatters: dict[tuple[str, str], list[tuple[int, Scatter]]] = defaultdict(list)
        self.factored: dict[str, list[FactoredSlice]] = defaultdict(list)
        self.output_updates: dict[str, list[tuple[int, OutputUpdate]]] = defaultdict(list)
        self.logit_updates: list[tuple[int, Callable]] = []
        self.virtual_tokens: dict[str, int] = {}
        specs = {spec.name: spec for spec in self.family.module_specs(self.model)}
        with_adapter = {s.units.site.place for s in self.slices if s.units.site.structure == "bottleneck"}
        for number, theta_slice in enumerate(self.slices):
            spec = specs[theta_slice.units.site.place]
            self._add_units(number, theta_slice.units, spec, spec.name in with_adapter)
        self.low_rank_updates = {path: self._low_rank_update(path) for path in self.factored}
        self.merged: tuple[ThetaSlices, ParameterOverrides] | None = None
        hooked = dict.fromkeys([*self.factored, *self.output_updates])
        self.handles: list[RemovableHandle | CheckpointedBlocks]
        self.handles = [self.model.get_submodule(m).register_forward_hook(self._output_hook(m)) for m in hooked]
        self.mean_pool = plm.head == "classification" and self.family.mean_pool
        if (path := self.family.last_attention(self.model.config)) and not self.mean_pool:
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
            theta_slices = self._split_theta(theta)
            overrides = {(module, name): value for module, name, value in self._overrides(theta_slices)}
            for path, update in self.low_rank_updates.items():
                module = self.model.get_submodule(path)
                weight = module.get_parameter("weight")
                if weight.dtype == torch.float32:
                    overrides[module, "weight"] = update.merged(overrides.get((module, "weight"), weight), theta_slices)
            self.merged = theta_slices, tuple((*key, value) for key, value in overrides.items())
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
        for number, logit_update in self.logit_updates:
            logits = logits + logit_update(flat.float(), vocab_ids, context.theta_slices[number])
        return logits.view(*states.shape[:-1], -1)

    def _prepare(
        self, theta: Sequence[Tensor], ids: Tensor, lengths: Tensor, answer_ids: Tensor | None, all_positions: bool
    ) -> tuple[Inputs, ForwardContext]:
        """Make the inputs of the family's forward pass and of the hooks."""
        theta_slices, overrides = self.merged or self._slices_and_overrides(theta)
        virtual = {
            place: theta_slices[number].view(-1, self.slices[number].units.site.cost)
            for place, number in self.virtual_tokens.items()
        }
        special_tokens, device = self.plm.special_tokens, self.plm.device
        ids, lengths = ids.to(device), lengths.to(device)
        inputs = Inputs(ids, lengths, virtual, self.family.answer_offset, special_tokens.decoder, self.mean_pool)
        if answer_ids is not None:
            inputs = inputs.with_answer(answer_ids.to(device), len(special_tokens.after), all_positions)
        position = inputs.position(self.family.input)
        return inputs, ForwardContext(theta_slices, position, overrides, bool(self.merged))

    def _slices_and_overrides(self, theta: Sequence[Tensor]) -> tuple[ThetaSlices, ParameterOverrides]:
        theta_slices = self._split_theta(theta)
        return theta_slices, self._overrides(theta_slices)

    def _split_theta(self, theta: Sequence[Tensor]) -> ThetaSlices:
        return tuple(split_to_sizes(theta, [s.stop - s.start for s in self.slices]))

    def _enter_block(self, block: int, context: ForwardContext) -> ForwardContext:
        """Return the context inside a block."""
        return context

    def _overrides(self, theta_slices: ThetaSlices) -> ParameterOverrides:
        """Compute the replaced parameters whose slices are gathered."""
        overrides = []
        for (path, name), scatters in self.scatters.items():
            if theta_slices[scatters[0][0]] is None:
                continue
            module = self.model.get_submodule(path)
            value: Tensor = module.get_parameter(name)
            for number, scatter in scatters:
                value = scatter(value, theta_slices[number])
            overrides.append((module, name, value))
        return tuple(overrides)

    def _add_units(self, number: int, units: Units, spec: ModuleSpec, with_adapter: bool) -> None:
        """Choose how the units of a slice of θ act."""
        site = units.site
        index = None if units.indices is None else torch.as_tensor(units.indices).to(self.plm.device)
        rows = rows_of(spec, self.plm)
        if site.structure == "token":
            self.virtual_tokens[spec.name] = number
        elif spec.kind in ("embedding", "head"):
            self._add_vocab_units(number, site, spec, index)
        elif spec.kind == "linear" and is_factored(units):
            self.factored[spec.module].append(FactoredSlice(number, units, rows))
        elif output_update := self._output_update(site, spec, rows, index, with_adapter):
            self.output_updates[spec.module].append((number, output_update))
        else:
            parameter = "weight" if site.structure == "entry" else "bias"
            self.scatters[spec.module, parameter].append((number, Scatter(site.shape, rows, index)))

    def _add_vocab_units(self, number: int, site: Site, spec: ModuleSpec, index: Tensor | None) -> None:
        """Let an embedding act where words are looked up, and on the logits too if the head is tied to it."""
        module = self.model.get_submodule(spec.module)
        if site.structure == "bias":
            self.logit_updates.append((number, _logit_biases(site.shape[0], index)))
            return
        if spec.kind == "embedding":
            update = embedding_entries(site.shape, index)
            self.output_updates[spec.module].append((number, update))
        head = None if self.plm.head == "classification" else self.model.get_submodule(self.family.head)
        if head is not None and head.weight is module.weight:
            self.logit_updates.append((number, SparseUpdate(site.shape, index).products))

    def _output_update(
        self, site: Site, spec: ModuleSpec, rows: Tensor | None, index: Tensor | None, with_adapter: bool
    ) -> OutputUpdate | None:
        """Return how a site updates the output of its module; None if it replaces a parameter."""
        module = self.model.get_submodule(spec.module)
        exact = module.weight.dtype == torch.float32
        if site.structure == "bottleneck":
            return adapter(site.shape)
        if site.structure == "bias":
            on_output = with_adapter or not site.exists or not exact
            return bias_entries(rows, index) if on_output else None
        if exact:
            return None
        if spec.kind == "norm":
            return norm_entries(module, site.shape[0], index)
        return linear_entries(site.shape, rows, index)

    def _output_hook(self, path: str) -> Callable:
        """Make the hook of a module: the low-rank update of its map, then updates of its output in `ORDER`."""
        updates = sorted(self.output_updates[path], key=lambda u: ORDER.index(self.slices[u[0]].units.site.structure))
        low_rank_update = self.low_rank_updates.get(path)

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            context = self.contexts.current
            theta_slices = context.theta_slices
            # Merged float32 weights contain the low-rank update already.
            if low_rank_update and not (context.merged and module.weight.dtype == torch.float32):
                output = low_rank_update(inputs[0], output, theta_slices)
            for number, output_update in updates:
                output = output_update(inputs[0], output, theta_slices[number])
            return output

        return hook

    def _low_rank_update(self, path: str) -> LowRankUpdate:
        outputs, inputs = self.model.get_submodule(path).get_parameter("weight").shape
        return LowRankUpdate(outputs, inputs, self.factored[path], self.plm.device)

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


def _logit_biases(vocab_size: int, index: Tensor | None) -> Callable:
    def logit_update(states: Tensor, vocab_ids: Tensor | None, values: Tensor) -> Tensor:
        biases = scatter_vector(values, vocab_size, index)
        return biases if vocab_ids is None else biases[vocab_ids]

    return logit_update


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
