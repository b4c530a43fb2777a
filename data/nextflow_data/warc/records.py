"""Records of WARC files: one pass that lists what is there (`scan`), and a seek that brings one payload back (`read`).

Nothing in a file can raise out of `scan`: what cannot be used comes out as a kept-aside row with a reason, and its good
neighbours are listed as ever. Header blocks are parsed by fastwarc; where records begin and end is decided in
`nextflow_data.warc.members`, because a reader that trusts Content-Length loses the neighbours of a record that lies.

A record's licence comes from the WARC header field `MNF-Licence` (ours; an SPDX expression), else from the HTTP header
`X-Licence`, because no standard field exists.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO, Literal, get_args

from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from nextflow_data.addresses import canonical_address
from nextflow_data.common.range_opener import RangeOpener
from nextflow_data.common.stage_names import INGEST
from nextflow_data.config import IngestConfig
from nextflow_data.decisions import Aside, aside
from nextflow_data.document import Ref
from nextflow_data.images.sniff import sniff_image
from nextflow_data.records import Read, RecordInfo, Span, Unusable
from nextflow_data.warc.content import ContentError, decode_content
from nextflow_data.warc.members import GZIP_MAGIC, Member, content_length, inflate_member, members

LICENCE_FIELD = "MNF-Licence"

Reason = Literal[
    "empty-file", "missing-file", "unsupported-compression", "not-warc", "gzip-corrupt", "gzip-truncated",
    "record-too-large", "warc-header", "content-length", "several-records-in-member", "not-http", "http-header",
    "http-status", "http-body-short", "revisit", "segmented", "content-encoding", "payload-too-large",
]  # fmt: skip
"""Why a record or its payload cannot be used. The set is closed: reports and tests may list it."""

_SILENT = WarcRecordType.warcinfo | WarcRecordType.request | WarcRecordType.metadata | WarcRecordType.conversion
_HTML = ("text/html", "application/xhtml+xml")
_VAGUE = ("", "text/plain", "application/octet-stream", "binary/octet-stream", "application/unknown", "unknown/unknown")


class RecordError(Unusable):
    """A record that cannot be read: `reason` of the closed set `Reason`, `detail` in words."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        assert reason in get_args(Reason)
        super().__init__(reason, detail)


def scan(stream: BinaryIO, uri: str, config: IngestConfig, span: Span) -> Iterator[Read[bytes] | Aside]:
    """Every record of a part of a WARC in file order, a page with its payload; one that cannot be used as an Aside of stage
    "ingest". Addresses are canonical (`nextflow_data.addresses`).

    warcinfo, request, metadata and conversion records are passed over in silence: they hold no page or image of their own.
    """
    headers = 2 * config.max_header_bytes
    # What a page may have: both header blocks, and one byte more than is allowed, so that it is seen to be too large.
    keep = headers + min(config.max_page_bytes, config.max_record_bytes) + 1
    empty = True
    for member in members(stream, headers, keep, config.max_record_bytes, span):
        empty = False
        found = _describe(member, uri, config)
        if found is not None:
            yield found
    if empty and span.start == 0 and not stream.seek(0, 2):
        yield aside(INGEST, "empty-file", None, {"uri": uri, "offset": 0, "length": 0}, "the file has no bytes")


def read(ref: Ref, config: IngestConfig, opener: RangeOpener, max_bytes: int | None = None) -> bytes:
    """The payload of one record: HTTP transfer and content encodings undone.

    `max_bytes` bounds the decoded payload (default: `config.max_record_bytes`). Raises RecordError; never anything else for
    bad data.
    """
    limit = config.max_record_bytes if max_bytes is None else min(max_bytes, config.max_record_bytes)
    return _payload(_load(ref, config, opener), b"", limit)


def _payload(record: WarcRecord, start: bytes, limit: int) -> bytes:
    """The payload of a record of which `start` has been read."""
    http = record.http_headers
    raw = start + record.reader.read(limit + 1 - len(start))
    encodings = http.get("Content-Encoding", "") if http is not None else ""
    if http is not None and "chunked" in (http.get("Transfer-Encoding") or "").lower():
        raw = _unchunk(raw)
    try:
        return decode_content(raw, encodings or "", limit)
    except ContentError as error:
        raise RecordError("payload-too-large" if error.too_large else "content-encoding", str(error)) from None


def _load(ref: Ref, config: IngestConfig, opener: RangeOpener) -> WarcRecord:
    # A compressed member that inflates to the limit may itself be a little larger than it.
    most = config.max_record_bytes + config.max_record_bytes // 256 + 1024
    try:
        data = opener.read(ref["uri"], ref["offset"], min(ref["length"], most))
    except FileNotFoundError:
        raise RecordError("missing-file", ref["uri"]) from None
    if data.startswith(GZIP_MAGIC):
        member = inflate_member(io.BytesIO(data), 0, config.max_record_bytes, config.max_record_bytes)
        if member.problem is not None:
            reasons: dict[str, Reason] = {reason: reason for reason in get_args(Reason)}
            raise RecordError(reasons[member.problem], f"at offset {ref['offset']}")
        data = member.start
    elif ref["length"] > config.max_record_bytes:
        raise RecordError("record-too-large", f"{ref['length']} bytes")
    try:
        return _parse(data, config)
    except OSError as error:
        raise RecordError("warc-header", str(error)) from None


def _parse(data: bytes, config: IngestConfig) -> WarcRecord:
    """The record whose bytes begin `data`, its HTTP header parsed. Raises OSError for a header that is none."""
    limit = config.max_header_bytes
    for record in ArchiveIterator(io.BytesIO(data), parse_http=False, max_header_len=limit, stream_detect=False):
        record.freeze()
        if record.is_http:
            record.parse_http(max_header_len=limit)
        return record
    raise OSError("no record")


def _unchunk(raw: bytes) -> bytes:
    """Undoes chunked transfer encoding; archives that stored the body whole but kept the header are left as they are."""
    out: list[bytes] = []
    position = 0
    while True:
        line_end = raw.find(b"\r\n", position, position + 64)
        try:
            size = int(raw[position:line_end].split(b";")[0], 16) if line_end > position else -1
        except ValueError:
            size = -1
        if size < 0 or line_end + 2 + size > len(raw):
            return raw
        if size == 0:
            return b"".join(out)
        out.append(raw[line_end + 2 : line_end + 2 + size])
        position = line_end + 4 + size


def _describe(member: Member, uri: str, config: IngestConfig) -> Read[bytes] | Aside | None:
    head = member.start[: 2 * config.max_header_bytes]

    def put_aside(reason: str, address: str | None, detail: str) -> Aside:
        return aside(INGEST, reason, address, _place(member, uri), detail)

    if member.problem is not None:
        detail = f"inflated to {member.size} bytes"
        if member.problem == "unsupported-compression":
            detail = f"{head.decode()}: recompress with gzip, one member a record"
        return put_aside(member.problem, _address_in(head), detail)
    header_end = head.find(b"\r\n\r\n", 0, config.max_header_bytes)
    declared = content_length(head[:header_end]) if header_end >= 0 else None
    if declared is None:
        return put_aside("warc-header", _address_in(head), "no header block, or no Content-Length")
    held = member.size - header_end - 4
    if declared > held:
        return put_aside("content-length", _address_in(head), f"declared {declared} bytes, held {held}")
    if held - declared > 4:
        block_end = header_end + 4 + declared
        several = head[block_end : block_end + 9].lstrip(b"\r\n").startswith(b"WARC/")
        detail = "recompress with one gzip member a record" if several else f"declared {declared} bytes, held {held - 4}"
        return put_aside("several-records-in-member" if several else "content-length", _address_in(head), detail)
    try:
        record = _parse(head, config)
    except OSError as error:
        reason = "http-header" if b"application/http" in head[:header_end] else "warc-header"
        return put_aside(reason, _address_in(head), str(error))
    return _classify(record, member, uri, config, declared)


def _classify(
    record: WarcRecord, member: Member, uri: str, config: IngestConfig, declared: int
) -> Read[bytes] | Aside | None:
    headers = record.headers
    raw_address = (headers.get("WARC-Target-URI") or "").strip().strip("<>")
    address = canonical_address(raw_address)

    def put_aside(reason: Reason, detail: str | None = None) -> Aside:
        return aside(INGEST, reason, address or raw_address or None, _place(member, uri), detail)

    if record.record_type & _SILENT:
        return None
    if record.record_type == WarcRecordType.revisit:
        return put_aside("revisit", "its payload is in another record")
    if record.record_type == WarcRecordType.continuation or headers.get("WARC-Segment-Number"):
        return put_aside("segmented")
    if record.record_type not in (WarcRecordType.response, WarcRecordType.resource):
        return put_aside("warc-header", f"unknown WARC-Type {headers.get('WARC-Type')!r}")
    if address is None:
        return put_aside("not-http" if raw_address else "warc-header", f"WARC-Target-URI {raw_address!r}")

    http, status, licence = record.http_headers, 200, headers.get(LICENCE_FIELD)
    content_type = headers.get("Content-Type") or ""
    if record.record_type == WarcRecordType.response:
        if http is None or http.status_code is None:
            return put_aside("http-header", "a response without an HTTP status line")
        status, content_type = http.status_code, http.get("Content-Type") or ""
        licence = licence or http.get("X-Licence")
        if status not in config.accept_status:
            return put_aside("http-status", str(status))
        claimed = (http.get("Content-Length") or "").strip()
        block = member.start.find(b"\r\n\r\n") + 4
        body = declared - (member.start.find(b"\r\n\r\n", block) + 4 - block)
        if claimed.isascii() and claimed.isdigit() and int(claimed) > body and "Transfer-Encoding" not in http:
            return put_aside("http-body-short", f"HTTP says {claimed} bytes, the record holds {body}")
    encoded = http is not None and bool((http.get("Content-Encoding") or "").strip())
    mime, charset = split_content_type(content_type)
    start = b"" if encoded else record.reader.read(512)
    info: RecordInfo = {
        "address": address,
        "uri": uri,
        "offset": member.offset,
        "length": member.length,
        "kind": _kind(mime, start),
        "mime": mime,
        "charset": charset,
        "status": status,
        "record_id": (headers.get("WARC-Record-ID") or f"offset-{member.offset}").strip("<>"),
        "date": headers.get("WARC-Date"),
        "licence": licence.strip() if licence else None,
    }
    if info["kind"] != "page":
        return Read(info)
    try:
        if len(member.start) > 2 * config.max_header_bytes:
            record, start = _parse(member.start, config), b""
        return Read(info, _payload(record, start, min(config.max_page_bytes, config.max_record_bytes)))
    except RecordError as error:
        return Read(info, page_error(error))


def page_error(error: RecordError) -> Unusable:
    """A page's error by its own name."""
    return Unusable("page-too-large", error.detail) if error.reason == "payload-too-large" else error


def split_content_type(value: str) -> tuple[str, str | None]:
    """("text/html", "utf-8") from `text/html; charset="UTF-8"`; both in lower case."""
    mime, *parameters = value.lower().split(";")
    for parameter in parameters:
        name, _, content = parameter.partition("=")
        if name.strip() == "charset" and content.strip(" \"'"):
            return mime.strip(), content.strip(" \"'")
    return mime.strip(), None


def _kind(mime: str, start: bytes) -> Literal["page", "image", "other"]:
    """By the first bytes where they are telling, else by the declared type."""
    if sniff_image(start) is not None and (mime in _HTML or mime in _VAGUE or mime.startswith("image/")):
        return "image"
    opening = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if mime in _HTML or (mime in _VAGUE and opening.startswith((b"<!doctype html", b"<html"))):
        return "page"
    return "image" if mime.startswith("image/") else "other"


def _address_in(head: bytes) -> str | None:
    """The address a damaged record still names, for the kept-aside row."""
    for line in head[: 1 << 14].split(b"\r\n"):
        if line.lower().startswith(b"warc-target-uri:"):
            text = line.partition(b":")[2].decode("utf-8", "replace").strip()
            return canonical_address(text) or text
    return None


def _place(member: Member, uri: str) -> Ref:
    return {"uri": uri, "offset": member.offset, "length": member.length}
