"""A scorer on servers: the third way, as a client sees it.

Servers are asked in turn, over connections that stay open. What cannot be reached, or answers 5xx, is asked again, the next
address first, after pauses that double and are drawn at random, so that many clients do not come back at once; until the
patience is over. A time-out is not retried: it would double the load of a server that is too slow. Each request names the
scorer it means, so a server that comes back as another one is not taken for the first.
"""

from __future__ import annotations

import itertools
import json
import random
import threading
from collections.abc import Callable
from functools import partial
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.parse import urlsplit

from nextflow_data.scorers.config import ScorerConfig
from nextflow_data.scorers.exchange import Broken, Late, exchange
from nextflow_data.scorers.limits import too_long
from nextflow_data.scorers.loading import ScorerUnusable
from nextflow_data.scorers.protocol import PROTOCOL, Answer, Question, failure, parse_answer, request_body

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
"""Pauses between attempts, in seconds, each drawn from half to one and a half of these; ours."""


class Served:
    """One scorer at one or more addresses. Raises ScorerUnusable where none answers, or they are not one scorer."""

    def __init__(self, config: ScorerConfig) -> None:
        self._config = config
        self.slots = config.concurrency
        self._turn = itertools.count()
        self._local = threading.local()
        self.description = self._agreed()

    def ask(self, request: Question) -> Answer:
        """The answer; failed ones of servers that cannot be reached come when the patience is over."""
        if problem := too_long(request, self._config):
            return failure("bad-input", problem)
        body, identity = request_body(request), str(self.description["identity"])
        try:
            status, data = _patiently(
                lambda: self._exchange(next(self._turn), "POST", "/score", body, identity), self._config.patience_s
            )
        except Late as error:
            return failure("timed-out", str(error))
        except Broken as error:
            return failure("unreachable", str(error))
        return parse_answer(status, data)

    def close(self) -> None:
        """Nothing was started. Connections end with the threads that used them."""

    def _exchange(
        self, turn: int, method: str, path: str, body: bytes | None = None, identity: str = ""
    ) -> tuple[int, bytes]:
        address = self._config.servers[turn % len(self._config.servers)]
        connections: dict[str, HTTPConnection] = self._local.__dict__.setdefault("connections", {})
        parts = urlsplit(address)
        if address not in connections:
            kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
            connections[address] = kind(str(parts.hostname), parts.port)
        place = parts.path.rstrip("/") + path
        try:
            status, data = exchange(connections[address], method, place, self._config.timeout_s, body, identity)
        except Broken as error:
            raise Broken(f"{address}: {error}") from None
        if status >= 500:
            raise Broken(f"{address}: status {status}: {data[:300].decode(errors='replace')}")
        return status, data

    def _agreed(self) -> dict[str, Any]:
        """What the servers say they are; those that do not answer now are held to it when they do."""
        found: dict[str, dict[str, Any]] = {}
        problems = []
        for turn, address in enumerate(self._config.servers):
            try:
                _, data = _patiently(partial(self._exchange, turn, "GET", "/health"), self._config.patience_s)
                found[address] = described(data)
            except (Broken, Late) as error:
                problems.append(str(error))
            except ValueError as error:
                problems.append(f"{address}: {error}")
        if not found:
            raise ScorerUnusable(f"no server of scorer {self._config.scorer} can be used: {'; '.join(problems)}")
        (address, first), *others = found.items()
        for other, description in others:
            if description["identity"] != first["identity"]:
                raise ScorerUnusable(f"{address} and {other} are not one scorer: {_words(first)} and {_words(description)}")
        hold_to(first, self._config, address)
        return first


def described(body: bytes) -> dict[str, Any]:
    """What /health answered. Raises ValueError where it is no scorer's."""
    try:
        description = json.loads(body)
    except ValueError:
        description = None
    kinds = {"scorer": str, "version": str, "settings": dict, "devices": str, "identity": str}
    if not isinstance(description, dict) or not all(isinstance(description.get(key), kind) for key, kind in kinds.items()):
        raise ValueError(f"/health does not hold {', '.join(kinds)}")
    identity = description["identity"]
    if not identity or not identity.isascii() or not identity.isprintable() or '"' in identity:
        raise ValueError(f"an identity of other than printable ASCII without quotes: {identity!r}")
    if description.get("protocol") != PROTOCOL:
        raise ValueError(f"speaks protocol {description.get('protocol')}, not {PROTOCOL}")
    return description


def hold_to(description: dict[str, Any], config: ScorerConfig, where: str) -> None:
    """Raise ScorerUnusable where what answers is not what was asked for: its name, its version, a setting."""
    name = Path(config.scorer).name
    told = dict(description["settings"])
    wrong = [f"it is {description['scorer']}, not {name}"] if description["scorer"] != name else []
    if config.version is not None and description["version"] != config.version:
        wrong.append(f"its version is {description['version']}, not {config.version}")
    if config.way == "server":
        asked = json.loads(json.dumps(config.settings))
        wrong += [f"its {key} is {told.get(key)}, not {value}" for key, value in asked.items() if told.get(key) != value]
    if wrong:
        raise ScorerUnusable(f"scorer {config.scorer} at {where}: {'; '.join(wrong)}")


def _patiently(attempt: Callable[[], tuple[int, bytes]], patience: float) -> tuple[int, bytes]:
    end, pause = monotonic() + patience, FIRST_PAUSE_S
    while True:
        try:
            return attempt()
        except Broken:
            left = end - monotonic()
            if left <= 0:
                raise
            sleep(min(left, pause * random.uniform(0.5, 1.5)))
            pause = min(2 * pause, LONGEST_PAUSE_S)


def _words(description: dict[str, Any]) -> str:
    return f"{description['scorer']} {description['version']} {description['settings']}"
