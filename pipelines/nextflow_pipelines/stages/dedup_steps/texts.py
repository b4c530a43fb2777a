"""The texts' part of dedup: documents that share a text or a MinHash band are compared.

A signature goes through a shuffle once for each pair, to the bucket of the pair's other document; that document's own is
read from the file of summaries that has its bucket's number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from nextflow_data.config import DedupConfig
from nextflow_data.document import IMAGE
from nextflow_data.storage.store_path import AnyPath

from nextflow_pipelines.contract.tables import UnitTables, iter_batches
from nextflow_pipelines.spark.runner import bucket_of
from nextflow_pipelines.stages.common import read_documents, read_parquet
from nextflow_pipelines.stages.dedup_steps.sorted_tables import ROWS, beside, distinct, in_tables, shared
from nextflow_pipelines.stages.dedup_steps.survivors import survivors_of

if TYPE_CHECKING:
    from nextflow_data.dedup.texts import Side
    from pyspark.sql import DataFrame, SparkSession

_COMPARED = [("text", pa.binary()), ("images", pa.binary()), ("signature", pa.binary())]
SUMMARIES = pa.schema([("doc_id", pa.string()), ("address", pa.string()), ("order", pa.binary()), *_COMPARED])
KEYS = pa.schema([("key", pa.binary()), ("order", pa.binary()), ("doc_id", pa.string())])
OCCURRENCES = pa.schema(
    [
        *[(name, pa.string()) for name in ("image_id", "scope", "doc_id")],
        ("node", pa.int64()),
        *[(name, pa.string()) for name in ("sha256", "phash")],
        *[(name, pa.int64()) for name in ("width", "height")],
        ("image", IMAGE),
    ]
)
PAIRS = pa.schema([("parent", pa.string()), ("child", pa.string())])
"""Candidates: `parent` is earlier in order."""
EQUALS = pa.schema([("kept", pa.string()), ("doc_id", pa.string())])
SIDES = pa.schema([*PAIRS, *_COMPARED])
_KEPT = [("kept", pa.string()), ("kept_address", pa.string()), ("kept_text", pa.binary())]
COPIES = pa.schema([("doc_id", pa.string()), *_KEPT, ("value", pa.float64())])


def hash_documents(config: DedupConfig, payload: Any, out: UnitTables) -> None:
    from nextflow_data.dedup.images import occurrences
    from nextflow_data.dedup.texts import summarise

    for document in read_documents(payload["file"]):
        summary, keys = summarise(document, config)
        out.write("_work/summaries", [summary])
        out.write("_work/keys", [{"key": key, "order": summary["order"], "doc_id": summary["doc_id"]} for key in keys])
        nodes = document["nodes"]
        found = occurrences(document, config)
        out.write("_work/occurrences", [{**one, "image": nodes[one["node"]]["image"]} for one in found])


def by(column: str, files: Sequence[AnyPath], buckets: int, spark: SparkSession) -> DataFrame:
    """Files as a DataFrame, bucketed by a column."""
    rows = read_parquet(spark, files)
    return rows.withColumn("bucket", bucket_of(rows[column], buckets))


def text_pairs(bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    from nextflow_data.dedup.pairs import copies_and_pairs

    def write(batch: list[tuple[bool, str, str]]) -> None:
        for is_equal, dataset, schema in ((True, "_work/equals", EQUALS), (False, "_work/pairs", PAIRS)):
            chosen = [pair for equal, *pair in batch if equal == is_equal]
            columns = [pa.array([pair[n] for pair in chosen], pa.string()) for n in (0, 1)]
            out.write(dataset, pa.Table.from_arrays(columns, schema=schema))

    rows = (row for table in shared(tables, "key") for row in zip(*(c.to_pylist() for c in table.columns), strict=True))
    in_tables(copies_and_pairs(rows), write)


def with_child(summaries: Sequence[AnyPath], bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    """Each pair once, with what is compared of its later document."""
    columns = ["doc_id", *[name for name, _ in _COMPARED]]
    own = iter_batches(summaries[bucket : bucket + 1], ROWS, columns)
    for pairs, found in beside(distinct(tables, ["child", "parent"]), "child", own, "doc_id"):
        for name, _ in _COMPARED:
            pairs = pairs.append_column(name, found[name])
        out.write("_work/sides", pairs)


def verify_pairs(
    config: DedupConfig, summaries: Sequence[AnyPath], bucket: int, tables: Iterator[pa.Table], out: UnitTables
) -> None:
    from nextflow_data.dedup.texts import similarities

    columns = ["doc_id", *[name for name, _ in _COMPARED]]
    own = iter_batches(summaries[bucket : bucket + 1], ROWS, columns)
    for pairs, found in beside(tables, "parent", own, "doc_id"):
        values, copies = similarities(_side(pairs), _side(found), config)
        edges = pairs.select(["parent", "child"]).append_column("value", pa.array(values))
        out.write("_work/edges", edges.filter(pa.array(copies)))


def _side(table: pa.Table) -> Side:
    from nextflow_data.dedup.texts import Side

    return Side(*(table[name].to_pylist() for name, _ in _COMPARED))


def copies_of_documents(
    equals: Sequence[AnyPath], told: Sequence[AnyPath], summaries: Sequence[AnyPath], buckets: int, spark: SparkSession
) -> DataFrame:
    """The documents that go: a copy of one that stays, or the equal of such a copy, which has its survivor and its value."""
    from pyspark.sql import functions as F

    going = read_parquet(spark, equals).withColumn("value", F.lit(1.0))
    if told:
        best = survivors_of(spark, told, sign=-1)
        known = best.select(F.col("one").alias("kept"), F.col("kept").alias("instead"), F.col("value").alias("measured"))
        equal = going.join(known, "kept", "left").select(
            F.coalesce("instead", "kept").alias("kept"), "doc_id", F.coalesce("measured", "value").alias("value")
        )
        going = best.withColumnRenamed("one", "doc_id").unionByName(equal)
    kept = read_parquet(spark, summaries, ["doc_id", "address", "text"]).toDF("kept", "kept_address", "kept_text")
    return going.join(kept, "kept").withColumn("bucket", bucket_of(F.col("doc_id"), buckets))


def write_tables(dataset: str, bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    """Rows as they come."""
    for table in tables:
        out.write(dataset, table)
