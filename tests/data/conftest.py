"""Builders of WARC records, pages and images, byte by byte, so that each can be broken in a known place."""

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nextflow_data.common.range_opener import LocalFiles
from nextflow_data.config import IngestConfig
from nextflow_data.document import Document, doc_id
from nextflow_data.records import Unusable, put_aside
from nextflow_data.sources.base import Found, Source
from nextflow_data.sources.warc import WarcConfig, WarcSource
from PIL import Image

SITE = "https://site.example"


def warc_record(
    address: str,
    body: bytes,
    content_type: str = "text/html",
    http: str = "",
    warc: str = "",
    status: str = "200 OK",
    declared: int | None = None,
    record_type: str = "response",
) -> bytes:
    """One uncompressed response record; `http` and `warc` are more header lines, each ending in CRLF."""
    block = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n{http}\r\n".encode() + body
    if record_type != "response":
        block = body
    header = (
        f"WARC/1.1\r\nWARC-Type: {record_type}\r\nWARC-Target-URI: {address}\r\nWARC-Record-ID: <urn:uuid:{address}>\r\n"
        f"WARC-Date: 2026-01-02T03:04:05Z\r\nContent-Type: application/http; msgtype=response\r\n{warc}"
        f"Content-Length: {len(block) if declared is None else declared}\r\n\r\n"
    )
    return header.encode() + block + b"\r\n\r\n"


def member(record: bytes) -> bytes:
    return gzip.compress(record, mtime=0)


def png(width: int = 80, height: int = 60, seed: int = 0, mode: str = "RGB") -> bytes:
    """A picture of smooth random shapes, different for each seed."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def text_document(address: str, *texts: str) -> Document:
    return {
        "doc_id": doc_id(address, "1"),
        "source": {"address": address, "uri": "x.warc", "offset": 0, "length": 1, "kind": "warc", "date": None},
        "nodes": [{"kind": "text", "text": text, "image": None} for text in texts],
        "task": "text",
        "licence": None,
        "consent": None,
        "lang": None,
    }


@pytest.fixture
def config() -> IngestConfig:
    return IngestConfig()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes parts to a file and gives its path."""

    def write_parts(*parts: bytes, name: str = "test.warc.gz") -> str:
        path = tmp_path / name
        path.write_bytes(b"".join(parts))
        return str(path)

    return write_parts


@pytest.fixture
def ingest() -> Callable[..., list[tuple[Any, Any, Any]]]:
    """What the ingest stage does, in one process: documents, decisions and asides of a file, record by record."""

    def made(uri: str, config: IngestConfig, source: Source[Any] | None = None) -> list[tuple[Any, Any, Any]]:
        source, files = source or WarcSource(WarcConfig(files=(uri,)), config), LocalFiles()
        images, rejected, making, found = {}, {}, [], []
        for record in source.records(uri, files):
            if "reason" in record:
                found.append((None, [], [record]))
            elif record["kind"] == "image":
                try:
                    images[record["address"]] = source.image(record, source.payload(record, files))
                except Unusable as error:
                    rejected[record["address"]] = error.reason
            elif record["kind"] != "other":
                making.append(record)
        for record in making:
            try:
                one = source.document(record, source.payload(record, files), Found(images, rejected))
                found.append((one.document, one.decisions, one.asides))
            except Unusable as error:
                found.append((None, [], [put_aside(record, error)]))
        return found

    return made


class Build:
    """The builders, for tests that cannot import this file."""

    record = staticmethod(warc_record)
    member = staticmethod(member)
    png = staticmethod(png)
    document = staticmethod(text_document)
    site = SITE


@pytest.fixture(scope="session")
def build() -> type[Build]:
    return Build
