"""One HTTP exchange with a deadline that holds, whatever the other end does.

A socket's time-out begins anew with every byte, so an answer that comes in drops would never be late. Here a timer shuts the
connection down. The cost: a short-lived thread for each request, some 0.1 ms.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from time import monotonic

from nextflow_data.scorers.protocol import MAX_ANSWER_BYTES


class Broken(Exception):
    """There was no whole answer: no connection, one that broke, or not HTTP."""


class Late(Exception):
    """The time was up."""


class Inherited(HTTPConnection):
    """HTTP over a socket that is there already, to a process of ours."""

    def __init__(self, channel: socket.socket) -> None:
        super().__init__("pool")
        self.sock = channel

    def connect(self) -> None:
        """Never: a broken one is done with."""
        raise ConnectionError("the channel is closed")


def exchange(
    connection: HTTPConnection, method: str, path: str, seconds: float, body: bytes | None = None, identity: str = ""
) -> tuple[int, bytes]:
    """Status and body, of at most MAX_ANSWER_BYTES. After Broken and Late the connection is closed."""
    headers: Mapping[str, str] = {"Content-Type": "application/json"} if body is not None else {}
    if identity:
        headers = {**headers, "If-Match": f'"{identity}"'}
    end = monotonic() + seconds
    if connection.sock is None:
        try:
            connection.timeout = seconds
            connection.connect()
        except OSError as error:
            connection.close()
            raise Broken(f"{type(error).__name__}: {error}") from error
    deadline = _Deadline(connection.sock)
    timer = threading.Timer(end - monotonic(), deadline.cut)
    timer.daemon = True
    timer.start()
    try:
        connection.sock.settimeout(None)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        # With a length, what is missing of it is an error; read(n) would not tell.
        bounded = response.length is not None and response.length <= MAX_ANSWER_BYTES
        data = response.read() if bounded else response.read(MAX_ANSWER_BYTES + 1)
        if len(data) > MAX_ANSWER_BYTES:
            raise HTTPException(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
    except (OSError, HTTPException) as error:
        connection.close()
        if deadline.passed():
            raise Late(f"{seconds:g} s") from error
        raise Broken(f"{type(error).__name__}: {error}") from error
    finally:
        timer.cancel()
    if deadline.passed():
        connection.close()
        raise Late(f"{seconds:g} s")
    return response.status, data


class _Deadline:
    """Shuts a socket down, unless the exchange is over by then; which of both came first is settled under a lock."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel, self._lock = channel, threading.Lock()
        self._over = self._cut = False

    def cut(self) -> None:
        with self._lock:
            if not self._over:
                self._cut = True
                with suppress(OSError):
                    self._channel.shutdown(socket.SHUT_RDWR)

    def passed(self) -> bool:
        """Ends it; whether it was cut."""
        with self._lock:
            self._over = True
            return self._cut
