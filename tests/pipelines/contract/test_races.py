"""Processes that make one stage on a real S3 server at once, or are killed at it."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import textwrap
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nextflow_data.storage.files import list_files
from nextflow_data.storage.store_path import AnyPath, StorePath
from nextflow_pipelines.contract.stage import MANIFEST, check_sizes, find_committed, read_manifest, stage_file
from nextflow_pipelines.spark.context import MEANWHILE

WRITER = textwrap.dedent(
    """
    import json, os, sys, time
    from nextflow_data.storage.config import S3Config, StorageConfig
    from nextflow_data.storage.files import any_path, list_files, put
    from nextflow_pipelines.contract import leases, locks
    from nextflow_pipelines.contract.stage import StagePlan
    from nextflow_pipelines.contract.units import unit_output
    from nextflow_pipelines.spark.context import RunContext, run_contract

    address, endpoint = sys.argv[1:]
    locks.LOOK_SECONDS = 0.2

    def here():
        put(marks / str(os.getpid()), "x")

    def progress(done, total, note):
        seen.append(note)
        if note.startswith("waiting"):
            here()

    def body(work):
        here()
        while len(list(list_files(marks))) < 4:  # who is at work goes on when the others are too, or wait for it
            time.sleep(0.05)
        names = [f"part-{n:05d}" for n in range(6)]
        for name in names:
            if work.pending([name]):
                with unit_output(work.dir, name) as out:  # a recorded unit: no two attempts make the same bytes
                    out.path(f"data/{name}.txt", 1).write_text(f"{name} by {os.getpid()}")
        return names, {}

    root = any_path(address, StorageConfig(s3=S3Config(endpoint=endpoint, path_style=True)))
    for place in ("leased", "lost"):
        if place == "lost":  # every lease is, as soon as it is taken
            leases.LEASE_SECONDS = -1e9
        marks, seen = root / "marks" / place, []
        done = run_contract(RunContext(root / place, progress=progress), StagePlan("toy", 1, {}, {}), body)
        print(json.dumps({"notes": done.notes, "skipped": done.skipped, "seen": seen}), flush=True)
    """
)


def test_of_four_runs_of_a_stage_one_commits_and_the_others_use_it(s3_root: StorePath, s3_server: Any) -> None:
    command = [sys.executable, "-c", WRITER, str(s3_root), s3_server.endpoint]
    with ExitStack() as ended:
        writers = [ended.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) for _ in range(4)]
        for writer in writers:
            ended.callback(writer.kill)
        for place in ("leased", "lost"):
            _race(s3_root / place, writers)


def _race(root: StorePath, writers: list[subprocess.Popen[str]]) -> None:
    said = [json.loads(writer.stdout.readline()) for writer in writers if writer.stdout is not None]
    assert sorted(one["skipped"] for one in said) == [False, True, True, True]
    assert all(one["notes"] == [MEANWHILE] * one["skipped"] == [n for n in one["seen"] if n == MEANWHILE] for one in said)
    (folder,) = find_committed(root, "toy")
    manifest = read_manifest(folder)
    assert len(manifest["files"]) == 6
    for entry in manifest["files"]:
        assert hashlib.sha256(stage_file(folder, entry).read_bytes()).hexdigest() == entry["sha256"]


DRIVER = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    from nextflow_data.storage.config import S3Config, StorageConfig
    from nextflow_data.storage.files import any_path
    from nextflow_pipelines.contract.stage import StagePlan
    from nextflow_pipelines.contract.units import unit_output
    from nextflow_pipelines.spark.context import RunContext, run_contract

    address, endpoint, die_in = sys.argv[1:]

    def body(work):
        names = [f"part-{n:05d}" for n in range(4)]
        for name in work.pending(names):
            with unit_output(work.dir, name) as out:
                out.path(f"data/{name}.txt", 1).write_text(f"content of {name}")
                out.path(f"shards/{name}.txt").write_text(f"content of {name}")
                if name == die_in:
                    os.kill(os.getpid(), signal.SIGKILL)
        return names, {}

    root = any_path(address, StorageConfig(s3=S3Config(endpoint=endpoint, path_style=True)))
    print(run_contract(RunContext(root), StagePlan("toy", 1, {}, {}), body).kept)
    """
)


def test_a_killed_run_is_gone_on_with_at_once_and_ends_in_the_bytes_of_a_disk(
    s3_root: StorePath, s3_server: Any, tmp_path: Path
) -> None:
    def drive(root: AnyPath, die_in: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", DRIVER, str(root), s3_server.endpoint, die_in]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)

    drive(tmp_path / "whole").check_returncode()
    assert drive(s3_root, "part-00002").returncode == -signal.SIGKILL
    assert find_committed(s3_root, "toy") == []
    again = drive(s3_root)
    assert again.stdout.strip() == "2", again.stderr
    (whole,), (killed,) = find_committed(tmp_path / "whole", "toy"), find_committed(s3_root, "toy")
    assert (whole / MANIFEST).read_bytes() == (killed / MANIFEST).read_bytes()
    assert check_sizes(killed, read_manifest(killed)) == [] and len(list(list_files(killed))) == 9
