"""What training asks of its other processes; each function also answers where there is only one."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from nextflow_data.common.errors import RequestError
from torch import Tensor, nn
from torch import distributed as dist

PATIENCE = timedelta(hours=12)
"""How long a process waits for the others: the first one indexes images and evaluates alone. One that dies is noticed by
torchrun at once, not by this."""


def rank() -> int:
    """This process's number."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def start(device: str = "auto") -> torch.device:
    """Joins the processes that torchrun started, if it did, and gives this one's device.

    `device`: "auto" (a GPU where torch sees one), "cpu" or "cuda". Raises RequestError for "cuda" without a GPU, and
    for more processes than GPUs.
    """
    gpu = torch.cuda.is_available() and device != "cpu"
    if device == "cuda" and not gpu:
        raise RequestError("device: cuda was asked for, but torch sees no GPU")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if gpu and local >= torch.cuda.device_count():
        raise RequestError(f"process {local} of this machine has no GPU: torch sees {torch.cuda.device_count()}")
    if gpu:
        torch.cuda.set_device(local)
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if gpu else "gloo", timeout=PATIENCE)
    return torch.device("cuda", local) if gpu else torch.device("cpu")


def stop() -> None:
    """Leaves the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def total(values: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def gathered(values: Tensor) -> Tensor:
    """All processes' tensors of one shape, one after the other along the first dimension."""
    if not dist.is_initialized():
        return values
    parts = [torch.empty_like(values) for _ in range(world())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def average_gradients(module: nn.Module) -> None:
    """The mean of all processes' gradients, for a module that DistributedDataParallel does not wrap."""
    if dist.is_initialized():
        for parameter in module.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= world()


def same(module: nn.Module) -> None:
    """Gives every process the first one's buffers: DistributedDataParallel sees to parameters only, as it is used here."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def barrier() -> None:
    """Waits for all processes."""
    if dist.is_initialized():
        dist.barrier()
