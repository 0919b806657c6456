"""PLMs of every family, built on the spot: small, with weights large enough that every part matters."""

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

from apet.plms.families import FAMILIES, Frame
from apet.plms.load import PLM

WORDS = 50
DECODER = (0, 4)
"""What a T5 of these tests has said before its answer is read: its start, and a sentinel."""

SIZE = {"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}

CONFIGS = {
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=WORDS, hidden_size=16, n_layer=2, n_head=2)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZE, intermediate_size=24)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZE, intermediate_size=24, num_key_value_heads=1)),
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZE, intermediate_size=24, max_position_embeddings=32)),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(
            vocab_size=WORDS, d_model=16, d_kv=6, d_ff=24, num_layers=2, num_heads=2,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False, relative_attention_num_buckets=8,
        )
    ),
}  # fmt: skip


def tiny_plm(family: str, fused: bool = True) -> PLM:
    """A frozen PLM with random weights of std 0.3: at the library's 0.02 a dead part would hide below rounding."""
    torch.manual_seed(0)
    model = CONFIGS[family]()
    FAMILIES[family].untie(model)
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.requires_grad_(False)
    if fused:
        FAMILIES[family].fuse(model)
    frame = Frame(decoder=DECODER) if family == "t5" else Frame()
    return PLM(family, FAMILIES[family], model, None, "tiny", frame)
