"""A real cluster: a standalone master and two workers, each in a folder of its own, and drivers that are processes.

Whatever is killed, the bytes are those of one machine. What a cluster cannot do is told.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from nextflow_data.common.whole_files import file_sha256
from nextflow_data.storage.config import StorageConfig
from nextflow_data.storage.store_path import StorePath
from nextflow_pipelines.contract.stage import read_manifest, stage_file
from nextflow_pipelines.registry import STAGES
from nextflow_pipelines.spark.cluster import ClusterRefused, reach
from nextflow_pipelines.spark.config import SparkConfig
from nextflow_pipelines.spark.context import StageResult
from nextflow_pipelines.spark.session import spark_settings
from nextflow_pipelines.spark.standalone import Standalone

pytestmark = pytest.mark.timeout(1800)  # the first test makes what all are compared with
SCRIPT = Path(__file__).with_name("on_cluster.py")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Standalone]:
    """A master and two workers."""
    with Standalone(tmp_path / "cluster") as started:
        yield started


class Driver:
    """A driver at work, in a folder of its own, on the root `run` in it or one in a store; its `with` ends it."""

    def __init__(
        self, cluster: Standalone, folder: Path, last: str, source: Path, store: StorePath | None = None, **settings: Any
    ) -> None:
        page = {"spark.master.ui.port": cluster.page.rpartition(":")[2]}
        options = page | settings.pop("options", {})
        spark = {"master": cluster.master, "files": 3, "partitions": 4, "wait_seconds": 600, "options": options} | settings
        storage = store.config if store is not None else StorageConfig()
        folder.mkdir(exist_ok=True)
        self.errors = folder / "errors"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, SCRIPT, json.dumps(spark), storage.model_dump_json(), str(store or "run"), last, source],
                cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def lines(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout is not None
        return map(json.loads, self.process.stdout)

    def end(self, at: Callable[[dict[str, Any]], bool] = lambda line: False, do: Callable[[], None] = lambda: None) -> str:
        """Waits for its end, and does `do` at the first line for which `at`; returns what it said of errors."""
        done = False
        for line in self.lines():
            if not done and at(line):
                do()
                done = True
        self.process.wait()
        return self.errors.read_text()


def tree(root: Path) -> dict[str, str]:
    """Every committed file under a root."""
    return {
        p.relative_to(root).as_posix(): file_sha256(p)
        for folder in root.iterdir()
        if folder.name.rsplit("-", 1)[0] in STAGES
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def expected(root: Path, last: str) -> dict[str, str]:
    """What one machine has made up to a stage."""
    upto = list(STAGES)[: list(STAGES).index(last) + 1]
    return {name: sha for name, sha in tree(root).items() if name.split("/")[0].rsplit("-", 1)[0] in upto}


def working(stage: str) -> Callable[[dict[str, Any]], bool]:
    """A stage has a unit done, and others to do."""
    return lambda line: line["stage"] == stage and 0 < line["done"] < (line["total"] or 0)


@pytest.mark.slow
def test_a_worker_dies_in_mid_stage_and_the_shards_are_those_of_one_machine(
    results: Mapping[str, StageResult], root: Path, warc: Path, cluster: Standalone, tmp_path: Path
) -> None:
    notes = []

    def at(line: dict[str, Any]) -> bool:
        notes.append(line["note"])
        return working("filter")(line)

    with Driver(cluster, tmp_path / "driver", "pack", warc) as driver:
        errors = driver.end(at, lambda: cluster.kill_worker(0))
        assert driver.process.returncode == 0, errors
    assert cluster.workers[0].poll() == -signal.SIGKILL, "it was not killed"
    assert any("Spark's page: http://" in note for note in notes)
    assert tree(tmp_path / "driver" / "run") == tree(root)


def kill_python(cluster: Standalone) -> None:
    """Ends by -9 one Python process that does a task, as soon as there is one."""
    while True:
        for worker in cluster.workers:
            for process in psutil.Process(worker.pid).children(recursive=True):
                parent = process.parent()
                if parent and all("pyspark.daemon" in one.cmdline() for one in (process, parent)):
                    process.kill()
                    return
        time.sleep(0.05)


@pytest.mark.slow
def test_a_python_process_dies_in_mid_task_and_the_bytes_are_those_of_one_machine(
    results: Mapping[str, StageResult], root: Path, warc: Path, cluster: Standalone, tmp_path: Path
) -> None:
    with Driver(cluster, tmp_path / "driver", "caption", warc) as driver:
        errors = driver.end(working("filter"), lambda: kill_python(cluster))
        assert driver.process.returncode == 0, errors
    assert tree(tmp_path / "driver" / "run") == expected(root, "caption")


@pytest.mark.slow
def test_the_driver_dies_and_is_started_again_and_the_bytes_are_those_of_one_machine(
    results: Mapping[str, StageResult], root: Path, warc: Path, cluster: Standalone, tmp_path: Path
) -> None:
    with Driver(cluster, tmp_path / "driver", "caption", warc) as driver:
        driver.end(working("filter"), lambda: os.kill(driver.process.pid, signal.SIGKILL))
        assert driver.process.returncode == -signal.SIGKILL
    with Driver(cluster, tmp_path / "driver", "caption", warc) as driver:
        errors = driver.end()
        assert driver.process.returncode == 0, errors
    assert tree(tmp_path / "driver" / "run") == expected(root, "caption")


@pytest.mark.slow
def test_with_its_root_in_a_bucket_a_worker_dies_and_the_files_are_those_of_one_machine(
    results: Mapping[str, StageResult], warc: Path, s3_root: StorePath, tmp_path: Path
) -> None:
    # The workers have the credentials that are in the environment now, as machines have theirs.
    with (
        Standalone(tmp_path / "cluster") as cluster,
        Driver(cluster, tmp_path / "driver", "caption", warc, s3_root) as driver,
    ):
        errors = driver.end(working("filter"), lambda: cluster.kill_worker(0))
        assert driver.process.returncode == 0, errors
    for name in ("ingest", "filter", "dedup", "caption"):
        mine = results[name].dir
        its = s3_root / mine.name
        entries = read_manifest(mine)["files"]
        assert read_manifest(its) == read_manifest(mine)
        assert all(stage_file(its, entry).read_bytes() == stage_file(mine, entry).read_bytes() for entry in entries)


WITHOUT = """
import pathlib, sys
names = ("nextflow_data", "nextflow_tokenize", "nextflow_pipelines", "nextflow_orchestration", "megatron_nextflow")
sys.path[:] = [place for place in sys.path if not any(pathlib.Path(place, name).is_dir() for name in names)]
"""


@pytest.mark.slow
def test_executors_without_our_packages_are_sent_them(
    results: Mapping[str, StageResult], root: Path, warc: Path, cluster: Standalone, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}:$PYTHONPATH" exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with Driver(cluster, tmp_path / "driver", "ingest", warc, python=str(python)) as driver:
        errors = driver.end()
        assert driver.process.returncode == 1 and "set spark.ship to true" in errors
    with Driver(cluster, tmp_path / "driver", "filter", warc, python=str(python), ship=True) as driver:
        errors = driver.end()
        assert driver.process.returncode == 0, errors
    assert tree(tmp_path / "driver" / "run") == expected(root, "filter")


@pytest.mark.slow
def test_what_a_cluster_cannot_give_is_told(warc: Path, cluster: Standalone, tmp_path: Path) -> None:
    options = {"spark.executor.memory": "4g"}
    with Driver(cluster, tmp_path / "driver", "ingest", warc, options=options) as driver:
        errors = driver.end()
        assert "an executor asks for 4,096 MiB, and the largest of 2 workers of spark://127.0.0.1" in errors
        assert "has 1,024: lower spark.executor.memory in spark.options" in errors
    cluster.kill_worker(0)
    cluster.kill_worker(1)
    with Driver(cluster, tmp_path / "driver", "ingest", warc, wait_seconds=150) as driver:
        errors = driver.end()
        assert "no executor came from spark://127.0.0.1" in errors and "Finished units are kept" in errors


def test_a_master_that_is_not_there_is_told_before_spark_is_started() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert reach(f"spark://127.0.0.1:{port}") == "127.0.0.1"
        assert reach(f"k8s://https://127.0.0.1:{port}") == "127.0.0.1"
    for master, said in (
        (f"spark://127.0.0.1:{port}", f"nothing listens at 127.0.0.1:{port}: start the cluster, or correct the address"),
        ("spark://no-such-host.invalid:7077", "no host is known as no-such-host.invalid"),
        ("spark://host", "it must be spark://HOST:PORT"),
        ("mesos://host:5050", "known are local"),
    ):
        with pytest.raises(ClusterRefused, match=said):
            reach(master)
    assert reach("local[2]") is None


def test_yarn_without_its_settings_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HADOOP_CONF_DIR", raising=False)
    monkeypatch.delenv("YARN_CONF_DIR", raising=False)
    with pytest.raises(ClusterRefused, match="HADOOP_CONF_DIR"):
        reach("yarn")
    monkeypatch.setenv("YARN_CONF_DIR", "/etc/hadoop")
    assert reach("yarn") is None


def test_a_cluster_is_told_the_address_by_which_the_driver_was_seen_unless_the_recipe_names_one() -> None:
    master = "spark://host:7077"
    assert spark_settings(SparkConfig(master=master), "10.0.0.9")["spark.driver.host"] == "10.0.0.9"
    named = SparkConfig(master=master, driver_host="driver.example")
    assert spark_settings(named, "10.0.0.9")["spark.driver.host"] == "driver.example"
    assert spark_settings(SparkConfig(master=master))["spark.ui.enabled"] == "true"
    local = spark_settings(SparkConfig())
    assert "spark.driver.host" not in local and local["spark.ui.enabled"] == "false"
