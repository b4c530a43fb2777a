"""A real Spark session: started, one Arrow task on a Python worker, stopped."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nextflow_pipelines.spark.config import SparkConfig
from nextflow_pipelines.spark.java import JavaNotFound

from nextflow_orchestration.doctor.check import Case, Diagnosis, bad, check, ok

if TYPE_CHECKING:
    from pyarrow import RecordBatch


def _worker(batches: Iterator[RecordBatch]) -> Iterator[RecordBatch]:
    import os
    import platform

    import pyarrow as pa

    rows = sum(batch.num_rows for batch in batches)
    yield pa.RecordBatch.from_pydict({"rows": [rows], "process": [os.getpid()], "python": [platform.python_version()]})


@check("spark", "session", seconds=90)
def session(case: Case) -> Diagnosis:
    """In local mode with one task, whatever master the recipe names; its Java and heap are the recipe's."""
    import os
    import platform

    from nextflow_pipelines.spark.session import spark_session, stop_session

    folders = {"spark.local.dir": tempfile.gettempdir(), "spark.sql.warehouse.dir": tempfile.gettempdir()}
    given = case.spark
    config = SparkConfig(
        java=given.java, driver_memory=given.driver_memory, master="local[1]", partitions=1, options=folders
    )
    began = time.monotonic()
    try:
        spark = spark_session(config, app="mnf doctor")
    except JavaNotFound as error:
        return bad(str(error), "see java")
    up = time.monotonic()
    made = spark.range(0, 1000, 1, 1).mapInArrow(_worker, "rows long, process long, python string").collect()
    done = time.monotonic()
    version = spark.version
    stop_session()
    (row,) = made
    if row["rows"] != 1000 or row["process"] == os.getpid() or row["python"] != platform.python_version():
        return bad(
            f"the task on a Python worker gave {row.asDict()}", "look which Python PYSPARK_PYTHON names, and unset it"
        )
    return ok(f"Spark {version}: started in {up - began:.1f} s, an Arrow task on a Python worker in {done - up:.1f} s")
