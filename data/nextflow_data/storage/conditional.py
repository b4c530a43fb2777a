"""Writes with a condition: the commit, and leases. Each is one request that has one winner.

A store that takes no notice of conditions would let two writers both believe that they were first. So each process asks
a bucket once, by writing a file of its own twice; such a store is refused, unless the settings name a folder on a disk that
all drivers share, whose locks then say who is first. The cost: three requests a process and bucket.
"""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
from contextlib import AbstractContextManager

from nextflow_data.storage.errors import ConditionalWritesMissing, StoreError
from nextflow_data.storage.local_files import locked
from nextflow_data.storage.store_path import StorePath
from nextflow_data.storage.stores.base import FileState

_known: dict[tuple[object, ...], bool] = {}
_asking = threading.Lock()


def put_if_absent(path: StorePath, content: bytes) -> bool:
    """Whether this call made the object. Raises ConditionalWritesMissing."""
    if supports_conditional_writes(path):
        return path.store.put_if(path.address, content, None).done
    with _instead(path):
        if path.is_file():
            return False
        path.store.put(path.address, content)
        return True


def replace_if(path: StorePath, content: bytes, etag: str) -> str | None:
    """The new ETag, if `content` took the place of the object with this ETag; None where that is gone or another's.

    An ETag may be a hash of the content: what is to be told apart must differ in a byte."""
    if supports_conditional_writes(path):
        return path.store.put_if(path.address, content, etag).etag
    with _instead(path):
        try:
            if path.store.state(path.address).etag != etag:
                return None
        except FileNotFoundError:
            return None
        path.store.put(path.address, content)
        return path.store.state(path.address).etag


def read_with_state(path: StorePath) -> tuple[bytes, FileState, float]:
    """The whole object, its state, and the store's clock when it answered, seconds since the epoch."""
    return path.store.whole_with_time(path.address)


def supports_conditional_writes(path: StorePath) -> bool:
    """Whether the store of `path`, which must be writable, honours If-None-Match; asked once a process and bucket."""
    key = (path.address.split("/")[2], path.config.s3, os.getpid())
    with _asking:
        if key not in _known:
            probe = path.parent / f".conditional-writes-{uuid.uuid4().hex}"
            try:
                path.store.put_if(probe.address, b"first", None)
                _known[key] = not path.store.put_if(probe.address, b"second", None).done
            except (StoreError, PermissionError) as error:  # told of the file that was to be written
                raise type(error)(str(error).replace(probe.address, path.address)) from error
            finally:
                _forget(probe)
        return _known[key]


def _forget(probe: StorePath) -> None:
    try:
        probe.unlink(missing_ok=True)
    except (StoreError, PermissionError):  # who may write but not delete leaves a file of six bytes
        return


def _instead(path: StorePath) -> AbstractContextManager[None]:
    if path.config.lock is None:
        raise ConditionalWritesMissing(
            f"{path}: this store takes no notice of If-None-Match, so two runs could both commit; use a store that has "
            "conditional writes, or set storage.lock to a folder on a disk that all drivers share"
        )
    return locked(path.config.lock / hashlib.sha256(path.address.encode()).hexdigest())
