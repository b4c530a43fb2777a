"""What a training runs on, as its record and its page show it: processors, memory, GPUs, versions.

Found without torch, which the launcher does not load: GPUs by NVIDIA's own tool. Only the launcher's machine is described;
the other machines of a job are taken to be like it.
"""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from nextflow_data.common.section import Section

PACKAGES = ("torch", "megatron-core", "transformer-engine", "transformer-engine-torch")


class Machine(Section):
    """A machine in words and numbers."""

    cpu: str
    cores: int
    """Processors this process may use."""
    memory_gib: float
    gpus: tuple[str, ...] = ()
    """Name and memory of each GPU."""
    versions: dict[str, str]


def gpu_present() -> bool:
    """Whether the NVIDIA driver shows a device; torch is asked again, and believed, in each process."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def this_machine() -> Machine:
    """The machine this runs on."""
    import psutil  # not in a base install, which reads records too

    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        gpus=_gpus() if gpu_present() else (),
        versions={"python": platform.python_version()} | _versions(),
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _gpus() -> tuple[str, ...]:
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip()) if done.returncode == 0 else ()


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
