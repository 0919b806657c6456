"""BERT (Devlin et al. 2019): an encoder that sees both sides, read at a [MASK] with its own masked-LM head."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import Tensor
from transformers import BertForMaskedLM, PreTrainedTokenizerBase
from transformers.models.bert.modeling_bert import BertAttention

from apet.models.families.base import Family, Frame, Inputs, Place, at

BLOCK = (
    Place("attention.query", "attention.self.query", "linear"),
    Place("attention.key", "attention.self.key", "linear", inert_bias=True),
    Place("attention.value", "attention.self.value", "linear"),
    Place("attention.output", "attention.output.dense", "linear", ends_block=True),
    Place("attention.norm", "attention.output.LayerNorm", "norm"),
    Place("ffn.up", "intermediate.dense", "linear"),
    Place("ffn.down", "output.dense", "linear", ends_block=True),
    Place("ffn.norm", "output.LayerNorm", "norm"),
)

OUTER = (
    Place("encoder.input", "bert.embeddings.word_embeddings", "input"),
    Place("encoder.embedding", "bert.embeddings.word_embeddings", "embedding"),
    Place("encoder.embedding.position", "bert.embeddings.position_embeddings", "embedding"),
    Place("encoder.embedding.type", "bert.embeddings.token_type_embeddings", "embedding"),
    Place("encoder.embedding.norm", "bert.embeddings.LayerNorm", "norm"),
    Place("head.transform", "cls.predictions.transform.dense", "linear"),
    Place("head.norm", "cls.predictions.transform.LayerNorm", "norm"),
    Place("head", "cls.predictions.decoder", "head"),
)


def frame(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """[CLS] prompt [MASK] [SEP]: the answer is read one token before the end."""
    return Frame((tokenizer.cls_token_id,), (tokenizer.mask_token_id, tokenizer.sep_token_id))


def states(model: BertForMaskedLM, inputs: Inputs) -> Tensor:
    embeddings = inputs.embed(model.bert.embeddings.word_embeddings, "encoder.input")
    output = model.bert(inputs_embeds=embeddings, attention_mask=inputs.mask("encoder.input")).last_hidden_state
    return inputs.read(output, "encoder.input")


def transform(model: BertForMaskedLM, states: Tensor) -> Tensor:
    return model.cls.predictions.transform(states)


def fuse(model: BertForMaskedLM) -> None:
    """An attention that can leave out the positions that are not read."""
    blocks: Iterable[Any] = model.bert.encoder.layer
    for block in blocks:
        block.attention.forward = partial(attend, block.attention)


def attend(attention: BertAttention, hidden: Tensor, *args: Any, read: Tensor | None = None, **kwargs: Any) -> tuple:
    """The library's attention sublayer. read [rows, k]: only the states of these positions come out."""
    found, *chances = attention.self(hidden, *args, **kwargs)
    if read is not None:
        found, hidden = at(found, read), at(hidden, read)
    return attention.output(found, hidden), *chances


BERT = Family(
    name="bert",
    classes={"bert": BertForMaskedLM},
    outer=OUTER,
    blocks={"encoder": ("bert.encoder.layer", BLOCK)},
    states=states,
    head="cls.predictions.decoder",
    transform=transform,
    pools=True,
    slot=2,
    frame=frame,
    narrow=lambda config: f"bert.encoder.layer.{config.num_hidden_layers - 1}.attention",
    positions="encoder.embedding.position",
    fuse=fuse,
)
