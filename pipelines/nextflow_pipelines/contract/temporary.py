"""Where a unit whose stage is on a store writes: a folder of this machine's disk for temporary files (TMPDIR).

Its process holds a `flock` on it, which the kernel drops with the process, so that what a kill has left is known, also over
containers that share a disk, and goes when the next process begins. The cost: a file descriptor a unit at work.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

_PREFIX = "nextflow-unit-"
_YOUNG_SECONDS = 60.0
"""A folder this young may not have its lock yet."""


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder, removed in the end. Raises OSError where the disk is full."""
    _sweep(os.getpid())
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    number = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(number)


@lru_cache(maxsize=1)
def _sweep(process: int) -> None:
    """Once a process: removes what killed ones have left."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime < _YOUNG_SECONDS:
                continue
            number = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(number)
