"""ingest: source files to documents, in four steps of which each shuffles only keys.

1. scan: every source file is read once from end to end; its records (address, place, kind) become rows.
2. links: every page is read for the image addresses it names.
3. measure: every image record that some page names is decoded and measured, once.
4. assemble: pages meet the measured images of their addresses and become documents; records that make a document by
   themselves go from step 1 straight to this one.

What a record is and how it is read is its source's to say (`nextflow_data.sources`). A page is read and parsed in step 2
and again in step 4: the parsed page, with its `data:` images, would be the largest thing ever shuffled, and parsing costs
about 1.5 ms.

Data sets: documents, decisions, asides, records (what each source holds), images (each image record that a page names, with
its measures or the reason why it cannot be used).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from nextflow_data.common.stage_names import INGEST as NAME
from nextflow_data.config import IngestConfig
from nextflow_data.document import IMAGE, doc_id
from nextflow_data.records import RecordInfo, Unusable, put_aside
from nextflow_data.sources.base import Found, SourceConfig

from nextflow_pipelines.contract.stage import StagePlan
from nextflow_pipelines.contract.tables import SCHEMAS, UnitTables
from nextflow_pipelines.contract.work import StageWork
from nextflow_pipelines.sources import BoundSources
from nextflow_pipelines.spark.context import RunContext, StageResult, run_contract
from nextflow_pipelines.spark.runner import Unit, bucket_of, run_frame, run_units
from nextflow_pipelines.stages.common import read_parquet, rows_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

VERSION = 2

RECORDS = pa.schema(
    [
        pa.field("address", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("mime", pa.string()),
        pa.field("charset", pa.string()),
        pa.field("status", pa.int32()),
        pa.field("record_id", pa.string()),
        pa.field("date", pa.string()),
        pa.field("licence", pa.string()),
        pa.field("doc_id", pa.string(), nullable=False),
    ]
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
LINKS = pa.schema(
    [pa.field("doc_id", pa.string(), nullable=False), pa.field("uri", pa.string()), pa.field("address", pa.string())]
)
_LINKS = "_work/links"


def carry_out(ctx: RunContext, config: IngestConfig, entries: Sequence[SourceConfig]) -> StageResult:
    """Ingests source files. Raises, before any work, FileNotFoundError for a missing one, ValueError for one that two
    entries name."""
    ctx.progress(0, None, "hashing the sources")
    sources = BoundSources.bind(ctx.root, config, entries, link_them=not ctx.look)
    uris = list(sources.sha256)
    parameters: dict[str, Any] = {"ingest": config.identity(), "files": ctx.spark.files, "sources": uris}
    settings = sources.settings()
    plan = StagePlan(NAME, VERSION, parameters | ({"source_settings": settings} if settings else {}), dict(sources.sha256))
    return run_contract(ctx, plan, partial(_work, ctx, sources))


def _work(ctx: RunContext, sources: BoundSources, work: StageWork) -> tuple[list[str], Mapping[str, Any]]:
    files, progress = ctx.spark.files, ctx.progress
    scans = run_units(
        ctx.session,
        work,
        [Unit(f"scan-{number:05d}", uri) for number, uri in enumerate(sources.sha256)],
        partial(_scan, sources),
        {"records": RECORDS, "asides": SCHEMAS["asides"]},
        progress,
        "1/4 listing records",
    )
    records = work.files(scans, "records")
    links = run_frame(
        ctx.session,
        work,
        "links",
        files,
        partial(_of_kind, records, ("page",), files),
        ["doc_id", "uri", "offset"],
        partial(_find_links, sources),
        {_LINKS: LINKS},
        progress,
        "2/4 reading pages",
    )
    images = run_frame(
        ctx.session,
        work,
        "images",
        files,
        partial(_named_images, records, work.files(links, _LINKS), files),
        ["address", "uri", "offset"],
        partial(_measure, sources),
        {"images": IMAGES, "asides": SCHEMAS["asides"]},
        progress,
        "3/4 measuring images",
    )
    documents = run_frame(
        ctx.session,
        work,
        "part",
        files,
        partial(_pages_with_images, records, work.files(links, _LINKS), work.files(images, "images"), files),
        ["doc_id", "uri", "offset"],
        partial(_assemble, sources),
        SCHEMAS,
        progress,
        "4/4 assembling documents",
    )
    return [*scans, *images, *documents], {}


def _scan(sources: BoundSources, uri: str, out: UnitTables) -> None:
    records: list[Any] = []
    asides: list[Any] = []
    for found in sources.source(uri).records(uri, sources.opener):
        if "reason" in found:
            asides.append(found)
        else:
            records.append({**found, "doc_id": doc_id(found["address"], found["record_id"])})
            out.out.count("records", found["kind"])
        for dataset, rows in (("records", records), ("asides", asides)):
            if len(rows) >= 1024:
                out.write(dataset, rows)
                rows.clear()
    out.write("records", records)
    out.write("asides", asides)


def _of_kind(records: list[Path], kinds: Sequence[str], files: int, spark: SparkSession) -> DataFrame:
    found = read_parquet(spark, records)
    found = found.where(found["kind"].isin(*kinds))
    return found.withColumn("bucket", bucket_of(found["doc_id"], files))


def _find_links(sources: BoundSources, bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    for row in rows_of(tables):
        source = sources.source(row["uri"])
        try:
            addresses = source.links(_record(row), source.payload(_record(row), sources.opener))
        except Unusable:
            continue  # step 4 meets it again and puts it aside
        out.write(_LINKS, [{"doc_id": row["doc_id"], "uri": row["uri"], "address": address} for address in addresses])


def _named_images(records: list[Path], links: list[Path], files: int, spark: SparkSession) -> DataFrame:
    images = read_parquet(spark, records).where("kind = 'image'")
    named = read_parquet(spark, links).select("address").distinct()
    found = images.join(named, "address", "left_semi")
    return found.withColumn("bucket", bucket_of(found["address"], files))


def _measure(sources: BoundSources, bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    for row in rows_of(tables):
        measured: dict[str, Any] = {k: row[k] for k in ("address", "uri", "offset")}
        source = sources.source(row["uri"])
        try:
            measured["image"] = source.image(_record(row), source.payload(_record(row), sources.opener))
        except Unusable as error:
            measured["rejected"] = error.reason
            out.write("asides", [put_aside(_record(row), error)])
        out.out.count("images", "unusable" if "rejected" in measured else "measured")
        out.write("images", [measured])


def _pages_with_images(
    records: list[Path], links: list[Path], images: list[Path], files: int, spark: SparkSession
) -> DataFrame:
    """A row a document with `found`: the image record for each address, of the page's own file if that has it."""
    from pyspark.sql import functions as F

    measured = read_parquet(spark, images).withColumnsRenamed({"uri": "image_uri", "offset": "image_offset"})
    joined = read_parquet(spark, links).join(measured, "address")
    # Usable before unusable, own source before others, then the first.
    best = F.struct(F.col("rejected").isNotNull(), F.col("image_uri") != F.col("uri"), "image_uri", "image_offset")
    chosen = joined.groupBy("doc_id", "uri", "address").agg(F.min_by(F.struct("rejected", "image"), best).alias("best"))
    found = chosen.groupBy("doc_id", "uri").agg(
        F.collect_list(F.struct("address", "best.rejected", "best.image")).alias("found")
    )
    return _of_kind(records, ("page", "document"), files, spark).join(found, ["doc_id", "uri"], "left")


def _assemble(sources: BoundSources, bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    last = None
    for row in rows_of(tables):
        record = _record(row)
        if row["doc_id"] == last:
            repeated = Unusable("duplicate-record", "another source holds the same record")
            out.write("asides", [put_aside(record, repeated)])
            continue
        last = row["doc_id"]
        named = row["found"] or []
        found = Found(
            {one["address"]: one["image"] for one in named if one["image"] is not None},
            {one["address"]: one["rejected"] for one in named if one["rejected"] is not None},
        )
        source = sources.source(row["uri"])
        try:
            made = source.document(record, source.payload(record, sources.opener), found)
        except Unusable as error:
            out.write("asides", [put_aside(record, error)])
            continue
        if made.document is not None:
            out.write("documents", [made.document])
            out.out.count("images", "in documents", by=sum(n["kind"] == "image" for n in made.document["nodes"]))
        out.write("decisions", made.decisions)
        out.write("asides", made.asides)


def _record(row: Any) -> RecordInfo:
    """A row of RECORDS as the source listed it."""
    record: Any = {name: row[name] for name in RECORDS.names if name != "doc_id"}
    return record
