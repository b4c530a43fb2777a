"""The images of ingest: those that some page names, read in file order, decoded and measured once, then put in order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from nextflow_data.common.range_opener import RangeOpener
from nextflow_data.document import IMAGE
from nextflow_data.records import RecordInfo, Unusable, put_aside
from nextflow_data.storage.store_path import AnyPath

from nextflow_pipelines.contract.tables import UnitTables
from nextflow_pipelines.first_pass import READ, RECORD
from nextflow_pipelines.sources import BoundSources
from nextflow_pipelines.spark.runner import bucket_of
from nextflow_pipelines.stages.common import read_parquet, rows_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

RECORDS = pa.schema(
    [
        READ.field("address"),
        pa.field("uri", pa.string(), nullable=False),
        *[READ.field(name) for name in RECORD[1:]],
        pa.field("doc_id", pa.string(), nullable=False),
    ]
)
LINKS = pa.schema(
    [pa.field("doc_id", pa.string(), nullable=False), pa.field("uri", pa.string()), pa.field("address", pa.string())]
)
IMAGES = pa.schema(
    [
        pa.field("address", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("rejected", pa.string()),
        pa.field("image", IMAGE),
    ]
)
MEASURED = pa.schema([*IMAGES, pa.field("length", pa.int64()), pa.field("detail", pa.string())])
MEASURED_SET = "_work/measured"


def record_of(row: Any) -> RecordInfo:
    """A row of RECORDS as the source listed it."""
    record: Any = {name: row[name] for name in RECORDS.names if name != "doc_id"}
    return record


def named_images(
    records: list[AnyPath], links: list[AnyPath], lies: list[tuple[str, int]], total: int, files: int, spark: SparkSession
) -> DataFrame:
    """The image records that a page names; a bucket is a stretch of the files one after the other."""
    from pyspark.sql import functions as F

    images = read_parquet(spark, records, schema=RECORDS).where("kind = 'image'")
    named = read_parquet(spark, links, ["address"], LINKS).distinct()
    begins = F.broadcast(spark.createDataFrame(lies, "uri string, begin long"))
    found = images.join(named, "address", "left_semi").join(begins, "uri")
    bucket = F.floor((F.col("begin") + F.col("offset")) * files / max(total, 1)).cast("int")
    return found.withColumn("bucket", F.least(bucket, F.lit(files - 1))).drop("begin")


class _AtHand(RangeOpener):
    """An opener that has one range already."""

    def __init__(self, opener: RangeOpener, uri: str, offset: int, content: bytes) -> None:
        self.opener, self.place, self.content = opener, (uri, offset), content

    def read(self, uri: str, offset: int, length: int) -> bytes:
        if (uri, offset) == self.place and length <= len(self.content):
            return self.content[:length]
        return self.opener.read(uri, offset, length)

    def open(self, uri: str) -> Any:
        return self.opener.open(uri)

    def read_many(self, uri: str, ranges: Any) -> Iterator[bytes]:
        return self.opener.read_many(uri, ranges)

    def size(self, uri: str) -> int:
        return self.opener.size(uri)


def measure(sources: BoundSources, bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    """Reads image records in the order in which they lie, and measures each."""
    for uri, group in groupby(rows_of(tables), key=lambda row: row["uri"]):
        rows = list(group)
        source = sources.source(uri)
        contents = sources.opener.read_many(uri, [(row["offset"], row["length"]) for row in rows])
        for row, content in zip(rows, contents, strict=True):
            measured: dict[str, Any] = {name: row[name] for name in ("address", "uri", "offset", "length")}
            record = record_of(row)
            try:
                at_hand = _AtHand(sources.opener, uri, row["offset"], content)
                measured["image"] = source.image(record, source.payload(record, at_hand))
            except Unusable as error:
                measured |= {"rejected": error.reason, "detail": error.detail}
            out.write(MEASURED_SET, [measured])
            out.progress(images=1)


def by_address(measured: list[AnyPath], files: int, spark: SparkSession) -> DataFrame:
    """Measured images by their address."""
    found = read_parquet(spark, measured, schema=MEASURED)
    return found.withColumn("bucket", bucket_of(found["address"], files))


def write_images(bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    """The data set of images, and an aside for each that cannot be used."""
    for row in rows_of(tables):
        if row["rejected"] is not None:
            record: Any = row
            out.write("asides", [put_aside(record, Unusable(row["rejected"], row["detail"]))])
        out.out.count("images", "measured" if row["rejected"] is None else "unusable")
        out.write("images", [row])
