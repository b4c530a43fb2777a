"""GPUs: seen by torch, able to compute and to talk to each other, in the formats that training wants."""

from __future__ import annotations

import socket
import subprocess
from datetime import timedelta
from pathlib import Path

from nextflow_pipelines.spark.session import is_local

from megatron_nextflow.runtime.machine import gpu_present
from nextflow_orchestration.doctor.check import Case, Diagnosis, bad, check, ok, unneeded
from nextflow_orchestration.doctor.requirements import pip_install

FP8 = (8, 9)
"""Compute capability from which NVIDIA's GPUs multiply in FP8 (Ada; Hopper is 9.0)."""


_DRIVERS = ("nvidia[0-9]*", "kfd", "dxg")
"""Devices of NVIDIA's driver, of AMD's, and of Windows's under WSL."""


def wanted(case: Case) -> bool:
    """Whether the recipe cannot do without a GPU on this machine."""
    train = case.train
    if train is not None and "slurm" in train.model_fields_set:
        return False  # the job's machines have them
    tasks = case.spark.gpus_per_task > 0 and is_local(case.spark.master)
    return tasks or (train is not None and (train.device == "cuda" or _fp8(case)))


def _fp8(case: Case) -> bool:
    return case.train is not None and case.train.fp8 not in (None, "auto")


def gpus() -> int:
    """How many torch sees; torch is imported only where a driver is there."""
    if not any(True for name in _DRIVERS for _ in Path("/dev").glob(name)):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _none(case: Case) -> Diagnosis | None:
    """What to say where torch sees no GPU."""
    if gpus():
        return None
    if gpu_present():
        import torch

        advice = "install a torch with CUDA" if torch.version.cuda is None else "update the driver"
        return bad(f"this machine has an NVIDIA GPU, and torch {torch.__version__} does not see it", advice)
    if wanted(case):
        return bad("none, and the recipe wants one", "change the recipe, or run it elsewhere")
    return unneeded("none")


@check("gpu", "devices", seconds=60, needed=wanted)
def devices(case: Case) -> Diagnosis:
    """Each multiplies two matrices."""
    if (finding := _none(case)) is not None:
        return finding
    import torch

    said = []
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        ones = torch.ones(256, 256, device=f"cuda:{number}")
        if not bool((ones @ ones == 256).all()):
            return bad(f"GPU {number} ({found.name}) multiplies wrongly", "take it out of service: CUDA_VISIBLE_DEVICES")
        said.append(f"{found.name}, {found.total_memory / 2**30:.0f} GiB, capability {found.major}.{found.minor}")
    return ok(f"{'; '.join(said)}; CUDA {torch.version.cuda}, driver {_driver()}")


def _driver() -> str:
    """Version of NVIDIA's driver, as its own tool says it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=15)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return next(iter(done.stdout.split()), "unknown")


@check("gpu", "formats", seconds=60, needed=wanted)
def formats(case: Case) -> Diagnosis:
    """bf16 and FP8 in hardware, on all of them."""
    if (finding := _none(case)) is not None:
        return finding
    import torch

    numbers = range(torch.cuda.device_count())
    able = [torch.cuda.get_device_capability(number) for number in numbers]
    fp8 = min(able) >= FP8
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        return bad("no bf16", "train with precision: float32")
    if _fp8(case) and not fp8:
        return bad(f"bf16, but no FP8 below capability {FP8[0]}.{FP8[1]}", "leave train.fp8 out, or set it to auto")
    return ok("bf16 and FP8" if fp8 else "bf16; no FP8")


@check("gpu", "nccl", seconds=60, needed=wanted)
def nccl(case: Case) -> Diagnosis:
    """NCCL begins and adds up, one process on one GPU: its library fits the driver."""
    if (finding := _none(case)) is not None:
        return finding
    import torch
    import torch.distributed as dist

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    dist.init_process_group("nccl", f"tcp://127.0.0.1:{port}", timeout=timedelta(seconds=30), world_size=1, rank=0)
    total = torch.ones(1, device="cuda:0")
    dist.all_reduce(total)
    fine = total.item() == 1
    dist.destroy_process_group()
    version = ".".join(map(str, torch.cuda.nccl.version()))
    return ok(f"NCCL {version}") if fine else bad(f"NCCL {version} adds up wrongly", "install the NCCL that torch asks for")


@check("gpu", "transformer engine", seconds=60, needed=lambda case: wanted(case) and _fp8(case))
def transformer_engine(case: Case) -> Diagnosis:
    """One of its linear layers, on a GPU."""
    if (finding := _none(case)) is not None:
        return finding
    try:
        import transformer_engine.pytorch as te
    except ModuleNotFoundError:
        advice = f"for FP8: {pip_install('gpu')}"
        return bad("not installed, and the recipe wants FP8", advice) if _fp8(case) else unneeded("not installed", advice)
    import torch

    bf16 = torch.bfloat16
    out = te.Linear(32, 32, params_dtype=bf16, device="cuda")(torch.ones(16, 32, device="cuda", dtype=bf16))
    if not bool(torch.isfinite(out).all()):
        return bad("a linear layer gives no numbers", "install the version that was built for this torch")
    return ok("a linear layer computes")
