"""What units say they have done while they run (images, say), and how fast: for the eyes and the metrics file only.

A unit adds to its own numbers (`UnitOutput.progress`), which a worker writes to a small file under `_work/` at most once a
second; the driver adds them up. Files and not Spark's accumulators, because those arrive only when a task has ended: a stage
of a few long tasks would show nothing. On a store each is an object that is replaced every ten seconds, and found by a
listing, which may be old. Nothing here is part of an output or a fingerprint; the files go with `_work/`.
"""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from nextflow_data.common.whole_files import replace_file
from nextflow_data.storage.files import FileState, list_files, put
from nextflow_data.storage.store_path import AnyPath

from nextflow_pipelines.contract.stage import REQUESTS

INTERVAL = 1.0
"""Seconds between two writings of a unit's file, and between two readings of all."""
STORE_INTERVAL = 10.0
"""The same on a store, where each is a request."""
MOST_TIME = 0.05
"""Share of its time that the driver spends on reading at most: with thousands of units it reads less often."""


def _interval(folder: AnyPath) -> float:
    return INTERVAL if isinstance(folder, Path) else STORE_INTERVAL


@dataclass
class UnitProgress:
    """One unit's numbers, written into `folder`, which on a disk must exist: once the stage is committed there is none, and
    then nothing is written."""

    folder: AnyPath
    unit: str
    amounts: dict[str, int] = field(default_factory=dict)
    _written: float = 0.0

    def add(self, **amounts: int) -> None:
        """Adds to the unit's numbers; writes them where the last writing is an interval ago."""
        for name, amount in amounts.items():
            self.amounts[name] = self.amounts.get(name, 0) + amount
        if time.monotonic() - self._written >= _interval(self.folder):
            self.write()

    def write(self) -> None:
        """Writes the numbers, if there are any. A full disk or a deaf store is no reason to fail: they are only shown."""
        if not self.amounts:
            return
        self._written = time.monotonic()
        file = self.folder / f"{self.unit}.json"
        with suppress(OSError):
            if isinstance(file, Path):
                replace_file(file, json.dumps(self.amounts), durable=False)
            else:
                put(file, json.dumps(self.amounts))


@dataclass
class Meter:
    """Adds up the numbers of a job's units, from the moment it is made. `amounts` are those of the last reading."""

    folder: AnyPath
    units: frozenset[str]
    amounts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    _read: dict[str, tuple[FileState, dict[str, int]]] = field(default_factory=dict)
    """Of a store: what each object held in which state."""
    _started: float = field(default_factory=lambda: time.monotonic())
    _next: float = 0.0

    def read(self) -> None:
        """Reads every file of the job's units."""
        began = time.monotonic()
        self.amounts = {}
        with suppress(OSError):
            for amounts in self._of_disk(self.folder) if isinstance(self.folder, Path) else self._of_store(self.folder):
                for name, amount in amounts.items():
                    self.amounts[name] = self.amounts.get(name, 0) + amount
        now = time.monotonic()
        self.seconds = now - self._started
        self._next = now + max(_interval(self.folder), (now - began) / MOST_TIME)

    def note(self, words: str) -> str:
        """`words` and the numbers with their speeds, read anew when it is time: "encoding: 1,234 images, 56.7 images/s"."""
        if time.monotonic() >= self._next:
            self.read()
        said = [f"{amount:,} {name}, {speed(amount, self.seconds):.1f} {name}/s" for name, amount in self.amounts.items()]
        return ": ".join([words, *([", ".join(said)] if said else [])])

    def _of_disk(self, folder: Path) -> list[dict[str, int]]:
        wanted = {f"{unit}.json" for unit in self.units}
        return [json.loads((folder / entry).read_bytes()) for entry in sorted(wanted & set(os.listdir(folder)))]

    def _of_store(self, folder: AnyPath) -> list[dict[str, int]]:
        listed = [one for one in list_files(folder, "*.json") if one[0].name.removesuffix(".json") in self.units]
        new = [(path, state) for path, state in listed if self._read.get(path.name, (None,))[0] != state]
        with ThreadPoolExecutor(REQUESTS) as pool:
            for (path, state), content in zip(new, pool.map(lambda one: one[0].read_bytes(), new), strict=True):
                self._read[path.name] = state, json.loads(content)
        return [self._read[path.name][1] for path, _ in listed]


def speed(amount: int, seconds: float) -> float:
    """Per second."""
    return amount / max(seconds, 1e-9)
