"""The choice of who stays over Spark: the same in rounds of many buckets as in one process, after a kill as well."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nextflow_data.dedup.survivors import STAYS
from nextflow_pipelines.contract.stage import StagePlan
from nextflow_pipelines.contract.tables import read_table
from nextflow_pipelines.contract.units import unit_record
from nextflow_pipelines.contract.work import open_stage
from nextflow_pipelines.registry import run_stage
from nextflow_pipelines.spark.context import RunContext, StageResult, no_progress
from nextflow_pipelines.stages.dedup_steps.sorted_tables import beside, distinct, shared
from nextflow_pipelines.stages.dedup_steps.survivors import EDGES, Rounds

pytestmark = pytest.mark.usefixtures("session")


def graph() -> tuple[list[tuple[str, str, float]], list[str]]:
    """Sixty random graphs, a chain and two stars, and the order in which they are looked at."""
    draw = random.Random(5)
    ends = [(g, draw.randrange(12), draw.randrange(12)) for g in range(60) for _ in range(16)]
    pairs = {(f"g{g}-{a}", f"g{g}-{b}") for g, a, b in ends}
    pairs |= {(f"chain-{n}", f"chain-{n + 1}") for n in range(200)}
    pairs |= {(hub, f"{hub}-{n}") for hub in ("zero", "star") for n in range(200)}
    order = sorted({one for pair in pairs for one in pair})
    draw.shuffle(order)
    place = {one: n for n, one in enumerate(order)}
    edges = {tuple(sorted(pair, key=place.__getitem__)) for pair in pairs if pair[0] != pair[1]}
    return sorted((a, b, round(draw.random(), 6)) for a, b in sorted(edges)), order


def reference(edges: list[tuple[str, str, float]], order: list[str]) -> list[tuple[str, str, float]]:
    """Each in order stays, unless it is a copy of one that stays."""
    earlier: dict[str, list[tuple[str, float]]] = {}
    for a, b, value in edges:
        earlier.setdefault(b, []).append((a, value))
    stays: set[str] = set()
    goes = []
    for one in order:
        survivors = [(other, value) for other, value in earlier.get(one, []) if other in stays]
        goes += [(one, other, value) for other, value in survivors]
        if not survivors:
            stays.add(one)
    return sorted(goes)


@pytest.mark.parametrize("in_one_task", [pytest.param(0, marks=pytest.mark.slow), 600, 10_000])
def test_who_stays_is_the_same_however_it_is_decided(tmp_path: Path, in_one_task: int) -> None:
    edges, order = graph()
    files = []
    for n in range(2):
        rows = [dict(zip(EDGES.names, edge, strict=True)) for edge in edges[n::2]]
        files.append(tmp_path / f"edges-{n}.parquet")
        pq.write_table(pa.Table.from_pylist(rows, schema=EDGES), files[-1])
    ctx = RunContext(tmp_path / "root")
    with open_stage(ctx.root, StagePlan("toy", 1, {}, {})) as work:
        rounds = Rounds(ctx.session, work, 3, in_one_task, no_progress, "")
        told = rounds.run("t", files, len(edges))
        found = [row for file in told for row in pq.read_table(file).to_pylist() if row["kind"] == STAYS]
        assert sorted((row["one"], row["other"], row["value"]) for row in found) == reference(edges, order)
        assert rounds.run("t", files, len(edges)) == told
        spread = [n for n in range(40) if unit_record(work.dir, f"t-round-{n:03d}-00000") is not None]
        assert (not spread, len(spread) < 25) == (in_one_task == 10_000, True)


@pytest.mark.slow
def test_the_stage_writes_the_same_in_rounds_and_in_one_process(
    results: Mapping[str, StageResult], chain: ModuleType, tmp_path: Path, root: Path
) -> None:
    """Nothing of how it is decided is in the fingerprint, so it goes to another root that finds the same sources."""
    sections = chain.SECTIONS | {"dedup": chain.SECTIONS["dedup"].model_copy(update={"edges_in_one_task": 0})}
    other = tmp_path / "root"
    other.mkdir()
    for entry in root.iterdir():
        if not entry.name.startswith((".", "dedup", "metrics")):
            (other / entry.name).symlink_to(entry)
    again = run_stage("dedup", RunContext(other, results_spark(chain)), sections, {"filter": results["filter"]})
    assert again.fingerprint == results["dedup"].fingerprint and not again.skipped
    for dataset in ("documents", "decisions"):
        assert read_table(again.dir, dataset).equals(read_table(results["dedup"].dir, dataset))


def results_spark(chain: ModuleType) -> Any:
    return chain.SparkConfig(files=3, partitions=2)


def tables(rows: list[dict[str, Any]], size: int) -> list[pa.Table]:
    whole = pa.Table.from_pylist(rows)
    return [whole.slice(start, size) for start in range(0, len(rows), size)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_sorted_tables_are_joined_and_thinned_wherever_they_are_cut(size: int) -> None:
    draw = random.Random(size)
    rows = [{"k": key, "n": n} for key, n in sorted((f"{draw.randrange(30):02d}", draw.randrange(4)) for _ in range(60))]
    own = [{"id": f"{n:02d}", "v": n} for n in range(0, 40, 2)]
    joined = [
        (row["k"], row["n"], other["v"])
        for left, right in beside(tables(rows, size), "k", tables(own, 3), "id")
        for row, other in zip(left.to_pylist(), right.to_pylist(), strict=True)
    ]
    assert joined == [(r["k"], r["n"], int(r["k"])) for r in rows if int(r["k"]) % 2 == 0]
    once = [(r["k"], r["n"]) for t in distinct(tables(rows, size), ["k", "n"]) for r in t.to_pylist()]
    assert once == sorted(set(once)) and set(once) == {(r["k"], r["n"]) for r in rows}
    keys = [r["k"] for r in rows]
    left = [r for t in shared(tables(rows, size), "k") for r in t.to_pylist()]
    assert [r for r in rows if keys.count(r["k"]) > 1] == [r for r in left if keys.count(r["k"]) > 1]
