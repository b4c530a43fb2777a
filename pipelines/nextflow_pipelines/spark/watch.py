"""Whether a cluster works on a job, and what to say where it does not: Spark itself waits forever and tells nobody.

Asked while a job runs. A job is stuck when Spark has work for it and no task runs: no executor came, all were lost, or none
may take the task. After `spark.wait_seconds` that ends the stage (half of it where executors were there before, because
Spark took the other half to notice that they are silent); what can be seen to be hopeless ends it at once. Time is this
process's own clock: nobody else's is asked. The cost: a job that waits its turn behind other applications ends too, unless
that setting is raised.
"""

from __future__ import annotations

import json
import re
import time
import urllib.request
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from nextflow_pipelines.spark.cluster import ClusterError, ClusterRefused, is_local, places

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

WAIT = "spark.nextflow.waitSeconds"
"""Where a session holds `spark.wait_seconds`, so that whoever has the session can watch its cluster."""
LOOK_SECONDS = 2.0
"""Between two looks."""
_SAID_AFTER = 5.0
"""Seconds without a task after which the wait is shown and a standalone master is asked."""
_MASTER_PAGE = ("spark.master.ui.port", "8080")
_MEBIBYTES = {"k": 1 / 1024, "m": 1, "": 1, "g": 1024, "t": 1024**2}


class ClusterWatch:
    """Watches one job of a session; on `local[N]` it does nothing."""

    def __init__(self, session: SparkSession) -> None:
        self._context = session.sparkContext
        self._conf = dict(self._context.getConf().getAll())
        self._master = str(self._context.master)
        self._wait = float(self._conf.get(WAIT, "120"))
        self._page = f" · Spark's page: {self._context.uiWebUrl}" if self._context.uiWebUrl else ""
        self._words = self._page
        self._moved = self._looked = time.monotonic()
        self._ended = 0
        self._had_executors = False

    def check(self) -> str:
        """To be called again and again while the job runs. Returns what to show beside its progress: where Spark's page is,
        and what the job waits for. Raises ClusterRefused or ClusterError where the cluster will not do the work."""
        now = time.monotonic()
        if is_local(self._master) or now - self._looked < LOOK_SECONDS:
            return self._words
        self._looked = now
        executors = len(self._context.statusTracker().getExecutorInfos()) - 1  # the driver is one of them
        self._had_executors |= executors > 0
        if self._moves():
            self._moved = now
        stuck = now - self._moved
        self._words = self._page
        if stuck >= _SAID_AFTER:
            what = "no executor takes the task" if executors > 0 else "no executor"
            self._words = f" · {what} for {stuck:.0f} s{self._page}"
            self._judge(executors, stuck)
        return self._words

    def _moves(self) -> bool:
        """Whether a task runs or has ended, or Spark has none to give."""
        tracker = self._context.statusTracker()
        stages = [info for info in map(tracker.getStageInfo, tracker.getActiveStageIds()) if info is not None]
        before, self._ended = self._ended, sum(info.numCompletedTasks + info.numFailedTasks for info in stages)
        return not stages or any(info.numActiveTasks for info in stages) or self._ended != before

    def _judge(self, executors: int, stuck: float) -> None:
        over = stuck >= (self._wait / 2 if self._had_executors else self._wait)
        again = "Finished units are kept; run again to go on."
        if executors > 0:
            if over:
                raise ClusterRefused(
                    f"{executors} executors of {self._master} are there and none has taken a task for {stuck:.0f} s: a task "
                    "asks for what none of them has (spark.gpus_per_task, spark.task.cpus in spark.options)"
                )
        elif self._had_executors:
            if over:
                raise ClusterError(
                    f"all executors of {self._master} were lost, and none came back for {stuck:.0f} s: look whether its "
                    f"workers run. {again}"
                )
        else:
            said = self._said_by_master()
            workers = [worker for worker in said.get("workers", ()) if worker["state"] == "ALIVE"]
            self._refuse_what_is_too_large(workers)
            if over:
                raise ClusterError(
                    f"no executor came from {self._master} for {stuck:.0f} s: {self._why(said, workers)}. {again}"
                )

    def _refuse_what_is_too_large(self, workers: list[dict[str, Any]]) -> None:
        cores = int(self._conf.get("spark.executor.cores", "1"))
        for key, asked, unit in (("memory", self._memory(), "MiB"), ("cores", cores, "cores")):
            largest = max((worker[key] for worker in workers), default=asked)
            if largest < asked:
                raise ClusterRefused(
                    f"an executor asks for {asked:,} {unit}, and the largest of {len(workers)} workers of {self._master} "
                    f"has {largest:,}: lower spark.executor.{key} in spark.options, or give the workers more"
                )

    def _why(self, said: dict[str, Any], workers: list[dict[str, Any]]) -> str:
        if said and not workers:
            return "it has no worker alive; start workers"
        state = {app["id"]: app["state"] for app in said.get("activeapps", ())}.get(self._context.applicationId)
        if state == "WAITING":
            return "other applications hold its workers; wait for them, or raise spark.wait_seconds"
        driver = f"{self._conf.get('spark.driver.host')}:{self._conf.get('spark.driver.port')}"
        if state == "RUNNING":
            return (
                f"they are started and do not get through to the driver at {driver}; set spark.driver_host to an address "
                "that the workers reach, or see the executors' logs on the workers"
            )
        asked = f"{self._conf.get('spark.executor.cores', '1')} cores and {self._memory():,} MiB"
        return (
            f"it has none with {asked} to give, or they do not get through to the driver at {driver} (spark.driver_host); "
            "the cluster's own page says which"
        )

    def _memory(self) -> int:
        """What an executor's heap is to have, MiB."""
        found = re.match(r"(\d+)\s*([kmgt]?)", self._conf.get("spark.executor.memory", "1g").lower())
        return int(int(found[1]) * _MEBIBYTES[found[2]]) if found else 0

    def _said_by_master(self) -> dict[str, Any]:
        """What a standalone master's page says as JSON; nothing where there is none, or it lies at another port than
        `spark.master.ui.port` says."""
        if self._master.startswith("spark://"):
            for host, _ in places(self._master):
                with suppress(OSError, ValueError):
                    address = f"http://{host}:{self._conf.get(*_MASTER_PAGE)}/json/"
                    with urllib.request.urlopen(address, timeout=5) as answer:
                        said = json.load(answer)
                    if isinstance(said, dict) and said.get("status") == "ALIVE" and "workers" in said:
                        return said
        return {}
