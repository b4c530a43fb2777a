"""Where the device is chosen, and the trainer's only global state: what megatron-core is told that is not so.

On a GPU that is little: while it is imported wandb is not there (`_absent`), and where neither Transformer Engine nor Apex
is, it is given an Adam of ours in their place, because it cannot checkpoint torch's (`runtime.adam`). Nothing else of it is
changed, and its answers about the machine are true. On a CPU, megatron-core asks torch.cuda for devices, streams and
generators in dozens of places though its mathematics runs anywhere; rather than fork it, `setup` makes those few questions
answer for the CPU and turns a request for a CUDA tensor into one for a CPU tensor, in this process only. The cost: about a
millisecond a step, and that `setup` must run before anything imports megatron.core. The rest of the package is written once,
for both; what differs by device (the attention's kernel, FP8, a peak to compare with) asks the device that it is given.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")
_shim: TorchFunctionMode | None = None


def setup(kind: str = "auto", threads: int = 1, timeout_minutes: float = 30) -> torch.device:
    """Choose this process's device, start torch.distributed, and return the device.

    `kind`: "auto" (the GPU if there is one), "cpu" or "cuda". `timeout_minutes`: how long a collective may take. Reads RANK,
    WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT as torchrun sets them; without them the process is alone. Raises
    RuntimeError where "cuda" is asked for and absent, where this machine has fewer GPUs than processes, or where
    megatron.core was imported before the CPU's answers could be put in place.
    """
    torch.set_num_threads(threads)
    gpu = torch.cuda.is_available() and kind != "cpu"
    if kind == "cuda" and not gpu:
        raise RuntimeError("device: cuda was asked for, but torch sees no GPU")
    if gpu:
        local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= gpus:
            raise RuntimeError(f"torch sees {gpus} GPUs on this machine, process {local + 1} has none: start one a GPU")
        torch.cuda.set_device(local)
        with _absent("wandb"):
            _install_adam()
    else:
        with _absent("wandb"):
            _install_cpu_answers()
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        if "RANK" in os.environ:
            dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return torch.device("cuda", torch.cuda.current_device()) if gpu else _CPU


@contextlib.contextmanager
def _absent(name: str) -> Iterator[None]:
    """A package as if not installed. megatron.core imports wandb for an inference server's statistics, a quarter of all the
    time that a process takes to start; a training's own curves import it where a recipe asks for them."""
    found = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        if found is not None:
            sys.modules[name] = found


def _names_cuda(device: Any) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, int) and not isinstance(device, bool)


class _CudaMeansCpu(TorchFunctionMode):
    """Rewrites requests for CUDA memory: device="cuda", pinned memory, Tensor.cuda(), Tensor.to("cuda")."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _names_cuda(kwargs.get("device")):
            kwargs = {**kwargs, "device": _CPU}
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        if func in (torch.Tensor.cuda, torch.Tensor.pin_memory):
            return args[0]
        if func is torch.Tensor.to and len(args) > 1 and _names_cuda(args[1]):
            args = (args[0], _CPU, *args[2:])
        elif func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # Megatron's optimizers sort parameters by this name and know only the CUDA ones.
            return func(*args).replace("torch.", "torch.cuda.", 1)
        return func(*args, **kwargs)


class _NoStream:
    """A CUDA stream or event on a device that has none: nothing to wait for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        return None

    wait_stream = wait_event = record_event = synchronize = record = wait = _nothing


def _get_rng_state(*args: Any, **kwargs: Any) -> torch.Tensor:
    return torch.default_generator.get_state()


def _set_rng_state(state: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    torch.default_generator.set_state(state)


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _install_cpu_answers() -> None:
    global _shim
    if _shim is not None:
        return
    if any(name.startswith("megatron.core") for name in sys.modules):
        raise RuntimeError("megatron_nextflow.runtime.device.setup must be called before anything imports megatron.core")
    for needs_gpu in ("transformer_engine", "apex"):
        sys.modules[needs_gpu] = None  # type: ignore[assignment]  # as if not installed: their kernels need a GPU
    cuda: Any = torch.cuda
    cuda.current_device = lambda: _CPU
    cuda.synchronize = cuda.empty_cache = _nothing
    cuda.manual_seed = cuda.manual_seed_all = _seed
    cuda.get_rng_state = cuda.random.get_rng_state = _get_rng_state
    cuda.set_rng_state = cuda.random.set_rng_state = _set_rng_state
    cuda.current_stream = cuda.default_stream = lambda *args, **kwargs: _NoStream()
    cuda.Stream = cuda.Event = _NoStream
    cuda.stream = lambda stream: contextlib.nullcontext()
    _install_generator()
    _install_adam()
    _shim = _CudaMeansCpu()
    _shim.__enter__()


def _install_generator() -> None:
    """Megatron's tracker of generators keeps its states in the CPU generator."""
    import megatron.core.tensor_parallel.random as random

    random._set_cuda_rng_state = _set_rng_state
    # Each fork of the tracker warns that the CPU generator moved, which is here the point.
    logging.getLogger(random.__name__).setLevel(logging.ERROR)


def _install_adam() -> None:
    """Where Megatron has but torch's Adam, give it one that it can checkpoint (see `megatron_nextflow.runtime.adam`)."""
    import megatron.core.optimizer as optimizer
    import megatron.core.optimizer.distrib_optimizer as distributed

    from megatron_nextflow.runtime.adam import GroupStepAdam

    if not optimizer.USING_PYTORCH_OPTIMIZER:
        return
    optimizer.Adam, optimizer.USING_PYTORCH_OPTIMIZER = GroupStepAdam, False
    distributed.Adam, distributed.HAVE_APEX_OR_TE, distributed.USING_APEX_OPTIMIZER = GroupStepAdam, True, True
