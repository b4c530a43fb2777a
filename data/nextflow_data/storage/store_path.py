"""A file or folder of a store, with as much of `pathlib.Path` as this project uses; `AnyPath` is either of the two.

So that one code reads a disk and a bucket, what is local stays a `Path` and what is not is a `StorePath`, which is spelled
alike. It carries the settings by which its store is reached, so it can be sent to a worker and needs nothing there; it
connects when it is first used. The cost: what is not in both may not be used of an `AnyPath`, and folders of a store do not
exist: they are made by writing into them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, cast
from urllib.parse import parse_qsl, urlsplit

from nextflow_data.common.errors import RequestError
from nextflow_data.storage.config import StorageConfig
from nextflow_data.storage.patterns import literal, matches, parts_of
from nextflow_data.storage.reading import buffered
from nextflow_data.storage.stores.base import FileState, Store
from nextflow_data.storage.stores.chosen import store_of

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SAME = {"s3a": "s3", "s3n": "s3"}
_SIGNED = frozenset(
    {"x-amz-signature", "x-amz-security-token", "x-goog-signature", "signature", "sig", "token", "access_token"}
)


@dataclass(frozen=True, order=True)
class StorePath:
    """`address` has a scheme (s3, https, http, gs, …) and no final slash; what follows the host is taken letter for
    letter. Errors are OSErrors: FileNotFoundError, PermissionError, or StoreError, each in a sentence that names the
    address. An address that holds a credential is refused (RequestError), because addresses are written into manifests."""

    address: str
    config: StorageConfig = field(default=StorageConfig(), compare=False, repr=False)

    def __post_init__(self) -> None:
        scheme, _, rest = self.address.partition("://")
        scheme = _SAME.get(scheme.lower(), scheme.lower())
        if not rest.strip("/"):
            raise RequestError(f"{self.address}: the address names nothing")
        if scheme != "s3":
            _without_secrets(f"{scheme}://{rest}")
        object.__setattr__(self, "address", f"{scheme}://{rest.rstrip('/') if scheme == 's3' else rest.removesuffix('/')}")

    def __str__(self) -> str:
        return self.address

    def __truediv__(self, name: str | Path) -> StorePath:
        return StorePath(f"{self.address}/{name}", self.config)

    @property
    def name(self) -> str:
        """The last part; of a bucket "", as of a disk's root."""
        return self.address.rpartition("/")[2] if self.address.count("/") > 2 else ""

    @property
    def parent(self) -> StorePath:
        """All but the last part; of a bucket itself."""
        return StorePath(self.address.rpartition("/")[0], self.config) if self.address.count("/") > 2 else self

    @property
    def suffix(self) -> str:
        """The end of the name, as in .json."""
        return Path(self.name).suffix

    def open(self, mode: Literal["rb"] = "rb") -> BinaryIO:
        """A seekable stream at 0. All that it reads is of one version of the object: ChangedObject otherwise."""
        return self.open_bound(self.store.state(self.address))

    def open_bound(self, state: FileState) -> BinaryIO:
        """The same of an object that is known to be in `state`: no request is made before something is read."""
        store, address = self.store, self.address
        return cast(
            BinaryIO,
            buffered(lambda offset, length: store.read(address, offset, length, state), state.size, store.read_ahead),
        )

    def read_bytes(self) -> bytes:
        """The whole object."""
        return self.store.whole(self.address)

    def read_text(self, encoding: str = "utf-8") -> str:
        """The whole object as text."""
        return self.read_bytes().decode(encoding)

    def exists(self) -> bool:
        """Whether there is an object, or one under this as a folder."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether there is an object."""
        try:
            self.store.state(self.address)
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Whether there is an object under this as a folder."""
        return self.store.any_under(self.address)

    def iterdir(self) -> Iterator[StorePath]:
        """Objects and folders right under this. What was just written may be missing: never rest correctness on it."""
        return (StorePath(child, self.config) for child in self.store.children(self.address))

    def glob(self, pattern: str) -> Iterator[StorePath]:
        """Objects under this whose path matches, as `Path.glob` does (`*`, `?`, `[…]`, `**`); in order of name."""
        return (path for path, _ in self.found(pattern))

    def found(self, pattern: str) -> list[tuple[StorePath, FileState]]:
        """Objects under this that match with their states, in order of name (stores differ in theirs)."""
        parts, begin = parts_of(pattern), len(self.address) + 1
        entries = self.store.under(self.address, literal(pattern))
        return [
            (StorePath(address, self.config), state)
            for address, state in sorted(entries, key=lambda entry: entry[0])
            if matches(address[begin:].split("/"), parts)
        ]

    def unlink(self, missing_ok: bool = False) -> None:
        """Deletes the object."""
        if not missing_ok:
            self.store.state(self.address)
        self.store.delete(self.address)

    @property
    def store(self) -> Store:
        """What reaches it, one in a process."""
        return store_of(self.address, self.config)


def has_scheme(text: str) -> bool:
    """Whether a text is an address and not a path."""
    return _SCHEME.match(text) is not None


def _without_secrets(address: str) -> None:
    parts = urlsplit(address)
    named = {name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    if "@" in parts.netloc or named & _SIGNED:
        raise RequestError(
            f"{parts.scheme}://{parts.hostname}{parts.path}: the address holds a credential, which would be written into "
            "manifests; leave it out, and give credentials by the environment"
        )


AnyPath = Path | StorePath
