"""A PLM that one device does not hold: its weights lie in parts on several processes (FSDP2 through `accelerate`)."""

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
    """What stands outside a PLM's blocks is gathered while a function runs in here; blocks gather their own."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, run: Callable, *args: Any, **kwargs: Any) -> Any:
        return run(*args, **kwargs)


def world_size() -> int:
    """How many processes a launcher (`accelerate launch`, `torchrun`) has started for this job, one a device."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process speaks for the job: it reads weights, and writes files. True where it is the only one."""
    return world_size() == 1 or os.environ["RANK"] == "0"


def device_type() -> str:
    """What the processes of this job compute on: a GPU for each of several, where there are so many, or the CPU."""
    return "cuda" if 1 < world_size() <= torch.cuda.device_count() else "cpu"


@cache
def join() -> Accelerator:
    """Meet the other processes of this job, over NCCL between GPUs and over gloo between CPUs."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    accelerator = Accelerator(cpu=device_type() == "cpu", fsdp_plugin=plugin)
    # The library takes a plugin up for GPUs and their like alone; FSDP2 itself runs over gloo as well.
    accelerator.state.fsdp_plugin = plugin
    # Nothing here works in place on what a block gives out.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    return accelerator


def load_sharded(folder: Path, name: str) -> PLM:
    """`load_plm`, in parts on all processes of this job. Raises as `load_plm`.

    The first process alone reads the weights, and hands each its part of one tensor after another.
    """
    return shard(load_plm(folder, name, weights=is_main_process(), computed_on=device_type()))


def shard(plm: PLM) -> PLM:
    """The PLM with its weights in parts; the processes other than the first may bring one of shapes alone."""
    accelerator = join()
    blocks = plm.family.stacked(plm.model)
    accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = sorted({type(block).__name__ for block in blocks})
    _agree(plm)
    given = dict(plm.model.named_parameters()) if is_main_process() else {}
    whole = fsdp2_prepare_model(accelerator, RootUnit(plm.model))
    if not is_main_process():
        whole.to_empty(device=accelerator.device)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    with torch.no_grad():
        for path, part in plm.model.named_parameters():
            tensor = given.pop(path) if is_main_process() else empty_like_shape(part.shape, part.dtype)
            mine = part.to_local()  # type: ignore[attr-defined]  # what is in parts is a DTensor
            mine.copy_(distribute_tensor(tensor, mesh, [Shard(0)]).to_local())
        for buffer in plm.model.buffers():
            distributed.broadcast(buffer, src=0)
    return replace(plm, whole=whole, mesh=mesh)


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor with all its numbers, of which this process may have a part. All processes must ask at once."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def empty_like_shape(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor that has a shape and no numbers of its own: it stands where the first process has them."""
    return torch.zeros((), dtype=dtype).expand(shape)


def _agree(plm: PLM) -> None:
    """Give shapes alone the types that the first process's weights have.

    Raises ModelError where those are not the tensors that the configuration asks for.
    """
    tensors = {**dict(plm.model.named_parameters()), **dict(plm.model.named_buffers())}
    told = [{path: (tuple(tensor.shape), tensor.dtype) for path, tensor in tensors.items()}]
    distributed.broadcast_object_list(told, src=0)
    if {path: shape for path, (shape, _) in told[0].items()} != {p: tuple(t.shape) for p, t in tensors.items()}:
        raise ModelError(f"PLM {plm.name!r}: its weights are not those that its configuration asks for.")
    for path, (_, dtype) in told[0].items():
        tensors[path].data = tensors[path].data.to(dtype)
