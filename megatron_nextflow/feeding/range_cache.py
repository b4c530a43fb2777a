"""Ranges of a store's files on this machine's disk: bounded, shared by all processes of the machine, and checked.

A range is a file of its own, named by a hash of what it is, so that a pack which several processes of a machine need
(tensor-, pipeline- and context-parallel peers) is asked for once, and a second epoch or a restart asks for nothing that is
still there. Whole shards would be fewer files, but a shuffled order takes a few packs of each and would bring the set many
times over. A file begins with the crc32 of what follows: bytes that a disk has spoilt are fetched anew. Locks of the kernel
(`flock`) make one process fetch and the others wait for it, and end with whoever holds them. Those not used for longest go
first, by their time of change, which each use sets. Nothing here is a reason to stop: where the disk takes no more, ranges
come from the store alone, and that is said once. The cost: a hash and two small system calls a range, and looking through
the folder each time that an eighth of what it may hold was written.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from nextflow_data.common.whole_files import replace_file

_LOCKS = 256
_CRC = 4


class RangeCache:
    """At most `most` bytes below `folder`, which `processes` processes of this machine fill. `say` is told, once, why
    nothing is kept any more."""

    def __init__(self, folder: Path, most: int, processes: int, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.most = most
        self._before_trim = most // 8 // max(1, processes)
        self._written = 0
        self._counting = threading.Lock()
        self._say = say
        self._given_up = False

    def get(self, name: str, fetch: Callable[[], bytes]) -> bytes:
        """The bytes that are kept for `name`, else what `fetch` gives, then kept. Raises what `fetch` raises."""
        path = self._path(name)
        if (found := self._read(path)) is not None:
            return found
        if self._given_up or not self.most:
            return fetch()
        with self._alone(path):
            if (found := self._read(path)) is not None:
                return found
            data = fetch()
            self._write(path, data)
        return data

    def drop(self, name: str) -> None:
        """Forget what is kept for `name`."""
        with contextlib.suppress(OSError):
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        digest = hashlib.sha256(name.encode()).hexdigest()
        return self.folder / digest[:2] / digest

    def _read(self, path: Path) -> bytes | None:
        try:
            content = path.read_bytes()
            data = content[_CRC:]
            if len(content) < _CRC or zlib.crc32(data) != int.from_bytes(content[:_CRC], "little"):
                path.unlink(missing_ok=True)
                return None
            os.utime(path)
        except OSError:  # not there, or trimmed by another process meanwhile, or a disk that does not read
            return None
        return data

    def _alone(self, path: Path) -> AbstractContextManager[object]:
        """While this lasts no other process of the machine fetches what `path` is for."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            stream = open(self.folder / f"{int(path.name[:8], 16) % _LOCKS}.lock", "ab")  # noqa: SIM115 (given out)
        except OSError as error:
            self._give_up(error)
            return contextlib.nullcontext()
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: then several may fetch the same
            stream.close()
            return contextlib.nullcontext()
        return stream

    def _write(self, path: Path, data: bytes) -> None:
        if self._given_up or len(data) > self._before_trim:
            return
        try:
            path.parent.mkdir(exist_ok=True)
            replace_file(path, zlib.crc32(data).to_bytes(_CRC, "little") + data, durable=False)
        except OSError as error:
            self._give_up(error)
            return
        with self._counting:
            self._written += len(data) + _CRC
            full, self._written = self._written >= self._before_trim, self._written % max(1, self._before_trim)
        if full:
            self._trim()

    def _trim(self) -> None:
        """Remove what was not used for longest until three quarters are left of what may be kept.

        Each process writes at most an eighth of that between two calls, divided by how many they are.
        """
        with contextlib.suppress(OSError), open(self.folder / "trim.lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = []
            for path in self.folder.glob("*/*"):
                with contextlib.suppress(FileNotFoundError):
                    state = path.stat()
                    found.append((state.st_mtime_ns, state.st_size, path))
            held = sum(size for _, size, _ in found)
            for _, size, path in sorted(found):
                if held <= self.most * 3 // 4:
                    break
                path.unlink(missing_ok=True)
                held -= size

    def _give_up(self, error: OSError) -> None:
        with self._counting:
            first, self._given_up = not self._given_up, True
        if first:
            self._say(
                f"{self.folder} takes no more ({error.strerror or error}): packs come from the store alone from here on; "
                "make room there, or set storage.cache to a folder on another disk"
            )
