"""The images' part of dedup: candidates by perceptual hash, confirmed on pixels, and which copy stays."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import combinations, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from nextflow_data.config import DedupConfig, IngestConfig

from nextflow_pipelines.contract.tables import UnitTables
from nextflow_pipelines.sources import image_loader
from nextflow_pipelines.spark.runner import bucket_of
from nextflow_pipelines.stages.common import read_parquet, read_rows, rows_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

LABELS = pa.schema([("sha256", pa.string()), ("label", pa.string())])


def _without_dropped(occurrences: list[Path], dropped: list[Path], spark: SparkSession) -> DataFrame:
    return read_parquet(spark, occurrences).join(read_parquet(spark, dropped).select("doc_id"), "doc_id", "left_anti")


def distinct_images(
    occurrences: list[Path], dropped: list[Path], files: int, config: DedupConfig, spark: SparkSession
) -> DataFrame:
    """A row for each key of each distinct image; only keys that two images have."""
    from pyspark.sql import functions as F

    fields = F.struct("phash", "width", "height")
    images = _without_dropped(occurrences, dropped, spark).groupBy("sha256").agg(F.min(fields).alias("one"))
    images = images.select("sha256", "one.*")
    keyed = images.mapInArrow(
        partial(_keys_of_images, config), "key string, sha256 string, phash string, width long, height long"
    )
    shared = keyed.groupBy("key").count().where("count > 1").select("key")
    return keyed.join(shared, "key", "left_semi").withColumn("bucket", bucket_of(F.col("key"), files))


def _keys_of_images(config: DedupConfig, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    from nextflow_data.dedup.images import image_keys

    for batch in batches:
        rows = [{"key": key.hex(), **row} for row in batch.to_pylist() for key in image_keys(row["phash"], config)]
        if rows:
            schema = pa.schema(
                [pa.field("key", pa.string()), *[batch.schema.field(n) for n in ("sha256", "phash", "width", "height")]]
            )
            yield pa.RecordBatch.from_pylist(rows, schema=schema)


def image_pairs(config: DedupConfig, bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    from nextflow_data.dedup.images import is_candidate

    for _, group in groupby(rows_of(tables), key=lambda row: row["key"]):
        for one, other in combinations(list(group), 2):
            if is_candidate(one, other, config):  # type: ignore[arg-type]
                out.write("_work/image-pairs", [{"a": one["sha256"], "b": other["sha256"], "exact": False}])


def pairs_with_images(pairs: list[Path], occurrences: list[Path], files: int, spark: SparkSession) -> DataFrame:
    from pyspark.sql import functions as F

    first = F.struct("image.ref.uri", "image.ref.offset", "image.address")
    refs = read_parquet(spark, occurrences).groupBy("sha256").agg(F.min_by("image", first).alias("image"))
    once = read_parquet(spark, pairs).select("a", "b").distinct()
    for side in ("a", "b"):
        once = once.join(refs.select(F.col("sha256").alias(side), F.col("image").alias(f"image_{side}")), side)
    return once.withColumn("bucket", bucket_of(F.col("a"), files))


def confirm_pairs(
    root: Path, config: DedupConfig, ingest: IngestConfig, bucket: int, tables: Iterator[pa.Table], out: UnitTables
) -> None:
    from nextflow_data.dedup.images import confirm

    read = image_loader(root, ingest)
    images: dict[str, Any] = {}
    pairs = []
    for row in rows_of(tables):
        images[row["a"]], images[row["b"]] = row["image_a"], row["image_b"]
        pairs.append((row["a"], row["b"]))
    edges = confirm(pairs, lambda sha256: read(images[sha256]), config, ingest)
    out.out.count("image pairs", "compared", by=len(pairs))
    out.out.count("image pairs", "one image", by=len(edges))
    out.write("_work/image-edges", [{"a": a, "b": b, "value": value} for a, b, value in edges])


def label_images(edges: list[Path], payload: Any, out: UnitTables) -> None:
    from nextflow_data.dedup.clusters import connected_components

    labels = connected_components((row["a"], row["b"]) for row in read_rows(edges))
    out.write("_work/labels", [{"sha256": sha256, "label": label} for sha256, label in sorted(labels.items())])


def image_groups(
    occurrences: list[Path], dropped: list[Path], labels: list[Path], files: int, spark: SparkSession
) -> DataFrame:
    """Image nodes with a group; only groups that have two."""
    from pyspark.sql import functions as F

    found = _without_dropped(occurrences, dropped, spark).drop("image").join(read_parquet(spark, labels), "sha256", "left")
    found = found.withColumn("label", F.coalesce("label", "sha256"))
    several = found.groupBy("label").count().where("count > 1").select("label")
    return found.join(several, "label", "left_semi").withColumn("bucket", bucket_of(F.col("label"), files))


def image_drops(config: DedupConfig, edges: list[str], bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    from nextflow_data.dedup.images import decide_images

    rows: list[Any] = list(rows_of(tables))
    present = {row["sha256"] for row in rows}
    known = sorted((e["a"], e["b"], e["value"]) for e in read_rows(Path(f) for f in edges) if e["a"] in present)
    out.write("_work/image-choices", decide_images(rows, known, config))
