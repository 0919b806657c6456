"""Tiny PLMs of every family, with weights large enough that every module matters."""

from __future__ import annotations

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BloomConfig,
    BloomForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from apet.models.families import FAMILIES, SpecialTokens
from apet.models.loading import PLM

WORDS = 50
DECODER = (0, 4)
"""Tokens of the decoder before the answer of a T5: its start and a sentinel."""


def _sizes(vocabulary: int, width: int) -> dict[str, int]:
    return {"vocab_size": vocabulary, "hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2}


def _t5(vocabulary: int, width: int) -> T5ForConditionalGeneration:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=vocabulary, d_model=width, d_kv=3 * width // 8, d_ff=3 * width // 2, num_layers=2, num_heads=2,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False, relative_attention_num_buckets=8,
        )
    )  # fmt: skip


def _bloom(v: int, w: int) -> BloomForCausalLM:
    return BloomForCausalLM(BloomConfig(vocab_size=v, hidden_size=w, n_layer=2, n_head=2))


CONFIGS = {
    "bloom": _bloom,
    "gpt_neox": lambda v, w: GPTNeoXForCausalLM(GPTNeoXConfig(**_sizes(v, w), intermediate_size=3 * w // 2)),
    "llama": lambda v, w: LlamaForCausalLM(
        LlamaConfig(**_sizes(v, w), intermediate_size=3 * w // 2, num_key_value_heads=1)
    ),
    "bert": lambda v, w: BertForMaskedLM(
        BertConfig(**_sizes(v, w), intermediate_size=3 * w // 2, max_position_embeddings=32)
    ),
    "t5": _t5,
}
"""Family -> (vocabulary size, width) -> a model with two layers and heads."""


def tiny_plm(family: str, fused: bool = True, vocabulary: int = WORDS, width: int = 16) -> PLM:
    """Make a frozen PLM with weights of std 0.3, because at the library's 0.02 a dead module would hide in rounding."""
    torch.manual_seed(0)
    model = CONFIGS[family](vocabulary, width)
    FAMILIES[family].untie_head(model)
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.requires_grad_(False)
    if fused:
        FAMILIES[family].install_kernels(model)
    special_tokens = SpecialTokens(decoder=DECODER) if family == "t5" else SpecialTokens()
    return PLM(family, FAMILIES[family], model, None, "tiny", special_tokens)


def library_logits(plm: PLM, ids: torch.Tensor, prefix: torch.Tensor) -> torch.Tensor:
    """Return transformers' logits [1, vocabulary] of the token after a prefix [1, s]."""
    with torch.no_grad():
        if plm.family.name == "t5":
            start = torch.tensor([DECODER])
            return plm.model(input_ids=ids, decoder_input_ids=torch.cat((start, prefix), dim=1)).logits[:, -1]
        if plm.family.name == "bert":
            return plm.model(torch.cat((ids[:, :-2], prefix, ids[:, -2:]), dim=1)).logits[:, -2]
        return plm.model(torch.cat((ids, prefix), dim=1)).logits[:, -1]
