"""Which GPU a task has: the one that Spark assigned to it, or in local mode its share of those that torch sees.

A stage whose tasks want a GPU asks for it by a resource profile, so that tasks of other stages hold none (Spark's
stage-level scheduling: standalone, YARN and Kubernetes). Local mode schedules cores only and refuses profiles; there tasks
take the machine's GPUs in turn by their partition, after a check that all tasks at once fit their shares. The cost: two
tasks that run at once may meet on one GPU while another has room.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nextflow_data.common.errors import RequestError

from nextflow_pipelines.contract.stage import StageError
from nextflow_pipelines.spark.cluster import is_local
from nextflow_pipelines.spark.config import SparkConfig

if TYPE_CHECKING:
    from pyspark.resource import ResourceProfile

GPU = "gpu"
"""Spark's name of the resource."""


class GpuError(StageError, RequestError):
    """GPUs were asked for that are not there: a wrong setting, which trying again does not cure."""


@dataclass(frozen=True)
class TaskGpus:
    """The share of a GPU that each task of a stage has; 0: none. Made in the driver, asked in a task."""

    per_task: float = 0.0
    local: bool = True
    tasks: int = 1
    """Tasks that run at once in local mode."""

    @classmethod
    def of(cls, config: SparkConfig) -> TaskGpus:
        """As the recipe's `spark` section asks."""
        return cls(config.gpus_per_task, is_local(config.master), _local_tasks(config.master))

    def check(self) -> None:
        """Before work: GpuError where local mode's tasks do not fit the GPUs that torch sees. A cluster's tasks check
        themselves, each where it runs."""
        if not self.per_task or not self.local:
            return
        count = _visible()
        shares = int(1 / self.per_task + 1e-9)
        if self.tasks > count * shares:
            raise GpuError(
                f"spark.gpus_per_task {self.per_task:g} makes {shares} shares of each of {count} GPUs, and {self.tasks} "
                f"tasks run at once: set spark.master to local[{count * shares}], or spark.gpus_per_task to "
                f"{_share(-(-self.tasks // count)):g} or less"
            )

    def profile(self) -> ResourceProfile | None:
        """What Spark is to give each task of a job; None where it schedules no GPUs."""
        if not self.per_task or self.local:
            return None
        from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests

        return ResourceProfileBuilder().require(TaskResourceRequests().cpus(1).resource(GPU, self.per_task)).build

    def device(self) -> str:
        """In a task: torch's name of its device. GpuError where Spark assigned no GPU, or one that torch does not see."""
        if not self.per_task:
            return "cpu"
        from pyspark import TaskContext

        context = TaskContext.get()
        count = _visible()
        if self.local:
            return f"cuda:{0 if context is None else context.partitionId() % count}"
        return _assigned({} if context is None else context.resources(), count)


def _assigned(resources: Mapping[str, Any], count: int) -> str:
    """The device of the first GPU in a task's resources."""
    if GPU not in resources or not resources[GPU].addresses:
        raise GpuError(
            "Spark assigned no GPU to this task: executors have none; say in spark.options how they find them "
            "(spark.executor.resource.gpu.discoveryScript)"
        )
    address = resources[GPU].addresses[0]
    if not address.isdecimal() or int(address) >= count:
        raise GpuError(
            f"Spark assigned GPU {address!r} and torch sees {count}: the discovery script must name GPUs by the numbers "
            "that CUDA gives them"
        )
    return f"cuda:{int(address)}"


def _visible() -> int:
    """How many GPUs torch sees, at least one."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise GpuError(
            "spark.gpus_per_task asks for GPUs and torch sees none: set it to 0, or install a torch with CUDA and its "
            f"driver (this is torch {torch.__version__})"
        )
    return count


def _share(tasks: int) -> float:
    """A share that so many tasks find room for on one GPU: to three places, rounded down."""
    return math.floor(1000 / tasks) / 1000


def _local_tasks(master: str) -> int:
    """N of `local[N]`; every core for `local[*]`."""
    found = re.match(r"local\[(\d+|\*)", master)
    if found is None:
        return 1
    return os.cpu_count() or 1 if found[1] == "*" else int(found[1])
