"""Which process is slow: each measures its own work, apart from the others', and the measurements are compared.

The time of a step cannot say it: in a synchronous job every process waits for the slowest in the next collective, so all of
them measure the slowest one's time. So each process times what involves no other: a fixed product of matrices (a device
that is throttled, shared or broken) and the reading of its own batches (a slow disk or network). The cost: some milliseconds
each time, and no sight of a slow link between two processes.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from megatron_nextflow.runtime.agreement import of_all

REPEATS = 5
T = TypeVar("T")


@dataclass(frozen=True)
class Straggler:
    """The slowest process: `factor` times the median in `what` it does."""

    rank: int
    what: str
    factor: float


def slowest(probes: list[float], feeding: list[float], step: float, limit: float) -> Straggler | None:
    """The process beyond `limit` times the median, or None. In seconds, by rank: the probe, and feeding in a step of `step`.

    Feeding is judged by what it does to the step: twice the median of one millisecond is nothing in a second. The excess
    over the median is taken out of the step, and the factor is the step with it to the step without. Of an even number of
    processes the lower median is taken, so that of two one can be slow.
    """
    usual, usual_feeding = statistics.median_low(probes), statistics.median_low(feeding)
    computing = [Straggler(rank, "computing", probe / usual) for rank, probe in enumerate(probes)]
    reading = [
        Straggler(rank, "reading its batches", step / max(step - max(seconds - usual_feeding, 0.0), 1e-9))
        for rank, seconds in enumerate(feeding)
    ]
    worst = max([*computing, *reading], key=lambda one: one.factor)
    return worst if worst.factor > limit else None


def probe(device: torch.device) -> float:
    """Seconds that this process's device takes for a fixed product of matrices; the median of a few."""
    size, dtype = (4096, torch.bfloat16) if device.type == "cuda" else (256, torch.float32)
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    times = []
    for _ in range(REPEATS + 1):
        torch.cuda.synchronize()
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


class Stragglers:
    """Compares the processes; every process makes one and calls `compare` at the same steps."""

    def __init__(self, device: torch.device, limit: float) -> None:
        self.device = device
        self.limit = limit
        self.hosts = of_all(socket.gethostname())
        self._forget()

    def _forget(self) -> None:
        self.feeding, self.steps, self.began = 0.0, 0, time.perf_counter()

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """The batches of one step, with the time that each takes to come added up."""
        self.steps += 1
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.feeding += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def compare(self) -> Straggler | None:
        """The slowest process since the last comparison, where it is beyond the limit; the same answer on all."""
        step, feeding = (time.perf_counter() - self.began) / self.steps, self.feeding / self.steps
        mine = torch.tensor([probe(self.device), feeding, step], dtype=torch.float64, device=self.device)
        found = [torch.empty_like(mine) for _ in self.hosts]
        dist.all_gather(found, mine)
        probes, feedings, steps = (list(column) for column in zip(*(row.tolist() for row in found), strict=True))
        self._forget()
        return slowest(probes, feedings, statistics.median_low(steps), self.limit)
