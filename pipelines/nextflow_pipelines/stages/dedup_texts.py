"""The texts' part of dedup: documents that share a text hash or a MinHash band are compared, and copies are named."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from nextflow_data.config import DedupConfig
from nextflow_data.document import IMAGE

from nextflow_pipelines.contract.tables import UnitTables
from nextflow_pipelines.spark.runner import bucket_of
from nextflow_pipelines.stages.common import file_of, read_documents, read_parquet, read_rows, rows_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

SUMMARIES = pa.schema(
    [
        ("doc_id", pa.string()),
        ("address", pa.string()),
        ("images", pa.int64()),
        ("characters", pa.int64()),
        ("text_hash", pa.string()),
        ("signature", pa.list_(pa.int64())),
    ]
)
BANDS = pa.schema([("key", pa.string()), ("doc_id", pa.string())])
OCCURRENCES = pa.schema(
    [
        ("doc_id", pa.string()),
        ("address", pa.string()),
        ("node", pa.int64()),
        ("sha256", pa.string()),
        ("phash", pa.string()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("image", IMAGE),
    ]
)
PAIRS = pa.schema([("a", pa.string()), ("b", pa.string()), ("exact", pa.bool_())])
EDGES = pa.schema([("a", pa.string()), ("b", pa.string()), ("value", pa.float64())])


def hash_documents(config: DedupConfig, payload: Any, out: UnitTables) -> None:
    import numpy as np
    from nextflow_data.dedup.images import occurrences
    from nextflow_data.dedup.minhash import signature_keys
    from nextflow_data.dedup.texts import summarise

    for document in read_documents(payload["file"]):
        summary = summarise(document, config)
        out.write("_work/summaries", [summary])
        keys = ["text:" + summary["text_hash"]]
        if summary["signature"] is not None:
            keys += ["band:" + key.hex() for key in signature_keys(np.array(summary["signature"], dtype=np.uint32), config)]
        out.write("_work/bands", [{"key": key, "doc_id": document["doc_id"]} for key in keys])
        nodes = document["nodes"]
        out.write(
            "_work/occurrences", [{**found, "image": nodes[found["node"]]["image"]} for found in occurrences(document)]
        )


def by_key(bands: list[Path], files: int, spark: SparkSession) -> DataFrame:
    from pyspark.sql import functions as F

    listed = read_parquet(spark, bands)
    shared = listed.groupBy("key").count().where("count > 1").select("key")
    return listed.join(shared, "key", "left_semi").withColumn("bucket", bucket_of(F.col("key"), files))


def text_pairs(bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    from nextflow_data.dedup.clusters import bucket_pairs

    for key, group in groupby(rows_of(tables), key=lambda row: row["key"]):
        exact = key.startswith("text:")
        pairs = bucket_pairs([row["doc_id"] for row in group])
        out.write("_work/pairs", [{"a": a, "b": b, "exact": exact} for a, b in pairs])


def signature_pairs(pairs: list[Path], summaries: list[Path], files: int, spark: SparkSession) -> DataFrame:
    """Each pair once, with both signatures."""
    from pyspark.sql import functions as F

    once = read_parquet(spark, pairs).groupBy("a", "b").agg(F.max("exact").alias("exact"))
    signatures = read_parquet(spark, summaries).select("doc_id", "signature")
    for side in ("a", "b"):
        renamed = signatures.select(F.col("doc_id").alias(side), F.col("signature").alias(f"signature_{side}"))
        once = once.join(renamed, side)
    return once.withColumn("bucket", bucket_of(F.col("a"), files))


def verify_pairs(config: DedupConfig, bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    import numpy as np
    from nextflow_data.dedup.minhash import similarity_of

    for row in rows_of(tables):
        value = 1.0 if row["exact"] else similarity_of(np.array(row["signature_a"]), np.array(row["signature_b"]))
        if value >= config.min_similarity:
            out.write("_work/edges", [{"a": row["a"], "b": row["b"], "value": value}])


def document_drops(
    config: DedupConfig, edges: list[Path], summaries: list[Path], files: int, number: int, out: UnitTables
) -> None:
    from nextflow_data.dedup.texts import decide_documents

    found = sorted((row["a"], row["b"], row["value"]) for row in read_rows(edges))
    ids = {one for a, b, _ in found for one in (a, b)}
    known: dict[str, Any] = {row["doc_id"]: row for row in read_rows(summaries) if row["doc_id"] in ids}
    decisions = decide_documents(known, found, config)
    out.write("_work/drops", [decision for decision in decisions if file_of(decision["doc_id"], files) == number])
