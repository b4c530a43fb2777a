"""How source files are opened: by a range opener that is given, so that a source is read from a disk or from a store alike.

A reference's `uri` says what reads it and where it lies: `kind:place`, or a place alone, which a WARC reader reads (all
references were so before there were other sources). So an image can be read from its reference and nothing else; no table
of kinds must be found and kept in step with it. The cost: the kind is in every row. A place may be a path within the run's
root or an address with a scheme (`jsonl:s3://bucket/rows.jsonl`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

DEFAULT_KIND = "warc"
"""Kind of a uri that names none."""

_KIND = re.compile(r"([a-z][a-z0-9_-]*):(?!//)")


def uri_of(kind: str, place: str) -> str:
    """The uri by which a source of that kind refers to a file."""
    return place if kind == DEFAULT_KIND else f"{kind}:{place}"


def kind_and_place(uri: str) -> tuple[str, str]:
    """What `uri_of` was given."""
    found = _KIND.match(uri)
    return (found[1], uri[found.end() :]) if found else (DEFAULT_KIND, uri)


class RangeOpener(Protocol):
    """Reads source files by uri. Every method raises OSError where a file is not there, cannot be read or has a scheme that
    this opener does not read. Openers are pickled to workers: an implementation connects when it is first used."""

    def open(self, uri: str) -> BinaryIO:
        """A seekable stream that stands at 0, made for reading on from start to end; the caller closes it."""
        ...

    def read(self, uri: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, fewer where the file ends before."""
        ...

    def read_many(self, uri: str, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes]:
        """`read` of each (offset, length) in the order given, which is best the file's; ahead of what is taken."""
        ...

    def size(self, uri: str) -> int:
        """Bytes of the whole file."""
        ...


class LocalFiles:
    """Files of this machine. With `root`, uris are a run's references, and places that are relative lie under it; without,
    uris are paths as they are."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root

    def open(self, uri: str) -> BinaryIO:
        return self._path(uri).open("rb")

    def read(self, uri: str, offset: int, length: int) -> bytes:
        with self.open(uri) as stream:
            stream.seek(offset)
            return stream.read(length)

    def read_many(self, uri: str, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes]:
        return (self.read(uri, offset, length) for offset, length in ranges)

    def size(self, uri: str) -> int:
        return self._path(uri).stat().st_size

    def _path(self, uri: str) -> Path:
        place = (uri if self.root is None else kind_and_place(uri)[1]).removeprefix("file://")
        if "://" in place:
            raise OSError(f"{uri}: only local paths can be opened")
        return Path(place) if self.root is None else self.root / place
