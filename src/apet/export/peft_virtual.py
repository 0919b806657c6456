"""Virtual tokens and prefixes as PEFT's PROMPT_TUNING and PREFIX_TUNING, and back.

PEFT has one number of pairs for all blocks. The pairs of a token are one row, with key and value of each block in turn.
For T5 PEFT reads a row in steps of four, and from its beginning again in the second half of the decoder, so that with
an even number of blocks those of both halves share their pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apet.errors import ConfigError, CorruptError, ModelError, truncated_repr
from apet.export.peft_files import CONFIG, WEIGHTS, load_weights
from apet.export.tuned_model import TunedModel
from apet.models.loading import PLM
from apet.placement import PLACEMENTS, Inventory, MethodSizes, Site
from apet.tuning import layout

TENSOR = "prompt_embeddings"


def write_prompt(model: TunedModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert virtual tokens.

    Args:
        model: A tuned model with virtual tokens in front of the text only.

    Returns:
        The configuration and the tensors of a PROMPT_TUNING adapter.
    """
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
    return config, {TENSOR: model.theta.view(units.count, -1).clone()}


def read_prompt(config: Mapping[str, Any], folder: Path, plm: PLM) -> dict[Site, Tensor]:
    """Read the virtual tokens of a PROMPT_TUNING adapter (Lester et al. 2021).

    For T5, PEFT saves as many tokens again for the decoder (two submodules) but never uses them. They are ignored.

    Args:
        config: The content of adapter_config.json.
        folder: The folder of the adapter.
        plm: The PLM that the adapter was trained on.

    Returns:
        The virtual tokens [n, d], float32, of their site.

    Raises:
        ConfigError: If the tokens have no site in this PLM.
        ModelError: If the configuration is invalid.
        CorruptError: If the weights cannot be read or contradict the configuration.
    """
    count, submodules = _sizes(config, folder)
    tokens, path = _read_matrix(folder), folder / WEIGHTS
    if len(tokens) != count * submodules:
        raise CorruptError(f"{path}: expected {submodules} × {count} virtual tokens, got {len(tokens)}.")
    (site,) = (s for s in plm.inventory.sites if s.structure == "token" and s.place == plm.family.input)
    if tokens.shape[1] != site.cost or count > site.units:
        raise ConfigError(
            f"{path}: expected at most {site.units} virtual tokens of width {site.cost} for {plm.name}, "
            f"got {count} of width {tokens.shape[1]}."
        )
    return {site: tokens[:count]}


def write_prefix(model: TunedModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert the pairs of a prefix.

    Args:
        model: A tuned model for which `prefix_problems` returns nothing.

    Returns:
        The configuration and the tensors of a PREFIX_TUNING adapter.
    """
    parts, plm_config = layout(model.plan), model.plm.model.config
    count, width = parts[0].units.count, parts[0].units.site.shape[0]
    rows = torch.zeros(count, 2 * len(parts), width)
    for part, numbers in zip(parts, _row_numbers(model.plm, len(parts)), strict=True):
        rows[:, numbers] = model.theta[part.start : part.stop].view(count, 2, width)
    config = {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": count,
        "token_dim": width,
        "encoder_hidden_size": width,
        "prefix_projection": False,
        "num_transformer_submodules": 2 if model.plm.special_tokens.decoder else 1,
        "num_attention_heads": getattr(plm_config, "num_key_value_heads", None) or plm_config.num_attention_heads,
        "num_layers": len(parts),
    }
    return config, {TENSOR: rows.flatten(1)}


def prefix_problems(model: TunedModel) -> list[str]:
    """List what PREFIX_TUNING cannot represent of a prefix."""
    parts = layout(model.plan)
    if [part.units.site for part in parts] != _sites(model.plm.inventory):
        return ["a prefix in some blocks only, or in an encoder with a decoder"]
    if len({part.units.count for part in parts}) > 1:
        return ["a prefix with different numbers of pairs"]
    pairs = torch.stack([model.theta[part.start : part.stop] for part in parts])
    numbers = _row_numbers(model.plm, len(parts))
    first = [numbers.index(row) for row in numbers]
    return [] if torch.equal(pairs, pairs[first]) else ["a prefix of T5 with other pairs in the second half of blocks"]


def read_prefix(config: Mapping[str, Any], folder: Path, plm: PLM) -> dict[Site, Tensor]:
    """Read the pairs of a PREFIX_TUNING adapter (Li & Liang 2021), with or without projection.

    Args:
        config: The content of adapter_config.json.
        folder: The folder of the adapter.
        plm: The PLM that the adapter was trained on.

    Returns:
        The pairs [n, 2 d], float32, of each site.

    Raises:
        ConfigError: If the pairs have no site in this PLM.
        ModelError: If the configuration is invalid.
        CorruptError: If the weights cannot be read or contradict the configuration.
    """
    count, submodules = _sizes(config, folder)
    expected = 2 if plm.special_tokens.decoder else 1
    if submodules != expected:
        raise ModelError(f"{folder / CONFIG}: num_transformer_submodules: expected {expected}, got {submodules}.")
    rows, sites, path = _read_matrix(folder), _sites(plm.inventory), folder / WEIGHTS
    width = sites[0].shape[0]
    if len(rows) != count:
        raise CorruptError(f"{path}: expected {count} rows of pairs, got {len(rows)}.")
    if rows.shape[1] != 2 * len(sites) * width or count > sites[0].units:
        raise ConfigError(
            f"{path}: expected at most {sites[0].units} rows of {len(sites)} pairs of width {width} for {plm.name}, "
            f"got {count} of {rows.shape[1]} numbers."
        )
    rows = rows.view(count, 2 * len(sites), width)
    numbers = _row_numbers(plm, len(sites))
    return {site: rows[:, pair].flatten(1) for site, pair in zip(sites, numbers, strict=True)}


def _row_numbers(plm: PLM, blocks: int) -> list[list[int]]:
    """Return the numbers of key and value of each block in PEFT's rows."""
    step = 4 if plm.special_tokens.decoder else 2
    return [[step * block % (2 * blocks), step * block % (2 * blocks) + 1] for block in range(blocks)]


def _sites(inventory: Inventory) -> list[Site]:
    """Return the sites of PEFT's prefix, block by block."""
    return list(PLACEMENTS.own["prefix"](inventory, MethodSizes()))


def _sizes(config: Mapping[str, Any], folder: Path) -> tuple[int, int]:
    """Return the number of virtual tokens and that of submodules."""
    count, submodules = config.get("num_virtual_tokens"), config.get("num_transformer_submodules") or 1
    if type(count) is not int or count < 1:
        raise ModelError(f"{folder / CONFIG}: num_virtual_tokens: expected at least 1, got {truncated_repr(count)}.")
    if submodules not in (1, 2):
        submodules = truncated_repr(submodules)
        raise ModelError(f"{folder / CONFIG}: num_transformer_submodules: expected 1 or 2, got {submodules}.")
    return count, submodules


def _read_matrix(folder: Path) -> Tensor:
    tensors = load_weights(folder / WEIGHTS)
    if set(tensors) != {TENSOR} or tensors[TENSOR].dim() != 2:
        names = ", ".join(sorted(tensors))[:200]
        raise CorruptError(f"{folder / WEIGHTS}: expected one matrix {TENSOR}, got {names}.")
    return tensors[TENSOR].float()
