"""dedup: copies of documents, then copies of images among the documents that stay.

Spark brings together what shares a key (a text, a MinHash band, blocks of a perceptual hash); candidate pairs of texts are
verified on whole signatures, candidate pairs of images on pixels; of verified copies a greedy maximal independent set stays
(`nextflow_data.dedup.survivors`). All of it on executors: a task reads its own bucket's rows, and of other files only the
one with its own number. The driver holds names of files and counts of rows, and decides alone only on what is little
(`edges_in_one_task`).

Every pair is between an earlier and a later in order, and found from what is earlier alone. So which copy stays depends on
the documents and the settings, and documents that are put behind the others in order change nothing among those.

Data sets: documents (without the copies), decisions (each names the copy that stays and how alike the two are).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from nextflow_data.common.stage_names import DEDUP as NAME
from nextflow_data.config import DedupConfig, IngestConfig
from nextflow_data.document import Document
from nextflow_data.storage.store_path import AnyPath

from nextflow_pipelines.contract.stage import StagePlan
from nextflow_pipelines.contract.tables import SCHEMAS, UnitTables
from nextflow_pipelines.contract.work import StageWork
from nextflow_pipelines.sources import image_loader
from nextflow_pipelines.spark.context import RunContext, StageResult, run_contract
from nextflow_pipelines.spark.runner import FrameFunction, Unit, run_frame, run_units
from nextflow_pipelines.stages.common import (
    document_files,
    document_units,
    nothing_left,
    read_documents,
    rows_by_document,
)
from nextflow_pipelines.stages.dedup_steps import images, texts
from nextflow_pipelines.stages.dedup_steps.survivors import EDGES, Rounds, count_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyspark.sql import DataFrame, SparkSession

VERSION = 3


def carry_out(ctx: RunContext, config: DedupConfig, ingest: IngestConfig, documents: StageResult) -> StageResult:
    """Removes copies among a committed stage's documents; `ingest` bounds what is decoded."""
    plan = StagePlan(NAME, VERSION, {"dedup": config.identity()}, {documents.name: documents.fingerprint})
    return run_contract(ctx, plan, lambda work: _Dedup(ctx, config, ingest, document_files(documents), work).units())


class _Dedup:
    """The steps of one run. Each is a set of units, so that a killed run goes on with the step it was in."""

    def __init__(
        self, ctx: RunContext, config: DedupConfig, ingest: IngestConfig, files: list[AnyPath], work: StageWork
    ) -> None:
        self.ctx, self.config, self.ingest, self.files, self.work = ctx, config, ingest, files, work
        self.buckets = len(files)

    def units(self) -> tuple[list[str], Mapping[str, Any]]:
        self._summarise()
        documents = self._document_copies()
        nodes = self._image_copies(documents)
        schemas = {name: SCHEMAS[name] for name in ("documents", "decisions")}
        units = [
            Unit(unit.name, {**unit.payload, "copies": copies, "image copies": image_copies})
            for unit, copies, image_copies in zip(document_units("part", self.files), documents, nodes, strict=True)
        ]
        remove = partial(_remove, self.config)
        return run_units(self.ctx.session, self.work, units, remove, schemas, self.ctx.progress, "5/5 removing copies"), {}

    def _frame(
        self,
        prefix: str,
        frame: Callable[[SparkSession], DataFrame],
        sort: Sequence[str],
        function: FrameFunction,
        schemas: Mapping[str, pa.Schema],
        note: str,
    ) -> list[str]:
        return run_frame(
            self.ctx.session, self.work, prefix, self.buckets, frame, sort, function, schemas, self.ctx.progress, note
        )

    def _summarise(self) -> None:
        schemas = {
            "_work/summaries": texts.SUMMARIES,
            "_work/keys": texts.KEYS,
            "_work/occurrences": texts.OCCURRENCES,
        }
        units = document_units("summaries", self.files)
        hashing = partial(texts.hash_documents, self.config)
        names = run_units(self.ctx.session, self.work, units, hashing, schemas, self.ctx.progress, "1/5 hashing texts")
        self.summaries, self.keys, self.occurrences = (self.work.files(names, dataset) for dataset in schemas)

    def _document_copies(self) -> list[AnyPath]:
        """Which documents go: a file of copies for each file of documents."""
        note, buckets = "2/5 comparing texts", self.buckets
        paired = self._frame(
            "pairs",
            partial(texts.by, "key", self.keys, buckets),
            ["key", "order", "doc_id"],
            texts.text_pairs,
            {"_work/pairs": texts.PAIRS, "_work/equals": texts.EQUALS},
            note,
        )
        equals = self.work.files(paired, "_work/equals")
        told: list[AnyPath] = []
        if count_rows(self.work, paired, "_work/pairs"):
            sides = self._frame(
                "sides",
                partial(texts.by, "child", self.work.files(paired, "_work/pairs"), buckets),
                ["child", "parent"],
                partial(texts.with_child, self.summaries),
                {"_work/sides": texts.SIDES},
                note,
            )
            edges = self._frame(
                "edges",
                partial(texts.by, "parent", self.work.files(sides, "_work/sides"), buckets),
                ["parent", "child"],
                partial(texts.verify_pairs, self.config, self.summaries),
                {"_work/edges": EDGES},
                note,
            )
            told = self._rounds("texts", edges, "_work/edges", "2/5 choosing texts")
        copies = self._frame(
            "copies",
            partial(texts.copies_of_documents, equals, told, self.summaries, buckets),
            ["doc_id"],
            partial(texts.write_tables, "_work/copies"),
            {"_work/copies": texts.COPIES},
            "2/5 choosing texts",
        )
        return self.work.files(copies, "_work/copies")

    def _image_copies(self, gone: list[AnyPath]) -> list[AnyPath]:
        """Which images go from the documents that stay: a file of copies for each file of documents."""
        note, buckets = "3/5 comparing images", self.buckets
        distinct = self._frame(
            "images",
            partial(images.images_left, self.occurrences, gone, buckets),
            ["image_id", "doc_id", "node"],
            partial(images.distinct_images, self.config),
            {"_work/images": images.IMAGES, "_work/equal-images": images.PLACES},
            note,
        )
        first, equals = (self.work.files(distinct, dataset) for dataset in ("_work/images", "_work/equal-images"))
        paired = self._frame(
            "image-pairs",
            partial(images.images_by_key, first, self.config, buckets),
            ["key", "order", "image_id"],
            partial(images.image_pairs, self.config),
            {"_work/image-pairs": texts.PAIRS},
            note,
        )
        told: list[AnyPath] = []
        if count_rows(self.work, paired, "_work/image-pairs"):
            read = partial(image_loader, self.ctx.root, self.ingest, self.ctx.storage)
            pixels = self._frame(
                "thumbnails",
                partial(images.images_in_pairs, self.work.files(paired, "_work/image-pairs"), buckets),
                ["one", "other"],
                partial(images.make_thumbnails, read, self.config, self.ingest, first),
                {"_work/thumbnails": images.THUMBNAILS, "_work/image-sides": images.SIDES},
                "4/5 comparing pixels",
            )
            edges = self._frame(
                "image-edges",
                partial(texts.by, "parent", self.work.files(pixels, "_work/image-sides"), buckets),
                ["parent", "child"],
                partial(images.confirm_pairs, self.config, self.work.files(pixels, "_work/thumbnails")),
                {"_work/image-edges": EDGES},
                "4/5 comparing pixels",
            )
            told = self._rounds("images", edges, "_work/image-edges", "4/5 choosing images")
        copies = self._frame(
            "image-copies",
            partial(images.copies_of_images, equals, first, told, buckets),
            ["doc_id", "node"],
            partial(texts.write_tables, "_work/image-copies"),
            {"_work/image-copies": images.COPIES},
            "4/5 choosing images",
        )
        return self.work.files(copies, "_work/image-copies")

    def _rounds(self, prefix: str, units: list[str], dataset: str, note: str) -> list[AnyPath]:
        rounds = Rounds(self.ctx.session, self.work, self.buckets, self.config.edges_in_one_task, self.ctx.progress, note)
        return rounds.run(prefix, self.work.files(units, dataset), count_rows(self.work, units, dataset))


def _remove(config: DedupConfig, payload: Any, out: UnitTables) -> None:
    from nextflow_data.dedup.images import image_decision, remove_images
    from nextflow_data.dedup.texts import document_decision

    copies: Mapping[str, Any] = rows_by_document(payload["copies"])
    image_copies: Mapping[str, Any] = rows_by_document(payload["image copies"])
    for document in read_documents(payload["file"]):
        doc_id = document["doc_id"]
        kept: Document | None = document
        if doc_id in copies:
            decisions, kept = [document_decision(document, copies[doc_id][0], config)], None
        else:
            decisions = [image_decision(document, copy, config) for copy in image_copies.get(doc_id, [])]
            if decisions:
                kept = remove_images(document, decisions)
            if kept is None:
                decisions.append(nothing_left(document, NAME, "it held nothing but copies of images"))
        out.out.count("documents", "dropped" if kept is None else "kept")
        if kept is not None:
            out.write("documents", [kept])
        out.write("decisions", decisions)
