"""Corpora of any size from a small archive: its records again and again, each copy changed, on sites of their own.

A copy's pages have a share of their words exchanged for others of the same page, its pictures other bytes and nearly the
same pixels. So texts and images have near copies by the dozen, which de-duplication must stand; a corpus of different
pages has fewer. What copy `n` is does not depend on how many copies there are.
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from warcio.archiveiterator import ArchiveIterator
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

CHANGED = (0.01, 0.05, 0.2, 0.6)
"""Share of a copy's words that are others, in turn: at 5-word shingles, similarities of about 0.9, 0.6, 0.2 and 0."""
_TEXT = re.compile(rb">[^<>]{20,}<")


def changed_copies(archive: Path, folder: Path, copies: int, files: int = 4, pictures: bool = True) -> list[Path]:
    """Writes `files` gzipped WARCs into `folder`, copies dealt out in turn; without `pictures` pages alone."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"copies-{number:03d}.warc.gz" for number in range(files)]
    records = list(_records(archive, pictures))
    streams = [path.open("wb") for path in paths]
    try:
        for copy in range(copies):
            _write_copy(WARCWriter(streams[copy % files], gzip=True), records, copy)
    finally:
        for stream in streams:
            stream.close()
    return paths


def _records(archive: Path, pictures: bool) -> Iterator[tuple[str, str, bytes]]:
    """(address, content type, body) of every page and, if asked for, picture."""
    with archive.open("rb") as stream:
        for record in ArchiveIterator(stream):
            if record.rec_type == "response":
                kind = record.http_headers.get_header("Content-Type") or ""
                if kind.startswith("text/html") or (pictures and kind.startswith("image/")):
                    yield record.rec_headers.get_header("WARC-Target-URI"), kind, record.content_stream().read()


def _write_copy(writer: WARCWriter, records: list[tuple[str, str, bytes]], copy: int) -> None:
    share = CHANGED[copy % len(CHANGED)]
    for number, (address, kind, body) in enumerate(records):
        draw = random.Random(f"{copy} {address}")
        scheme, _, rest = address.partition("://")
        host, slash, path = rest.partition("/")
        if copy:
            body = _other_words(body, share, draw) if kind.startswith("text/") else _other_pixels(body, draw)
        http = StatusAndHeaders("200 OK", [("Content-Type", kind), ("Content-Length", str(len(body)))], "HTTP/1.1")
        headers = {
            "WARC-Record-ID": f"<urn:uuid:{copy:08d}-0000-4000-8000-{number:012d}>",
            "WARC-Date": "2026-01-01T00:00:00Z",
            "WARC-Identified-Payload-Type": kind.partition(";")[0],
        }
        site = f"{scheme}://copy{copy}.{host}{slash}{path}"
        record = writer.create_warc_record(
            site, "response", io.BytesIO(body), len(body), http_headers=http, warc_headers_dict=headers
        )
        writer.write_record(record)


def _other_words(page: bytes, share: float, draw: random.Random) -> bytes:
    known = [word for text in _TEXT.findall(page) for word in text[1:-1].split() if word.isalpha()] or [b"word"]

    def change(found: re.Match[bytes]) -> bytes:
        words = found[0][1:-1].split(b" ")
        return b">" + b" ".join(draw.choice(known) if w.isalpha() and draw.random() < share else w for w in words) + b"<"

    return _TEXT.sub(change, page)


def _other_pixels(picture: bytes, draw: random.Random) -> bytes:
    """One corner pixel is another, and with it every byte of the file's hash. What cannot be opened stays as it is."""
    try:
        image = Image.open(io.BytesIO(picture))
        kind = image.format
        image = image.convert("RGB")
        image.putpixel((0, 0), (draw.randrange(256), draw.randrange(256), draw.randrange(256)))
        out = io.BytesIO()
        image.save(out, "JPEG" if kind in ("JPEG", "MPO") else "PNG", quality=90)
        return out.getvalue()
    except Exception:  # a decoder's own errors
        return picture
