"""PEFT's adapter folders: our low-rank units and virtual tokens as its LoRA and prompt tuning.

LoRA adds (α / r) B A to a linear map (Hu et al. 2022). A unit of ours is a row of A and a column of B with factor 1, so
α = r. In a fused map (query, key and value in one) one part's unit is a unit of the whole, whose B is zero elsewhere.
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

from apet.core.hashing import write_bytes, write_json
from apet.data.prepared_files import read_record
from apet.errors import ConfigError, CorruptError, ModelError, truncated_repr
from apet.export.tuned_model import TunedModel, sites_said
from apet.models.families import ModuleSpec
from apet.models.loading import PLM
from apet.placement import Plan, Site, Units
from apet.tuning import layout
from apet.tuning.tuned_plm import rows_of

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
    if plm.head == "classification":
        found.append("a trained head")
    return found if units else [*found, "a plan that tunes nothing"]


def write_peft(model: TunedModel, folder: Path) -> None:
    """A folder that `PeftModel.from_pretrained` loads: adapter_config.json and adapter_model.safetensors."""
    tokens = model.plan.structures["token"]
    config, tensors = _prompt_of(model) if tokens else _lora_of(model)
    common = {
        "base_model_name_or_path": model.plm.name,
        "inference_mode": True,
        "task_type": TASKS.get(model.plm.family.name) or ("FEATURE_EXTRACTION" if tokens else None),
    }
    write_json(folder / CONFIG, common | config)
    write_bytes(folder / WEIGHTS, save(tensors, {"format": "pt"}))


def _prompt_of(model: TunedModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
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


def _lora_of(model: TunedModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
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
    places = {place.name: place for place in plm.family.module_specs(plm.model)}
    for slot in layout(model.plan):
        place, (outputs, inputs) = places[slot.units.site.place], slot.units.site.shape
        a, b = model.theta[slot.start : slot.stop].view(-1, inputs + outputs).split((inputs, outputs), dim=1)
        rows = rows_of(place, plm)
        if rows is not None:
            whole = plm.model.get_submodule(place.module).get_parameter("weight").shape[0]
            b = b.new_zeros(len(b), whole).index_copy(1, rows.cpu(), b)
        yield place.module, a, b


Maps = Mapping[str, tuple[Tensor, Tensor]]
"""Module's path -> A [rank, inputs], B [outputs, rank], float32."""

UNKNOWN = (
    "use_dora", "lora_bias", "modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters",
    "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "velora_config", "monteclora_config",
    "kasa_config",
)  # fmt: skip
"""Keys of PEFT's that make of LoRA something else, where they are set."""

PATTERN = re.compile(r"(?!(?:.*\*){4})(?:[\w.|^-]|\.\*|\\\.|\\d\+?)+", re.ASCII)
"""Keys of alpha_pattern: ends of paths, with numbers of blocks as \\d+ and three times .* at most. Others could run for
hours, if whoever wrote the file wants them to.
"""

KEPT = (True, False, "gaussian", "orthogonal", "eva")
"""Ways to initialise a LoRA that leave the PLM's own weights as they are."""


def plan_from_peft(folder: str | Path, plm: PLM) -> tuple[Plan, Tensor]:
    """A LoRA, or a prompt, that PEFT has tuned and saved as a plan and its θ [budget], with which this PLM gives the
    same logits.

    A LoRA of a fused map becomes units of those of its parts on which its B acts (of all, where B is zero yet), so θ
    may be longer than the adapter. Raises ModelError for another kind of adapter, ParamsError for a module, shape,
    rank or virtual token that has no site in this PLM, CorruptError for a file that cannot be read.
    """
    folder = Path(folder)
    config, weights = read_record(folder / CONFIG), folder / WEIGHTS
    if (kind := config.get("peft_type")) not in ("LORA", "PROMPT_TUNING"):
        raise ModelError(f"{folder / CONFIG}: peft_type is {truncated_repr(kind)}. Allowed: 'LORA', 'PROMPT_TUNING'.")
    found = _lora(config, folder, plm) if kind == "LORA" else prompt_tokens(config, weights, plm)
    sites = [site for site in plm.inventory.sites if site in found]
    units = tuple(Units(site, len(found[site])) for site in sites)
    return Plan("peft", sum(u.size for u in units), 0, units), torch.cat([found[site].flatten() for site in sites])


def _lora(config: Mapping[str, Any], folder: Path, plm: PLM) -> dict[Site, Tensor]:
    """Site -> its units [n, inputs + outputs]."""
    _check(config, folder / CONFIG)
    found = _found(config, _maps(folder / WEIGHTS), plm, folder / WEIGHTS)
    sites = [site for site in plm.inventory.sites if site.structure == "lowrank" and site.place in found]
    for site in sites:
        if (rank := len(found[site.place])) > site.units:
            raise ConfigError(f"{folder}: rank {rank} at {site.place}, where {site.units} is the full rank.")
    return {site: found[site.place] for site in sites}


def _found(config: Mapping[str, Any], maps: Maps, plm: PLM, where: Path) -> dict[str, Tensor]:
    """Place -> its units [n, inputs + outputs], of a LoRA's maps."""
    places: dict[str, list[ModuleSpec]] = defaultdict(list)
    for place in plm.family.module_specs(plm.model):
        if place.kind == "linear":
            places[place.module].append(place)
    if wrong := [path for path in maps if path not in places]:
        raise ConfigError(
            f"{where}: adapts {wrong[0]!r}, which is no linear map inside {plm.name} ({plm.family.name}). "
            f"Allowed: modules such as {next(iter(places))!r}."
        )
    found: dict[str, Tensor] = {}
    for path, (a, b) in maps.items():
        there, here = (len(b), a.shape[1]), tuple(plm.model.get_submodule(path).get_parameter("weight").shape)
        if there != here:
            raise ConfigError(
                f"{where}: {path} maps {there[1]} to {there[0]} there, {here[1]} to {here[0]} in {plm.name}."
            )
        found |= _units(places[path], a.cpu(), _scale(config, path, len(a)) * b, plm)
    return found


def _units(places: list[ModuleSpec], a: Tensor, b: Tensor, plm: PLM) -> dict[str, Tensor]:
    """Place -> its units [n, inputs + outputs], of A [rank, inputs] and B [all outputs, rank]."""
    found, idle = {}, ~b.any(dim=0)
    for place in places:
        rows = rows_of(place, plm)
        own = b if rows is None else b[rows.cpu()]
        acts = torch.ones_like(idle) if rows is None else own.any(dim=0) | idle
        if acts.any():
            found[place.name] = torch.cat((a[acts], own.T[acts]), dim=1)
    return found


def _check(config: Mapping[str, Any], where: Path) -> None:
    """Raises ModelError for an adapter that is not plain LoRA."""
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise ModelError(f"{where}: alpha_pattern is {truncated_repr(patterns)}; it must be a mapping.")
    for key, alpha in {"lora_alpha": config.get("lora_alpha"), **patterns}.items():
        if type(alpha) not in (int, float) or not math.isfinite(alpha):
            raise ModelError(f"{where}: {key} is {truncated_repr(alpha)}; it must be a number.")
    for key in patterns:
        _check_pattern(key, where)
    for key in UNKNOWN:
        if config.get(key):
            raise ModelError(
                f"{where}: {key} is {truncated_repr(config[key])}; a plan has no counterpart for it. Allowed: unset."
            )
    if config.get("bias", "none") != "none":
        raise ModelError(f"{where}: bias is {truncated_repr(config['bias'])}. Allowed: 'none'.")
    if config.get("init_lora_weights", True) not in KEPT:
        started = truncated_repr(config["init_lora_weights"])
        raise ModelError(f"{where}: init_lora_weights is {started}, which changes the PLM's own weights.")


def _check_pattern(key: str, where: Path) -> None:
    """Raises ModelError for a key of alpha_pattern that is none, or that may take long to match."""
    try:
        if PATTERN.fullmatch(key) and len(key) <= 1000 and re.compile(key):
            return
    except re.error:
        pass
    raise ModelError(
        f"{where}: alpha_pattern has {truncated_repr(key)}. Allowed: ends of paths, with \\d+, |, and .* three times."
    )


def _maps(path: Path) -> Maps:
    """The maps that a file of PEFT's holds."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CorruptError(f"{path}: cannot be read as safetensors ({error}).") from None
    sides: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        match = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_(A|B)\.weight", name)
        if match is None:
            raise ConfigError(f"{path}: holds {name!r}; a LoRA of linear maps has lora_A and lora_B alone.")
        sides[match[1]][match[2]] = tensor.float()
    for module, side in sides.items():
        if any(t.ndim != 2 for t in side.values()) or len(side) < 2 or len(side["A"]) != side["B"].shape[1]:
            raise CorruptError(f"{path}: lora_A and lora_B of {module} do not belong together.")
    if not sides:
        raise CorruptError(f"{path}: holds no LoRA.")
    return {module: (side["A"], side["B"]) for module, side in sides.items()}


def _scale(config: Mapping[str, Any], path: str, rank: int) -> float:
    """α / r of a module, or α / √r (rsLoRA, Kalajdzievski 2023); a pattern is a path's end, as PEFT reads it."""
    patterns = config.get("alpha_pattern") or {}
    alpha = next((a for key, a in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", path)), config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


TENSOR = "prompt_embeddings"


def prompt_tokens(config: Mapping[str, Any], path: Path, plm: PLM) -> dict[Site, Tensor]:
    """Site -> its virtual tokens [n, d], float32, from the weights of a PROMPT_TUNING adapter (Lester et al. 2021).

    For T5, PEFT saves as many tokens again for the decoder and never uses them (two submodules): they are left out.
    Raises ParamsError for tokens that have no site in this PLM, ModelError for a wrong configuration, CorruptError for
    weights that cannot be read or are not those of the configuration.
    """
    count, parts = config.get("num_virtual_tokens"), config.get("num_transformer_submodules") or 1
    if type(count) is not int or count < 1 or parts not in (1, 2):
        said = f"num_virtual_tokens is {truncated_repr(count)}, num_transformer_submodules {truncated_repr(parts)}"
        raise ModelError(f"{path.parent}: {said}. Allowed: at least 1, and 1 or 2.")
    tokens = _tokens(path)
    if len(tokens) != count * parts:
        raise CorruptError(f"{path}: holds {len(tokens)} virtual tokens; its configuration says {parts} × {count}.")
    (site,) = (s for s in plm.inventory.sites if s.structure == "token" and s.place == plm.family.input)
    if tokens.shape[1] != site.cost or count > site.units:
        raise ConfigError(
            f"{path}: {count} virtual tokens of width {tokens.shape[1]}. {plm.name} ({plm.family.name}) has room for "
            f"{site.units} of width {site.cost}."
        )
    return {site: tokens[:count]}


def _tokens(path: Path) -> Tensor:
    """The prompt [tokens, d] that a file of PEFT's holds."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CorruptError(f"{path}: cannot be read as safetensors ({error}).") from None
    if set(tensors) != {TENSOR} or tensors[TENSOR].dim() != 2:
        raise CorruptError(f"{path}: holds {', '.join(sorted(tensors))[:200]}; a tuned prompt is one matrix, {TENSOR}.")
    return tensors[TENSOR].float()
