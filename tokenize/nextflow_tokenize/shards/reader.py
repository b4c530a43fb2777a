"""Reading a shard set: any sample by its number, in one read, checked before it is handed on.

Opening reads the manifest, the sizes of files and `samples.parquet`; a sample is then one range of one tar, whose crc32 and
format are verified at each read, so that a damaged sample is refused even where nobody hashed the whole shard. The cost is
under a millisecond a sample (0.2 ms measured at 1,024 slots). Nothing keeps a file open, so a set can be shared by threads
and sent to other processes.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nextflow_tokenize.shards.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    SAMPLES,
    ManifestError,
    ShardManifest,
    ShardRecord,
    from_bytes,
)
from nextflow_tokenize.shards.sample_format import Sample, SampleError, parse_sample

Opener = Callable[[str], BinaryIO]
"""From a path or an address to a seekable stream of bytes."""


class ShardError(ValueError):
    """A shard set that cannot be read. `shard` and `key` say where, as far as it is known."""

    def __init__(self, message: str, shard: str | None = None, key: str | None = None) -> None:
        super().__init__(message)
        self.shard, self.key = shard, key


def open_binary(where: str) -> BinaryIO:
    """A seekable stream of a file: a path of this machine, or an address that pyarrow knows (file://, s3://, gs://).

    Raises FileNotFoundError, or OSError where the store does not answer. A remote file is buffered by pyarrow, 1 MiB.
    """
    if "://" not in where:
        return open(where, "rb")
    import pyarrow.fs as fs

    system, path = fs.FileSystem.from_uri(where)
    return cast(BinaryIO, io.BufferedReader(system.open_input_file(path), 1 << 20))


def size_of(stream: BinaryIO) -> int:
    """Bytes of a seekable stream; its position is then 0."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    return size


@dataclass
class ShardSet:
    """A set of packs, numbered 0 … len − 1 in the order of shards. Made by `ShardSet.open`."""

    path: str
    manifest: ShardManifest
    opener: Opener
    starts: NDArray[np.int64]
    """[shards + 1]: number of the first sample of each shard, then of all samples."""
    checksums: NDArray[np.uint32]
    """[samples]: crc32 of each sample's bytes."""
    _indexes: dict[int, NDArray[np.int64]] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = False, opener: Opener = open_binary) -> ShardSet:
        """Opens the set at `path`, a folder or an address of one.

        Always checked: the manifest with its own hash, that every file is there in its size, and the table of samples by
        hash. `verify` also hashes every file (`verify("full")`). Raises ShardError naming what is missing or differs.
        """
        path = str(path).rstrip("/")
        manifest = _read_manifest(path, opener)
        counts = np.array([0, *(shard.samples for shard in manifest.shards)], dtype=np.int64)
        found = cls(path, manifest, opener, np.cumsum(counts), np.zeros(0, np.uint32))
        found.verify("quick")
        table = found.table(SAMPLES)
        if table.num_rows != len(found):
            raise ShardError(
                f"{SAMPLES} lists {table.num_rows} samples, {MANIFEST} {len(found)}; write the set again", SAMPLES
            )
        found.checksums = table["crc32"].to_numpy().astype(np.uint32)
        if verify:
            found.verify("full")
        return found

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __iter__(self) -> Iterator[Sample]:
        return (self.read(number) for number in range(len(self)))

    def locate(self, number: int) -> tuple[ShardRecord, int]:
        """The shard that holds sample `number`, and its place in it. Raises IndexError outside 0 … len − 1."""
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} is outside the set's 0…{len(self) - 1}")
        shard = int(np.searchsorted(self.starts, number, side="right")) - 1
        return self.manifest.shards[shard], number - int(self.starts[shard])

    def key(self, number: int) -> str:
        """Key of sample `number`."""
        shard, place = self.locate(number)
        return f"{shard.number:06d}-{place:06d}"

    def read(self, number: int) -> Sample:
        """Sample `number`, verified. Raises IndexError outside the set and ShardError, naming shard and key, for damage."""
        shard, place = self.locate(number)
        key = self.key(number)
        index = self._index(shard)
        start, stop = int(index[place]), int(index[place + 1])
        data = self._range(shard, start, stop)
        where = f"{shard.name}, sample {key}"
        try:
            if len(data) != stop - start:
                raise SampleError(f"{len(data)} of its {stop - start} bytes are there", None, 0, len(data))
            sample = parse_sample(data, key, self.manifest)
        except SampleError as error:
            raise ShardError(f"{where}: {error}; restore the shard or write the set again", shard.name, key) from None
        if zlib.crc32(data) != int(self.checksums[number]):
            message = f"{where}: its bytes {start}–{stop} do not have the crc32 that {SAMPLES} states; restore the shard"
            raise ShardError(message, shard.name, key)
        return sample

    def verify(self, level: Literal["quick", "full"] = "full") -> None:
        """`quick`: every file is there in the size the manifest states. `full`: with its sha256 too. Raises ShardError."""
        for name, (size, digest) in self.manifest.file_table().items():
            with self._open(name) as stream:
                found = size_of(stream)
                if found != size:
                    raise ShardError(
                        f"{name} has {found} bytes, {MANIFEST} states {size}; restore it or write the set again", name
                    )
                if level == "full" and (actual := file_digest(cast(Any, stream), "sha256").hexdigest()) != digest:
                    raise ShardError(
                        f"{name} was changed after it was written: its sha256 is {actual[:16]}…, {MANIFEST} states "
                        f"{digest[:16]}…; 'mnf audit' says where; restore it or write the set again",
                        name,
                    )

    def table(self, name: Literal["samples.parquet", "documents.parquet"] | str) -> pa.Table:
        """One of the set's tables, its bytes verified by hash. Raises ShardError."""
        import pyarrow.parquet as pq

        with self._open(name) as stream:
            data = stream.read()
        size, digest = self.manifest.file_table().get(name, (-1, ""))
        if len(data) != size or sha256(data).hexdigest() != digest:
            raise ShardError(f"{name} is not the file that {MANIFEST} states; restore it or write the set again", name)
        return pq.read_table(pa.BufferReader(data))

    def _open(self, name: str) -> BinaryIO:
        try:
            return self.opener(f"{self.path}/{name}")
        except FileNotFoundError:
            raise ShardError(f"{name} is missing from {self.path}; restore it or write the set again", name) from None

    def _range(self, shard: ShardRecord, start: int, stop: int) -> bytes:
        with self._open(shard.name) as stream:
            stream.seek(start)
            return stream.read(stop - start)

    def _index(self, shard: ShardRecord) -> NDArray[np.int64]:
        if shard.number not in self._indexes:
            with self._open(shard.index_name) as stream:
                data = stream.read(shard.index_bytes + 1)
            if sha256(data).hexdigest() != shard.index_sha256:
                raise ShardError(f"{shard.index_name} is not the file that {MANIFEST} states; restore it", shard.index_name)
            offsets = np.frombuffer(data, dtype="<u8")
            if (
                len(offsets) != shard.samples + 1
                or (np.diff(offsets.astype(np.int64)) <= 0).any()
                or offsets[-1] > shard.bytes
            ):
                raise ShardError(f"{shard.index_name} does not fit {shard.name}; write the set again", shard.index_name)
            self._indexes[shard.number] = offsets.astype(np.int64)
        return self._indexes[shard.number]


def _read_manifest(path: str, opener: Opener) -> ShardManifest:
    try:
        with opener(f"{path}/{MANIFEST}") as stream:
            data = stream.read(MAX_MANIFEST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise ShardError(f"{path} is no shard set: it has no {MANIFEST}, so nothing was committed there", MANIFEST) from None
    if len(data) > MAX_MANIFEST_BYTES:
        raise ShardError(f"{path}/{MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes", MANIFEST)
    try:
        return from_bytes(data, f"{path}/{MANIFEST}")
    except ManifestError as error:
        raise ShardError(str(error), MANIFEST) from None
