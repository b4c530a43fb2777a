"""A file of a store as a seekable stream, read ahead where it is read on from start to end.

A window is asked for in one request: at first what the reader asks for, then twice as much each time it reads on, up to
`read_ahead`; from the second window on, the next one comes while this one is used. So a footer or a column costs its own
bytes, and a whole archive few requests. The cost: two windows of memory a stream, and the last one may be fetched in vain.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any

_FIRST = 64 << 10

ReadRange = Callable[[int, int], bytes]
"""Bytes by offset and length, fewer where the file ends before."""


@cache
def _fetchers(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(16, thread_name_prefix="read-ahead")


class StoreStream(io.RawIOBase):
    """The raw stream; `io.BufferedReader` goes around it."""

    def __init__(self, read: ReadRange, size: int, read_ahead: int) -> None:
        super().__init__()
        self._read = read
        self._size = size
        self._most = read_ahead
        self._window = _FIRST
        self._at = 0
        self._held, self._held_at = b"", 0
        self._next: tuple[int, Future[bytes]] | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"negative seek position {start + offset}")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self._size - self._at)
        if wanted <= 0:
            return 0
        if not self._held_at <= self._at < self._held_at + len(self._held):
            self._fetch(wanted)
        begin = self._at - self._held_at
        part = memoryview(self._held)[begin : begin + wanted]
        view[: len(part)] = part
        self._at += len(part)
        return len(part)

    def _fetch(self, wanted: int) -> None:
        """Has the window that begins at the position."""
        reads_on = bool(self._held) and self._at == self._held_at + len(self._held)
        waiting, self._next = self._next, None
        if waiting is not None and waiting[0] == self._at:
            held = waiting[1].result()
        else:
            self._window = min(self._window * 2, self._most) if reads_on else _FIRST
            held = self._read(self._at, min(max(wanted, self._window if reads_on else 0), self._size - self._at))
        if not held:
            raise EOFError(f"the file ended at {self._at} of {self._size} bytes")
        self._held, self._held_at = held, self._at
        after = self._at + len(held)
        if reads_on and after < self._size:
            self._window = min(self._window * 2, self._most)
            length = min(self._window, self._size - after)
            self._next = (after, _fetchers(os.getpid()).submit(self._read, after, length))

    def close(self) -> None:
        if self._next is not None:
            self._next[1].cancel()
        self._held, self._next = b"", None
        super().close()


def buffered(read: ReadRange, size: int, read_ahead: int) -> io.BufferedReader:
    """A stream at 0 of a file of `size` bytes."""
    return io.BufferedReader(StoreStream(read, size, read_ahead), _FIRST)
