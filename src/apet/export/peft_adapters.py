"""PEFT adapters: low-rank units and virtual tokens to and from LoRA and prompt tuning.

LoRA adds (α / r) B A to a linear map (Hu et al. 2022). A low-rank unit of apet is a row of A and a column of B with
factor 1, so α = r. In a fused map (query, key and value in one weight), a unit of one part is a unit of the complete
map whose B is zero outside the rows of that part.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from apet.core.atomic import write_bytes, write_json
from apet.data.prepared_files import read_record
from apet.errors import ConfigError, CorruptError, ModelError, first_line, truncated_repr
from apet.export.tuned_model import TunedModel, describe_sites
from apet.models.families import ModuleSpec
from apet.models.loading import PLM
from apet.placement import Plan, Site, Units
from apet.tuning import layout
from apet.tuning.tuned_plm import rows_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
TASKS = {"t5": "SEQ_2_SEQ_LM", "bloom": "CAUSAL_LM", "gpt_neox": "CAUSAL_LM", "llama": "CAUSAL_LM"}
"""PEFT's task type of each family; it has none for an encoder with an LM head."""

PLAIN_LORA = {"bias": "none", "fan_in_fan_out": False, "lora_dropout": 0.0, "use_rslora": False, "use_dora": False}


def unsupported(model: TunedModel) -> list[str]:
    """List the parts of a tuned model that one PEFT adapter cannot represent."""
    plm, units = model.plm, model.plan.units
    inner_tokens = [u for u in units if u.site.structure == "token" and u.site.place != plm.family.input]
    others = [u for u in units if u.site.structure not in ("lowrank", "token")]
    parts = [describe_sites([*others, *inner_tokens])] if others or inner_tokens else []
    if {u.site.structure for u in units} >= {"lowrank", "token"}:
        parts.append("low-rank units and virtual tokens together, which are two adapters in PEFT")
    if plm.head == "classification":
        parts.append("a classification head")
    return parts if units else [*parts, "a plan that tunes nothing"]


def write_peft(model: TunedModel, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors, which `PeftModel.from_pretrained` loads."""
    tokens = model.plan.structures["token"]
    config, tensors = _prompt_adapter(model) if tokens else _lora_adapter(model)
    common = {
        "base_model_name_or_path": model.plm.name,
        "inference_mode": True,
        "task_type": TASKS.get(model.plm.family.name) or ("FEATURE_EXTRACTION" if tokens else None),
    }
    write_json(folder / CONFIG, common | config)
    write_bytes(folder / WEIGHTS, save(tensors, {"format": "pt"}))


def _prompt_adapter(model: TunedModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    (units,) = model.plan.units
    plm_config = model.plm.model.config
    config = {
        "peft_type": "PROMPT_TUNING",
        "prompt_tuning_init": "RANDOM",
        "num_virtual_tokens": units.count,
        "token_dim": units.site.cost,
        "num_transformer_submodules": 1,
        "num_attention_heads": plm_config.num_attention_heads,
        "num_layers": plm_config.num_hidden_layers,
    }
    return config, {"prompt_embeddings": model.theta.view(units.count, -1).clone()}


def _lora_adapter(model: TunedModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    factors_by_path: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for path, a, b in _factors(model):
        factors_by_path[path].append((a, b))
    tensors = {}
    for path, factors in sorted(factors_by_path.items()):
        tensors[f"{PREFIX}{path}.lora_A.weight"] = torch.cat([a for a, _ in factors])
        tensors[f"{PREFIX}{path}.lora_B.weight"] = torch.cat([b for _, b in factors]).T.contiguous()
    ranks = {path: sum(len(a) for a, _ in factors) for path, factors in sorted(factors_by_path.items())}
    rank = max(ranks.values())
    others = {path: other for path, other in ranks.items() if other != rank}
    scale = {"r": rank, "lora_alpha": rank, "rank_pattern": others, "alpha_pattern": others}
    return {"peft_type": "LORA", "target_modules": sorted(ranks), **scale, **PLAIN_LORA}, tensors


def _factors(model: TunedModel) -> Iterator[tuple[str, Tensor, Tensor]]:
    """For each site: module path, A [units, inputs] and B [units, all outputs of the module], on the CPU."""
    plm = model.plm
    modules = {spec.name: spec for spec in plm.family.module_specs(plm.model)}
    for part in layout(model.plan):
        spec, (outputs, inputs) = modules[part.units.site.place], part.units.site.shape
        a, b = model.theta[part.start : part.stop].view(-1, inputs + outputs).split((inputs, outputs), dim=1)
        rows = rows_of(spec, plm)
        if rows is not None:
            all_outputs = plm.model.get_submodule(spec.module).get_parameter("weight").shape[0]
            b = b.new_zeros(len(b), all_outputs).index_copy(1, rows.cpu(), b)
        yield spec.module, a, b


LoraFactors = Mapping[str, tuple[Tensor, Tensor]]
"""Module path -> A [rank, inputs], B [outputs, rank], float32."""

UNSUPPORTED_KEYS = (
    "use_dora", "lora_bias", "modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters",
    "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "velora_config", "monteclora_config",
    "kasa_config",
)  # fmt: skip
"""PEFT configuration keys that turn LoRA into another method if they are set."""

PATTERN = re.compile(r"(?!(?:.*\*){4})(?:[\w.|^-]|\.\*|\\\.|\\d\+?)+", re.ASCII)
"""Allowed keys of alpha_pattern: suffixes of paths, with \\d+ for block numbers and at most three .*. The limit is for
security: matching other regular expressions could take hours.
"""

PLAIN_INITIALIZATIONS = (True, False, "gaussian", "orthogonal", "eva")
"""LoRA initializations that leave the weights of the PLM unchanged."""


def plan_from_peft(folder: str | Path, plm: PLM) -> tuple[Plan, Tensor]:
    """Import a LoRA or prompt tuning adapter that PEFT has saved.

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
    config, weights = read_record(folder / CONFIG), folder / WEIGHTS
    if (kind := config.get("peft_type")) not in ("LORA", "PROMPT_TUNING"):
        raise ModelError(f"{folder / CONFIG}: peft_type: got {truncated_repr(kind)}. Allowed: 'LORA', 'PROMPT_TUNING'.")
    units = _read_lora(config, folder, plm) if kind == "LORA" else read_prompt(config, weights, plm)
    sites = [site for site in plm.inventory.sites if site in units]
    planned = tuple(Units(site, len(units[site])) for site in sites)
    plan = Plan("peft", sum(u.size for u in planned), 0, planned)
    return plan, torch.cat([units[site].flatten() for site in sites])


def _read_lora(config: Mapping[str, Any], folder: Path, plm: PLM) -> dict[Site, Tensor]:
    """Units [n, inputs + outputs] of each site."""
    _check_lora_config(config, folder / CONFIG)
    units = _units_by_place(config, _read_factors(folder / WEIGHTS), plm, folder / WEIGHTS)
    sites = [site for site in plm.inventory.sites if site.structure == "lowrank" and site.place in units]
    for site in sites:
        if (rank := len(units[site.place])) > site.units:
            raise ConfigError(f"{folder}: {site.place}: expected a rank of at most {site.units}, got {rank}.")
    return {site: units[site.place] for site in sites}


def _units_by_place(config: Mapping[str, Any], factors: LoraFactors, plm: PLM, path: Path) -> dict[str, Tensor]:
    """Units [n, inputs + outputs] of each place that a LoRA adapts."""
    specs: dict[str, list[ModuleSpec]] = defaultdict(list)
    for spec in plm.family.module_specs(plm.model):
        if spec.kind == "linear":
            specs[spec.module].append(spec)
    if unknown := [module for module in factors if module not in specs]:
        raise ConfigError(
            f"{path}: module {unknown[0]!r}: not a linear map of {plm.name} ({plm.family.name}). "
            f"Allowed: modules such as {next(iter(specs))!r}."
        )
    units: dict[str, Tensor] = {}
    for module, (a, b) in factors.items():
        shape, expected = (len(b), a.shape[1]), tuple(plm.model.get_submodule(module).get_parameter("weight").shape)
        if shape != expected:
            raise ConfigError(f"{path}: module {module!r}: expected shape {expected} as in {plm.name}, got {shape}.")
        units |= _split_fused(specs[module], a.cpu(), _scale(config, module, len(a)) * b, plm)
    return units


def _split_fused(specs: list[ModuleSpec], a: Tensor, b: Tensor, plm: PLM) -> dict[str, Tensor]:
    """Units [n, inputs + outputs] of each part of a map, from A [rank, inputs] and B [all outputs, rank]."""
    units, untrained = {}, ~b.any(dim=0)
    for spec in specs:
        rows = rows_of(spec, plm)
        part = b if rows is None else b[rows.cpu()]
        acts = torch.ones_like(untrained) if rows is None else part.any(dim=0) | untrained
        if acts.any():
            units[spec.name] = torch.cat((a[acts], part.T[acts]), dim=1)
    return units


def _check_lora_config(config: Mapping[str, Any], path: Path) -> None:
    """Raise ModelError for an adapter that is not plain LoRA."""
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise ModelError(f"{path}: alpha_pattern: expected a mapping, got {truncated_repr(patterns)}.")
    for key, alpha in {"lora_alpha": config.get("lora_alpha"), **patterns}.items():
        if type(alpha) not in (int, float) or not math.isfinite(alpha):
            raise ModelError(f"{path}: {key}: expected a number, got {truncated_repr(alpha)}.")
    for key in patterns:
        _check_pattern(key, path)
    for key in UNSUPPORTED_KEYS:
        if config.get(key):
            raise ModelError(f"{path}: {key}: expected no value, got {truncated_repr(config[key])}.")
    if config.get("bias", "none") != "none":
        raise ModelError(f"{path}: bias: expected 'none', got {truncated_repr(config['bias'])}.")
    if config.get("init_lora_weights", True) not in PLAIN_INITIALIZATIONS:
        initialization = truncated_repr(config["init_lora_weights"])
        raise ModelError(f"{path}: init_lora_weights: {initialization} changes the weights of the PLM.")


def _check_pattern(key: str, path: Path) -> None:
    """Raise ModelError for a key of alpha_pattern that is invalid or may take long to match."""
    try:
        if PATTERN.fullmatch(key) and len(key) <= 1000 and re.compile(key):
            return
    except re.error:
        pass
    raise ModelError(
        f"{path}: alpha_pattern: invalid key {truncated_repr(key)}. "
        "Allowed: suffixes of paths with \\d+, |, and at most three .*."
    )


def _read_factors(path: Path) -> LoraFactors:
    """Read the factors of each module."""
    factors: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in _load_safetensors(path).items():
        match = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_(A|B)\.weight", name)
        if match is None:
            raise ConfigError(f"{path}: unexpected tensor {name!r}. Allowed: lora_A and lora_B of linear maps.")
        factors[match[1]][match[2]] = tensor.float()
    for module, pair in factors.items():
        if any(t.ndim != 2 for t in pair.values()) or len(pair) < 2 or len(pair["A"]) != pair["B"].shape[1]:
            raise CorruptError(f"{path}: {module}: lora_A and lora_B do not match.")
    if not factors:
        raise CorruptError(f"{path}: missing lora_A and lora_B.")
    return {module: (pair["A"], pair["B"]) for module, pair in factors.items()}


def _scale(config: Mapping[str, Any], path: str, rank: int) -> float:
    """α / r of a module, or α / √r (rsLoRA, Kalajdzievski 2023). Patterns match suffixes of paths, as in PEFT."""
    patterns = config.get("alpha_pattern") or {}
    alpha = next((a for key, a in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", path)), config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


PROMPT_TENSOR = "prompt_embeddings"


def read_prompt(config: Mapping[str, Any], path: Path, plm: PLM) -> dict[Site, Tensor]:
    """Read the virtual tokens of a PROMPT_TUNING adapter (Lester et al. 2021).

    For T5, PEFT saves as many tokens again for the decoder (two submodules) but never uses them. They are ignored.

    Args:
        config: The content of adapter_config.json.
        path: The file adapter_model.safetensors.
        plm: The PLM that the adapter was trained on.

    Returns:
        The virtual tokens [n, d], float32, of their site.

    Raises:
        ConfigError: If the tokens have no site in this PLM.
        ModelError: If the configuration is invalid.
        CorruptError: If the weights cannot be read or contradict the configuration.
    """
    count, submodules = config.get("num_virtual_tokens"), config.get("num_transformer_submodules") or 1
    config_path = path.parent / CONFIG
    if type(count) is not int or count < 1:
        raise ModelError(f"{config_path}: num_virtual_tokens: expected at least 1, got {truncated_repr(count)}.")
    if submodules not in (1, 2):
        submodules = truncated_repr(submodules)
        raise ModelError(f"{config_path}: num_transformer_submodules: expected 1 or 2, got {submodules}.")
    tensors = _load_safetensors(path)
    if set(tensors) != {PROMPT_TENSOR} or tensors[PROMPT_TENSOR].dim() != 2:
        names = ", ".join(sorted(tensors))[:200]
        raise CorruptError(f"{path}: expected one matrix {PROMPT_TENSOR}, got {names}.")
    tokens = tensors[PROMPT_TENSOR].float()
    if len(tokens) != count * submodules:
        raise CorruptError(f"{path}: expected {submodules} × {count} virtual tokens, got {len(tokens)}.")
    (site,) = (s for s in plm.inventory.sites if s.structure == "token" and s.place == plm.family.input)
    if tokens.shape[1] != site.cost or count > site.units:
        raise ConfigError(
            f"{path}: expected at most {site.units} virtual tokens of width {site.cost} for {plm.name}, "
            f"got {count} of width {tokens.shape[1]}."
        )
    return {site: tokens[:count]}


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        found = path.with_suffix(".bin")
        only = f", only {found.name}, which is a pickle and is not read" if found.is_file() else ""
        raise CorruptError(
            f"{path}: no such file{only}. Save the adapter with `model.save_pretrained(folder)` of PEFT."
        )
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CorruptError(f"{path}: cannot be read as safetensors ({first_line(error)}).") from None
