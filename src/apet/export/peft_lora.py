"""Low-rank units as PEFT's LoRA, and back.

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
from torch import Tensor

from apet.errors import ConfigError, CorruptError, ModelError, truncated_repr
from apet.export.peft_files import CONFIG, PREFIX, WEIGHTS, refuse_keys, specs_by_module, weights_by_module
from apet.export.tuned_model import TunedModel
from apet.models.families import ModuleSpec
from apet.models.loading import PLM
from apet.placement import Site
from apet.tuning import layout
from apet.tuning.tuned_plm import rows_of

PLAIN_LORA = {"bias": "none", "fan_in_fan_out": False, "lora_dropout": 0.0, "use_rslora": False, "use_dora": False}

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


def write_lora(model: TunedModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert low-rank units.

    Args:
        model: A tuned model with low-rank units only.

    Returns:
        The configuration and the tensors of a LORA adapter.
    """
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


def read_lora(config: Mapping[str, Any], folder: Path, plm: PLM) -> dict[Site, Tensor]:
    """Read the low-rank units of a LORA adapter.

    Args:
        config: The content of adapter_config.json.
        folder: The folder of the adapter.
        plm: The PLM that the adapter was trained on.

    Returns:
        The units [n, inputs + outputs] of each site.

    Raises:
        ConfigError: If a module, shape or rank has no site in this PLM.
        ModelError: If the adapter is not plain LoRA.
        CorruptError: If the weights cannot be read.
    """
    _check_lora_config(config, folder / CONFIG)
    units = _units_by_place(config, _read_factors(folder / WEIGHTS), plm, folder / WEIGHTS)
    sites = [site for site in plm.inventory.sites if site.structure == "lowrank" and site.place in units]
    for site in sites:
        if (rank := len(units[site.place])) > site.units:
            raise ConfigError(f"{folder}: {site.place}: expected a rank of at most {site.units}, got {rank}.")
    return {site: units[site.place] for site in sites}


def _units_by_place(config: Mapping[str, Any], factors: LoraFactors, plm: PLM, path: Path) -> dict[str, Tensor]:
    """Units [n, inputs + outputs] of each place that a LoRA adapts."""
    specs = specs_by_module(plm, "linear")
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
    refuse_keys(config, UNSUPPORTED_KEYS, path)
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
    factors = weights_by_module(path, r"lora_(A|B)\.weight", "lora_A and lora_B of linear maps")
    for module, pair in factors.items():
        if any(t.ndim != 2 for t in pair.values()) or len(pair) < 2 or len(pair["A"]) != pair["B"].shape[1]:
            raise CorruptError(f"{path}: {module}: lora_A and lora_B do not match.")
    return {module: (pair["A"], pair["B"]) for module, pair in factors.items()}


def _scale(config: Mapping[str, Any], path: str, rank: int) -> float:
    """α / r of a module, or α / √r (rsLoRA, Kalajdzievski 2023). Patterns match suffixes of paths, as in PEFT."""
    patterns = config.get("alpha_pattern") or {}
    alpha = next((a for key, a in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", path)), config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
