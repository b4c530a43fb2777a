"""The next batches, read and laid out in a thread of their own while a step runs.

A feed is deterministic, so what the next steps will ask for is known: `BATCHES` of them wait laid out, and of a set in a
store the packs of some more are read in several threads, because one request takes longer than many packs do to compute.
What is given out, its order and the place that a checkpoint records are those of the feed alone: what was read ahead and not
given out was never fed. An error waits for the batch that met it. The cost: host memory for that many batches of a process's
own part, and a thread that takes turns with the training's Python.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from nextflow_tokenize.shards.sample_format import Sample

from megatron_nextflow.feeding.feed import Feed, Packs
from megatron_nextflow.runtime.store_threads import PREFIX
from megatron_nextflow.sequence.batch import LayoutBatch

BATCHES = 2
"""Global batches that wait laid out; our choice: one for the next step and one for a read that takes longer."""

CLOSE_SECONDS = 10.0
"""Longest wait for the thread at the end."""


class PacksAhead:
    """Packs of which those that were announced are read in `threads` threads; with 0, each when it is asked for."""

    def __init__(self, packs: Packs, threads: int) -> None:
        self.packs = packs
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"{PREFIX}packs") if threads else None
        self._coming: dict[int, Future[Sample]] = {}

    def __len__(self) -> int:
        return len(self.packs)

    def announce(self, numbers: Iterable[int]) -> None:
        """These will be read soon, in this order."""
        if self._pool is not None:
            for number in numbers:
                if number not in self._coming:
                    with contextlib.suppress(RuntimeError):  # closed meanwhile
                        self._coming[number] = self._pool.submit(self.packs.read, number)

    def read(self, number: int) -> Sample:
        """The pack; raises what reading it raised."""
        coming = self._coming.pop(number, None)
        return self.packs.read(number) if coming is None else coming.result()

    def close(self) -> None:
        """Announce nothing any more; a read under way ends by itself."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class _Fed:
    """What a feed gave for one global batch, and where it then stood."""

    consumed: int
    keys: list[str]
    batches: list[LayoutBatch]
    error: Exception | None


class FeedAhead:
    """The batches of `feed`, as it would give them. `consumed` and `keys` are those of the batch last given out.

    `packs` is what the feed reads from; `depth` global batches of it are announced beyond those laid out.
    """

    def __init__(self, feed: Feed, packs: PacksAhead, depth: int = 0) -> None:
        self.config = feed.config
        self.consumed = feed.consumed
        self.keys: list[str] = []
        self._feed = feed
        self._packs = packs
        self._depth = depth
        self._waiting: queue.Queue[_Fed] = queue.Queue(BATCHES)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    def next_batch(self) -> Iterator[LayoutBatch]:
        """The micro-batches of this copy's part of the next global batch, already laid out; waits for them.

        Raises what reading or laying them out raised; the state has moved on by the batch then too.
        """
        fed = self._waiting.get()
        self.consumed, self.keys = fed.consumed, fed.keys
        if fed.error is not None:
            raise fed.error
        return iter(fed.batches)

    def close(self) -> None:
        """Stop reading ahead, and wait for the batch that is being laid out, but not long for a store."""
        self._closed.set()
        self._packs.close()
        # A thread that is in torch when the interpreter ends takes the process down with it (std::terminate).
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        coming = self._feed.coming()
        for _ in range(self._depth):
            self._packs.announce(next(coming))
        while not self._closed.is_set():
            self._packs.announce(next(coming))
            batches: list[LayoutBatch] = []
            error: Exception | None = None
            try:
                batches += self._feed.next_batch()
            except Exception as failed:  # whatever it is, it belongs to the process's main thread
                logging.getLogger(__name__).debug("a batch was not laid out", exc_info=True)
                error = failed
            fed = _Fed(self._feed.consumed, self._feed.keys, batches, error)
            while not self._closed.is_set():
                try:
                    self._waiting.put(fed, timeout=0.2)
                    break
                except queue.Full:
                    continue
