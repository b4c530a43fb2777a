"""A real cluster: a standalone master and two workers, each in a folder of its own, and drivers that are processes.

Whatever is killed, the bytes are those of one machine. What a cluster cannot do is told. Nothing is killed by the clock:
a rule holds one document while a file is there, so what is killed is at work on it, and all else of its stage is done.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from nextflow_data.common.whole_files import file_sha256
from nextflow_data.storage.config import StorageConfig
from nextflow_data.storage.store_path import StorePath
from nextflow_pipelines.contract.stage import find_committed, read_manifest, stage_file
from nextflow_pipelines.registry import STAGES
from nextflow_pipelines.spark.standalone import Standalone
from s3_server import S3Server

pytestmark = pytest.mark.timeout(1800)  # only against hanging: the first test starts what all use
SCRIPT = Path(__file__).with_name("on_cluster.py")
LAST = "caption"
HELD = '''
import os, time
from pathlib import Path
from nextflow_data.common.section import Section
from nextflow_data.rules.rule import TextRule, Verdict, rule

@rule
class Held(TextRule[Section]):
    """Waits on the fourth page while the file is there, and says in it which process that is."""

    name, Config = "held", Section

    def judge(self, text, document):
        file = Path(os.environ.get("HOLD", "nowhere"))
        if document["source"]["address"].endswith("/3.html") and file.exists():
            file.write_text(f"{os.getpid()} ")
            while file.exists():
                time.sleep(0.1)
        return Verdict()
'''


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the rule is installed, for drivers and workers."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "held.py").write_text(HELD)
    (folder / "held-1.0.dist-info").mkdir()
    (folder / "held-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: held\nVersion: 1.0\n")
    (folder / "held-1.0.dist-info" / "entry_points.txt").write_text("[nextflow.rules]\nheld = held:Held\n")
    return folder


def with_package(package: Path) -> str:
    return os.pathsep.join([str(package), *([os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else [])])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, package: Path, s3_server: S3Server) -> Iterator[Standalone]:
    """The cluster of all tests; its workers have the store's credentials in their environment, as machines have theirs."""
    folder = tmp_path_factory.mktemp("cluster")
    environment = {"PYTHONPATH": with_package(package), "HOLD": str(folder / "hold"), **s3_server.environment()}
    with Standalone(folder, environment=environment, seconds=400) as started:
        yield started


@pytest.fixture
def cluster(shared: Standalone) -> Standalone:
    """A master and two workers that live, or are about to."""
    for _ in range(2 - sum(worker.poll() is None for worker in shared.workers)):
        shared.add_worker()
    return shared


class Hold:
    """While its `with` lasts, or until `release`, the fourth page is held."""

    def __init__(self, cluster: Standalone) -> None:
        self.cluster, self.file = cluster, cluster.folder / "hold"

    def __enter__(self) -> Hold:
        self.file.touch()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        self.file.unlink(missing_ok=True)

    def process(self, driver: Driver, before: int | None = None) -> int:
        """Waits for a process (another than `before`) that is at work on the page while all else of its stage is done."""
        for line in driver.lines():
            said = self.file.read_text()
            others = line["stage"] == "filter" and line["note"].startswith("3/3") and line["done"] == line["total"] - 1
            if others and said.endswith(" ") and int(said) != before:
                return int(said)
        raise AssertionError(driver.end())

    def kill_worker_of(self, process: int) -> None:
        """Ends the worker that a process belongs to, by -9."""
        for number, worker in enumerate(self.cluster.workers):
            if worker.poll() is None and process in {one.pid for one in psutil.Process(worker.pid).children(recursive=True)}:
                self.cluster.kill_worker(number)
                assert worker.poll() == -signal.SIGKILL
                return
        raise AssertionError("no worker has the process")


class Driver:
    """A driver at work, in a folder of its own, on the root `run` in it or one in a store; its `with` ends it."""

    def __init__(
        self,
        folder: Path,
        package: Path,
        source: Path,
        cluster: Standalone | None = None,
        last: str = LAST,
        store: StorePath | None = None,
        **settings: Any,
    ) -> None:
        spark: dict[str, Any] = {"files": 3, "partitions": 4}
        if cluster is not None:
            page = {"spark.master.ui.port": cluster.page.rpartition(":")[2]}
            spark |= {"master": cluster.master, "wait_seconds": 400, "options": page | settings.pop("options", {})}
        storage = store.config if store is not None else StorageConfig()
        folder.mkdir(exist_ok=True)
        self.errors = folder / "errors"
        sections = [json.dumps(spark | settings), storage.model_dump_json()]
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, SCRIPT, *sections, str(store or "run"), last, source],
                cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True,
                env=os.environ | {"PYTHONPATH": with_package(package)},
            )  # fmt: skip

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def lines(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout is not None
        for line in iter(self.process.stdout.readline, ""):
            yield json.loads(line)

    def end(self) -> str:
        """Waits for its end; returns what it said of errors."""
        for _ in self.lines():
            pass
        self.process.wait()
        return self.errors.read_text()

    def succeed(self) -> None:
        errors = self.end()
        assert self.process.returncode == 0, errors


def tree(root: Path) -> dict[str, str]:
    """Every committed file under a root."""
    return {
        p.relative_to(root).as_posix(): file_sha256(p)
        for folder in root.iterdir()
        if folder.name.rsplit("-", 1)[0] in STAGES
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, package: Path, small_warc: Path) -> Path:
    """The root that one machine makes."""
    folder = tmp_path_factory.mktemp("alone")
    with Driver(folder, package, small_warc) as driver:
        driver.succeed()
    return folder / "run"


@pytest.mark.slow
def test_a_python_process_and_then_a_worker_die_in_mid_task_and_the_bytes_are_those_of_one_machine(
    alone: Path, small_warc: Path, package: Path, cluster: Standalone, tmp_path: Path
) -> None:
    with Hold(cluster) as hold, Driver(tmp_path, package, small_warc, cluster) as driver:
        process = hold.process(driver)
        os.kill(process, signal.SIGKILL)
        hold.kill_worker_of(hold.process(driver, before=process))
        hold.release()
        notes = [line["note"] for line in driver.lines()]
        driver.succeed()
    assert any("Spark's page: http://" in note for note in notes)
    assert tree(tmp_path / "run") == tree(alone)


@pytest.mark.slow
def test_the_driver_dies_and_is_started_again_and_the_bytes_are_those_of_one_machine(
    alone: Path, small_warc: Path, package: Path, cluster: Standalone, tmp_path: Path
) -> None:
    with Hold(cluster) as hold, Driver(tmp_path, package, small_warc, cluster) as driver:
        hold.process(driver)
        driver.process.kill()
        driver.end()
    with Driver(tmp_path, package, small_warc, cluster) as driver:
        driver.succeed()
    assert tree(tmp_path / "run") == tree(alone)
    (judged,) = map(json.loads, (tmp_path / "run" / "metrics" / "filter.jsonl").read_text().splitlines())
    assert judged["kept_units"] >= 2


@pytest.mark.slow
def test_with_its_root_in_a_bucket_a_worker_dies_and_the_files_are_those_of_one_machine(
    alone: Path, small_warc: Path, package: Path, cluster: Standalone, s3_root: StorePath, tmp_path: Path
) -> None:
    with Hold(cluster) as hold, Driver(tmp_path, package, small_warc, cluster, store=s3_root) as driver:
        hold.kill_worker_of(hold.process(driver))
        hold.release()
        driver.succeed()
    for name in list(STAGES)[: list(STAGES).index(LAST) + 1]:
        (mine,) = find_committed(alone, name)
        its = s3_root / mine.name
        entries = read_manifest(mine)["files"]
        assert read_manifest(its) == read_manifest(mine)
        assert all(stage_file(its, entry).read_bytes() == stage_file(mine, entry).read_bytes() for entry in entries)


WITHOUT = """
import pathlib, sys
names = ("nextflow_data", "nextflow_tokenize", "nextflow_pipelines", "nextflow_orchestration", "megatron_nextflow")
sys.path[:] = [place for place in sys.path if not any(pathlib.Path(place, name).is_dir() for name in names)]
sys.meta_path[:] = [finder for finder in sys.meta_path if not getattr(finder, "__module__", "").startswith("__editable__")]
"""


@pytest.mark.slow
def test_executors_without_our_packages_are_sent_them(
    alone: Path, small_warc: Path, package: Path, cluster: Standalone, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}:$PYTHONPATH" exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with Driver(tmp_path, package, small_warc, cluster, "ingest", python=str(python)) as driver:
        errors = driver.end()
        assert driver.process.returncode == 1 and "set spark.ship to true" in errors, errors
    with Driver(tmp_path, package, small_warc, cluster, python=str(python), ship=True) as driver:
        driver.succeed()
    assert tree(tmp_path / "run") == tree(alone)


@pytest.mark.slow
def test_what_a_cluster_cannot_give_is_told(small_warc: Path, package: Path, cluster: Standalone, tmp_path: Path) -> None:
    def told(**settings: Any) -> str:
        with Driver(tmp_path, package, small_warc, cluster, "ingest", **settings) as driver:
            errors = driver.end()
            assert driver.process.returncode == 1, errors
            return errors.splitlines()[-1]

    page = cluster.page.removeprefix("http://").removesuffix("/")
    assert f"the cluster spark://{page} did not take the driver in" in told(master=f"spark://{page}", wait_seconds=10)
    large = told(options={"spark.executor.memory": "4g"})
    assert "an executor asks for 4,096 MiB, and the largest of " in large
    assert "has 1,024: lower spark.executor.memory in spark.options" in large
    for number in range(len(cluster.workers)):
        cluster.kill_worker(number)
    none = told(wait_seconds=60)
    assert "no executor came from spark://127.0.0.1" in none and "it has no worker alive; start workers" in none
    assert "Finished units are kept" in none
