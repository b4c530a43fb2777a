"""What a store does at one request, done on a local disk: a file that appears whole, and only where there was none."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from nextflow_data.common.whole_files import file_sha256, sync_folder
from nextflow_data.storage.errors import Conflict
from nextflow_data.storage.stores.base import FileState, changed

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def state(path: Path) -> FileState:
    """State of a file."""
    return _state(path, path.stat())


def read_range(path: Path, offset: int, length: int, expected: FileState | None) -> bytes:
    """A range of a file that is still the one expected."""
    with path.open("rb") if expected is None else open_bound(path, expected) as stream:
        stream.seek(offset)
        return stream.read(length)


def open_bound(path: Path, expected: FileState) -> BinaryIO:
    """A file that is in this state when it is opened; what is written into it later is not seen."""
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        raise changed(path) from None
    try:
        expected.check(_state(path, os.fstat(stream.fileno())), path)
    except BaseException:
        stream.close()
        raise
    return stream


def put_if_absent(path: Path, content: bytes) -> bool:
    """Whether this call made the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return False
    with _appearing(path) as (beside, appear):
        beside.write_bytes(content)
        return appear()


def upload(local: Path, path: Path, sha256: str) -> None:
    """See `files.upload`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with _appearing(path) as (beside, appear):
            shutil.copyfile(local, beside)
            if appear():
                return
    there = file_sha256(path)
    if there != sha256:
        raise Conflict(
            f"{path}: another file is there already (sha256 {there}; ours has {sha256}); nothing was overwritten. "
            "Move one of the two away, or use another root"
        )


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Alone among all who lock this file. A kill frees it at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    number = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


@contextmanager
def _appearing(path: Path) -> Iterator[tuple[Path, Callable[[], bool]]]:
    """A path beside `path` to write to, and what puts it in place if there is none: by a link, which has one winner."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.writing")

    def appear() -> bool:
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        try:
            os.link(beside, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with locked(path.with_name(".lock")):
                if path.exists():
                    return False
                beside.rename(path)
        sync_folder(path.parent)
        return True

    try:
        yield beside, appear
    finally:
        beside.unlink(missing_ok=True)


def _state(path: Path, found: os.stat_result) -> FileState:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder, not a file", str(path))
    return FileState(found.st_size, found.st_mtime_ns)
