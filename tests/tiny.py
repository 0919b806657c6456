"""PLMs of every family, built on the spot: small, with weights large enough that every part matters."""

from __future__ import annotations

import torch
from transformers import BloomConfig, BloomForCausalLM

from apet.plms.families import FAMILIES
from apet.plms.load import PLM

WORDS = 50

CONFIGS = {
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=WORDS, hidden_size=16, n_layer=2, n_head=2)),
}


def tiny_plm(family: str, fused: bool = True) -> PLM:
    """A frozen PLM with random weights of std 0.3: at the library's 0.02 a dead part would hide below rounding."""
    torch.manual_seed(0)
    model = CONFIGS[family]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.requires_grad_(False)
    if fused:
        FAMILIES[family].fuse(model)
    return PLM(family, FAMILIES[family], model, None, "tiny")
