"""The input files of a run: which they are, in which state, and what is known of their content without reading them.

An entry names a file, or a folder (it ends in `/`) or pattern (it holds `*`), which is listed: on a store one listing, no
request a file. Files are bound by their state: size and time on a disk, size and ETag on a store. What an earlier pass over
a file in that state found its sha256 to be is in `<root>/sources/bound-<digits>.json`, one table for each set of names; so a
run in which all is committed reads no byte of any of them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from nextflow_data.common.whole_files import file_sha256
from nextflow_data.sources.base import SourceConfig
from nextflow_data.storage.config import StorageConfig
from nextflow_data.storage.files import any_path, list_files, put, state_of
from nextflow_data.storage.store_path import AnyPath, StorePath
from nextflow_data.storage.stores.base import FileState

from nextflow_pipelines.sources import SOURCES_FOLDER, Place, reference, write_places

FEW = 16
"""Files of one folder of a store up to which each is asked about by itself; of more the folder is listed."""
QUICK_BYTES = 1 << 30
"""Files of this machine that are together no larger are hashed where only their fingerprint is asked for (some seconds)."""


@dataclass(frozen=True)
class InputFile:
    """One input file, of the recipe's entry of that number."""

    entry: int
    kind: str
    place: Place


def is_listed(name: str) -> bool:
    """Whether an entry's name stands for files that are listed: a folder, or a pattern."""
    return not name.startswith(("https://", "http://")) and (name.endswith("/") or "*" in name)


def input_files(entries: Sequence[SourceConfig], storage: StorageConfig) -> list[InputFile]:
    """Every input file in its order, once. Raises FileNotFoundError for a missing file or a name that nothing matches, other
    OSErrors for a store that refuses, ValueError for a file that two entries of one kind name: only one of them could say
    how it is read."""
    named = [(number, name) for number, entry in enumerate(entries) for name in entry.files]
    states = _states([_path(name, storage) for _, name in named if not is_listed(name)], storage)
    found: dict[tuple[str, str], InputFile] = {}
    for number, name in named:
        kind = entries[number].kind
        for place in _listed(name, storage) if is_listed(name) else [states[str(_path(name, storage))]]:
            file = found.setdefault((kind, str(place.path)), InputFile(number, kind, place))
            if file.entry != number:
                raise twice(file, number)
    return list(found.values())


def twice(file: InputFile, entry: int) -> ValueError:
    """The error of a file that another entry of its kind names too."""
    return ValueError(
        f"sources: entries {file.entry + 1} and {entry + 1} name the same {file.kind} file ({file.place.path}); "
        "name it in one of them"
    )


def _path(name: str, storage: StorageConfig) -> AnyPath:
    path = any_path(name, storage)
    return Path(os.path.abspath(path)) if isinstance(path, Path) else path


def _listed(name: str, storage: StorageConfig) -> Iterator[Place]:
    """The files of a folder (without those whose name begins with a dot) or pattern, in order of name."""
    before, star, _ = name.partition("*")
    folder = before.rpartition("/")[0] if star else name.rstrip("/")
    pattern = name[len(folder) :].lstrip("/") if star else ""
    base = _path(folder or ("/" if name.startswith("/") else "."), storage)
    some = False
    for path, state in list_files(base, f"{pattern}**/*" if name.endswith("/") else pattern):
        if star or not path.name.startswith("."):
            some = True
            yield Place(path, state)
    if not some:
        raise FileNotFoundError(2, "no input file is there by this name", name)


def _states(paths: Iterable[AnyPath], storage: StorageConfig) -> dict[str, Place]:
    """Each file's state, by address."""
    wanted = {str(path): path for path in paths}
    found = {address: Place(path, _local_state(path)) for address, path in wanted.items() if isinstance(path, Path)}
    remote = [path for path in wanted.values() if isinstance(path, StorePath)]
    folders = Counter(path.parent for path in remote if not path.address.startswith("http"))
    for folder in [folder for folder, number in folders.items() if number > FEW]:
        found |= {str(path): Place(path, state) for path, state in list_files(folder, "*") if str(path) in wanted}
    left = [path for path in remote if str(path) not in found]
    with ThreadPoolExecutor(storage.s3.concurrency) as pool:
        found |= {str(path): Place(path, state) for path, state in zip(left, pool.map(state_of, left), strict=True)}
    return found


def _local_state(path: Path) -> FileState:
    try:
        return state_of(path)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise FileNotFoundError(2, "input file not found", str(path)) from error


class KnownContents:
    """The sha256 of each input file as far as it is known, and the table of it under the root."""

    def __init__(self, root: AnyPath, files: Sequence[InputFile]) -> None:
        self.root, self.files = root, files
        names = json.dumps([[file.kind, str(file.place.path)] for file in files])
        self.set = hashlib.sha256(names.encode()).hexdigest()[:12]
        """Digits of the names and kinds, whatever is in the files."""
        self._file = root / SOURCES_FOLDER / f"bound-{self.set}.json"
        try:
            self._sha256: dict[str, str] = json.loads(self._file.read_bytes())["sha256"]
        except FileNotFoundError:
            self._sha256 = {}

    def unknown(self) -> list[InputFile]:
        """Files whose content is not known in their present state."""
        return [file for file in self.files if file.place.key not in self._sha256]

    def sha256(self, file: InputFile) -> str:
        """64 hex digits."""
        return self._sha256[file.place.key]

    def look(self) -> bool:
        """Hashes what is unknown where that is quick, and writes nothing. Whether all is known then."""
        unknown = self.unknown()
        paths = [file.place.path for file in unknown]
        if sum(file.place.state.size for file in unknown) > QUICK_BYTES or not all(isinstance(path, Path) for path in paths):
            return False
        for file, path in zip(unknown, paths, strict=True):
            assert isinstance(path, Path)
            self._sha256[file.place.key] = file_sha256(path)
        return True

    def learn(self, found: dict[str, str]) -> None:
        """Notes the sha256 of files by their place's key, and where they lie."""
        new = [file for file in self.files if self._sha256.get(file.place.key) != found[file.place.key]]
        if not new:
            return
        self._sha256 = found
        # Of files of one content the first is the one that is read.
        places = {
            reference(file.kind, found[file.place.key], file.place.path.name): file.place for file in reversed(self.files)
        }
        fresh = {file.place.key for file in new}
        write_places(self.root, {uri: place for uri, place in places.items() if place.key in fresh})
        put(self._file, json.dumps({"format": 1, "sha256": found}))
