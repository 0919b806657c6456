"""The layouts of architectures: where the modules of a library's model are, and the sites on them. Without torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from apet.errors import ModelError
from apet.placement.sites import Site

if TYPE_CHECKING:  # importing it takes seconds
    from torch import Tensor


@dataclass(frozen=True)
class FusedSlice:
    """One of several maps whose rows are interleaved in one weight, in the order (head, map, row of the head)."""

    part: int
    """Index of the map."""
    parts: int = 3
    """Number of maps in the weight."""

    def rows(self, outputs: int, heads: int) -> Tensor:
        """Find the rows [outputs / parts] of the map in a weight with `outputs` rows, in the order of the map."""
        import torch

        return torch.arange(outputs).view(heads, self.parts, -1)[:, self.part].flatten()


@dataclass(frozen=True)
class ModuleSpec:
    """One module of the architecture."""

    name: str
    """Canonical name, the same in every family; relative to the block inside a block (`attention.query`)."""
    module: str
    """Dotted path in the library's model; relative to the block inside a block."""
    kind: str
    """`linear`, `norm`, `embedding` (of words, positions, …), `head` (the LM head) or `input` (start of a sequence)."""
    fused: FusedSlice | None = None
    """The rows of a fused weight that belong to the module."""
    adapter_after: bool = False
    """Whether an adapter may follow."""
    bias_cancels: bool = False
    """Whether a bias has no effect, at least in part: the softmax cancels the bias of keys that are not rotated."""
    optional: bool = False
    """Whether some versions of the architecture lack the module."""


@dataclass(frozen=True)
class ModuleShape:
    """Shape of one module of a model."""

    weight: tuple[int, ...]
    """Shape of its weight."""
    has_bias: bool
    """Whether it has a bias, as long as the first axis of the weight."""
    tied: object
    """A key that modules with the same weight share."""


@dataclass(frozen=True)
class Layout:
    """The modules of an architecture."""

    outer: tuple[ModuleSpec, ...]
    """Modules outside the blocks."""
    blocks: Mapping[str, tuple[str, tuple[ModuleSpec, ...]]]
    """Canonical name of a stack -> (path of its list of blocks, modules of a block)."""
    positions: str | None = None
    """Name of the module whose weight has a row for each position, which limits the length of a text; None if positions
    are computed."""

    def module_specs(self, num_blocks: Mapping[str, int]) -> list[ModuleSpec]:
        """List all modules with full names and paths, given the number of blocks of each stack."""
        specs = list(self.outer)
        for stack, (path, block) in self.blocks.items():
            for i in range(num_blocks[stack]):
                specs += [replace(s, name=f"{stack}.{i}.{s.name}", module=f"{path}.{i}.{s.module}") for s in block]
        return specs


MAX_BLOCKS, MAX_SIZE = 1_000, 10**7
"""Limits of sizes in a config.json. No PLM exceeds them, and larger shapes could take hours to build."""


NOT_SIZES = re.compile(r"theta|base|_id$|_tokens$|param|seed|steps")
"""Numbers in a config.json that are no sizes: of rotary positions, ids of tokens, and notes on the pretraining."""


def check_config_sizes(values: Mapping[str, Any], layout: Layout) -> None:
    """Check that no size of a configuration exceeds that of every PLM, before its shapes are made.

    Args:
        values: The mapping in a config.json.
        layout: The layout of the family.

    Raises:
        ModelError: A size is too large.
    """
    for key, value in values.items():
        most = MAX_BLOCKS if "layer" in key else MAX_SIZE
        if type(value) is int and value > most and _is_size(key, layout):
            raise ModelError(f"config.json: {key} is {value}. Allowed: at most {most:,}.")


def _is_size(key: str, layout: Layout) -> bool:
    """Test whether a number of a config.json may be a size of weights."""
    if key == "max_position_embeddings":
        return layout.positions is not None  # computed positions have no weights
    return not NOT_SIZES.search(key)


def sites_of(specs: list[ModuleSpec], shape_of: Callable[[str], ModuleShape]) -> Iterator[Site]:
    """Yield the sites of all modules. Entries of a weight that two modules share belong to the first (a tied head).

    Args:
        specs: The modules that a model has, with full names and paths.
        shape_of: Path of a module -> its shape.

    Yields:
        The sites.
    """
    seen: set[object] = set()
    for spec in specs:
        shape = shape_of(spec.module)
        for site in _sites(spec, shape):
            if site.structure != "entry" or spec.fused or shape.tied not in seen:
                yield site
        if spec.kind != "input":
            seen.add(shape.tied)


def _sites(spec: ModuleSpec, module: ModuleShape) -> Iterator[Site]:
    shape = module.weight
    if spec.fused:
        shape = (shape[0] // spec.fused.parts, *shape[1:])
    if spec.kind == "input":
        yield Site(spec.name, "token", shape[1:])
        return
    is_vocab = spec.kind in ("embedding", "head")
    yield Site(spec.name, "entry", shape, samplable=not is_vocab)
    if spec.kind == "embedding":
        return
    samplable = not (is_vocab or spec.bias_cancels)
    yield Site(spec.name, "bias", shape[:1], samplable=samplable, exists=module.has_bias)
    if spec.kind == "linear":
        yield Site(spec.name, "lowrank", shape)
    if spec.adapter_after:
        yield Site(spec.name, "bottleneck", shape[:1])
    if spec.name.endswith((".query", ".key", ".value")):
        yield Site(spec.name, "scale", shape[:1], exists=False)
    if spec.name.endswith(".ffn.down"):  # its input
        yield Site(spec.name, "scale", shape[1:], exists=False)
    if spec.name.endswith(".attention.key"):  # of self-attention
        yield Site(spec.name, "prefix", shape[:1], exists=False)


BERT_BLOCK = (
    ModuleSpec("attention.query", "attention.self.query", "linear"),
    ModuleSpec("attention.key", "attention.self.key", "linear", bias_cancels=True),
    ModuleSpec("attention.value", "attention.self.value", "linear"),
    ModuleSpec("attention.output", "attention.output.dense", "linear", adapter_after=True),
    ModuleSpec("attention.norm", "attention.output.LayerNorm", "norm"),
    ModuleSpec("ffn.up", "intermediate.dense", "linear"),
    ModuleSpec("ffn.down", "output.dense", "linear", adapter_after=True),
    ModuleSpec("ffn.norm", "output.LayerNorm", "norm"),
)

BERT_OUTER = (
    ModuleSpec("encoder.input", "bert.embeddings.word_embeddings", "input"),
    ModuleSpec("encoder.embedding", "bert.embeddings.word_embeddings", "embedding"),
    ModuleSpec("encoder.embedding.position", "bert.embeddings.position_embeddings", "embedding"),
    ModuleSpec("encoder.embedding.type", "bert.embeddings.token_type_embeddings", "embedding"),
    ModuleSpec("encoder.embedding.norm", "bert.embeddings.LayerNorm", "norm"),
    ModuleSpec("head.transform", "cls.predictions.transform.dense", "linear"),
    ModuleSpec("head.norm", "cls.predictions.transform.LayerNorm", "norm"),
    ModuleSpec("head", "cls.predictions.decoder", "head"),
)

BERT = Layout(BERT_OUTER, {"encoder": ("bert.encoder.layer", BERT_BLOCK)}, positions="encoder.embedding.position")

BLOOM_QKV = "self_attention.query_key_value"

BLOOM_BLOCK = (
    ModuleSpec("attention.norm", "input_layernorm", "norm"),
    ModuleSpec("attention.query", BLOOM_QKV, "linear", FusedSlice(0)),
    ModuleSpec("attention.key", BLOOM_QKV, "linear", FusedSlice(1), bias_cancels=True),
    ModuleSpec("attention.value", BLOOM_QKV, "linear", FusedSlice(2)),
    ModuleSpec("attention.output", "self_attention.dense", "linear", adapter_after=True),
    ModuleSpec("ffn.norm", "post_attention_layernorm", "norm"),
    ModuleSpec("ffn.up", "mlp.dense_h_to_4h", "linear"),
    ModuleSpec("ffn.down", "mlp.dense_4h_to_h", "linear", adapter_after=True),
)

BLOOM_OUTER = (
    ModuleSpec("decoder.input", "transformer.word_embeddings", "input"),
    ModuleSpec("decoder.embedding", "transformer.word_embeddings", "embedding"),
    ModuleSpec("decoder.embedding.norm", "transformer.word_embeddings_layernorm", "norm"),
    ModuleSpec("decoder.norm", "transformer.ln_f", "norm"),
)

BLOOM = Layout(BLOOM_OUTER, {"decoder": ("transformer.h", BLOOM_BLOCK)})

GPT_NEOX_QKV = "attention.query_key_value"

GPT_NEOX_BLOCK = (
    ModuleSpec("attention.norm", "input_layernorm", "norm"),
    ModuleSpec("attention.query", GPT_NEOX_QKV, "linear", FusedSlice(0)),
    # Only a part of each head is rotated. The softmax cancels the bias of the rest.
    ModuleSpec("attention.key", GPT_NEOX_QKV, "linear", FusedSlice(1), bias_cancels=True),
    ModuleSpec("attention.value", GPT_NEOX_QKV, "linear", FusedSlice(2)),
    ModuleSpec("attention.output", "attention.dense", "linear", adapter_after=True),
    ModuleSpec("ffn.norm", "post_attention_layernorm", "norm"),
    ModuleSpec("ffn.up", "mlp.dense_h_to_4h", "linear"),
    ModuleSpec("ffn.down", "mlp.dense_4h_to_h", "linear", adapter_after=True),
)

GPT_NEOX_OUTER = (
    ModuleSpec("decoder.input", "gpt_neox.embed_in", "input"),
    ModuleSpec("decoder.embedding", "gpt_neox.embed_in", "embedding"),
    ModuleSpec("decoder.norm", "gpt_neox.final_layer_norm", "norm"),
    ModuleSpec("head", "lm_head", "head"),
)

GPT_NEOX = Layout(GPT_NEOX_OUTER, {"decoder": ("gpt_neox.layers", GPT_NEOX_BLOCK)})

LLAMA_BLOCK = (
    ModuleSpec("attention.norm", "input_layernorm", "norm"),
    ModuleSpec("attention.query", "self_attn.q_proj", "linear"),
    ModuleSpec("attention.key", "self_attn.k_proj", "linear"),
    ModuleSpec("attention.value", "self_attn.v_proj", "linear"),
    ModuleSpec("attention.output", "self_attn.o_proj", "linear", adapter_after=True),
    ModuleSpec("ffn.norm", "post_attention_layernorm", "norm"),
    ModuleSpec("ffn.gate", "mlp.gate_proj", "linear"),
    ModuleSpec("ffn.up", "mlp.up_proj", "linear"),
    ModuleSpec("ffn.down", "mlp.down_proj", "linear", adapter_after=True),
)

LLAMA_OUTER = (
    ModuleSpec("decoder.input", "model.embed_tokens", "input"),
    ModuleSpec("decoder.embedding", "model.embed_tokens", "embedding"),
    ModuleSpec("decoder.norm", "model.norm", "norm"),
    ModuleSpec("head", "lm_head", "head"),
)

LLAMA = Layout(LLAMA_OUTER, {"decoder": ("model.layers", LLAMA_BLOCK)})


def _t5_attention(name: str, number: int, module: str) -> tuple[ModuleSpec, ...]:
    """Return the modules of an attention sublayer; `number` is its index in the library's layer list."""
    path = f"layer.{number}.{module}"
    return (
        ModuleSpec(f"{name}.norm", f"layer.{number}.layer_norm", "norm"),
        ModuleSpec(f"{name}.query", f"{path}.q", "linear"),
        ModuleSpec(f"{name}.key", f"{path}.k", "linear", bias_cancels=True),
        ModuleSpec(f"{name}.value", f"{path}.v", "linear"),
        ModuleSpec(f"{name}.output", f"{path}.o", "linear", adapter_after=True),
    )


def _t5_ffn(number: int) -> tuple[ModuleSpec, ...]:
    """Return the modules of a feed-forward network, gated (v1.1: wi_0, wi_1) or not (v1.0: wi)."""
    path = f"layer.{number}.DenseReluDense"
    return (
        ModuleSpec("ffn.norm", f"layer.{number}.layer_norm", "norm"),
        ModuleSpec("ffn.gate", f"{path}.wi_0", "linear", optional=True),
        ModuleSpec("ffn.up", f"{path}.wi_1", "linear", optional=True),
        ModuleSpec("ffn.up", f"{path}.wi", "linear", optional=True),
        ModuleSpec("ffn.down", f"{path}.wo", "linear", adapter_after=True),
    )


T5_SELF = _t5_attention("attention", 0, "SelfAttention")
T5_CROSS = _t5_attention("cross_attention", 1, "EncDecAttention")

T5_OUTER = (
    ModuleSpec("encoder.input", "shared", "input"),
    ModuleSpec("decoder.input", "shared", "input"),
    ModuleSpec("embedding", "shared", "embedding"),
    ModuleSpec(
        "encoder.embedding.position", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias", "embedding"
    ),
    ModuleSpec(
        "decoder.embedding.position", "decoder.block.0.layer.0.SelfAttention.relative_attention_bias", "embedding"
    ),
    ModuleSpec("encoder.norm", "encoder.final_layer_norm", "norm"),
    ModuleSpec("decoder.norm", "decoder.final_layer_norm", "norm"),
    ModuleSpec("head", "lm_head", "head"),
)

T5 = Layout(
    T5_OUTER,
    {
        "encoder": ("encoder.block", (*T5_SELF, *_t5_ffn(1))),
        "decoder": ("decoder.block", (*T5_SELF, *T5_CROSS, *_t5_ffn(2))),
    },
)

LAYOUTS: dict[str, Layout] = {"bert": BERT, "bloom": BLOOM, "t5": T5, "gpt_neox": GPT_NEOX, "llama": LLAMA}
"""Family -> its layout."""
