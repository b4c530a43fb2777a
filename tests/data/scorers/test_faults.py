"""Scorers that hang, die and lie, on real processes: each fault is one failed answer, and the work goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nextflow_data.scorers.config import ScorerConfig, ScoringConfig
from nextflow_data.scorers.pool import Pool
from nextflow_data.scorers.protocol import Question
from nextflow_data.scorers.scoring import open_scoring, open_way

Serve = Callable[..., tuple[subprocess.Popen[str], str]]

_PARENT = """
import sys
from nextflow_data.scorers.config import ScorerConfig
from nextflow_data.scorers.pool import Pool
from nextflow_data.scorers.protocol import Question
pool = Pool(ScorerConfig(scorer=sys.argv[1], way="pool", workers=1))
print(pool.processes[0], flush=True)
pool.ask(Question(extra={"do": "hang"}))
"""


def _gone(pid: int) -> bool:
    """Whether a process ends within a minute."""
    for _ in range(600):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.1)
    return False


def test_a_pool_outlives_its_processes(files: Path, tmp_path: Path) -> None:
    """In one process: hanging is ended and not asked again, dying asked once more, all else is as in this process."""
    marker = str(tmp_path / "died")
    faults = [
        {"do": "raise"},
        {"do": "exit"},
        {"do": "nan"},
        {"do": "return", "what": [1]},
        {"do": "hang"},
        {},
        {"do": "die"},
        {},
        {"do": "die once"},
    ]
    pool = Pool(ScorerConfig(scorer=str(files / "faulty.py"), way="pool", workers=1, timeout_s=2))
    before = pool.processes
    answers = [
        pool.ask(Question(text=marker if "once" in fault.get("do", "") else str(tmp_path / "x"), extra=fault))
        for fault in faults
    ]
    assert [answer.failed for answer in answers] == [
        "raised", "raised", "not-an-answer", "not-an-answer", "timed-out", None, "process-died", None, None,
    ]  # fmt: skip
    assert answers[6].why == "its process was killed by signal 9" and Path(marker).exists()
    last = answers[-1].values
    assert last is not None and pool.processes == [last["pid"]] != before
    pool.close()
    assert _gone(before[0]) and _gone(last["pid"])


def test_a_process_ends_with_its_parent(files: Path) -> None:
    """Killed with -9 while its process hangs."""
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, files / "faulty.py"], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert _gone(child)


def test_a_thousand_requests_while_processes_are_killed(files: Path) -> None:
    """All are answered, in order; never more than the window are held. Each process has its GPU, the next in its place too,
    and loads nothing heavy that its scorer does not ask for."""
    one = ScorerConfig(scorer=str(files / "faulty.py"), way="pool", workers=2, gpus=("3", "5"))
    config = ScoringConfig(scorers={"own": one})
    places = set()
    begun = 0

    def requests() -> Iterator[Question]:
        nonlocal begun
        for begun in range(1, 1001):
            yield Question(extra={"number": begun})

    with open_scoring(config) as scoring:
        pool = scoring.asked["own"].way
        assert isinstance(pool, Pool)
        for number, answer in enumerate(scoring.score_all(requests()), start=1):
            assert answer.score == number and begun - number <= scoring.window
            assert answer.values is not None and answer.values["parts"]["own"]["heavy"] == []
            places.add(answer.values["parts"]["own"]["gpu"])
            if number in (100, 500):
                os.kill(pool.processes[0], signal.SIGKILL)
        assert number == 1000 and places == {"3", "5"} and scoring.asked["own"].counts == {"asked": 1000}


def test_time_is_up_in_this_process(files: Path) -> None:
    """A plain function fails in time and blocks what comes after it; an async one is ended."""
    plain = open_way(ScorerConfig(scorer=str(files / "faulty.py"), timeout_s=0.2))
    assert [plain.ask(Question(extra=extra)).failed for extra in ({"do": "hang"}, {})] == ["timed-out", "timed-out"]
    judge = open_way(ScorerConfig(scorer=str(files / "judge.py"), timeout_s=1))
    assert judge.ask(Question(extra={"forever": True})).failed == "timed-out"
    assert judge.ask(Question(text="abc")).score == 3.0
    judge.close()


def test_a_server_that_is_killed_and_comes_back(files: Path, serve: Serve, tmp_path: Path) -> None:
    """Requests wait for it; its processes go with it; as another scorer it is not taken for the first."""
    file = tmp_path / "own.py"
    file.write_text((files / "faulty.py").read_text())
    server, address = serve(file, "--port", "0")
    way = open_way(ScorerConfig(scorer=str(file), way="server", servers=(address, address)))
    first = way.ask(Question(extra={"number": 1}))
    assert first.values is not None
    server.kill()
    server.wait()
    port = address.rpartition(":")[2]
    serve(file, "--port", port)
    second = way.ask(Question(extra={"number": 2}))
    assert second.values is not None and second.score == 2.0 and second.values["pid"] != first.values["pid"]
    assert _gone(first.values["pid"])


def test_a_server_that_comes_back_as_another(files: Path, tmp_path: Path) -> None:
    """A pool's process is one too: the scorer's file was edited meanwhile."""
    file = tmp_path / "own.py"
    file.write_text((files / "faulty.py").read_text())
    pool = Pool(ScorerConfig(scorer=str(file), way="pool", workers=1))
    file.write_text(file.read_text() + "\n")
    assert pool.ask(Question(text=str(tmp_path / "x"), extra={"do": "die once"})).failed == "refused"
    pool.close()
