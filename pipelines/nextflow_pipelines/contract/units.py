"""One unit of a stage's work: files that appear whole, and the done-record that says so. See `stage`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NotRequired, TypedDict

from nextflow_data.common.whole_files import replace_file, sync_folder
from nextflow_data.storage.files import Conflict, put_if_absent, upload
from nextflow_data.storage.store_path import AnyPath

from nextflow_pipelines.contract.made_with import made_with
from nextflow_pipelines.contract.progress import UnitProgress
from nextflow_pipelines.contract.stage import (
    MANIFEST,
    WORK,
    Counts,
    StageError,
    StageFile,
    canonical_json,
    is_published,
    merge_counts,
    sizes_of,
    sorted_counts,
    stage_file,
)
from nextflow_pipelines.contract.temporary import temporary_folder

PROGRESS = f"{WORK}/progress"
"""Where units say how far they are (`nextflow_pipelines.contract.progress`)."""
DONE = f"{WORK}/done"
"""Where done-records lie."""


class UnitRecord(TypedDict):
    """The done-record of one unit. `facts` are small values other than counts that the stage needs at its end; `made_with`
    is missing in records of versions before it."""

    unit: str
    files: list[StageFile]
    counts: Counts
    facts: dict[str, Any]
    made_with: NotRequired[Mapping[str, str]]


@dataclass
class UnitOutput:
    """What one unit of work writes. Used inside `unit_output`; files appear in the stage only when that ends well."""

    stage_dir: AnyPath
    unit: str
    temporary: Path
    """Where this attempt writes: a folder of its own on a disk, in which files have the paths they will have in the
    stage. It is in the stage's folder where that is on a disk, and is made with the first file."""
    counts: Counts = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    _files: dict[str, int | None] = field(default_factory=dict)
    _progress: UnitProgress = field(init=False)

    def __post_init__(self) -> None:
        self._progress = UnitProgress(self.stage_dir / PROGRESS, self.unit)

    def path(self, relative: str, rows: int | None = None, published: bool = False) -> Path:
        """A temporary path to write to; it becomes the stage's file `relative` when the unit is done.

        `relative` must stay inside the stage's folder (ValueError). `rows` is noted in the file's entry and makes it a data
        set's. `published` says that other programs read it by this name: ValueError where that would not be so
        (`is_published`).
        """
        pure = PurePosixPath(relative)
        if pure.is_absolute() or ".." in pure.parts or relative == MANIFEST:
            raise ValueError(f"{relative!r} is not a path inside a stage's folder")
        if published and (rows is not None or relative.startswith(f"{WORK}/")):
            raise ValueError(f"{relative!r} is a data set or a working file, which others cannot read by name on a store")
        self._files[relative] = rows
        if isinstance(self.stage_dir, Path) and not self.temporary.parent.is_dir():
            # A task that outlived its killed driver must not write into what another run has committed since.
            raise _no_longer(self.stage_dir)
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


def _no_longer(stage_dir: AnyPath) -> StageError:
    return StageError(f"{stage_dir} is no longer being worked on")


@contextmanager
def unit_output(stage_dir: AnyPath, unit: str) -> Iterator[UnitOutput]:
    """Runs one unit: on leaving without an error its files are put in place and its done-record written.

    On a store another attempt may have been first, and its record counts. StageError where a published file is there with
    other content.
    """
    with _temporary(stage_dir) as temporary:
        out = UnitOutput(stage_dir, unit, temporary)
        yield out
        entries = [_entry(out, relative, rows) for relative, rows in sorted(out._files.items())]
        if isinstance(stage_dir, Path):
            _rename(out, stage_dir, entries)
        else:
            _upload(out, entries)
        out._progress.write()
        record: UnitRecord = {
            "unit": unit,
            "files": entries,
            "counts": sorted_counts(out.counts),
            "facts": out.facts,
            "made_with": made_with(),
        }
        content = canonical_json(record).encode()
        place = _record_path(stage_dir, unit)
        if isinstance(place, Path):
            replace_file(place, content)
        else:
            put_if_absent(place, content)


@contextmanager
def _temporary(stage_dir: AnyPath) -> Iterator[Path]:
    if not isinstance(stage_dir, Path):
        with temporary_folder() as folder:
            yield folder
        return
    folder = stage_dir / WORK / "tmp" / uuid.uuid4().hex
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _entry(out: UnitOutput, relative: str, rows: int | None) -> StageFile:
    with (out.temporary / relative).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if isinstance(out.stage_dir, Path):
            os.fsync(file.fileno())
        entry: StageFile = {"path": relative, "bytes": file.tell(), "sha256": digest}
    if rows is not None:
        entry["rows"] = rows
    return entry


def _rename(out: UnitOutput, stage_dir: Path, entries: list[StageFile]) -> None:
    finals = [stage_dir / entry["path"] for entry in entries]
    for entry, final in zip(entries, finals, strict=True):
        final.parent.mkdir(parents=True, exist_ok=True)
        (out.temporary / entry["path"]).replace(final)
    for folder in {final.parent for final in finals}:
        sync_folder(folder)


def _upload(out: UnitOutput, entries: list[StageFile]) -> None:
    if (out.stage_dir / MANIFEST).is_file():
        raise _no_longer(out.stage_dir)
    for entry in entries:
        place = stage_file(out.stage_dir, entry)
        try:
            upload(out.temporary / entry["path"], place, entry["sha256"])
        except Conflict as error:
            why = "an attempt that was stopped, or another run, has left it" if is_published(entry) else "it is damaged"
            raise StageError(
                f"{place} is there with other content than unit {out.unit} has made now: {why}, and nothing that others may "
                "be reading is overwritten. Remove it when no run is at work there, and run again"
            ) from error


def _record_path(stage_dir: AnyPath, unit: str) -> AnyPath:
    return stage_dir / DONE / f"{unit}.json"


def read_record(stage_dir: AnyPath, unit: str) -> UnitRecord | None:
    """A unit's done-record as it is written, None where there is none or it cannot be read."""
    try:
        record: UnitRecord = json.loads(_record_path(stage_dir, unit).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        if isinstance(stage_dir, Path):
            return None
        raise  # objects are never half written: the store did not answer
    return record


def unit_record(stage_dir: AnyPath, unit: str) -> UnitRecord | None:
    """A unit's done-record, or None where the unit is not done (on a disk, also where its files are gone or of another size:
    on a store that is looked at once, when the stage is opened)."""
    record = read_record(stage_dir, unit)
    if record is not None and isinstance(stage_dir, Path) and not is_whole(stage_dir, record):
        return None
    return record


def is_whole(stage_dir: AnyPath, record: UnitRecord) -> bool:
    """Whether a unit's files are there with the sizes that its record says."""
    return sizes_of(stage_dir, record["files"]) == [entry["bytes"] for entry in record["files"]]
