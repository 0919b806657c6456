"""The two files of a PEFT adapter: a configuration in JSON, and weights by module."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from apet.errors import ConfigError, CorruptError, ModelError, first_line, truncated_repr
from apet.models.families import ModuleSpec
from apet.models.loading import PLM

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Beginning of the names of weights that belong to a module."""


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read the weights of an adapter.

    Args:
        path: The file adapter_model.safetensors.

    Returns:
        Name -> tensor.

    Raises:
        CorruptError: If the file is missing or cannot be read.
    """
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


def weights_by_module(path: Path, pattern: str, allowed: str) -> dict[str, dict[str, Tensor]]:
    """Read the weights of an adapter, by module.

    Args:
        path: The file adapter_model.safetensors.
        pattern: A regular expression of names without the module, whose group is the key of a tensor.
        allowed: The same in words, for error messages.

    Returns:
        Path of a module -> key -> tensor, float32.

    Raises:
        ConfigError: If a tensor has another name.
        CorruptError: If the file cannot be read or is empty.
    """
    modules: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in load_weights(path).items():
        match = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.{pattern}", name)
        if match is None:
            raise ConfigError(f"{path}: unexpected tensor {name!r}. Allowed: {allowed}.")
        modules[match[1]][match[2]] = tensor.float()
    if not modules:
        raise CorruptError(f"{path}: missing {allowed}.")
    return modules


def refuse_keys(config: Mapping[str, Any], keys: Iterable[str], path: Path) -> None:
    """Check that keys of a configuration have no value, because they would change the method.

    Args:
        config: The configuration.
        keys: The keys.
        path: The file adapter_config.json, for error messages.

    Raises:
        ModelError: If a key has a value.
    """
    for key in keys:
        if config.get(key):
            raise ModelError(f"{path}: {key}: expected no value, got {truncated_repr(config[key])}.")


def specs_by_module(plm: PLM, kind: str) -> dict[str, list[ModuleSpec]]:
    """List the modules of a kind; of a fused map, all parts.

    Args:
        plm: The PLM.
        kind: Kind of the modules, as in `ModuleSpec`.

    Returns:
        Path of a module -> its places.
    """
    specs: dict[str, list[ModuleSpec]] = defaultdict(list)
    for spec in plm.family.module_specs(plm.model):
        if spec.kind == kind:
            specs[spec.module].append(spec)
    return specs
