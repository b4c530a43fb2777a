"""Is a shard set what it says it is? Every byte is read, every number that can be computed again is.

The audit trusts nothing and stops at nothing: damage becomes a finding that names file, sample and bytes as nearly as they
can be known, and the rest is still examined. Hashes tell that something changed; the checks below them tell what. Each file
is read once, on a disk or in a store, and no more than a group of shards is held. The cost is a full reading of the set,
about as fast as sha256 and the disk allow; `ShardSet.open` is what a trainer calls.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

import pyarrow as pa
from nextflow_data.storage.files import any_path, list_files, state_of
from nextflow_data.storage.store_path import AnyPath

from nextflow_tokenize.audit.findings import Findings, in_bytes
from nextflow_tokenize.audit.one_shard import Parts, ShardReading, changed
from nextflow_tokenize.audit.result import AuditResult
from nextflow_tokenize.audit.tables import GroupPieces, check_totals, sorted_pieces
from nextflow_tokenize.shards.energon import nv_meta
from nextflow_tokenize.shards.format_1 import TABLES_1, ByShard, read_1
from nextflow_tokenize.shards.manifest import MANIFEST, SHARDS, ShardManifest, from_bytes, unsealed
from nextflow_tokenize.shards.records import ManifestError, identity_of
from nextflow_tokenize.shards.statistics import Statistics
from nextflow_tokenize.shards.tables import (
    DOCUMENTS,
    DOCUMENTS_SCHEMA,
    SAMPLES,
    SAMPLES_SCHEMA,
    SHARDS_SCHEMA,
    ShardRecord,
    ShardTable,
    from_parquet,
    part_name,
)
from nextflow_tokenize.shards.writer import totals_of

ENERGON_OWN = {".nv-meta/index.sqlite", ".nv-meta/index.uuid", ".nv-meta/.info.yaml"}
"""What `energon prepare` may add to a set."""
_SCHEMAS = {SAMPLES: SAMPLES_SCHEMA, DOCUMENTS: DOCUMENTS_SCHEMA}

Progress = Callable[[int, int], object]
"""Called with shards done and shards in all."""


def audit(path: str | AnyPath, *, progress: Progress | None = None) -> AuditResult:
    """Examines the set at `path` (a folder or an address of one) and never raises for what it finds there."""
    run = _Audit(any_path(path))
    with run.findings.guard(MANIFEST):
        run.read_manifest()
    if run.result.manifest is not None:
        run.examine(run.result.manifest, progress)
    run.findings.close()
    return run.result


class _Audit:
    def __init__(self, path: AnyPath) -> None:
        self.path = path
        self.result = AuditResult(path)
        self.findings = Findings(self.result.findings)
        self.find, self.guard = self.findings.find, self.findings.guard
        self.old: dict[str, ByShard] = {}
        """Both tables of a set of format 1, where they can be trusted."""
        self.listed = True
        """Whether every row of documents was read."""
        self.known = {MANIFEST}

    def read_manifest(self) -> None:
        try:
            data = (self.path / MANIFEST).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            self.find(MANIFEST, f"{self.path} has no {MANIFEST}, so no shard set was committed there")
            return
        try:
            self.result.manifest = from_bytes(data, MANIFEST)
        except ManifestError as error:
            self.find(MANIFEST, str(error))
            try:
                # Changed but legible: what it lists is still worth comparing with the files.
                self.result.manifest = unsealed(data, MANIFEST)
            except ManifestError:
                self.find(MANIFEST, "the files cannot be judged without it: the rest of the set was not examined")

    def examine(self, manifest: ShardManifest, progress: Progress | None) -> None:
        contents: dict[str, bytes | None] = {
            file.name: self.content(file.name, file.bytes, file.sha256) for file in manifest.files
        }
        shards: ShardTable | None = None
        with self.guard(SHARDS):
            shards = self.shard_table(manifest, contents.get(SHARDS))
        if manifest.format_version == 1:
            for of, (name, order) in TABLES_1.items():
                with self.guard(name):
                    self.read_old(of, name, order, contents.get(name))
        if shards is None:
            self.find(SHARDS, "the shards cannot be judged without it: they were not examined")
        else:
            self.examine_shards(manifest, shards, progress)
            with self.guard(".nv-meta"):
                self.check_nv_meta(shards, contents)
        with self.guard(MANIFEST):
            self.check_extra(everything=shards is not None)

    def content(self, name: str, size: int, digest: str) -> bytes | None:
        """The bytes of a file that is what it should be; else None, and a finding says why."""
        self.known.add(name)
        data: bytes | None = None
        with self.guard(name):
            try:
                with (self.path / name).open("rb") as stream:
                    data = stream.read(size + 1)
            except FileNotFoundError:
                self.find(name, "the file is missing")
                return None
            if len(data) != size:
                found = state_of(self.path / name).size
                where = in_bytes(min(found, size), max(found, size))
                self.find(name, f"the file has {found} bytes, {MANIFEST} states {size}", where=where)
                return None
            if (actual := sha256(data).hexdigest()) != digest:
                self.find(name, changed(actual, digest))
                return None
        return data

    def shard_table(self, manifest: ShardManifest, content: bytes | None) -> ShardTable | None:
        """The rows of the set's shards, where they can be trusted."""
        if manifest.format_version == 1:
            old = read_1((self.path / MANIFEST).read_bytes(), MANIFEST, sealed=False)
            rows = [ShardRecord(**row.model_dump()).model_dump() for row in old.shards]
            return ShardTable(pa.Table.from_pylist(rows, SHARDS_SCHEMA))
        if content is None:
            return None
        try:
            return ShardTable(from_parquet(content))
        except ManifestError as error:
            self.find(SHARDS, str(error))
            return None

    def read_old(self, of: str, name: str, order: tuple[str, ...], content: bytes | None) -> None:
        """One of the tables of format 1."""
        if content is None:
            return
        table = from_parquet(content)
        if not table.schema.equals(_SCHEMAS[of]):
            self.find(name, "its columns are not those of the format")
            return
        self.old[of] = ByShard(table, order)
        for what in sorted_pieces(table) if of == DOCUMENTS else ():
            self.find(name, what)

    def examine_shards(self, manifest: ShardManifest, shards: ShardTable, progress: Progress | None) -> None:
        counted = self.result.statistics
        group: GroupPieces | None = None
        for number in range(len(shards)):
            if progress:
                progress(number, len(shards))
            shard = shards[number]
            if group is None or group.group != shard.group:
                self.close_group(group)
                group = GroupPieces(shard.group, manifest.totals.groups)
            with self.guard(shard.name):
                counted.plus(self.examine_shard(shard, manifest, group).bounded())
        self.close_group(group)
        if progress:
            progress(len(shards), len(shards))
        counted.bounded()
        complete = self.result.samples_read == sum(shards.table["samples"].to_pylist())
        with self.guard(MANIFEST):
            totals = totals_of(counted, shards.table)
            for where, what in check_totals(manifest, totals, counted, complete, self.listed):
                self.find(MANIFEST, what, where=where)
            bound = manifest.text_tokenizer, manifest.vision_tokenizer, manifest.schedule
            if manifest.set_identity != identity_of(shards.table["sha256"].to_pylist(), *bound):
                self.find(MANIFEST, f"it is not that of {SHARDS}, the tokenizers and the schedule", where="set_identity")

    def examine_shard(self, shard: ShardRecord, manifest: ShardManifest, group: GroupPieces) -> Statistics:
        """One shard and the parts of the tables that belong to it; gives what was counted."""
        self.known |= {shard.name}
        index = self.content(shard.index_name, shard.index_bytes, shard.index_sha256)
        tables: dict[str, list[dict]] = {}
        names: dict[str, str] = {}
        for of in (SAMPLES, DOCUMENTS):
            names[of] = part_name(of, shard.name)
            stated = shard.files().get(names[of])
            if stated is None:
                names[of] = TABLES_1[of][0]
                if of in self.old:
                    tables[of] = self.old[of].of(shard.name).to_pylist()
                continue
            with self.guard(names[of]):
                data = self.content(names[of], *stated)
                table = from_parquet(data) if data is not None else None
                if table is not None and table.schema.equals(_SCHEMAS[of]):
                    tables[of] = table.to_pylist()
                elif table is not None:
                    self.find(names[of], "its columns are not those of the format")
        parts = Parts(tables.get(SAMPLES), tables.get(DOCUMENTS), index, names[SAMPLES], names[DOCUMENTS])
        reading = ShardReading(self.path, shard, manifest, parts, self.findings)
        try:
            self.result.samples_read += reading.run()
        except FileNotFoundError:
            self.find(shard.name, "the file is missing")
        if parts.documents is None:
            self.listed = False
        elif not self.old:
            for what in group.add(parts.documents_file, parts.documents):
                self.find(parts.documents_file, what)
        for row in parts.documents or ():
            reading.counted.add_piece(row)
        return reading.counted

    def close_group(self, group: GroupPieces | None) -> None:
        """All shards of a group were read."""
        for file, what in group.gaps() if group is not None and self.listed else ():
            self.find(file, what)

    def check_nv_meta(self, shards: ShardTable, contents: dict[str, bytes | None]) -> None:
        names, samples = (shards.table[name].to_pylist() for name in ("name", "samples"))
        for name, data in nv_meta(dict(zip(names, samples, strict=True))).items():
            if contents.get(name, b"") not in (data, None):
                self.find(name, "it does not describe the shards of the set")

    def check_extra(self, everything: bool) -> None:
        """Files that nothing names; `everything`: whether the shards' files are known."""
        for file, _ in list_files(self.path):
            name = str(file)[len(str(self.path)) + 1 :]
            shardlike = "/" not in name and name.startswith("shard-") and name.endswith((".tar", ".idx"))
            if name in self.known or name in ENERGON_OWN:
                continue
            if not everything and name.partition("/")[0].startswith(("shard-", SAMPLES, DOCUMENTS)):
                continue
            self.find(
                name,
                f"the file is not in {MANIFEST}"
                + (", yet readers that list the folder would take it for a shard" if shardlike else ""),
                advice="delete it if nothing needs it",
                severity="error" if shardlike else "warning",
            )
