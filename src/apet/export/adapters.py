"""PEFT's adapter folders: our low-rank units and virtual tokens as its LoRA and prompt tuning.

LoRA adds (α / r) B A to a linear map (Hu et al. 2022). A unit of ours is a row of A and a column of B with factor 1, so
α = r. In a fused map (query, key and value in one) one part's unit is a unit of the whole, whose B is zero elsewhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from apet.export.model import TunedModel
from apet.export.said import sites_said
from apet.provenance import write_bytes, write_json
from apet.tuning import layout
from apet.tuning.tuned import rows_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
TASKS = {"t5": "SEQ_2_SEQ_LM", "bloom": "CAUSAL_LM", "gpt_neox": "CAUSAL_LM", "llama": "CAUSAL_LM"}
"""Family -> PEFT's kind of task; an encoder with its LM head has none."""

PLAIN = {"bias": "none", "fan_in_fan_out": False, "lora_dropout": 0.0, "use_rslora": False, "use_dora": False}


def obstacles(model: TunedModel) -> list[str]:
    """What of a tuned model has no counterpart in one adapter of PEFT's."""
    plm, units = model.plm, model.plan.units
    elsewhere = [u for u in units if u.site.structure == "token" and u.site.place != plm.family.input]
    others = [u for u in units if u.site.structure not in ("lowrank", "token")]
    found = [sites_said([*others, *elsewhere])] if others or elsewhere else []
    if {u.site.structure for u in units} >= {"lowrank", "token"}:
        found.append("low-rank units and virtual tokens together, which are two adapters there")
    if plm.head == "trained":
        found.append("a trained head")
    return found if units else [*found, "a plan that tunes nothing"]


def write_peft(model: TunedModel, folder: Path) -> None:
    """A folder that `PeftModel.from_pretrained` loads: adapter_config.json and adapter_model.safetensors."""
    tokens = model.plan.structures["token"]
    config, tensors = _prompt(model) if tokens else _lora(model)
    common = {
        "base_model_name_or_path": model.plm.name,
        "inference_mode": True,
        "task_type": TASKS.get(model.plm.family.name) or ("FEATURE_EXTRACTION" if tokens else None),
    }
    write_json(folder / CONFIG, common | config)
    write_bytes(folder / WEIGHTS, save(tensors, {"format": "pt"}))


def _prompt(model: TunedModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    (units,) = model.plan.units
    shape = model.plm.model.config
    config = {
        "peft_type": "PROMPT_TUNING",
        "prompt_tuning_init": "RANDOM",
        "num_virtual_tokens": units.count,
        "token_dim": units.site.cost,
        "num_transformer_submodules": 1,
        "num_attention_heads": shape.num_attention_heads,
        "num_layers": shape.num_hidden_layers,
    }
    return config, {"prompt_embeddings": model.theta.view(units.count, -1).clone()}


def _lora(model: TunedModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    maps: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for path, a, b in _factors(model):
        maps[path].append((a, b))
    tensors = {}
    for path, factors in sorted(maps.items()):
        tensors[f"{PREFIX}{path}.lora_A.weight"] = torch.cat([a for a, _ in factors])
        tensors[f"{PREFIX}{path}.lora_B.weight"] = torch.cat([b for _, b in factors]).T.contiguous()
    ranks = {path: sum(len(a) for a, _ in factors) for path, factors in sorted(maps.items())}
    most = max(ranks.values())
    others = {path: rank for path, rank in ranks.items() if rank != most}
    scale = {"r": most, "lora_alpha": most, "rank_pattern": others, "alpha_pattern": others}
    return {"peft_type": "LORA", "target_modules": sorted(ranks), **scale, **PLAIN}, tensors


def _factors(model: TunedModel) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Of each site: the module's path, A [units, inputs], B [units, all outputs of the module], on the CPU."""
    plm = model.plm
    places = {place.name: place for place in plm.family.places(plm.model)}
    for slot in layout(model.plan):
        place, (outputs, inputs) = places[slot.units.site.place], slot.units.site.shape
        a, b = model.theta[slot.start : slot.stop].view(-1, inputs + outputs).split((inputs, outputs), dim=1)
        rows = rows_of(place, plm)
        if rows is not None:
            whole = plm.model.get_submodule(place.module).get_parameter("weight").shape[0]
            b = b.new_zeros(len(b), whole).index_copy(1, rows.cpu(), b)
        yield place.module, a, b
