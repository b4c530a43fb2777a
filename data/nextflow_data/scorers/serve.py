"""A scorer as a server, in an environment of its own: `python -m nextflow_data.scorers.serve NAME --port 8000`.

Needs this package, pydantic, Pillow where images come, and what the scorer imports. NAME is a name or the path of a .py
file; `--settings` are its settings as JSON (what is secret belongs in the environment: a command line can be seen by all).
It listens on 127.0.0.1 only, unless told otherwise: there is no TLS and no password, so farther away it belongs behind what
has them. With `--workers N` (1) the scorer runs in N processes that are replaced when they hang or die; with 0 in this one,
which is for async scorers: many requests at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from nextflow_data.scorers.config import ScorerConfig
from nextflow_data.scorers.in_process import InProcess, answer
from nextflow_data.scorers.limits import max_body
from nextflow_data.scorers.loading import ScorerUnusable, find
from nextflow_data.scorers.pool import Pool
from nextflow_data.scorers.protocol import Answer, Question, Way, answer_body, canonical, parse_request

DRAINED = 1 << 30
"""Bytes of a body that is too long which are still read, and thrown away, so that its sender gets to read why; ours."""
CONNECTIONS = 64
"""Most connections at once; ours: each may hold a body. One more is closed at once, and comes back later."""
IDLE_S = 60.0
"""Seconds without a byte after which a connection is closed; ours."""


class App:
    """What handlers of requests share: a way to ask, and its limits. `problem`: why nothing can be asked."""

    def __init__(self, way: Way | None, config: ScorerConfig, problem: str = "") -> None:
        self.way, self.problem, self.wait_s = way, problem, config.timeout_s
        self.slots = threading.BoundedSemaphore(way.slots if way is not None else 1)
        self.max_body = max_body(config)


class Handler(BaseHTTPRequestHandler):
    """One connection, request by request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    timeout = IDLE_S
    app: ClassVar[App]

    def do_GET(self) -> None:
        """/health"""
        if self.path != "/health":
            self._refuse(404, f"there is no {self.path}; ask /health or /score")
        elif self.app.way is None:
            self._refuse(503, self.app.problem)
        else:
            self._send(200, canonical(self.app.way.description).encode())

    def do_POST(self) -> None:
        """/score"""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or len(length) > 18:
            self.close_connection = True
            self._refuse(411, "a Content-Length is needed")
        elif int(length) > self.app.max_body:
            self.close_connection = True
            left = min(int(length), DRAINED)
            while left > 0 and (read := self.rfile.read(min(left, 1 << 16))):
                left -= len(read)
            self._refuse(413, f"a body of {length} bytes; at most {self.app.max_body} are taken")
        else:
            body = self.rfile.read(int(length))
            if len(body) < int(length):
                self.close_connection = True
            elif self.path != "/score":
                self._refuse(404, f"there is no {self.path}; ask /health or /score")
            elif self.app.way is None:
                self._refuse(503, self.app.problem)
            else:
                self._score(body, self.app.way)

    def _score(self, body: bytes, way: Way) -> None:
        meant = self.headers.get("If-Match", "*").strip('"')
        if meant not in ("*", way.description["identity"]):
            self._refuse(
                412, f"this is {way.description['scorer']} {way.description['version']}, not the scorer that was meant"
            )
            return
        try:
            request = parse_request(body)
        except (ValueError, TypeError) as error:
            self._refuse(400, str(error))
            return
        if not self.app.slots.acquire(timeout=self.app.wait_s):
            self._refuse(503, "busy")
            return
        try:
            found = way.ask(request)
        finally:
            self.app.slots.release()
        self._send(*answer_body(found))

    def _refuse(self, status: int, why: str) -> None:
        self._send(status, canonical({"failed": "refused", "why": why}).encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Not a line a request."""


class Server(ThreadingHTTPServer):
    """Listens at once, answers once it is served. ThreadingHTTPServer with a bound on its threads."""

    daemon_threads = True
    request_queue_size = CONNECTIONS

    def __init__(self, place: tuple[str, int], app: App) -> None:
        super().__init__(place, type("Handler", (Handler,), {"app": app}))
        self._room = threading.BoundedSemaphore(CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for a connection, where there is room."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The connection, to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nothing to say; another error is."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Here:
    """The scorer in this very thread: what a pool's process does. Its time-outs are its parent's."""

    slots = 1

    def __init__(self, config: ScorerConfig) -> None:
        self._config, self._loop = config, asyncio.new_event_loop()
        scorer = find(config.scorer, config.settings)
        self.description = scorer.description

        async def made() -> Any:
            return scorer.make()

        self._score = self._loop.run_until_complete(made())

    def ask(self, request: Question) -> Answer:
        return self._loop.run_until_complete(answer(self._score, request, self._config))

    def close(self) -> None:
        self._loop.close()


def main() -> None:
    """Serve until stopped. What is wrong with the scorer is told before the port is opened."""
    parser = argparse.ArgumentParser(prog="python -m nextflow_data.scorers.serve", description="Serve one scorer.")
    parser.add_argument("scorer", help="its name, or the path of a .py file")
    parser.add_argument("--settings", default="{}", help="its settings, as JSON")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: a free one, which is printed")
    parser.add_argument("--workers", type=int, default=1, help="processes; 0: this one, for async scorers")
    parser.add_argument(
        "--concurrency", type=int, default=64, help="most requests at once, of an async scorer in this process"
    )
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one answer")
    parser.add_argument("--max-image-bytes", type=int, default=ScorerConfig.model_fields["max_image_bytes"].default)
    parser.add_argument("--max-image-pixels", type=int, default=ScorerConfig.model_fields["max_image_pixels"].default)
    parser.add_argument("--channel", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    try:
        config = ScorerConfig(
            scorer=given.scorer,
            settings=json.loads(given.settings),
            workers=max(1, given.workers),
            concurrency=given.concurrency,
            timeout_s=given.timeout,
            max_image_bytes=given.max_image_bytes,
            max_image_pixels=given.max_image_pixels,
        )
    except ValueError as error:
        raise SystemExit(f"settings: {error}") from None
    if given.channel is not None:
        _serve_parent(config, given.channel)
    else:
        _serve_all(config, (given.host, given.port), given.workers)


def _serve_all(config: ScorerConfig, place: tuple[str, int], workers: int) -> None:
    try:
        way: Way = Pool(config) if workers else InProcess(find(config.scorer, config.settings), config)
    except ScorerUnusable as error:
        raise SystemExit(str(error)) from None
    try:
        with Server(place, App(way, config)) as server:
            name = f"{way.description['scorer']} {way.description['version']}"
            print(f"serving {name} at http://{place[0]}:{server.server_address[1]}", flush=True)
            server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        way.close()


def _serve_parent(config: ScorerConfig, channel: int) -> None:
    """On an inherited socket, in this thread, until the parent is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        app = App(_Here(config), config)
    except ScorerUnusable as error:
        app = App(None, config, str(error))
    with socket.socket(fileno=channel) as parent:
        type("Handler", (Handler,), {"app": app, "timeout": None, "disable_nagle_algorithm": False})(
            parent, ("parent", 0), None
        )  # type: ignore[arg-type]


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
