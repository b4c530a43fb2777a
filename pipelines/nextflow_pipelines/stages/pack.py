"""pack: tokenised documents to shards. The plan is made in the driver from lengths alone; each shard is a Spark task's work.

The plan says which documents each shard needs; Spark brings them there (a document that was cut can be needed by two), and
the task builds its packs and writes one tar and its index. The cost: the documents of one shard are in one worker's memory,
which `pack.shard_bytes` bounds.

Output: `shards/`, exactly a shard set with its own manifest, and nothing else in it; decisions (documents that fit no pack).
Facts: the sha256 that the shard set's manifest states of itself, and the plan's statistics.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from nextflow_data.common.stage_names import PACK as NAME
from nextflow_tokenize.config.pack import PackConfig
from nextflow_tokenize.documents.tokenized import TokenizedDocument, tokenized_schema
from nextflow_tokenize.packing.sample import build_pack
from nextflow_tokenize.shards.manifest import TextTokenizerRecord, VisionTokenizerRecord
from nextflow_tokenize.shards.tables import ShardInfo
from nextflow_tokenize.shards.writer import shard_name, write_manifest, write_shard

from nextflow_pipelines.contract.stage import StagePlan, canonical_json, read_manifest
from nextflow_pipelines.contract.tables import SCHEMAS, UnitTables, dataset_files, iter_batches
from nextflow_pipelines.contract.units import UnitOutput, unit_output, unit_record
from nextflow_pipelines.contract.work import StageWork
from nextflow_pipelines.spark.context import RunContext, StageResult, run_contract
from nextflow_pipelines.spark.runner import Unit, run_frame, run_local
from nextflow_pipelines.stages import vision_tokenizer
from nextflow_pipelines.stages.common import read_parquet
from nextflow_pipelines.stages.tokenize import SHAPES, TOKENIZED, shape_from_row

if TYPE_CHECKING:
    from nextflow_tokenize.packing.plan import PackPlan
    from pyspark.sql import DataFrame, SparkSession

VERSION = 2
SHARDS = "shards"
_PLAN, _SET = "plan", "set"
_PLACES, _INFO = "_work/places", "_work/info"
_PLACES_SCHEMA = pa.schema([("doc_id", pa.string()), ("bucket", pa.int32())])


def carry_out(
    ctx: RunContext, config: PackConfig, tokenized: StageResult, text: StageResult, vision: StageResult
) -> StageResult:
    """Packs a committed stage's tokenised documents into shards that name the two tokenizers."""
    inputs = {tokenized.name: tokenized.fingerprint}
    plan = StagePlan(NAME, VERSION, {"pack": config.identity()}, inputs)
    return run_contract(ctx, plan, lambda work: _Pack(ctx, config, tokenized, text, vision, work).units())


class _Pack:
    """The steps of one run: plan, shards, manifest."""

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
        self.ctx.progress(0, None, "planning packs")
        run_local(self.work, [Unit(_PLAN, None)], self._plan, {"decisions": SCHEMAS["decisions"], _PLACES: _PLACES_SCHEMA})
        planned = self.work.records([_PLAN])[0]["facts"]
        shards = run_frame(
            self.ctx.session,
            self.work,
            "shard",
            planned["shards"],
            partial(_documents_by_shard, dataset_files(self.tokenized.dir, TOKENIZED), self.work.files([_PLAN], _PLACES)),
            ["doc_id"],
            partial(_write_shard, self.work.dir, self.codebook_size),
            {},
            self.ctx.progress,
            "writing shards",
        )
        if unit_record(self.work.dir, _SET) is None:
            with unit_output(self.work.dir, _SET) as out:
                out.facts["set"] = self._write_set(out, shards)
        facts = {**planned["statistics"], "shard_set": self.work.records([_SET])[0]["facts"]["set"]}
        return [_PLAN, *shards, _SET], facts

    def _plan(self, payload: Any, out: UnitTables) -> None:
        from nextflow_tokenize.npy import code_dtype
        from nextflow_tokenize.packing.plan import assign_shards, plan

        rows = (row for table in iter_batches(dataset_files(self.tokenized.dir, SHAPES), 4096) for row in table.to_pylist())
        found = plan((shape_from_row(row) for row in rows), self.config)
        shards = assign_shards(found.packs, code_dtype(self.codebook_size).itemsize, self.config)
        places = set()
        for number, packs in enumerate(shards):
            out.out.path(_plan_file(number)).write_text(canonical_json([asdict(pack) for pack in packs]))
            places |= {(piece.doc_id, number) for pack in packs for piece in pack.pieces}
        out.write(_PLACES, [{"doc_id": doc_id, "bucket": number} for doc_id, number in sorted(places)])
        out.write("decisions", found.decisions)
        out.out.facts.update({"shards": len(shards), "statistics": asdict(found.statistics)})
        out.out.count("packs", "planned", by=len(found.packs))

    def _write_set(self, out: UnitOutput, shards: list[str]) -> str:
        """The shard set's own files, beside the shards; gives the sha256 that its manifest states of itself."""
        infos = [ShardInfo.model_validate_json(file.read_bytes()) for file in self.work.files(shards, _INFO)]
        folder = out.temporary / SHARDS
        folder.mkdir(parents=True)
        parents = {**self.tokenized_inputs(), self.tokenized.name: self.tokenized.fingerprint}
        manifest = write_manifest(
            folder, infos, config=self.config, text_tokenizer=self.text, vision_tokenizer=self.vision, parents=parents
        )
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                out.path(f"{SHARDS}/{file.relative_to(folder).as_posix()}")
        return manifest.sha256

    def tokenized_inputs(self) -> dict[str, str]:
        """Fingerprints of the stages that the tokenised documents were made from."""
        inputs = read_manifest(self.tokenized.dir)["inputs"]
        return {name: value for name, value in inputs.items() if not name.endswith("_hash")}


def _vision_record(vision: StageResult) -> VisionTokenizerRecord | None:
    from nextflow_tokenize.vision.identity import vision_info

    if vision.facts["tokenizer"] is None:
        return None
    info = vision_info(vision.dir / vision_tokenizer.TOKENIZER)
    return VisionTokenizerRecord(
        sha256=vision.facts["tokenizer"],
        codebook_size=info["codebook_size"],
        semantic_dim=info["semantic_dim"],
        pixel_dim=info["pixel_dim"],
    )


def _plan_file(shard: int) -> str:
    return f"_work/plan/{shard:06d}.json"


def _documents_by_shard(files: list[Path], places: list[Path], spark: SparkSession) -> DataFrame:
    return read_parquet(spark, files).join(read_parquet(spark, places), "doc_id")


def _write_shard(stage_dir: Path, codebook_size: int, bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    # Spark widens what it reads, since it has no unsigned types.
    schema = tokenized_schema(codebook_size)
    held = [table.select(schema.names).cast(schema) for table in tables]
    documents = _Documents(pa.concat_tables(held) if held else schema.empty_table())
    packs = [_pack_plan(value) for value in json.loads((stage_dir / _plan_file(bucket)).read_bytes())]
    name = shard_name(bucket)
    path = out.out.path(f"{SHARDS}/{name}")
    out.out.path(f"{SHARDS}/{name}.idx")
    info = write_shard(path, (build_pack(pack, documents) for pack in packs), codebook_size)
    out.out.path(f"{_INFO}/{bucket:06d}.json").write_text(info.model_dump_json())
    record = info.record
    for key in ("samples", "slots", "text_tokens", "image_codes", "images"):
        out.out.count("shards", key, by=getattr(record, key))


def _pack_plan(value: Any) -> PackPlan:
    from nextflow_tokenize.packing.pieces import Piece, Span
    from nextflow_tokenize.packing.plan import PackPlan

    pieces = [Piece(**{**piece, "spans": tuple(Span(**span) for span in piece["spans"])}) for piece in value["pieces"]]
    return PackPlan(tuple(pieces), value["slots"], value["cost"])


class _Documents(Mapping[str, TokenizedDocument]):
    """A shard's documents as an Arrow table; one becomes Python objects only while its pack is built."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._rows = {doc_id: row for row, doc_id in enumerate(table["doc_id"].to_pylist())}

    def __getitem__(self, doc_id: str) -> TokenizedDocument:
        row: TokenizedDocument = self._table.slice(self._rows[doc_id], 1).to_pylist()[0]
        return row

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)
