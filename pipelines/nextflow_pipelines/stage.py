"""The stage contract: what a stage is, when it is done, and what is kept when it is killed. No Spark here.

A stage's output lies in `<root>/<stage>-<first 12 digits of its fingerprint>/`. The fingerprint is the sha256 of the
canonical JSON of the stage's name and version, its parameters and its inputs (fingerprints of the stages it reads, sha256 of
the files it reads, hash of the tokenizer it uses). `manifest.json`, written last, is the only commit: a folder without one
does not exist for any reader. Until then:

- work is cut into *units*; each unit writes its files under temporary names, fsyncs them, renames them into place and
  writes a done-record (names, sizes, sha256, counts) last. Renames are not atomic as a group; the record is.
- after kill -9, units with a record whose files still match are kept, the rest are redone. What a unit writes depends only
  on the unit, so the result is byte for byte that of a run never killed.
- a `flock` on `<root>/.locks/` keeps two runs of the same stage apart; the kernel drops it with the process that held it,
  so a lock file left behind by a kill means nothing.

The cost: a fsync per file, and one reading of each kept file on resuming. Nothing that is hashed or committed holds a time,
a host or an absolute path; times go to `<root>/metrics/`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NotRequired, TypedDict

from nextflow_data.document import SCHEMA_VERSION

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
WORK = "_work"
"""Sub-folder of an uncommitted stage: done-records, temporary files and data sets that only this stage reads."""

Counts = dict[str, Any]
"""Nested counters: leaves are ints, added up over units (`merge_counts`)."""


class FileEntry(TypedDict):
    """One output file: `path` is relative to the stage's folder; `rows` only for data sets."""

    path: str
    bytes: int
    sha256: str
    rows: NotRequired[int]


class UnitRecord(TypedDict):
    """The done-record of one unit. `facts` are small values other than counts that the stage needs at its end."""

    unit: str
    files: list[FileEntry]
    counts: Counts
    facts: dict[str, Any]


class Manifest(TypedDict):
    """`manifest.json` of a committed stage."""

    format: int
    schema_version: int
    stage: str
    version: int
    fingerprint: str
    parameters: dict[str, Any]
    inputs: dict[str, str]
    files: list[FileEntry]
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


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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

    def folder(self, root: Path) -> Path:
        """Where the output lies."""
        return root / f"{self.name}-{self.fingerprint[:12]}"


def merge_counts(into: Counts, more: Mapping[str, Any]) -> Counts:
    """Adds `more` to `into`, leaf by leaf, and gives `into` back."""
    for key, value in more.items():
        into[key] = merge_counts(into.setdefault(key, {}), value) if isinstance(value, Mapping) else into.get(key, 0) + value
    return into


def _sorted(counts: Mapping[str, Any]) -> Counts:
    return {k: _sorted(v) if isinstance(v, Mapping) else v for k, v in sorted(counts.items())}


def write_durably(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: temporary name, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, is ENOSPC or EDQUOT; also through Spark, which hands on only the text."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if os.strerror(errno.ENOSPC) in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@dataclass
class UnitOutput:
    """What one unit of work writes. Used inside `unit_output`; files appear in the stage only when that ends well."""

    stage_dir: Path
    unit: str
    counts: Counts = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    _files: dict[str, int | None] = field(default_factory=dict)
    _token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def temporary(self) -> Path:
        """Where this attempt writes: a folder of its own, in which files have the paths they will have in the stage."""
        return self.stage_dir / WORK / "tmp" / self._token

    def path(self, relative: str, rows: int | None = None) -> Path:
        """A temporary path to write to; it becomes `<stage>/<relative>` when the unit is done.

        `relative` must stay inside the stage's folder (ValueError). `rows` is noted in the file's entry.
        """
        pure = PurePosixPath(relative)
        if pure.is_absolute() or ".." in pure.parts or relative == MANIFEST:
            raise ValueError(f"{relative!r} is not a path inside a stage's folder")
        self._files[relative] = rows
        path = self.temporary / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def count(self, *keys: str, by: int = 1) -> None:
        """Adds to the counter that `keys` lead to."""
        nested: Any = by
        for key in reversed(keys):
            nested = {key: nested}
        merge_counts(self.counts, nested)


@contextmanager
def unit_output(stage_dir: Path, unit: str) -> Iterator[UnitOutput]:
    """Runs one unit: on leaving without an error its files are put in place and its done-record written."""
    out = UnitOutput(stage_dir, unit)
    try:
        yield out
        entries: list[FileEntry] = []
        folders = set()
        for relative, rows in sorted(out._files.items()):
            temporary = out.temporary / relative
            with temporary.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
                size = file.tell()
            entry: FileEntry = {"path": relative, "bytes": size, "sha256": digest}
            if rows is not None:
                entry["rows"] = rows
            entries.append(entry)
            final = stage_dir / relative
            final.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(final)
            folders.add(final.parent)
        for folder in folders:
            sync_folder(folder)
        record: UnitRecord = {"unit": unit, "files": entries, "counts": _sorted(out.counts), "facts": out.facts}
        write_durably(_record_path(stage_dir, unit), canonical_json(record).encode())
    finally:
        shutil.rmtree(out.temporary, ignore_errors=True)


def _record_path(stage_dir: Path, unit: str) -> Path:
    return stage_dir / WORK / "done" / f"{unit}.json"


def unit_record(stage_dir: Path, unit: str) -> UnitRecord | None:
    """A unit's done-record, or None where the unit is not done (or its files are gone or of another size)."""
    try:
        record: UnitRecord = json.loads(_record_path(stage_dir, unit).read_bytes())
    except (OSError, ValueError):
        return None
    for entry in record["files"]:
        try:
            if (stage_dir / entry["path"]).stat().st_size != entry["bytes"]:
                return None
        except OSError:
            return None
    return record


@dataclass
class StageWork:
    """One stage being run, or found committed. Made by `open_stage`."""

    root: Path
    plan: StagePlan
    dir: Path
    manifest: Manifest | None
    """Set when the stage is committed."""
    kept: list[str] = field(default_factory=list)
    """Units found finished by an earlier run."""

    def records(self, units: Sequence[str]) -> list[UnitRecord]:
        """The records of `units`, all of which must be done (StageError)."""
        found = [unit_record(self.dir, unit) for unit in units]
        missing = [unit for unit, record in zip(units, found, strict=True) if record is None]
        if missing:
            raise StageError(f"stage {self.plan.name}: {len(missing)} of {len(units)} units are not done: {missing[:5]}")
        return [record for record in found if record is not None]

    def pending(self, units: Sequence[str]) -> list[str]:
        """Those of `units` that are not done."""
        return [unit for unit in units if unit_record(self.dir, unit) is None]

    def files(self, units: Sequence[str], dataset: str) -> list[Path]:
        """Files of a data set that `units` wrote, in order; also for a data set under `_work/`."""
        prefix = f"{dataset}/"
        return [self.dir / f["path"] for r in self.records(units) for f in r["files"] if f["path"].startswith(prefix)]

    def commit(self, units: Sequence[str], facts: Mapping[str, Any] | None = None) -> Manifest:
        """Writes the manifest over what `units` wrote, then removes everything it does not name.

        Files under `_work/` are not part of the output. Counts of all units are added up.
        """
        counts: Counts = {}
        files: list[FileEntry] = []
        for record in self.records(units):
            merge_counts(counts, record["counts"])
            files += [f for f in record["files"] if not f["path"].startswith(f"{WORK}/")]
        manifest: Manifest = {
            "format": MANIFEST_FORMAT,
            "schema_version": SCHEMA_VERSION,
            "stage": self.plan.name,
            "version": self.plan.version,
            "fingerprint": self.plan.fingerprint,
            "parameters": dict(self.plan.parameters),
            "inputs": dict(self.plan.inputs),
            "files": sorted(files, key=lambda f: f["path"]),
            "counts": _sorted(counts),
            "facts": dict(facts or {}),
        }
        _remove_strays(self.dir, {f["path"] for f in files})
        data = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
        write_durably(self.dir / MANIFEST, data.encode())
        shutil.rmtree(self.dir / WORK, ignore_errors=True)
        self.manifest = manifest
        return manifest


def _remove_strays(folder: Path, named: set[str]) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        relative = path.relative_to(folder).as_posix()
        if relative == WORK or relative.startswith(f"{WORK}/"):
            continue
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif relative not in named:
            path.unlink()


@contextmanager
def open_stage(root: Path, plan: StagePlan) -> Iterator[StageWork]:
    """A stage under its lock: committed (then `manifest` is set and there is nothing to do), or ready to be worked on.

    Units kept from a killed run are checked by hash first. Raises StageBusy while another process works on it, Corrupt when
    the committed files have other sizes than the manifest says, DiskFull for an ENOSPC in the body, saying what was kept.
    """
    folder = plan.folder(root)
    with _lock(root, folder.name):
        manifest = read_manifest(folder) if (folder / MANIFEST).exists() else None
        work = StageWork(root, plan, folder, manifest)
        if manifest is not None:
            if manifest["fingerprint"] != plan.fingerprint:
                raise Corrupt(f"{folder} holds another fingerprint than its name says; remove it and run again")
            wrong = check_sizes(folder, manifest)
            if wrong:
                raise Corrupt(
                    f"{folder} is committed but {wrong[0]} ({len(wrong)} problems); remove the folder and run again"
                )
            shutil.rmtree(folder / WORK, ignore_errors=True)
        else:
            try:
                shutil.rmtree(folder / WORK / "tmp", ignore_errors=True)
                (folder / WORK / "tmp").mkdir(parents=True)
                (folder / WORK / "done").mkdir(exist_ok=True)
                work.kept = _check_kept(folder)
            except OSError as error:
                _explain_full(error, work)
                raise
        try:
            yield work
        except Exception as error:
            _explain_full(error, work)
            raise


def _explain_full(error: BaseException, work: StageWork) -> None:
    if not is_disk_full(error) or isinstance(error, DiskFull):
        return
    records = [json.loads(p.read_bytes()) for p in (work.dir / WORK / "done").glob("*.json")]
    size = sum(f["bytes"] for r in records for f in r["files"])
    raise DiskFull(
        f"stage {work.plan.name}: no space left on the disk of {work.root}. Kept: {len(records)} finished units "
        f"({size:,} bytes) and every stage committed before. Free some space and run the same command again: "
        "only what is missing is redone."
    ) from error


def _check_kept(folder: Path) -> list[str]:
    kept = []
    for path in sorted((folder / WORK / "done").glob("*.json")):
        record = unit_record(folder, path.stem)
        if record is None or any(sha256_file(folder / f["path"]) != f["sha256"] for f in record["files"]):
            path.unlink()
        else:
            kept.append(path.stem)
    return kept


@contextmanager
def _lock(root: Path, name: str) -> Iterator[None]:
    locks = root / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / f"{name}.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise StageBusy(f"{name} is being made by process {holder}: wait for it or stop it, then run again") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def read_manifest(stage_dir: Path) -> Manifest:
    """The manifest of a committed stage. StageError where there is none, it is damaged or of another format."""
    path = stage_dir / MANIFEST
    try:
        manifest: Manifest = json.loads(path.read_bytes())
        version = manifest["format"], manifest["schema_version"]
    except FileNotFoundError:
        raise StageError(f"{stage_dir} is not a committed stage: it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{path} cannot be read ({error}); remove the folder and run again") from None
    if version != (MANIFEST_FORMAT, SCHEMA_VERSION):
        raise StageError(f"{path} has format and schema {version}, this program reads {(MANIFEST_FORMAT, SCHEMA_VERSION)}")
    return manifest


def check_sizes(stage_dir: Path, manifest: Manifest) -> list[str]:
    """Files of a committed stage that are missing or of another size, in words."""
    wrong = []
    for entry in manifest["files"]:
        try:
            size = (stage_dir / entry["path"]).stat().st_size
        except OSError:
            wrong.append(f"{entry['path']} is missing")
            continue
        if size != entry["bytes"]:
            wrong.append(f"{entry['path']} has {size} bytes, not {entry['bytes']}")
    return wrong


def verify(stage_dir: Path) -> list[str]:
    """Everything wrong with a committed stage, in words: fingerprint, sizes, sha256, files that no manifest names."""
    manifest = read_manifest(stage_dir)
    plan = StagePlan(manifest["stage"], manifest["version"], manifest["parameters"], manifest["inputs"])
    wrong = check_sizes(stage_dir, manifest)
    if plan.fingerprint != manifest["fingerprint"] or stage_dir.name != f"{plan.name}-{plan.fingerprint[:12]}":
        wrong.append("the fingerprint is not that of the stage, parameters and inputs that the manifest names")
    named = {MANIFEST}
    for entry in manifest["files"]:
        named.add(entry["path"])
        path = stage_dir / entry["path"]
        if path.is_file() and path.stat().st_size == entry["bytes"] and sha256_file(path) != entry["sha256"]:
            wrong.append(f"{entry['path']} has another sha256 than the manifest says")
    for path in sorted(stage_dir.rglob("*")):
        relative = path.relative_to(stage_dir).as_posix()
        if path.is_file() and relative not in named:
            wrong.append(f"{relative} is not named by the manifest")
    return wrong


def find_committed(root: Path, stage: str) -> list[Path]:
    """Folders of a stage's commits under `root`, the newest first."""
    found = [p.parent for p in root.glob(f"{stage}-{'[0-9a-f]' * 12}/{MANIFEST}")]
    return sorted(found, key=lambda p: ((p / MANIFEST).stat().st_mtime_ns, p.name), reverse=True)


def append_metrics(root: Path, stage: str, values: Mapping[str, Any]) -> None:
    """Adds one line to `<root>/metrics/<stage>.jsonl`; times and speeds go there and nowhere else."""
    folder = root / "metrics"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{stage}.jsonl").open("a") as file:
        file.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "stage": stage, **values}) + "\n")
