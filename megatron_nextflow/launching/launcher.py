"""Start a training: processes on this machine under torchrun, and end with none of them left.

Needs no torch in the calling process, so that a command line or a Prefect flow can use it. torchrun gets a session of its
own: a signal reaches the launcher alone, which passes it to the training processes and waits until they have saved. The
cost: a launcher that is killed outright cannot clean up; then the processes notice it themselves within seconds (see
`megatron_nextflow.train`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nextflow_data.common.whole_files import replace_file

from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.launching.exit_status import LAUNCHER, REFUSED, STATUS_FILE
from megatron_nextflow.launching.launch_record import Hold, LaunchRecord, Status, own_start, write_record
from megatron_nextflow.launching.supervise import told, watch
from megatron_nextflow.runtime.machine import gpu_present, this_machine
from megatron_nextflow.runtime.training_folder import CONFIG, last_step

STATUS = ".exit-status"
"""Name of the file in which a process says why it ended, since torchrun does not pass its children's exit status on."""


@dataclass(frozen=True)
class Cluster:
    """The part of a job on several machines that this one has."""

    nodes: int
    node: int
    """This machine's number, from 0."""
    rendezvous: str
    """host:port of the first machine, where the processes find each other."""
    attempt: str
    """The Slurm job's number and how often it was put back into the queue, as in 123-0."""


def launch(
    config: TrainConfig,
    root: Path,
    processes: int,
    environment: Mapping[str, str] | None = None,
    cluster: Cluster | None = None,
) -> int:
    """Train with `processes` processes; returns the exit status.

    0: all steps are done, or a signal (SIGINT, SIGTERM, SIGHUP, SIGUSR1) asked to stop and everything is saved; which of the
    two, the newest checkpoint's step says (`launch_record.last_step`), and the record (run.json). 2: refused input or
    configuration. 3: a loss that is not finite. 128 + n: signal n came before there was anything to save. Else 1.

    Relative paths of `config` are taken from `root`. `environment` adds to what the processes inherit. With `cluster` this
    is one machine's part, and `processes` counts those of all. Raises ValueError where the configuration cannot run with so
    many processes on this machine, its port is taken, or (AlreadyRunning) another launcher is training into the folder.
    """
    resolved = with_absolute_paths(config, root)
    resolved.check(processes)
    output = resolved.output
    output.mkdir(parents=True, exist_ok=True)
    if cluster is not None and cluster.node:
        return _run(resolved, processes, environment, cluster)
    with Hold(output):
        _require_port(resolved, cluster)
        replace_file(output / CONFIG, resolved.model_dump_json(indent=1) + "\n")
        record = LaunchRecord(
            pid=os.getpid(),
            started=own_start(),
            host=socket.gethostname(),
            launcher="slurm" if cluster else "local",
            job=cluster.attempt.partition("-")[0] if cluster else None,
            processes=processes,
            nodes=cluster.nodes if cluster else 1,
            status="running",
            began=time.time(),
            machine=this_machine(),
        )
        write_record(output, record)
        code = 1
        try:
            code = _run(resolved, processes, environment, cluster)
        finally:
            end = {"status": _ending(code, resolved), "exit_code": code, "ended": time.time()}
            with contextlib.suppress(OSError):  # a full disk has been told; the record then says running, of nobody alive
                write_record(output, record.model_copy(update=end))
    return code


def _ending(code: int, config: TrainConfig) -> Status:
    if code > 128 or (code == 0 and last_step(config.output) < config.steps):
        return "stopped"
    return "failed" if code else "finished"


def _run(config: TrainConfig, processes: int, environment: Mapping[str, str] | None, cluster: Cluster | None) -> int:
    status = config.output / (STATUS if cluster is None else f"{STATUS}-{cluster.node}")
    status.unlink(missing_ok=True)
    code, received = watch(_command(config, processes, cluster), _environment(config, status, environment))
    said = told(status)
    if said is not None:
        return said
    return 128 + received if code and received else code


def _command(config: TrainConfig, processes: int, cluster: Cluster | None) -> list[str]:
    command = [sys.executable, "-m", "megatron_nextflow.launching.torchrun", "--max-restarts", "0"]
    if cluster is not None:
        command += ["--nproc-per-node", str(processes // cluster.nodes), "--nnodes", str(cluster.nodes)]
        command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", cluster.rendezvous, "--rdzv-id", cluster.attempt]
    elif config.master_port is None:
        command += ["--nproc-per-node", str(processes), "--standalone"]  # takes a free port by itself
    else:
        command += ["--nproc-per-node", str(processes), "--nnodes", "1"]
        command += ["--master-addr", "127.0.0.1", "--master-port", str(config.master_port)]
    return [*command, "-m", "megatron_nextflow.train", "--config", str(config.output / CONFIG)]


def _require_port(config: TrainConfig, cluster: Cluster | None) -> None:
    """ValueError where the port on which the processes would meet is taken: torchrun would wait on a stranger."""
    port = config.master_port if cluster is None else int(cluster.rendezvous.rpartition(":")[2])
    if port is None:
        return
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch does: a port just left is free
                probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ValueError(
                    f"port {port} of this machine is taken by another program; set train.master_port to a free one"
                    + ("" if cluster else ", or leave it out to have one found")
                ) from None


def with_absolute_paths(config: TrainConfig, root: Path) -> TrainConfig:
    """The configuration with absolute paths, so that it means the same in any working directory."""

    def under(path: Path | None) -> Path | None:
        return None if path is None else (root / path).resolve()

    data = config.data
    tokenizers = {name: under(getattr(data, name)) for name in ("vision_tokenizer", "text_tokenizer")}

    def address(text: str | None) -> str | None:
        return text if text is None or "://" in text else str(under(Path(text)))

    return config.model_copy(
        update={
            "data": data.model_copy(update={"shards": address(data.shards), **tokenizers}),
            "checkpoint": config.checkpoint.model_copy(update={"copy_to": address(config.checkpoint.copy_to)}),
            "storage": config.storage.model_copy(
                update={"cache": under(config.storage.cache), "lock": under(config.storage.lock)}
            ),
            "output": under(config.output),
            "init_from": under(config.init_from),
            "slurm": config.slurm.model_copy(update={"setup": under(config.slurm.setup)}),
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
        "LOGLEVEL": "CRITICAL",  # torchrun's own; our torchrun says what ended a process
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        LAUNCHER: str(os.getpid()),
        STATUS_FILE: str(status),
    }
    if config.device != "cuda" and not gpu_present():
        values["TORCH_COMPILE_DISABLE"] = "1"  # compiling for a CPU takes longer than short trainings last
        values["CUDA_VISIBLE_DEVICES"] = ""
    return {**values, **(extra or {})}


def launch_by_file(file: Path, processes: int, cluster: Cluster | None = None) -> int:
    """`launch` with the configuration in `file`; returns its exit status, 2 with one line where it refuses."""
    try:
        config = TrainConfig.model_validate_json(file.read_bytes())
        return launch(config, Path.cwd(), processes, cluster=cluster)
    except (OSError, ValueError) as error:  # a ValidationError is a ValueError
        print(f"launch: {error}", file=sys.stderr, flush=True)
        return REFUSED
