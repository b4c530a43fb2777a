"""What is asked of a Slurm cluster's commands: submit a job, how it stands, stop it.

`squeue` knows jobs that wait or run, `sacct` those that ended, and a cluster may keep no accounts: then nobody knows, and
the training's own record (run.json) has the last word.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from megatron_nextflow.launching.slurm_script import NO_REQUEUE

WAITING = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "SUSPENDED"})
AT_WORK = frozenset({"RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED"})


class SlurmError(RuntimeError):
    """A Slurm command that is not there or refused; the message has its own words."""


def submit(script: Path) -> str:
    """Puts a job script into the queue; returns the job's number. Raises SlurmError."""
    return _ask("sbatch", "--parsable", str(script)).strip().partition(";")[0]


def state(job: str) -> str | None:
    """The job's state in Slurm's words (PENDING, RUNNING, COMPLETED, FAILED, …); None where the cluster no longer knows."""
    try:
        found = _ask("squeue", "--noheader", "--jobs", job, "--format", "%T").split()
    except SlurmError as error:
        if "Invalid job id" not in str(error):
            raise
        found = []  # a job that ended some minutes ago
    if not found:
        try:
            found = _ask("sacct", "--noheader", "--allocations", "--jobs", job, "--format", "State", "--parsable2").split()
        except SlurmError:
            return None
    return found[0] if found else None  # "CANCELLED by 1000" is one state


def stop(job: str, output: Path) -> None:
    """Has a running job save and end, and stay out of the queue; one that waits is taken out of it. Raises SlurmError."""
    if state(job) in WAITING:
        _ask("scancel", job)
        return
    (output / NO_REQUEUE).touch()
    _ask("scancel", "--batch", "--signal=USR1", job)


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise SlurmError(f"{command[0]} was not found: run this where Slurm's commands are") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not answer within a minute") from None
    if done.returncode:
        raise SlurmError(f"{command[0]}: {done.stderr.strip() or f'ended with status {done.returncode}'}")
    return done.stdout
