"""A client against servers of any make, and our server against clients of any make."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from nextflow_data.scorers.config import ScorerConfig
from nextflow_data.scorers.in_process import InProcess
from nextflow_data.scorers.loading import ScorerUnusable, find
from nextflow_data.scorers.protocol import MAX_ANSWER_BYTES, Question, failure
from nextflow_data.scorers.scoring import open_way
from nextflow_data.scorers.serve import App, Server

HEALTH = {"protocol": 1, "scorer": "foreign", "version": "3", "settings": {"level": 2}, "devices": "cpu", "identity": "f3"}
Reply = tuple[int, bytes] | Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def foreign(replies: list[Reply], health: dict[str, Any] = HEALTH) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server written from the protocol's text; its address, and what it was asked. Gives the replies one by one."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/base/health"
            self._send(200, json.dumps(health).encode())

        def do_POST(self) -> None:
            assert self.path == "/base/score" and self.headers["If-Match"] == '"f3"'
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            reply = replies.pop(0)
            if callable(reply):
                reply(self)
            else:
                self._send(*reply)

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/base/", asked
        finally:
            server.shutdown()
            thread.join()


def _config(*servers: str, **more: Any) -> ScorerConfig:
    return ScorerConfig(scorer="foreign", settings={"level": 2}, way="server", servers=servers, **more)


def _break(handler: BaseHTTPRequestHandler) -> None:
    """Half an answer."""
    handler.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"sco')


def _drip(handler: BaseHTTPRequestHandler) -> None:
    """An answer that never ends and never stops."""
    end = threading.Event()
    try:
        while not end.wait(0.02):
            handler.wfile.write(b"X")
    except OSError:
        pass


def test_a_server_in_other_words() -> None:
    replies: list[Reply] = [
        (200, b'{"score": 0.5, "words": "sch\\u00f6n"}'),
        (503, b""),
        _break,
        (500, b"<html>"),
        (200, b'{"score": 1}'),
        (422, b'{"failed": "raised", "why": "too dark"}'),
        (200, b'{"score": Infinity}'),
        (200, b"x" * (MAX_ANSWER_BYTES + 1)),
        (418, b""),
        _drip,
    ]
    with foreign(replies) as (address, asked):
        way = open_way(_config(address))
        assert way.ask(Question(b"\xff\xd8\xff", "t", b"GIF89a")).values == {"score": 0.5, "words": "schön"}
        assert asked == [{"image": "/9j/", "text": "t", "reference": {"image": "R0lGODlh"}, "extra": {}}]
        assert way.ask(Question()).score == 1.0 and len(asked) == 5, "three times in vain"
        assert way.ask(Question()) == failure("raised", "too dark")
        assert way.ask(Question()).failed == "not-an-answer"
        way = open_way(_config(address, patience_s=0, timeout_s=0.5))
        assert way.ask(Question()).failed == "unreachable", "more than an answer may have"
        assert way.ask(Question()).failed == "refused"
        assert way.ask(Question()) == failure("timed-out", "0.5 s")
        assert not replies


def test_servers_in_turn() -> None:
    """Two of three answer: each gets half, and nothing is lost."""
    with socket.socket() as closed, foreign([(200, b'{"score": 1}')] * 3) as (one, _):
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with foreign([(200, b'{"score": 2}')] * 3) as (two, _):
            way = open_way(_config(one, two, nobody, patience_s=1))
            scores = [way.ask(Question()).score for _ in range(6)]
        assert sorted(score or 0 for score in scores) == [1, 1, 1, 2, 2, 2]
        with pytest.raises(ScorerUnusable, match="ConnectionRefusedError"):
            open_way(_config(nobody, patience_s=0))


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"protocol": 2}, "speaks protocol 2"),
        ({"scorer": "other"}, "it is other, not foreign"),
        ({"settings": {"level": 4}}, "its level is 4, not 2"),
        ({"version": "4"}, "its version is 4, not 3"),
        ({"version": None}, "/health does not hold"),
        ({"identity": 'a"\r\nb'}, "identity"),
    ],
)
def test_servers_that_are_not_what_was_asked_for(changed: dict[str, Any], why: str) -> None:
    with foreign([], {**HEALTH, **changed}) as (address, _), pytest.raises(ScorerUnusable, match=why):
        open_way(_config(address, version="3", patience_s=0))


def test_servers_that_are_not_one_scorer() -> None:
    another = {**HEALTH, "identity": "f4"}
    with (
        foreign([]) as (one, _),
        foreign([], another) as (two, _),
        pytest.raises(ScorerUnusable, match="are not one scorer"),
    ):
        open_way(_config(one, two))


def test_clients_of_any_make() -> None:
    """What they may not send is refused, and the server goes on."""
    config = ScorerConfig(scorer="sharpness", max_image_bytes=3)
    way = InProcess(find("sharpness", {}), config)
    with Server(("127.0.0.1", 0), App(way, config)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()

        def send(head: str, body: bytes = b"") -> tuple[int, dict[str, Any]]:
            with socket.create_connection(("127.0.0.1", server.server_address[1])) as connection:
                connection.sendall(f"{head}\r\nHost: x\r\nConnection: close\r\n\r\n".encode() + body)
                answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
            return int(answer.split()[1]), json.loads(answer.partition(b"\r\n\r\n")[2])

        try:
            too_long = b" " * ((1 << 22) + 2000)
            score, told = "POST /score HTTP/1.1", {}
            for head, body, status in (
                (score, b"", 411),
                (f"{score}\r\nContent-Length: -1", b"", 411),
                (f"{score}\r\nContent-Length: {len(too_long)}", too_long, 413),
                (f"{score}\r\nContent-Length: 3", b"{,}", 400),
                (f"{score}\r\nContent-Length: 50000", b"[" * 50_000, 400),
                (f'{score}\r\nIf-Match: "another"\r\nContent-Length: 2', b"{}", 412),
                ("POST /else HTTP/1.1\r\nContent-Length: 2", b"{}", 404),
                ("GET /score HTTP/1.1", b"", 404),
                (f"{score}\r\nContent-Length: 2", b"{}", 422),
                ("GET /health HTTP/1.1", b"", 200),
            ):
                found, told = send(head, body)
                assert found == status and ("failed" in told) == (status != 200), (head, told)
            assert told == find("sharpness", {}).description
        finally:
            server.shutdown()
            thread.join()
            way.close()
