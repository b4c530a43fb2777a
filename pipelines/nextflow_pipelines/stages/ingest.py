"""ingest: source files to documents. What is read how often:

1. first pass (`nextflow_pipelines.first_pass`): every source file once, from end to end. Each page is parsed once and
   becomes a draft: its text and its images by address, `data:` images measured already.
2. records: what the pass gave gets the file's name, which is its content's hash, and documents' ids.
3. measure: the image records that some page names, in the order in which they lie in their files, neighbours by one request;
   each is decoded and measured once.
4. images: each measured image goes to the file that its address hashes to.
5. assemble: drafts meet the measured images of their addresses and become documents. No source is read.

What is shuffled is keys and measures, and each draft twice: to meet its images, and to the file that its document's id
hashes to. Sources of other packages that cannot be read in one pass (`nextflow_data.sources.base`) are read again for each
document in step 5.

Data sets: documents, decisions, asides, records (what each source holds), images (each image record that a page names, with
its measures or the reason why it cannot be used).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from nextflow_data.common.stage_names import INGEST as NAME
from nextflow_data.config import IngestConfig
from nextflow_data.document import doc_id
from nextflow_data.records import RecordInfo, Unusable, put_aside
from nextflow_data.sources.base import Found, Made, Source, SourceConfig
from nextflow_data.sources.one_pass import OnePass
from nextflow_data.storage.store_path import AnyPath

from nextflow_pipelines.contract.stage import StagePlan
from nextflow_pipelines.contract.tables import SCHEMAS, UnitTables, iter_batches
from nextflow_pipelines.contract.work import StageWork
from nextflow_pipelines.first_pass import Passed, discard, first_pass, pass_plan
from nextflow_pipelines.inputs import InputFile, KnownContents, input_files, is_listed, twice
from nextflow_pipelines.sources import BoundSources, reference, source_opener
from nextflow_pipelines.spark.context import NotKnown, RunContext, StageResult, run_contract
from nextflow_pipelines.spark.runner import Unit, bucket_of, run_frame, run_units
from nextflow_pipelines.stages.common import read_parquet, rows_of
from nextflow_pipelines.stages.ingest_images import (
    IMAGES,
    LINKS,
    MEASURED,
    MEASURED_SET,
    RECORDS,
    by_address,
    measure,
    named_images,
    record_of,
    write_images,
)

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

VERSION = 3

DRAFTS = pa.schema([*RECORDS, *(pa.field(name, pa.string()) for name in ("draft", "reason", "detail"))])
_LINKS, _DRAFTS = "_work/links", "_work/drafts"
_ROWS = 1024


def carry_out(ctx: RunContext, config: IngestConfig, entries: Sequence[SourceConfig]) -> StageResult:
    """Ingests source files. Raises, before any work, FileNotFoundError for a missing one, ValueError for one that two
    entries name; NotKnown where it is only looked for and no pass has found out what the files hold."""
    ctx.progress(0, None, "looking at the input files")
    files = input_files(entries, ctx.storage)
    if any(is_listed(name) for entry in entries for name in entry.files):
        ctx.progress(0, None, f"{len(files):,} input files are listed")
    known = KnownContents(ctx.root, files)
    passed: list[Passed] | None = None
    if known.unknown() and ctx.look:
        if not known.look():
            raise NotKnown(NAME)
    elif known.unknown():
        passed = first_pass(ctx, config, entries, files, known)
        known.learn({file.place.key: one.sha256 for file, one in zip(files, passed, strict=True)})
    numbers, sources = _by_content(ctx, config, entries, files, known)
    uris = list(sources.sha256)
    parameters: dict[str, Any] = {"ingest": config.identity(), "files": ctx.spark.files, "sources": uris}
    settings = sources.settings()
    plan = StagePlan(NAME, VERSION, parameters | ({"source_settings": settings} if settings else {}), dict(sources.sha256))

    def work_on(work: StageWork) -> tuple[list[str], Mapping[str, Any]]:
        read = passed if passed is not None else first_pass(ctx, config, entries, files, known)
        return _work(ctx, sources, [(uri, files[n], read[n]) for uri, n in zip(uris, numbers, strict=True)], work)

    result = run_contract(ctx, plan, work_on)
    if not ctx.look:
        discard(ctx, pass_plan(config, entries, known))
    return result


def _by_content(
    ctx: RunContext,
    config: IngestConfig,
    entries: Sequence[SourceConfig],
    files: Sequence[InputFile],
    known: KnownContents,
) -> tuple[list[int], BoundSources]:
    """The sources, each content of an entry once, with the number of the file that stands for each."""
    sha256: dict[str, str] = {}
    entry_of: dict[str, int] = {}
    numbers: list[int] = []
    seen: set[tuple[int, str]] = set()
    for number, file in enumerate(files):
        digest = known.sha256(file)
        if (file.entry, digest) in seen:
            continue
        seen.add((file.entry, digest))
        uri = reference(file.kind, digest, file.place.path.name)
        if uri in entry_of:
            raise twice(files[numbers[list(entry_of).index(uri)]], file.entry)
        sha256[uri], entry_of[uri] = digest, file.entry
        numbers.append(number)
    return numbers, BoundSources(config, entries, sha256, entry_of, source_opener(ctx.root, ctx.storage))


def _work(
    ctx: RunContext, sources: BoundSources, read: Sequence[tuple[str, InputFile, Passed]], work: StageWork
) -> tuple[list[str], Mapping[str, Any]]:
    files, progress = ctx.spark.files, ctx.progress
    scans = run_units(
        ctx.session,
        work,
        [Unit(f"scan-{number:05d}", [uri, one.parts]) for number, (uri, _, one) in enumerate(read)],
        partial(_name, sources),
        {"records": RECORDS, "asides": SCHEMAS["asides"], _LINKS: LINKS, _DRAFTS: DRAFTS},
        progress,
        "2/5 naming records",
    )
    records, links = work.files(scans, "records"), work.files(scans, _LINKS)
    any_images = any("image" in record["counts"].get("records", {}) for record in work.records(scans))
    lies: list[tuple[str, int]] = []
    total = 0
    for uri, file, _ in read:
        lies.append((uri, total))
        total += file.place.state.size
    measured = run_frame(
        ctx.session,
        work,
        "measured",
        files,
        partial(named_images, records, links, lies, total, files) if any_images else None,
        ["uri", "offset"],
        partial(measure, sources),
        {MEASURED_SET: MEASURED},
        progress,
        "3/5 measuring images",
    )
    images = run_frame(
        ctx.session,
        work,
        "images",
        files,
        partial(by_address, work.files(measured, MEASURED_SET), files) if any_images else None,
        ["address", "uri", "offset"],
        write_images,
        {"images": IMAGES, "asides": SCHEMAS["asides"]},
        progress,
        "4/5 sorting images",
    )
    measured_files = work.files(images, "images") if any_images else []
    documents = run_frame(
        ctx.session,
        work,
        "part",
        files,
        partial(_drafts_with_images, work.files(scans, _DRAFTS), links, measured_files, files),
        ["doc_id", "uri", "offset"],
        partial(_assemble, sources),
        SCHEMAS,
        progress,
        "5/5 assembling documents",
    )
    return [*scans, *images, *documents], {}


def _name(sources: BoundSources, payload: Any, out: UnitTables) -> None:
    """Gives the records of a file its uri."""
    uri, parts = payload
    source = sources.source(uri)
    for rows, asides, before in parts:
        for table in iter_batches([rows], _ROWS):
            _write_named(source, uri, before, table, out)
        for table in iter_batches([asides], _ROWS):
            named = [
                {**row, "uri": uri, "address": _named(source, row["address"], uri, before)} for row in table.to_pylist()
            ]
            out.write("asides", named)


def _named(source: Source[Any], text: str | None, uri: str, before: int) -> str | None:
    return source.named(text, uri, before) if text is not None and isinstance(source, OnePass) else text


def _write_named(source: Source[Any], uri: str, before: int, table: pa.Table, out: UnitTables) -> None:
    new: dict[str, Any] = {"uri": pa.array([uri] * table.num_rows)}
    for column in ("address", "record_id"):
        new[column] = [_named(source, text, uri, before) for text in table[column].to_pylist()]
    new["doc_id"] = [doc_id(*names) for names in zip(new["address"], new["record_id"], strict=True)]
    columns = {name: new.get(name, table[name] if name in table.column_names else None) for name in DRAFTS.names}
    named = pa.table(columns, schema=DRAFTS)
    out.write("records", named.select(RECORDS.names))
    kinds = table["kind"].to_pylist()
    for kind in kinds:
        out.out.count("records", kind)
    makes = pa.array([kind in ("page", "document") for kind in kinds])
    out.write(_DRAFTS, named.filter(makes))
    links = zip(new["doc_id"], table["links"].to_pylist(), strict=True)
    out.write(_LINKS, [{"doc_id": name, "uri": uri, "address": one} for name, named in links for one in named or ()])


def _drafts_with_images(
    drafts: list[AnyPath], links: list[AnyPath], images: list[AnyPath], files: int, spark: SparkSession
) -> DataFrame:
    """A row a document with `found`: the image record for each address, of the page's own file if that has it. Without
    `images` no address has one."""
    from pyspark.sql import functions as F

    rows = read_parquet(spark, drafts, schema=DRAFTS)
    rows = rows.withColumn("bucket", bucket_of(rows["doc_id"], files))
    if not images:
        return rows.withColumn("found", F.lit(None).cast("array<string>"))
    measured = read_parquet(spark, images, schema=IMAGES).withColumnsRenamed({"uri": "image_uri", "offset": "image_offset"})
    joined = read_parquet(spark, links, schema=LINKS).join(measured, "address")
    # Usable before unusable, own source before others, then the first.
    best = F.struct(F.col("rejected").isNotNull(), F.col("image_uri") != F.col("uri"), "image_uri", "image_offset")
    chosen = joined.groupBy("doc_id", "uri", "address").agg(F.min_by(F.struct("rejected", "image"), best).alias("best"))
    found = chosen.groupBy("doc_id", "uri").agg(
        F.collect_list(F.struct("address", "best.rejected", "best.image")).alias("found")
    )
    return rows.join(found, ["doc_id", "uri"], "left")


def _assemble(sources: BoundSources, bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    last = None
    for row in rows_of(tables):
        record = record_of(row)
        if row["doc_id"] == last:
            repeated = Unusable("duplicate-record", "another source holds the same record")
            out.write("asides", [put_aside(record, repeated)])
            continue
        last = row["doc_id"]
        try:
            made = _made(sources, record, row)
        except Unusable as error:
            out.write("asides", [put_aside(record, error)])
            continue
        if made.document is not None:
            out.write("documents", [made.document])
            out.out.count("images", "in documents", by=sum(n["kind"] == "image" for n in made.document["nodes"]))
        out.write("decisions", made.decisions)
        out.write("asides", made.asides)


def _made(sources: BoundSources, record: RecordInfo, row: Any) -> Made:
    """The document of a draft. Raises Unusable."""
    if row["reason"] is not None:
        raise Unusable(row["reason"], row["detail"])
    named = row["found"] or []
    found = Found(
        {one["address"]: one["image"] for one in named if one["image"] is not None},
        {one["address"]: one["rejected"] for one in named if one["rejected"] is not None},
    )
    source = sources.source(row["uri"])
    if isinstance(source, OnePass):
        return source.finish(record, row["draft"], found)
    return source.document(record, source.payload(record, sources.opener), found)
