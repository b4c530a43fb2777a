"""One extraction by datatrove in a process of its own, for `bench_ingest.py`. Prints one line of JSON.

Run: python benchmarks/one_datatrove.py FOLDER_OF_ARCHIVES SCRATCH PROCESSES
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from pathlib import Path

import magic  # noqa: F401
import trafilatura  # noqa: F401
import warcio  # noqa: F401
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.readers import WarcReader
from datatrove.pipeline.writers import JsonlWriter


def main() -> None:
    archives, scratch, processes = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    steps = [WarcReader(archives, glob_pattern="*.warc.gz"), Trafilatura(), JsonlWriter(str(scratch / "out"))]
    executor = LocalPipelineExecutor(steps, tasks=processes, workers=processes, logging_dir=str(scratch / "logs"))
    began = time.perf_counter()
    executor.run()
    seconds = time.perf_counter() - began
    documents = sum(len(gzip.decompress(path.read_bytes()).splitlines()) for path in scratch.glob("out/*.jsonl.gz"))
    print(json.dumps({"seconds": seconds, "documents": documents}))


if __name__ == "__main__":
    main()
