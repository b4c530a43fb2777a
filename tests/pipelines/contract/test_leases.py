"""Leases on a real S3 server: who holds one, when it is taken over, and how it is kept."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any

import pytest
from nextflow_data.storage.files import put
from nextflow_data.storage.store_path import StorePath
from nextflow_pipelines.contract import leases, locks
from nextflow_pipelines.contract.leases import Holder
from nextflow_pipelines.contract.stage import StageBusy, StagePlan
from nextflow_pipelines.contract.work import open_stage

PLAN = StagePlan("toy", 1, {}, {})


def left_by(root: StorePath, **other: Any) -> StorePath:
    """A lease as another has left it."""
    holder = Holder.of_this_process()
    for name, value in other.items():
        setattr(holder, name, value)
    place = root / locks.LOCKS / f"{PLAN.folder(root).name}.json"
    put(place, holder.as_json())
    return place


def test_a_lease_names_its_holder_and_is_taken_from_the_dead_at_once(s3_root: StorePath) -> None:
    left_by(s3_root, host="node-7", machine="another", pid=4711)
    with pytest.raises(StageBusy, match=r"process 4711 on node-7 \(seen \d+ seconds ago\): wait"), open_stage(s3_root, PLAN):
        pass
    left_by(s3_root, started=1)  # this process's number, and another start: a process that is no more
    busy = f"process {os.getpid()} on {socket.gethostname()}"
    with open_stage(s3_root, PLAN), pytest.raises(StageBusy, match=busy), open_stage(s3_root, PLAN):
        pass
    place = left_by(s3_root, host="node-7", machine="another", released=True)
    with open_stage(s3_root, PLAN):
        assert json.loads(place.read_bytes())["pid"] == os.getpid()
    assert json.loads(place.read_bytes())["released"]


def test_a_lease_grows_old_by_the_stores_clock_and_lives_by_renewal(
    s3_root: StorePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = leases.read_with_state

    def later(path: StorePath) -> Any:
        content, state, clock = real(path)
        return content, state, clock + 61

    left_by(s3_root, host="node-7", machine="another")
    with pytest.raises(StageBusy), open_stage(s3_root, PLAN):
        pass
    monkeypatch.setattr(leases, "read_with_state", later)
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.05)
    with open_stage(s3_root, PLAN) as stage:
        place = s3_root / locks.LOCKS / f"{stage.dir.name}.json"
        while json.loads(place.read_bytes())["renewed"] < 2:
            time.sleep(0.02)
