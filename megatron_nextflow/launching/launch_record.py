"""run.json: which process attends a training, and how the training ended.

Written by the launcher into the training's folder, read by whoever wants to know whether a training is at work there: a flow
that was restarted, `mnf page`, a second `mnf train`. A process is known by its number together with its start time, because
numbers are used again. That two launchers never train into one folder is not left to this file: they hold a lock (`Hold`).
The cost: on a file system whose locks do not reach over machines, only launchers of one machine keep out of each other's
way, and on one that has none, nobody does.
"""

from __future__ import annotations

import errno
import fcntl
import socket
from pathlib import Path
from typing import IO, Literal

from nextflow_data.common.errors import RequestError
from nextflow_data.common.section import Section
from nextflow_data.common.whole_files import replace_file
from pydantic import ValidationError

from megatron_nextflow.runtime.machine import Machine
from megatron_nextflow.runtime.training_folder import RECORD

LOCK = ".launcher"

Status = Literal["submitted", "running", "finished", "stopped", "failed"]


class LaunchRecord(Section):
    """run.json. Times are seconds since 1970."""

    pid: int
    """The launcher's process; 0 for a Slurm job that has not begun."""
    started: float
    """When that process began."""
    host: str
    launcher: Literal["local", "slurm"] = "local"
    job: str | None = None
    """The Slurm job."""
    processes: int
    """Training processes on all machines together."""
    nodes: int = 1
    status: Status
    """stopped: told to stop before the last step, with everything saved unless `exit_code` is not 0."""
    exit_code: int | None = None
    began: float
    ended: float | None = None
    machine: Machine | None = None
    """The launcher's machine; for a Slurm job that has not begun, none."""


class AlreadyRunning(RequestError):
    """Another launcher is training into this folder."""


def own_start() -> float:
    """When this process began, as `LaunchRecord.started` has it."""
    import psutil  # not in a base install, which reads records too

    return float(psutil.Process().create_time())


def read_record(output: Path) -> LaunchRecord | None:
    """A training folder's record; None where there is none that can be read."""
    try:
        return LaunchRecord.model_validate_json((output / RECORD).read_bytes())
    except (OSError, ValidationError):
        return None


def write_record(output: Path, record: LaunchRecord) -> None:
    """Replaces the record of a training folder in one move."""
    replace_file(output / RECORD, record.model_dump_json(indent=1) + "\n", durable=False)


def alive(record: LaunchRecord) -> bool:
    """Whether the launcher of a record is at work on this machine."""
    here = record.status == "running" and record.host == socket.gethostname()
    return here and process_alive(record.pid, record.started)


def process_alive(pid: int, started: float) -> bool:
    """Whether the process that had this number and start time is there still."""
    import psutil

    try:
        process = psutil.Process(pid)
        # A start time is reckoned from the machine's boot, and that from a clock that may be set meanwhile.
        return abs(process.create_time() - started) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Hold:
    """The right to train into a folder, held while the context lasts and given up by the system however the process ends."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self._file: IO[str] | None = None

    def __enter__(self) -> Hold:
        self._file = open(self.output / LOCK, "a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            record = read_record(self.output)
            who = f"process {record.pid} on {record.host}" if record is not None else "another process"
            raise AlreadyRunning(
                f"{who} is training into {self.output}: wait for it, stop it with SIGTERM (it saves), or name another folder"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()
