"""Copies of a store's files on this machine's disk, for what must be a file: bounded, shared by processes, found by ETag.

An entry is a folder named by the hash of address and state, which appears whole by a rename. Who uses an entry holds a lock
on it for as long as its process lives (a kill frees it), so that none is taken away under a reader; when the folder is to
grow beyond its bound, those that nobody holds go, the longest unused first. The cost: a file descriptor an entry in use, of
which a process keeps the last 256.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from nextflow_data.storage.config import StorageConfig
from nextflow_data.storage.errors import StoreError, StoreRefused
from nextflow_data.storage.local_files import locked

_MAKING = ".making"
_LOCKS = ".locks"
_MOST_HELD = 256
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
_held: dict[Path, int] = {}
_keeping = threading.Lock()


def folder(config: StorageConfig) -> Path:
    """Where this machine's copies lie."""
    return config.cache or Path(tempfile.gettempdir()) / f"nextflow-cache-{os.getuid()}"


def copy_of(config: StorageConfig, identity: str, name: str, size: int, make: Callable[[Path], None]) -> Path:
    """The copy with this identity, made by `make(path)` where there is none; `size` bytes in all, its last part `name`.

    Raises StoreError where the bound or the disk has no room for it."""
    root = folder(config)
    entry = root / hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    if size > config.cache_bytes:
        raise StoreRefused(f"{name}: a copy of {size} bytes is more than storage.cache_bytes ({config.cache_bytes}) allows")
    try:
        (root / _LOCKS).mkdir(parents=True, exist_ok=True, mode=0o700)
        _hold(root, entry)
        if not entry.exists():
            with locked(root / _LOCKS / f"{entry.name}{_MAKING}"):
                if not entry.exists():
                    _make(root, entry, name, size, config.cache_bytes, make)
        os.utime(entry)
    except OSError as error:
        if error.errno not in _FULL or isinstance(error, StoreError):
            raise
        raise StoreError(
            error.errno,
            f"there is no room for a copy of {name} ({size} bytes) in {root}; free some, or set storage.cache to a folder "
            "of another disk",
        ) from error
    return entry / name


def _make(root: Path, entry: Path, name: str, size: int, most: int, make: Callable[[Path], None]) -> None:
    beside = entry.with_name(entry.name + _MAKING)
    _room(root, most - size)
    for last in (False, True):
        shutil.rmtree(beside, ignore_errors=True)
        try:
            beside.mkdir()
            make(beside / name)
            beside.rename(entry)
            return
        except OSError as error:
            shutil.rmtree(beside, ignore_errors=True)
            if last or error.errno not in _FULL:
                raise
        for unused in _unused(root):
            shutil.rmtree(unused, ignore_errors=True)


def _room(root: Path, most: int) -> None:
    """Takes away what is longest unused until the folder holds at most `most` bytes."""
    total = sum(_size(entry) for entry in _entries(root))
    unused = _unused(root)
    while total > most:
        entry = next(unused, None)
        if entry is None:
            raise StoreError(f"{root}: all copies in it are in use; raise storage.cache_bytes")
        total -= _size(entry)
        shutil.rmtree(entry, ignore_errors=True)


def _unused(root: Path) -> Iterator[Path]:
    """Entries that nobody holds, longest unused first; while one is given, nobody can take hold of it."""
    for entry in sorted(_entries(root), key=_used):
        number = _lock_file(root, entry)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            yield entry
        finally:
            os.close(number)


def _entries(root: Path) -> list[Path]:
    return [entry for entry in root.iterdir() if not entry.name.startswith(".")]


def _used(entry: Path) -> float:
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _size(entry: Path) -> int:
    total = 0
    for place, _, names in os.walk(entry):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _hold(root: Path, entry: Path) -> None:
    """Keeps others from taking the entry away, for as long as this process lives."""
    with _keeping:
        number = _held.pop(entry, None)
        if number is None:
            number = _lock_file(root, entry)
            fcntl.flock(number, fcntl.LOCK_SH)
        _held[entry] = number
        if len(_held) > _MOST_HELD:
            os.close(_held.pop(next(iter(_held))))


def _lock_file(root: Path, entry: Path) -> int:
    return os.open(root / _LOCKS / entry.name.removesuffix(_MAKING), os.O_RDWR | os.O_CREAT, 0o600)
