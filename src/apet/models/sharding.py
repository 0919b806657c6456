"""Sharding of PLMs that are too large for one device, over several processes (FSDP2 through `accelerate`)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import fsdp2_prepare_model
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers import PreTrainedModel

from apet.errors import ModelError
from apet.models.loading import PLM, load_plm


class RootUnit(nn.Module):
    """A module that gathers the weights outside a PLM's blocks while a function runs in it."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, run: Callable, *args: Any, **kwargs: Any) -> Any:
        """Run a function with gathered weights."""
        return run(*args, **kwargs)


def world_size() -> int:
    """Return the number of processes that a launcher (`accelerate launch`, `torchrun`) started, one for each device."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Return whether this process reads weights and writes files. True if it is the only one."""
    return world_size() == 1 or os.environ["RANK"] == "0"


def device_type() -> str:
    """Return the type of device of this job: cuda if there are several processes and a GPU for each, otherwise cpu."""
    return "cuda" if 1 < world_size() <= torch.cuda.device_count() else "cpu"


@cache
def join() -> Accelerator:
    """Connect the processes of this job, over NCCL between GPUs and over gloo between CPUs."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    accelerator = Accelerator(cpu=device_type() == "cpu", fsdp_plugin=plugin)
    # accelerate ignores the plugin on CPUs, but FSDP2 itself runs over gloo as well.
    accelerator.state.fsdp_plugin = plugin
    # Nothing here modifies the output of a block in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    return accelerator


def load_sharded(folder: Path, name: str) -> PLM:
    """Load a PLM and shard it over all processes of this job.

    Only the main process reads the weights. It sends every process its shard of one tensor after another.

    Args:
        folder: See `load_plm`.
        name: Name of the PLM.

    Returns:
        The sharded PLM.

    Raises:
        ModelError: See `load_plm`.
        CorruptError: See `load_plm`.
    """
    return shard(load_plm(folder, name, weights=is_main_process(), computed_on=device_type()))


def shard(plm: PLM) -> PLM:
    """Shard a PLM over all processes of this job.

    Args:
        plm: The PLM. Only the main process needs its weights; the others may have only shapes.

    Returns:
        The sharded PLM.

    Raises:
        ModelError: The weights of the main process have other shapes than the configuration.
    """
    accelerator = join()
    blocks = plm.family.all_blocks(plm.model)
    accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = sorted({type(block).__name__ for block in blocks})
    _broadcast_dtypes(plm)
    weights = dict(plm.model.named_parameters()) if is_main_process() else {}
    root_unit = fsdp2_prepare_model(accelerator, RootUnit(plm.model))
    if not is_main_process():
        root_unit.to_empty(device=accelerator.device)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    with torch.no_grad():
        for path, parameter in plm.model.named_parameters():
            tensor = weights.pop(path) if is_main_process() else empty_like_shape(parameter.shape, parameter.dtype)
            local = parameter.to_local()  # type: ignore[attr-defined]  # sharded parameters are DTensors
            local.copy_(distribute_tensor(tensor, mesh, [Shard(0)]).to_local())
        for buffer in plm.model.buffers():
            distributed.broadcast(buffer, src=0)
    return replace(plm, root_unit=root_unit, mesh=mesh)


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a tensor that may be sharded. All processes must call this at the same time.

    Args:
        tensor: The tensor.

    Returns:
        The complete tensor.
    """
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def empty_like_shape(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Make a tensor that has a shape and takes no memory, in place of one that only the main process has.

    Args:
        shape: The shape.
        dtype: The dtype.

    Returns:
        The tensor.
    """
    return torch.zeros((), dtype=dtype).expand(shape)


def _broadcast_dtypes(plm: PLM) -> None:
    """Give tensors without values the dtypes of the main process's weights."""
    tensors = {**dict(plm.model.named_parameters()), **dict(plm.model.named_buffers())}
    broadcast = [{path: (tuple(tensor.shape), tensor.dtype) for path, tensor in tensors.items()}]
    distributed.broadcast_object_list(broadcast, src=0)
    if {path: shape for path, (shape, _) in broadcast[0].items()} != {p: tuple(t.shape) for p, t in tensors.items()}:
        raise ModelError(f"PLM {plm.name!r}: the weights have other shapes than config.json asks for.")
    for path, (_, dtype) in broadcast[0].items():
        tensors[path].data = tensors[path].data.to(dtype)
