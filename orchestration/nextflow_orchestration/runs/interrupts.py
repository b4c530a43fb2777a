"""Ctrl-C that cannot be lost.

Python turns SIGINT into KeyboardInterrupt wherever the program happens to be, and some libraries catch everything there: an
interrupt that falls into the start of the Spark gateway, say, is swallowed and the run would go on for minutes. So the
signal is also remembered, and asked about between stages.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self


class Interrupts:
    """Remembers SIGINT while entered. Outside the main thread, where Python allows no handlers, it never has any."""

    def __init__(self) -> None:
        self._seen = False
        self._previous: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._seen = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raises KeyboardInterrupt if there was one."""
        if self._seen:
            raise KeyboardInterrupt
