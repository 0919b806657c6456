"""Vectors of modules as PEFT's adapters, and back: norms (LN_TUNING) and factors of hidden states (IA3).

PEFT saves complete norms, and complete vectors of factors 1 + δ. In a fused map (query, key and value in one weight),
the factors of one part are those of its rows, and the others are 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apet.errors import ConfigError
from apet.export.peft_files import CONFIG, PREFIX, WEIGHTS, refuse_keys, specs_by_module, weights_by_module
from apet.export.tuned_model import TunedModel
from apet.models.families import ModuleSpec
from apet.models.loading import PLM
from apet.placement import Site
from apet.tuning import layout
from apet.tuning.structures import flat_positions
from apet.tuning.tuned_plm import rows_of

PARAMETERS = {"weight": "entry", "bias": "bias"}
"""Parameter of a norm -> structure of its scalars."""


def write_norms(model: TunedModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert scalars of norms.

    Args:
        model: A tuned model with scalars of norms only.

    Returns:
        The configuration and the tensors of an LN_TUNING adapter.
    """
    names = {structure: name for name, structure in PARAMETERS.items()}
    norms: dict[str, dict[str, Tensor]] = {}
    for spec, site, positions, values in _scattered(model):
        module = model.plm.model.get_submodule(spec.module)
        parameters = {name: p.detach().float().cpu().clone() for name, p in module.named_parameters(recurse=False)}
        norms.setdefault(spec.module, parameters)[names[site.structure]][positions] += values
    tensors = {f"{PREFIX}{path}.ln_tuning_layers.{name}": p for path, norm in norms.items() for name, p in norm.items()}
    return {"peft_type": "LN_TUNING", "target_modules": sorted(norms)}, tensors


def read_norms(config: Mapping[str, Any], folder: Path, plm: PLM) -> dict[Site, Tensor]:
    """Read the changes of norms of an LN_TUNING adapter.

    Args:
        config: The content of adapter_config.json.
        folder: The folder of the adapter.
        plm: The PLM that the adapter was trained on.

    Returns:
        The changes [n, 1] of all scalars of each site.

    Raises:
        ConfigError: If a module is no norm of this PLM or has another shape.
        ModelError: If the adapter has more than norms.
        CorruptError: If the weights cannot be read.
    """
    refuse_keys(config, ("modules_to_save",), folder / CONFIG)
    path, specs = folder / WEIGHTS, specs_by_module(plm, "norm")
    sites = {(site.place, site.structure): site for site in plm.inventory.sites if site.exists}
    changes = {}
    for module, tensors in weights_by_module(path, r"ln_tuning_layers\.(\w+)", "ln_tuning_layers of norms").items():
        for name, tensor in tensors.items():
            site = sites.get((specs[module][0].name, PARAMETERS.get(name, ""))) if module in specs else None
            if site is None or site.shape != tuple(tensor.shape):
                raise ConfigError(
                    f"{path}: {module}.{name} of shape {tuple(tensor.shape)}: not a parameter of a norm of {plm.name}. "
                    f"Allowed: modules such as {next(iter(specs))!r}."
                )
            frozen = plm.model.get_submodule(module).get_parameter(name)
            changes[site] = (tensor.cpu() - frozen.float().cpu())[:, None]
    return changes


def write_factors(model: TunedModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert factors of hidden states.

    Args:
        model: A tuned model with factors only.

    Returns:
        The configuration and the tensors of an IA3 adapter.
    """
    vectors: dict[str, Tensor] = {}
    inputs = set()
    for spec, site, positions, values in _scattered(model):
        size = len(model.plm.model.get_submodule(spec.module).get_parameter("weight"))
        if site.place.endswith(".ffn.down"):
            inputs.add(spec.module)
            size = site.shape[0]
        vectors.setdefault(spec.module, torch.ones(size))[positions] += values
    tensors = {f"{PREFIX}{path}.ia3_l": v[None] if path in inputs else v[:, None] for path, v in vectors.items()}
    config = {"target_modules": sorted(vectors), "feedforward_modules": sorted(inputs)}
    return {"peft_type": "IA3", "fan_in_fan_out": False, "init_ia3_weights": True, **config}, tensors


def read_factors(config: Mapping[str, Any], folder: Path, plm: PLM) -> dict[Site, Tensor]:
    """Read the factors of an IA3 adapter.

    A factor of the input of an attention's last map, which PEFT adds in BERT, is one of the values.

    Args:
        config: The content of adapter_config.json.
        folder: The folder of the adapter.
        plm: The PLM that the adapter was trained on.

    Returns:
        The values [n, 1] of all factors of each site.

    Raises:
        ConfigError: If factors have no site in this PLM.
        ModelError: If the adapter has more than factors.
        CorruptError: If the weights cannot be read.
    """
    refuse_keys(config, ("modules_to_save",), folder / CONFIG)
    path, specs = folder / WEIGHTS, specs_by_module(plm, "linear")
    sites = {site.place: site for site in plm.inventory.sites if site.structure == "scale"}
    factors: dict[Site, Tensor] = {}
    for module, tensors in weights_by_module(path, "(ia3_l)", "ia3_l of linear maps").items():
        vector = tensors["ia3_l"].cpu()
        parts = dict(_by_place(specs.get(module, []), vector, plm))
        if not parts or any(sites[place].shape != part.shape for place, part in parts.items()):
            raise ConfigError(
                f"{path}: {module}: no site for factors of shape {tuple(vector.shape)} in {plm.name}. "
                "Allowed: outputs of queries, keys and values, and inputs of the feed-forward network's last map."
            )
        for place, part in parts.items():
            factors[sites[place]] = factors.get(sites[place], torch.ones(())) * part
    return {site: (vector - 1)[:, None] for site, vector in factors.items()}


def _by_place(specs: list[ModuleSpec], vector: Tensor, plm: PLM) -> Iterator[tuple[str, Tensor]]:
    """Yield places and their factors, from those of a module's input [1, d] or output [d, 1]."""
    for spec in specs:
        outputs, inputs = plm.model.get_submodule(spec.module).get_parameter("weight").shape
        if vector.shape == (outputs, 1) and spec.name.endswith((".query", ".key", ".value")):
            rows = rows_of(spec, plm)
            yield spec.name, vector[:, 0] if rows is None else vector[rows.cpu(), 0]
        elif vector.shape == (1, inputs) and spec.name.endswith(".ffn.down"):
            yield spec.name, vector[0]
        elif vector.shape == (1, inputs) and spec.name.endswith("attention.output"):
            yield spec.name.removesuffix("output") + "value", vector[0]


def _scattered(model: TunedModel) -> Iterator[tuple[ModuleSpec, Site, Tensor, Tensor]]:
    """Yield each site with its module, and positions in the module's vector and values of its scalars, on the CPU."""
    modules = {spec.name: spec for spec in model.plm.family.module_specs(model.plm.model)}
    for part in layout(model.plan):
        site, indices = part.units.site, part.units.indices
        spec, index = modules[site.place], None if indices is None else torch.as_tensor(indices)
        rows = rows_of(spec, model.plm)
        positions = flat_positions(site.shape, None if rows is None else rows.cpu(), index)
        yield spec, site, positions, model.theta[part.start : part.stop]
