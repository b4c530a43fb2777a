"""A source file read once from end to end: a stream that a parser may step back in, and the sha256 of what went by.

Blocks of one size are asked for in their order, the next one while this one is used, and are hashed as they come. The last
WINDOW bytes are held, so a record's beginning is at hand when its end is known; only a parser that steps back further, over
a large damaged record, has a block read again. The cost: WINDOW and two blocks of memory a task.
"""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from nextflow_data.common.range_opener import RangeOpener

BLOCK = 4 << 20
"""Bytes asked for at once."""
WINDOW = 16 << 20
"""Bytes held behind the place that was read to: more than a page of the default limits."""
_BUFFER = 1 << 20


class _Blocks(io.RawIOBase):
    """The raw stream over blocks; `stop` is where nothing is fetched ahead any more."""

    def __init__(self, opener: RangeOpener, uri: str, start: int, stop: int | None, hashed: bool) -> None:
        super().__init__()
        self._opener, self._uri, self._at = opener, uri, start
        self.bytes = opener.size(uri)
        self._stop = self.bytes if stop is None else min(stop, self.bytes)
        self._next = start // BLOCK
        self._held: OrderedDict[int, bytes] = OrderedDict()
        self._coming: Future[bytes] | None = None
        self._hash = hashlib.sha256() if hashed else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-once")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.bytes}[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if self._at >= self.bytes or not len(view):
            return 0
        number = self._at // BLOCK
        begin = self._at - number * BLOCK
        part = memoryview(self._block(number))[begin : begin + len(view)]
        view[: len(part)] = part
        self._at += len(part)
        return len(part)

    def _block(self, number: int) -> bytes:
        while number >= self._next:
            self._go_on()
        if number not in self._held:
            self._held[number] = self._read(number)
            self._held.move_to_end(number, last=False)
        return self._held[number]

    def _go_on(self) -> None:
        coming = self._coming or self._thread.submit(self._fetch, self._next)
        following = self._next + 1
        self._coming = self._thread.submit(self._fetch, following) if following * BLOCK < self._stop else None
        self._held[self._next] = coming.result()
        self._next = following
        while len(self._held) > WINDOW // BLOCK + 1:
            self._held.popitem(last=False)

    def _fetch(self, number: int) -> bytes:
        block = self._read(number)
        if self._hash is not None:
            self._hash.update(block)
        return block

    def _read(self, number: int) -> bytes:
        return self._opener.read(self._uri, number * BLOCK, min(BLOCK, self.bytes - number * BLOCK))

    def sha256(self) -> str:
        assert self._hash is not None
        while self._next * BLOCK < self.bytes:
            self._go_on()
        return self._hash.hexdigest()

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._held.clear()
        super().close()


class ReadOnce(io.BufferedReader):
    """A file from `start` on, to be read towards `stop` (None: its end). `hashed` only with `start` 0 and no `stop`."""

    def __init__(self, opener: RangeOpener, uri: str, start: int = 0, stop: int | None = None, hashed: bool = False) -> None:
        self._blocks = _Blocks(opener, uri, start, stop, hashed)
        super().__init__(self._blocks, _BUFFER)

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self._blocks.bytes

    def sha256(self) -> str:
        """64 hex digits of the whole file, whose rest is read for it."""
        return self._blocks.sha256()
