"""A benchmark over several processes: it starts itself under torchrun, and times what all of them do together."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path


def under_torchrun(processes: int, threads: int = 1) -> bool:
    """Whether this process is one of torchrun's; otherwise starts `processes` of this script, and exits where they fail."""
    if "RANK" in os.environ:
        return True
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "LOGLEVEL": "ERROR", "PYTHONWARNINGS": "ignore"}
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        environment["TORCH_COMPILE_DISABLE"] = "1"
    done = subprocess.run([*command, *sys.argv], env=environment)
    if done.returncode:
        sys.exit(done.returncode)
    return False


def together(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """As `common.in_turns`, the processes starting each call together; a call lasts until the last has finished."""
    import torch
    import torch.distributed as dist

    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            dist.barrier()
            started = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            dist.barrier()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds
