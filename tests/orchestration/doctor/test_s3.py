"""The S3 check against a server that grants, denies, or ignores what conditional writes rest on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from nextflow_orchestration.doctor.check import Case, Diagnosis, State
from nextflow_orchestration.doctor.checks.s3 import rights
from nextflow_orchestration.recipes.run import Recipe, load_recipe

LIST = b'<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><KeyCount>0</KeyCount></ListBucketResult>'
DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
MISSING = b"<Error><Code>NoSuchKey</Code><Message>nothing is there</Message></Error>"
EXISTS = b"<Error><Code>PreconditionFailed</Code><Message>it is there</Message></Error>"


class Server(ThreadingHTTPServer):
    """As much of S3 as the check asks for. `conditions`: If-None-Match is honoured; `denied`: methods that are refused."""

    def __init__(self, conditions: bool, denied: tuple[str, ...]) -> None:
        self.conditions, self.denied = conditions, denied
        self.objects: dict[str, bytes] = {}
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None: ...

    def _send(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        name = self.path.partition("?")[0]
        if self.command in self.server.denied:
            self._send(403, DENIED)
        elif self.command == "PUT":
            if self.server.conditions and self.headers.get("If-None-Match") == "*" and name in self.server.objects:
                self._send(412, EXISTS)
                return
            self.server.objects[name] = body
            self._send(200)
        elif self.command == "DELETE":
            self.server.objects.pop(name, None)
            self._send(204)
        elif "list-type" in self.path:
            self._send(200, LIST)
        elif name not in self.server.objects:
            self._send(404, MISSING)
        else:
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            self._send(206, self.server.objects[name][int(first) : int(last) + 1])

    do_GET = do_PUT = do_DELETE = _handle


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Diagnosis, Server]]]:
    """The check's finding, and the server afterwards."""
    servers: list[Server] = []
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "rosebud", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    for name in ("AWS_ENDPOINT_URL_S3", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def asked(
        conditions: bool = True, denied: tuple[str, ...] = (), recipe: Recipe | None = None
    ) -> tuple[Diagnosis, Server]:
        server = Server(conditions, denied)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        return rights(Case(Path("."), None if recipe else "s3://bucket/some/prefix", recipe)), server

    yield asked
    for server in servers:
        server.shutdown()
        server.server_close()


def test_rights_are_tried_and_nothing_is_left(ask: Callable[..., tuple[Diagnosis, Server]]) -> None:
    found, server = ask()
    assert found.state is State.OK and "list, put, put-if-absent, range, delete at s3://bucket/some/prefix" in found.found
    assert server.objects == {}


def test_a_server_that_ignores_conditions_is_found_out(ask: Callable[..., tuple[Diagnosis, Server]]) -> None:
    found, server = ask(conditions=False)
    assert found.state is State.BAD and "If-None-Match is not honoured (fine: list, put, range, delete)" in found.found
    assert "two writers" in found.advice and server.objects == {}


def test_denied_rights_are_named(ask: Callable[..., tuple[Diagnosis, Server]]) -> None:
    found, _ = ask(denied=("DELETE",))
    assert "delete: AccessDenied Access Denied (fine: list, put, put-if-absent, range)" in found.found
    assert "rights" in found.advice


def test_what_a_recipe_writes_and_reads_is_tried(ask: Callable[..., tuple[Diagnosis, Server]], tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("name: r\nroot: s3://bucket/run\ninput: [s3://other/a/1.warc.gz, s3://other/a/2.warc.gz]\n")
    found, server = ask(recipe=load_recipe(file))
    assert "list, put, put-if-absent, range, delete at s3://bucket/run" in found.found
    assert found.state is State.BAD and "get: " in found.found and "at s3://other/a/2.warc.gz" in found.found
    assert server.objects == {} and "1.warc.gz" not in found.found
    # A lock on a disk stands for what the store lacks.
    locked = load_recipe(file, [f"storage.lock={tmp_path}", "input=sample"])
    assert ask(conditions=False, recipe=load_recipe(file, ["input=sample"]))[0].state is State.BAD
    assert ask(conditions=False, recipe=locked)[0].state is State.OK


def test_nobody_there_and_no_address(monkeypatch: pytest.MonkeyPatch, ask: Callable[..., tuple[Diagnosis, Server]]) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    found = rights(Case(Path("."), "s3://bucket"))
    assert found.state is State.BAD and "127.0.0.1:9" in found.found and "AWS_ENDPOINT_URL" in found.advice
    assert rights(Case(Path("."))).state is State.UNNEEDED
    assert rights(Case(Path("."), "bucket")).state is State.BAD
