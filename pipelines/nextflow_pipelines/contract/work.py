"""A stage at work: its units, what a killed run left, and the commit. See `nextflow_pipelines.contract.stage`."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from nextflow_data.common.whole_files import replace_file
from nextflow_data.document import SCHEMA_VERSION
from nextflow_data.storage.files import StoreError, put_if_absent
from nextflow_data.storage.store_path import AnyPath

from nextflow_pipelines.contract.kept import check_kept, done_units, kept_bytes, mixed_versions, remove_strays, remove_work
from nextflow_pipelines.contract.locks import Waiting, stage_lock
from nextflow_pipelines.contract.progress import Meter
from nextflow_pipelines.contract.stage import (
    MANIFEST,
    MANIFEST_FORMAT,
    REQUESTS,
    WORK,
    Corrupt,
    Counts,
    DiskFull,
    StageError,
    StageFile,
    StageManifest,
    StagePlan,
    check_sizes,
    merge_counts,
    read_manifest,
    sorted_counts,
    stage_file,
)
from nextflow_pipelines.contract.units import DONE, PROGRESS, UnitRecord, read_record, unit_record

LISTING = 20.0
"""Of a store: the driver lists done-records again only when this many times the last listing's seconds have passed."""


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, is ENOSPC or EDQUOT; also through Spark, which hands on only the text. Not a
    `StoreError`: that says itself which disk is full, that of the copies."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, StoreError) or f"{StoreError.__name__}: " in str(seen):
            return False
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if os.strerror(errno.ENOSPC) in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@dataclass
class StageWork:
    """One stage being run, or found committed. Made by `open_stage`.

    On a store a unit's record is read once and held, some 5 KB a unit, since it never changes.
    """

    root: AnyPath
    plan: StagePlan
    dir: AnyPath
    manifest: StageManifest | None
    """Set when the stage is committed."""
    kept: list[str] = field(default_factory=list)
    """Units found finished by an earlier run."""
    mixed: str = ""
    """What kept units were made with that this run is not, in words."""
    by_another: bool = False
    """Whether another run committed the stage while this one waited or worked."""
    amounts: dict[str, tuple[int, float]] = field(default_factory=dict)
    """What this run's units said they have done, and in how many seconds of their jobs (`measured`)."""
    _records: dict[str, UnitRecord] = field(default_factory=dict)
    _finished: frozenset[str] = frozenset()
    _list_at: float = 0.0

    def records(self, units: Sequence[str]) -> list[UnitRecord]:
        """The records of `units`, all of which must be done (StageError)."""
        found = self._read(units)
        missing = [unit for unit, record in zip(units, found, strict=True) if record is None]
        if missing:
            raise StageError(f"stage {self.plan.name}: {len(missing)} of {len(units)} units are not done: {missing[:5]}")
        return [record for record in found if record is not None]

    def _read(self, units: Sequence[str]) -> list[UnitRecord | None]:
        if isinstance(self.dir, Path):
            return [unit_record(self.dir, unit) for unit in units]
        unread = [unit for unit in units if unit not in self._records]
        with ThreadPoolExecutor(REQUESTS) as pool:
            for unit, record in zip(unread, pool.map(partial(read_record, self.dir), unread), strict=True):
                if record is not None:
                    self._records[unit] = record
        return [self._records.get(unit) for unit in units]

    def missing(self, units: Sequence[str]) -> list[str]:
        """Those of `units` that are not done, each asked about by itself."""
        return [unit for unit, record in zip(units, self._read(units), strict=True) if record is None]

    def pending(self, units: Sequence[str]) -> list[str]:
        """Those of `units` that are to be done. On a store by one listing and the records it names: one that it does not
        name yet is met again where the unit is to begin."""
        if not isinstance(self.dir, Path):
            named = done_units(self.dir) | self._records.keys()
            asked = [unit for unit in units if unit in named]
            done = set(asked).difference(self.missing(asked))
            return [unit for unit in units if unit not in done]
        return self.missing(units)

    def finished(self, units: Sequence[str]) -> int:
        """How many of `units` have a done-record: cheap, for showing progress."""
        if time.monotonic() >= self._list_at:
            began = time.monotonic()
            self._finished = done_units(self.dir)
            now = time.monotonic()
            self._list_at = now if isinstance(self.dir, Path) else now + max(1.0, LISTING * (now - began))
        return sum(unit in self._finished for unit in units)

    def meter(self, units: Sequence[str]) -> Meter:
        """Adds up what `units` say they have done from now on."""
        return Meter(self.dir / PROGRESS, frozenset(units))

    def measured(self, meter: Meter) -> None:
        """A job is done: notes its numbers for the stage's metrics."""
        meter.read()
        for name, amount in meter.amounts.items():
            before, seconds = self.amounts.get(name, (0, 0.0))
            self.amounts[name] = before + amount, seconds + meter.seconds

    def files(self, units: Sequence[str], dataset: str) -> list[AnyPath]:
        """Files of a data set that `units` wrote, in order; also for a data set under `_work/`."""
        prefix = f"{dataset}/"
        return [
            stage_file(self.dir, entry)
            for record in self.records(units)
            for entry in record["files"]
            if entry["path"].startswith(prefix)
        ]

    def commit(self, units: Sequence[str], facts: Mapping[str, Any] | None = None) -> StageManifest:
        """Writes the manifest over what `units` wrote, then removes everything it does not name.

        Files under `_work/` are not part of the output. Counts of all units are added up. On a store another run may have
        committed meanwhile: then its manifest counts, and is given.
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
        data = (json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
        place = self.dir / MANIFEST
        if isinstance(place, Path):
            remove_strays(self.dir, manifest)
            replace_file(place, data)
        else:
            if not put_if_absent(place, data):
                manifest, self.by_another = committed(self.dir, self.plan), True
            remove_strays(self.dir, manifest)
        remove_work(self.dir)
        self.manifest = manifest
        return manifest

    def committed_meanwhile(self) -> bool:
        """Whether another run has committed this stage while this one was at work: possible on a store only, whose leases
        can be lost. Then its manifest is this one's too."""
        if isinstance(self.dir, Path) or not (self.dir / MANIFEST).is_file():
            return False
        self.manifest, self.by_another = committed(self.dir, self.plan), True
        return True


def committed(folder: AnyPath, plan: StagePlan) -> StageManifest:
    """The manifest of a committed stage whose files are as it says, by name and size. Raises Corrupt."""
    manifest = read_manifest(folder)
    if manifest["fingerprint"] != plan.fingerprint:
        raise Corrupt(f"{folder} holds another fingerprint than its name says; remove it and run again")
    wrong = check_sizes(folder, manifest)
    if wrong:
        raise Corrupt(f"{folder} is committed but {wrong[0]} ({len(wrong)} problems); remove the folder and run again")
    return manifest


@contextmanager
def open_stage(root: AnyPath, plan: StagePlan, waiting: Waiting | None = None) -> Iterator[StageWork]:
    """A stage under its lock: committed (then `manifest` is set and there is nothing to do), or ready to be worked on.

    Units kept from a killed run are checked first. While another process works on it, waits and tells `waiting` so;
    without that, raises StageBusy. Raises Corrupt when the committed files have other sizes than the manifest says, DiskFull
    for an ENOSPC in the body, saying what was kept.
    """
    folder = plan.folder(root)
    if not isinstance(folder, Path) and (folder / MANIFEST).is_file():
        yield StageWork(root, plan, folder, committed(folder, plan))  # what is committed there never changes: no lease
        return
    with stage_lock(root, folder.name, waiting) as waited:
        manifest = committed(folder, plan) if (folder / MANIFEST).is_file() else None
        work = StageWork(root, plan, folder, manifest, by_another=waited and manifest is not None)
        try:
            if manifest is not None:
                remove_work(folder)
            else:
                _prepare(work)
            yield work
        except Exception as error:
            _explain_full(error, work)
            raise


def _prepare(work: StageWork) -> None:
    if isinstance(work.dir, Path):
        for fresh in (work.dir / WORK / "tmp", work.dir / PROGRESS):
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
        (work.dir / DONE).mkdir(exist_ok=True)
    records = check_kept(work.dir)
    work.kept, work.mixed = list(records), mixed_versions(records.values())
    if not isinstance(work.dir, Path):
        work._records = records


def _explain_full(error: BaseException, work: StageWork) -> None:
    if not is_disk_full(error) or isinstance(error, DiskFull):
        return
    units, size = kept_bytes(work.dir)
    disk = f"the disk of {work.root}"
    if not isinstance(work.root, Path):
        disk = f"a disk for temporary files, of this machine or a worker (TMPDIR; here {tempfile.gettempdir()})"
    raise DiskFull(
        f"stage {work.plan.name}: no space left on {disk}. Kept: {units} finished units "
        f"({size:,} bytes) and every stage committed before. Free some space and run the same command again: "
        "only what is missing is redone."
    ) from error
