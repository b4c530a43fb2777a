"""Signals, taken and given back: the only module that calls `signal.signal`.

Who takes a signal for a while (a training, a run, a server at Ctrl-C) is a `Handlers` and gives it back, because the
process may go on afterwards: in a notebook, a Prefect worker, a test. What a program decides for its whole life is a
function of one word. Python allows handlers in the main thread alone; in another, a `Handlers` does nothing, and whoever
owns the main thread decides. The cost: a process whose main thread is not ours is never asked to stop by us.
"""

from __future__ import annotations

import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self


class Handlers(ABC):
    """Takes the signals `numbers` while entered, for `handle`; the handlers before are put back, whatever ends it."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = tuple(numbers)
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if _may_handle():
            self._before = {number: signal.signal(number, self.handle) for number in self._numbers}
        return self

    def __exit__(self, *_: object) -> None:
        _put_back(self._before)

    @abstractmethod
    def handle(self, number: int, frame: FrameType | None) -> None:
        """Called in the main thread, between two steps of Python, with a signal that arrived."""


@contextmanager
def kept(*numbers: int) -> Iterator[None]:
    """Puts back the handlers of `numbers` afterwards: for a library that takes signals and never gives them back."""
    before = {number: signal.getsignal(number) for number in numbers} if _may_handle() else {}
    try:
        yield
    finally:
        _put_back(before)


def ignore(*numbers: int) -> None:
    """From now on the signals are ignored, also by programs that this process starts: they inherit it."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def swallow(*numbers: int) -> None:
    """From now on nothing comes of the signals here; programs that this process starts get their own default again."""
    for number in numbers:
        signal.signal(number, lambda *_: None)


def default(*numbers: int) -> None:
    """From now on the signals do what the system does by itself; SIGINT then ends the process without a traceback."""
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)


def _may_handle() -> bool:
    return threading.current_thread() is threading.main_thread()


def _put_back(before: Mapping[int, Any]) -> None:
    for number, handler in before.items():
        if handler is not None:  # None: a handler in C, which Python can neither name nor set
            signal.signal(number, handler)
