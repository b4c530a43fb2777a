"""filter: every rule on every document. How often an image recurs on its site is counted by Spark first.

Only (site, image, document) keys are shuffled; documents are read from their file, judged, and written to a file of the same
number. Data sets: documents (those kept, as the rules leave them), decisions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from nextflow_data.common.stage_names import FILTER as NAME
from nextflow_data.rules.config import FilterConfig
from nextflow_data.storage.store_path import AnyPath

from nextflow_pipelines.contract.stage import StagePlan
from nextflow_pipelines.contract.tables import SCHEMAS, UnitTables
from nextflow_pipelines.contract.work import StageWork
from nextflow_pipelines.spark.context import RunContext, StageResult, run_contract
from nextflow_pipelines.spark.runner import bucket_of, run_frame, run_units
from nextflow_pipelines.stages.common import (
    document_files,
    document_units,
    read_documents,
    read_parquet,
    rows_by_document,
)

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

VERSION = 2
_KEYS, _RECURRENCE = "_work/keys", "_work/recurrence"
_KEY_SCHEMA = pa.schema([("key", pa.string()), ("doc_id", pa.string())])
_RECURRENCE_SCHEMA = pa.schema([("doc_id", pa.string()), ("key", pa.string()), ("count", pa.int64())])


def carry_out(ctx: RunContext, config: FilterConfig, documents: StageResult) -> StageResult:
    """Filters the documents of a committed stage."""
    plan = StagePlan(NAME, VERSION, {"filter": config.identity()}, {documents.name: documents.fingerprint})
    return run_contract(ctx, plan, partial(_work, ctx, config, document_files(documents)))


def _work(
    ctx: RunContext, config: FilterConfig, files: list[AnyPath], work: StageWork
) -> tuple[list[str], Mapping[str, Any]]:
    keys = run_units(
        ctx.session,
        work,
        document_units("keys", files),
        _image_keys,
        {_KEYS: _KEY_SCHEMA},
        ctx.progress,
        "1/3 listing images",
    )
    recurrence = run_frame(
        ctx.session,
        work,
        "recurrence",
        len(files),
        partial(_recurrences, work.files(keys, _KEYS), len(files)),
        ["doc_id", "key"],
        _write_recurrence,
        {_RECURRENCE: _RECURRENCE_SCHEMA},
        ctx.progress,
        "2/3 counting recurring images",
    )
    counted = work.files(recurrence, _RECURRENCE)
    schemas = {name: SCHEMAS[name] for name in ("documents", "decisions")}
    judge = partial(_judge, config, counted)
    parts = run_units(
        ctx.session, work, document_units("part", files), judge, schemas, ctx.progress, "3/3 judging documents"
    )
    return parts, {}


def _image_keys(payload: Any, out: UnitTables) -> None:
    from nextflow_data.nodes import recurrence_key

    for document in read_documents(payload["file"]):
        address = document["source"]["address"]
        keys = {recurrence_key(address, node["image"]) for node in document["nodes"] if node["image"] is not None}
        out.write(_KEYS, [{"key": key, "doc_id": document["doc_id"]} for key in sorted(keys)])


def _recurrences(keys: list[AnyPath], files: int, spark: SparkSession) -> DataFrame:
    from pyspark.sql import functions as F

    listed = read_parquet(spark, keys)
    often = listed.groupBy("key").agg(F.count("doc_id").alias("count")).where("count > 1")
    return listed.join(often, "key").withColumn("bucket", bucket_of(F.col("doc_id"), files))


def _write_recurrence(bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    for table in tables:
        out.write(_RECURRENCE, table)


def _judge(config: FilterConfig, recurrence: list[AnyPath], payload: Any, out: UnitTables) -> None:
    from nextflow_data.rules.judge import filter_document

    counts = rows_by_document(recurrence[payload["number"]])
    for document in read_documents(payload["file"]):
        recurring = {row["key"]: row["count"] for row in counts.get(document["doc_id"], [])}
        kept, decisions = filter_document(document, config, recurring)
        out.out.count("documents", "dropped" if kept is None else "kept")
        if kept is not None:
            out.write("documents", [kept])
        out.write("decisions", decisions)
