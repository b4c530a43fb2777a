"""Public files over http, and what pyarrow opens: ranges of them are read, nothing is written."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.fs as fs
import pytest
from nextflow_data.storage import retrying
from nextflow_data.storage.config import S3Config, StorageConfig
from nextflow_data.storage.errors import ChangedObject, StoreError, StoreRefused
from nextflow_data.storage.files import any_path, list_files, local_copy, put, put_if_absent, read_range, state_of
from nextflow_data.storage.store_path import StorePath
from nextflow_data.storage.stores.arrow_files import ArrowFiles

CONTENT = random.Random(4).randbytes(300_000)


class Archive:
    """What the server does next: `faults` are statuses to answer with, or "cut"; `etag` names what it holds."""

    def __init__(self) -> None:
        self.faults: list[int | str] = []
        self.etag = '"one"'
        self.address = ""


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    monkeypatch.setattr(retrying, "FIRST_PAUSE", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    held = Archive()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            fault = held.faults.pop(0) if held.faults else None
            if isinstance(fault, int) or self.path != "/a/file":
                self._head(fault if isinstance(fault, int) else 404, 0)
                return
            start, _, end = self.headers["Range"].removeprefix("bytes=").partition("-")
            part = CONTENT[int(start) : int(end) + 1]
            self._head(206 if part else 416, len(part), f"bytes {start}-{int(start) + len(part) - 1}/{len(CONTENT)}")
            self.wfile.write(part[: len(part) // 2] if fault == "cut" else part)
            self.close_connection = fault == "cut"

        def _head(self, status: int, length: int, content_range: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.send_header("ETag", held.etag)
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            if content_range:
                self.send_header("Content-Range", content_range)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    held.address = f"http://127.0.0.1:{server.server_address[1]}/a"
    yield held
    server.shutdown()
    server.server_close()


def test_ranges_of_a_public_file(archive: Archive, tmp_path: Path) -> None:
    file = any_path(f"{archive.address}/file", StorageConfig(cache=tmp_path))
    assert isinstance(file, StorePath) and state_of(file).size == len(CONTENT) and file.is_file()
    archive.faults = [503, "cut", 500, "cut", 429]
    assert read_range(file, 10, 200_000) == CONTENT[10:200_010] and archive.faults == []
    assert file.read_bytes() == local_copy(file).read_bytes() == CONTENT and read_range(file, 10**6, 5) == b""
    with file.open() as stream:
        assert stream.read(5) == CONTENT[:5] and stream.seek(-5, 2) and stream.read() == CONTENT[-5:]
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        state_of(any_path(f"{archive.address}/none"))
    state = state_of(file)
    archive.etag = '"two"'
    with pytest.raises(ChangedObject, match="file: it was changed"):
        read_range(file, 0, 5, state)


def test_what_a_public_server_refuses(archive: Archive) -> None:
    config = StorageConfig(s3=S3Config(attempts=2))
    file = any_path(f"{archive.address}/file", config)
    for faults, kind, words in (
        ([403], PermissionError, "only public files"),
        ([503, 503], StoreError, "answered HTTP 503"),
        ([200], StoreRefused, "does not serve ranges; fetch the file to a disk first"),
        ([400], StoreError, "answered HTTP 400"),
    ):
        archive.faults = list(faults)
        with pytest.raises(kind, match=words):
            read_range(file, 0, 5)
    with pytest.raises(StoreRefused, match="cannot be listed; name its files one by one"):
        list(list_files(file.parent))
    for write in (lambda: put(file, b"x"), lambda: file.unlink(missing_ok=True)):
        with pytest.raises(StoreRefused, match="can only be read"):
            write()
    with pytest.raises(OSError, match="can only be read"):
        put_if_absent(file, b"x")


def test_what_pyarrow_opens(tmp_path: Path) -> None:
    """A file system of pyarrow's over a folder stands for gs://, which needs a network."""
    for name in ("a b.txt", "d/x", "d/e/y"):
        put(tmp_path / name, name)
    store = ArrowFiles(StorageConfig(), "gs")
    store._systems["bucket"] = (fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "")
    state = store.state("gs://bucket/d/x")
    assert (state.size, store.read("gs://bucket/d/x", 1, 9, state)) == (3, b"/x")
    assert sorted(address for address, _ in store.under("gs://bucket/d")) == ["gs://bucket/d/e/y", "gs://bucket/d/x"]
    assert sorted(address for address, _ in store.under("gs://bucket")) == [
        "gs://bucket/a b.txt",
        "gs://bucket/d/e/y",
        "gs://bucket/d/x",
    ]
    assert sorted(store.children("gs://bucket")) == ["gs://bucket/a b.txt", "gs://bucket/d"]
    put(tmp_path / "d/x", "other")
    with pytest.raises(ChangedObject):
        store.read("gs://bucket/d/x", 0, 1, state)
    with pytest.raises(FileNotFoundError):
        store.state("gs://bucket/none")
    with pytest.raises(StoreRefused, match="pyarrow cannot open this kind of address"):
        state_of(any_path("nosuch://host/a"))
