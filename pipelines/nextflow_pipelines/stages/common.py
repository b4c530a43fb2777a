"""What several stages do: reading the committed documents of the stage before, and Parquet into Spark."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from nextflow_data.decisions import Decision, Finding, Subject, decision
from nextflow_data.document import Document
from nextflow_data.storage.config import StorageConfig
from nextflow_data.storage.files import any_path
from nextflow_data.storage.store_path import AnyPath, StorePath

from nextflow_pipelines.contract.made_with import made_with
from nextflow_pipelines.contract.tables import dataset_files, iter_batches, parquet_file
from nextflow_pipelines.spark.context import FactsToCome, StageResult
from nextflow_pipelines.spark.runner import Unit
from nextflow_pipelines.spark.task import enter_task

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

BATCH_ROWS = 64
"""Documents taken from a file at once."""
FRAME_ROWS = 256
"""Rows handed to Spark at once: a row group."""
FILES_A_CORE = 4
"""Tasks that read files, at most, for each core: with more files a task reads several."""


def read_parquet(
    spark: SparkSession, files: Iterable[AnyPath], columns: list[str] | None = None, schema: pa.Schema | None = None
) -> DataFrame:
    """Parquet files as a DataFrame, wherever they lie: tasks read them by pyarrow, since Spark's own readers open no store
    without jars that no registry has.

    `columns` as in `pyarrow.parquet`, of which nothing else is read: Spark cannot push a choice of columns down to here. All
    files have one schema, that of the first; given, it is not looked up. Spark has no unsigned integers: they are widened.
    """
    from pyspark.sql import functions as F
    from pyspark.sql.pandas.types import from_arrow_schema

    paths = list(files)
    if schema is None:
        with parquet_file(paths[0]) as file:
            schema = file.read_row_groups([], columns=columns).schema
    elif columns is not None:
        schema = pa.schema([schema.field(name) for name in columns])
    target = pa.schema([pa.field(field.name, _as_in_spark(field.type)) for field in schema])
    # As one literal text, which Spark splits once: an array of literals is made by a call into the JVM for each.
    names = F.split(F.lit("\0".join(str(path) for path in paths)), "\0")
    slices = max(1, min(len(paths), FILES_A_CORE * spark.sparkContext.defaultParallelism))
    listed = spark.range(0, len(paths), 1, slices).select(F.get(names, F.col("id").cast("int")).alias("file"))
    config = next((path.config for path in paths if isinstance(path, StorePath)), None)
    task = partial(_read_task, made_with(), config, columns, target)
    return listed.mapInArrow(task, from_arrow_schema(target))


def _as_in_spark(kind: pa.DataType) -> pa.DataType:
    """The type with all of it nullable and its integers signed."""
    if pa.types.is_unsigned_integer(kind):
        return {8: pa.int16(), 16: pa.int32(), 32: pa.int64()}[kind.bit_width]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_as_in_spark(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _as_in_spark(field.type)) for field in kind])
    return kind


def _read_task(
    driver: Mapping[str, str],
    config: StorageConfig | None,
    columns: list[str] | None,
    schema: pa.Schema,
    batches: Iterator[pa.RecordBatch],
) -> Iterator[pa.RecordBatch]:
    enter_task(driver)
    for batch in batches:
        files = [any_path(name, config) for name in batch.column("file").to_pylist()]
        for table in iter_batches(files, FRAME_ROWS, columns):
            yield from table.cast(schema).to_batches()


def document_files(stage: StageResult) -> list[AnyPath]:
    """The files of a stage's documents. Their number is set when documents are ingested and never changes after.

    None of a stage that is only looked for and not there."""
    if isinstance(stage.facts, FactsToCome):
        return []
    return dataset_files(stage.dir, "documents")


def document_units(prefix: str, files: Iterable[AnyPath]) -> list[Unit]:
    """A unit for each file: its payload is the file's number and path. Prefix "part" names output files as input files."""
    return [Unit(f"{prefix}-{number:05d}", {"number": number, "file": file}) for number, file in enumerate(files)]


def read_documents(file: AnyPath | str, rows: int = BATCH_ROWS) -> Iterator[Document]:
    """Documents of a file, one after the other."""
    for table in iter_batches([any_path(file)], rows):
        yield from table.to_pylist()


def documents_in_order(files: Iterable[AnyPath]) -> Iterator[Document]:
    """Documents of all files by doc_id: the same order however many files there are (each file is sorted)."""
    return heapq.merge(*[read_documents(file) for file in files], key=lambda document: document["doc_id"])


def file_of(doc_id: str, files: int) -> int:
    """The number of the file that a document is in: `runner.bucket_of` without Spark."""
    return int(hashlib.sha256(doc_id.encode()).hexdigest()[:8], 16) % files


def read_rows(files: Iterable[AnyPath]) -> Iterator[dict[str, Any]]:
    """Rows of data sets, file by file."""
    yield from rows_of(iter_batches(files, 4096))


def rows_of(tables: Iterable[pa.Table]) -> Iterator[dict[str, Any]]:
    """Rows of tables."""
    for table in tables:
        yield from table.to_pylist()


def rows_by_document(file: AnyPath | str) -> dict[str, list[dict[str, Any]]]:
    """Rows of a small data set by their doc_id, in order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in read_rows([any_path(file)]):
        found.setdefault(row["doc_id"], []).append(row)
    return found


def nothing_left(document: Document, stage: str, detail: str) -> Decision:
    """The decision that drops a document of which a stage has left no node; `detail` says in words what became of them."""
    return decision(Subject.of(document), stage, Finding(f"{stage}.nothing_left", 0.0, 1.0, detail), "drop")
