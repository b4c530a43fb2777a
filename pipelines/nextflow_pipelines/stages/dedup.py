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
from itertools import combinations, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from nextflow_data.config import DedupConfig, IngestConfig
from nextflow_data.document import DECISION_SCHEMA, IMAGE, Decision, Document

from nextflow_pipelines.context import RunContext, StageResult, run_contract
from nextflow_pipelines.runner import FrameFunction, Schemas, Unit, bucket_of, run_frame, run_local, run_units
from nextflow_pipelines.sources import image_loader
from nextflow_pipelines.stage import StagePlan, StageWork
from nextflow_pipelines.stages.common import (
    document_files,
    document_units,
    file_of,
    read_documents,
    read_parquet,
    read_rows,
    rows_by_document,
)
from nextflow_pipelines.tables import SCHEMAS, UnitTables

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

NAME = "dedup"
VERSION = 1

_SUMMARIES = pa.schema(
    [
        ("doc_id", pa.string()),
        ("address", pa.string()),
        ("images", pa.int64()),
        ("characters", pa.int64()),
        ("text_hash", pa.string()),
        ("signature", pa.list_(pa.int64())),
    ]
)
_BANDS = pa.schema([("key", pa.string()), ("doc_id", pa.string())])
_OCCURRENCES = pa.schema(
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
_PAIRS = pa.schema([("a", pa.string()), ("b", pa.string()), ("exact", pa.bool_())])
_EDGES = pa.schema([("a", pa.string()), ("b", pa.string()), ("value", pa.float64())])


def run(ctx: RunContext, config: DedupConfig, ingest: IngestConfig, documents: StageResult) -> StageResult:
    """Removes copies among a committed stage's documents; `ingest` bounds what is decoded."""
    plan = StagePlan(NAME, VERSION, {"dedup": config.model_dump(mode="json")}, {documents.name: documents.fingerprint})
    return run_contract(ctx, plan, lambda work: _Dedup(ctx, config, ingest, document_files(documents), work).run())


class _Dedup:
    """The steps of one run. Each is a set of units, so that a killed run goes on with the step it was in."""

    def __init__(
        self, ctx: RunContext, config: DedupConfig, ingest: IngestConfig, files: list[Path], work: StageWork
    ) -> None:
        self.ctx, self.config, self.ingest, self.files, self.work = ctx, config, ingest, files, work

    def run(self) -> tuple[list[str], Mapping[str, Any]]:
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
        schemas = {"_work/summaries": _SUMMARIES, "_work/bands": _BANDS, "_work/occurrences": _OCCURRENCES}
        units = document_units("summaries", self.files)
        note = "1/5 hashing texts"
        names = run_units(self.ctx.session, self.work, units, partial(_hash, self.config), schemas, self.ctx.progress, note)
        self.summaries = self.work.files(names, "_work/summaries")
        self.bands = self.work.files(names, "_work/bands")
        self.occurrences = self.work.files(names, "_work/occurrences")

    def _document_decisions(self) -> list[Path]:
        """Which documents go: a file of decisions for each file of documents."""
        note = "2/5 comparing texts"
        pairs = self._frame(
            "pairs",
            partial(_by_key, self.bands, len(self.files)),
            ["key", "doc_id"],
            _text_pairs,
            {"_work/pairs": _PAIRS},
            note,
        )
        edges = self._frame(
            "edges",
            partial(_signature_pairs, pairs, self.summaries, len(self.files)),
            ["a", "b"],
            partial(_verify, self.config),
            {"_work/edges": _EDGES},
            note,
        )
        decide = partial(_decide_documents, self.config, edges, self.summaries, len(self.files))
        units = [Unit(f"drops-{number:05d}", number) for number in range(len(self.files))]
        names = run_local(self.work, units, decide, {"_work/drops": DECISION_SCHEMA})
        return self.work.files(names, "_work/drops")

    def _image_decisions(self, dropped: list[Path]) -> list[Path]:
        """Which images go from the documents that stay: a file of decisions for each file of documents."""
        files, occurrences = len(self.files), self.occurrences
        pairs = self._frame(
            "image-pairs",
            partial(_distinct_images, occurrences, dropped, files, self.config),
            ["key", "sha256"],
            partial(_image_pairs, self.config),
            {"_work/image-pairs": _PAIRS},
            "3/5 comparing images",
        )
        edges = self._frame(
            "image-edges",
            partial(_image_pairs_with_refs, pairs, occurrences, files),
            ["a", "b"],
            partial(_confirm, self.ctx.root.resolve(), self.config, self.ingest),
            {"_work/image-edges": _EDGES},
            "4/5 comparing pixels",
        )
        labels = run_local(self.work, [Unit("labels", None)], partial(_label, edges), {"_work/labels": _LABELS})
        chosen = self._frame(
            "image-groups",
            partial(_image_groups, occurrences, dropped, self.work.files(labels, "_work/labels"), files),
            ["label", "doc_id", "node"],
            partial(_decide_images, self.config, [str(file) for file in edges]),
            {"_work/image-choices": DECISION_SCHEMA},
            "4/5 choosing images",
        )
        return self._frame(
            "image-drops",
            partial(_by_document, chosen, files),
            ["doc_id", "node"],
            _copy_rows,
            {"_work/image-drops": DECISION_SCHEMA},
            "4/5 choosing images",
        )


_LABELS = pa.schema([("sha256", pa.string()), ("label", pa.string())])


def _hash(config: DedupConfig, payload: Any, out: UnitTables) -> None:
    import numpy as np
    from nextflow_data.dedup import summarise
    from nextflow_data.image_dedup import occurrences
    from nextflow_data.minhash import signature_keys

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


def _by_key(bands: list[Path], files: int, spark: SparkSession) -> DataFrame:
    from pyspark.sql import functions as F

    listed = read_parquet(spark, bands)
    shared = listed.groupBy("key").count().where("count > 1").select("key")
    return listed.join(shared, "key", "left_semi").withColumn("bucket", bucket_of(F.col("key"), files))


def _text_pairs(bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    from nextflow_data.clusters import bucket_pairs

    for key, group in groupby(_rows(tables), key=lambda row: row["key"]):
        exact = key.startswith("text:")
        pairs = bucket_pairs([row["doc_id"] for row in group])
        out.write("_work/pairs", [{"a": a, "b": b, "exact": exact} for a, b in pairs])


def _rows(tables: Iterator[pa.Table]) -> Iterator[dict[str, Any]]:
    for table in tables:
        yield from table.to_pylist()


def _signature_pairs(pairs: list[Path], summaries: list[Path], files: int, spark: SparkSession) -> DataFrame:
    """Each pair once, with both signatures."""
    from pyspark.sql import functions as F

    once = read_parquet(spark, pairs).groupBy("a", "b").agg(F.max("exact").alias("exact"))
    signatures = read_parquet(spark, summaries).select("doc_id", "signature")
    for side in ("a", "b"):
        renamed = signatures.select(F.col("doc_id").alias(side), F.col("signature").alias(f"signature_{side}"))
        once = once.join(renamed, side)
    return once.withColumn("bucket", bucket_of(F.col("a"), files))


def _verify(config: DedupConfig, bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    import numpy as np
    from nextflow_data.minhash import verify

    for row in _rows(tables):
        value = 1.0 if row["exact"] else verify(np.array(row["signature_a"]), np.array(row["signature_b"]))
        if value >= config.min_similarity:
            out.write("_work/edges", [{"a": row["a"], "b": row["b"], "value": value}])


def _decide_documents(
    config: DedupConfig, edges: list[Path], summaries: list[Path], files: int, number: int, out: UnitTables
) -> None:
    from nextflow_data.dedup import decide_documents

    found = sorted((row["a"], row["b"], row["value"]) for row in read_rows(edges))
    ids = {one for a, b, _ in found for one in (a, b)}
    known: dict[str, Any] = {row["doc_id"]: row for row in read_rows(summaries) if row["doc_id"] in ids}
    decisions = decide_documents(known, found, config)
    out.write("_work/drops", [decision for decision in decisions if file_of(decision["doc_id"], files) == number])


def _without_dropped(occurrences: list[Path], dropped: list[Path], spark: SparkSession) -> DataFrame:
    return read_parquet(spark, occurrences).join(read_parquet(spark, dropped).select("doc_id"), "doc_id", "left_anti")


def _distinct_images(
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
    from nextflow_data.image_dedup import image_keys

    for batch in batches:
        rows = [{"key": key.hex(), **row} for row in batch.to_pylist() for key in image_keys(row["phash"], config)]
        if rows:
            schema = pa.schema(
                [pa.field("key", pa.string()), *[batch.schema.field(n) for n in ("sha256", "phash", "width", "height")]]
            )
            yield pa.RecordBatch.from_pylist(rows, schema=schema)


def _image_pairs(config: DedupConfig, bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    from nextflow_data.image_dedup import is_candidate

    for _, group in groupby(_rows(tables), key=lambda row: row["key"]):
        for one, other in combinations(list(group), 2):
            if is_candidate(one, other, config):  # type: ignore[arg-type]
                out.write("_work/image-pairs", [{"a": one["sha256"], "b": other["sha256"], "exact": False}])


def _image_pairs_with_refs(pairs: list[Path], occurrences: list[Path], files: int, spark: SparkSession) -> DataFrame:
    from pyspark.sql import functions as F

    first = F.struct("image.ref.uri", "image.ref.offset", "image.address")
    refs = read_parquet(spark, occurrences).groupBy("sha256").agg(F.min_by("image", first).alias("image"))
    once = read_parquet(spark, pairs).select("a", "b").distinct()
    for side in ("a", "b"):
        once = once.join(refs.select(F.col("sha256").alias(side), F.col("image").alias(f"image_{side}")), side)
    return once.withColumn("bucket", bucket_of(F.col("a"), files))


def _confirm(
    root: Path, config: DedupConfig, ingest: IngestConfig, bucket: int, tables: Iterator[pa.Table], out: UnitTables
) -> None:
    from nextflow_data.image_dedup import confirm

    read = image_loader(root, ingest)
    images: dict[str, Any] = {}
    pairs = []
    for row in _rows(tables):
        images[row["a"]], images[row["b"]] = row["image_a"], row["image_b"]
        pairs.append((row["a"], row["b"]))
    edges = confirm(pairs, lambda sha256: read(images[sha256]), config, ingest)
    out.out.count("image pairs", "compared", by=len(pairs))
    out.out.count("image pairs", "one image", by=len(edges))
    out.write("_work/image-edges", [{"a": a, "b": b, "value": value} for a, b, value in edges])


def _label(edges: list[Path], payload: Any, out: UnitTables) -> None:
    from nextflow_data.clusters import connected_components

    labels = connected_components((row["a"], row["b"]) for row in read_rows(edges))
    out.write("_work/labels", [{"sha256": sha256, "label": label} for sha256, label in sorted(labels.items())])


def _image_groups(
    occurrences: list[Path], dropped: list[Path], labels: list[Path], files: int, spark: SparkSession
) -> DataFrame:
    """Image nodes with a group; only groups that have two."""
    from pyspark.sql import functions as F

    found = _without_dropped(occurrences, dropped, spark).drop("image").join(read_parquet(spark, labels), "sha256", "left")
    found = found.withColumn("label", F.coalesce("label", "sha256"))
    several = found.groupBy("label").count().where("count > 1").select("label")
    return found.join(several, "label", "left_semi").withColumn("bucket", bucket_of(F.col("label"), files))


def _decide_images(config: DedupConfig, edges: list[str], bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    from nextflow_data.image_dedup import decide_images

    rows: list[Any] = list(_rows(tables))
    present = {row["sha256"] for row in rows}
    known = sorted((e["a"], e["b"], e["value"]) for e in read_rows(Path(f) for f in edges) if e["a"] in present)
    out.write("_work/image-choices", decide_images(rows, known, config))


def _by_document(files_of_rows: list[Path], files: int, spark: SparkSession) -> DataFrame:
    rows = read_parquet(spark, files_of_rows)
    return rows.withColumn("bucket", bucket_of(rows["doc_id"], files))


def _copy_rows(bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    for table in tables:
        out.write("_work/image-drops", table)


def _remove(dropped: list[str], images: list[str], payload: Any, out: UnitTables) -> None:
    from nextflow_data.image_dedup import remove_images

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
                decisions.append(_nothing_left(document))
        out.out.count("documents", "dropped" if kept is None else "kept")
        if kept is not None:
            out.write("documents", [kept])
        out.write("decisions", decisions)


def _nothing_left(document: Document) -> Decision:
    return {
        "doc_id": document["doc_id"],
        "address": document["source"]["address"],
        "node": None,
        "stage": NAME,
        "rule": "dedup.nothing_left",
        "value": 0.0,
        "threshold": 1.0,
        "action": "drop",
        "detail": "it held nothing but copies of images",
    }
