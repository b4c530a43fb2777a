"""Units and frames on a real Spark session: order, retries, failures, interruption, and independence of partitions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nextflow_data.common.whole_files import file_sha256
from nextflow_data.storage.errors import StoreError
from nextflow_pipelines.contract.made_with import made_with
from nextflow_pipelines.contract.stage import DiskFull, StageError, StagePlan
from nextflow_pipelines.contract.tables import UnitTables, read_table
from nextflow_pipelines.contract.units import unit_record
from nextflow_pipelines.contract.work import open_stage
from nextflow_pipelines.spark import runner
from nextflow_pipelines.spark.config import SparkConfig
from nextflow_pipelines.spark.context import RunContext
from nextflow_pipelines.spark.runner import Unit, bucket_of, run_frame, run_local, run_units
from nextflow_pipelines.stages.common import file_of, read_parquet

PLAN = StagePlan("toy", 1, {}, {})
SCHEMA = pa.schema([("key", pa.string()), ("value", pa.int64())])
pytestmark = pytest.mark.usefixtures("session")


def units(count: int) -> list[Unit]:
    return [Unit(f"u-{n:05d}", {"number": n}) for n in range(count)]


def squares(payload: Any, out: UnitTables) -> None:
    out.write("data", [{"key": str(payload["number"]), "value": payload["number"] ** 2}])


def test_each_unit_is_a_task_and_a_file(tmp_path: Path) -> None:
    ctx = RunContext(tmp_path)
    seen: list[tuple[int, int | None, str]] = []
    with open_stage(tmp_path, PLAN) as work:
        names = run_units(ctx.session, work, units(5), squares, {"data": SCHEMA}, lambda *a: seen.append(a), "squaring")
        work.commit(names)
    assert read_table(work.dir, "data").to_pylist() == [{"key": str(n), "value": n * n} for n in range(5)]
    assert seen[-1] == (5, 5, "squaring") and [s[0] for s in seen] == sorted(s[0] for s in seen)


def test_nothing_to_do_starts_no_session(tmp_path: Path) -> None:
    def no_session() -> Any:
        raise AssertionError("a session was asked for")

    ctx = RunContext(tmp_path)
    with open_stage(tmp_path, PLAN) as work:
        run_units(ctx.session, work, units(2), squares, {"data": SCHEMA})
        run_units(no_session, work, units(2), squares, {"data": SCHEMA})


def fail_once(marks: str, payload: Any, out: UnitTables) -> None:
    mark = Path(marks) / str(payload["number"])
    if payload["number"] == 1 and not mark.exists():
        mark.touch()
        raise OSError("the network went away")
    squares(payload, out)


def test_a_task_that_fails_is_tried_again(damaged_files: Any, tmp_path: Path) -> None:
    (tmp_path / "marks").mkdir()
    ctx = RunContext(tmp_path)
    with open_stage(tmp_path, PLAN) as work:
        names = run_units(ctx.session, work, units(3), partial(fail_once, str(tmp_path / "marks")), {"data": SCHEMA})
        work.commit(names)
    assert read_table(work.dir, "data")["value"].to_pylist() == [0, 1, 4]
    assert damaged_files(work.dir) == []


def fail_always(payload: Any, out: UnitTables) -> None:
    if payload["number"] == 2:
        raise LookupError("record 7 of file x.warc has no address")
    squares(payload, out)


def test_a_task_that_fails_always_ends_the_stage_with_its_own_words(tmp_path: Path) -> None:
    ctx = RunContext(tmp_path)
    message = r"stage toy \(judging\) failed: LookupError: record 7 of file x.warc has no address. Finished units are kept"
    with pytest.raises(StageError, match=message), open_stage(tmp_path, PLAN) as work:
        run_units(ctx.session, work, units(3), fail_always, {"data": SCHEMA}, note="judging")
    with open_stage(tmp_path, PLAN) as work:
        assert set(work.kept) <= {"u-00000", "u-00001"} and unit_record(work.dir, "u-00002") is None


def fill_disk(payload: Any, out: UnitTables) -> None:
    if payload["number"] == 1:
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"x")
    squares(payload, out)


def test_a_full_disk_in_a_task_is_told_as_one(tmp_path: Path) -> None:
    ctx = RunContext(tmp_path)
    with pytest.raises(DiskFull, match=r"no space left .* run the same command again"), open_stage(tmp_path, PLAN) as work:
        run_units(ctx.session, work, units(2), fill_disk, {"data": SCHEMA})


def test_an_interrupt_cancels_the_job_and_keeps_what_is_finished(tmp_path: Path, session: Any) -> None:
    def interrupt(done: int, total: int | None, note: str) -> None:
        if done:
            raise KeyboardInterrupt

    ctx = RunContext(tmp_path)
    with pytest.raises(KeyboardInterrupt), open_stage(tmp_path, PLAN) as work:
        run_units(ctx.session, work, units(12), partial(slow_after_first, 0.1), {"data": SCHEMA}, interrupt)
    assert session.sparkContext.statusTracker().getActiveJobsIds() == []
    with open_stage(tmp_path, PLAN) as work:
        assert 1 <= len(work.kept) < 12
        work.commit(run_units(ctx.session, work, units(12), squares, {"data": SCHEMA}))
    assert read_table(work.dir, "data").num_rows == 12


def slow_after_first(seconds: float, payload: Any, out: UnitTables) -> None:
    import time

    if payload["number"]:
        time.sleep(seconds * payload["number"])
    squares(payload, out)


def frame(rows: int, buckets: int, spark: Any) -> Any:
    """Rows in an order of their own, three to a key."""
    from pyspark.sql import functions as F

    table = spark.range(rows).select((F.col("id") % (rows // 3)).cast("string").alias("key"), F.col("id").alias("value"))
    return table.orderBy(F.xxhash64("value")).withColumn("bucket", bucket_of(F.col("key"), buckets))


def gather(bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    for table in tables:
        out.write("data", table)
        out.out.count("buckets", str(bucket), by=table.num_rows)


def make(root: Path, partitions: int, function: Callable[..., None] = gather) -> Path:
    ctx = RunContext(root, SparkConfig(partitions=partitions))
    with open_stage(root, PLAN) as work:
        names = run_frame(ctx.session, work, "part", 5, partial(frame, 60, 5), ["key", "value"], function, {"data": SCHEMA})
        work.commit(names)
    return work.dir


def test_a_frame_has_the_same_bytes_on_any_number_of_partitions(tmp_path: Path) -> None:
    folders = [make(tmp_path / str(n), n) for n in (1, 2, 9)]
    trees = [{p.name: file_sha256(p) for p in sorted(f.rglob("*")) if p.is_file()} for f in folders]
    assert trees[0] == trees[1] == trees[2] and len(trees[0]) == 6


def test_a_row_is_in_the_bucket_that_its_key_hashes_to_and_in_order(tmp_path: Path) -> None:
    folder = make(tmp_path, 3)
    found = []
    for number in range(5):
        rows = pq.read_table(folder / "data" / f"part-{number:05d}.parquet", partitioning=None).to_pylist()
        assert all(file_of(row["key"], 5) == number for row in rows)
        assert [(r["key"], r["value"]) for r in rows] == sorted((r["key"], r["value"]) for r in rows)
        found += [row["value"] for row in rows]
    assert sorted(found) == list(range(60))


def only_bucket(bucket: int, tables: Iterator[pa.Table], out: UnitTables) -> None:
    if bucket == 3:
        raise LookupError("bucket three")
    gather(bucket, tables, out)


def test_only_buckets_that_are_not_done_are_shuffled_again(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", 4)
    with pytest.raises(StageError, match="bucket three"):
        make(tmp_path / "again", 5, only_bucket)
    again = make(tmp_path / "again", 2)
    assert {p.name: file_sha256(p) for p in (again / "data").iterdir()} == {
        p.name: file_sha256(p) for p in (whole / "data").iterdir()
    }


def test_buckets_without_rows_are_units_too(tmp_path: Path) -> None:
    ctx = RunContext(tmp_path)
    with open_stage(tmp_path, PLAN) as work:
        names = run_frame(ctx.session, work, "part", 4, partial(frame, 3, 4), ["key", "value"], gather, {"data": SCHEMA})
        manifest = work.commit(names)
    assert len(manifest["files"]) == 4 and manifest["counts"]["rows"]["data"] == 3


def test_a_worker_of_other_versions_is_refused_before_it_does_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "made_with", lambda: {**made_with(), "lxml": "1.0", "xxhash": "2.0", "torch": "2.13.0+cu1"})
    ctx = RunContext(tmp_path)
    said = r"the worker on .* has other versions than the driver \(lxml [\d.]+, not 1\.0, xxhash [\d.]+, not 2\.0\)"
    with open_stage(tmp_path, PLAN) as work:
        with pytest.raises(StageError, match=said):
            run_units(ctx.session, work, units(2), squares, {"data": SCHEMA})
        assert work.missing([unit.name for unit in units(2)]) == [unit.name for unit in units(2)]


def test_payloads_hold_paths_and_nothing_that_is_not_json(tmp_path: Path) -> None:
    ctx = RunContext(tmp_path)
    (tmp_path / "in").write_text("41")
    odd = {"file": tmp_path / "in", "also": [{"$path": "of the user", "more": 1}]}
    with open_stage(tmp_path, PLAN) as work:
        run_units(ctx.session, work, [Unit("u", odd)], read_number, {"data": SCHEMA})
        assert pq.read_table(work.files(["u"], "data")[0])["value"].to_pylist() == [41]
        with pytest.raises(TypeError, match="JSON values and paths, not set"):
            run_units(ctx.session, work, [Unit("v", {1, 2})], read_number, {"data": SCHEMA})


def read_number(payload: Any, out: UnitTables) -> None:
    assert payload["also"] == [{"$path": "of the user", "more": 1}]
    out.write("data", [{"key": "in", "value": int(payload["file"].read_text())}])


NESTED = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        ("codes", pa.list_(pa.struct([pa.field("code", pa.uint16(), nullable=False), ("at", pa.uint32())]))),
        ("small", pa.uint8()),
        ("text", pa.string()),
    ]
)


def nested(number: int) -> dict[str, Any]:
    codes = None if number % 3 == 0 else [{"code": 65_535 - i, "at": 2**32 - 1 - number} for i in range(number % 4)]
    return {"id": number, "codes": codes, "small": number % 256, "text": None if number % 5 == 0 else "é" * (number % 7)}


def test_a_frame_of_files_has_their_rows_whatever_their_types(session: Any, tmp_path: Path) -> None:
    rows = [nested(number) for number in range(700)]
    files = [tmp_path / f"a b\u00e9{number}.parquet" for number in range(11)]
    for number, file in enumerate(files):
        pq.write_table(pa.Table.from_pylist(rows[number::11] if number != 5 else [], schema=NESTED), file, row_group_size=9)
    kept = [row for row in rows if row["id"] % 11 != 5]
    frame = read_parquet(session, files)
    assert [row.asDict(recursive=True) for row in frame.orderBy("id").collect()] == kept
    assert frame.toArrow().schema.field("codes").type == pa.list_(pa.struct([("code", pa.int32()), ("at", pa.int64())]))
    some = read_parquet(session, files, ["id", "codes.list.element.at"], None).orderBy("id").collect()
    at = [None if row["codes"] is None else [{"at": code["at"]} for code in row["codes"]] for row in kept]
    assert [row.asDict(recursive=True) for row in some] == [
        {"id": r["id"], "codes": a} for r, a in zip(kept, at, strict=True)
    ]
    assert read_parquet(session, [], ["text", "id"], NESTED).columns == ["text", "id"]
    assert read_parquet(session, [], schema=NESTED).count() == 0


def test_a_relative_root_is_made_absolute_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ctx = RunContext(Path("run"))
    assert ctx.root == ctx.work == tmp_path / "run"


def no_room(payload: Any, out: UnitTables) -> None:
    try:
        raise OSError(28, "No space left on device")
    except OSError as error:
        raise StoreError(28, "there is no room for a copy in /cache; set storage.cache") from error


def test_a_full_disk_of_copies_is_not_taken_for_the_stages(tmp_path: Path) -> None:
    ctx = RunContext(tmp_path)
    words = r"no room for a copy in /cache; set storage\.cache"
    with pytest.raises(StageError, match=words) as told, open_stage(tmp_path, PLAN) as work:
        run_units(ctx.session, work, units(1), no_room, {"data": SCHEMA})
    assert not isinstance(told.value, DiskFull)
    with pytest.raises(StoreError, match=words), open_stage(tmp_path, PLAN) as work:
        run_local(work, units(1), no_room, {"data": SCHEMA})
