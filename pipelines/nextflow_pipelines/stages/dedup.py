"""dedup: copies of documents, then copies of images among the documents that stay.

Spark brings together what shares a key (text hash, MinHash band, blocks of a perceptual hash) and what must be compared; the
functions of `nextflow_data` decide. Candidate pairs of texts are verified on whole signatures, candidate pairs of images on
pixels. The driver holds the verified edges only, to find connected components: that is the cost of an exact answer, and it
grows with the number of duplicates, not of documents.

Data sets: documents (without the copies), decisions (each names the copy that stays).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from nextflow_data.common.stage_names import DEDUP as NAME
from nextflow_data.config import DedupConfig, IngestConfig
from nextflow_data.decisions import DECISION_SCHEMA
from nextflow_data.document import Document

from nextflow_pipelines.contract.stage import StagePlan
from nextflow_pipelines.contract.tables import SCHEMAS, UnitTables
from nextflow_pipelines.contract.work import StageWork
from nextflow_pipelines.spark.context import RunContext, StageResult, run_contract
from nextflow_pipelines.spark.runner import FrameFunction, Schemas, Unit, bucket_of, run_frame, run_local, run_units
from nextflow_pipelines.stages.common import (
    document_files,
    document_units,
    nothing_left,
    read_documents,
    read_parquet,
    rows_by_document,
)
from nextflow_pipelines.stages.dedup_images import (
    LABELS,
    confirm_pairs,
    distinct_images,
    image_drops,
    image_groups,
    image_pairs,
    label_images,
    pairs_with_images,
)
from nextflow_pipelines.stages.dedup_texts import (
    BANDS,
    EDGES,
    OCCURRENCES,
    PAIRS,
    SUMMARIES,
    by_key,
    document_drops,
    hash_documents,
    signature_pairs,
    text_pairs,
    verify_pairs,
)

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

VERSION = 2


def carry_out(ctx: RunContext, config: DedupConfig, ingest: IngestConfig, documents: StageResult) -> StageResult:
    """Removes copies among a committed stage's documents; `ingest` bounds what is decoded."""
    plan = StagePlan(NAME, VERSION, {"dedup": config.identity()}, {documents.name: documents.fingerprint})
    return run_contract(ctx, plan, lambda work: _Dedup(ctx, config, ingest, document_files(documents), work).units())


class _Dedup:
    """The steps of one run. Each is a set of units, so that a killed run goes on with the step it was in."""

    def __init__(
        self, ctx: RunContext, config: DedupConfig, ingest: IngestConfig, files: list[Path], work: StageWork
    ) -> None:
        self.ctx, self.config, self.ingest, self.files, self.work = ctx, config, ingest, files, work

    def units(self) -> tuple[list[str], Mapping[str, Any]]:
        self._summarise()
        dropped = self._document_decisions()
        images = self._image_decisions(dropped)
        schemas = {name: SCHEMAS[name] for name in ("documents", "decisions")}
        remove = partial(_remove, [str(f) for f in dropped], [str(f) for f in images])
        units = document_units("part", self.files)
        return run_units(self.ctx.session, self.work, units, remove, schemas, self.ctx.progress, "5/5 removing copies"), {}

    def _frame(
        self,
        prefix: str,
        make: Callable[[SparkSession], DataFrame],
        sort: list[str],
        function: FrameFunction,
        schemas: Schemas,
        note: str,
    ) -> list[Path]:
        """A `run_frame` with as many units as there are files; gives the files of its one data set."""
        names = run_frame(
            self.ctx.session, self.work, prefix, len(self.files), make, sort, function, schemas, self.ctx.progress, note
        )
        return self.work.files(names, next(iter(schemas)))

    def _summarise(self) -> None:
        schemas = {"_work/summaries": SUMMARIES, "_work/bands": BANDS, "_work/occurrences": OCCURRENCES}
        units = document_units("summaries", self.files)
        note = "1/5 hashing texts"
        names = run_units(
            self.ctx.session, self.work, units, partial(hash_documents, self.config), schemas, self.ctx.progress, note
        )
        self.summaries = self.work.files(names, "_work/summaries")
        self.bands = self.work.files(names, "_work/bands")
        self.occurrences = self.work.files(names, "_work/occurrences")

    def _document_decisions(self) -> list[Path]:
        """Which documents go: a file of decisions for each file of documents."""
        note = "2/5 comparing texts"
        pairs = self._frame(
            "pairs",
            partial(by_key, self.bands, len(self.files)),
            ["key", "doc_id"],
            text_pairs,
            {"_work/pairs": PAIRS},
            note,
        )
        edges = self._frame(
            "edges",
            partial(signature_pairs, pairs, self.summaries, len(self.files)),
            ["a", "b"],
            partial(verify_pairs, self.config),
            {"_work/edges": EDGES},
            note,
        )
        decide = partial(document_drops, self.config, edges, self.summaries, len(self.files))
        units = [Unit(f"drops-{number:05d}", number) for number in range(len(self.files))]
        names = run_local(self.work, units, decide, {"_work/drops": DECISION_SCHEMA})
        return self.work.files(names, "_work/drops")

    def _image_decisions(self, dropped: list[Path]) -> list[Path]:
        """Which images go from the documents that stay: a file of decisions for each file of documents."""
        files, occurrences = len(self.files), self.occurrences
        pairs = self._frame(
            "image-pairs",
            partial(distinct_images, occurrences, dropped, files, self.config),
            ["key", "sha256"],
            partial(image_pairs, self.config),
            {"_work/image-pairs": PAIRS},
            "3/5 comparing images",
        )
        edges = self._frame(
            "image-edges",
            partial(pairs_with_images, pairs, occurrences, files),
            ["a", "b"],
            partial(confirm_pairs, self.ctx.root.resolve(), self.config, self.ingest),
            {"_work/image-edges": EDGES},
            "4/5 comparing pixels",
        )
        labels = run_local(self.work, [Unit("labels", None)], partial(label_images, edges), {"_work/labels": LABELS})
        chosen = self._frame(
            "image-groups",
            partial(image_groups, occurrences, dropped, self.work.files(labels, "_work/labels"), files),
            ["label", "doc_id", "node"],
            partial(image_drops, self.config, [str(file) for file in edges]),
            {"_work/image-choices": DECISION_SCHEMA},
            "4/5 choosing images",
        )
        return self._frame(
            "image-drops",
            partial(_by_document, chosen, files),
            ["doc_id", "index"],
            _copy_rows,
            {"_work/image-drops": DECISION_SCHEMA},
            "4/5 choosing images",
        )


def _by_document(files_of_rows: list[Path], files: int, spark: SparkSession) -> DataFrame:
    rows = read_parquet(spark, files_of_rows)
    return rows.withColumn("bucket", bucket_of(rows["doc_id"], files))


def _copy_rows(bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    for table in tables:
        out.write("_work/image-drops", table)


def _remove(dropped: list[str], images: list[str], payload: Any, out: UnitTables) -> None:
    from nextflow_data.dedup.images import remove_images

    drops = rows_by_document(dropped[payload["number"]])
    edits = rows_by_document(images[payload["number"]])
    for document in read_documents(payload["file"]):
        decisions: list[Any] = drops.get(document["doc_id"]) or edits.get(document["doc_id"]) or []
        kept: Document | None = document
        if document["doc_id"] in drops:
            kept = None
        elif decisions:
            kept = remove_images(document, decisions)
            if kept is None:
                decisions.append(nothing_left(document, NAME, "it held nothing but copies of images"))
        out.out.count("documents", "dropped" if kept is None else "kept")
        if kept is not None:
            out.write("documents", [kept])
        out.write("decisions", decisions)
