"""What is done with a file wherever it lies: its state, ranges of it, writing it whole, copying it to a disk and back.

Every function takes an `AnyPath`. Requests to a store are tried again with growing pauses and jitter, and a body that is cut
is read on from where it broke; a PutObject carries a checksum. Whatever must have one winner is one PutObject with
If-None-Match, never multipart, whose completion lets several win (see `put_if_absent`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nextflow_data.storage.config import StorageConfig
from nextflow_data.storage.store_path import AnyPath


class StoreError(OSError):
    """A store did not do what was asked; the message says what, where, and what to do."""


class ChangedObject(OSError):
    """A file is no longer the one that was bound: another ETag, size or time than expected."""


@dataclass(frozen=True)
class FileState:
    """What is known of a file without reading it. `etag` and `version` only of a store, `modified_ns` of both."""

    size: int
    modified_ns: int
    etag: str | None = None
    version: str | None = None


def any_path(text: str | AnyPath, config: StorageConfig | None = None) -> AnyPath:
    """A `StorePath` for an address with a scheme, else a `Path` (also for file://). A path stays as it is."""
    raise NotImplementedError


def state_of(path: AnyPath) -> FileState:
    """Raises FileNotFoundError, PermissionError, StoreError."""
    raise NotImplementedError


def read_range(path: AnyPath, offset: int, length: int, expected: FileState | None = None) -> bytes:
    """`length` bytes from `offset`, fewer where the file ends before. With `expected`, ChangedObject if it is another."""
    raise NotImplementedError


def put(path: AnyPath, content: bytes | str) -> None:
    """The whole file at once, in place of what was there: for what may be replaced (a page, a recipe's copy)."""
    raise NotImplementedError


def put_if_absent(path: AnyPath, content: bytes) -> bool:
    """Whether this call made the file: of any number at once, exactly one did. False leaves what is there as it is.

    An answer that was lost and asked again is not taken for another's: what is there is read back and compared, so False
    means other bytes are there, or equal ones by somebody else."""
    raise NotImplementedError


def upload(local: Path, path: AnyPath, sha256: str) -> None:
    """A finished local file to `path`, which nobody overwrites: where a file with this hash is there, nothing is done;
    where another is, Conflict."""
    raise NotImplementedError


class Conflict(StoreError):
    """Another file is where one was to be put."""


def download(path: AnyPath, local: Path) -> None:
    """The whole file to a disk, whole or not at all, in ranges read at once."""
    raise NotImplementedError


def local_copy(path: AnyPath, expected: FileState | None = None) -> Path:
    """A file or folder of this machine with what `path` holds: itself where it is local, else a copy in the cache
    (`StorageConfig.cache`, bounded), which is made at the first call and found by ETag at later ones."""
    raise NotImplementedError


def list_files(folder: AnyPath, pattern: str = "**/*") -> Iterator[tuple[AnyPath, FileState]]:
    """Files under a folder with their states, in order of name: one listing on a store, no request a file."""
    raise NotImplementedError
