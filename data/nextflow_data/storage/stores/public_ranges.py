"""Ranges of public files over http and https, as of Common Crawl's archives: read only, never listed.

A server need not know If-Match, so every answer's ETag, length and time are compared with the state that was bound.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3

from nextflow_data.storage.config import S3Config, StorageConfig
from nextflow_data.storage.errors import StoreError, StoreRefused
from nextflow_data.storage.retrying import again, pause
from nextflow_data.storage.stores.base import FileState, Store


class _Passing(StoreError):
    """A failure that may be over a little later."""


class PublicRanges(Store):
    """Files by their URL. Proxies are taken from the environment."""

    def __init__(self, config: StorageConfig) -> None:
        self.requests_at_once = config.s3.concurrency
        self.read_ahead = config.read_ahead
        self._settings = config.s3

    def state(self, address: str) -> FileState:
        return self._range(address, 0, 1, None)[1]

    def read(self, address: str, offset: int, length: int, expected: FileState | None) -> bytes:
        got, failures = bytearray(), 0
        while len(got) < length:
            part, expected = self._range(address, offset + len(got), length - len(got), expected)
            got += part
            if offset + len(got) >= expected.size:
                break
            failures = 0 if part else failures + 1
            if failures == self._settings.attempts:
                raise StoreError(f"{address}: the server broke off {failures} times")
            if len(got) < length:
                pause(failures)
        return bytes(got)

    def under(self, address: str, names: str = "") -> Iterator[tuple[str, FileState]]:
        raise StoreRefused(f"{address}: an http address cannot be listed; name its files one by one")

    def children(self, address: str) -> Iterator[str]:
        return (child for child, _ in self.under(address))

    def _range(self, address: str, offset: int, length: int, expected: FileState | None) -> tuple[bytes, FileState]:
        """What came of a range before it broke off, if it did, and the file's state."""
        return again(
            lambda _: self._asked(address, offset, length, expected),
            self._settings.attempts,
            lambda error: isinstance(error, _Passing),
        )

    def _asked(self, address: str, offset: int, length: int, expected: FileState | None) -> tuple[bytes, FileState]:
        asked = {"Range": f"bytes={offset}-{offset + length - 1}", "Accept-Encoding": "identity"}
        try:
            answer = _connections(os.getpid(), _proxy(address), self._settings).request(
                "GET", address, headers=asked, preload_content=False
            )
        except urllib3.exceptions.LocationValueError:
            raise StoreRefused(f"{address}: this is not an address") from None
        except urllib3.exceptions.HTTPError as error:
            raise _Passing(f"{address}: the server cannot be reached ({type(error).__name__})") from error
        try:
            self._check(address, answer.status)
            total = answer.headers.get("Content-Range", "").rpartition("/")[2]
            if answer.status == 200 or not total.isdigit():
                raise StoreRefused(f"{address}: this server does not serve ranges; fetch the file to a disk first")
            found = FileState(int(total), _modified(answer.headers.get("Last-Modified")), answer.headers.get("ETag"))
            if expected is not None:
                expected.check(found, address)
            return (b"" if answer.status == 416 else _as_far(answer, length)), found
        finally:
            answer.drain_conn() if answer.status != 200 else answer.close()

    @staticmethod
    def _check(address: str, status: int) -> None:
        if status in (404, 410):
            raise FileNotFoundError(f"{address}: there is no such file")
        if status in (401, 403):
            raise PermissionError(f"{address}: not allowed (HTTP {status}); only public files are read over http")
        if status >= 500 or status in (408, 429):
            raise _Passing(f"{address}: the server answered HTTP {status}")
        if status not in (200, 206, 416):
            raise StoreError(f"{address}: the server answered HTTP {status}")


@cache
def _connections(process: int, proxy: str | None, settings: S3Config) -> urllib3.PoolManager:
    """A process's connections (a fork has none of its parent's); threads share them."""
    more: dict[str, Any] = {
        "maxsize": settings.concurrency,
        "timeout": urllib3.Timeout(connect=settings.connect_seconds, read=settings.read_seconds),
        "retries": urllib3.Retry(total=5, connect=0, read=0, status=0, other=0, redirect=5),
    }
    return urllib3.ProxyManager(proxy, **more) if proxy else urllib3.PoolManager(**more)


def _proxy(address: str) -> str | None:
    """The proxy that the environment names for an address."""
    parts = urlsplit(address)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def _as_far(answer: urllib3.BaseHTTPResponse, length: int) -> bytes:
    """The body, or as much of it as came."""
    got = bytearray()
    try:
        while len(got) < length and (part := answer.read(min(1 << 20, length - len(got)))):
            got += part
    except urllib3.exceptions.HTTPError:
        pass
    return bytes(got)


def _modified(header: str | None) -> int:
    return int(parsedate_to_datetime(header).timestamp()) * 10**9 if header else 0
