"""Data sets of a stage as Parquet files whose bytes depend only on their rows.

Rows are gathered into row groups of a fixed number of rows, whatever batches they came in, and written by pyarrow with fixed
settings. The cost is one row group of rows in memory for each open file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from nextflow_data.decisions import ASIDE_SCHEMA, DECISION_SCHEMA, decisions_as_now
from nextflow_data.document import DOCUMENT_SCHEMA
from nextflow_data.storage.store_path import AnyPath

from nextflow_pipelines.contract.stage import read_manifest, stage_file
from nextflow_pipelines.contract.units import UnitOutput

ROW_GROUP = 256
"""Rows of a row group."""

SCHEMAS = {"documents": DOCUMENT_SCHEMA, "decisions": DECISION_SCHEMA, "asides": ASIDE_SCHEMA}
"""Schemas of the data sets that several stages write."""


class TableWriter:
    """One Parquet file of a unit's output, `<dataset>/<unit>.parquet`; `close` must be called for an empty one too."""

    def __init__(self, out: UnitOutput, dataset: str, schema: pa.Schema, name: str) -> None:
        self.out, self.dataset, self.schema, self.rows = out, dataset, schema, 0
        self._relative = f"{dataset}/{name}.parquet"
        self._writer = pq.ParquetWriter(out.path(self._relative), schema, compression="zstd", write_statistics=True)
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0

    def write(self, table: pa.Table) -> None:
        """Adds rows; the table must have exactly the schema."""
        if table.schema != self.schema:
            table = table.select(self.schema.names).cast(self.schema)
        self.rows += table.num_rows
        self._waiting.append(table)
        self._waiting_rows += table.num_rows
        if self._waiting_rows >= ROW_GROUP:
            whole = pa.concat_tables(self._waiting)
            cut = self._waiting_rows // ROW_GROUP * ROW_GROUP
            for start in range(0, cut, ROW_GROUP):
                self._flush(whole.slice(start, ROW_GROUP))
            self._waiting, self._waiting_rows = [whole.slice(cut)], self._waiting_rows - cut

    def _flush(self, table: pa.Table) -> None:
        # A slice or a chunked column would show in the pages; rebuilding the rows makes equal rows equal bytes.
        self._writer.write_table(
            table.take(pa.array(range(table.num_rows), pa.int64())).combine_chunks(), row_group_size=ROW_GROUP
        )

    def close(self) -> None:
        """Writes what is left and notes the number of rows."""
        if self._waiting_rows:
            self._flush(pa.concat_tables(self._waiting))
        self._writer.close()
        self.out.path(self._relative, self.rows)


class UnitTables:
    """The data sets one unit writes: a file each, counted by rows, decisions also by scope, rule and action."""

    def __init__(self, out: UnitOutput, schemas: dict[str, pa.Schema], name: str) -> None:
        self.out = out
        self._writers = {dataset: TableWriter(out, dataset, schema, name) for dataset, schema in schemas.items()}

    def write(self, dataset: str, rows: pa.Table | Sequence[Any]) -> None:
        """Adds an Arrow table, or rows as dicts."""
        writer = self._writers[dataset]
        table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows), schema=writer.schema)
        if not table.num_rows:
            return
        writer.write(table)
        if dataset == "decisions":
            for row in table.select(["scope", "rule", "action"]).to_pylist():
                self.out.count("decisions", row["scope"], row["rule"], row["action"])
        elif dataset == "asides":
            for reason in table["reason"].to_pylist():
                self.out.count("asides", reason)

    def progress(self, **amounts: int) -> None:
        """`UnitOutput.progress`."""
        self.out.progress(**amounts)

    def close(self) -> None:
        """Ends every file; a data set without rows has a file too, so that its schema can be read."""
        for dataset, writer in self._writers.items():
            writer.close()
            if not dataset.startswith("_work/"):
                self.out.count("rows", dataset, by=writer.rows)


def dataset_files(stage_dir: AnyPath, dataset: str) -> list[AnyPath]:
    """Files of a committed stage's data set, in order of name."""
    entries = read_manifest(stage_dir)["files"]
    return [stage_file(stage_dir, entry) for entry in entries if entry["path"].startswith(f"{dataset}/")]


@contextmanager
def parquet_file(path: AnyPath) -> Iterator[pq.ParquetFile]:
    """A Parquet file wherever it lies; from a store columns that lie close together come by one request."""
    if isinstance(path, Path):
        with pq.ParquetFile(path) as file:
            yield file
    else:
        with path.open() as stream, pq.ParquetFile(stream, pre_buffer=True) as file:
            yield file


def read_table(stage_dir: AnyPath, dataset: str, columns: list[str] | None = None, filters: Any = None) -> pa.Table:
    """A committed data set as one table; `columns` and `filters` as in `pyarrow.parquet.read_table`.

    Raises KeyError where the stage has no such data set.
    """
    files = dataset_files(stage_dir, dataset)
    if not files:
        raise KeyError(f"{stage_dir.name} has no data set {dataset!r}")
    table = pa.concat_tables([_read_file(file, columns, filters) for file in files])
    return decisions_as_now(table) if dataset == "decisions" else table


def _read_file(path: AnyPath, columns: list[str] | None, filters: Any) -> pa.Table:
    if isinstance(path, Path):
        return pq.read_table(path, columns=columns, filters=filters, partitioning=None)
    with path.open() as stream:
        return pq.read_table(stream, columns=columns, filters=filters, partitioning=None)


def read_decisions(stage_dir: AnyPath, rows: int = 4096) -> Iterator[pa.Table]:
    """A committed stage's decisions in tables of at most `rows` rows, also those of an earlier schema."""
    for table in iter_batches(dataset_files(stage_dir, "decisions"), rows):
        yield decisions_as_now(table)


def iter_batches(files: Iterable[AnyPath], rows: int = 64, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The rows of Parquet files in order, in tables of at most `rows` rows."""
    for path in files:
        with parquet_file(path) as file:
            for batch in file.iter_batches(batch_size=rows, columns=columns):
                yield pa.Table.from_batches([batch])
