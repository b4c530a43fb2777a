"""Undoes HTTP content encodings within a limit, and notices what is cut.

The WARC library can do this too, but hands a truncated gzip body back as if it were whole; a page cut in the middle must be
seen. Raw deflate (RFC 1951), which servers send in place of the zlib form the standard asks for, is taken as well.
"""

from __future__ import annotations

import zlib

import brotli  # type: ignore[import-untyped]

MAX_LAYERS = 3


class ContentError(Exception):
    """A payload whose content encoding cannot be undone; `too_large` where only the limit stood in the way."""

    def __init__(self, message: str, too_large: bool = False) -> None:
        super().__init__(message)
        self.too_large = too_large


def decode_content(data: bytes, encodings: str, limit: int) -> bytes:
    """`data` with the encodings of a Content-Encoding field undone, last one first; at most `limit` bytes at every step.

    gzip and brotli declared on bytes that plainly are not so (archives that store the decoded body keep the header) leave
    the bytes as they are. Raises ContentError.
    """
    layers = [layer for layer in (part.strip().lower() for part in encodings.split(",")) if layer and layer != "identity"]
    if len(layers) > MAX_LAYERS:
        raise ContentError(f"{len(layers)} encodings on one payload")
    for layer in reversed(layers):
        if len(data) > limit:
            break
        if layer in ("gzip", "x-gzip"):
            data = _inflate(data, 31, limit) if data[:2] == b"\x1f\x8b" else data
        elif layer == "deflate":
            data = _inflate(data, 15 if _is_zlib(data) else -15, limit)
        elif layer == "br":
            data = _brotli(data, limit)
        else:
            raise ContentError(f"unknown encoding {layer!r}")
    if len(data) > limit:
        raise ContentError(f"more than {limit} bytes", too_large=True)
    return data


def _is_zlib(data: bytes) -> bool:
    return len(data) >= 2 and data[0] & 15 == 8 and (data[0] << 8 | data[1]) % 31 == 0


def _inflate(data: bytes, wbits: int, limit: int) -> bytes:
    out = bytearray()
    while data:
        inflater = zlib.decompressobj(wbits)
        try:
            out += inflater.decompress(data, limit + 1 - len(out))
        except zlib.error as error:
            raise ContentError(str(error)) from None
        if len(out) > limit:
            raise ContentError(f"more than {limit} bytes", too_large=True)
        if not inflater.eof:
            raise ContentError("compressed data are cut")
        data = inflater.unused_data if wbits == 31 and inflater.unused_data[:2] == b"\x1f\x8b" else b""
    return bytes(out)


def _brotli(data: bytes, limit: int) -> bytes:
    if data.lstrip()[:1] == b"<":
        return data
    decoder, out = brotli.Decompressor(), bytearray()
    try:
        while part := decoder.process(data, output_buffer_limit=1 << 20):
            data = b""
            out += part
            if len(out) > limit:
                raise ContentError(f"more than {limit} bytes", too_large=True)
    except brotli.error as error:
        raise ContentError(str(error)) from None
    if not decoder.is_finished():
        raise ContentError("compressed data are cut")
    return bytes(out)
