"""The Spark session: local by default, quiet, offline, and running the very Python that started it."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nextflow_data.common.signal_handlers import kept

from nextflow_pipelines.spark.config import SparkConfig
from nextflow_pipelines.spark.java import find_java, java_home

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


def is_local(master: str) -> bool:
    """Whether driver and tasks share one process of Spark (`local`, `local[N]`), which schedules cores and nothing else."""
    return master == "local" or master.startswith("local[")


def spark_settings(config: SparkConfig) -> dict[str, str]:
    """Settings that are fixed when the session starts."""
    gpus = {"spark.executor.resource.gpu.amount": "1"} if config.gpus_per_task and not is_local(config.master) else {}
    java = f"-Dlog4j2.configurationFile={_LOG4J.as_uri()} -XX:+IgnoreUnrecognizedVMOptions "
    java += "--enable-native-access=ALL-UNNAMED --sun-misc-unsafe-memory-access=allow"
    if is_local(config.master) and (os.cpu_count() or 1) <= 2:
        java = f"{java} {_FEW_CORES}"
    settings = {
        "spark.driver.memory": config.driver_memory,
        "spark.driver.extraJavaOptions": java,
        "spark.task.maxFailures": str(config.task_retries),
        "spark.ui.enabled": str(config.ui).lower(),
        "spark.ui.showConsoleProgress": "false",
        "spark.python.worker.reuse": "true",
    }
    return settings | gpus | config.options


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
    only the SQL settings of `config` are taken over).

    The environment variables set here (PYSPARK_PYTHON, SPARK_LOCAL_IP, JAVA_HOME) are read by the JVM's launcher; they stay
    set, because the launcher reads them again when a stopped session is started anew. Raises JavaNotFound.
    """
    from pyspark.sql import SparkSession

    session = active_session()
    if session is None:
        if starting is not None:
            starting()
        os.environ["JAVA_HOME"] = str(java_home(find_java(config.java)))
        os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
        if config.master.startswith("local"):
            os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
        builder = SparkSession.builder.appName(app).master(master_with_retries(config.master, config.task_retries))
        for key, value in spark_settings(config).items():
            builder = builder.config(key, value)
        # Spark puts its own handler in place; who started us may have one that must not be lost, and jobs are cancelled by
        # the runner.
        with kept(signal.SIGINT):
            session = builder.getOrCreate()
    for key, value in sql_settings(config).items():
        if key not in config.options:
            session.conf.set(key, value)
    return session
