"""One unit of a stage's work: files that appear whole, and the done-record that says so. See `stage`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

from nextflow_data.common.whole_files import replace_file, sync_folder

from nextflow_pipelines.contract.progress import UnitProgress
from nextflow_pipelines.contract.stage import (
    MANIFEST,
    Counts,
    StageError,
    StageFile,
    canonical_json,
    merge_counts,
    sorted_counts,
)

WORK = "_work"
"""Sub-folder of an uncommitted stage: done-records, temporary files and data sets that only this stage reads."""
PROGRESS = f"{WORK}/progress"
"""Where units say how far they are (`nextflow_pipelines.contract.progress`)."""


class UnitRecord(TypedDict):
    """The done-record of one unit. `facts` are small values other than counts that the stage needs at its end."""

    unit: str
    files: list[StageFile]
    counts: Counts
    facts: dict[str, Any]


@dataclass
class UnitOutput:
    """What one unit of work writes. Used inside `unit_output`; files appear in the stage only when that ends well."""

    stage_dir: Path
    unit: str
    counts: Counts = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    _files: dict[str, int | None] = field(default_factory=dict)
    _token: str = field(default_factory=lambda: uuid.uuid4().hex)
    _progress: UnitProgress = field(init=False)

    def __post_init__(self) -> None:
        self._progress = UnitProgress(self.stage_dir / PROGRESS, self.unit)

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
        if not self.temporary.parent.is_dir():
            # A task that outlived its killed driver must not write into what another run has committed since.
            raise StageError(f"{self.stage_dir} is no longer being worked on")
        path = self.temporary / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def count(self, *keys: str, by: int = 1) -> None:
        """Adds to the counter that `keys` lead to."""
        nested: Any = by
        for key in reversed(keys):
            nested = {key: nested}
        merge_counts(self.counts, nested)

    def progress(self, **amounts: int) -> None:
        """Adds to what this unit has done so far, `progress(images=8)`: shown with its speed while the stage runs and noted
        in the stage's metrics, never part of its output."""
        self._progress.add(**amounts)


@contextmanager
def unit_output(stage_dir: Path, unit: str) -> Iterator[UnitOutput]:
    """Runs one unit: on leaving without an error its files are put in place and its done-record written."""
    out = UnitOutput(stage_dir, unit)
    try:
        yield out
        entries: list[StageFile] = []
        folders = set()
        for relative, rows in sorted(out._files.items()):
            temporary = out.temporary / relative
            with temporary.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
                size = file.tell()
            entry: StageFile = {"path": relative, "bytes": size, "sha256": digest}
            if rows is not None:
                entry["rows"] = rows
            entries.append(entry)
            final = stage_dir / relative
            final.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(final)
            folders.add(final.parent)
        for folder in folders:
            sync_folder(folder)
        out._progress.write()
        record: UnitRecord = {"unit": unit, "files": entries, "counts": sorted_counts(out.counts), "facts": out.facts}
        replace_file(_record_path(stage_dir, unit), canonical_json(record).encode())
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
