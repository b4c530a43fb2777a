"""A stage at work: its lock, what a killed run left, and the commit. See `nextflow_pipelines.contract.stage`."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nextflow_data.common.whole_files import file_sha256, replace_file
from nextflow_data.document import SCHEMA_VERSION

from nextflow_pipelines.contract.progress import Meter
from nextflow_pipelines.contract.stage import (
    MANIFEST,
    MANIFEST_FORMAT,
    Corrupt,
    Counts,
    DiskFull,
    StageBusy,
    StageError,
    StageFile,
    StageManifest,
    StagePlan,
    check_sizes,
    merge_counts,
    read_manifest,
    sorted_counts,
)
from nextflow_pipelines.contract.units import PROGRESS, WORK, UnitRecord, unit_record


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
class StageWork:
    """One stage being run, or found committed. Made by `open_stage`."""

    root: Path
    plan: StagePlan
    dir: Path
    manifest: StageManifest | None
    """Set when the stage is committed."""
    kept: list[str] = field(default_factory=list)
    """Units found finished by an earlier run."""
    amounts: dict[str, tuple[int, float]] = field(default_factory=dict)
    """What this run's units said they have done, and in how many seconds of their jobs (`measured`)."""

    def records(self, units: Sequence[str]) -> list[UnitRecord]:
        """The records of `units`, all of which must be done (StageError)."""
        found = [unit_record(self.dir, unit) for unit in units]
        missing = [unit for unit, record in zip(units, found, strict=True) if record is None]
        if missing:
            raise StageError(f"stage {self.plan.name}: {len(missing)} of {len(units)} units are not done: {missing[:5]}")
        return [record for record in found if record is not None]

    def finished(self, units: Sequence[str]) -> int:
        """How many of `units` have a done-record: cheap, for showing progress."""
        done = {entry.removesuffix(".json") for entry in os.listdir(self.dir / WORK / "done")}
        return sum(unit in done for unit in units)

    def meter(self, units: Sequence[str]) -> Meter:
        """Adds up what `units` say they have done from now on."""
        return Meter(self.dir / PROGRESS, frozenset(units))

    def measured(self, meter: Meter) -> None:
        """A job is done: notes its numbers for the stage's metrics."""
        meter.read()
        for name, amount in meter.amounts.items():
            before, seconds = self.amounts.get(name, (0, 0.0))
            self.amounts[name] = before + amount, seconds + meter.seconds

    def pending(self, units: Sequence[str]) -> list[str]:
        """Those of `units` that are not done."""
        return [unit for unit in units if unit_record(self.dir, unit) is None]

    def files(self, units: Sequence[str], dataset: str) -> list[Path]:
        """Files of a data set that `units` wrote, in order; also for a data set under `_work/`."""
        prefix = f"{dataset}/"
        return [self.dir / f["path"] for r in self.records(units) for f in r["files"] if f["path"].startswith(prefix)]

    def commit(self, units: Sequence[str], facts: Mapping[str, Any] | None = None) -> StageManifest:
        """Writes the manifest over what `units` wrote, then removes everything it does not name.

        Files under `_work/` are not part of the output. Counts of all units are added up.
        """
        counts: Counts = {}
        files: list[StageFile] = []
        for record in self.records(units):
            merge_counts(counts, record["counts"])
            files += [f for f in record["files"] if not f["path"].startswith(f"{WORK}/")]
        manifest: StageManifest = {
            "format": MANIFEST_FORMAT,
            "schema_version": SCHEMA_VERSION,
            "stage": self.plan.name,
            "version": self.plan.version,
            "fingerprint": self.plan.fingerprint,
            "parameters": dict(self.plan.parameters),
            "inputs": dict(self.plan.inputs),
            "files": sorted(files, key=lambda f: f["path"]),
            "counts": sorted_counts(counts),
            "facts": dict(facts or {}),
        }
        _remove_strays(self.dir, {f["path"] for f in files})
        data = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
        replace_file(self.dir / MANIFEST, data.encode())
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
                for fresh in (folder / WORK / "tmp", folder / PROGRESS):
                    shutil.rmtree(fresh, ignore_errors=True)
                    fresh.mkdir(parents=True)
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
        if record is None or any(file_sha256(folder / f["path"]) != f["sha256"] for f in record["files"]):
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
