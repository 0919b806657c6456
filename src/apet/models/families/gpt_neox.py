"""GPT-NeoX (Black et al. 2022; Pythia): a decoder with rotary positions, fused query, key and value, parallel FFN."""

from __future__ import annotations

from transformers import GPTNeoXForCausalLM

from apet.models import layouts
from apet.models.families.base import Family
from apet.models.families.causal import CausalDecoder, special_tokens, states

GPT_NEOX = Family(
    name="gpt_neox",
    classes={"gpt_neox": GPTNeoXForCausalLM},
    layout=layouts.GPT_NEOX,
    states=states,
    decoder=CausalDecoder,
    special_tokens=special_tokens,
)
