"""`manifest.json` of a shard set: what the set is, in a size that does not grow with it. Written last, the commit.

It holds totals, tokenizers, schedule and budget, and the size and sha256 of `shards.parquet`, which has a row a shard with
the hashes of that shard's files; so opening a set reads one small file, and every byte of the set is still bound by it. The
file is canonical JSON and carries a hash of itself, so that no byte of it can change unseen. The cost: it cannot be edited
by hand; a set is made again instead. A reader refuses a format version it does not know. Format 1 (`format_1`) is read as
this one.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any, Literal

from nextflow_data.common.section import Section
from pydantic import Field, ValidationError

from nextflow_tokenize.shards.format_1 import Manifest1, read_1
from nextflow_tokenize.shards.records import (
    SAMPLE_SCHEMA,
    BudgetRecord,
    CostRecord,
    Count,
    ManifestError,
    ScheduleRecord,
    Sha256,
    TextTokenizerRecord,
    Tokens,
    VisionTokenizerRecord,
    canonical,
    identity_of,
    strict_json,
    why_not,
)

MANIFEST = "manifest.json"
SHARDS = "shards.parquet"
FORMAT: Literal["megatron-nextflow-shards"] = "megatron-nextflow-shards"
FORMAT_VERSION = 2
MAX_MANIFEST_BYTES = 1 << 28
"""A set of format 1 lists its shards in it."""
MOST_NAMES = 100
"""Sources, sites, licences or tasks that are told apart; those with fewer tokens are added up as "(other)"."""


class FileRecord(Section):
    """A file of the set that belongs to no shard."""

    name: Literal[
        "shards.parquet",
        "samples.parquet",
        "documents.parquet",
        ".nv-meta/.info.json",
        ".nv-meta/dataset.yaml",
        ".nv-meta/split.yaml",
    ]
    bytes: Count
    sha256: Sha256


class Totals(Section):
    """The whole set. `pieces` is at least `documents`: a document longer than a pack is in several; `bytes` are the
    tars'."""

    shards: Count
    bytes: Count
    groups: Count
    samples: Count
    documents: Count
    pieces: Count
    slots: Count
    text_tokens: Count
    image_codes: Count
    images: Count


class ShardManifest(Section):
    """The whole of `manifest.json`; `sha256` is that of the canonical text without this field.

    `set_identity` is what a training is bound to (`records.identity_of`). Of a set of format 1 `sha256` is its own file's.
    """

    format: Literal["megatron-nextflow-shards"] = FORMAT
    format_version: int = FORMAT_VERSION
    sample_schema: dict[str, str] = Field(default_factory=lambda: dict(SAMPLE_SCHEMA))
    text_tokenizer: TextTokenizerRecord
    vision_tokenizer: VisionTokenizerRecord | None
    schedule: ScheduleRecord
    seed: int
    budget: BudgetRecord
    parents: dict[str, str]
    files: tuple[FileRecord, ...]
    totals: Totals
    tokens_by_source: dict[str, Tokens]
    tokens_by_licence: dict[str, Tokens]
    packing: CostRecord
    set_identity: Sha256
    sha256: Sha256 = "0" * 64

    @property
    def codebook_size(self) -> int:
        """Entries of the codebook; 1 for a set without images."""
        return self.vision_tokenizer.codebook_size if self.vision_tokenizer else 1

    def file(self, name: str) -> FileRecord | None:
        """What is said of a file that belongs to no shard."""
        return next((file for file in self.files if file.name == name), None)


def seal(manifest: ShardManifest) -> ShardManifest:
    """The manifest with its own hash in it."""
    body = manifest.model_dump(mode="json", exclude={"sha256"})
    return manifest.model_copy(update={"sha256": sha256(canonical(body)).hexdigest()})


def to_bytes(manifest: ShardManifest) -> bytes:
    """The file's bytes: sorted keys, one space of indent, a final newline."""
    value = manifest.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False).encode() + b"\n"


def from_bytes(data: bytes, where: str = MANIFEST) -> ShardManifest:
    """The manifest of a file's bytes, of any format that was ever written.

    Raises ManifestError saying what is wrong: syntax, version, schema, or hash.
    """
    if version_of(data, where) == 1:
        return _as_now(read_1(data, where))
    manifest = _parse(data, where)
    try:
        sealed, written = seal(manifest).sha256, to_bytes(manifest)
    except ValueError:
        raise ManifestError(f"{where} holds a number that is not finite; the set must be written again") from None
    if sealed != manifest.sha256:
        raise ManifestError(f"{where} was changed after it was written: its content does not have the sha256 it states")
    if written != data:
        raise ManifestError(f"{where} was changed after it was written: it is not in canonical form")
    return manifest


def unsealed(data: bytes, where: str = MANIFEST) -> ShardManifest:
    """The manifest of bytes that may have been changed, as far as they are legible: for an audit alone. ManifestError."""
    return _as_now(read_1(data, where, sealed=False)) if version_of(data, where) == 1 else _parse(data, where)


def version_of(data: bytes, where: str = MANIFEST) -> int:
    """The format's version. Raises ManifestError for what is no manifest of a shard set, and for a version not known."""
    try:
        value = strict_json(data)
    except ValueError as error:
        raise ManifestError(f"{where} is not valid JSON ({error}); the set must be written again") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ManifestError(f"{where} is not the manifest of a shard set: its 'format' is not '{FORMAT}'")
    found = value.get("format_version")
    if type(found) is not int or not 1 <= found <= FORMAT_VERSION:
        raise ManifestError(f"{where} has format version {found!r}; this software reads versions 1 to {FORMAT_VERSION}")
    return found


def _parse(data: bytes, where: str) -> ShardManifest:
    try:
        # JSON mode, so that arrays may fill tuples while a string is still no number.
        manifest = ShardManifest.model_validate_json(data, strict=True)
    except (ValidationError, ValueError) as error:
        raise ManifestError(f"{where} does not follow the schema: {why_not(error)}") from None
    names = [file.name for file in manifest.files]
    if len(set(names)) != len(names) or SHARDS not in names:
        raise ManifestError(f"{where}: a file is listed twice, or {SHARDS} is not")
    return manifest


def _as_now(old: Manifest1) -> ShardManifest:
    same: dict[str, Any] = {
        name: getattr(old, name)
        for name in Manifest1.model_fields
        if name not in ("shards", "files", "totals") and name in ShardManifest.model_fields
    }
    files = tuple(FileRecord(**file.model_dump()) for file in old.files)
    size = sum(shard.bytes for shard in old.shards)
    totals = Totals(shards=len(old.shards), bytes=size, groups=1, **old.totals.model_dump())
    hashes = [shard.sha256 for shard in old.shards]
    identity = identity_of(hashes, old.text_tokenizer, old.vision_tokenizer, old.schedule)
    return ShardManifest(**same, files=files, totals=totals, set_identity=identity)
