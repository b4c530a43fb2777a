"""Ctrl-C that cannot be lost.

Python turns SIGINT into KeyboardInterrupt wherever the program happens to be, and some libraries catch everything there: an
interrupt that falls into the start of the Spark gateway, say, is swallowed and the run would go on for minutes. So the
signal is also remembered, and asked about between stages.
"""

from __future__ import annotations

import signal
from types import FrameType

from nextflow_data.common.signal_handlers import Handlers


class Interrupts(Handlers):
    """Remembers SIGINT while entered. Outside the main thread, where Python allows no handlers, it never has any."""

    def __init__(self) -> None:
        super().__init__((signal.SIGINT,))
        self._seen = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Remembers the interrupt and raises it, as Python would."""
        self._seen = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raises KeyboardInterrupt if there was one."""
        if self._seen:
            raise KeyboardInterrupt
