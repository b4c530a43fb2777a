"""A training that goes on without whoever watches it: a launcher in a session of its own, or a Slurm job.

The launcher is started detached and known by the record it writes (run.json), so a watcher that was killed finds it again
and never starts a second one; were it to try, the launcher itself would refuse (`launch_record.Hold`). The cost: what the
training prints goes to a log, logs/launch.log in its folder, and not to the terminal.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from nextflow_data.common.whole_files import replace_file

from megatron_nextflow.launching import slurm_queue
from megatron_nextflow.launching.exit_status import REFUSED
from megatron_nextflow.launching.launch_record import LaunchRecord, alive, read_record
from nextflow_orchestration.training.outcome import TrainingFailed, TrainingRefused
from nextflow_orchestration.training.prepare import Prepared
from nextflow_orchestration.training.slurm import queue

LOG = Path("logs") / "launch.log"
_REQUEST = ".requested.json"
_ASK_SECONDS = 15.0
"""Least time between two questions to a Slurm cluster."""


@dataclass
class LocalJob:
    """A launcher on this machine. `child` where this process started it."""

    output: Path
    record: LaunchRecord
    child: subprocess.Popen[bytes] | None = None

    def __str__(self) -> str:
        return f"process {self.record.pid}"

    waiting = False

    def at_work(self) -> bool:
        """Whether the launcher is there."""
        if self.child is not None:
            return self.child.poll() is None
        return alive(self.record)

    def stop(self) -> None:
        """Asks the training to save and stop."""
        if self.at_work():
            os.kill(self.record.pid, signal.SIGTERM)

    def ended(self) -> LaunchRecord:
        """The record after the end; failed, with no exit code, where the launcher was killed before it could say."""
        record = read_record(self.output) or self.record
        if record.pid == self.record.pid and record.status == "running":
            return record.model_copy(update={"status": "failed"})
        return record


@dataclass
class SlurmJob:
    """A job of a Slurm cluster, which waits, runs, and may return to the queue by itself."""

    output: Path
    job: str
    state: str | None = "PENDING"
    _asked: float = field(default=0.0, repr=False)

    def __str__(self) -> str:
        return f"Slurm job {self.job} ({self.state or 'no longer known'})"

    def at_work(self) -> bool:
        """Whether it runs or waits. Raises SlurmError."""
        if time.monotonic() - self._asked >= _ASK_SECONDS:
            self.state = slurm_queue.state(self.job)
            self._asked = time.monotonic()
        return self.state in slurm_queue.WAITING | slurm_queue.AT_WORK

    @property
    def waiting(self) -> bool:
        """Whether, when it was last asked, it waited to run."""
        return self.state in slurm_queue.WAITING

    def stop(self) -> None:
        """Asks the training to save and stop, and the job to stay out of the queue. Raises SlurmError."""
        slurm_queue.stop(self.job, self.output)

    def ended(self) -> LaunchRecord:
        """The record after the end; failed where the job ended in a way that its launcher could not tell."""
        record = read_record(self.output)
        assert record is not None  # written when the job was submitted
        if record.status in ("running", "submitted"):
            cancelled = self.state == "CANCELLED"
            return record.model_copy(update={"status": "stopped" if cancelled else "failed"})
        return record


Job = LocalJob | SlurmJob


def start_or_find(prepared: Prepared, processes: int | None, on_slurm: bool) -> tuple[Job, bool]:
    """The training at work in the folder, or one that is begun now; and whether it was found.

    Raises TrainingRefused for what cannot be trained, TrainingFailed where the launcher does not come up, SlurmError.
    """
    output = prepared.config.output
    record = read_record(output)
    if record is not None and record.job is not None and record.status != "finished":
        # Whatever the record says: a job that was stopped may wait in the queue to go on.
        job = SlurmJob(output, record.job)
        try:
            if job.at_work():
                return job, True
        except slurm_queue.SlurmError:
            if on_slurm:
                raise
    if record is not None and record.launcher == "local" and alive(record):
        return LocalJob(output, record), True
    if on_slurm:
        number, _ = queue(prepared)
        return SlurmJob(output, number), False
    return _start(prepared, processes or prepared.config.parallel.model_parallel)


def _start(prepared: Prepared, processes: int) -> tuple[Job, bool]:
    """Starts a launcher and waits until it has said who it is."""
    config = prepared.config
    try:
        config.check(processes)
    except ValueError as error:
        raise TrainingRefused(str(error)) from error
    log = config.output / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    request = config.output / _REQUEST
    replace_file(request, config.model_dump_json())
    command = [
        sys.executable,
        "-m",
        "megatron_nextflow.launch",
        "--config",
        str(request),
        "--processes",
        str(processes),
    ]
    with open(log, "ab") as sink:
        begin = sink.tell()
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
        )
    while True:
        record = read_record(config.output)
        if record is not None and record.pid == child.pid:
            return LocalJob(config.output, record, child), False
        code = child.poll()
        if code is not None:
            break
        time.sleep(0.05)
    if record is not None and alive(record):  # another one was faster
        return LocalJob(config.output, record), True
    if code == REFUSED:
        raise TrainingRefused(last_words(log, begin) or f"the launcher refused; see {log}")
    raise TrainingFailed(code, config.output)


def last_words(log: Path, begin: int = 0) -> str:
    """The last line of a log that says why something ended, without its prefix; empty where none does."""
    with open(log, "rb") as stream:
        stream.seek(begin)
        lines = stream.read().decode(errors="replace").splitlines()
    said = [line.partition(": ")[2] for line in lines if line.startswith(("launch: ", "train: "))]
    return said[-1] if said else ""
