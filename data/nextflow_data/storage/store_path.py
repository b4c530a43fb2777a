"""A file or folder of a store, with as much of `pathlib.Path` as this project uses; `AnyPath` is either of the two.

So that one code reads a disk and a bucket, what is local stays a `Path` and what is not is a `StorePath`, which is spelled
alike. It carries the settings by which its store is reached, so it can be sent to a worker and needs nothing there; it
connects when it is first used. The cost: what is not in both may not be used of an `AnyPath`, and folders of a store do not
exist: they are made by writing into them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

from nextflow_data.storage.config import StorageConfig


@dataclass(frozen=True, order=True)
class StorePath:
    """`address` has a scheme (s3, https, http, gs, …) and no final slash. Errors are OSErrors: FileNotFoundError,
    PermissionError, or StoreError, each in a sentence that names the address."""

    address: str
    config: StorageConfig = field(default=StorageConfig(), compare=False, repr=False)

    def __str__(self) -> str:
        return self.address

    def __truediv__(self, name: str | Path) -> StorePath:
        raise NotImplementedError

    @property
    def name(self) -> str:
        """The last part."""
        raise NotImplementedError

    @property
    def parent(self) -> StorePath:
        """All but the last part."""
        raise NotImplementedError

    def open(self, mode: Literal["rb"] = "rb") -> BinaryIO:
        """A seekable stream at 0. All that it reads is of one version of the object: ChangedObject otherwise."""
        raise NotImplementedError

    def read_bytes(self) -> bytes:
        """The whole object."""
        raise NotImplementedError

    def read_text(self, encoding: str = "utf-8") -> str:
        """The whole object as text."""
        raise NotImplementedError

    def exists(self) -> bool:
        """Whether there is an object, or one under this as a folder."""
        raise NotImplementedError

    def is_file(self) -> bool:
        """Whether there is an object."""
        raise NotImplementedError

    def is_dir(self) -> bool:
        """Whether there is an object under this as a folder."""
        raise NotImplementedError

    def iterdir(self) -> Iterator[StorePath]:
        """Objects and folders right under this. What was just written may be missing: never rest correctness on it."""
        raise NotImplementedError

    def glob(self, pattern: str) -> Iterator[StorePath]:
        """Objects under this whose path matches, as `Path.glob` does (`*`, `?`, `[…]`, `**`); in order of name."""
        raise NotImplementedError

    def unlink(self, missing_ok: bool = False) -> None:
        """Deletes the object."""
        raise NotImplementedError


AnyPath = Path | StorePath
