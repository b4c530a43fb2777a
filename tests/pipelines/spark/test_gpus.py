"""Which GPU a task has, and what is asked of Spark for it. No GPU is needed: Spark is told of some that are not there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyspark
import pytest
import torch
from nextflow_pipelines.spark.cluster import is_local
from nextflow_pipelines.spark.config import SparkConfig
from nextflow_pipelines.spark.gpus import GpuError, TaskGpus
from nextflow_pipelines.spark.session import spark_settings
from pydantic import ValidationError

CLUSTER = TaskGpus(per_task=0.5, local=False)


def machine(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    """torch sees so many GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


def task(monkeypatch: pytest.MonkeyPatch, partition: int = 0, addresses: list[str] | None = None) -> None:
    """This process is a task, with GPUs that Spark assigned."""
    resources = {} if addresses is None else {"gpu": SimpleNamespace(name="gpu", addresses=addresses)}
    context = SimpleNamespace(partitionId=lambda: partition, resources=lambda: resources)
    monkeypatch.setattr(pyspark.TaskContext, "get", lambda: context)


def test_without_gpus_everything_is_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 2)
    task(monkeypatch, 0, ["1"])
    gpus = TaskGpus.of(SparkConfig())
    gpus.check()
    assert gpus.device() == "cpu" and gpus.profile() is None
    assert not [key for key in spark_settings(SparkConfig()) if "gpu" in key]


def test_on_a_cluster_a_task_has_the_gpu_that_spark_assigned(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 4)
    task(monkeypatch, 7, ["3", "1"])
    assert CLUSTER.device() == "cuda:3"
    CLUSTER.check()  # the driver of a cluster needs none


@pytest.mark.parametrize(
    ("gpus", "addresses", "message"),
    [
        (0, ["0"], r"torch sees none: set it to 0, or install"),
        (2, None, r"Spark assigned no GPU to this task: .*discoveryScript"),
        (2, [], r"Spark assigned no GPU"),
        (2, ["2"], r"Spark assigned GPU '2' and torch sees 2"),
        (2, ["GPU-5ed1"], r"Spark assigned GPU 'GPU-5ed1' .* by the numbers"),
    ],
)
def test_a_gpu_that_is_not_there_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, gpus: int, addresses: list[str] | None, message: str
) -> None:
    machine(monkeypatch, gpus)
    task(monkeypatch, 0, addresses)
    with pytest.raises(GpuError, match=message) as caught:
        CLUSTER.device()
    assert "\n" not in str(caught.value)


def test_in_local_mode_tasks_take_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 2)
    gpus = TaskGpus.of(SparkConfig(master="local[4]", gpus_per_task=0.5))
    gpus.check()
    found = []
    for partition in range(4):
        task(monkeypatch, partition)
        found.append(gpus.device())
    assert found == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"] and gpus.profile() is None


@pytest.mark.parametrize(
    ("count", "share", "message"),
    [(0, 1.0, "torch sees none"), (1, 1.0, r"local\[1\], or spark.gpus_per_task to 0.333"), (2, 0.7, r"local\[2\]")],
)
def test_local_mode_refuses_more_tasks_than_shares(
    monkeypatch: pytest.MonkeyPatch, count: int, share: float, message: str
) -> None:
    machine(monkeypatch, count)
    with pytest.raises(GpuError, match=message):
        TaskGpus.of(SparkConfig(master="local[3]", gpus_per_task=share)).check()


@pytest.mark.parametrize("tasks", [1, 2, 3, 6, 7, 32])
def test_the_share_that_a_refusal_names_is_one_that_fits(monkeypatch: pytest.MonkeyPatch, tasks: int) -> None:
    machine(monkeypatch, 1)
    master = f"local[{tasks + 1}]"
    with pytest.raises(GpuError, match="or less") as caught:
        TaskGpus.of(SparkConfig(master=master, gpus_per_task=1)).check()
    named = float(str(caught.value).split()[-3])
    TaskGpus.of(SparkConfig(master=master, gpus_per_task=named)).check()


def test_shares_are_of_one_gpu() -> None:
    for wrong in (-0.5, 2):
        with pytest.raises(ValidationError):
            SparkConfig(gpus_per_task=wrong)
    assert all(is_local(master) for master in ("local", "local[*]", "local[2,3]"))
    assert not any(is_local(master) for master in ("local-cluster[1,1,1024]", "spark://h:7077", "yarn"))


def test_a_cluster_is_asked_for_executors_with_gpus_and_only_the_stage_for_a_share(session: Any) -> None:
    config = SparkConfig(master="spark://host:7077", gpus_per_task=0.25, options={"spark.executor.resource.gpu.vendor": "v"})
    settings = spark_settings(config)
    assert settings["spark.executor.resource.gpu.amount"] == "1" and settings["spark.executor.resource.gpu.vendor"] == "v"
    assert "spark.task.resource.gpu.amount" not in settings
    more = config.model_copy(update={"options": {"spark.executor.resource.gpu.amount": "8"}})
    assert spark_settings(more)["spark.executor.resource.gpu.amount"] == "8"
    assert "spark.executor.resource.gpu.amount" not in spark_settings(SparkConfig(master="local[2]", gpus_per_task=0.5))
    profile = TaskGpus.of(config).profile()
    assert profile is not None and not profile.executorResources
    assert {name: request.amount for name, request in profile.taskResources.items()} == {"cpus": 1.0, "gpu": 0.25}


SCRIPT = """
import json, sys
from pathlib import Path
from nextflow_pipelines.spark.config import SparkConfig
from nextflow_pipelines.spark.context import RunContext
from nextflow_pipelines.spark.gpus import TaskGpus
from nextflow_pipelines.spark.runner import Unit, run_units
from nextflow_pipelines.contract.stage import StagePlan
from nextflow_pipelines.contract.work import open_stage
import pyarrow as pa

def seen(payload, out):
    from pyspark import TaskContext
    resources = TaskContext.get().resources()
    out.out.facts["gpu"] = resources["gpu"].addresses if "gpu" in resources else None

root, discovery = Path(sys.argv[1]), sys.argv[2]
options = {
    "spark.executor.memory": "512m", "spark.worker.resource.gpu.amount": "1",
    "spark.worker.resource.gpu.discoveryScript": discovery, "spark.ui.showConsoleProgress": "false",
}
spark = SparkConfig(master="local-cluster[1,2,1024]", gpus_per_task=0.5, options=options)
ctx = RunContext(root, spark)
for name, gpus in (("with", TaskGpus.of(spark)), ("without", None)):
    with open_stage(root, StagePlan(name, 1, {}, {})) as work:
        units = [Unit(f"u-{n}", n) for n in range(3)]
        names = run_units(ctx.session, work, units, seen, {}, gpus=gpus)
        print(json.dumps([record["facts"]["gpu"] for record in work.records(names)]))
(Path(root) / "app").write_text(ctx.session().sparkContext.applicationId)
ctx.close()
"""


@pytest.mark.slow
def test_on_a_cluster_of_processes_only_the_tasks_that_ask_have_a_gpu(tmp_path: Path) -> None:
    discovery = tmp_path / "gpus.sh"
    discovery.write_text('#!/bin/sh\necho \'{"name": "gpu", "addresses": ["5"]}\'\n')
    discovery.chmod(0o755)
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run([sys.executable, script, tmp_path, discovery], capture_output=True, text=True, check=False)
    # Spark's workers leave their folder beside Spark.
    work = Path(pyspark.__file__).parent / "work"
    if (tmp_path / "app").exists():
        shutil.rmtree(work / (tmp_path / "app").read_text(), ignore_errors=True)
        with suppress(OSError):
            work.rmdir()
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert found == [[["5"], ["5"], ["5"]], [None, None, None]]
