"""The range opener over disks and stores: every read is bound to the state in which a file was found.

A source that changes under a run is a ChangedObject and a store that fails is a StoreError or a PermissionError, which stop
a stage; neither is taken for a bad record. Ranges that lie close together are read in one request, and several requests at
once; the cost is the bytes between them, and a window of requests in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from nextflow_data.storage.files import read_range, state_of
from nextflow_data.storage.local_files import open_bound
from nextflow_data.storage.store_path import AnyPath
from nextflow_data.storage.stores.base import FileState

Place = tuple[AnyPath, FileState | None]
"""Where a uri's file lies, and the state that it is bound to; None binds it to the state at its first use."""

_LONGEST = 16 << 20
"""Bytes above which ranges are not joined any more."""


class StoreOpener:
    """A `RangeOpener` of the files that `places` names; a uri that it does not name raises KeyError. `gap`: bytes between
    two ranges up to which they are read in one request (our choice: what a request's latency of some 30 ms costs at
    some 10 MB/s)."""

    def __init__(self, places: Mapping[str, Place] | Callable[[str], Place], gap: int = 256 << 10) -> None:
        self._places = places
        self._gap = gap
        self._states: dict[str, FileState] = {}

    def open(self, uri: str) -> BinaryIO:
        """A seekable stream at 0."""
        path, state = self._bound(uri)
        return open_bound(path, state) if isinstance(path, Path) else path.open_bound(state)

    def read(self, uri: str, offset: int, length: int) -> bytes:
        """A range, fewer bytes where the file ends before."""
        path, state = self._bound(uri)
        return read_range(path, offset, length, state)

    def size(self, uri: str) -> int:
        """Bytes of the whole file."""
        return self._bound(uri)[1].size

    def read_many(self, uri: str, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes]:
        """The bytes of each (offset, length), in the order given, which is best the file's. A few requests run ahead."""
        path, state = self._bound(uri)
        at_once = 1 if isinstance(path, Path) else path.store.requests_at_once
        joined = _joined(ranges, self._gap)
        with ThreadPoolExecutor(at_once) as pool:

            def ask(group: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], Future[bytes]]:
                start = group[0][0]
                end = max(offset + length for offset, length in group)
                return group, pool.submit(read_range, path, start, end - start, state)

            running = deque(map(ask, islice(joined, at_once)))
            try:
                while running:
                    group, waiting = running.popleft()
                    content = memoryview(waiting.result())
                    running.extend(map(ask, islice(joined, 1)))
                    for offset, length in group:
                        yield bytes(content[offset - group[0][0] : offset - group[0][0] + length])
            finally:
                for _, waiting in running:
                    waiting.cancel()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_states": {}}

    def _bound(self, uri: str) -> tuple[AnyPath, FileState]:
        path, state = self._places(uri) if callable(self._places) else self._places[uri]
        if state is None:
            state = self._states.get(uri)
            if state is None:
                state = self._states[uri] = state_of(path)
        return path, state


def _joined(ranges: Iterable[tuple[int, int]], gap: int) -> Iterator[list[tuple[int, int]]]:
    """Ranges in groups of neighbours."""
    group: list[tuple[int, int]] = []
    end = 0
    for offset, length in ranges:
        if group and (not group[0][0] <= offset <= end + gap or offset + length - group[0][0] > _LONGEST):
            yield group
            group = []
        end = max(end, offset + length) if group else offset + length
        group.append((offset, length))
    if group:
        yield group
