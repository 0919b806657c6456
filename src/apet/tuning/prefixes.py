"""Prefixes: key-value pairs in front of those of the text, in self-attentions (prefix tuning, Li & Liang 2021).

The pairs of a block take the positions just before the text. Blocks may have different numbers of pairs. If positions
are absolute, the text begins at the largest number of pairs in a block, as in PEFT, where all blocks have equally many.

At step 0 the pairs are the keys and values that the frozen PLM computes for random words. In a decoder without an
encoder, with equally many pairs in all blocks, the tuned PLM then computes exactly what the frozen one does for a text
with these words in front. It comes close to that in other cases: a block with fewer pairs has those of the last words,
and the words of an encoder, or of a decoder with an encoder, do not see the text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from apet.models.families import Family, Inputs
from apet.models.loading import PLM
from apet.placement.plans import Plan
from apet.tuning.gradient_checkpointing import ReplacedForward

CACHES, MASKS = ("cache", "layer_past"), ("attention_mask", "mask")
"""Names that the library's attentions give to the cache of keys and values, and to the mask of attention scores."""


def attention_of(key: str) -> str:
    """Return the path of an attention from the path of its map of keys."""
    return key.rpartition(".")[0]


def prefix_lengths(plan: Plan) -> dict[str, int]:
    """Count the pairs of a plan at each place."""
    return {u.site.place: u.count for u in plan.units if u.site.structure == "prefix"}


def prefixed_forward(
    family: Family, attention: Any, count: int, longest: int, read_pairs: Callable[[], Tensor]
) -> Callable:
    """Make the forward method of a self-attention with a prefix.

    Args:
        family: Family of the PLM.
        attention: The library's module.
        count: Pairs of this attention.
        longest: The largest number of pairs of an attention.
        read_pairs: Returns the pairs of the forward pass in progress, [count × 2 d].

    Returns:
        The method.
    """
    forward = family.extend_positions(attention, attention.forward, count, longest)

    def prefixed(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        for name in CACHES:
            if name in kwargs:
                kwargs[name] = PrefixedCache(kwargs[name], read_pairs())
        for name in MASKS:
            if name in kwargs:
                kwargs[name] = _extended_mask(kwargs[name], hidden, count, getattr(attention, "is_causal", False))
        return forward(*args, **kwargs)

    return prefixed if count else forward


class PrefixedCache:
    """A cache of the text's keys and values, or None, with a prefix that it returns in front of them.

    Args:
        cache: The library's cache.
        pairs: Pairs of the prefix, [pairs × 2 d].
    """

    def __init__(self, cache: Any, pairs: Tensor):
        self.cache, self.pairs = getattr(cache, "self_attention_cache", cache), pairs

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the length of the text in the cache."""
        return 0 if self.cache is None else self.cache.get_seq_length(layer_idx)

    def update(self, key: Tensor, value: Tensor, layer_idx: int, **_: object) -> tuple[Tensor, Tensor]:
        """Add keys and values [rows, heads, n, d of a head] of the text, and return all of them with the prefix."""
        if self.cache is not None:
            key, value = self.cache.update(key, value, layer_idx)
        rows, heads, _n, width = key.shape
        pairs = self.pairs.to(key.dtype).view(-1, 2, heads, width).permute(1, 2, 0, 3)
        keys, values = (part.expand(rows, -1, -1, -1) for part in pairs)
        return torch.cat((keys, key), dim=2), torch.cat((values, value), dim=2)


def _extended_mask(mask: Tensor | None, hidden: Tensor, count: int, is_causal: bool) -> Tensor | None:
    """Let every position attend to a prefix: extend a mask [rows, 1, n, keys] of booleans, or of numbers to add.

    Without a mask the library masks later positions itself if there are several, but not if there are more keys.
    """
    size = hidden.shape[1]
    if mask is None:
        if not is_causal or size == 1:
            return None
        mask = torch.ones(1, 1, size, size, dtype=torch.bool, device=hidden.device).tril()
    visible = mask.new_full((*mask.shape[:-1], count), mask.dtype == torch.bool)
    return torch.cat((visible, mask), dim=-1)


class PairRecorder:
    """A cache that keeps the keys and values of one forward pass of one text.

    Attributes:
        pairs: Keys and values [n, 2 d].
    """

    pairs: Tensor

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0, because no text comes before."""
        return 0

    def update(self, key: Tensor, value: Tensor, layer_idx: int, **_: object) -> tuple[Tensor, Tensor]:
        """Keep keys and values [1, heads, n, d of a head], and return them."""
        self.pairs = torch.cat((key, value)).permute(2, 0, 1, 3).flatten(1)
        return key, value


def initial_pairs(plm: PLM, plan: Plan, seed: int) -> Mapping[str, Tensor]:
    """Compute the keys and values of random words, as many as the longest prefix, with the frozen PLM.

    A decoder with an encoder reads the words after the encoder has read them.

    Args:
        plm: The PLM. If it is sharded, all processes must call this at the same time.
        plan: The plan.
        seed: Seed of the words.

    Returns:
        Place of a prefix -> pairs [words, 2 d], on the CPU.
    """
    lengths = prefix_lengths(plan)
    if not lengths:
        return {}
    # The words have their own generator, so that all processes choose the same.
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(len(plm.word_embeddings), (1, max(lengths.values())), generator=generator)
    decoder_start = tuple(words[0].tolist()) if plm.special_tokens.decoder else ()
    size = torch.tensor([words.shape[1]], device=plm.device)
    inputs = Inputs(words.to(plm.device), size, {}, plm.family.answer_offset, decoder_start)
    modules = {spec.name: spec.module for spec in plm.family.module_specs(plm.model)}
    recorders = {place: PairRecorder() for place in lengths}
    replaced = [
        _recorded(plm.model.get_submodule(attention_of(modules[place])), cache) for place, cache in recorders.items()
    ]
    try:
        with torch.no_grad():
            _run(plm, lambda: plm.family.states(plm.model, inputs))
    finally:
        for handle in replaced:
            handle.remove()
    return {place: cache.pairs.cpu() for place, cache in recorders.items()}


def _run(plm: PLM, states: Callable[[], Tensor]) -> Tensor:
    return states() if plm.root_unit is None else plm.root_unit(states)


def _recorded(attention: nn.Module, cache: PairRecorder) -> ReplacedForward:
    """Let an attention write its keys and values to a cache."""
    forward = attention.forward

    def recorded(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **{name: cache if name in CACHES else value for name, value in kwargs.items()})

    return ReplacedForward(attention, recorded)
