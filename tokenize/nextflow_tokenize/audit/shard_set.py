"""Is a shard set what it says it is? Every byte is read, every number that can be computed again is.

The audit trusts nothing and stops at nothing: damage becomes a finding that names file, sample and bytes as nearly as they
can be known, and the rest is still examined. Hashes tell that something changed; the checks below them tell what. The cost
is a full reading of the set, about as fast as sha256 and the disk allow; `ShardSet.open` is what a trainer calls.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import file_digest, sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from nextflow_tokenize.audit.result import AuditResult, Finding
from nextflow_tokenize.audit.tables import ByShard, Row, check_pieces, check_totals, compare_rows, piece_rows, sample_row
from nextflow_tokenize.shards.energon import nv_meta
from nextflow_tokenize.shards.manifest import (
    DOCUMENTS,
    MANIFEST,
    SAMPLES,
    ManifestError,
    ShardManifest,
    ShardRecord,
    from_bytes,
)
from nextflow_tokenize.shards.sample_format import BLOCK, MEMBERS, Sample, SampleError, parse_sample
from nextflow_tokenize.shards.tables import DOCUMENTS_SCHEMA, SAMPLES_SCHEMA

MAX_FINDINGS = 100
"""Findings kept of one file; what is beyond is counted."""

RESTORE = "restore the file from a copy, or delete the set and run the pack stage again"
ENERGON_OWN = {".nv-meta/index.sqlite", ".nv-meta/index.uuid", ".nv-meta/.info.yaml"}
"""What `energon prepare` may add to a set."""

Progress = Callable[[int, int], object]
"""Called with shards done and shards in all."""


def audit(path: Path, *, progress: Progress | None = None) -> AuditResult:
    """Examines the set at `path` (a local folder) and never raises for what it finds there."""
    run = _Audit(Path(path))
    with run.guard(MANIFEST):
        run.read_manifest()
    if run.result.manifest is not None:
        run.examine(run.result.manifest, progress)
    return run.result


class _Audit:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.result = AuditResult(path)
        self.counts: dict[str, int] = {}
        self.intact: dict[str, bool] = {}

    def find(
        self,
        shard: str,
        what: str,
        *,
        key: str | None = None,
        where: str = "",
        advice: str = RESTORE,
        severity: Literal["error", "warning"] = "error",
    ) -> None:
        self.counts[shard] = self.counts.get(shard, 0) + 1
        if self.counts[shard] <= MAX_FINDINGS:
            self.result.findings.append(Finding(severity, shard, key, what, where, advice))

    @contextmanager
    def guard(self, name: str) -> Iterator[None]:
        """Whatever goes wrong while `name` is examined is a finding, not the end."""
        try:
            yield
        except Exception as error:  # the audit's promise is to go on; the finding says what stopped it
            self.find(name, f"it could not be examined: {type(error).__name__}: {error}")

    def read_manifest(self) -> None:
        file = self.path / MANIFEST
        if not file.is_file():
            self.find(MANIFEST, f"{self.path} has no {MANIFEST}, so no shard set was committed there")
            return
        data = file.read_bytes()
        try:
            self.result.manifest = from_bytes(data, MANIFEST)
        except ManifestError as error:
            self.find(MANIFEST, str(error))
            try:
                # Changed but legible: what it lists is still worth comparing with the files.
                self.result.manifest = ShardManifest.model_validate_json(data)
            except (ValidationError, ValueError):
                self.find(MANIFEST, "the files cannot be judged without it: the rest of the set was not examined")

    def examine(self, manifest: ShardManifest, progress: Progress | None) -> None:
        for name, (size, digest) in manifest.file_table().items():
            with self.guard(name):
                self.intact[name] = self.check_file(name, size, digest)
        with self.guard(MANIFEST):
            self.check_extra(manifest)
        documents = self.table(DOCUMENTS, DOCUMENTS_SCHEMA)
        self.samples = ByShard(self.table(SAMPLES, SAMPLES_SCHEMA), ("shard", "key"))
        self.pieces = ByShard(documents, ("shard", "key", "first_slot"))
        for shard in manifest.shards:
            if progress:
                progress(shard.number, len(manifest.shards))
            with self.guard(shard.name):
                self.check_shard(shard, manifest)
        if progress:
            progress(len(manifest.shards), len(manifest.shards))
        complete = self.result.samples_read == sum(shard.samples for shard in manifest.shards)
        with self.guard(DOCUMENTS):
            for what in check_pieces(documents) if documents is not None else ():
                self.find(DOCUMENTS, what)
        with self.guard(MANIFEST):
            for where, what in check_totals(manifest, documents, self.result.statistics, complete):
                self.find(MANIFEST, what, where=where)
        with self.guard(".nv-meta"):
            for name, data in nv_meta({shard.name: shard.samples for shard in manifest.shards}).items():
                if manifest.file_table().get(name, (0, ""))[1] != sha256(data).hexdigest():
                    self.find(name, "it does not describe the shards of the set")
        for name, count in self.counts.items():
            if count > MAX_FINDINGS:
                self.result.findings.append(
                    Finding(
                        "error", name, None, f"{count - MAX_FINDINGS} more findings in this file are not listed", "", RESTORE
                    )
                )

    def check_file(self, name: str, size: int, digest: str) -> bool:
        file = self.path / name
        if not file.is_file():
            self.find(name, "the file is missing")
            return False
        found = file.stat().st_size
        if found != size:
            self.find(
                name,
                f"the file has {found} bytes, {MANIFEST} states {size}",
                where=f"bytes {min(found, size)}–{max(found, size)}",
            )
            return False
        with file.open("rb") as stream:
            actual = file_digest(stream, "sha256").hexdigest()
        if actual != digest:
            self.find(name, f"its bytes were changed: sha256 {actual[:16]}… instead of {digest[:16]}…")
            return False
        return True

    def check_extra(self, manifest: ShardManifest) -> None:
        known = {MANIFEST, *manifest.file_table(), *ENERGON_OWN}
        for file in sorted(self.path.rglob("*")):
            name = file.relative_to(self.path).as_posix()
            if file.is_dir() or name in known:
                continue
            shardlike = file.name.startswith("shard-") and file.suffix in (".tar", ".idx")
            self.find(
                name,
                f"the file is not in {MANIFEST}"
                + (", yet readers that list the folder would take it for a shard" if shardlike else ""),
                advice="delete it if nothing needs it",
                severity="error" if shardlike else "warning",
            )

    def table(self, name: str, schema: pa.Schema) -> pa.Table | None:
        """A table whose bytes are as written; None otherwise, for a changed one may say anything."""
        import pyarrow.parquet as pq

        if self.intact.get(name):
            with self.guard(name):
                table = pq.read_table(pa.BufferReader((self.path / name).read_bytes()))
                if table.schema.equals(schema):
                    return table
                self.find(name, "its columns are not those of the format")
        return None

    def check_shard(self, shard: ShardRecord, manifest: ShardManifest) -> None:
        """Reads every sample of a shard and compares it with all that is said of it elsewhere."""
        file = self.path / shard.name
        if not file.is_file():
            return
        listed = self.samples.rows(shard.name)
        read: list[Row] = []
        pieces: list[Row] = []
        with file.open("rb") as stream:
            size = file.stat().st_size
            offsets = self.offsets(shard, listed)
            if offsets is None:
                offsets = walk(stream, size)
                self.find(shard.name, f"its samples were found by walking the tar: {len(offsets) - 1}", severity="warning")
            if len(offsets) - 1 != shard.samples:
                self.find(shard.name, f"{len(offsets) - 1} samples, {MANIFEST} states {shard.samples}")
            for place, (start, stop) in enumerate(pairwise(offsets)):
                stream.seek(start)
                data = stream.read(stop - start)
                sample = self.check_sample(shard, f"{shard.number:06d}-{place:06d}", start, stop, data, manifest)
                if sample is None:
                    continue
                checksum = zlib.crc32(data)
                if listed is not None and place < len(listed) and listed[place]["crc32"] != checksum:
                    what = "its bytes were changed, though it is legible: they do not have their crc32"
                    self.find(shard.name, what, key=sample.key, where=_bytes(start, stop))
                    continue
                self.result.statistics.add(sample, manifest.budget.max_length, manifest.budget.max_cost)
                read.append(sample_row(shard.name, sample, start, stop - start, checksum))
                pieces += piece_rows(shard.name, sample)
            stream.seek(offsets[-1])
            self.check_end(shard, offsets[-1], stream.read(max(0, size - offsets[-1])))
        self.result.samples_read += len(read)
        complete = len(read) == shard.samples
        for name, found, rows, names in (
            (SAMPLES, read, listed, ("key",)),
            (DOCUMENTS, pieces, self.pieces.rows(shard.name), ("key", "doc_id")),
        ):
            if rows is not None:
                for key, what in compare_rows(found, rows, names, complete):
                    self.find(name, what, key=key)
        for name in ("slots", "text_tokens", "image_codes", "images") if complete else ():
            if (value := sum(row[name] for row in read)) != getattr(shard, name):
                what = f"the shard has {value} {name.replace('_', ' ')}, {MANIFEST} states {getattr(shard, name)}"
                self.find(MANIFEST, what, where=f"shards.{shard.number}.{name}")

    def offsets(self, shard: ShardRecord, listed: list[Row] | None) -> list[int] | None:
        """Where samples begin, and the last ends: by the index, else by `samples.parquet`, else None."""
        by_table = [row["offset"] for row in listed] + [listed[-1]["offset"] + listed[-1]["bytes"]] if listed else None
        file = self.path / shard.index_name
        if not self.intact.get(shard.index_name) or not file.is_file():
            return by_table
        data = file.read_bytes()
        found = [int(n) for n in np.frombuffer(data[: len(data) // 8 * 8], dtype="<u8")]
        sound = len(data) % 8 == 0 and len(found) > 0 and found[0] == 0 and all(a < b for a, b in pairwise(found))
        if not sound or any(n % BLOCK for n in found) or found[-1] > shard.bytes:
            self.find(shard.index_name, "the offsets do not rise from 0 in steps of whole tar blocks within the shard")
            return by_table
        if by_table is not None and found != by_table:
            self.find(shard.index_name, f"the offsets differ from those of {SAMPLES}")
        return found

    def check_sample(
        self, shard: ShardRecord, key: str, start: int, stop: int, data: bytes, manifest: ShardManifest
    ) -> Sample | None:
        if len(data) < stop - start:
            self.find(shard.name, "the shard ends within it", key=key, where=_bytes(start + len(data), stop))
            return None
        try:
            return parse_sample(data, key, manifest)
        except SampleError as error:
            where = _bytes(start + (error.start or 0), start + error.stop if error.stop is not None else stop)
            self.find(shard.name, str(error), key=key, where=f"{where}, {error.member}" if error.member else where)
        except Exception as error:  # a sample that breaks a check in an unforeseen way is damaged all the same
            self.find(shard.name, f"{type(error).__name__}: {error}", key=key, where=_bytes(start, stop))
        return None

    def check_end(self, shard: ShardRecord, start: int, data: bytes) -> None:
        if len(data) < 2 * BLOCK:
            self.find(shard.name, "the two zero blocks that end a tar are missing", where=_bytes(start, start + len(data)))
        elif data.strip(b"\0"):
            first = len(data) - len(data.lstrip(b"\0"))
            last = len(data.rstrip(b"\0"))
            self.find(
                shard.name, "bytes that are not zero follow the last sample", where=_bytes(start + first, start + last)
            )


def _bytes(start: int, stop: int) -> str:
    return f"bytes {start}–{stop}"


def walk(stream: Any, size: int) -> list[int]:
    """Offsets of samples in a tar without an index: every fourth header, for as long as headers can be read."""
    import tarfile

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
