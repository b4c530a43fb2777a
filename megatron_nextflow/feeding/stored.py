"""Packs of a shard set that lies in a store: one ranged read each, kept on this machine's disk for who needs it again.

Nothing is asked of a shard before a pack of it is read, so starting costs the same for any number of shards. What binds a
pack to the set is its crc32: one that does not have it is read again past the cache, and one that then has not either is
told with the time at which its object was last written, because an object that changed under the training looks like that.
The cost: a change that no pack shows is not seen.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import BinaryIO, cast

from nextflow_data.storage.files import read_range, state_of
from nextflow_data.storage.store_path import AnyPath
from nextflow_tokenize.shards.reader import ShardError, ShardSet
from nextflow_tokenize.shards.sample_format import Sample

from megatron_nextflow.feeding.range_cache import RangeCache


class Ranges:
    """Opens files of a set in a store, to be read in ranges that `cache` keeps; nothing is asked before a range is read.

    `identity` tells one set from another that lay at the same address.
    """

    def __init__(self, cache: RangeCache, identity: str) -> None:
        self.cache = cache
        self.identity = identity
        self._here = threading.local()

    def __call__(self, path: AnyPath) -> BinaryIO:
        return cast(BinaryIO, _Stream(self, path))

    @contextlib.contextmanager
    def fresh(self) -> Iterator[None]:
        """While this lasts, this thread reads past the cache, which forgets what it has of that."""
        self._here.fresh = True
        try:
            yield
        finally:
            self._here.fresh = False

    def read(self, path: AnyPath, offset: int, length: int) -> bytes:
        """A range, fewer bytes where the file ends before."""
        name = f"{self.identity} {path} {offset} {length}"
        if getattr(self._here, "fresh", False):
            self.cache.drop(name)
            return read_range(path, offset, length)
        return self.cache.get(name, lambda: read_range(path, offset, length))


class _Stream(io.RawIOBase):
    """A file as `Ranges` reads it: each read is one range."""

    def __init__(self, ranges: Ranges, path: AnyPath) -> None:
        self._ranges = ranges
        self._path = path
        self._at = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = self._at if whence == io.SEEK_CUR else state_of(self._path).size if whence == io.SEEK_END else 0
        self._at = base + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            size = state_of(self._path).size - self._at
        data = self._ranges.read(self._path, self._at, size) if size > 0 else b""
        self._at += len(data)
        return data


class StoredPacks:
    """The packs of `packs`, whose opener is `ranges`."""

    def __init__(self, packs: ShardSet, ranges: Ranges) -> None:
        self.packs = packs
        self.ranges = ranges

    def __len__(self) -> int:
        return len(self.packs)

    def read(self, number: int) -> Sample:
        """Pack `number`. Raises ShardError for one that is damaged or whose shard is gone, OSError where the store does
        not give it."""
        try:
            return self.packs.read(number)
        except ShardError:
            with self.ranges.fresh():
                return self._past_the_cache(number)
        except FileNotFoundError as error:
            raise ShardError(f"{error}; restore the shard", key=self.packs.key(number)) from None

    def _past_the_cache(self, number: int) -> Sample:
        try:
            return self.packs.read(number)
        except ShardError as error:
            written = _last_written(self.packs.path / error.shard) if error.shard else ""
            raise ShardError(f"{error}{written}", error.shard, error.key) from None


def _last_written(path: AnyPath) -> str:
    """When a file was last written, in words; "" where the store does not say."""
    try:
        seconds = state_of(path).modified_ns / 1e9
    except OSError:
        return ""
    return f"; {path} was last written {datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
