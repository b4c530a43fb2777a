"""What a process has to tell that is no reason to stop: said wherever it is met, told by the process that reports.

It may be met in a thread, and on another process than the one that reports. So it waits here until the processes next agree
on a batch, and goes along with that. The cost: it is told up to a step late.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["copied", "not-copied", "storage"]


@dataclass(frozen=True)
class Notice:
    """A row of events.jsonl that is to be: `details` are what the kind adds to it."""

    kind: Kind
    message: str
    details: dict[str, Any] = field(default_factory=dict)


class Notices:
    """Those of one process; any of its threads may add."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Notice] = []

    def add(self, kind: Kind, message: str, **details: Any) -> None:
        """To be told; it is in the process's own log at once."""
        logging.getLogger(__name__).warning("%s: %s", kind, message)
        with self._lock:
            self._waiting.append(Notice(kind, message, details))

    def take(self) -> list[Notice]:
        """Those that were added since the last call."""
        with self._lock:
            taken, self._waiting = self._waiting, []
        return taken

    def __bool__(self) -> bool:
        return bool(self._waiting)
