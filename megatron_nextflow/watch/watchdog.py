"""A thread in every process that notices when no step ends any more, writes down where all threads are, and ends the
training.

A collective that one process never enters waits for ever, or for as long as the backend's own timeout, and then says only
that it waited. Every process dumps its stacks, so one can see who is inside the collective and who is not; then the training
ends with a status of its own, so that whoever started it may start it again from the last checkpoint. A process stuck inside
an extension that holds the GIL can run no thread of Python's: faulthandler's timer, a thread in C that the watching thread
winds up anew each second, then writes its stacks into its log. The cost: a time limit that must be longer than any honest
step; and who holds the GIL is ended by the others' end, so alone it stays until it is killed by hand.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from megatron_nextflow.config.health import PATIENCE
from megatron_nextflow.runtime.training_folder import LOGS
from megatron_nextflow.watch.rank_log import log_path

GRACE = 30.0
"""Longest time, in seconds, between the dump and the end, in which the other processes find out too and dump theirs: the
first that ends takes the rest with it."""


class Watchdog:
    """Watches from `start` to `close`; `seconds` may pass between two beats.

    `on_hang` is called once, in the watching thread, with one line for the terminal, after the stacks are written and the
    grace has passed; it is expected to end the process.
    """

    def __init__(self, seconds: float, output: Path, rank: int, on_hang: Callable[[str], None]) -> None:
        self.seconds = seconds
        self.rank = rank
        self.file = output / LOGS / f"hang-rank-{rank:05d}.txt"
        self.log = log_path(output, rank)
        self.on_hang = on_hang
        self._doing = "the first step"
        self._factor = PATIENCE
        self._last = time.monotonic()
        self._closed = threading.Event()
        self._sink: BinaryIO | None = None
        self._thread = threading.Thread(target=self._watch, name="hang-watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch; the first step is under way."""
        with contextlib.suppress(OSError):  # no log, no stacks of who holds the GIL
            self._sink = open(self.log, "ab")  # noqa: SIM115 - until the watching thread ends
        self._last = time.monotonic()
        self._wind()  # here too: who takes the GIL at once lets the thread never begin
        self._thread.start()

    def beat(self, step: int) -> None:
        """`step` is done, the next one under way. The time is set first here: the watching thread may look in between."""
        self._last, self._doing, self._factor = time.monotonic(), f"step {step + 1}", 1.0

    @contextlib.contextmanager
    def patient(self, what: str) -> Iterator[None]:
        """`what` is under way instead of a step, and may take longer."""
        before = self._doing, self._factor
        self._last, self._doing, self._factor = time.monotonic(), what, PATIENCE
        yield
        self._last = time.monotonic()
        self._doing, self._factor = before

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def left(self, now: float) -> float:
        """Seconds until what is under way has taken too long, at the time `now` of the monotonic clock."""
        return self._last + self._factor * self.seconds - now

    @property
    def _grace(self) -> float:
        return min(GRACE, self._factor * self.seconds / 4)

    def _wind(self) -> None:
        """Have the stacks written from C, should Python not run again before the middle of the grace: the others, whose
        Python runs, end the training at its end."""
        if self._sink is not None:
            left = max(0.0, self.left(time.monotonic()))
            faulthandler.dump_traceback_later(left + self._grace / 2, file=self._sink)

    def _watch(self) -> None:
        try:
            self._until_it_hangs()
        finally:
            if self._sink is not None:
                faulthandler.cancel_dump_traceback_later()
                self._sink.close()

    def _until_it_hangs(self) -> None:
        while not self._closed.is_set():
            left = self.left(time.monotonic())
            if left > 0:
                self._wind()
                self._closed.wait(min(left, 1.0))  # what is left shrinks where something patient is over
                continue
            faulthandler.cancel_dump_traceback_later()
            limit, folder = self._factor * self.seconds, self.file.parent
            reason = f"rank {self.rank}: {self._doing} has not ended in {limit:g} s; every process's stacks are in {folder}"
            with contextlib.suppress(OSError):  # a disk that is full or gone must not keep a hung training alive
                self._dump(reason)
            if not self._closed.wait(self._grace) and self.left(time.monotonic()) <= 0:
                self.on_hang(reason)
                return

    def _dump(self, reason: str) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "w+", encoding="utf-8") as stream:
            stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S%z')} {reason}\n")
            stream.flush()
            faulthandler.dump_traceback(stream, all_threads=True)
            stream.seek(0)
            logging.getLogger(__name__).critical(stream.read())
