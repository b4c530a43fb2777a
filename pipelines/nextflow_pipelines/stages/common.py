"""What several stages do: reading the committed documents of the stage before, and Parquet into Spark."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from nextflow_data.decisions import Decision, Finding, Subject, decision
from nextflow_data.document import Document

from nextflow_pipelines.contract.tables import dataset_files, iter_batches
from nextflow_pipelines.spark.context import FactsToCome, StageResult
from nextflow_pipelines.spark.runner import Unit

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

BATCH_ROWS = 64
"""Documents taken from a file at once."""


def read_parquet(spark: SparkSession, files: Iterable[Path]) -> DataFrame:
    """Parquet files as a DataFrame."""
    return spark.read.parquet(*[str(file) for file in files])


def document_files(stage: StageResult) -> list[Path]:
    """The files of a stage's documents. Their number is set when documents are ingested and never changes after.

    None of a stage that is only looked for and not there."""
    if isinstance(stage.facts, FactsToCome):
        return []
    return dataset_files(stage.dir, "documents")


def document_units(prefix: str, files: Iterable[Path]) -> list[Unit]:
    """A unit for each file: its payload is the file's number and path. Prefix "part" names output files as input files."""
    return [Unit(f"{prefix}-{number:05d}", {"number": number, "file": str(file)}) for number, file in enumerate(files)]


def read_documents(file: Path | str, rows: int = BATCH_ROWS) -> Iterator[Document]:
    """Documents of a file, one after the other."""
    for table in iter_batches([Path(file)], rows):
        yield from table.to_pylist()


def documents_in_order(files: Iterable[Path]) -> Iterator[Document]:
    """Documents of all files by doc_id: the same order however many files there are (each file is sorted)."""
    return heapq.merge(*[read_documents(file) for file in files], key=lambda document: document["doc_id"])


def file_of(doc_id: str, files: int) -> int:
    """The number of the file that a document is in: `runner.bucket_of` without Spark."""
    return int(hashlib.sha256(doc_id.encode()).hexdigest()[:8], 16) % files


def read_rows(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Rows of data sets, file by file."""
    yield from rows_of(iter_batches(files, 4096))


def rows_of(tables: Iterable[pa.Table]) -> Iterator[dict[str, Any]]:
    """Rows of tables."""
    for table in tables:
        yield from table.to_pylist()


def rows_by_document(file: Path | str) -> dict[str, list[dict[str, Any]]]:
    """Rows of a small data set by their doc_id, in order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in read_rows([Path(file)]):
        found.setdefault(row["doc_id"], []).append(row)
    return found


def nothing_left(document: Document, stage: str, detail: str) -> Decision:
    """The decision that drops a document of which a stage has left no node; `detail` says in words what became of them."""
    return decision(Subject.of(document), stage, Finding(f"{stage}.nothing_left", 0.0, 1.0, detail), "drop")
