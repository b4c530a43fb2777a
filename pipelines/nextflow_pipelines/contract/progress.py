"""What units say they have done while they run (images, say), and how fast: for the eyes and the metrics file only.

A unit adds to its own numbers (`UnitOutput.progress`), which a worker writes to a small file under `_work/` at most once a
second; the driver adds them up. Files and not Spark's accumulators, because those arrive only when a task has ended: a stage
of a few long tasks would show nothing. Nothing here is part of an output or a fingerprint; the files go with `_work/`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from nextflow_data.common.whole_files import replace_file

INTERVAL = 1.0
"""Seconds between two writings of a unit's file, and between two readings of all."""
MOST_TIME = 0.05
"""Share of its time that the driver spends on reading at most: with thousands of units it reads less often."""


def _file(folder: Path, unit: str) -> Path:
    return folder / f"{unit}.json"


@dataclass
class UnitProgress:
    """One unit's numbers, written into `folder`, which must exist: once the stage is committed there is none, and then
    nothing is written."""

    folder: Path
    unit: str
    amounts: dict[str, int] = field(default_factory=dict)
    _written: float = 0.0

    def add(self, **amounts: int) -> None:
        """Adds to the unit's numbers; writes them where the last writing is a second ago."""
        for name, amount in amounts.items():
            self.amounts[name] = self.amounts.get(name, 0) + amount
        if time.monotonic() - self._written >= INTERVAL:
            self.write()

    def write(self) -> None:
        """Writes the numbers, if there are any. A full disk is no reason to fail: they are only shown."""
        if not self.amounts:
            return
        self._written = time.monotonic()
        with suppress(OSError):
            replace_file(_file(self.folder, self.unit), json.dumps(self.amounts), durable=False)


@dataclass
class Meter:
    """Adds up the numbers of a job's units, from the moment it is made. `amounts` are those of the last reading."""

    folder: Path
    units: frozenset[str]
    amounts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    _started: float = field(default_factory=lambda: time.monotonic())
    _next: float = 0.0

    def read(self) -> None:
        """Reads every file of the job's units."""
        began = time.monotonic()
        self.amounts = _total(self.folder, self.units)
        now = time.monotonic()
        self.seconds = now - self._started
        self._next = now + max(INTERVAL, (now - began) / MOST_TIME)

    def note(self, words: str) -> str:
        """`words` and the numbers with their speeds, read anew when it is time: "encoding: 1,234 images, 56.7 images/s"."""
        if time.monotonic() >= self._next:
            self.read()
        said = [f"{amount:,} {name}, {speed(amount, self.seconds):.1f} {name}/s" for name, amount in self.amounts.items()]
        return ": ".join([words, *([", ".join(said)] if said else [])])


def speed(amount: int, seconds: float) -> float:
    """Per second."""
    return amount / max(seconds, 1e-9)


def _total(folder: Path, units: Iterable[str]) -> dict[str, int]:
    wanted = {_file(folder, unit).name for unit in units}
    total: dict[str, int] = {}
    with suppress(OSError):
        for entry in sorted(wanted & set(os.listdir(folder))):
            for name, amount in json.loads((folder / entry).read_bytes()).items():
                total[name] = total.get(name, 0) + amount
    return total
