"""What tests of several packages need."""

from __future__ import annotations

import io
import os
import random
import subprocess
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault_proxy import FaultProxy
from nextflow_data.storage.config import S3Config, StorageConfig
from nextflow_data.storage.store_path import StorePath
from PIL import Image
from s3_server import S3Server, shared_server
from xdist.scheduler.loadfile import LoadFileScheduling

TOGETHER = ("tests/flow/", "tests/pipelines/")
"""Folders whose files share a fixture that takes long: one process of the tests runs them all."""


LONGEST_FIRST = (*TOGETHER, "tests/megatron_nextflow/step/", "tests/tokenize/vision/training/")
"""Begun first, so that at the end no process waits for one of these."""


class _ByFolder(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return next((folder for folder in TOGETHER if nodeid.startswith(folder)), super()._split_scope(nodeid))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest folders come first; within them, and among the others, the order stays."""

    def place(item: pytest.Item) -> int:
        found = [number for number, folder in enumerate(LONGEST_FIRST) if item.nodeid.startswith(folder)]
        return found[0] if found else len(LONGEST_FIRST)

    items.sort(key=place)


def pytest_xdist_make_scheduler(config: Any, log: Any) -> Any:
    """A file of tests runs in one process, and a folder of `TOGETHER` too."""
    return _ByFolder(config, log)


@pytest.fixture
def mounted_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of the given size, as in 512k; skips the test where that is not allowed (it needs root)."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a tmpfs cannot be mounted here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> S3Server:
    """A real S3 server, one for all processes of this run of pytest; it ends with the run."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    base = tmp_path_factory.getbasetemp()
    return shared_server((base.parent if worker else base) / "s3_server", os.getppid() if worker else os.getpid())


@pytest.fixture
def s3_root(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StorePath:
    """A folder of this test's own on the S3 server; this process's environment has the credentials."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    config = StorageConfig(s3=S3Config(endpoint=s3_server.endpoint, path_style=True), cache=tmp_path / "cache")
    return StorePath(f"s3://{s3_server.bucket}/tests/{uuid.uuid4().hex}", config)


@pytest.fixture
def fault_proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    """A proxy before the S3 server, without faults until a test sets `rates` or orders one."""
    with FaultProxy(s3_server.port) as proxy:
        yield proxy


WORDS = (
    "The editor,A layer,Each brush,The selection,Your picture,This filter,The window,A channel,The histogram,One path;"
    "shows,keeps,changes,copies,moves,removes,opens,stores,measures,hides;"
    "the colours of the photograph,a small preview,every pixel in the region,the settings of a tool,what was painted before,"
    "the edge between light and dark,a list of open documents,the distance from the centre,the values that you enter,a mask;"
    "when you press the key,after the first step,in most cases,while the mouse is held,at the end of the work,for each copy,"
    "unless you say otherwise,as soon as it can,without any question,since the second version"
)


def _prose(seed: int) -> str:
    draw = random.Random(seed)
    columns = [draw.sample(words, len(words)) for words in (part.split(",") for part in WORDS.split(";"))]
    said = [" ".join(words) + f", which chapter {draw.randrange(9999)} explains." for words in zip(*columns, strict=True)]
    return "".join(f"<p>{' '.join(said[i : i + 3])}</p>" for i in range(0, len(said), 3))


def _picture(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (7, 7, 3), dtype=np.uint8)).resize((160, 160), Image.Resampling.BICUBIC)
    noisy = np.clip(np.asarray(coarse).astype(int) + rng.integers(-20, 20, (160, 160, 3)), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(noisy).save(out, "PNG")
    return out.getvalue()


def _member(number: int, address: str, kind: str, body: bytes) -> bytes:
    http = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    head = (
        f"WARC/1.1\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:00000000-0000-4000-8000-{number:012d}>\r\n"
        f"WARC-Date: 2026-01-01T00:00:00Z\r\nWARC-Target-URI: {address}\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
    )
    return zlib.compress(head.encode() + http + b"\r\n\r\n", wbits=31)


@pytest.fixture(scope="session")
def small_warc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pages with a picture each, and at the end a record that was cut."""
    members = []
    for n in range(10):
        page = f'<html><body><h1>Topic {n}</h1>{_prose(n)}<img src="/{n}.png" alt="Figure about topic {n}"></body></html>'
        members.append(_member(2 * n, f"https://docs.example/{n}.html", "text/html", page.encode()))
        members.append(_member(2 * n + 1, f"https://docs.example/{n}.png", "image/png", _picture(n)))
    path = tmp_path_factory.mktemp("source") / "small.warc.gz"
    path.write_bytes(b"".join(members) + members[0][:200])
    return path
