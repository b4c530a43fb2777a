"""The stage contract on a real S3 server: the same manifest as on a disk, nothing overwritten, one winner of any number."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fault_proxy import FaultProxy
from nextflow_data.storage import conditional
from nextflow_data.storage.errors import ConditionalWritesMissing
from nextflow_data.storage.files import list_files, put
from nextflow_data.storage.store_path import AnyPath, StorePath
from nextflow_pipelines.contract import locks, made_with, temporary, units
from nextflow_pipelines.contract.stage import (
    MANIFEST,
    Corrupt,
    DiskFull,
    StageBusy,
    StageError,
    StagePlan,
    check_sizes,
    find_committed,
    read_manifest,
    stage_file,
)
from nextflow_pipelines.contract.tables import UnitTables, dataset_files, iter_batches, read_table
from nextflow_pipelines.contract.units import unit_output
from nextflow_pipelines.contract.work import StageWork, open_stage
from nextflow_pipelines.spark.context import MEANWHILE, RunContext, run_contract

PLAN = StagePlan("toy", 1, {"toy": {"size": 3}}, {"before": "ab" * 32})
SCHEMA = pa.schema([("id", pa.int64()), ("text", pa.string())])
NAMES = [f"part-{number:05d}" for number in range(4)]


def do_unit(stage: StageWork, name: str, said: str = "") -> str:
    """A data set, a published file and a working file."""
    with unit_output(stage.dir, name) as out:
        tables = UnitTables(out, {"data": SCHEMA}, name)
        tables.write("data", [{"id": int(name[-5:]), "text": said}])
        tables.close()
        out.path(f"shards/{name}.tar", published=True).write_text(f"shard {name}")
        out.path(f"_work/plan/{name}.json").write_text("{}")
    return name


def body(stage: StageWork) -> tuple[list[str], dict[str, Any]]:
    return [do_unit(stage, name) for name in NAMES], {"fact": "value"}


def keys(folder: AnyPath) -> list[str]:
    return [str(path).removeprefix(f"{folder}/") for path, _ in list_files(folder)]


def through(root: StorePath, proxy: FaultProxy) -> StorePath:
    s3 = root.config.s3.model_copy(update={"endpoint": proxy.endpoint})
    return StorePath(root.address, root.config.model_copy(update={"s3": s3}))


def test_a_store_has_the_manifest_of_a_disk_and_names_that_carry_the_content(s3_root: StorePath, tmp_path: Path) -> None:
    local = run_contract(RunContext(tmp_path), PLAN, body)
    there = run_contract(RunContext(s3_root), PLAN, body)
    content = (there.dir / MANIFEST).read_bytes()
    assert content == (local.dir / MANIFEST).read_bytes()
    hashes = {entry["path"]: entry["sha256"] for entry in json.loads(content)["files"]}
    data = [f"data/{name}.{hashes[f'data/{name}.parquet'][:16]}.parquet" for name in NAMES]
    assert keys(there.dir) == [*data, MANIFEST, *(f"shards/{name}.tar" for name in NAMES)]
    for entry in read_manifest(there.dir)["files"]:
        assert hashlib.sha256(stage_file(there.dir, entry).read_bytes()).hexdigest() == entry["sha256"]
    assert dataset_files(there.dir, "data") == [there.dir / name for name in data]
    assert read_table(there.dir, "data", ["id"], [("id", ">", 1)])["id"].to_pylist() == [2, 3]
    assert [t.num_rows for t in iter_batches(dataset_files(there.dir, "data"))] == [1, 1, 1, 1]
    assert find_committed(s3_root, "toy") == [there.dir]
    again = run_contract(RunContext(s3_root), PLAN, lambda stage: pytest.fail("it was done again"))
    assert again.skipped and again.facts == {"fact": "value"} and again.notes == ()


def test_what_a_stopped_run_finished_is_kept_and_the_rest_is_done(s3_root: StorePath) -> None:
    def stopped(stage: StageWork) -> Any:
        for name in NAMES[:3]:
            do_unit(stage, name)
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        run_contract(RunContext(s3_root), PLAN, stopped)
    folder = PLAN.folder(s3_root)
    next(folder.glob("data/part-00001.*")).unlink()
    put(folder / "shards/part-00002.tar", "SHARD part-00002")  # by another's hand: of the same size
    record = folder / units.DONE / "part-00000.json"
    put(record, json.dumps({**json.loads(record.read_bytes()), "made_with": {"lxml": "1.0"}}))
    seen: list[str] = []

    def rest(stage: StageWork) -> Any:
        assert stage.kept == [NAMES[0]] and stage.pending(NAMES) == NAMES[1:]
        (folder / "shards/part-00002.tar").unlink()
        for name in stage.pending(NAMES):
            do_unit(stage, name)
        return NAMES, {"fact": "value"}

    done = run_contract(RunContext(s3_root, progress=lambda n, of, note: seen.append(note)), PLAN, rest)
    mixed = f"1 finished units were made with lxml 1.0, not {made_with.made_with()['lxml']}"
    assert done.kept == 1 and done.notes == (mixed,) and f"going on under other versions: {mixed}" in seen
    assert check_sizes(done.dir, read_manifest(done.dir)) == [] and not any("_work" in key for key in keys(done.dir))


def test_sizes_are_one_listing_and_an_old_one_does_no_harm(s3_root: StorePath, fault_proxy: FaultProxy) -> None:
    folder = run_contract(RunContext(through(s3_root, fault_proxy)), PLAN, body).dir
    manifest, before = read_manifest(folder), len(fault_proxy.requests)
    assert check_sizes(folder, manifest) == [] and len(fault_proxy.requests) == before + 1
    fault_proxy.order("stale", "GET", "list-type")
    assert check_sizes(folder, manifest) == [] and fault_proxy.done["stale"] == 1
    stage_file(folder, manifest["files"][0]).unlink()
    with pytest.raises(Corrupt, match=r"data/part-00000\.parquet is missing"):
        run_contract(RunContext(s3_root, look=True), PLAN, body)


def test_a_late_unit_writes_no_record_and_a_second_attempt_changes_nothing(s3_root: StorePath) -> None:
    with open_stage(s3_root, PLAN) as stage:
        first = do_unit(stage, NAMES[0], "first")
        before = units.read_record(stage.dir, first)
        do_unit(stage, NAMES[0], "second")  # as a task that Spark runs twice, of what is not computed but recorded
        assert units.read_record(stage.dir, first) == before
        stage.commit([first])
    assert read_table(stage.dir, "data")["text"].to_pylist() == ["first"]
    committed = keys(stage.dir)
    assert len(committed) == 3
    with pytest.raises(StageError, match="no longer being worked on"):
        do_unit(stage, NAMES[1])
    assert keys(stage.dir) == committed


def test_a_published_file_of_other_content_stops_the_unit(s3_root: StorePath) -> None:
    with open_stage(s3_root, PLAN) as stage:
        put(stage.dir / "shards/part-00000.tar", "of another")
        with pytest.raises(StageError, match=r"part-00000.tar is there with other content .* Remove it .* run again"):
            do_unit(stage, NAMES[0])
        assert (stage.dir / "shards/part-00000.tar").read_bytes() == b"of another" and stage.missing(NAMES) == NAMES
        with pytest.raises(ValueError, match="cannot read by name"), unit_output(stage.dir, "u") as out:
            out.path("data/a.parquet", 1, published=True)


def test_a_full_temporary_disk_is_told_as_one(s3_root: StorePath, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        pytest.raises(DiskFull, match=r"disk for temporary files.*TMPDIR.*Kept: 1 finished"),
        open_stage(s3_root, PLAN) as s,
    ):
        do_unit(s, NAMES[0])
        monkeypatch.setattr(temporary.tempfile, "mkdtemp", full)
        do_unit(s, NAMES[1])


def test_what_a_killed_unit_wrote_beside_goes_with_the_next_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary.tempfile, "tempdir", str(tmp_path))
    with temporary.temporary_folder() as mine:
        for name in ("left", "young"):
            (tmp_path / f"nextflow-unit-{name}").mkdir()
        for folder in (mine, tmp_path / "nextflow-unit-left"):
            os.utime(folder, (1, 1))
        temporary._sweep.cache_clear()
        with temporary.temporary_folder():
            assert len(list(tmp_path.iterdir())) == 3 and mine.is_dir() and not (tmp_path / "nextflow-unit-left").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["nextflow-unit-young"]


def test_a_store_that_knows_no_conditions_is_refused_or_locked_elsewhere(
    s3_root: StorePath, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in (conditional, locks):
        monkeypatch.setattr(module, "supports_conditional_writes", lambda path: False)
    with pytest.raises(ConditionalWritesMissing, match=r"storage\.lock"):
        run_contract(RunContext(s3_root), PLAN, lambda stage: pytest.fail("it was begun"))
    config = s3_root.config.model_copy(update={"lock": tmp_path / "locks"})
    root = StorePath(s3_root.address, config)
    with open_stage(root, PLAN), pytest.raises(StageBusy, match=f"process {os.getpid()}"), open_stage(root, PLAN):
        pass
    assert run_contract(RunContext(root), PLAN, body).facts == {"fact": "value"}


def test_who_waits_on_a_disk_uses_what_was_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LOOK_SECONDS", 0.0)
    seen: list[str] = []
    with ExitStack() as other:
        stage = other.enter_context(open_stage(tmp_path, PLAN))

        def progress(done: int, total: int | None, note: str) -> None:
            seen.append(note)
            if len(seen) == 1:
                stage.commit(*body(stage))
                other.close()

        done = run_contract(RunContext(tmp_path, progress=progress), PLAN, lambda stage: pytest.fail("it was done again"))
    assert seen == [f"waiting for process {os.getpid()} on {socket.gethostname()}, which is making this stage", MEANWHILE]
    assert done.skipped and done.notes == (MEANWHILE,) and done.facts == {"fact": "value"}
