"""A Spark standalone cluster on this machine's loopback, from pyspark's own classes: to try a cluster, and to test on one.

    python -m nextflow_pipelines.spark.standalone [WORKERS]

starts a master and workers of one core and 1 GiB each, prints the master's address and pages, and runs until Ctrl-C. Each
worker has a working directory of its own, as on machines of their own, so what rests on the driver's directory fails here
too. Not for work in earnest: nothing restarts a worker, and nobody is asked who they are, hence loopback only. Free ports
are Spark's choice and read from its log, because a port that was free a moment ago may be taken.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType

from nextflow_data.common.signal_handlers import Handlers

from nextflow_pipelines.contract.stage import StageError
from nextflow_pipelines.spark.java import find_java, java_home

HOST = "127.0.0.1"
_MASTER = re.compile(rf"Starting Spark master at (spark://{re.escape(HOST)}:\d+)")
_PAGE = re.compile(r"Bound \w+ to \S+, and started at (http://\S+)")
_REGISTERED = re.compile(r"Successfully registered with master")
_PR_SET_PDEATHSIG = 1
_SMALL = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"


class Standalone:
    """A master and `workers` workers in folders below `folder`, within a `with`; nothing of them is left after it.

    `cores` and `memory` (Spark's notation) are what each worker has for executors, `environment` is added to theirs. Raises
    JavaNotFound, and StageError with the end of the log of what did not come up in `seconds`.
    """

    def __init__(
        self,
        folder: Path,
        workers: int = 2,
        cores: int = 1,
        memory: str = "1g",
        java: str = "auto",
        environment: Mapping[str, str] | None = None,
        seconds: float = 120.0,
    ) -> None:
        self.folder, self.count, self.cores, self.memory, self.seconds = folder, workers, cores, memory, seconds
        self.master = self.page = ""
        self.workers: list[subprocess.Popen[bytes]] = []
        self._master: subprocess.Popen[bytes] | None = None
        self._environment = dict(os.environ) | {
            "JAVA_HOME": str(java_home(find_java(java))),
            "SPARK_LOCAL_IP": HOST,
            "SPARK_DAEMON_MEMORY": "256m",
            "SPARK_DAEMON_JAVA_OPTS": _SMALL,
            **(environment or {}),
        }

    def __enter__(self) -> Standalone:
        try:
            self._master = self._start("Master", "master", "--host", HOST, "--port", "0", "--webui-port", "0")
            self.master = self._said("master", self._master, _MASTER)
            self.page = self._said("master", self._master, _PAGE)
            for _ in range(self.count):
                self.add_worker()
            for number, worker in enumerate(self.workers):
                self._said(f"worker-{number}", worker, _REGISTERED)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def add_worker(self) -> subprocess.Popen[bytes]:
        """Starts one more worker and does not wait for it."""
        name = f"worker-{len(self.workers)}"
        folder = self.folder / name
        arguments = ["--host", HOST, "--port", "0", "--webui-port", "0", "--cores", str(self.cores), "--memory", self.memory]
        self.workers.append(self._start("Worker", name, *arguments, "--work-dir", str(folder), self.master))
        return self.workers[-1]

    def kill_worker(self, number: int) -> None:
        """Ends a worker with its executors and their Python processes by -9, as a machine that loses its power."""
        _kill(self.workers[number])

    def kill_master(self) -> None:
        """Ends the master by -9."""
        if self._master is not None:
            _kill(self._master)

    def stop(self) -> None:
        """Ends every process of the cluster."""
        for process in [*self.workers, *([self._master] if self._master is not None else [])]:
            _kill(process)

    def log(self, name: str) -> str:
        """What "master" or "worker-0" has logged."""
        return (self.folder / name / "log").read_text(errors="replace")

    def _start(self, what: str, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        import pyspark

        home = Path(pyspark.__file__).parent
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log").open("wb") as log:
            return subprocess.Popen(
                [home / "bin" / "spark-class", f"org.apache.spark.deploy.{what.lower()}.{what}", *arguments],
                cwd=folder,
                env=self._environment | {"SPARK_HOME": str(home)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def _said(self, name: str, process: subprocess.Popen[bytes], words: re.Pattern[str]) -> str:
        end = time.monotonic() + self.seconds
        while process.poll() is None and time.monotonic() < end:
            found = words.search(self.log(name))
            if found:
                return found[found.re.groups]
            time.sleep(0.1)
        last = "\n".join(self.log(name).splitlines()[-5:])
        raise StageError(f"Spark's {name} did not come up; the end of {self.folder / name / 'log'}:\n{last}")


def _end_with_parent() -> None:
    """In a new process: it is killed when the one that started it is gone, however that went. Linux alone has this."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """-9 to a process and all that it started; nothing where it has ended, because its number may be another's now."""
    import psutil

    if process.poll() is not None:
        return
    try:
        found = psutil.Process(process.pid)
        family = [found, *found.children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


class _Ends(Handlers):
    def handle(self, number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt


def main() -> int:
    """The program; ends with 0 on Ctrl-C or SIGTERM."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    folder = Path(tempfile.mkdtemp(prefix="mnf-cluster-"))
    try:
        with suppress(KeyboardInterrupt), _Ends((signal.SIGTERM,)), Standalone(folder, count) as cluster:
            print(f"Spark master: {cluster.master}\nIts page:     {cluster.page}\nWorkers:      {count}, logs in {folder}")
            print(f"Try it: mnf run RECIPE --set spark.master={cluster.master}\nCtrl-C ends it.", flush=True)
            signal.pause()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
