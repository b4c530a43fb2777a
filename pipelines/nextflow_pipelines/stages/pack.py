"""pack: tokenised documents to shards. Documents go by hash to groups, each planned by one task from lengths alone; each
shard is a task's work too.

The plan says which pieces of which documents make each pack; Spark brings every document to its piece, in the order of
packs, and the task that writes a shard holds no more than one pack's documents. The driver holds a done-record a group
and a shard. The cost: documents go through two shuffles, to their pieces and to their shard, and one that was cut is brought
to each of its pieces whole.

Output: `shards/`, exactly a shard set with its own manifest, and nothing else in it; `audit.json`, what the tasks counted
while they wrote, which is what an audit of the set counts (`nextflow_tokenize.audit.record`); decisions (documents that fit
no pack). Facts: the sha256 that the shard set's manifest states of itself, and the plan's statistics.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from nextflow_data.common.stage_names import PACK as NAME
from nextflow_data.storage.files import local_copy
from nextflow_data.storage.store_path import AnyPath
from nextflow_tokenize.audit.record import AUDIT_RECORD
from nextflow_tokenize.config.pack import PackConfig
from nextflow_tokenize.documents.tokenized import TokenizedDocument, tokenized_schema
from nextflow_tokenize.packing.groups import first_shards, groups_of
from nextflow_tokenize.packing.sample import PackSample, build_pack
from nextflow_tokenize.shards.records import TextTokenizerRecord, VisionTokenizerRecord
from nextflow_tokenize.shards.writer import ShardInfo, shard_files, write_manifest, write_shard

from nextflow_pipelines.contract.stage import StagePlan, read_manifest
from nextflow_pipelines.contract.tables import SCHEMAS, UnitTables, dataset_files
from nextflow_pipelines.contract.units import UnitOutput, unit_output, unit_record
from nextflow_pipelines.contract.work import StageWork
from nextflow_pipelines.spark.context import RunContext, StageResult, run_contract
from nextflow_pipelines.spark.runner import bucket_of, run_frame
from nextflow_pipelines.stages import vision_tokenizer
from nextflow_pipelines.stages.common import read_parquet
from nextflow_pipelines.stages.tokenize import SHAPES, TOKENIZED, shape_from_row

if TYPE_CHECKING:
    from nextflow_tokenize.packing.pieces import Piece
    from pyspark.sql import DataFrame, SparkSession

VERSION = 3
SHARDS = "shards"
_SET = "set"
_PIECES, _INFO = "_work/pieces", "_work/info"
_SPAN = pa.struct([("segment", pa.int32()), ("start", pa.int64()), ("stop", pa.int64())])
_PIECES_SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("group", pa.int32()),
        ("shard", pa.int32()),
        ("pack", pa.int32()),
        ("place", pa.int32()),
        ("cost", pa.int64()),
        ("number", pa.int32()),
        ("slots", pa.int64()),
        ("pairs", pa.int64()),
        ("codes", pa.int64()),
        ("spans", pa.list_(_SPAN)),
    ]
)
"""A row a piece: its group, the number of its shard in the group, of its pack in the shard, its place in the pack; `cost` is
the pack's, `number` counts the document's pieces."""
_READ_AT_ONCE = 256
"""Shards' records that the driver reads at once."""


def carry_out(
    ctx: RunContext, config: PackConfig, tokenized: StageResult, text: StageResult, vision: StageResult
) -> StageResult:
    """Packs a committed stage's tokenised documents into shards that name the two tokenizers."""
    inputs = {tokenized.name: tokenized.fingerprint}
    plan = StagePlan(NAME, VERSION, {"pack": config.identity()}, inputs)
    return run_contract(ctx, plan, lambda work: _Pack(ctx, config, tokenized, text, vision, work).units())


class _Pack:
    """The steps of one run: plans, shards, manifest."""

    def __init__(
        self,
        ctx: RunContext,
        config: PackConfig,
        tokenized: StageResult,
        text: StageResult,
        vision: StageResult,
        work: StageWork,
    ) -> None:
        self.ctx, self.config, self.tokenized, self.work = ctx, config, tokenized, work
        self.text = TextTokenizerRecord(
            sha256=text.facts["tokenizer"], vocab_size=text.facts["vocab_size"], eod=text.facts["eod_id"]
        )
        self.vision = _vision_record(vision)
        self.codebook_size = 1 if self.vision is None else self.vision.codebook_size

    def units(self) -> tuple[list[str], Mapping[str, Any]]:
        groups = groups_of(self.tokenized.counts.get("rows", {}).get(SHAPES, 0), self.config)
        plans = run_frame(
            self.ctx.session,
            self.work,
            "plan",
            groups,
            partial(_shapes_by_group, dataset_files(self.tokenized.dir, SHAPES), groups),
            ["doc_id"],
            partial(_plan_group, self.config, self.codebook_size),
            {"decisions": SCHEMAS["decisions"], _PIECES: _PIECES_SCHEMA},
            self.ctx.progress,
            "planning packs",
        )
        planned = [record["facts"] for record in self.work.records(plans)]
        ranges = ShardRanges.of([facts["shards"] for facts in planned], self.config.seed)
        shards = run_frame(
            self.ctx.session,
            self.work,
            "shard",
            ranges.shards,
            partial(
                _pieces_by_shard,
                dataset_files(self.tokenized.dir, TOKENIZED),
                self.work.files(plans, _PIECES),
                ranges.first,
            ),
            ["pack", "place"],
            partial(_write_shard, self.config, self.codebook_size, ranges),
            {},
            self.ctx.progress,
            "writing shards",
        )
        if unit_record(self.work.dir, _SET) is None:
            with unit_output(self.work.dir, _SET) as out:
                out.facts["set"] = self._write_set(out, shards)
        facts = {**_statistics(planned, self.config), "shard_set": self.work.records([_SET])[0]["facts"]["set"]}
        return [*plans, *shards, _SET], facts

    def _write_set(self, out: UnitOutput, shards: list[str]) -> str:
        """The shard set's own files, beside the shards; gives the sha256 that its manifest states of itself."""
        folder = out.temporary / SHARDS
        folder.mkdir(parents=True)
        parents = {**self.tokenized_inputs(), self.tokenized.name: self.tokenized.fingerprint}
        manifest, counted = write_manifest(
            folder,
            _infos(self.work.files(shards, _INFO)),
            config=self.config,
            text_tokenizer=self.text,
            vision_tokenizer=self.vision,
            parents=parents,
        )
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                out.path(f"{SHARDS}/{file.relative_to(folder).as_posix()}", published=True)
        out.path(AUDIT_RECORD, published=True).write_text(counted.to_json(), encoding="utf-8")
        return manifest.sha256

    def tokenized_inputs(self) -> dict[str, str]:
        """Fingerprints of the stages that the tokenised documents were made from."""
        inputs = read_manifest(self.tokenized.dir)["inputs"]
        return {name: value for name, value in inputs.items() if not name.endswith("_hash")}


@dataclass(frozen=True)
class ShardRanges:
    """Which shards are whose: `first` has each group's first shard, `owners` (first shard, group) in order of shards."""

    first: list[int]
    owners: list[tuple[int, int]]
    shards: int

    @classmethod
    def of(cls, counts: Sequence[int], seed: int) -> ShardRanges:
        """The ranges of groups that have so many shards each, one at least."""
        first = first_shards(counts, seed)
        return cls(first, sorted((shard, group) for group, shard in enumerate(first)), sum(counts))

    def group(self, shard: int) -> int:
        """The group that a shard is of."""
        return self.owners[bisect_right(self.owners, shard, key=lambda owner: owner[0]) - 1][1]


def _vision_record(vision: StageResult) -> VisionTokenizerRecord | None:
    from nextflow_tokenize.vision.identity import vision_info

    if vision.facts["tokenizer"] is None:
        return None
    info = vision_info(local_copy(vision.dir / vision_tokenizer.TOKENIZER))
    return VisionTokenizerRecord(
        sha256=vision.facts["tokenizer"],
        codebook_size=info["codebook_size"],
        semantic_dim=info["semantic_dim"],
        pixel_dim=info["pixel_dim"],
    )


def _statistics(planned: Sequence[Mapping[str, Any]], config: PackConfig) -> dict[str, Any]:
    from nextflow_tokenize.packing.plan import PackStatistics, statistics_of

    return asdict(statistics_of((PackStatistics(**facts["statistics"]) for facts in planned), config))


def _shapes_by_group(files: list[AnyPath], groups: int, spark: SparkSession) -> DataFrame:
    from pyspark.sql import functions as F

    return read_parquet(spark, files).withColumn("bucket", bucket_of(F.col("doc_id"), groups))


def _plan_group(config: PackConfig, codebook_size: int, group: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    from nextflow_tokenize.npy import code_dtype
    from nextflow_tokenize.packing.plan import assign_shards, plan

    found = plan((shape_from_row(row) for table in tables for row in table.to_pylist()), config)
    shards = assign_shards(found.packs, code_dtype(codebook_size).itemsize, config)
    for shard, packs in enumerate(shards):
        for number, pack in enumerate(packs):
            at = {"group": group, "shard": shard, "pack": number, "cost": pack.cost}
            out.write(_PIECES, [{**at, "place": place, **asdict(piece)} for place, piece in enumerate(pack.pieces)])
    out.write("decisions", found.decisions)
    out.out.facts.update({"shards": len(shards), "statistics": asdict(found.statistics)})
    out.out.count("packs", "planned", by=len(found.packs))


def _pieces_by_shard(files: list[AnyPath], pieces: list[AnyPath], first: list[int], spark: SparkSession) -> DataFrame:
    from pyspark.sql import functions as F

    placed = read_parquet(spark, pieces, schema=_PIECES_SCHEMA)
    bucket = F.get(F.lit(first), F.col("group")) + F.col("shard")
    return read_parquet(spark, files).join(placed.withColumn("bucket", bucket.cast("int")), "doc_id")


def _write_shard(
    config: PackConfig, codebook_size: int, ranges: ShardRanges, bucket: int, tables: Iterator[pa.Table], out: UnitTables
) -> None:
    tar, *_ = [out.out.path(f"{SHARDS}/{name}", published=True) for name in shard_files(bucket)]
    info = write_shard(tar, _packs(tables, codebook_size), codebook_size, config, ranges.group(bucket))
    out.out.path(f"{_INFO}/{bucket:06d}.json").write_text(info.model_dump_json(), encoding="utf-8")
    record = info.record
    for key in ("samples", "slots", "text_tokens", "image_codes", "images"):
        out.out.count("shards", key, by=getattr(record, key))


def _packs(tables: Iterator[pa.Table], codebook_size: int) -> Iterator[PackSample]:
    """A shard's packs, built as their pieces arrive: only the documents of one are Python objects at a time."""
    from nextflow_tokenize.packing.plan import PackPlan

    number, cost = -1, 0
    pieces: list[Piece] = []
    documents: dict[str, TokenizedDocument] = {}

    def pack() -> PackSample:
        return build_pack(PackPlan(tuple(pieces), sum(piece.slots for piece in pieces), cost), documents)

    for row, document in _rows(tables, codebook_size):
        if row["pack"] != number and pieces:
            yield pack()
            pieces, documents = [], {}
        number, cost = row["pack"], row["cost"]
        pieces.append(_piece(row))
        documents[row["doc_id"]] = document
    if pieces:
        yield pack()


def _rows(tables: Iterator[pa.Table], codebook_size: int) -> Iterator[tuple[dict[str, Any], TokenizedDocument]]:
    """Pieces and the documents they are of, row by row."""
    schema = tokenized_schema(codebook_size)
    for table in tables:
        # Spark widens what it reads, since it has no unsigned types.
        documents = table.select(schema.names).cast(schema)
        for number, row in enumerate(table.select(_PIECES_SCHEMA.names).to_pylist()):
            document: TokenizedDocument = documents.slice(number, 1).to_pylist()[0]
            yield row, document


def _piece(row: Mapping[str, Any]) -> Piece:
    from nextflow_tokenize.packing.pieces import Piece, Span

    spans = tuple(Span(**span) for span in row["spans"])
    return Piece(row["doc_id"], row["number"], spans, row["slots"], row["pairs"], row["codes"])


def _infos(files: Sequence[AnyPath]) -> Iterator[ShardInfo]:
    """What tasks said of their shards, in order; a bounded number is held."""
    with ThreadPoolExecutor(16) as pool:
        for start in range(0, len(files), _READ_AT_ONCE):
            for data in pool.map(lambda file: file.read_bytes(), files[start : start + _READ_AT_ONCE]):
                yield ShardInfo.model_validate_json(data)
