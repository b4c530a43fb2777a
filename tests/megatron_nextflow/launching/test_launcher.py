"""The launcher: what it refuses, what it does with signals, what it says of a rank that was killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from nextflow_data.common.whole_files import file_problem
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from megatron_nextflow.checkpoint.format import read_manifest
from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.launching.launch_record import AlreadyRunning, Hold, LaunchRecord, alive, own_start, read_record
from megatron_nextflow.launching.launcher import launch
from megatron_nextflow.launching.supervise import attend, watch
from megatron_nextflow.launching.torchrun import cause
from megatron_nextflow.runtime import training_folder
from megatron_nextflow.runtime.training_folder import last_step
from megatron_nextflow.watch.reporter import read_metrics

Config = Callable[..., TrainConfig]


def test_a_port_in_use_is_refused_before_any_work(make_config: Config, training_data: Any, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = make_config(training_data, tmp_path / "run", master_port=port)
        with pytest.raises(ValueError, match=rf"port {port} of this machine is taken.*train\.master_port.*leave it out"):
            launch(config, tmp_path, 1)
    assert not (tmp_path / "run" / "train.json").exists()


def test_two_launchers_never_train_into_one_folder(make_config: Config, training_data: Any, tmp_path: Path) -> None:
    with Hold(tmp_path), pytest.raises(AlreadyRunning, match="is training into"):
        launch(make_config(training_data, tmp_path), tmp_path, 1)


def test_a_record_knows_its_process_from_another_with_its_number() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    record = LaunchRecord(
        pid=os.getpid(), started=own_start(), host=socket.gethostname(), processes=1, status="running", began=0.0
    )
    assert alive(record)
    assert not alive(record.model_copy(update={"started": record.started - 60}))
    assert not alive(record.model_copy(update={"host": "elsewhere"}))
    assert not alive(record.model_copy(update={"status": "stopped"}))
    other = record.model_copy(update={"pid": child.pid, "started": psutil.Process(child.pid).create_time()})
    assert alive(other)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not alive(other)  # though its parent has not asked for it yet
    child.wait()
    assert not alive(other)


_WORKER = """
import pathlib, signal, subprocess, sys, time
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0 if helper.wait() == 0 else 9))
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""
_AGENT = """
import pathlib, signal, subprocess, sys, time
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
worker, folder = sys.argv[1], pathlib.Path(sys.argv[2])
first = subprocess.Popen([sys.executable, "-c", worker, folder / "ready"])
while not (folder / "told").exists():
    time.sleep(0.01)
second = subprocess.Popen([sys.executable, "-c", worker, folder / "second"])
sys.exit(first.wait() if second.wait() in (0, -signal.SIGTERM) else 8)
"""


def _send_when_ready(folder: Path, *numbers: signal.Signals) -> list[str]:
    """A command that plays torchrun with two processes, and in a thread the signals that come when the first is ready."""

    def send() -> None:
        while not (folder / "ready").exists():
            time.sleep(0.01)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.5)
        (folder / "told").touch()

    threading.Thread(target=send, daemon=True).start()
    return [sys.executable, "-c", _AGENT, _WORKER, str(folder)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_reaches_each_process_once_and_no_helper_of_theirs(number: signal.Signals, tmp_path: Path) -> None:
    """It comes twice, as from Slurm; the second process begins after it; each waits for a helper, as for a writer."""
    before = signal.getsignal(number)
    assert watch(_send_when_ready(tmp_path, number, number), os.environ) == (0, number)
    assert signal.getsignal(number) == before


def test_a_second_interrupt_kills(tmp_path: Path) -> None:
    status = attend(_send_when_ready(tmp_path, signal.SIGINT, signal.SIGINT), os.environ, tmp_path / "none")
    assert status == 128 + signal.SIGINT
    left = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or ())]
    assert not left


def test_the_rank_that_was_killed_is_named_before_those_that_lost_it() -> None:
    lost, killed, ended = (ProcessFailure(n, 100 + n, code, "none") for n, code in ((0, 1), (1, -9), (2, -15)))
    assert cause({0: lost, 1: killed, 2: ended}).startswith("rank 1 (process 101) was killed by SIGKILL")
    assert cause({0: lost, 2: ended}).startswith("rank 0 (process 100) ended with status 1;")
    assert "SIGSEGV" in cause({3: ProcessFailure(3, 103, -11, "none"), 1: killed})


def _start(config: TrainConfig, processes: int, folder: Path) -> subprocess.Popen[str]:
    file = folder / "config.json"
    file.write_text(config.model_dump_json(), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "megatron_nextflow.launch",
        "--config",
        str(file),
        "--processes",
        str(processes),
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def test_a_rank_killed_mid_step_ends_all_and_keeps_the_checkpoint(
    make_config: Config, training_data: Any, tmp_path: Path
) -> None:
    """The other rank is stopped first: it then waits for ever, as one does in a collective on a GPU."""
    output = tmp_path / "run"
    process = _start(make_config(training_data, output, steps=100_000, checkpoint_interval=3), 2, tmp_path)
    deadline = time.monotonic() + 240
    while not last_step(output):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    record = read_record(output)
    assert record is not None and alive(record) and (record.pid, record.processes) == (process.pid, 2)
    family = psutil.Process(process.pid).children(recursive=True)
    ranks = {
        int(p.environ()["RANK"]): p for p in family if "megatron_nextflow.train" in p.cmdline() and p.environ().get("RANK")
    }
    ranks[0].suspend()
    ranks[1].kill()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"rank 1 (process {ranks[1].pid}) was killed by SIGKILL" in said
    assert not psutil.wait_procs(family, timeout=20)[1]
    ended = read_record(output)
    assert ended is not None and (ended.status, ended.exit_code, alive(ended)) == ("failed", 1, False)
    saved = training_folder.latest(output)
    assert saved is not None and last_step(output) <= len(read_metrics(output))
    files = read_manifest(saved).files
    assert files and not [n for n, entry in files.items() if file_problem(saved / n, entry.size, entry.sha256)]
