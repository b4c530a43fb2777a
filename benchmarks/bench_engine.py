"""What does the engine cost? One function over the same image files under Spark, Daft and Ray Data.

The function is the ingest's own: decode, five measures, a perceptual hash and a sha256 (nextflow_data.images.measure). Each
engine runs in a process of its own, with as many cores; cold is the first pass, with imports and the engine's start, warm
the second in the same process. Memory is the peak of all the engine's processes together, shared pages counted once (PSS).
Plain is the same function under a pool of processes of the standard library, the floor. Every engine must give the same
answers. Run: python benchmarks/bench_engine.py ARCHIVE.warc.gz [--copies 4] [--rounds 3]
Needs beside [data] and [dev]: pip install daft "ray[data]"; what is not there is left out and said.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from common import report, table

ENGINES = {"plain": None, "spark": "pyspark", "daft": "daft", "ray": "ray"}
TOKEN = "BENCH_ENGINE"
"""Environment variable by which the processes of an engine are known, wherever they were started from."""


def measured(path: str) -> str:
    """A line of what is known of an image file: its hash and measures, or why it cannot be used."""
    from nextflow_data.config import IngestConfig
    from nextflow_data.images.measure import ImageRejected, measure

    try:
        return json.dumps(measure(Path(path).read_bytes(), IngestConfig()), sort_keys=True)
    except ImageRejected as error:
        return error.reason


def plain(paths: list[str], cores: int) -> Callable[[], list[str]]:
    """The standard library's pool."""
    from concurrent.futures import ProcessPoolExecutor

    pool = ProcessPoolExecutor(cores)
    return lambda: list(pool.map(measured, paths, chunksize=8))


def spark(paths: list[str], cores: int) -> Callable[[], list[str]]:
    """As the project's stages use it: Arrow batches through Python workers."""
    import pyarrow as pa
    from nextflow_pipelines.spark.config import SparkConfig
    from nextflow_pipelines.spark.session import spark_session

    session = spark_session(SparkConfig(master=f"local[{cores}]"))

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            names = [str(name) for name in batch.column(0).to_pylist()]
            yield pa.RecordBatch.from_pydict({"found": [measured(name) for name in names]})

    def run() -> list[str]:
        table_of = pa.table({"path": paths})
        frame = session.createDataFrame(table_of).repartition(8 * cores)
        return [str(row[0]) for row in frame.mapInArrow(task, "found string").collect()]

    return run


def daft(paths: list[str], cores: int) -> Callable[[], list[str]]:
    """A scalar function over a column, on its native runner."""
    import daft as engine

    engine.set_runner_native(num_threads=cores)
    function = engine.func(measured, return_dtype=engine.DataType.string(), use_process=True)

    def run() -> list[str]:
        frame = engine.from_pydict({"path": paths}).into_partitions(8 * cores)
        return [str(one) for one in frame.select(function(engine.col("path")).alias("found")).to_pydict()["found"]]

    return run


def ray(paths: list[str], cores: int) -> Callable[[], list[str]]:
    """Ray Data's map over rows."""
    import ray as engine
    import ray.data as data

    engine.init(num_cpus=cores, include_dashboard=False, log_to_driver=False, configure_logging=False)
    data.DataContext.get_current().enable_progress_bars = False

    def run() -> list[str]:
        rows = data.from_items([{"path": path} for path in paths], override_num_blocks=8 * cores)
        return [str(row["found"]) for row in rows.map(lambda row: {"found": measured(row["path"])}).take_all()]

    return run


def one(engine: str, folder: Path, cores: int) -> None:
    """In a process of its own: cold and warm seconds, and a hash of the answers, as a line of JSON."""
    paths = sorted(str(path) for path in folder.iterdir())
    began = time.perf_counter()
    run = {"plain": plain, "spark": spark, "daft": daft, "ray": ray}[engine](paths, cores)
    found = run()
    cold = time.perf_counter() - began
    again = time.perf_counter()
    run()
    warm = time.perf_counter() - again
    digest = hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()
    print(json.dumps({"cold": cold, "warm": warm, "images": len(found), "sha256": digest}), flush=True)
    os._exit(0)


def peak_memory(token: str, stop: threading.Event) -> int:
    """Most bytes that all processes with `token` in their environment held at once, looked at twice a second."""
    most = 0
    while not stop.wait(0.5):
        total = 0
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if token.encode() in (folder / "environ").read_bytes():
                    lines = (folder / "smaps_rollup").read_text(encoding="ascii").splitlines()
                    total += 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            except (OSError, StopIteration):
                continue
        most = max(most, total)
    return most


def measure_engine(engine: str, folder: Path, cores: int) -> dict[str, Any]:
    """What `one` printed, and the peak of memory. Raises SystemExit where the engine failed."""
    token, stop, memory = uuid.uuid4().hex, threading.Event(), [0]
    watch = threading.Thread(target=lambda: memory.__setitem__(0, peak_memory(token, stop)))
    watch.start()
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path[1:]])
    variables = {**os.environ, TOKEN: token, "PYTHONPATH": path, "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", f"from bench_engine import *; one({engine!r}, Path({str(folder)!r}), {cores})"]
    with tempfile.TemporaryFile("w+") as said:
        # Files and a session of their own: what an engine leaves running holds no pipe open, and is ended here.
        process = subprocess.Popen(command, env=variables, stdout=said, stderr=said, start_new_session=True)
        process.wait()
        stop.set()
        watch.join()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        said.seek(0)
        text = said.read()
    lines = [line for line in text.splitlines() if line.startswith('{"cold"')]
    if not lines:
        raise SystemExit(f"{engine} failed:\n{text[-3000:]}")
    return {**json.loads(lines[-1]), "memory": memory[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "reports")
    options = parser.parse_args()
    from bench_ingest import images_of

    missing = [name for name, package in ENGINES.items() if package is not None and find_spec(package) is None]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ENGINES if name not in missing}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for number, payload in enumerate(images_of(options.archive) * options.copies):
            (folder / f"{number:06d}").write_bytes(payload)
        for _ in range(options.rounds):
            for name, runs in found.items():
                runs.append(measure_engine(name, folder, options.cores))
    answers = {run["sha256"] for runs in found.values() for run in runs}
    if len(answers) != 1:
        raise SystemExit(f"the engines do not give the same answers: {answers}")
    rows = []
    for name, runs in found.items():
        count = runs[0]["images"]
        cold, warm = (median(count / run[key] for run in runs) for key in ("cold", "warm"))
        over = median(plain["warm"] / run["warm"] for plain, run in zip(found["plain"], runs, strict=True))
        start, memory = median(run["cold"] - run["warm"] for run in runs), max(run["memory"] for run in runs)
        rows.append([name, f"{cold:.1f}", f"{warm:.1f}", f"{over:.2f}", f"{start:.1f}", f"{memory / 2**30:.2f}"])
    header = ["", "images/s cold", "images/s warm", "warm over plain", "cold start, s", "peak memory, GiB"]
    title = f"{count} images, {options.cores} cores, {options.rounds} rounds in turns"
    remarks = [f"{name} was not installed" for name in missing]
    print(report("engine", __doc__ or "", [table(title, header, rows)], remarks, options.out))


if __name__ == "__main__":
    main()
