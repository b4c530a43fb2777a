"""What every kind of store can be asked. Addresses are whole and verbatim: nothing in them is decoded or made shorter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nextflow_data.storage.errors import ChangedObject, StoreRefused


@dataclass(frozen=True)
class FileState:
    """What is known of a file without reading it. `etag` and `version` only of a store, `modified_ns` of both."""

    size: int
    modified_ns: int
    etag: str | None = None
    version: str | None = None

    def check(self, found: FileState, address: object) -> None:
        """Raises ChangedObject if a file in state `found` is not the one in this state: by ETag where both have one."""
        if self.etag and found.etag:
            same = self.etag == found.etag
        else:
            same = (self.size, self.modified_ns) == (found.size, found.modified_ns)
        if not same:
            raise changed(address)


def changed(address: object) -> ChangedObject:
    """The error of a file that is another than was bound."""
    return ChangedObject(
        f"{address}: it was changed after this run had bound it. What was made of other files is kept; run again, "
        "and the file is bound anew"
    )


@dataclass(frozen=True)
class Written:
    """What a write that had a condition came to. `done`: the condition held and the content is there."""

    done: bool
    etag: str | None = None


class Store(ABC):
    """Files of one kind of store. Every method raises FileNotFoundError, PermissionError or StoreError."""

    requests_at_once: int
    read_ahead: int

    @abstractmethod
    def state(self, address: str) -> FileState:
        """State of an object."""

    @abstractmethod
    def read(self, address: str, offset: int, length: int, expected: FileState | None) -> bytes:
        """A range, fewer bytes where the object ends before; ChangedObject if it is not in state `expected`."""

    @abstractmethod
    def under(self, address: str, names: str = "") -> Iterator[tuple[str, FileState]]:
        """All objects under a folder whose path there begins with `names`, as addresses, in the store's order."""

    @abstractmethod
    def children(self, address: str) -> Iterator[str]:
        """Addresses of the objects and folders right under a folder, in the store's order."""

    def whole(self, address: str) -> bytes:
        """The whole object."""
        state = self.state(address)
        return self.read(address, 0, state.size, state)

    def whole_with_time(self, address: str) -> tuple[bytes, FileState, float]:
        """The whole object, its state, and the store's clock when it answered, seconds since the epoch."""
        raise self._read_only(address)

    def noted_sha256(self, address: str) -> str | None:
        """The sha256 that was noted of the object when it was uploaded; None where none was."""
        return None

    def any_under(self, address: str) -> bool:
        """Whether there is an object under a folder."""
        return next(self.under(address), None) is not None

    def put(self, address: str, content: bytes) -> None:
        """The whole object, in place of what is there."""
        raise self._read_only(address)

    def put_if(self, address: str, content: bytes, etag: str | None) -> Written:
        """The whole object, if there is none (`etag` None) or if there is this one: one request, one winner."""
        raise self._read_only(address)

    def upload(self, local: Path, address: str, sha256: str) -> None:
        """A file whose name nobody else's content has; Conflict otherwise."""
        raise self._read_only(address)

    def delete(self, address: str) -> None:
        """Deletes the object, whether it is there or not."""
        raise self._read_only(address)

    def _read_only(self, address: str) -> StoreRefused:
        return StoreRefused(f"{address}: this kind of address can only be read; write to a disk or to s3://")
