"""A request to stop (SIGTERM, SIGINT), on whichever process it arrives."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist


class Stop:
    """Remembers a signal that asks to stop, while the context lasts; the handlers before it are put back after."""

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def anywhere(self, device: torch.device) -> bool:
        """Whether any process was told to stop; the same answer on all."""
        flag = torch.tensor(self.signal, device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)
