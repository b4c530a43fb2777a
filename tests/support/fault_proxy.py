"""A proxy that stands before an S3 server and does to requests what networks and stores do, by a seeded draw or by order.

Signatures stay right because the client signs for the proxy's host and the Host header goes on as it came.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import re
import socket
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

FAULTS = ("error_500", "slow_down", "cut", "slow", "lost", "stale", "refused", "still")
"""500 InternalError; 503 SlowDown; a body cut in its middle; a body that comes slowly; the answer to a write lost after it
was done; a listing without what was just written; the connection closed before anything was done; a body
that stands still in its middle."""

_XML = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>by the fault proxy</Message></Error>'
_SLOW_PIECE, _SLOW_PAUSE = 64 << 10, 0.01
_STILL_SECONDS = 5.0


class _Order(NamedTuple):
    fault: str
    method: str
    containing: str


class FaultProxy:
    """Listens on a port of its own while its context is open. `rates`: how often each of FAULTS is drawn where it can be."""

    def __init__(self, backend_port: int, rates: dict[str, float] | None = None, seed: int = 0) -> None:
        assert set(rates or {}) <= set(FAULTS)
        self.backend_port = backend_port
        self.rates = rates or {}
        self.stale_seconds = 5.0
        self.done: Counter[str] = Counter()
        self.requests: list[tuple[str, str]] = []
        self._draw = random.Random(seed)
        self._orders: list[_Order] = []
        self._written: dict[str, float] = {}
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            faults = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> FaultProxy:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def order(self, fault: str, method: str, containing: str = "", times: int = 1) -> None:
        """The next `times` requests of this method whose path contains this have this fault."""
        with self._lock:
            self._orders += [_Order(fault, method, containing)] * times

    def fault(self, method: str, path: str) -> str | None:
        """What happens to this request."""
        with self._lock:
            self.requests.append((method, path))
            for place, order in enumerate(self._orders):
                if order.method == method and order.containing in unquote(path):
                    self._orders.pop(place)
                    self.done[order.fault] += 1
                    return order.fault
            draw = self._draw.random()
            for fault, rate in self.rates.items():
                if 0 <= draw < rate and _possible(fault, method, path):
                    self.done[fault] += 1
                    return fault
                draw -= rate
            return None

    def wrote(self, path: str) -> None:
        with self._lock:
            self._written[unquote(urlsplit(path).path)] = time.monotonic()

    def without_recent(self, bucket: str, listing: bytes) -> bytes:
        """A listing as it was before the last writes."""
        since = time.monotonic() - self.stale_seconds

        def kept(entry: re.Match[bytes]) -> bytes:
            key = re.search(rb"<Key>(.*?)</Key>", entry[0], re.DOTALL)
            name = f"{bucket}/{unquote(key[1].decode())}" if key else ""
            return b"" if self._written.get(name, 0.0) > since else entry[0]

        return re.sub(rb"<Contents>.*?</Contents>", kept, listing, flags=re.DOTALL)


def _possible(fault: str, method: str, path: str) -> bool:
    if fault in ("cut", "slow", "still"):
        return method == "GET"
    if fault == "lost":
        return method in ("PUT", "POST", "DELETE")
    return fault != "stale" or (method == "GET" and "list-type=2" in path)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    faults: FaultProxy

    def log_message(self, *_: Any) -> None:
        pass

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.faults.fault(self.command, self.path)
        if fault == "refused":
            self._break()
        elif fault == "error_500":
            self._answer(500, "Internal Server Error", [], _XML.format("InternalError").encode())
        elif fault == "slow_down":
            self._answer(503, "Slow Down", [], _XML.format("SlowDown").encode())
        else:
            self._forward(body, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on

    def _forward(self, body: bytes, fault: str | None) -> None:
        backend = http.client.HTTPConnection("127.0.0.1", self.faults.backend_port, timeout=60)
        try:
            backend.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    backend.putheader(name, value)
            backend.endheaders(body or None)
            answer = backend.getresponse()
            content = answer.read()
        finally:
            backend.close()
        if self.command == "PUT" and answer.status == 200:
            self.faults.wrote(self.path)
        if fault == "stale":
            content = self.faults.without_recent(urlsplit(self.path).path.rstrip("/"), content)
        if fault == "lost":
            self._break()
            return
        skipped = ("transfer-encoding", "connection", "content-length")
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in skipped]
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self._answer(answer.status, answer.reason, headers, content, length, fault)

    def _answer(
        self,
        status: int,
        reason: str,
        headers: list[tuple[str, str]],
        content: bytes,
        length: str | None = None,
        fault: str | None = None,
    ) -> None:
        self.send_response_only(status, reason)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "cut":
            self.wfile.write(content[: len(content) // 2])
            self._break()
        elif fault == "still":
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            time.sleep(_STILL_SECONDS)
            self._break()
        elif fault == "slow":
            for start in range(0, len(content), _SLOW_PIECE):
                time.sleep(_SLOW_PAUSE)
                self.wfile.write(content[start : start + _SLOW_PIECE])
        else:
            self.wfile.write(content)

    def _break(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):  # the client was first
            self.connection.shutdown(socket.SHUT_RDWR)
