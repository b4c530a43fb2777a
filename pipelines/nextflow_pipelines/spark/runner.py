"""Runs a stage's units as Spark jobs: each task streams Arrow batches and writes its own files.

Two shapes of job, which are all that the stages need:

- `run_units`: the units are known beforehand (a source file, a file of documents). Each is one Spark task.
- `run_frame`: rows are brought together by key first. A DataFrame with a column `bucket` is shuffled by it and sorted within
  (range partitioning would not be reproducible); each bucket is a unit, written by whichever task holds it. How many Spark
  partitions there are changes nothing but speed.

What goes through a shuffle is keys and measures; documents and pixels stay in their files. The exceptions: drafts of pages
in `ingest`, thumbnails of candidate pairs in `dedup`, texts of a sample in `text_tokenizer`, and tokenised documents, which
`pack` brings to the task that writes their shard. Units that are already done are left out before the shuffle. The cost of
files written by tasks and not by Spark's own sink: the done-record protocol of `nextflow_pipelines.contract.stage`, which in
exchange survives the death of the driver. A task needs no disk that the driver has, and refuses where it would write other
bytes (`contract.made_with`).
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from nextflow_data.common.whole_files import replace_file
from nextflow_data.storage.config import StorageConfig
from nextflow_data.storage.files import any_path, put_if_absent, read_range
from nextflow_data.storage.store_path import AnyPath, StorePath

from nextflow_pipelines.contract.made_with import made_with
from nextflow_pipelines.contract.stage import WORK, StageError
from nextflow_pipelines.contract.tables import UnitTables
from nextflow_pipelines.contract.units import unit_output, unit_record
from nextflow_pipelines.contract.work import StageWork, is_disk_full
from nextflow_pipelines.spark.context import Progress, no_progress
from nextflow_pipelines.spark.gpus import TaskGpus
from nextflow_pipelines.spark.ship import with_hint
from nextflow_pipelines.spark.task import enter_task
from nextflow_pipelines.spark.watch import ClusterWatch

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

Schemas = Mapping[str, pa.Schema]
UnitFunction = Callable[[Any, UnitTables], None]
"""Does one unit of `run_units`: given the unit's payload and where to write."""

FrameFunction = Callable[[int, Iterator[pa.Table], UnitTables], None]
"""Does one unit of `run_frame`: given the bucket, its rows in order (tables without `bucket`) and where to write."""

POLL_SECONDS = 0.2
_REPORT = "unit string"
_ERROR_LINE = re.compile(r"[\w.]+(Error|Exception|ChangedObject):")
_PATH = "$path"
"""Marks a path in a payload's JSON."""


@dataclass(frozen=True)
class Unit:
    """A unit of `run_units`: its name (unique in the stage; also its files' name) and its payload, JSON values and paths."""

    name: str
    payload: Any


def bucket_names(prefix: str, buckets: int) -> list[str]:
    """Unit names of a `run_frame`."""
    return [f"{prefix}-{bucket:05d}" for bucket in range(buckets)]


def bucket_of(column: Column, buckets: int) -> Column:
    """The file a key belongs to: the first 32 bits of its sha256, modulo. The same on every engine and version."""
    from pyspark.sql import functions as F

    return (F.conv(F.substring(F.sha2(column, 256), 1, 8), 16, 10).cast("long") % buckets).cast("int")


def run_units(
    session: Callable[[], SparkSession],
    work: StageWork,
    units: Sequence[Unit],
    function: UnitFunction,
    schemas: Schemas,
    progress: Progress = no_progress,
    note: str = "",
    gpus: TaskGpus | None = None,
) -> list[str]:
    """Runs every unit that is not done yet, each as one Spark task; returns all units' names.

    `schemas` are the data sets a unit writes (each gets a file, even without rows). `gpus` is what each task has of GPUs.
    Progress is told with `note` and what the units say they have done, with its speed. Raises StageError when a unit failed
    on all attempts, OSError-like causes kept in its text; KeyboardInterrupt cancels the job and leaves finished units.
    """
    names = [unit.name for unit in units]
    pending = set(work.pending(names))
    todo = [unit for unit in units if unit.name in pending]
    if todo:
        lines = _Lines.write(work.dir, [[unit.name, unit.payload] for unit in todo])
        task = partial(_unit_task, _Job(work.dir, dict(schemas), made_with()), lines, function)
        spark = session()
        profile = None if gpus is None else gpus.profile()
        frame = spark.range(0, len(todo), 1, len(todo)).mapInArrow(task, _REPORT, profile=profile)
        _run_job(spark, frame, work, names, progress, note)
    return names


@dataclass(frozen=True)
class _Job:
    """What every task of a job is sent: where to write what, and the driver's versions."""

    stage_dir: AnyPath
    schemas: dict[str, pa.Schema]
    driver: Mapping[str, str]

    def do(self, unit: str, function: Callable[[UnitTables], None]) -> None:
        """Does a unit, unless it is done."""
        if unit_record(self.stage_dir, unit) is None:
            with unit_output(self.stage_dir, unit) as out:
                tables = UnitTables(out, self.schemas, unit)
                function(tables)
                tables.close()


@dataclass(frozen=True)
class _Lines:
    """Units' names and payloads in lines of one length, in the stage's folder, so that a task finds its own without knowing
    the others: carried inside the job, each task would be sent all of them. `config` reaches the payloads' paths."""

    path: AnyPath
    width: int
    config: StorageConfig | None

    @classmethod
    def write(cls, stage_dir: AnyPath, values: Sequence[Any]) -> _Lines:
        configs: list[StorageConfig] = []

        def as_json(value: Any) -> dict[str, str]:
            if not isinstance(value, AnyPath):
                raise TypeError(f"a unit's payload holds JSON values and paths, not {type(value).__name__}")
            if isinstance(value, StorePath) and not configs:
                configs.append(value.config)
            return {_PATH: str(value)}

        lines = [json.dumps(value, default=as_json).encode() for value in values]
        width = max(map(len, lines)) + 1
        content = b"".join(line.ljust(width - 1) + b"\n" for line in lines)
        path = stage_dir / WORK / f"units-{hashlib.sha256(content).hexdigest()}.jsonl"
        if isinstance(path, Path):
            replace_file(path, content, durable=False)
        else:
            put_if_absent(path, content)
        return cls(path, width, configs[0] if configs else None)

    def read(self, number: int) -> Any:
        def as_path(found: dict[str, Any]) -> Any:
            return any_path(found[_PATH], self.config) if found.keys() == {_PATH} else found

        return json.loads(read_range(self.path, number * self.width, self.width), object_hook=as_path)


def _unit_task(
    job: _Job, lines: _Lines, function: UnitFunction, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    enter_task(job.driver)
    for batch in batches:
        for index in batch.column(0).to_pylist():
            name, payload = lines.read(index)
            job.do(name, partial(function, payload))
            yield pa.RecordBatch.from_pydict({"unit": [name]})


def run_local(work: StageWork, units: Sequence[Unit], function: UnitFunction, schemas: Schemas) -> list[str]:
    """Runs units in the driver: for what needs a whole graph or plan at once. Returns their names."""
    job = _Job(work.dir, dict(schemas), made_with())
    for unit in units:
        job.do(unit.name, partial(function, unit.payload))
    return [unit.name for unit in units]


def run_frame(
    session: Callable[[], SparkSession],
    work: StageWork,
    prefix: str,
    buckets: int,
    frame: Callable[[SparkSession], DataFrame] | None,
    sort: Sequence[str],
    function: FrameFunction,
    schemas: Schemas,
    progress: Progress = no_progress,
    note: str = "",
) -> list[str]:
    """Shuffles a DataFrame by its column `bucket` (0…buckets−1), sorts within by `sort`, and runs each bucket as a unit.

    `frame` makes the DataFrame and is called only when something is left to do; None where there are no rows, which costs
    no job. `sort` must order rows completely, or the
    result is not reproducible. Returns the units' names; raises as `run_units` does.
    """
    from pyspark.sql import functions as F

    names = bucket_names(prefix, buckets)
    missing = set(work.pending(names))
    pending = [bucket for bucket, name in enumerate(names) if name in missing]
    job = _Job(work.dir, dict(schemas), made_with())
    if pending and frame is not None:
        spark = session()
        partitions = min(len(pending), int(spark.conf.get("spark.sql.shuffle.partitions", "8") or 8))
        rows = frame(spark).where(F.col("bucket").isin(pending))
        spread = _spread(rows, buckets, pending, partitions)
        task = partial(_frame_task, job, prefix, function)
        _run_job(spark, spread.sortWithinPartitions("bucket", *sort).mapInArrow(task, _REPORT), work, names, progress, note)
    empty = set(work.missing([names[bucket] for bucket in pending]))
    for bucket in pending:
        if names[bucket] in empty:
            job.do(names[bucket], partial(function, bucket, iter(())))
    return names


def _spread(rows: DataFrame, buckets: int, pending: list[int], partitions: int) -> DataFrame:
    """Rows by bucket; where Spark can (4.1 and newer) buckets are dealt out evenly, else by hash, where some may meet.

    A row's partition is looked up in an array of all buckets, which Spark makes once.
    """
    from pyspark.sql import functions as F

    if not hasattr(rows, "repartitionById"):
        return rows.repartition(partitions, "bucket")
    deal = [0] * buckets
    for rank, bucket in enumerate(pending):
        deal[bucket] = rank % partitions
    return rows.repartitionById(partitions, F.get(F.lit(deal), F.col("bucket")))


def _frame_task(
    job: _Job, prefix: str, function: FrameFunction, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    enter_task(job.driver)
    for bucket, group in groupby(_runs(batches), key=lambda run: run[0]):
        name = f"{prefix}-{bucket:05d}"
        job.do(name, partial(function, bucket, (table for _, table in group)))
        yield pa.RecordBatch.from_pydict({"unit": [name]})


def _runs(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, pa.Table]]:
    for batch in batches:
        if not batch.num_rows:
            continue
        buckets = batch.column("bucket").to_numpy(zero_copy_only=False)
        table = pa.Table.from_batches([batch]).drop_columns("bucket")
        bounds = [0, *(np.flatnonzero(np.diff(buckets)) + 1).tolist(), batch.num_rows]
        for start, stop in pairwise(bounds):
            yield int(buckets[start]), table.slice(start, stop - start)


def _run_job(
    spark: SparkSession, frame: DataFrame, work: StageWork, names: Sequence[str], progress: Progress, note: str
) -> None:
    """Runs the job in a thread and counts done-records meanwhile, so that Ctrl-C reaches the caller at once."""
    context = spark.sparkContext
    group = f"{work.plan.name}-{uuid.uuid4().hex}"
    failed: list[BaseException] = []

    def job() -> None:
        try:
            context.setJobGroup(group, f"{work.plan.name}: {note}", interruptOnCancel=True)
            frame.collect()
        except BaseException as error:
            failed.append(error)

    meter, watch = work.meter(names), ClusterWatch(spark)
    thread = threading.Thread(target=job, name=group, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            progress(work.finished(names), len(names), meter.note(note) + watch.check())
            thread.join(POLL_SECONDS)
    except BaseException:
        context.cancelJobGroup(group)
        thread.join(10)
        raise
    if failed:
        raise _as_stage_error(work, failed[0], note) from failed[0]
    work.measured(meter)
    progress(len(names), len(names), meter.note(note))


def _as_stage_error(work: StageWork, error: BaseException, note: str) -> BaseException:
    if is_disk_full(error):
        return OSError(28, "No space left on device", str(work.dir))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Of a Python task's traceback the last line of the innermost error is what a person needs; the rest is in __cause__.
    said = with_hint(next((line for line in lines[::-1] if _ERROR_LINE.match(line)), [type(error).__name__, *lines][-1]))
    return StageError(f"stage {work.plan.name} ({note}) failed: {said}. Finished units are kept; run again to go on.")
