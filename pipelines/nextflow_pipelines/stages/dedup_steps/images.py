"""The images' part of dedup: candidates by perceptual hash, confirmed on pixels. Each image is decoded once for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from nextflow_data.config import DedupConfig, IngestConfig
from nextflow_data.document import IMAGE, Image
from nextflow_data.storage.store_path import AnyPath

from nextflow_pipelines.contract.tables import UnitTables, iter_batches
from nextflow_pipelines.images_ahead import ImagesAhead
from nextflow_pipelines.spark.runner import bucket_of
from nextflow_pipelines.stages.common import read_parquet
from nextflow_pipelines.stages.dedup_steps.sorted_tables import beside, changes, distinct, shared
from nextflow_pipelines.stages.dedup_steps.survivors import survivors_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

PLACES = pa.schema([("image_id", pa.string()), ("doc_id", pa.string()), ("node", pa.int64())])
IMAGES = pa.schema(
    [
        *PLACES,
        *[(name, pa.string()) for name in ("scope", "sha256", "phash")],
        *[(name, pa.int64()) for name in ("width", "height")],
        ("order", pa.binary()),
        ("image", IMAGE),
    ]
)
THUMBNAILS = pa.schema([("image_id", pa.string()), ("thumbnail", pa.binary())])
SIDES = pa.schema([("parent", pa.string()), ("child", pa.string()), ("thumbnail", pa.binary())])
COPIES = pa.schema(
    [
        ("doc_id", pa.string()),
        ("node", pa.int64()),
        ("equal", pa.bool_()),
        ("kept_doc_id", pa.string()),
        ("kept_node", pa.int64()),
        ("kept_sha256", pa.string()),
        ("value", pa.float64()),
    ]
)
_FEW = 64
"""Rows with images in a table: their thumbnails are made before it is handed on."""


def images_left(occurrences: Sequence[AnyPath], gone: Sequence[AnyPath], buckets: int, spark: SparkSession) -> DataFrame:
    """The image nodes of documents that stay."""
    left = read_parquet(spark, occurrences).join(read_parquet(spark, gone, ["doc_id"]), "doc_id", "left_anti")
    return left.withColumn("bucket", bucket_of(left["image_id"], buckets))


def distinct_images(config: DedupConfig, bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    """Of nodes with equal bytes the first stands for all."""
    from nextflow_data.dedup.order import image_order

    for table, new in changes(tables, ["image_id"]):
        out.write("_work/equal-images", table.filter(pa.array(~new)).select(PLACES.names))
        first = table.filter(pa.array(new))
        rows = first.select(["width", "height", "doc_id", "node", "image_id"]).to_pylist()
        orders = [image_order(r["width"], r["height"], (r["doc_id"], r["node"]), r["image_id"], config) for r in rows]
        out.write("_work/images", first.append_column("order", pa.array(orders, pa.binary())))


def images_by_key(images: Sequence[AnyPath], config: DedupConfig, buckets: int, spark: SparkSession) -> DataFrame:
    """A row for each key of each distinct image."""
    rows = read_parquet(spark, images, ["image_id", "scope", "order", "phash", "width", "height"])
    keyed = rows.mapInArrow(
        partial(_keys_of_images, config), "key binary, order binary, image_id string, hash long, aspect double"
    )
    return keyed.withColumn("bucket", bucket_of(keyed["key"], buckets))


def _keys_of_images(config: DedupConfig, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Of images that are looked for within their document, the document is the key: it has few."""
    from nextflow_data.dedup.near_hashes import KEY_BYTES, hash_keys

    for batch in batches:
        if not batch.num_rows:
            continue
        hashes = np.frombuffer(bytes.fromhex("".join(batch["phash"].to_pylist())), ">u8").astype(np.uint64)
        if config.across_documents:
            keys = hash_keys(hashes, config)
            times, packed = keys.shape[1], pa.py_buffer(np.ascontiguousarray(keys).tobytes())
            column = pa.Array.from_buffers(pa.binary(KEY_BYTES), keys.shape[0] * times, [None, packed]).cast(pa.binary())
        else:
            times, column = 1, batch["scope"].cast(pa.binary())
        places = pa.array(np.repeat(np.arange(batch.num_rows), times))
        aspects = np.log(batch["width"].to_numpy()) - np.log(batch["height"].to_numpy())
        columns = [batch["order"], batch["image_id"], pa.array(hashes.view(np.int64)), pa.array(aspects)]
        yield pa.RecordBatch.from_arrays(
            [column, *[c.take(places) for c in columns]], ["key", "order", "image_id", "hash", "aspect"]
        )


def image_pairs(config: DedupConfig, bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    from nextflow_data.dedup.near_hashes import BLOCK, NearHashes

    near: NearHashes | None = None
    waiting: list[pa.Table] = []

    def compare(last: bool) -> list[tuple[str, str]]:
        """Compares what waits of one key, in whole blocks, and at its end the rest."""
        assert near is not None
        whole, found = pa.concat_tables(waiting), []
        end = whole.num_rows if last else whole.num_rows // BLOCK * BLOCK
        for start in range(0, end, BLOCK):
            block = whole.slice(start, min(BLOCK, end - start))
            hashes, aspects = block["hash"].to_numpy().view(np.uint64), block["aspect"].to_numpy()
            found += near.add(block["image_id"].to_pylist(), hashes, aspects)
        waiting[:] = [whole.slice(end)]
        return found

    def write(pairs: list[tuple[str, str]]) -> None:
        out.write("_work/image-pairs", pa.table({"parent": [p[0] for p in pairs], "child": [p[1] for p in pairs]}))

    for table, new in changes(shared(tables, "key"), ["key"]):
        starts = np.flatnonzero(new).tolist()
        found: list[tuple[str, str]] = []
        for start, stop in pairwise(sorted({0, *starts, table.num_rows})):
            if new[start]:
                found += compare(last=True) if near is not None else []
                near, waiting[:] = NearHashes(config), []
            waiting.append(table.slice(start, stop - start))
        if sum(part.num_rows for part in waiting) >= BLOCK:
            found += compare(last=False)
        write(found)
    if near is not None:
        write(compare(last=True))


def images_in_pairs(pairs: Sequence[AnyPath], buckets: int, spark: SparkSession) -> DataFrame:
    """(one, other): for the later image of a pair its earlier one; for the earlier "" as well, which comes first."""
    from pyspark.sql import functions as F

    found = read_parquet(spark, pairs)
    later = found.select(F.col("child").alias("one"), F.col("parent").alias("other"))
    rows = later.union(found.select("parent", F.lit("")).distinct())
    return rows.withColumn("bucket", bucket_of(rows["one"], buckets))


def make_thumbnails(
    loader: Callable[[], Callable[[Any], bytes]],
    config: DedupConfig,
    ingest: IngestConfig,
    images: Sequence[AnyPath],
    bucket: int,
    tables: Iterator[pa.Table],
    out: UnitTables,
) -> None:
    """Decodes each image of a pair once; `loader` makes what reads it. One that cannot be read has no thumbnail, and so no
    copies."""
    from nextflow_data.dedup.images import thumbnail
    from nextflow_data.records import Unusable

    own = iter_batches(images[bucket : bucket + 1], _FEW, ["image_id", "image"])
    parts = (t.slice(n, _FEW) for t in distinct(tables, ["one", "other"]) for n in range(0, t.num_rows, _FEW))

    def sides() -> Iterator[tuple[str, str, Image | None]]:
        """(one, other, the image where it is another than the row's before)."""
        last = None
        for rows, found in beside(parts, "one", own, "image_id"):
            for n, one in enumerate(rows["one"].to_pylist()):
                yield one, rows["other"][n].as_py(), None if one == last else found["image"][n].as_py()
                last = one

    small: bytes | None = None
    with ImagesAhead(loader()) as read:
        for one, other, image in read.ahead(sides(), lambda side: [] if side[2] is None else [side[2]]):
            if image is not None:
                try:
                    small = thumbnail(read(image), config, ingest)
                except Unusable:
                    small = None
            if small is not None and other:
                out.write("_work/image-sides", [{"parent": other, "child": one, "thumbnail": small}])
            elif small is not None:
                out.write("_work/thumbnails", [{"image_id": one, "thumbnail": small}])


def confirm_pairs(
    config: DedupConfig, thumbnails: Sequence[AnyPath], bucket: int, tables: Iterator[pa.Table], out: UnitTables
) -> None:
    from nextflow_data.dedup.images import differences

    own = iter_batches(thumbnails[bucket : bucket + 1], _FEW)
    for pairs, found in beside(tables, "parent", own, "image_id"):
        values = differences(pairs["thumbnail"].to_pylist(), found["thumbnail"].to_pylist())
        copies = pa.array(values <= config.image_max_difference)
        edges = pairs.select(["parent", "child"]).append_column("value", pa.array(values)).filter(copies)
        out.out.count("image pairs", "compared", by=pairs.num_rows)
        out.out.count("image pairs", "one image", by=edges.num_rows)
        out.write("_work/image-edges", edges)


def copies_of_images(
    equals: Sequence[AnyPath], images: Sequence[AnyPath], told: Sequence[AnyPath], buckets: int, spark: SparkSession
) -> DataFrame:
    """The image nodes that go: all of an image that is a copy of one that stays, and of one that stays all but the first."""
    from pyspark.sql import functions as F

    found = read_parquet(spark, equals)
    going = found.select("*", F.lit(True).alias("equal"), found["image_id"].alias("kept"), F.lit(0.0).alias("value"))
    first = read_parquet(spark, images, ["image_id", "doc_id", "node", "sha256"])
    if told:
        best = survivors_of(spark, told, sign=1).withColumnRenamed("one", "image_id")
        best = best.select("image_id", F.col("kept").alias("instead"), F.col("value").alias("measured"))
        going = going.join(best, "image_id", "left").select(
            *PLACES.names,
            F.col("instead").isNull().alias("equal"),
            F.coalesce("instead", "kept").alias("kept"),
            F.coalesce("measured", "value").alias("value"),
        )
        copies = first.join(best, "image_id").select(*PLACES.names, F.lit(False), "instead", "measured")
        going = going.union(copies)
    kept = first.toDF("kept", "kept_doc_id", "kept_node", "kept_sha256")
    return going.join(kept, "kept").select(*COPIES.names, bucket_of(F.col("doc_id"), buckets).alias("bucket"))
