"""Source files by content: how a reference stays true on another machine.

A document's references name `sources/<first 16 digits of the file's sha256>-<its name>`, relative to the run's root, where a
symbolic link leads to the real file. So nothing that is hashed holds an absolute path, a file that moved is found again by
running once more, and a file that changed under its name is another source. Before the name stands the kind of source,
except for WARC (`nextflow_data.common.range_opener`). The cost: a reader needs the root to open a reference (`LocalFiles`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nextflow_data.common.range_opener import DEFAULT_KIND, LocalFiles, kind_and_place, uri_of
from nextflow_data.common.whole_files import file_sha256
from nextflow_data.config import IngestConfig
from nextflow_data.document import Image
from nextflow_data.sources.base import SOURCES, Source, SourceConfig, read_image

SOURCES_FOLDER = "sources"


@dataclass(frozen=True)
class SourceFile:
    """An input file: its name in references, and the sha256 of its content."""

    uri: str
    sha256: str


def bind_sources(root: Path, paths: Sequence[Path], kind: str = DEFAULT_KIND, link_them: bool = True) -> list[SourceFile]:
    """Hashes input files of one kind and links them under the root; a file given twice counts once, the order is kept.

    Without `link_them` nothing is written. Raises FileNotFoundError, naming the file, before anything is written.
    """
    _must_be_there(paths)
    found: dict[str, SourceFile] = {}
    for path in paths:
        digest = file_sha256(path)
        if digest in found:
            continue
        place = f"{SOURCES_FOLDER}/{digest[:16]}-{path.name}"
        found[digest] = SourceFile(uri_of(kind, place), digest)
        if not link_them:
            continue
        link = root / place
        link.parent.mkdir(parents=True, exist_ok=True)
        target = path.resolve()
        if link.is_symlink() and link.resolve() == target:
            continue
        new = link.with_name(f".{link.name}.new")
        new.unlink(missing_ok=True)
        new.symlink_to(target)
        new.replace(link)
    return list(found.values())


def _must_be_there(paths: Iterable[Path]) -> None:
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(2, "input file not found", str(path))


@dataclass
class BoundSources:
    """The entries of a recipe with their files bound: what workers are given to read by.

    `entry_of` maps each file's uri, in order, to the number of its entry.
    """

    root: Path
    limits: IngestConfig
    entries: Sequence[SourceConfig]
    sha256: Mapping[str, str]
    entry_of: Mapping[str, int]
    _made: dict[int, Source[Any]] = field(default_factory=dict)

    @classmethod
    def bind(cls, root: Path, limits: IngestConfig, entries: Sequence[SourceConfig], link_them: bool = True) -> BoundSources:
        """Raises FileNotFoundError for a missing file, before anything is written, and ValueError for a file that two
        entries of one kind name: only one of them could say how it is read."""
        _must_be_there(Path(name) for entry in entries for name in entry.files)
        sha256: dict[str, str] = {}
        entry_of: dict[str, int] = {}
        for number, entry in enumerate(entries):
            for file in bind_sources(root, [Path(name) for name in entry.files], entry.kind, link_them):
                if file.uri in entry_of:
                    raise ValueError(
                        f"sources: entries {entry_of[file.uri] + 1} and {number + 1} name the same {entry.kind} file "
                        f"({kind_and_place(file.uri)[1]}); name it in one of them"
                    )
                sha256[file.uri], entry_of[file.uri] = file.sha256, number
        return cls(root.resolve(), limits, entries, sha256, entry_of)

    def settings(self) -> dict[str, Any]:
        """What entries say beyond kind and files, by the file: for the fingerprint. Empty where none says anything."""
        said = {uri: self.entries[number].identity() for uri, number in self.entry_of.items()}
        return {uri: settings for uri, settings in said.items() if settings}

    def source(self, uri: str) -> Source[Any]:
        """What reads that file, made once a process."""
        number = self.entry_of[uri]
        if number not in self._made:
            entry = self.entries[number]
            self._made[number] = SOURCES.get(entry.kind)(entry, self.limits)
        return self._made[number]

    @property
    def opener(self) -> LocalFiles:
        """What opens the files."""
        return LocalFiles(self.root)


def image_loader(root: Path, limits: IngestConfig) -> Callable[[Image], bytes]:
    """A function that gives an image node's encoded bytes, verified. It raises `nextflow_data.records.Unusable`."""
    opener = LocalFiles(root)
    return lambda image: read_image(image, opener, limits)
