"""ingest: source files to documents, in four steps of which each shuffles only keys.

1. scan: every source file is read once from end to end; its records (address, place, kind) become rows.
2. links: every page is parsed for the image addresses it names.
3. measure: every image record that some page names is decoded and measured, once.
4. assemble: pages meet the measured images of their addresses and become documents.

A page is parsed in step 2 and again in step 4: the parsed page, with its `data:` images, would be the largest thing ever
shuffled, and parsing costs about 1.5 ms.

Data sets: documents, decisions, asides, records (what each source holds), images (each image record that a page names, with
its measures or the reason why it cannot be used).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from nextflow_data.config import IngestConfig
from nextflow_data.decisions import Aside, aside
from nextflow_data.document import IMAGE, Image, Ref, doc_id
from nextflow_data.images.measure import ImageRejected
from nextflow_data.pages.assemble import assemble, image_addresses, measured_image
from nextflow_data.pages.blocks import ParsedPage
from nextflow_data.pages.parse import PageRejected, parse_page
from nextflow_data.stage_names import INGEST as NAME
from nextflow_data.warc.records import RecordError, read, ref_of, scan

from nextflow_pipelines.contract.stage import StagePlan
from nextflow_pipelines.contract.tables import SCHEMAS, UnitTables
from nextflow_pipelines.contract.work import StageWork
from nextflow_pipelines.sources import bind_sources, local_ref
from nextflow_pipelines.spark.context import RunContext, StageResult, run_contract
from nextflow_pipelines.spark.runner import Unit, bucket_of, run_frame, run_units
from nextflow_pipelines.stages.common import read_parquet

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


def carry_out(ctx: RunContext, config: IngestConfig, paths: Sequence[Path]) -> StageResult:
    """Ingests source files. Raises FileNotFoundError for a missing one, before any work."""
    ctx.progress(0, None, "hashing the sources")
    sources = bind_sources(ctx.root, paths, link_them=not ctx.look)
    plan = StagePlan(
        NAME,
        VERSION,
        {"ingest": config.identity(), "files": ctx.spark.files, "sources": [s.uri for s in sources]},
        {source.uri: source.sha256 for source in sources},
    )
    return run_contract(ctx, plan, partial(_work, ctx, config, [s.uri for s in sources]))


def _work(ctx: RunContext, config: IngestConfig, uris: list[str], work: StageWork) -> tuple[list[str], Mapping[str, Any]]:
    root, files, progress = ctx.root.resolve(), ctx.spark.files, ctx.progress
    scans = run_units(
        ctx.session,
        work,
        [Unit(f"scan-{number:05d}", uri) for number, uri in enumerate(uris)],
        partial(_scan, root, config),
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
        partial(_pages, records, files),
        ["doc_id", "uri", "offset"],
        partial(_find_links, root, config),
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
        partial(_measure, root, config),
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
        partial(_assemble, root, config),
        SCHEMAS,
        progress,
        "4/4 assembling documents",
    )
    return [*scans, *images, *documents], {}


def _scan(root: Path, config: IngestConfig, uri: str, out: UnitTables) -> None:
    records: list[Any] = []
    asides: list[Any] = []
    for found in scan(str(root / uri), config):
        if "reason" in found:
            asides.append({**found, "uri": uri})
        else:
            records.append({**found, "uri": uri, "doc_id": doc_id(found["address"], found["record_id"])})
            out.out.count("records", found["kind"])
        if len(records) >= 1024:
            out.write("records", records)
            records.clear()
    out.write("records", records)
    out.write("asides", asides)


def _pages(records: list[Path], files: int, spark: SparkSession) -> DataFrame:
    pages = read_parquet(spark, records).where("kind = 'page'")
    return pages.withColumn("bucket", bucket_of(pages["doc_id"], files))


def _ref(root: Path, row: Any) -> Ref:
    return local_ref(root, {"uri": row["uri"], "offset": row["offset"], "length": row["length"]})


def _parse(root: Path, config: IngestConfig, row: Any) -> ParsedPage:
    """Raises RecordError and PageRejected."""
    try:
        payload = read(_ref(root, row), config, config.max_page_bytes)
    except RecordError as error:
        if error.reason == "payload-too-large":
            raise PageRejected("page-too-large", error.detail) from None
        raise
    return parse_page(payload, row["address"], row["charset"], config)


def _find_links(root: Path, config: IngestConfig, bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    for table in tables:
        for row in table.to_pylist():
            try:
                addresses = image_addresses(_parse(root, config, row))
            except (RecordError, PageRejected):
                continue  # step 4 meets it again and puts it aside
            out.write(_LINKS, [{"doc_id": row["doc_id"], "uri": row["uri"], "address": address} for address in addresses])


def _named_images(records: list[Path], links: list[Path], files: int, spark: SparkSession) -> DataFrame:
    images = read_parquet(spark, records).where("kind = 'image'")
    named = read_parquet(spark, links).select("address").distinct()
    found = images.join(named, "address", "left_semi")
    return found.withColumn("bucket", bucket_of(found["address"], files))


def _measure(root: Path, config: IngestConfig, bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    for table in tables:
        for row in table.to_pylist():
            measured: dict[str, Any] = {k: row[k] for k in ("address", "uri", "offset")}
            try:
                image = measured_image(row, read(_ref(root, row), config, config.max_image_bytes), config)
                measured["image"] = image
            except (ImageRejected, RecordError) as error:
                measured["rejected"] = error.reason
                out.write("asides", [_put_aside(row, error.reason, error.detail)])
            out.out.count("images", "unusable" if "rejected" in measured else "measured")
            out.write("images", [measured])


def _pages_with_images(
    records: list[Path], links: list[Path], images: list[Path], files: int, spark: SparkSession
) -> DataFrame:
    """A row a page with `found`: the image record for each address, of the page's own source if that has it."""
    from pyspark.sql import functions as F

    measured = read_parquet(spark, images).withColumnsRenamed({"uri": "image_uri", "offset": "image_offset"})
    joined = read_parquet(spark, links).join(measured, "address")
    # Usable before unusable, own source before others, then the first.
    best = F.struct(F.col("rejected").isNotNull(), F.col("image_uri") != F.col("uri"), "image_uri", "image_offset")
    chosen = joined.groupBy("doc_id", "uri", "address").agg(F.min_by(F.struct("rejected", "image"), best).alias("best"))
    found = chosen.groupBy("doc_id", "uri").agg(
        F.collect_list(F.struct("address", "best.rejected", "best.image")).alias("found")
    )
    return _pages(records, files, spark).join(found, ["doc_id", "uri"], "left")


def _assemble(root: Path, config: IngestConfig, bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    last = None
    for table in tables:
        for row in table.to_pylist():
            if row["doc_id"] == last:
                out.write("asides", [_put_aside(row, "duplicate-record", "another source holds the same record")])
                continue
            last = row["doc_id"]
            found = row.pop("found") or []
            try:
                parsed = _parse(root, config, row)
            except (RecordError, PageRejected) as error:
                out.write("asides", [_put_aside(row, error.reason, getattr(error, "detail", str(error)))])
                continue
            usable: dict[str, Image] = {f["address"]: f["image"] for f in found if f["image"] is not None}
            rejected = {f["address"]: f["rejected"] for f in found if f["rejected"] is not None}
            document, decisions, asides = assemble(row, parsed, usable, config, rejected)
            if document is not None:
                out.write("documents", [document])
                out.out.count("images", "in documents", by=sum(n["kind"] == "image" for n in document["nodes"]))
            out.write("decisions", decisions)
            out.write("asides", asides)


def _put_aside(row: Any, reason: str, detail: str) -> Aside:
    return aside(NAME, reason, row["address"], ref_of(row), detail)
