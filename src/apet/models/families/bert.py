"""BERT (Devlin et al. 2019): a bidirectional encoder, read at a [MASK] with its masked-LM head."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import Tensor
from transformers import BertForMaskedLM, PreTrainedTokenizerBase
from transformers.models.bert.modeling_bert import BertAttention

from apet.models import layouts
from apet.models.families.base import Family, Inputs, SpecialTokens, at


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    """Return the tokens of [CLS] prompt [MASK] [SEP]. The answer is read one token before the end."""
    return SpecialTokens((tokenizer.cls_token_id,), (tokenizer.mask_token_id, tokenizer.sep_token_id))


def states(model: BertForMaskedLM, inputs: Inputs) -> Tensor:
    """Compute the states that are read."""
    embeddings = inputs.embed(model.bert.embeddings.word_embeddings, "encoder.input")
    output = model.bert(
        inputs_embeds=embeddings,
        attention_mask=inputs.mask("encoder.input"),
        position_ids=inputs.position_ids(embeddings),
    )
    return inputs.read(output.last_hidden_state, "encoder.input")


def transform(model: BertForMaskedLM, states: Tensor) -> Tensor:
    """Compute the input of the masked-LM head."""
    return model.cls.predictions.transform(states)


def install_kernels(model: BertForMaskedLM) -> None:
    """Install an attention that can skip positions that are not read."""
    blocks: Iterable[Any] = model.bert.encoder.layer
    for block in blocks:
        block.attention.forward = partial(attend, block.attention)


def attend(
    attention: BertAttention,
    hidden: Tensor,
    attention_mask: Tensor | None = None,
    query_positions: Tensor | None = None,
    **kwargs: Any,
) -> tuple:
    """Compute the library's attention sublayer, only at `query_positions` [rows, k] if given."""
    output, *weights = attention.self(hidden, attention_mask=attention_mask, **kwargs)
    if query_positions is not None:
        output, hidden = at(output, query_positions), at(hidden, query_positions)
    return attention.output(output, hidden), *weights


BERT = Family(
    name="bert",
    classes={"bert": BertForMaskedLM},
    layout=layouts.BERT,
    states=states,
    head="cls.predictions.decoder",
    transform=transform,
    mean_pool=True,
    answer_offset=2,
    special_tokens=special_tokens,
    last_attention=lambda config: f"bert.encoder.layer.{config.num_hidden_layers - 1}.attention",
    install_kernels=install_kernels,
)
