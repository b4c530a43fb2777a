"""One shard, read once from end to end: its hash, its samples, and all that is said of them elsewhere."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from typing import Any, BinaryIO

import numpy as np
from nextflow_data.storage.store_path import AnyPath

from nextflow_tokenize.audit.findings import Findings, in_bytes
from nextflow_tokenize.audit.tables import Row, compare_rows, piece_rows, sample_row
from nextflow_tokenize.shards.manifest import SHARDS, ShardManifest
from nextflow_tokenize.shards.sample_format import BLOCK, MEMBERS, Sample, SampleError, parse_sample
from nextflow_tokenize.shards.statistics import Statistics
from nextflow_tokenize.shards.tables import ShardRecord

_CHUNK = 1 << 20


@dataclass
class Parts:
    """What is said of a shard's samples: rows of both tables with the names of their files, and the member index's bytes.
    None where it cannot be trusted."""

    samples: list[Row] | None
    documents: list[Row] | None
    index: bytes | None
    samples_file: str
    documents_file: str


@dataclass
class ShardReading:
    """Reads one shard; `counted` is of its sound samples."""

    path: AnyPath
    shard: ShardRecord
    manifest: ShardManifest
    parts: Parts
    findings: Findings
    counted: Statistics = field(default_factory=Statistics)

    def run(self) -> int:
        """Examines the shard; gives how many samples are sound. Raises FileNotFoundError where it is missing."""
        shard, find = self.shard, self.findings.find
        offsets = self.offsets()
        if offsets is None:
            with self.open() as stream:
                offsets = walk(stream)
            find(shard.name, f"its samples were found by walking the tar: {len(offsets) - 1}", severity="warning")
        if len(offsets) - 1 != shard.samples:
            find(shard.name, f"{len(offsets) - 1} samples, {SHARDS} states {shard.samples}")
        read: list[Row] = []
        pieces: list[Row] = []
        digest, size = sha256(), 0
        with self.open() as stream:
            for place, (start, stop) in enumerate(pairwise(offsets)):
                data = stream.read(stop - start)
                digest.update(data)
                size += len(data)
                sample = self.check_sample(f"{shard.number:06d}-{place:06d}", start, stop, data)
                if sample is None:
                    continue
                checksum, listed = zlib.crc32(data), self.parts.samples
                if listed is not None and place < len(listed) and listed[place]["crc32"] != checksum:
                    what = "its bytes were changed, though it is legible: they do not have their crc32"
                    find(shard.name, what, key=sample.key, where=in_bytes(start, stop))
                    continue
                self.counted.add(sample, self.manifest.budget.max_length, self.manifest.budget.max_cost)
                read.append(sample_row(shard.name, sample, start, stop - start, checksum))
                pieces += piece_rows(shard.name, sample)
            size = self.check_end(stream, size, digest)
        if size != shard.bytes:
            where = in_bytes(min(size, shard.bytes), max(size, shard.bytes))
            find(shard.name, f"the file has {size} bytes, {SHARDS} states {shard.bytes}", where=where)
        elif digest.hexdigest() != shard.sha256:
            find(shard.name, changed(digest.hexdigest(), shard.sha256))
        self.compare(read, pieces)
        return len(read)

    def open(self) -> BinaryIO:
        """The tar, from its start."""
        return (self.path / self.shard.name).open("rb")

    def compare(self, read: list[Row], pieces: list[Row]) -> None:
        """The sound samples with the shard's rows in the tables."""
        complete, parts = len(read) == self.shard.samples, self.parts
        for name, found, rows, names in (
            (parts.samples_file, read, parts.samples, ("key",)),
            (parts.documents_file, pieces, parts.documents, ("key", "doc_id")),
        ):
            if rows is not None:
                for key, what in compare_rows(found, rows, names, complete):
                    self.findings.find(name, what, key=key)
        for name in ("slots", "text_tokens", "image_codes", "images") if complete else ():
            stated = getattr(self.shard, name)
            if (value := sum(row[name] for row in read)) != stated:
                what = f"shard {self.shard.number} has {value} {name.replace('_', ' ')}, it states {stated}"
                self.findings.find(SHARDS, what, where=f"shards.{self.shard.number}.{name}")

    def offsets(self) -> list[int] | None:
        """Where samples begin, and the last ends: by the index, else by the table of samples, else None."""
        shard, listed, data = self.shard, self.parts.samples, self.parts.index
        by_table = [row["offset"] for row in listed] + [listed[-1]["offset"] + listed[-1]["bytes"]] if listed else None
        if by_table is not None and not self.sound(by_table):
            by_table = None
        if data is None:
            return by_table
        found = [int(n) for n in np.frombuffer(data[: len(data) // 8 * 8], dtype="<u8")]
        if len(data) % 8 or not self.sound(found) or any(n % BLOCK for n in found):
            what = "the offsets do not rise from 0 in steps of whole tar blocks within the shard"
            self.findings.find(shard.index_name, what)
            return by_table
        if by_table is not None and found != by_table:
            self.findings.find(shard.index_name, "the offsets differ from those of the table of samples")
        return found

    def sound(self, offsets: list[int]) -> bool:
        """Whether samples may lie so."""
        rising = all(one < other for one, other in pairwise(offsets))
        return len(offsets) > 0 and offsets[0] == 0 and rising and offsets[-1] <= self.shard.bytes

    def check_sample(self, key: str, start: int, stop: int, data: bytes) -> Sample | None:
        """The sample of these bytes, or None and a finding."""
        shard, find = self.shard, self.findings.find
        if len(data) < stop - start:
            find(shard.name, "the shard ends within it", key=key, where=in_bytes(start + len(data), stop))
            return None
        try:
            return parse_sample(data, key, self.manifest)
        except SampleError as error:
            where = in_bytes(start + (error.start or 0), start + error.stop if error.stop is not None else stop)
            find(shard.name, str(error), key=key, where=f"{where}, {error.member}" if error.member else where)
        except Exception as error:  # a sample that breaks a check in an unforeseen way is damaged all the same
            find(shard.name, f"{type(error).__name__}: {error}", key=key, where=in_bytes(start, stop))
        return None

    def check_end(self, stream: BinaryIO, start: int, digest: Any) -> int:
        """Reads what follows the samples, which must be the zeros that end a tar; gives the file's size."""
        size, dirty = start, None
        while data := stream.read(_CHUNK):
            digest.update(data)
            if dirty is None and data.strip(b"\0"):
                dirty = size + len(data) - len(data.lstrip(b"\0")), size + len(data.rstrip(b"\0"))
            size += len(data)
        if size - start < 2 * BLOCK:
            what = "the two zero blocks that end a tar are missing"
            self.findings.find(self.shard.name, what, where=in_bytes(start, size))
        elif dirty is not None:
            what = "bytes that are not zero follow the last sample"
            self.findings.find(self.shard.name, what, where=in_bytes(*dirty))
        return size


def changed(actual: str, stated: str) -> str:
    """What is said of a file with another hash."""
    return f"its bytes were changed: sha256 {actual[:16]}… instead of {stated[:16]}…"


def walk(stream: BinaryIO) -> list[int]:
    """Offsets of samples in a tar without an index: every fourth header, for as long as headers can be read."""
    import tarfile

    size = stream.seek(0, 2)
    offsets, at, members = [0], 0, 0
    while at + BLOCK <= size:
        stream.seek(at)
        try:
            info = tarfile.TarInfo.frombuf(stream.read(BLOCK), "ascii", "strict")
        except (tarfile.HeaderError, ValueError):
            break
        at += BLOCK + max(0, info.size) + -info.size % BLOCK
        members += 1
        if members % len(MEMBERS) == 0 and at <= size:
            offsets.append(at)
    return offsets
