"""The stage contract: what a stage is, when it is done, and what is kept when it is killed. No Spark here.

A stage's output lies in `<root>/<stage>-<first 12 digits of its fingerprint>/`. The fingerprint is the sha256 of the
canonical JSON of the stage's name and version, its parameters and its inputs (fingerprints of the stages it reads, sha256 of
the files it reads, hash of the tokenizer it uses). `manifest.json`, written last, is the only commit: a folder without one
does not exist for any reader. Until then:

- work is cut into *units*; each unit writes its files where nobody looks, puts them in place and writes a done-record
  (names, sizes, sha256, counts) last. Files do not appear together; the record says that they are there.
- after kill -9, units with a record whose files still match are kept, the rest are redone. What a unit writes depends only
  on the unit, so the result is byte for byte that of a run never killed.
- one run at a time makes a stage; who comes meanwhile waits and then uses what was committed (`contract.locks`).

A root is a disk or an object store. On a disk files are fsynced and renamed into place, and a `flock` keeps runs apart. A
store has neither renames nor locks that die with their holder, so there nothing is ever overwritten: a file's object carries
its content's hash in its name (`stage_file`), done-records and the manifest are put if absent, and of two runs that both
work on a stage, which no lease can rule out, the first commit counts. The manifest's bytes are the same on both.

The cost: on a disk a fsync per file, and one reading of each kept file on resuming; on a store a copy of each file on the
worker's disk while its unit runs, and objects that no manifest names where a run was killed. Nothing that is hashed or
committed holds a time, a host or an absolute path; times go to `<root>/metrics/`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NotRequired, TypedDict

from nextflow_data.document import SCHEMA_VERSION
from nextflow_data.storage.files import list_files, state_of
from nextflow_data.storage.store_path import AnyPath

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
WORK = "_work"
"""Sub-folder of an uncommitted stage: done-records, temporary files and data sets that only this stage reads."""
REQUESTS = 16
"""Requests to a store at once where many files are asked about."""
Counts = dict[str, Any]
"""Nested counters: leaves are ints, added up over units (`merge_counts`)."""


class StageFile(TypedDict):
    """One output file: `path` is relative to the stage's folder (`stage_file` says where it lies); `rows` only for data
    sets, which are read through this contract and by nobody else."""

    path: str
    bytes: int
    sha256: str
    rows: NotRequired[int]


class StageManifest(TypedDict):
    """`manifest.json` of a committed stage."""

    format: int
    schema_version: int
    stage: str
    version: int
    fingerprint: str
    parameters: dict[str, Any]
    inputs: dict[str, str]
    files: list[StageFile]
    counts: Counts
    facts: dict[str, Any]


class StageError(RuntimeError):
    """A stage could not finish; the message says what was wrong, what was kept and what to do."""


class StageBusy(StageError):
    """Another live process is running the same stage on the same inputs."""


class DiskFull(StageError):
    """No space left where a stage writes."""


class Corrupt(StageError):
    """A committed stage's files are not what its manifest says."""


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, UTF-8; NaN and what JSON lacks raise."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True)
class StagePlan:
    """What makes a stage's output what it is. `inputs` maps a name to a fingerprint or a sha256."""

    name: str
    version: int
    parameters: Mapping[str, Any]
    inputs: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """64 hex digits."""
        identity = {"stage": self.name, "version": self.version, "parameters": self.parameters, "inputs": self.inputs}
        return hashlib.sha256(canonical_json(identity).encode()).hexdigest()

    def folder(self, root: AnyPath) -> AnyPath:
        """Where the output lies."""
        return root / f"{self.name}-{self.fingerprint[:12]}"


def is_published(entry: StageFile) -> bool:
    """Whether other programs read a file by its plain name (shards, tokenizers, pictures): all but data sets, which have
    rows, and what lies under `_work/`."""
    return "rows" not in entry and not entry["path"].startswith(f"{WORK}/")


def stage_file(stage_dir: AnyPath, entry: StageFile) -> AnyPath:
    """Where a file of a stage lies. On a disk under its name; on a store data sets and working files carry the first 16
    digits of their sha256, so that no attempt overwrites another's: `documents/part-00000.0123456789abcdef.parquet`."""
    if isinstance(stage_dir, Path) or is_published(entry):
        return stage_dir / entry["path"]
    path = PurePosixPath(entry["path"])
    return stage_dir / str(path.with_name(f"{path.stem}.{entry['sha256'][:16]}{path.suffix}"))


def merge_counts(into: Counts, more: Mapping[str, Any]) -> Counts:
    """Adds `more` to `into`, leaf by leaf, and gives `into` back."""
    for key, value in more.items():
        into[key] = merge_counts(into.setdefault(key, {}), value) if isinstance(value, Mapping) else into.get(key, 0) + value
    return into


def sorted_counts(counts: Mapping[str, Any]) -> Counts:
    """Nested counters in order of their names."""
    return {k: sorted_counts(v) if isinstance(v, Mapping) else v for k, v in sorted(counts.items())}


def read_manifest(stage_dir: AnyPath) -> StageManifest:
    """The manifest of a committed stage. StageError where there is none, it is damaged or of another format."""
    path = stage_dir / MANIFEST
    try:
        manifest: StageManifest = json.loads(path.read_bytes())
        version = manifest["format"], manifest["schema_version"]
    except FileNotFoundError:
        raise StageError(f"{stage_dir} is not a committed stage: it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, OSError) and not isinstance(stage_dir, Path):
            raise  # a store that does not answer says nothing about what it holds
        raise Corrupt(f"{path} cannot be read ({error}); remove the folder and run again") from None
    if version[0] != MANIFEST_FORMAT or version[1] not in range(1, SCHEMA_VERSION + 1):
        raise StageError(
            f"{path} has format {version[0]} and schema {version[1]}; this program reads format {MANIFEST_FORMAT} with "
            f"schemas up to {SCHEMA_VERSION}: use the version that wrote it, or a newer one"
        )
    return manifest


def sizes_of(stage_dir: AnyPath, entries: list[StageFile]) -> list[int | None]:
    """Bytes of each file of a stage, None where it is not there. On a store by one listing; what that misses is asked for,
    so an old listing does no harm."""
    if isinstance(stage_dir, Path):
        return [_size(stage_dir / entry["path"]) for entry in entries]
    listed = {str(path): state.size for path, state in list_files(stage_dir)} if entries else {}
    with ThreadPoolExecutor(REQUESTS) as pool:
        places = [stage_file(stage_dir, entry) for entry in entries]
        return list(pool.map(lambda place: listed.get(str(place)) or _size(place), places))


def _size(path: AnyPath) -> int | None:
    try:
        return path.stat().st_size if isinstance(path, Path) else state_of(path).size
    except (FileNotFoundError, NotADirectoryError):
        return None


def check_sizes(stage_dir: AnyPath, manifest: StageManifest) -> list[str]:
    """Files of a committed stage that are missing or of another size, in words."""
    wrong = []
    for entry, size in zip(manifest["files"], sizes_of(stage_dir, manifest["files"]), strict=True):
        if size is None:
            wrong.append(f"{entry['path']} is missing")
        elif size != entry["bytes"]:
            wrong.append(f"{entry['path']} has {size} bytes, not {entry['bytes']}")
    return wrong


def find_committed(root: AnyPath, stage: str) -> list[AnyPath]:
    """Folders of a stage's commits under `root`, the newest first."""
    name = re.compile(rf"{re.escape(stage)}-[0-9a-f]{{12}}")
    found: list[tuple[int, str, AnyPath]] = []
    for folder in root.iterdir() if root.is_dir() else ():
        if name.fullmatch(folder.name):
            with suppress(FileNotFoundError, NotADirectoryError):
                found.append((_modified_ns(folder / MANIFEST), folder.name, folder))
    return [folder for *_, folder in sorted(found, key=lambda one: one[:2], reverse=True)]


def _modified_ns(path: AnyPath) -> int:
    return path.stat().st_mtime_ns if isinstance(path, Path) else state_of(path).modified_ns
