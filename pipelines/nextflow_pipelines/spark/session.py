"""The Spark session: local by default, quiet, offline, and running the very Python that started it unless told another."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from nextflow_data.common.signal_handlers import kept

from nextflow_pipelines.spark.cluster import ClusterRefused, is_local, reach
from nextflow_pipelines.spark.config import SparkConfig
from nextflow_pipelines.spark.java import find_java, java_home
from nextflow_pipelines.spark.ship import ship
from nextflow_pipelines.spark.watch import WAIT

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_LOG4J = Path(__file__).with_name("log4j2.properties")
_FEW_CORES = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
"""For Java on one or two cores, shared with the Python that does the work: what the optimising compiler and a parallel
collector take there they do not give back within minutes. Measured on two: a small run's Spark stages in 0.8 of the time."""


def master_with_retries(master: str, retries: int) -> str:
    """`local[N]` as `local[N,retries]`: alone, local mode never retries a task. Other masters are left as they are."""
    found = re.fullmatch(r"local\[(\d+|\*)\]", master)
    return f"local[{found[1]},{retries}]" if found else master


def spark_settings(config: SparkConfig, here: str | None = None) -> dict[str, str]:
    """Settings that are fixed when the session starts. `here` is this machine's address as a cluster sees it, if known."""
    java = f"-Dlog4j2.configurationFile={_LOG4J.as_uri()} -XX:+IgnoreUnrecognizedVMOptions "
    java += "--enable-native-access=ALL-UNNAMED --sun-misc-unsafe-memory-access=allow"
    if is_local(config.master) and (os.cpu_count() or 1) <= 2:
        java = f"{java} {_FEW_CORES}"
    settings = {
        "spark.driver.memory": config.driver_memory,
        "spark.driver.extraJavaOptions": java,
        "spark.task.maxFailures": str(config.task_retries),
        "spark.ui.enabled": str(not is_local(config.master) if config.ui is None else config.ui).lower(),
        "spark.ui.showConsoleProgress": "false",
        "spark.python.worker.reuse": "true",
        # Over TCP each task of Python's waits 40 ms for an acknowledgement that the kernel delays.
        "spark.python.unix.domain.socket.enabled": "true",
    }
    if is_local(config.master):
        settings["spark.python.daemon.module"] = "nextflow_pipelines.spark.daemon"
    else:
        settings |= _cluster_settings(config, here)
    return settings | config.options


def _cluster_settings(config: SparkConfig, here: str | None) -> dict[str, str]:
    """What a cluster is told beside. An executor that is silent is given up early enough that a stage whose executors all
    are ends within `wait_seconds`."""
    settings = {
        WAIT: f"{config.wait_seconds:g}",
        "spark.network.timeout": f"{max(config.wait_seconds / 2 - 15, 20):.0f}s",
        "spark.network.timeoutInterval": "10s",
    }
    if config.gpus_per_task:
        settings["spark.executor.resource.gpu.amount"] = "1"
    host = config.driver_host or here
    return settings | ({"spark.driver.host": host} if host else {})


def sql_settings(config: SparkConfig) -> dict[str, str]:
    """Settings that may differ from one use of the session to the next."""
    return {
        "spark.sql.shuffle.partitions": str(config.partitions),
        "spark.sql.execution.arrow.maxBytesPerBatch": str(config.arrow_batch_bytes),
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.execution.pyspark.udf.simplifiedTraceback.enabled": "true",
        # Of what a Python task reads Spark believes that it is tiny, and would send any table whole through the driver. So
        # only what a shuffle has measured is sent around.
        "spark.sql.autoBroadcastJoinThreshold": "-1",
        "spark.sql.adaptive.autoBroadcastJoinThreshold": str(10 << 20),
    }


def _on_cluster(builder: SparkSession.Builder, config: SparkConfig, settings: Mapping[str, str]) -> SparkSession:
    """A session on a cluster, made in a thread: Spark may wait forever for an answer. Java is started first, and its time is
    not the cluster's."""
    from pyspark import SparkConf, SparkContext

    SparkContext._ensure_initialized(conf=SparkConf().setAll(list(settings.items())))
    made: Future[SparkSession] = Future()

    def make() -> None:
        try:
            made.set_result(builder.getOrCreate())
        except BaseException as error:
            made.set_exception(error)

    threading.Thread(target=make, name="spark-session", daemon=True).start()
    try:
        return made.result(config.wait_seconds)
    except TimeoutError:
        why = f"did not take the driver in within {config.wait_seconds:g} s"
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        why = f"did not take the driver in: {next((line for line in lines if 'Exception:' in line), lines[0])}"
    raise ClusterRefused(f"the cluster {config.master} {why}. Is there a Spark master of this version at that address?")


def active_session() -> SparkSession | None:
    """The session of this process, whichever thread started it."""
    from pyspark.errors import PySparkRuntimeError
    from pyspark.sql import SparkSession

    try:
        return SparkSession.active()
    except PySparkRuntimeError:
        return None


def stop_session() -> None:
    """Stops this process's session, if it has one."""
    active = active_session()
    if active is not None:
        active.stop()


def spark_session(
    config: SparkConfig, starting: Callable[[], None] | None = None, app: str = "megatron-nextflow"
) -> SparkSession:
    """Starts the session, after calling `starting`, or gives the one that this process has (Spark allows one a process; then
    only the SQL settings of `config` are taken over). A cluster has `wait_seconds` to take the driver in.

    The environment variables set here (PYSPARK_PYTHON, SPARK_LOCAL_IP, JAVA_HOME) are read by the JVM's launcher; they stay
    set, because the launcher reads them again when a stopped session is started anew. Raises JavaNotFound, ClusterRefused.
    """
    from pyspark.sql import SparkSession

    session = active_session()
    if session is None:
        if starting is not None:
            starting()
        os.environ["JAVA_HOME"] = str(java_home(find_java(config.java)))
        os.environ["PYSPARK_PYTHON"] = config.python or sys.executable
        os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
        here = reach(config.master)
        if config.master.startswith("local"):
            os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
        builder = SparkSession.builder.appName(app).master(master_with_retries(config.master, config.task_retries))
        settings = spark_settings(config, here)
        for key, value in settings.items():
            builder = builder.config(key, value)
        if is_local(config.master):
            # Spark puts its own handler in place; who started us may have one that must not be lost, and jobs are cancelled
            # by the runner.
            with kept(signal.SIGINT):
                session = builder.getOrCreate()
        else:
            session = _on_cluster(builder, config, settings)
        if config.ship:
            ship(session.sparkContext)
    for key, value in sql_settings(config).items():
        if key not in config.options:
            session.conf.set(key, value)
    return session
