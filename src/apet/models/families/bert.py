"""BERT (Devlin et al. 2019): an encoder that sees both sides, read at a [MASK] with its own masked-LM head."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import Tensor
from transformers import BertForMaskedLM, PreTrainedTokenizerBase
from transformers.models.bert.modeling_bert import BertAttention

from apet.models.families.base import Family, Inputs, ModuleSpec, SpecialTokens, at

BLOCK = (
    ModuleSpec("attention.query", "attention.self.query", "linear"),
    ModuleSpec("attention.key", "attention.self.key", "linear", bias_cancels=True),
    ModuleSpec("attention.value", "attention.self.value", "linear"),
    ModuleSpec("attention.output", "attention.output.dense", "linear", adapter_after=True),
    ModuleSpec("attention.norm", "attention.output.LayerNorm", "norm"),
    ModuleSpec("ffn.up", "intermediate.dense", "linear"),
    ModuleSpec("ffn.down", "output.dense", "linear", adapter_after=True),
    ModuleSpec("ffn.norm", "output.LayerNorm", "norm"),
)

OUTER = (
    ModuleSpec("encoder.input", "bert.embeddings.word_embeddings", "input"),
    ModuleSpec("encoder.embedding", "bert.embeddings.word_embeddings", "embedding"),
    ModuleSpec("encoder.embedding.position", "bert.embeddings.position_embeddings", "embedding"),
    ModuleSpec("encoder.embedding.type", "bert.embeddings.token_type_embeddings", "embedding"),
    ModuleSpec("encoder.embedding.norm", "bert.embeddings.LayerNorm", "norm"),
    ModuleSpec("head.transform", "cls.predictions.transform.dense", "linear"),
    ModuleSpec("head.norm", "cls.predictions.transform.LayerNorm", "norm"),
    ModuleSpec("head", "cls.predictions.decoder", "head"),
)


def frame(tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    """[CLS] prompt [MASK] [SEP]: the answer is read one token before the end."""
    return SpecialTokens((tokenizer.cls_token_id,), (tokenizer.mask_token_id, tokenizer.sep_token_id))


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
    mean_pool=True,
    answer_offset=2,
    special_tokens=frame,
    last_attention=lambda config: f"bert.encoder.layer.{config.num_hidden_layers - 1}.attention",
    positions="encoder.embedding.position",
    install_kernels=fuse,
)
