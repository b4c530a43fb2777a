"""Walks a WARC file record by record, whatever state the file is in.

A gzipped WARC is a row of gzip members, one a record, so the member is the unit of damage: a member that is cut or corrupt
is reported, and the walk goes on at the next place where a gzip member inflates to a WARC record. In a plain WARC the same
is done with the next line that begins a record. Inflating here, and not in the WARC library, costs a copy of each record's
header; it gives exact member lengths (a reader can seek to any record) and keeps one bad length from swallowing neighbours.

Only the head of a record is kept in memory, so that memory stays the same whatever a record inflates to.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

GZIP_MAGIC = b"\x1f\x8b\x08"
WARC_MAGIC = b"WARC/"
FOREIGN_MAGIC = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
}
_CHUNK = 1 << 18
_SEARCH = 1 << 20
_SALVAGE = 4096


@dataclass(frozen=True, slots=True)
class Member:
    """One record as it lies in the file: `length` bytes at `offset`, inflating to `size` bytes that begin with `head`.

    `problem` is the reason why it cannot be used, or None. `size` is then how far it inflated.
    """

    offset: int
    length: int
    size: int
    head: bytes
    problem: str | None = None


def members(stream: BinaryIO, head_bytes: int, max_bytes: int) -> Iterator[Member]:
    """Every member of a WARC in order, good and bad. `stream` is seekable and stands at 0; an empty one gives nothing."""
    start = stream.read(8)
    stream.seek(0)
    if not start:
        return
    for magic, name in FOREIGN_MAGIC.items():
        if start.startswith(magic):
            yield Member(0, stream.seek(0, 2), 0, name.encode(), "unsupported-compression")
            return
    yield from (
        _gzip(stream, head_bytes, max_bytes) if start.startswith(GZIP_MAGIC[:2]) else _plain(stream, head_bytes, max_bytes)
    )


def _gzip(stream: BinaryIO, head_bytes: int, max_bytes: int) -> Iterator[Member]:
    offset = 0
    while True:
        stream.seek(offset)
        if not stream.read(1):
            return
        member = inflate_member(stream, offset, head_bytes, max_bytes)
        if member.problem is None:
            yield member
            offset += member.length
            continue
        following = _next_gzip(stream, offset + 1)
        end = stream.seek(0, 2) if following is None else following
        yield Member(offset, end - offset, member.size, member.head, member.problem)
        if following is None:
            return
        offset = following


def inflate_member(stream: BinaryIO, offset: int, head_bytes: int, max_bytes: int) -> Member:
    """Inflates the gzip member at `offset`, keeping `head_bytes` bytes of it. `problem` is gzip-corrupt, gzip-truncated,
    record-too-large or not-warc."""
    stream.seek(offset)
    inflater = zlib.decompressobj(31)
    head, size, consumed, data = bytearray(), 0, 0, b""
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
            if len(head) < head_bytes:
                head += out[: head_bytes - len(head)]
                if not WARC_MAGIC.startswith(bytes(head[:5])):
                    problem = "not-warc"
                    break
            if size > max_bytes:
                problem = "record-too-large"
                break
    except zlib.error:
        problem = "gzip-corrupt"
        head = _salvage(stream, offset, head_bytes)
    return Member(offset, consumed - len(inflater.unused_data) - len(data), size, bytes(head), problem)


def _salvage(stream: BinaryIO, offset: int, head_bytes: int) -> bytearray:
    """What a corrupt member gives before its damage: zlib drops the output of the call that fails, so calls are small."""
    stream.seek(offset)
    inflater = zlib.decompressobj(31)
    head = bytearray()
    try:
        while len(head) < min(head_bytes, _SALVAGE) and not inflater.eof and (data := stream.read(16)):
            head += inflater.decompress(data)
    except zlib.error:
        pass
    return head


def _next_gzip(stream: BinaryIO, offset: int) -> int | None:
    """The next offset at which a gzip member inflates to something that begins a WARC record."""
    for candidate in _occurrences(stream, GZIP_MAGIC, offset):
        stream.seek(candidate)
        try:
            if zlib.decompressobj(31).decompress(stream.read(1024), 5) == WARC_MAGIC:
                return candidate
        except zlib.error:
            continue
    return None


def _occurrences(stream: BinaryIO, pattern: bytes, offset: int) -> Iterator[int]:
    while True:
        stream.seek(offset)
        block = stream.read(_SEARCH)
        at = block.find(pattern)
        while at >= 0:
            yield offset + at
            at = block.find(pattern, at + 1)
        if len(block) < _SEARCH:
            return
        offset += len(block) - len(pattern) + 1


def _plain(stream: BinaryIO, head_bytes: int, max_bytes: int) -> Iterator[Member]:
    total = stream.seek(0, 2)
    offset = 0
    while offset < total:
        stream.seek(offset)
        head = stream.read(head_bytes)
        blank = len(head) - len(head.lstrip(b"\r\n"))
        if blank:
            offset += blank
            continue
        end, problem = _plain_end(stream, head, offset, total)
        if problem is not None:
            following = next(_occurrences(stream, b"\r\n\r\nWARC/1.", offset), None)
            end = total if following is None else following + 4
        if end - offset > max_bytes:
            problem = "record-too-large"
        yield Member(offset, end - offset, end - offset, head[: end - offset], problem)
        offset = end


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
