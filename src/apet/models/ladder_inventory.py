"""The sites of ladder models, from their sizes alone: loading the library to build a model takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from apet.config.study_config import PretrainingConfig
from apet.models.ladder import LadderModel
from apet.models.layouts import LAYOUTS, ModuleShape, check_config_sizes, sites_of
from apet.placement.sites import Inventory

Shapes = dict[str, ModuleShape]
"""Path of a module -> its shape."""

T5_BUCKETS = 32
"""Rows of T5's table of relative positions."""


def ladder_inventory(model: LadderModel, recipe: PretrainingConfig) -> Inventory:
    """Make the inventory of a ladder model, equal to that of the library's model.

    Args:
        model: The ladder model.
        recipe: How the model is pretrained.

    Returns:
        The inventory.

    Raises:
        ModelError: The model is larger than any PLM.
    """
    layout = LAYOUTS[model.family]
    check_config_sizes(model.config(recipe), layout)
    outer, blocks = SHAPES[model.family](model, recipe)
    shapes = dict(outer)
    for path, block in blocks.items():
        for i in range(model.layers):
            shapes |= {f"{path}.{i}.{name}": _in_block(shape, i) for name, shape in block.items()}
    specs = layout.module_specs(dict.fromkeys(layout.blocks, model.layers))
    specs = [spec for spec in specs if spec.module in shapes]
    vocab = {spec.module for spec in specs if spec.kind in ("embedding", "head")}
    total = _num_params(shapes)
    rest = total - _num_params({path: shapes[path] for path in vocab})
    return Inventory.from_sites(model.family, model.layers, total, rest, sites_of(specs, shapes.__getitem__))


def _num_params(shapes: Shapes) -> int:
    """Count parameters, tied weights once."""
    weights = {shape.tied: prod(shape.weight) for shape in shapes.values()}
    return sum(weights.values()) + sum(shape.weight[0] for shape in shapes.values() if shape.has_bias)


def _in_block(shape: ModuleShape, index: int) -> ModuleShape:
    return ModuleShape(shape.weight, shape.has_bias, (index, shape.tied))


def _shape(*weight: int, bias: bool = True) -> ModuleShape:
    return ModuleShape(weight, bias, object())


def _table(rows: int, width: int) -> ModuleShape:
    return _shape(rows, width, bias=False)


def _bloom(model: LadderModel, recipe: PretrainingConfig) -> tuple[Shapes, dict[str, Shapes]]:
    d = model.width
    block = {
        "input_layernorm": _shape(d),
        "self_attention.query_key_value": _shape(3 * d, d),
        "self_attention.dense": _shape(d, d),
        "post_attention_layernorm": _shape(d),
        "mlp.dense_h_to_4h": _shape(4 * d, d),
        "mlp.dense_4h_to_h": _shape(d, 4 * d),
    }
    outer = {
        "transformer.word_embeddings": _table(recipe.vocab_size, d),
        "transformer.word_embeddings_layernorm": _shape(d),
        "transformer.ln_f": _shape(d),
    }
    return outer, {"transformer.h": block}


def _bert(model: LadderModel, recipe: PretrainingConfig) -> tuple[Shapes, dict[str, Shapes]]:
    d, words = model.width, _table(recipe.vocab_size, model.width)
    positions = model.config(recipe)["max_position_embeddings"]
    block = {
        **{f"attention.self.{name}": _shape(d, d) for name in ("query", "key", "value")},
        "attention.output.dense": _shape(d, d),
        "attention.output.LayerNorm": _shape(d),
        "intermediate.dense": _shape(4 * d, d),
        "output.dense": _shape(d, 4 * d),
        "output.LayerNorm": _shape(d),
    }
    outer = {
        "bert.embeddings.word_embeddings": words,
        "bert.embeddings.position_embeddings": _table(positions, d),
        "bert.embeddings.token_type_embeddings": _table(2, d),
        "bert.embeddings.LayerNorm": _shape(d),
        "cls.predictions.transform.dense": _shape(d, d),
        "cls.predictions.transform.LayerNorm": _shape(d),
        "cls.predictions.decoder": ModuleShape(words.weight, True, words.tied),
    }
    return outer, {"bert.encoder.layer": block}


def _t5(model: LadderModel, recipe: PretrainingConfig) -> tuple[Shapes, dict[str, Shapes]]:
    d, wide = model.width, model.config(recipe)["d_ff"]

    def attention(number: int, module: str) -> Shapes:
        maps = {f"layer.{number}.{module}.{name}": _table(d, d) for name in "qkvo"}
        return maps | {f"layer.{number}.layer_norm": _shape(d, bias=False)}

    def ffn(number: int) -> Shapes:
        path = f"layer.{number}.DenseReluDense"
        maps = {f"{path}.{name}": _table(wide, d) for name in ("wi_0", "wi_1")}
        return {**maps, f"{path}.wo": _table(d, wide), f"layer.{number}.layer_norm": _shape(d, bias=False)}

    relative = "block.0.layer.0.SelfAttention.relative_attention_bias"
    outer = {"shared": _table(recipe.vocab_size, d), "lm_head": _table(recipe.vocab_size, d)}
    for stack in ("encoder", "decoder"):
        outer |= {
            f"{stack}.{relative}": _table(T5_BUCKETS, model.heads),
            f"{stack}.final_layer_norm": _shape(d, bias=False),
        }
    encoder = attention(0, "SelfAttention") | ffn(1)
    decoder = attention(0, "SelfAttention") | attention(1, "EncDecAttention") | ffn(2)
    return outer, {"encoder.block": encoder, "decoder.block": decoder}


SHAPES: dict[str, Callable[[LadderModel, PretrainingConfig], tuple[Shapes, dict[str, Shapes]]]] = {
    "bloom": _bloom,
    "bert": _bert,
    "t5": _t5,
}
"""Family -> the shapes of modules outside the blocks, and of those in one block of each list of blocks."""
