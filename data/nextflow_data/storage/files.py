"""What is done with a file wherever it lies: its state, ranges of it, writing it whole, copying it to a disk and back.

Every function takes an `AnyPath`. Requests to a store are tried again with growing pauses and jitter, and a body that is cut
is read on from where it broke; a PutObject carries a checksum. Whatever must have one winner is one PutObject with
If-None-Match, never multipart, whose completion lets several win (see `put_if_absent`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nextflow_data.common.whole_files import replace_file, replacing
from nextflow_data.storage import cache, conditional, local_files
from nextflow_data.storage.config import StorageConfig
from nextflow_data.storage.errors import ChangedObject as ChangedObject
from nextflow_data.storage.errors import Conflict as Conflict
from nextflow_data.storage.errors import StoreError as StoreError
from nextflow_data.storage.store_path import AnyPath, StorePath, has_scheme
from nextflow_data.storage.stores.base import FileState

_RANGE = 8 << 20
"""Bytes of a request when a whole file is downloaded."""


def any_path(text: str | AnyPath, config: StorageConfig | None = None) -> AnyPath:
    """A `StorePath` for an address with a scheme, else a `Path` (also for file://). A path stays as it is."""
    if isinstance(text, Path | StorePath):
        return text
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return StorePath(text, config or StorageConfig()) if has_scheme(text) else Path(text)


def state_of(path: AnyPath) -> FileState:
    """Raises FileNotFoundError, PermissionError, StoreError."""
    return local_files.state(path) if isinstance(path, Path) else path.store.state(path.address)


def read_range(path: AnyPath, offset: int, length: int, expected: FileState | None = None) -> bytes:
    """`length` bytes from `offset`, fewer where the file ends before. With `expected`, ChangedObject if it is another."""
    if isinstance(path, Path):
        return local_files.read_range(path, offset, length, expected)
    return path.store.read(path.address, offset, length, expected)


def put(path: AnyPath, content: bytes | str) -> None:
    """The whole file at once, in place of what was there: for what may be replaced (a page, a recipe's copy)."""
    content = content.encode() if isinstance(content, str) else content
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    else:
        path.store.put(path.address, content)


def put_if_absent(path: AnyPath, content: bytes) -> bool:
    """Whether this call made the file: of any number at once, exactly one did. False leaves what is there as it is.

    An answer that was lost and asked again is not taken for another's: each call puts an id of its own into the object's
    metadata, which is read back then. So False means that somebody else made it, with whatever bytes.
    Raises ConditionalWritesMissing for a store that takes no notice of If-None-Match, where no lock is set."""
    if isinstance(path, Path):
        return local_files.put_if_absent(path, content)
    return conditional.put_if_absent(path, content)


def upload(local: Path, path: AnyPath, sha256: str) -> None:
    """A finished local file to `path`, which nobody overwrites: where a file with this hash is there, nothing is done;
    where another is, Conflict. A file above 5 GiB must have its hash in its name on S3 (`stores.s3_upload` says why)."""
    if isinstance(path, Path):
        local_files.upload(local, path, sha256)
    else:
        path.store.upload(local, path.address, sha256)


def download(path: AnyPath, local: Path) -> None:
    """The whole file to a disk, whole or not at all, in ranges read at once."""
    local.parent.mkdir(parents=True, exist_ok=True)
    state = state_of(path)
    with replacing(local, durable=False) as beside:
        _ranges_to(path, state, beside)


def local_copy(path: AnyPath, expected: FileState | None = None) -> Path:
    """A file or folder of this machine with what `path` holds: itself where it is local, else a copy in the cache
    (`StorageConfig.cache`, bounded), which is made at the first call and found by ETag at later ones. It stays there at
    least until this process has asked for 256 others. With `expected`, ChangedObject if it is another."""
    if isinstance(path, Path):
        if expected is not None:
            expected.check(local_files.state(path), path)
        return path
    try:
        state = state_of(path)
    except FileNotFoundError:
        files = dict(list_files(path)) if expected is None else {}
        if not files:
            raise
        return _folder_copy(path, files)
    if expected is not None:
        expected.check(state, path)
    identity = f"{path.address}\n{_identity(state)}"
    return cache.copy_of(path.config, identity, path.name, state.size, lambda beside: _ranges_to(path, state, beside))


def list_files(folder: AnyPath, pattern: str = "**/*") -> Iterator[tuple[AnyPath, FileState]]:
    """Files under a folder with their states, in order of name: one listing on a store, no request a file. The listing is
    whole before the first is given (some 300 bytes a file), because stores differ in their order."""
    if isinstance(folder, StorePath):
        yield from folder.found(pattern)
        return
    for path in sorted(folder.glob(pattern), key=lambda path: path.relative_to(folder).as_posix()):
        if path.is_file():
            yield path, local_files.state(path)


def _folder_copy(folder: StorePath, files: dict[AnyPath, FileState]) -> Path:
    begin = len(folder.address) + 1
    named = {str(path)[begin:]: (path, state) for path, state in files.items()}
    outside = next((name for name in named if ".." in name.split("/") or "" in name.split("/")), None)
    if outside is not None:
        raise StoreError(f"{folder}/{outside}: an object of this name cannot be a file in a folder")
    identity = "\n".join([folder.address, *(f"{name} {_identity(state)}" for name, (_, state) in named.items())])

    def make(beside: Path) -> None:
        for name, (path, state) in named.items():
            (beside / name).parent.mkdir(parents=True, exist_ok=True)
            _ranges_to(path, state, beside / name)

    size = sum(state.size for state in files.values())
    return cache.copy_of(folder.config, identity, folder.name or "bucket", size, make)


def _identity(state: FileState) -> str:
    return state.version or state.etag or f"{state.size} {state.modified_ns}"


def _ranges_to(path: AnyPath, state: FileState, local: Path) -> None:
    """Writes a file that is in this state, in ranges read at once."""
    number = os.open(local, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)

    def one(offset: int) -> None:
        part = read_range(path, offset, _RANGE, state)
        if len(part) != min(_RANGE, state.size - offset):
            raise StoreError(f"{path}: {len(part)} bytes came at {offset} where {min(_RANGE, state.size - offset)} lie")
        written = 0
        while written < len(part):
            written += os.pwrite(number, part[written:], offset + written)

    at_once = 1 if isinstance(path, Path) else path.store.requests_at_once
    try:
        with ThreadPoolExecutor(min(at_once, 1 + state.size // _RANGE)) as pool:
            for _ in pool.map(one, range(0, state.size, _RANGE)):
                pass
    finally:
        os.close(number)
