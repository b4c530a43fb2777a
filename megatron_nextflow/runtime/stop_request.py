"""A request to stop (SIGTERM, SIGINT), on whichever process it arrives."""

from __future__ import annotations

import signal
from types import FrameType

import torch
import torch.distributed as dist
from nextflow_data.common.signal_handlers import Handlers


class Stop(Handlers):
    """Remembers a signal that asks to stop, while the context lasts; the handlers before it are put back after."""

    def __init__(self) -> None:
        super().__init__((signal.SIGTERM, signal.SIGINT))
        self.signal = 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Remembers the signal; the loop asks about it before each step."""
        self.signal = number

    def anywhere(self, device: torch.device) -> bool:
        """Whether any process was told to stop; the same answer on all."""
        flag = torch.tensor(self.signal, device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)
