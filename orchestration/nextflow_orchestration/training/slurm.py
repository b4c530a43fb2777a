"""A training as a job of a Slurm cluster: its script, and its place in the queue."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

from megatron_nextflow.launching import slurm_queue, slurm_script
from megatron_nextflow.launching.launch_record import LaunchRecord, read_record, write_record
from nextflow_orchestration.training.outcome import TrainingRefused
from nextflow_orchestration.training.prepare import Prepared


def queue(prepared: Prepared) -> tuple[str, Path]:
    """Writes the job script and queues it; returns the job's number and the script. Raises TrainingRefused, SlurmError."""
    output = prepared.config.output
    record = read_record(output)
    if record is not None and record.job is not None:
        state = slurm_queue.state(record.job)
        if state in slurm_queue.WAITING | slurm_queue.AT_WORK:
            raise TrainingRefused(
                f"Slurm job {record.job} ({state}) trains into {output} already: let it, `scancel` it, or name another"
            )
    script = write_script(prepared)
    job = slurm_queue.submit(script)
    now = time.time()
    submitted = LaunchRecord(
        pid=0,
        started=now,
        host=socket.gethostname(),
        launcher="slurm",
        job=job,
        processes=slurm_script.processes(prepared.config),
        nodes=prepared.config.slurm.nodes,
        status="submitted",
        began=now,
    )
    begun = read_record(output)
    if begun is None or begun.job != job:  # else it runs already and says so itself
        write_record(output, submitted)
    return job, script


def write_script(prepared: Prepared) -> Path:
    """The job script, which ends by writing the training page where this program's interpreter is on the nodes too."""
    config = prepared.config
    here = config.slurm.container is None and config.slurm.python is None
    page = (sys.executable, "-m", "nextflow_orchestration.cli", "page", str(config.output))
    try:
        return slurm_script.write_script(config, Path.cwd(), prepared.name, page if here else ())
    except ValueError as error:
        raise TrainingRefused(str(error)) from error
