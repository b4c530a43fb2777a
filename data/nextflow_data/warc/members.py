"""Walks a WARC file record by record, whatever state the file is in.

A gzipped WARC is a row of gzip members, one a record, so the member is the unit of damage: a member that is cut or corrupt
is reported, and the walk goes on at the next place where a gzip member inflates to a WARC record. In a plain WARC the same
is done with the next line that begins a record. Inflating here, and not in the WARC library, costs a copy of each record's
header; it gives exact member lengths (a reader can seek to any record) and keeps one bad length from swallowing neighbours.

Only the beginning of a record is kept in memory, so that memory stays the same whatever a record inflates to.

A part of a file is walked in the same way (`Span`). Where a walk stands is its only state, so parts that begin where the one
before ended give what one walk over the whole file gives.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from nextflow_data.records import Span

GZIP_MAGIC = b"\x1f\x8b\x08"
WARC_MAGIC = b"WARC/"
FOREIGN_MAGIC = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
}
_CHUNK = 1 << 16
_SEARCH = 1 << 20
_SALVAGE = 4096


@dataclass(frozen=True, slots=True)
class Member:
    """One record as it lies in the file: `length` bytes at `offset`, inflating to `size` bytes that begin with `start`.

    `problem` is the reason why it cannot be used, or None. `size` is then how far it inflated.
    """

    offset: int
    length: int
    size: int
    start: bytes
    problem: str | None = None


def members(stream: BinaryIO, head_bytes: int, keep: int, max_bytes: int, span: Span) -> Iterator[Member]:
    """Every member of a part of a WARC in order, good and bad, each with at most `keep` bytes of it; a plain record's header
    is looked for in `head_bytes`. `stream` is seekable; an empty one gives nothing."""
    stream.seek(0)
    first = stream.read(8)
    for magic, name in FOREIGN_MAGIC.items():
        if first.startswith(magic):
            span.began, span.ended = span.start, stream.seek(0, 2)
            if span.start == 0:
                yield Member(0, span.ended, 0, name.encode(), "unsupported-compression")
            return
    packed = first.startswith(GZIP_MAGIC[:2])
    span.began = span.start if span.exact else (_next_gzip if packed else _next_plain)(stream, span.start, span.stop)
    if span.began is None:
        span.ended = span.start
        return
    if packed:
        yield from _gzip(stream, keep, max_bytes, span)
    else:
        yield from _plain(stream, head_bytes, keep, max_bytes, span)


def _gzip(stream: BinaryIO, keep: int, max_bytes: int, span: Span) -> Iterator[Member]:
    offset = span.began or 0
    while True:
        span.ended = offset
        stream.seek(offset)
        if not span.holds(offset) or not stream.read(1):
            return
        member = inflate_member(stream, offset, keep, max_bytes)
        if member.problem is None:
            yield member
            offset += member.length
            continue
        following = _next_gzip(stream, offset + 1)
        end = stream.seek(0, 2) if following is None else following
        yield Member(offset, end - offset, member.size, member.start, member.problem)
        offset = end


def inflate_member(stream: BinaryIO, offset: int, keep: int, max_bytes: int) -> Member:
    """Inflates the gzip member at `offset`, keeping `keep` bytes of it. `problem` is gzip-corrupt, gzip-truncated,
    record-too-large or not-warc."""
    stream.seek(offset)
    inflater = zlib.decompressobj(31)
    start, size, consumed, data = bytearray(), 0, 0, b""
    problem = None
    try:
        while not inflater.eof:
            if not data:
                data = stream.read(_CHUNK)
                if not data:
                    problem = "gzip-truncated"
                    break
                consumed += len(data)
            out = inflater.decompress(data, _SEARCH)
            data = inflater.unconsumed_tail
            size += len(out)
            if len(start) < keep:
                start += out[: keep - len(start)]
                if not WARC_MAGIC.startswith(bytes(start[:5])):
                    problem = "not-warc"
                    break
            if size > max_bytes:
                problem = "record-too-large"
                break
    except zlib.error:
        problem = "gzip-corrupt"
        start = _salvage(stream, offset, keep)
    return Member(offset, consumed - len(inflater.unused_data) - len(data), size, bytes(start), problem)


def _salvage(stream: BinaryIO, offset: int, keep: int) -> bytearray:
    """What a corrupt member gives before its damage: zlib drops the output of the call that fails, so calls are small."""
    stream.seek(offset)
    inflater = zlib.decompressobj(31)
    start = bytearray()
    try:
        while len(start) < min(keep, _SALVAGE) and not inflater.eof and (data := stream.read(16)):
            start += inflater.decompress(data)
    except zlib.error:
        pass
    return start


def _next_gzip(stream: BinaryIO, offset: int, stop: int | None = None) -> int | None:
    """The next offset, before `stop`, at which a gzip member inflates to something that begins a WARC record."""
    for candidate in _occurrences(stream, GZIP_MAGIC, offset, stop):
        stream.seek(candidate)
        try:
            if zlib.decompressobj(31).decompress(stream.read(1024), 5) == WARC_MAGIC:
                return candidate
        except zlib.error:
            continue
    return None


def _next_plain(stream: BinaryIO, offset: int, stop: int | None) -> int | None:
    """The next offset, before `stop`, at which a line begins as a record does."""
    found = next(_occurrences(stream, b"\nWARC/1.", offset - 1, None if stop is None else stop - 1), None)
    return None if found is None else found + 1


def _occurrences(stream: BinaryIO, pattern: bytes, offset: int, stop: int | None = None) -> Iterator[int]:
    while stop is None or offset < stop:
        stream.seek(offset)
        block = stream.read(_SEARCH)
        at = block.find(pattern)
        while at >= 0:
            if stop is not None and offset + at >= stop:
                return
            yield offset + at
            at = block.find(pattern, at + 1)
        if len(block) < _SEARCH:
            return
        offset += len(block) - len(pattern) + 1


def _plain(stream: BinaryIO, head_bytes: int, keep: int, max_bytes: int, span: Span) -> Iterator[Member]:
    total = stream.seek(0, 2)
    offset = span.began or 0
    while offset < total:
        stream.seek(offset)
        head = stream.read(head_bytes)
        blank = len(head) - len(head.lstrip(b"\r\n"))
        if blank:
            offset += blank
            continue
        span.ended = offset
        if not span.holds(offset):
            return
        end, problem = _plain_end(stream, head, offset, total)
        if problem is not None:
            following = next(_occurrences(stream, b"\r\n\r\nWARC/1.", offset), None)
            end = total if following is None else following + 4
        if end - offset > max_bytes:
            problem = "record-too-large"
        stream.seek(offset)
        yield Member(offset, end - offset, end - offset, stream.read(min(end - offset, keep)), problem)
        offset = end
    span.ended = total


def _plain_end(stream: BinaryIO, head: bytes, offset: int, total: int) -> tuple[int, str | None]:
    """Where the plain record at `offset` ends by its own word, and what is wrong with that word."""
    if not head.startswith(WARC_MAGIC):
        return total, "not-warc"
    header_end = head.find(b"\r\n\r\n")
    length = content_length(head[:header_end]) if header_end >= 0 else None
    if length is None:
        return total, "warc-header"
    end = offset + header_end + 4 + length
    if end > total:
        return total, "content-length"
    stream.seek(end)
    tail = stream.read(9)
    if tail.startswith(b"\r\n\r\n") and tail[4:] in (b"", WARC_MAGIC):
        return end + 4, None
    return (end, None) if end == total else (total, "content-length")


def content_length(header: bytes) -> int | None:
    """The value of the first Content-Length field of a WARC header block, or None where there is none that is a number."""
    for line in header.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            value = value.strip()
            return int(value) if value.isdigit() and len(value) < 19 else None
    return None
