"""Where a Slurm cluster runs a training: the `slurm` part of a training recipe.

Every value ends up in a job script, so each is held to a form that can hold nothing but itself: a recipe cannot bring shell
code along. What a site needs done before training begins stands in a script of its own (`setup`). Needs neither torch nor
Slurm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from nextflow_data.common.section import Section
from pydantic import Field, StringConstraints

Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.,:=+@%/&|*()\[\]-]+$")]
"""A value of an sbatch option: no blanks, no quotes, nothing a shell would expand."""
Option = Annotated[str, StringConstraints(pattern=r"^--[a-z][a-z0-9-]*(=[A-Za-z0-9_.,:=+@%/&|*()\[\]-]+)?$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f]*$")]
"""Anything that fits into one line; it is quoted for the shell."""


class SlurmConfig(Section):
    """Options of the sbatch script that `mnf train --launcher slurm` writes."""

    nodes: int = Field(default=1, ge=1)
    gpus_per_node: int = Field(default=8, ge=1)
    """Also the number of processes on a node."""
    cpus_per_gpu: int = Field(default=8, ge=1)
    time: str = Field(default="24:00:00", pattern=r"^(\d+-)?\d+(:\d{1,2}){0,2}$")
    """Limit of one run of the job, as sbatch takes it: minutes, hours:minutes:seconds or days-hours."""
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    reservation: Word | None = None
    constraint: Word | None = None
    """Features that the nodes must have, as in `h100&ib`."""
    exclusive: bool = False
    """Whole nodes, whatever else could run there."""
    mem: str | None = Field(default=None, pattern=r"^\d+[KMGT]?$")
    """Memory of a node; 0 is all of it, None the partition's default."""
    requeue: bool = True
    """Put the job back into the queue when its time is up or it is pre-empted, to go on from what it saved."""
    signal_seconds: int = Field(default=300, ge=1, le=65535)
    """How long before its time is up the job begins to save: longer than a step and a checkpoint take."""
    modules: tuple[Word, ...] = ()
    """Environment modules to load, in order."""
    setup: Path | None = None
    """A script of the site to be sourced before training: interconnect, proxies, an environment."""
    python: Path | None = None
    """The interpreter on the nodes, or in the container; None is the one that writes the script."""
    container: Line | None = None
    """An image for `srun --container-image` (needs NVIDIA's pyxis plugin)."""
    container_mounts: tuple[Word, ...] = ()
    """HOST:CONTAINER folders. The training's folder, the shards and the tokenizers must be found under their own paths."""
    environment: dict[Variable, Line] = Field(default={"NCCL_DEBUG": "WARN", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"})
    """Variables of the training processes. The defaults have NCCL say what goes wrong, and end a process whose communication
    failed. A site may need NCCL_SOCKET_IFNAME (network interfaces) or NCCL_IB_HCA (InfiniBand adapters) as well; what is set
    here replaces the defaults."""
    options: tuple[Option, ...] = ()
    """More options of sbatch, as in `--mail-type=END`."""
