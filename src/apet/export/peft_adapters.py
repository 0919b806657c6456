"""PEFT adapters: export of tuned models, and import of what PEFT has trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from apet.core.atomic import write_bytes, write_json
from apet.data.prepared_files import read_record
from apet.errors import ModelError, truncated_repr
from apet.export.peft_files import CONFIG, WEIGHTS
from apet.export.peft_lora import read_lora, write_lora
from apet.export.peft_vectors import read_factors, read_norms, write_factors, write_norms
from apet.export.peft_virtual import prefix_problems, read_prefix, read_prompt, write_prefix, write_prompt
from apet.export.tuned_model import TunedModel, describe_sites
from apet.models.loading import PLM
from apet.placement import Plan, Site, Units

TASKS = {"t5": "SEQ_2_SEQ_LM", "bloom": "CAUSAL_LM", "gpt_neox": "CAUSAL_LM", "llama": "CAUSAL_LM"}
"""PEFT's task type of each family; it has none for an encoder with an LM head."""


@dataclass(frozen=True)
class Method:
    """A method of PEFT."""

    units: str
    """Units that it consists of, for messages."""
    holds: Callable[[PLM, Site], bool]
    """Whether it can represent units at a site."""
    write: Callable[[TunedModel], tuple[dict[str, Any], dict[str, Tensor]]]
    """Returns configuration and tensors of a tuned model."""
    read: Callable[[Mapping[str, Any], Path, PLM], dict[Site, Tensor]]
    """(configuration, folder, PLM) -> units [n, cost] of each site."""


METHODS = {
    "LORA": Method("low-rank units", lambda plm, s: s.structure == "lowrank", write_lora, read_lora),
    "PROMPT_TUNING": Method(
        "virtual tokens",
        lambda plm, s: s.structure == "token" and s.place == plm.family.input,
        write_prompt,
        read_prompt,
    ),
    "PREFIX_TUNING": Method("a prefix", lambda plm, s: s.structure == "prefix", write_prefix, read_prefix),
    "IA3": Method("factors", lambda plm, s: s.structure == "scale", write_factors, read_factors),
    "LN_TUNING": Method(
        "scalars of norms",
        lambda plm, s: s.structure in ("entry", "bias") and s.place.endswith(".norm") and s.exists,
        write_norms,
        read_norms,
    ),
}
"""`peft_type` -> the method."""


def methods_of(model: TunedModel) -> list[str]:
    """List the methods that represent units of a tuned model."""
    sites = [units.site for units in model.plan.units]
    return [name for name, method in METHODS.items() if any(method.holds(model.plm, site) for site in sites)]


def unsupported(model: TunedModel) -> list[str]:
    """List the parts of a tuned model that one PEFT adapter cannot represent."""
    plm, units, methods = model.plm, model.plan.units, methods_of(model)
    others = [u for u in units if not any(METHODS[name].holds(plm, u.site) for name in methods)]
    parts = [describe_sites(others)] if others else []
    if len(methods) > 1:
        together = " and ".join(METHODS[name].units for name in methods)
        parts.append(f"{together} together, which are {len(methods)} adapters in PEFT")
    elif methods == ["PREFIX_TUNING"] and not others:
        parts += prefix_problems(model)
    if plm.head == "classification":
        parts.append("a classification head")
    return parts if units else [*parts, "a plan that tunes nothing"]


def write_peft(model: TunedModel, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors, which `PeftModel.from_pretrained` loads."""
    (method,) = methods_of(model)
    config, tensors = METHODS[method].write(model)
    is_virtual = "num_virtual_tokens" in config
    common = {
        "base_model_name_or_path": model.plm.name,
        "inference_mode": True,
        "task_type": TASKS.get(model.plm.family.name) or ("FEATURE_EXTRACTION" if is_virtual else None),
    }
    write_json(folder / CONFIG, common | config)
    write_bytes(folder / WEIGHTS, save(tensors, {"format": "pt"}))


def plan_from_peft(folder: str | Path, plm: PLM) -> tuple[Plan, Tensor]:
    """Import an adapter that PEFT has saved: LoRA, prompt tuning, prefix tuning, (IA)³ or LayerNorm tuning.

    A LoRA of a fused map becomes units of those parts on which its B acts (of all parts if B is still zero), so θ may
    be longer than the adapter.

    Args:
        folder: A folder with adapter_config.json and adapter_model.safetensors.
        plm: The PLM that the adapter was trained on. PEFT records nothing by which this could be verified.

    Returns:
        A plan and its θ [budget], float32, which give the same logits as the adapter.

    Raises:
        ModelError: If the adapter is of another kind.
        ConfigError: If a module, shape, rank or virtual token has no site in this PLM.
        CorruptError: If a file cannot be read.
    """
    folder = Path(folder)
    config = read_record(folder / CONFIG)
    if (kind := config.get("peft_type")) not in tuple(METHODS):
        allowed = ", ".join(map(repr, METHODS))
        raise ModelError(f"{folder / CONFIG}: peft_type: got {truncated_repr(kind)}. Allowed: {allowed}.")
    units = METHODS[kind].read(config, folder, plm)
    sites = [site for site in plm.inventory.sites if site in units]
    planned = tuple(Units(site, len(units[site])) for site in sites)
    plan = Plan("peft", sum(u.size for u in planned), 0, planned)
    return plan, torch.cat([units[site].flatten() for site in sites])
