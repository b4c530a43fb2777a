"""The stage contract without Spark: fingerprints, commits, kept units, locks, damage and a full disk."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nextflow_data.common.whole_files import file_sha256
from nextflow_pipelines.contract.stage import (
    MANIFEST,
    Corrupt,
    DiskFull,
    StageBusy,
    StageError,
    StagePlan,
    find_committed,
    merge_counts,
    read_manifest,
)
from nextflow_pipelines.contract.units import unit_output
from nextflow_pipelines.contract.work import StageWork, open_stage

PLAN = StagePlan("toy", 1, {"toy": {"size": 3}}, {"before": "ab" * 32})


def do_unit(work: StageWork, number: int, rows: int = 1) -> str:
    name = f"part-{number:05d}"
    with unit_output(work.dir, name) as out:
        out.path(f"data/{name}.txt", rows).write_text(f"content {number}\n" * (number + 1))
        out.count("rows", "data", by=rows)
    return name


def commit(root: Path, plan: StagePlan = PLAN, units: int = 3) -> Path:
    with open_stage(root, plan) as work:
        work.commit([do_unit(work, number) for number in range(units)], {"fact": "value"})
    return work.dir


def tree(folder: Path) -> dict[str, str]:
    """Every file of a folder by content."""
    return {p.relative_to(folder).as_posix(): file_sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_fingerprint_is_the_hash_of_the_canonical_identity() -> None:
    plan = StagePlan("a", 2, {"z": 1, "é": [0.5, None]}, {"in": "ff"})
    text = '{"inputs":{"in":"ff"},"parameters":{"z":1,"é":[0.5,null]},"stage":"a","version":2}'
    assert plan.fingerprint == hashlib.sha256(text.encode()).hexdigest()
    assert plan.folder(Path("r")) == Path("r") / f"a-{plan.fingerprint[:12]}"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4), lambda v: st.lists(v, max_size=2), max_leaves=4
)
plans = st.builds(
    StagePlan,
    st.sampled_from(["a", "b"]),
    st.integers(1, 2),
    st.dictionaries(st.sampled_from("pq"), json_values, max_size=2),
    st.dictionaries(st.sampled_from("xy"), st.sampled_from(["00", "11"]), max_size=2),
)


@settings(deadline=None)
@given(plans, plans)
def test_plans_share_a_fingerprint_only_when_they_are_equal(one: StagePlan, other: StagePlan) -> None:
    def key(plan: StagePlan) -> str:
        return json.dumps([plan.name, plan.version, plan.parameters, plan.inputs], sort_keys=True)

    assert (one.fingerprint == other.fingerprint) == (key(one) == key(other))


def test_nan_is_no_parameter() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        _ = StagePlan("a", 1, {"x": float("nan")}, {}).fingerprint


def test_a_stage_is_invisible_until_its_manifest_is_written(damaged_files: Any, tmp_path: Path) -> None:
    with open_stage(tmp_path, PLAN) as work:
        units = [do_unit(work, number) for number in range(3)]
        assert find_committed(tmp_path, "toy") == []
        with pytest.raises(StageError, match="not a committed stage"):
            read_manifest(work.dir)
        manifest = work.commit(units)
    assert find_committed(tmp_path, "toy") == [work.dir]
    assert manifest["counts"] == {"rows": {"data": 3}}
    assert [f["path"] for f in manifest["files"]] == [f"data/part-0000{n}.txt" for n in range(3)]
    for entry in manifest["files"]:
        content = (work.dir / entry["path"]).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert set(tree(work.dir)) == {MANIFEST, *(f["path"] for f in manifest["files"])}
    assert damaged_files(work.dir) == []


def test_committed_stages_are_found_newest_first_and_by_whole_name(tmp_path: Path) -> None:
    first, second = commit(tmp_path), commit(tmp_path, StagePlan("toy", 2, {}, {}))
    commit(tmp_path, StagePlan("toy_long", 1, {}, {}))
    os.utime(first / MANIFEST, ns=(1, 1))
    assert find_committed(tmp_path, "toy") == [second, first]


def test_a_commit_needs_every_unit(tmp_path: Path) -> None:
    with open_stage(tmp_path, PLAN) as work:
        do_unit(work, 0)
        with pytest.raises(StageError, match="1 of 2 units are not done"):
            work.commit(["part-00000", "part-00001"])
    assert find_committed(tmp_path, "toy") == []


def test_a_unit_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with open_stage(tmp_path, PLAN) as work:
        with pytest.raises(ZeroDivisionError), unit_output(work.dir, "part-00000") as out:
            out.path("data/a.txt").write_text("half")
            _ = 1 / 0
        assert work.pending(["part-00000"]) == ["part-00000"]
        assert [p for p in work.dir.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("path", ["../other.txt", "/etc/passwd", "a/../../b", MANIFEST])
def test_a_unit_cannot_write_outside_its_stage(tmp_path: Path, path: str) -> None:
    with (
        open_stage(tmp_path, PLAN) as work,
        unit_output(work.dir, "u") as out,
        pytest.raises(ValueError, match="not a path"),
    ):
        out.path(path)


def test_committing_removes_what_no_unit_wrote(tmp_path: Path) -> None:
    with open_stage(tmp_path, PLAN) as work:
        unit = do_unit(work, 0)
        (work.dir / "data" / "orphan.txt").write_text("of a killed attempt")
        (work.dir / "old").mkdir()
        (work.dir / "old" / "x").write_text("x")
        work.commit([unit])
    assert set(tree(work.dir)) == {MANIFEST, "data/part-00000.txt"} and not (work.dir / "old").exists()


def test_a_committed_stage_is_not_done_again(tmp_path: Path) -> None:
    folder = commit(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    with open_stage(tmp_path, PLAN) as work:
        assert work.manifest is not None and work.manifest["facts"] == {"fact": "value"}
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_a_late_task_cannot_write_into_a_committed_stage(tmp_path: Path) -> None:
    folder = commit(tmp_path)
    before = tree(folder)
    with pytest.raises(StageError, match="no longer being worked on"), unit_output(folder, "late") as out:
        out.path("data/late.txt")
    assert tree(folder) == before


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_committed_stage_with_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    file = commit(tmp_path) / "data" / "part-00001.txt"
    if damage == "cut":
        os.truncate(file, 3)
    else:
        file.unlink()
    with pytest.raises(Corrupt, match=r"part-00001.txt .* remove the folder and run again"), open_stage(tmp_path, PLAN):
        pass


def test_verify_names_what_is_wrong(damaged_files: Any, tmp_path: Path) -> None:
    folder = commit(tmp_path)
    flipped = folder / "data" / "part-00002.txt"
    content = bytearray(flipped.read_bytes())
    content[0] ^= 1
    flipped.write_bytes(content)
    (folder / "data" / "stray").write_text("")
    assert damaged_files(folder) == [
        "data/part-00002.txt has another sha256 than the manifest says",
        "data/stray is not named by the manifest",
    ]
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest["parameters"]["toy"]["size"] = 4
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert any("fingerprint" in line for line in damaged_files(folder))


@pytest.mark.parametrize(("content", "error"), [(b"{", Corrupt), (b"[]", Corrupt), (b"{}", Corrupt)])
def test_a_manifest_that_cannot_be_read_says_so(tmp_path: Path, content: bytes, error: type[Exception]) -> None:
    folder = commit(tmp_path)
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(error, match=MANIFEST):
        read_manifest(folder)


def test_a_manifest_of_another_format_is_refused(tmp_path: Path) -> None:
    folder = commit(tmp_path)
    manifest = json.loads((folder / MANIFEST).read_bytes()) | {"format": 99}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(StageError, match="99"):
        read_manifest(folder)


DRIVER = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    from nextflow_pipelines.contract.stage import StagePlan
    from nextflow_pipelines.contract.units import unit_output
    from nextflow_pipelines.contract.work import open_stage

    root, die_in, after = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    with open_stage(root, StagePlan("toy", 1, {"toy": {"size": 3}}, {"before": "ab" * 32})) as work:
        units = [f"part-{n:05d}" for n in range(5)]
        for number, unit in enumerate(units):
            if unit in work.pending([unit]):
                with unit_output(work.dir, unit) as out:
                    out.path(f"data/{unit}.txt", 1).write_text(f"content {number}\\n" * 1000)
                    out.count("rows", "data")
                    if number == die_in and after == "writing":
                        os.kill(os.getpid(), signal.SIGKILL)
            if number == die_in and after == "done":
                os.kill(os.getpid(), signal.SIGKILL)
        work.commit(units)
    print(len(work.kept))
    """
)


def drive(root: Path, die_in: int = -1, after: str = "never") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DRIVER, root, str(die_in), after], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("after", "kept"), [("writing", 3), ("done", 4)])
def test_a_killed_stage_goes_on_and_ends_in_the_same_bytes(
    damaged_files: Any, tmp_path: Path, after: str, kept: int
) -> None:
    drive(tmp_path / "whole").check_returncode()
    assert drive(tmp_path / "killed", 3, after).returncode == -signal.SIGKILL
    assert find_committed(tmp_path / "killed", "toy") == []
    again = drive(tmp_path / "killed")
    assert again.stdout.strip() == str(kept), again.stderr
    (whole,), (killed,) = find_committed(tmp_path / "whole", "toy"), find_committed(tmp_path / "killed", "toy")
    assert whole.name == killed.name and tree(whole) == tree(killed)
    assert damaged_files(killed) == []


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "record"])
def test_a_kept_unit_whose_files_do_not_match_is_redone(damaged_files: Any, tmp_path: Path, damage: str) -> None:
    drive(tmp_path, 3, "done")
    file = PLAN.folder(tmp_path) / "data" / "part-00001.txt"
    if damage == "flipped":
        content = bytearray(file.read_bytes())
        content[5] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        os.truncate(file, 10)
    elif damage == "missing":
        file.unlink()
    else:
        (PLAN.folder(tmp_path) / "_work" / "done" / "part-00001.json").write_text('{"unit": "part-00001"')
    assert drive(tmp_path).stdout.strip() == "3"
    assert file.read_text() == "content 1\n" * 1000
    assert damaged_files(PLAN.folder(tmp_path)) == []


def test_two_runs_of_one_stage_do_not_meet_and_a_killed_one_holds_no_lock(tmp_path: Path) -> None:
    holder = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from nextflow_pipelines.contract.stage import StagePlan
        from nextflow_pipelines.contract.work import open_stage
        with open_stage(Path(sys.argv[1]), StagePlan("toy", 1, {"toy": {"size": 3}}, {"before": "ab" * 32})):
            print("held", flush=True)
            time.sleep(600)
        """
    )
    with subprocess.Popen([sys.executable, "-c", holder, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(StageBusy, match=f"process {process.pid}"), open_stage(tmp_path, PLAN):
            pass
        commit(tmp_path, StagePlan("toy", 2, {}, {}))  # another fingerprint is another stage
        process.kill()
    assert (tmp_path / ".locks").exists()
    assert read_manifest(commit(tmp_path))["stage"] == "toy"


def test_a_full_disk_says_what_was_kept_and_the_run_goes_on_once_there_is_space(
    damaged_files: Any,
    mounted_disk: Callable[[str], Path],
) -> None:
    small_disk = mounted_disk("512k")
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(300 << 10))

    def attempt() -> StageWork:
        with open_stage(small_disk, PLAN) as work:
            units = [f"part-{number:05d}" for number in range(4)]
            for unit in work.pending(units):
                with unit_output(work.dir, unit) as out:
                    out.path(f"data/{unit}.bin").write_bytes(unit[-1:].encode() * (64 << 10))
            work.commit(units)
        return work

    with pytest.raises(DiskFull, match=r"Kept: [123] finished units \([\d,]+ bytes\).*only what is missing is redone"):
        attempt()
    assert find_committed(small_disk, "toy") == []
    ballast.unlink()
    work = attempt()
    assert len(work.kept) >= 1 and damaged_files(work.dir) == []


def test_a_full_disk_is_recognised_where_nothing_can_be_mounted(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=r"Kept: 1 finished units"), open_stage(tmp_path, PLAN) as work:
        do_unit(work, 0)
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"x")


counts = st.recursive(st.integers(0, 9), lambda v: st.dictionaries(st.sampled_from("abc"), v, max_size=3), max_leaves=6)
shaped = st.fixed_dictionaries({"rows": st.dictionaries(st.sampled_from("abc"), st.integers(0, 9))})


@given(st.lists(shaped, max_size=5), st.randoms())
def test_counts_add_up_in_any_order(parts: list[dict[str, Any]], random: Any) -> None:
    expected = {key: sum(p["rows"].get(key, 0) for p in parts) for p in parts for key in p["rows"]}
    random.shuffle(parts)
    total: dict[str, Any] = {}
    for part in parts:
        merge_counts(total, part)
    assert total.get("rows", {}) == expected
