"""One ingest in a process of its own, by whatever tree is on the path, for `bench_ingest.py`. Prints one line of JSON.

Run: python benchmarks/one_ingest.py ROOT PROCESSES ARCHIVE…
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    root, processes, archives = Path(sys.argv[1]), int(sys.argv[2]), [Path(name) for name in sys.argv[3:]]
    from nextflow_data.config import IngestConfig

    try:
        from nextflow_data.sources.base import SourceConfig
        from nextflow_pipelines.spark.config import SparkConfig
        from nextflow_pipelines.spark.context import RunContext

        given: list[object] = [SourceConfig(kind="warc", files=tuple(map(str, archives)))]
    except ModuleNotFoundError:  # the tree of c1cd4ca
        from nextflow_pipelines.config import SparkConfig
        from nextflow_pipelines.context import RunContext

        given = list(archives)
    from nextflow_pipelines.registry import run_stage

    context = RunContext(root, SparkConfig(master=f"local[{processes}]", files=processes, partitions=processes))
    began = time.perf_counter()
    session = context.session()
    rows = session.range(1000)  # a join, a shuffle and a sort, so that Spark's planner and Python's workers are loaded
    joined = rows.join(rows.distinct(), "id").repartition(processes, "id").sortWithinPartitions("id")
    joined.mapInArrow(lambda batches: batches, "id long").count()
    started = time.perf_counter()
    done = run_stage("ingest", context, {"ingest": IngestConfig()}, {}, given)
    ended = time.perf_counter()
    context.close()
    print(json.dumps({"start": started - began, "seconds": ended - started, "counts": done.counts}))


if __name__ == "__main__":
    main()
