"""Who stays, over a cluster: each round of `nextflow_data.dedup.survivors` is a set of units, each of them a bucket of ids.

What a bucket knows lies in its own file of the round before; only what is told goes through the shuffle, each edge once in
all rounds. When little is left, one process does all the rounds that remain. The driver holds two counts.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from nextflow_data.storage.store_path import AnyPath

from nextflow_pipelines.contract.tables import UnitTables
from nextflow_pipelines.contract.work import StageWork
from nextflow_pipelines.spark.context import Progress
from nextflow_pipelines.spark.runner import Unit, bucket_of, run_frame, run_local
from nextflow_pipelines.stages.common import read_parquet, read_rows, rows_of
from nextflow_pipelines.stages.dedup_steps.sorted_tables import in_tables

if TYPE_CHECKING:
    from nextflow_data.dedup.survivors import Row
    from pyspark.sql import DataFrame, SparkSession

EDGES = pa.schema([("parent", pa.string()), ("child", pa.string()), ("value", pa.float64())])
"""Verified pairs: `parent` is earlier in order."""
KNOWN, TOLD = "_work/known", "_work/told"
_ROWS = pa.schema([("one", pa.string()), ("kind", pa.int8()), ("other", pa.string()), ("value", pa.float64())])
_SORT = ["one", "kind", "other"]


@dataclass(frozen=True)
class Rounds:
    """How rounds are run: over `buckets` buckets, or in this process where no more than `in_one_task` edges are left."""

    session: Callable[[], SparkSession]
    work: StageWork
    buckets: int
    in_one_task: int
    progress: Progress
    note: str

    def run(self, prefix: str, edges: Sequence[AnyPath], count: int) -> list[AnyPath]:
        """Decides on `count` edges (files of EDGES). Gives files whose rows of kind STAYS say which copy goes (`one`), for
        which that stays (`other`), and what was measured of the two; one copy may have several."""
        told: list[AnyPath] = []
        known: list[AnyPath] = []
        news, left, number = list(edges), count, 0
        while left:
            schemas = {f"{KNOWN}-{prefix}-{number}": _ROWS, f"{TOLD}-{prefix}-{number}": _ROWS}
            name = f"{prefix}-round-{number:03d}"
            if left <= self.in_one_task:
                end = partial(_finish, news, known, number == 0, f"{TOLD}-{prefix}-{number}")
                names = run_local(self.work, [Unit(name, None)], end, schemas)
            else:
                frame = partial(_edges_frame if number == 0 else _news_frame, news, self.buckets)
                task = partial(_round, known, tuple(schemas))
                names = run_frame(
                    self.session, self.work, name, self.buckets, frame, _SORT, task, schemas, self.progress, self.note
                )
            known, news = (self.work.files(names, dataset) for dataset in schemas)
            told += news
            left = 0 if left <= self.in_one_task else self._left(names, schemas)
            number += 1
        return told

    def _left(self, names: Sequence[str], schemas: dict[str, pa.Schema]) -> int:
        """Rows that are known or told after a round, 0 where nothing was told."""
        known, told = (count_rows(self.work, names, dataset) for dataset in schemas)
        return known + told if told else 0


def count_rows(work: StageWork, names: Sequence[str], dataset: str) -> int:
    """Rows of a data set that units wrote."""
    files = [file for record in work.records(names) for file in record["files"]]
    return sum(file.get("rows", 0) for file in files if file["path"].startswith(f"{dataset}/"))


def survivors_of(spark: SparkSession, told: Sequence[AnyPath], sign: int) -> DataFrame:
    """One row for each copy that goes: (one, kept, value), kept the survivor of smallest `sign`·value, then smallest id."""
    from nextflow_data.dedup.survivors import STAYS
    from pyspark.sql import functions as F

    rows = read_parquet(spark, told).where(F.col("kind") == STAYS)
    best = F.min(F.struct((F.col("value") * sign).alias("rank"), F.col("other")))
    value = F.col("best.rank") * sign
    return rows.groupBy("one").agg(best.alias("best")).select("one", F.col("best.other").alias("kept"), value.alias("value"))


def _edges_frame(edges: Sequence[AnyPath], buckets: int, spark: SparkSession) -> DataFrame:
    from nextflow_data.dedup.survivors import BEFORE, WAITS_FOR
    from pyspark.sql import functions as F

    rows = read_parquet(spark, edges)
    sides = [("child", WAITS_FOR, "parent"), ("parent", BEFORE, "child")]
    later, earlier = (
        rows.select(F.col(one).alias("one"), F.lit(kind).cast("byte").alias("kind"), F.col(other).alias("other"), "value")
        for one, kind, other in sides
    )
    return _bucketed(later.unionByName(earlier), buckets)


def _news_frame(told: Sequence[AnyPath], buckets: int, spark: SparkSession) -> DataFrame:
    return _bucketed(read_parquet(spark, told), buckets)


def _bucketed(rows: DataFrame, buckets: int) -> DataFrame:
    return rows.withColumn("bucket", bucket_of(rows["one"], buckets))


def _round(
    before: Sequence[AnyPath], datasets: tuple[str, ...], bucket: int, tables: Iterator[pa.Table], out: UnitTables
) -> None:
    from nextflow_data.dedup.survivors import advance

    rows = heapq.merge(_as_rows(rows_of(tables)), _as_rows(read_rows(before[bucket : bucket + 1])))

    def write(batch: list[tuple[bool, Row]]) -> None:
        for is_told, dataset in zip((False, True), datasets, strict=True):
            out.write(dataset, _as_table([row for told, row in batch if told == is_told]))

    in_tables(advance(rows), write)


def _finish(
    news: Sequence[AnyPath], known: Sequence[AnyPath], are_edges: bool, told: str, payload: Any, out: UnitTables
) -> None:
    from nextflow_data.dedup.survivors import both_sides, finish

    found = read_rows(news)
    rows = both_sides((e["parent"], e["child"], e["value"]) for e in found) if are_edges else _as_rows(found)
    out.write(told, _as_table(list(finish([*rows, *_as_rows(read_rows(known))]))))


def _as_rows(found: Iterable[dict[str, Any]]) -> Iterator[Row]:
    return ((row["one"], row["kind"], row["other"], row["value"]) for row in found)


def _as_table(rows: list[Row]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(_ROWS)
    return pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, _ROWS, strict=True)], schema=_ROWS)
