"""Where a Slurm cluster runs a training: the `slurm` part of a training recipe.

Needs neither torch nor Slurm.
"""

from __future__ import annotations

from nextflow_data.config import Section
from pydantic import Field


class SlurmConfig(Section):
    """Options of the sbatch script that `mnf train --launcher slurm` writes."""

    nodes: int = Field(default=1, ge=1)
    gpus_per_node: int = Field(default=8, ge=1)
    """Also the number of processes on a node."""
    cpus_per_gpu: int = Field(default=8, ge=1)
    time: str = "24:00:00"
    partition: str | None = None
    account: str | None = None
