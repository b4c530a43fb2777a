"""What units say they have done while they run: added up, shown, noted in the metrics, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nextflow_pipelines.contract import progress
from nextflow_pipelines.contract.progress import UnitProgress
from nextflow_pipelines.contract.stage import StagePlan
from nextflow_pipelines.contract.tables import UnitTables
from nextflow_pipelines.contract.units import unit_output
from nextflow_pipelines.contract.work import StageWork, open_stage
from nextflow_pipelines.spark.context import RunContext, run_contract
from nextflow_pipelines.spark.runner import Unit, run_units

PLAN = StagePlan("toy", 1, {}, {})


def written(work: StageWork) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in sorted((work.dir / "_work" / "progress").iterdir())}


def test_a_unit_writes_at_most_once_a_second_and_all_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with open_stage(tmp_path, PLAN) as work, unit_output(work.dir, "u") as out:
        out.progress(images=1)
        out.progress(images=2)
        assert written(work) == {"u.json": {"images": 1}}
        now += 1
        out.progress(images=3, pages=1)
        assert written(work) == {"u.json": {"images": 6, "pages": 1}}
        out.progress(images=4)
    assert written(work) == {"u.json": {"images": 10, "pages": 1}}


def test_an_attempt_begins_anew_and_so_does_a_run(tmp_path: Path) -> None:
    with open_stage(tmp_path, PLAN) as work:
        for last in (False, True):
            try:
                with unit_output(work.dir, "u") as out:
                    out.progress(images=5)
                    if not last:
                        raise RuntimeError("an attempt that failed")
            except RuntimeError:
                pass
        assert written(work) == {"u.json": {"images": 5}}
        (work.dir / "_work" / "progress" / ".u.12345").write_text("{")  # what a kill leaves
    with open_stage(tmp_path, PLAN) as work:
        assert written(work) == {} and work.kept == ["u"]


def test_a_meter_adds_up_its_own_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with open_stage(tmp_path, PLAN) as work:
        meter = work.meter(["a", "b", "c"])
        assert meter.note("working") == "working"
        for unit, images in (("a", 1500), ("b", 100), ("other", 7)):
            UnitProgress(work.dir / "_work" / "progress", unit).add(images=images)
        assert meter.note("working") == "working"  # read a moment ago
        now += 4
        assert meter.note("working") == "working: 1,600 images, 400.0 images/s"
        work.measured(meter)
        assert work.amounts == {"images": (1600, 4.0)}


def test_nothing_is_written_where_nobody_works_any_more(tmp_path: Path) -> None:
    with open_stage(tmp_path, PLAN) as work:
        work.commit([])
        UnitProgress(work.dir / "_work" / "progress", "late").add(images=1)
    assert [path.name for path in work.dir.iterdir()] == ["manifest.json"]


def count(payload: Any, out: UnitTables) -> None:
    for _ in range(payload):
        out.progress(images=2)


def test_a_stage_shows_them_and_notes_them_in_its_metrics(damaged_files: Any, tmp_path: Path, session: Any) -> None:
    seen: list[str] = []
    ctx = RunContext(tmp_path, progress=lambda done, total, note: seen.append(note))

    def body(work: StageWork) -> tuple[list[str], dict[str, Any]]:
        return run_units(ctx.session, work, [Unit("a", 3), Unit("b", 5)], count, {}, ctx.progress, "counting"), {}

    result = run_contract(ctx, PLAN, body)
    assert seen[0] == "counting" and seen[-1] == "committing" and seen[-2].startswith("counting: 16 images, ")
    assert damaged_files(result.dir) == [] and [path.name for path in result.dir.iterdir()] == ["manifest.json"]
    assert "images" not in (result.dir / "manifest.json").read_text()
    (line,) = (tmp_path / "metrics" / "toy.jsonl").read_text().splitlines()
    metrics = json.loads(line)
    assert metrics["images"] == 16 and metrics["images_per_second"] > 0
