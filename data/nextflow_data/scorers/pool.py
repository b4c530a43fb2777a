"""A scorer in processes of ours: the second way, in which a time-out really ends.

Each process is the server's program on a socket that it inherits, so there is one protocol and no pickle: it is told the
scorer's name and settings as JSON, and imports its file itself; this process never does. One that dies is replaced and its
request asked once more, for it may have died of another's; one that is late is killed, and its request not asked again. The
cost: a new process loads its weights anew.

A process ends with this one, however this one ends: it waits for the end of its standard input. What it prints goes to
standard error.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from nextflow_data.scorers.config import ScorerConfig
from nextflow_data.scorers.exchange import Broken, Inherited, Late, exchange
from nextflow_data.scorers.limits import too_long
from nextflow_data.scorers.loading import ScorerUnusable
from nextflow_data.scorers.protocol import Answer, Question, canonical, failure, parse_answer, request_body
from nextflow_data.scorers.served import described, hold_to


class Pool:
    """`workers` processes, each with the scorer made once. Raises ScorerUnusable where they cannot be started."""

    def __init__(self, config: ScorerConfig) -> None:
        self.slots, self._config = config.workers, config
        self._free: queue.SimpleQueue[_Seat] = queue.SimpleQueue()
        gpus = config.gpus or (None,)
        self._seats = [_Seat(config, gpus[number % len(gpus)]) for number in range(config.workers)]
        try:
            for seat in self._seats:
                seat.start()
            for seat in self._seats:
                self.description = seat.ready()
                self._free.put(seat)
            hold_to(self.description, config, "the pool")
        except BaseException:
            self.close()
            raise

    def ask(self, request: Question) -> Answer:
        """The answer of the process that is free first; its loading, if it was replaced, does not count for the time-out."""
        if problem := too_long(request, self._config):
            return failure("bad-input", problem)
        seat = self._free.get()
        try:
            return seat.ask(request_body(request), str(self.description["identity"]))
        finally:
            self._free.put(seat)

    @property
    def processes(self) -> list[int]:
        """The processes' ids, as of now."""
        return [seat.process.pid for seat in self._seats if seat.process is not None]

    def close(self) -> None:
        """Kill the processes."""
        for seat in self._seats:
            seat.stop()


class _Seat:
    """The place of one process, whichever sits there now. Used by one thread at a time."""

    def __init__(self, config: ScorerConfig, gpu: str | None) -> None:
        self._config, self._gpu = config, gpu
        self.process: subprocess.Popen[bytes] | None = None
        self._description: dict[str, Any] | None = None

    def start(self) -> None:
        """A new process, which begins to make its scorer."""
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        if self._gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpu
        with theirs:
            # A session of its own: Ctrl-C is for this process, and what the scorer starts is killed with it.
            self.process = subprocess.Popen(
                [*_command(self._config), "--channel", str(theirs.fileno())],
                stdin=subprocess.PIPE,
                stdout=2,
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,
            )
        self._connection = Inherited(ours)

    def ready(self) -> dict[str, Any]:
        """Waits until the process has made its scorer; what it says of it. After ScorerUnusable there is no process."""
        if self._description is not None:
            return self._description
        if self.process is None:
            self.start()
        try:
            status, data = exchange(self._connection, "GET", "/health", self._config.start_s)
            self._description = described(data) if status == 200 else None
            why = parse_answer(status, data).why
        except Late:
            why = f"scorer {self._config.scorer} was not made within {self._config.start_s:g} s (start_s)"
        except Broken:
            why = f"scorer {self._config.scorer} could not be made: its process {self._end()}"
        if self._description is None:
            self.stop()
            raise ScorerUnusable(why)
        return self._description

    def ask(self, body: bytes, identity: str) -> Answer:
        """The answer of this process or, where it dies, of the next."""
        why = ""
        for _ in range(2):
            try:
                self.ready()
                return parse_answer(*exchange(self._connection, "POST", "/score", self._config.timeout_s, body, identity))
            except ScorerUnusable as error:
                why = str(error)
            except Late:
                self._replace()
                return failure("timed-out", f"{self._config.timeout_s:g} s; its process was killed")
            except Broken:
                why = f"its process {self._end()}"
                self._replace()
        return failure("process-died", why)

    def stop(self) -> None:
        """Kill the process and what it started."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._connection.close()
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process = self._description = None

    def _replace(self) -> None:
        self.stop()
        self.start()

    def _end(self) -> str:
        """How the process ended, in words; it is given a second to be gone, since its socket closes first."""
        assert self.process is not None
        try:
            status = self.process.wait(1)
        except subprocess.TimeoutExpired:
            return "broke the protocol"
        return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"


def _command(config: ScorerConfig) -> Sequence[str]:
    """The command line of a process that answers for this scorer, but for where it listens."""
    limits = ["--max-image-bytes", str(config.max_image_bytes), "--max-image-pixels", str(config.max_image_pixels)]
    program = [sys.executable, "-m", "nextflow_data.scorers.serve", config.scorer]
    return [*program, "--settings", canonical(config.settings), *limits]
