"""The first pass over the input files: each is read once from end to end, and what its records became is kept.

It runs before the fingerprint of ingest is known, because the sha256 of each file is found by it. So it has a folder of its
own beside the stage's, of the same contract but never committed: a unit is a file in a state (or a part of one), so a file
that changes costs its own unit again and no other's. The folder goes when ingest is committed.

A large file is read in parts by several tasks (`nextflow_data.sources.one_pass` says how their beginnings are made sure of);
for its sha256, which cannot be put together from parts, one more task reads it from end to end. Files of sources that cannot
be read in one pass are hashed first and then listed, record by record, as their source does it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from nextflow_data.config import IngestConfig
from nextflow_data.records import Read, RecordInfo, Span, Unusable
from nextflow_data.sources.base import Source, SourceConfig
from nextflow_data.sources.one_pass import OnePass
from nextflow_data.sources.read_once import ReadOnce
from nextflow_data.storage.config import StorageConfig
from nextflow_data.storage.files import list_files
from nextflow_data.storage.opener import StoreOpener
from nextflow_data.storage.store_path import AnyPath

from nextflow_pipelines.contract.kept import remove_work
from nextflow_pipelines.contract.locks import stage_lock
from nextflow_pipelines.contract.stage import StageBusy, StagePlan
from nextflow_pipelines.contract.tables import SCHEMAS, UnitTables
from nextflow_pipelines.contract.work import StageWork, open_stage
from nextflow_pipelines.inputs import InputFile, KnownContents
from nextflow_pipelines.sources import Place, make_source, reference
from nextflow_pipelines.spark.context import RunContext
from nextflow_pipelines.spark.runner import Unit, run_units

NAME = "first_pass"
VERSION = 1
LEAST_PART = 8 << 20
"""A file of this machine is cut into parts no smaller than this where there are fewer files than tasks."""
ROWS, ASIDES = "_work/rows", "_work/asides"

READ = pa.schema(
    [
        pa.field("address", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("mime", pa.string()),
        pa.field("charset", pa.string()),
        pa.field("status", pa.int32()),
        pa.field("record_id", pa.string()),
        pa.field("date", pa.string()),
        pa.field("licence", pa.string()),
        pa.field("links", pa.list_(pa.string())),
        pa.field("draft", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)
"""A record as it was read. Of one that makes a document: the addresses that it names, and its draft or why there is none."""
RECORD = READ.names[: READ.get_field_index("links")]
"""The columns that say what a record is, whatever became of it."""
_FLUSH = 8 << 20
"""Characters of drafts that are gathered before they are written."""


@dataclass
class Passed:
    """What the pass over one file gave: the files of its rows and asides in order, each with how many numbered records came
    before it, and the sha256."""

    sha256: str
    parts: list[tuple[AnyPath, AnyPath, int]] = field(default_factory=list)


def first_pass(
    ctx: RunContext, limits: IngestConfig, entries: Sequence[SourceConfig], files: Sequence[InputFile], known: KnownContents
) -> list[Passed]:
    """Reads what of the files has not been read yet; gives what each of them gave, in their order."""
    plan = pass_plan(limits, entries, known)
    with open_stage(ctx.root, plan, lambda words: ctx.progress(0, None, words)) as work:
        parts = [_parts(ctx, limits, entries, files, file) for file in files]
        found = _read(ctx, limits, entries, work, [unit for planned in parts for unit in planned])
        hashes = [_hash_unit(file) if len(planned) > 1 else planned[0] for file, planned in zip(files, parts, strict=True)]
        found |= _read(ctx, limits, entries, work, hashes)
        while True:
            chained = [_chain(planned, found) for planned in parts]
            again = [unit for _, unit in chained if unit is not None]
            if not again:
                break
            found |= _read(ctx, limits, entries, work, again)
        passed = []
        for (taken, _), whole in zip(chained, hashes, strict=True):
            one = Passed(found[whole.name]["sha256"])
            before = 0
            for name in taken:
                (rows,), (asides,) = work.files([name], ROWS), work.files([name], ASIDES)
                one.parts.append((rows, asides, before))
                before += found[name]["count"]
            passed.append(one)
    return passed


def pass_plan(limits: IngestConfig, entries: Sequence[SourceConfig], known: KnownContents) -> StagePlan:
    """Where the pass over a set of names lies, whatever is in the files."""
    settings = [entry.identity() for entry in entries]
    return StagePlan(NAME, VERSION, {"ingest": limits.identity(), "entries": settings, "names": known.set}, {})


def discard(ctx: RunContext, plan: StagePlan) -> None:
    """Removes what a pass left (also that of a run that was killed) once all of it has gone into a commit; another run that
    is at it now removes it itself."""
    folder = plan.folder(ctx.root)
    if not (folder.exists() if isinstance(folder, Path) else any(list_files(folder))):
        return
    with suppress(StageBusy), stage_lock(ctx.root, folder.name):
        remove_work(folder)
        if isinstance(folder, Path):
            with suppress(OSError):
                folder.rmdir()


def _read(
    ctx: RunContext, limits: IngestConfig, entries: Sequence[SourceConfig], work: StageWork, units: Sequence[Unit]
) -> dict[str, dict[str, Any]]:
    """Runs units; gives the facts of each by name."""
    task = partial(_read_part, entries, limits, ctx.storage)
    schemas = {ROWS: READ, ASIDES: SCHEMAS["asides"]}
    names = run_units(ctx.session, work, units, task, schemas, ctx.progress, "1/5 reading sources")
    return {record["unit"]: record["facts"] for record in work.records(names)}


def _parts(
    ctx: RunContext, limits: IngestConfig, entries: Sequence[SourceConfig], files: Sequence[InputFile], file: InputFile
) -> list[Unit]:
    size, most = file.place.state.size, limits.split_bytes
    if isinstance(file.place.path, Path):
        most = min(most, max(LEAST_PART, -(-size * len(files) // ctx.spark.partitions)))
    if size <= most or not isinstance(make_source(entries[file.entry], limits), OnePass):
        return [_unit(file, 0, None, True)]
    return [_unit(file, start, min(start + most, size), start == 0) for start in range(0, size, most)]


def _unit(file: InputFile, start: int, stop: int | None, exact: bool) -> Unit:
    name = file.place.key + ("" if stop is None else f"-{start:x}-{stop:x}" + ("-exact" if start and exact else ""))
    payload = {"entry": file.entry, "place": file.place.as_json(), "start": start, "stop": stop, "exact": exact}
    return Unit(f"{file.kind}-{name}", payload)


def _hash_unit(file: InputFile) -> Unit:
    return Unit(f"{file.kind}-{file.place.key}-sha256", {"entry": None, "place": file.place.as_json()})


def _chain(parts: Sequence[Unit], found: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], Unit | None]:
    """The units whose records make up a file: each begins where the one before it ended. With the first that did not, and is
    to be read again from there."""
    taken: list[str] = []
    at = 0
    for unit in parts:
        start, stop = unit.payload["start"], unit.payload["stop"]
        if start and at >= stop:
            continue  # a record that began before reaches over all of it
        if start and found[unit.name]["began"] != at:
            name = unit.name.rpartition("-")[0].rpartition("-")[0]
            unit = Unit(f"{name}-{at:x}-{stop:x}-exact", {**unit.payload, "start": at, "exact": True})
            if unit.name not in found:
                return taken, unit
        taken.append(unit.name)
        at = found[unit.name]["ended"]
    return taken, None


def _read_part(
    entries: Sequence[SourceConfig], limits: IngestConfig, storage: StorageConfig, payload: Any, out: UnitTables
) -> None:
    place = Place.of(payload["place"], storage)
    if payload["entry"] is None:
        with closing(ReadOnce(StoreOpener({"": (place.path, place.state)}), "", hashed=True)) as stream:
            out.out.facts["sha256"] = stream.sha256()
        return
    entry = entries[payload["entry"]]
    source = make_source(entry, limits)
    span = Span(payload["start"], payload["stop"], payload["exact"])
    whole = span.stop is None
    with closing(ReadOnce(StoreOpener({"": (place.path, place.state)}), "", span.start, span.stop, whole)) as stream:
        if isinstance(source, OnePass):
            _write(_drafts(source, source.read_on(stream, "", span)), out)
        if whole:
            out.out.facts["sha256"] = stream.sha256()
    if not isinstance(source, OnePass):
        uri = reference(entry.kind, out.out.facts["sha256"], place.path.name)
        _write(_listed(source, uri, StoreOpener({uri: (place.path, place.state)})), out)
    out.out.facts |= {"began": span.began, "ended": span.ended, "count": span.count}


def _drafts(source: OnePass[Any], found: Iterator[Read[Any] | Any]) -> Iterator[dict[str, Any]]:
    for one in found:
        if not isinstance(one, Read):
            yield one
            continue
        row: dict[str, Any] = dict(one.record)
        try:
            if isinstance(one.payload, Unusable):
                raise one.payload
            if one.payload is not None:
                draft = source.draft(one.record, one.payload)
                row |= {"draft": draft.text, "links": draft.links}
        except Unusable as error:
            row |= {"reason": error.reason, "detail": error.detail}
        yield row


def _listed(source: Source[Any], uri: str, opener: StoreOpener) -> Iterator[dict[str, Any]]:
    """Records of a source that is not read in one pass: without drafts, so they are read again when documents are made."""
    for found in source.records(uri, opener):
        row: dict[str, Any] = dict(found)
        if "address" in found and found.get("kind") == "page":
            record: RecordInfo = found  # type: ignore[assignment]
            with suppress(Unusable):  # met again when its document is made, and put aside then
                row["links"] = list(source.links(record, source.payload(record, opener)))
        yield row


def _write(found: Iterator[dict[str, Any]], out: UnitTables) -> None:
    rows: list[dict[str, Any]] = []
    size = 0
    for row in found:
        if "kind" not in row:
            out.write(ASIDES, [row])
            continue
        rows.append(row)
        size += len(row.get("draft") or "")
        out.progress(**{f"{row['kind']} records": 1})
        if len(rows) >= 256 or size >= _FLUSH:
            out.write(ROWS, rows)
            rows, size = [], 0
    out.write(ROWS, rows)
