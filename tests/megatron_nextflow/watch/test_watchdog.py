"""Hangs, stragglers and rank logs: alone by the clock, then two real processes of which one stops feeding.

The two-process run is one launch for all: a bad loss that both go back from, a batch that one cannot read, a slow process, a
hang.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nextflow_tokenize.shards.reader import ShardSet

from megatron_nextflow.config.health import PATIENCE, HealthConfig
from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.feeding.order import shuffled
from megatron_nextflow.launching.exit_status import HUNG, STATUS_FILE
from megatron_nextflow.watch.heartbeat import read_heartbeat
from megatron_nextflow.watch.rank_log import log_path
from megatron_nextflow.watch.reporter import read_events, read_metrics
from megatron_nextflow.watch.stragglers import slowest
from megatron_nextflow.watch.watchdog import Watchdog

Config = Callable[..., TrainConfig]


def test_a_thread_that_hangs_is_found_and_shown(tmp_path: Path) -> None:
    reasons: list[str] = []
    ended, told = threading.Event(), threading.Event()

    def a_collective_nobody_enters() -> None:
        ended.wait()

    def on_hang(reason: str) -> None:
        reasons.append(reason)
        told.set()

    stuck = threading.Thread(target=a_collective_nobody_enters)
    stuck.start()
    dog = Watchdog(0.01, tmp_path, 3, on_hang)
    dog.start()
    dog.beat(41)
    assert told.wait(60)
    ended.set()
    dog.close()
    assert len(reasons) == 1 and "rank 3" in reasons[0]
    stacks = (tmp_path / "logs" / "hang-rank-00003.txt").read_text(encoding="utf-8")
    assert stacks.splitlines()[0].endswith(reasons[0])
    assert "a_collective_nobody_enters" in stacks


def test_a_disk_that_takes_no_stacks_keeps_no_run_alive(tmp_path: Path) -> None:
    told = threading.Event()
    (tmp_path / "logs").write_text("no folder", encoding="utf-8")
    dog = Watchdog(0.01, tmp_path, 0, lambda reason: told.set())
    dog.start()
    assert told.wait(60)
    dog.close()


_HOLDS_THE_GIL = """
import ctypes, sys
from pathlib import Path
from megatron_nextflow.watch.rank_log import open_log
from megatron_nextflow.watch.watchdog import Watchdog

def an_extension_that_never_returns():
    ctypes.PyDLL(None).sleep(600)  # a PyDLL's functions keep the GIL, where a CDLL's give it up

output = Path(sys.argv[1])
open_log(output, 0)
sys.setswitchinterval(600)  # this thread gives the GIL up to no other: not before the call either
Watchdog(0.1, output, 0, print).start()
an_extension_that_never_returns()
"""


def test_who_hangs_holding_the_gil_leaves_its_stacks_in_its_log(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _HOLDS_THE_GIL, str(tmp_path)], stdout=subprocess.PIPE)
    log, until = log_path(tmp_path, 0), time.monotonic() + 120
    while "an_extension_that_never_returns" not in (said := log.read_text() if log.is_file() else ""):
        assert process.poll() is None and time.monotonic() < until, said
        time.sleep(0.05)
    process.kill()
    assert process.communicate() == (b"", None)  # Python itself said nothing
    assert "Timeout" in said and not list(log.parent.glob("hang-*"))


def test_how_long_it_waits(tmp_path: Path) -> None:
    """Three times as long for the first step and while saving; each beat begins anew."""
    dog = Watchdog(100.0, tmp_path, 0, lambda reason: None)
    begun = dog._last
    assert dog.left(begun) == pytest.approx(PATIENCE * 100)
    dog.beat(1)
    assert dog.left(dog._last + 30) == pytest.approx(70)
    with dog.patient("saving"):
        assert dog.left(dog._last) == pytest.approx(PATIENCE * 100)
    assert dog.left(dog._last) == pytest.approx(100)


def test_a_closed_watchdog_is_silent(tmp_path: Path) -> None:
    reasons: list[str] = []
    dog = Watchdog(3600.0, tmp_path, 0, reasons.append)
    dog.start()
    dog.close()
    dog._thread.join(60)
    assert not dog._thread.is_alive() and not reasons and not (tmp_path / "logs").exists()


def test_the_slowest_is_beyond_the_median() -> None:
    even = [1e-3] * 4
    found = slowest([1e-3, 1.1e-3, 4e-3, 1e-3], even, step=1.0, limit=1.5)
    assert found is not None and (found.rank, found.what, found.factor) == (2, "computing", pytest.approx(4.0))
    assert slowest([1e-3, 1.1e-3, 1.4e-3, 1e-3], even, step=1.0, limit=1.5) is None
    of_two = slowest([1e-3, 2e-3], even[:2], step=1.0, limit=1.5)
    assert of_two is not None and of_two.rank == 1


def test_slow_reading_counts_by_what_it_does_to_the_step() -> None:
    """0.6 s more than usual in a step of 1 s makes it 2.5 times as long; ten times of almost nothing is nothing."""
    even = [1e-3] * 3
    found = slowest(even, [0.1, 0.7, 0.1], step=1.0, limit=1.5)
    assert found is not None and (found.rank, found.what, found.factor) == (1, "reading its batches", pytest.approx(2.5))
    assert slowest(even, [0.001, 0.01, 0.001], step=1.0, limit=1.5) is None


_PROGRAM = """
import dataclasses, math, os, sys, threading
from megatron_nextflow import train
from megatron_nextflow.runtime import device
device.setup("cpu")
from nextflow_tokenize.shards.reader import ShardError
from megatron_nextflow.feeding import feed
from megatron_nextflow.runtime import training_folder
from megatron_nextflow.watch import stragglers, watchdog
SECOND = os.environ["RANK"] == "1"
give, beat = feed.Feed.next_batch, watchdog.Watchdog.beat

def nobody_sends_the_next_pack():
    threading.Event().wait()

def nothing_but_damage():
    raise ShardError("shard-000000.tar is damaged", key="000000-000001")
    yield

def hurried(self, step):
    self.seconds = 5 if step == 3 else self.seconds
    beat(self, step)

def next_batch(self):
    batches = give(self)
    place = self.consumed - self.config.data.global_batch_size
    if place == 4 and SECOND:
        batches = (dataclasses.replace(batch, weights=batch.weights * math.nan) for batch in batches)
    if place == 8 and SECOND:
        batches = nothing_but_damage()
    if place == 20 and SECOND:
        nobody_sends_the_next_pack()
    return batches

feed.Feed.next_batch = next_batch
watchdog.Watchdog.beat = hurried
if SECOND:
    stragglers.probe = lambda device: 1000.0
    training_folder.latest = lambda output: None  # as a machine sees it that has not looked into the folder again
sys.exit(train.main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Hung:
    """A training of two data-parallel copies that ended in a hang."""

    output: Path
    stderr: str
    status: str
    keys: list[str]


@pytest.fixture(scope="module")
def hung(make_config: Config, training_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Hung:
    """Copy 1's part of the second batch has no finite loss, of the third it has none; it is slow; and at place 20 it waits
    for ever."""
    folder = tmp_path_factory.mktemp("hung")
    health = HealthConfig(nan="rollback", straggler_interval=2)
    config = make_config(training_data, folder / "run", steps=50, checkpoint_interval=1, health=health)
    (folder / "train.json").write_text(config.model_dump_json(), encoding="utf-8")
    (folder / "program.py").write_text(_PROGRAM, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCH_COMPILE_DISABLE": "1"}
    command = [sys.executable, str(folder / "program.py"), "--config", str(folder / "train.json")]
    with open(folder / "stderr", "w+", encoding="utf-8") as stderr:
        processes = [
            subprocess.Popen(
                command,
                stderr=stderr,
                env={**os.environ, **shared, "RANK": str(rank), STATUS_FILE: str(folder / "status")},
            )
            for rank in (0, 1)
        ]
        codes = [process.wait(timeout=300) for process in processes]
        stderr.seek(0)
        said = stderr.read()
    assert codes[0] != 0 and codes[1] == HUNG  # the first may also notice that the second is gone
    packs = ShardSet.open(str(training_data.shards))
    keys = sorted(packs.read(shuffled(place, len(packs), 0)).key for place in range(4, 8))
    return Hung(folder / "run", said, (folder / "status").read_text(encoding="utf-8"), keys)


@pytest.mark.slow
def test_a_hang_ends_the_run_with_its_own_status(hung: Hung) -> None:
    assert hung.status == f"{HUNG}\n"
    said = [line for line in hung.stderr.splitlines() if line.startswith("train: ")]
    assert len(said) == 1
    assert "step 4 has not ended in 5 s" in said[0] and str(hung.output / "logs") in said[0]
    assert read_events(hung.output)[-1]["kind"] == "hang"
    heartbeat = read_heartbeat(hung.output)
    assert heartbeat is not None and (heartbeat["state"], heartbeat["step"]) == ("failed", 3)


@pytest.mark.slow
def test_the_stacks_say_who_is_missing_in_the_collective(hung: Hung) -> None:
    stacks = [(hung.output / "logs" / f"hang-rank-0000{rank}.txt").read_text(encoding="utf-8") for rank in (0, 1)]
    assert ["nobody_sends_the_next_pack" in text for text in stacks] == [False, True]
    assert "distributed_c10d.py" in stacks[0]
    for rank in (0, 1):
        log = log_path(hung.output, rank).read_text(encoding="utf-8")
        assert log.startswith("==== ") and f"rank {rank} of 2 on" in log.splitlines()[0]
        assert "Current thread" in log


@pytest.mark.slow
def test_both_copies_left_the_batches_that_one_could_not_use(hung: Hung) -> None:
    assert [row["step"] for row in read_metrics(hung.output)] == [1, 2, 3]
    assert [row["consumed"] for row in read_metrics(hung.output)] == [4, 16, 20]
    events = [event for event in read_events(hung.output) if event["kind"] in ("nan", "rollback", "data")]
    assert [(event["kind"], event["place"]) for event in events] == [("nan", 4), ("rollback", 4), ("data", 8)]
    assert events[0]["keys"] == hung.keys and events[2]["keys"] == ["000000-000001"]


@pytest.mark.slow
def test_the_slow_process_is_named(hung: Hung) -> None:
    (event,) = (event for event in read_events(hung.output) if event["kind"] == "straggler")
    assert (event["step"], event["rank"], event["what"]) == (2, 1, "computing")
    assert event["factor"] > 1.5 and event["host"] in event["message"]
