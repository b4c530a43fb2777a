"""Files that must be whole: put in place at once, hashed while they are written, compared with what is known.

The one way in which anything here writes a file that somebody else may read: beside it, under a name of this attempt's own,
then renamed over it. `durable` also waits for the disk; that is its cost, and its point. What is merely looked at (a
heartbeat, a page) does without.
"""

from __future__ import annotations

import hashlib
import io
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict


class Hashed(TypedDict):
    """Bytes and hex sha256 of a file."""

    size: int
    sha256: str


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_problem(path: Path, size: int, sha256: str) -> str | None:
    """What is wrong with a file that should have `size` bytes and this hash, in words to follow its name; None: nothing."""
    if not path.is_file():
        return "is missing"
    found = path.stat().st_size
    if found != size:
        return f"has {found} bytes, the manifest says {size}"
    return None if file_sha256(path) == sha256 else "is damaged: its sha256 is not the manifest's"


class HashingFile(io.FileIO):
    """A new file, hashed while it is written; leaving the context syncs it and lets the page cache forget it.

    `write` raises nothing: torch's serialiser does not survive an exception of its file. The first error is kept, what comes
    after it is dropped, and `check` or the end of the context raises it with the file's name.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path, "wb")
        self.path = path
        self.size = 0
        self._hash = hashlib.sha256()
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        """All bytes of the buffer `data`; returns how many."""
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view) and self._error is None:
                done += super().write(view[done:])
        except OSError as error:
            self._error = error
        self._hash.update(view)
        self.size += len(view)
        return len(view)

    def check(self) -> None:
        """Raise the OSError that a write met, if any."""
        if self._error is not None:
            raise OSError(self._error.errno, self._error.strerror, str(self.path)) from self._error

    @property
    def entry(self) -> Hashed:
        """What was written."""
        return {"size": self.size, "sha256": self._hash.hexdigest()}

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                self.check()
                os.fsync(self.fileno())
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(self.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as failed:
            self._error = failed
            self.check()
        finally:
            self.close()


def write_hashed(path: Path, data: bytes) -> Hashed:
    """A new file of `data`, synced. Raises OSError with its name."""
    with HashingFile(path) as file:
        file.write(data)
    return file.entry


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """A path beside `path` to write to; on leaving without an error it takes `path`'s place at once, else it is removed.

    The folder must be there. Two at a time do not meet: each attempt has a name of its own.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.writing")
    try:
        yield beside
        if durable:
            with beside.open("rb") as written:
                os.fsync(written.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def replace_file(path: Path, content: bytes | str, durable: bool = True) -> None:
    """`content` (a text as UTF-8) in place of what `path` holds, at once; its folder must be there. Raises OSError."""
    with replacing(path, durable) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


def sync_folder(path: Path) -> None:
    """Have the folder's list of names on the disk."""
    number = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
