"""Source files by content: how a reference stays true on another machine and in another place.

A document's references name `sources/<first 16 digits of the file's sha256>-<its name>`, with the kind of source before it,
except for WARC (`nextflow_data.common.range_opener`). So nothing that is hashed holds a path, rows of a file have the same
ids on a disk and in a bucket, a file that moved is found again by running once more, and a file that changed under its name
is another source. Under the root, `<reference>.json` says where the file lies and in which state it was read (`Place`);
every later reading is bound to that state. Earlier versions left a symbolic link in its place, which is followed still.

The cost: a reader needs the root to open a reference, and reads one small file a source for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from nextflow_data.common.range_opener import RangeOpener, kind_and_place, uri_of
from nextflow_data.config import IngestConfig
from nextflow_data.document import Image
from nextflow_data.sources.base import SOURCES, Source, SourceConfig, read_image
from nextflow_data.storage.config import StorageConfig
from nextflow_data.storage.files import any_path, put
from nextflow_data.storage.opener import StoreOpener
from nextflow_data.storage.store_path import AnyPath, StorePath
from nextflow_data.storage.stores.base import FileState

SOURCES_FOLDER = "sources"
_LONGEST_NAME = 200
"""Bytes of a file's name that a reference keeps: a name on a disk has at most 255, and more is put around it."""
_AT_ONCE = 16


@dataclass(frozen=True)
class Place:
    """Where a source file lies, and its state when it was bound."""

    path: AnyPath
    state: FileState

    @property
    def key(self) -> str:
        """20 hex digits that tell this file in this state from any other."""
        told = self.state.etag or str(self.state.modified_ns)
        return hashlib.sha256(json.dumps([str(self.path), self.state.size, told]).encode()).hexdigest()[:20]

    def as_json(self) -> dict[str, Any]:
        """JSON values, for `of`."""
        return {"address": str(self.path), **asdict(self.state)}

    @classmethod
    def of(cls, value: Mapping[str, Any], storage: StorageConfig) -> Place:
        """From JSON values."""
        state = FileState(**{name: value[name] for name in ("size", "modified_ns", "etag", "version")})
        return cls(any_path(value["address"], storage), state)


def reference(kind: str, sha256: str, name: str) -> str:
    """The uri of a file of that content and name. What UTF-8 cannot hold is replaced, an overlong name is cut."""
    clean = name.encode("utf-8", "surrogateescape")[:_LONGEST_NAME].decode("utf-8", "replace")
    return uri_of(kind, f"{SOURCES_FOLDER}/{sha256[:16]}-{clean}")


def write_places(root: AnyPath, places: Mapping[str, Place]) -> None:
    """Notes where the files of references lie."""

    def write(uri: str) -> None:
        put(root / f"{kind_and_place(uri)[1]}.json", json.dumps(places[uri].as_json()))

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(write, places):
            pass


@dataclass
class _Places:
    """Finds the file of a reference; each is looked up once a process."""

    root: AnyPath
    storage: StorageConfig
    _found: dict[str, tuple[AnyPath, FileState | None]] = field(default_factory=dict)

    def __call__(self, uri: str) -> tuple[AnyPath, FileState | None]:
        if uri not in self._found:
            place = kind_and_place(uri)[1]
            try:
                bound = Place.of(json.loads((self.root / f"{place}.json").read_bytes()), self.storage)
                self._found[uri] = bound.path, bound.state
            except FileNotFoundError:
                self._found[uri] = self.root / place, None
        return self._found[uri]


def source_opener(root: AnyPath, storage: StorageConfig | None = None) -> StoreOpener:
    """What opens a run's references, wherever their files lie. `storage` says how stores are reached; left out, as the root
    is."""
    if storage is None:
        storage = root.config if isinstance(root, StorePath) else StorageConfig()
    return StoreOpener(_Places(root, storage))


def image_loader(root: AnyPath, limits: IngestConfig, storage: StorageConfig | None = None) -> Callable[[Image], bytes]:
    """A function that gives an image node's encoded bytes, verified. It raises `nextflow_data.records.Unusable` for an image
    that cannot be used, and OSError where its file cannot be read or has changed since it was ingested."""
    opener = source_opener(root, storage)
    return lambda image: read_image(image, opener, limits)


@dataclass
class BoundSources:
    """The entries of a recipe with their files bound: what workers are given to read by.

    `entry_of` maps each file's uri, in order, to the number of its entry.
    """

    limits: IngestConfig
    entries: Sequence[SourceConfig]
    sha256: Mapping[str, str]
    entry_of: Mapping[str, int]
    opener: RangeOpener
    _made: dict[int, Source[Any]] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What entries say beyond kind and files, by the file: for the fingerprint. Empty where none says anything."""
        said = {uri: self.entries[number].identity() for uri, number in self.entry_of.items()}
        return {uri: settings for uri, settings in said.items() if settings}

    def source(self, uri: str) -> Source[Any]:
        """What reads that file, made once a process."""
        number = self.entry_of[uri]
        if number not in self._made:
            self._made[number] = make_source(self.entries[number], self.limits)
        return self._made[number]


def make_source(entry: SourceConfig, limits: IngestConfig) -> Source[Any]:
    """What reads the files of an entry."""
    return SOURCES.get(entry.kind)(entry, limits)
