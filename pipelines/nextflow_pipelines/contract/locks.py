"""One run at a time makes a stage: whoever comes meanwhile waits, and then finds what was committed.

On a disk a `flock` on `<root>/.locks/<stage>.lock`: the kernel drops it with the process that held it, so a file left behind
by a kill means nothing. On a store a lease (`contract.leases`), or for a store without conditional writes a `flock` in a
folder on a disk that all drivers share (`storage.lock`). The cost: who waits does so for as long as the holder lives, and is
told each second for whom.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nextflow_data.storage.conditional import supports_conditional_writes
from nextflow_data.storage.store_path import AnyPath

from nextflow_pipelines.contract.leases import lease
from nextflow_pipelines.contract.stage import StageBusy

LOCKS = ".locks"
LOOK_SECONDS = 1.0
"""Seconds between two looks at a lock that another holds."""
Waiting = Callable[[str], None]
"""Told each time a lock is found held, in words."""


@contextmanager
def stage_lock(root: AnyPath, name: str, waiting: Waiting | None = None) -> Iterator[bool]:
    """Holds the lock of a stage's folder `name`; gives whether it had to be waited for. Without `waiting`, StageBusy at once
    where another live process holds it. Raises ConditionalWritesMissing for a store that can keep no lease, where the
    settings name no folder for locks."""

    def held(holder: str) -> None:
        if waiting is None:
            raise StageBusy(f"{name} is being made by {holder}: wait for it or stop it, then run again")
        waiting(f"waiting for {holder}, which is making this stage")
        time.sleep(LOOK_SECONDS)

    if isinstance(root, Path):
        lock = _flock(root / LOCKS / f"{name}.lock", held)
    else:
        place = root / LOCKS / f"{name}.json"
        if root.config.lock is None or supports_conditional_writes(place):
            lock = lease(place, held)
        else:
            named = hashlib.sha256(str(place).encode()).hexdigest()[:16]
            lock = _flock(root.config.lock / f"{name}-{named}.lock", held)
    with lock as waited:
        yield waited


@contextmanager
def _flock(path: Path, held: Callable[[str], None]) -> Iterator[bool]:
    path.parent.mkdir(parents=True, exist_ok=True)
    waited = False
    with path.open("a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                held(file.read().strip() or "another process")
                waited = True
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield waited
