"""Runs checks, each in a process of its own, a few beside each other.

A check may hang on a dead network disk, crash in a library or leave a JVM behind: its process leads a session that is killed
as a whole when it has answered or its time is over, and its temporary files go with it. Processes are forked, so that thirty
checks do not start thirty interpreters; for that the caller must have no threads. The cost: no Windows.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from nextflow_orchestration.doctor.check import Case, Check, Diagnosis, State, bad

_FORK = multiprocessing.get_context("fork")
_SECRET = re.compile(r"(?i)secret|token|passw|api_?key|access_key")
_USER = re.compile(r"(?<=://)[^/@\s]+@")
_LONGEST = 400
"""Letters of a finding or of a piece of advice."""


@dataclass(frozen=True)
class Examined:
    """A check, what it found, and in how many seconds; `counts` where its failing makes the machine unfit."""

    check: Check
    finding: Diagnosis
    seconds: float
    counts: bool

    def record(self) -> dict[str, str | float | bool]:
        """For JSON."""
        return {
            "area": self.check.area, "name": self.check.name, "state": self.finding.state.name.lower(),
            "needed": self.counts, "found": self.finding.found, "advice": self.finding.advice,
            "seconds": round(self.seconds, 2),
        }  # fmt: skip


def examine(case: Case, checks: Sequence[Check], at_once: int | None = None) -> Iterator[Examined]:
    """Makes the checks and gives the results as they come, the longest begun first. `at_once`: processes beside each other,
    None as many as there are cores, two at least and four at most."""
    beside = at_once or min(4, max(2, os.cpu_count() or 1))
    waiting = sorted(checks, key=lambda one: one.seconds)
    with tempfile.TemporaryDirectory(prefix="mnf-doctor-", ignore_cleanup_errors=True) as scratch:
        running: list[_Running] = []
        try:
            while waiting or running:
                while waiting and len(running) < beside:
                    running.append(_Running(waiting.pop(), case, Path(scratch)))
                soonest = min(one.deadline for one in running)
                ready = wait([one.answer for one in running], max(0.0, soonest - time.monotonic()))
                for one in list(running):
                    if one.answer in ready or time.monotonic() >= one.deadline:
                        running.remove(one)
                        yield one.result(one.answer in ready)
        finally:
            for one in running:
                one.end()


class _Running:
    def __init__(self, check: Check, case: Case, scratch: Path) -> None:
        self.check, self.case = check, case
        self.folder = Path(tempfile.mkdtemp(dir=scratch))
        self.answer, writing = _FORK.Pipe(duplex=False)
        self.began = time.monotonic()
        self.deadline = self.began + check.seconds
        self.process = _FORK.Process(target=_look, args=(check, case, writing, self.folder))
        self.process.start()
        writing.close()

    def result(self, answered: bool) -> Examined:
        """Its answer, or what is known instead; ends it."""
        finding = None
        if answered:
            with suppress(EOFError):
                state, found, advice = json.loads(self.answer.recv_bytes())
                finding = Diagnosis(State[state], found, advice)
        seconds = time.monotonic() - self.began
        code = self.end()
        if finding is None and answered:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
            finding = bad(f"the check {how}{self._last_words()}", "report this, with the line before it")
        elif finding is None:
            finding = bad(f"no answer within {self.check.seconds:g} s{self._last_words()}", "look what it waits for")
        clean = Diagnosis(finding.state, scrubbed(finding.found), scrubbed(finding.advice))
        return Examined(self.check, clean, seconds, self.check.needed(self.case))

    def end(self) -> int:
        """Kills what is left of it; returns its exit code, negative for a signal."""
        if self.process.exitcode is None and not self.answer.closed:
            self.process.join(0.2)  # one that has crashed is to tell by what
        for number in (self.process.pid, None):
            with suppress(ProcessLookupError, PermissionError):
                if number is not None:
                    os.killpg(number, signal.SIGKILL)
                else:
                    self.process.kill()
        self.process.join()
        self.answer.close()
        return self.process.exitcode or 0

    def _last_words(self) -> str:
        said = (self.folder / "said").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"; it last said: {said[-1]}" if said else ""


def _look(check: Check, case: Case, answer: Connection, folder: Path) -> None:
    """In the process of a check: makes it, with all that is printed kept aside, and sends what it found."""
    with suppress(PermissionError):  # it leads one already
        os.setsid()
    said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(said, stream)
    sys.stdout = sys.stderr = open(said, "w", encoding="utf-8", errors="replace", buffering=1)  # noqa: SIM115
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    try:
        finding = check.look(case)
    except ModuleNotFoundError as error:
        finding = bad(f"{(error.name or '?').partition('.')[0]} is not installed", "see packages")
    except Exception as error:
        finding = bad(f"{type(error).__name__}: {error}", "see what the error says")
    answer.send_bytes(json.dumps([finding.state.name, finding.found, finding.advice]).encode())


def scrubbed(text: str) -> str:
    """One line without secrets: values of environment variables that are called so, and users in addresses."""
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= 6:
            text = text.replace(value, "***")
    line = " ".join(_USER.sub("***@", text).split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
