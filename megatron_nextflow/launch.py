"""Start a training run: `processes` processes on this machine under torchrun, and end with none of them left.

Needs no torch in the calling process, so that a command line or a Prefect flow can use it. torchrun gets a session of its
own: Ctrl-C reaches the launcher alone, which passes it to the training processes, waits until they have saved, and only on a
second signal kills. The cost: a launcher that is killed outright cannot clean up; then the processes notice it themselves
within seconds (see `megatron_nextflow.train`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from megatron_nextflow import train
from megatron_nextflow.config import TrainConfig

CONFIG = "train.json"
"""Name of the resolved configuration, written into the run's output folder."""
STATUS = ".exit-status"
"""Name of the file in which a process says why it ended, since torchrun does not pass its children's exit status on."""


def launch(config: TrainConfig, root: Path, processes: int, environment: Mapping[str, str] | None = None) -> int:
    """Train with `processes` processes; returns 0, or the exit status of the process that failed first.

    Relative paths of `config` are taken from `root`. 2 means refused input or configuration, 3 a loss that is not finite;
    128 + n that signal n asked to stop, after which a checkpoint lies in the output folder. `environment` adds to what the
    processes inherit. Raises ValueError where the configuration cannot run with so many processes on this machine.
    """
    resolved = _resolve(config, root)
    resolved.check(processes)
    resolved.output.mkdir(parents=True, exist_ok=True)
    file = resolved.output / CONFIG
    file.write_text(resolved.model_dump_json(indent=1) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--max-restarts", "0"]
    if config.master_port is None:
        command.append("--standalone")  # takes a free port by itself
    else:
        command += ["--nnodes", "1", "--master-addr", "127.0.0.1", "--master-port", str(config.master_port)]
    command += ["-m", "megatron_nextflow.train", "--config", str(file)]
    status = resolved.output / STATUS
    status.unlink(missing_ok=True)
    agent = subprocess.Popen(command, env=_environment(resolved, status, environment), start_new_session=True)
    return attend(agent, status)


def _resolve(config: TrainConfig, root: Path) -> TrainConfig:
    """The configuration with absolute paths, so that it means the same in any working directory."""

    def under(path: Path | None) -> Path | None:
        return None if path is None else (root / path).resolve()

    data = config.data
    tokenizers = {name: under(getattr(data, name)) for name in ("vision_tokenizer", "text_tokenizer")}
    shards = data.shards if data.shards is None or "://" in data.shards else str(under(Path(data.shards)))
    return config.model_copy(
        update={
            "data": data.model_copy(update={"shards": shards, **tokenizers}),
            "output": under(config.output),
            "init_from": under(config.init_from),
        }
    )


def _environment(config: TrainConfig, status: Path, extra: Mapping[str, str] | None) -> dict[str, str]:
    values = {
        **os.environ,
        "OMP_NUM_THREADS": str(config.threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait starve the other processes of the machine
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "LOGLEVEL": "ERROR",  # torchrun's own
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        train.LAUNCHER: str(os.getpid()),
        train.STATUS_FILE: str(status),
    }
    if config.device != "cuda" and not _gpu():
        values["TORCH_COMPILE_DISABLE"] = "1"  # compiling for a CPU takes longer than short runs last
        values["CUDA_VISIBLE_DEVICES"] = ""
    return {**values, **(extra or {})}


def _gpu() -> bool:
    """Whether the NVIDIA driver shows a device; torch is asked again, and believed, in each process."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


class _Signals:
    """Takes SIGINT and SIGTERM while training runs and gives them back after; does nothing outside the main thread."""

    def __init__(self, agent: subprocess.Popen[bytes]) -> None:
        self.agent = agent
        self.received = 0
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self.received != 0
        self.received = number
        # torchrun would kill after 30 s, which a large checkpoint can outlast, so its children are told directly.
        for process in _workers(self.agent.pid) or [psutil.Process(self.agent.pid)]:
            _send(process, signal.SIGKILL if again else number)


def attend(agent: subprocess.Popen[bytes], status: Path) -> int:
    """Waits for torchrun, passing signals to its processes, and leaves none of them; see `launch` for what it returns.

    `status` is the file in which a process may say why it ended. The agent must lead a session of its own.
    """
    with _Signals(agent) as signals:
        try:
            code = agent.wait()
        finally:
            _end(agent)
    if signals.received:
        return 128 + signals.received
    if status.is_file():
        said = status.read_text(encoding="utf-8").strip()
        status.unlink()
        return int(said) if said.isdigit() else 1
    return code if code >= 0 else 128 - code


def _workers(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _send(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _end(agent: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the agent's session: the agent where it is still there, and children that outlived it."""
    left = [p for p in psutil.process_iter() if _session(p.pid) == agent.pid]
    for process in left:
        _send(process, signal.SIGKILL)
    psutil.wait_procs(left, timeout=10)
    agent.wait()


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None
