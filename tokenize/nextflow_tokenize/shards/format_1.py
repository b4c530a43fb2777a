"""Format 1 of a shard set's manifest, read and never written: it lists every shard, and two tables hold all samples.

    manifest.json, shard-000000.tar, shard-000000.tar.idx, samples.parquet, documents.parquet, .nv-meta/

What was written in it stays readable: its numbers become those of `nextflow_tokenize.shards.manifest`, its shards rows of
`shards.parquet`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from itertools import pairwise
from typing import Literal

import numpy as np
import pyarrow as pa
from nextflow_data.common.section import Section
from pydantic import Field, ValidationError

from nextflow_tokenize.shards.records import (
    BudgetRecord,
    CostRecord,
    Count,
    ManifestError,
    ScheduleRecord,
    Sha256,
    ShardName,
    TextTokenizerRecord,
    Tokens,
    VisionTokenizerRecord,
    canonical,
    why_not,
)

TABLES_1 = {
    "samples": ("samples.parquet", ("shard", "key")),
    "documents": ("documents.parquet", ("shard", "key", "first_slot")),
}
"""File and order of each of its two tables."""


class FileRecord1(Section):
    """A file of the set."""

    name: Literal[
        "samples.parquet", "documents.parquet", ".nv-meta/.info.json", ".nv-meta/dataset.yaml", ".nv-meta/split.yaml"
    ]
    bytes: Count
    sha256: Sha256


class ShardRecord1(Section):
    """A shard, its member index and what is in it."""

    name: ShardName
    bytes: Count
    sha256: Sha256
    index_bytes: Count
    index_sha256: Sha256
    samples: Count
    slots: Count
    text_tokens: Count
    image_codes: Count
    images: Count


class Totals1(Section):
    """The whole set."""

    samples: Count
    documents: Count
    pieces: Count
    slots: Count
    text_tokens: Count
    image_codes: Count
    images: Count


class Manifest1(Section):
    """The whole of `manifest.json`; `sha256` is that of the canonical text without this field."""

    format: Literal["megatron-nextflow-shards"]
    format_version: Literal[1]
    sample_schema: dict[str, str]
    text_tokenizer: TextTokenizerRecord
    vision_tokenizer: VisionTokenizerRecord | None
    schedule: ScheduleRecord
    seed: int
    budget: BudgetRecord
    parents: dict[str, str]
    shards: tuple[ShardRecord1, ...]
    files: tuple[FileRecord1, ...]
    totals: Totals1
    tokens_by_source: dict[str, Tokens]
    tokens_by_licence: dict[str, Tokens]
    packing: CostRecord
    sha256: Sha256 = Field()


def read_1(data: bytes, where: str, sealed: bool = True) -> Manifest1:
    """The manifest of a file's bytes. Raises ManifestError saying what is wrong: schema, or, where `sealed` asks, hash."""
    try:
        # JSON mode, so that arrays may fill tuples while a string is still no number.
        found = Manifest1.model_validate_json(data, strict=True)
    except (ValidationError, ValueError) as error:
        raise ManifestError(f"{where} does not follow the schema: {why_not(error)}") from None
    if sealed:
        for wrong in _broken(found, data):
            raise ManifestError(f"{where} was changed after it was written: {wrong}")
    for expected, shard in enumerate(found.shards):
        if int(shard.name[6:12]) != expected:
            raise ManifestError(f"{where}: shard {expected} is missing or out of order; '{shard.name}' stands in its place")
    names = [file.name for file in found.files]
    if len(set(names)) != len(names):
        raise ManifestError(f"{where}: a file is listed twice")
    return found


def _broken(found: Manifest1, data: bytes) -> Iterator[str]:
    try:
        value = found.model_dump(mode="json")
        written = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False).encode() + b"\n"
        value.pop("sha256")
        digest = sha256(canonical(value)).hexdigest()
    except ValueError:
        yield "it holds a number that is not finite"
        return
    if digest != found.sha256:
        yield "its content does not have the sha256 it states"
    if written != data:
        yield "it is not in canonical form"


class ByShard:
    """A table of all shards, cut by shard; a shard that it does not have has no rows."""

    def __init__(self, table: pa.Table, order: tuple[str, ...]) -> None:
        self.table = table.sort_by([(name, "ascending") for name in order])
        self.places: dict[str, tuple[int, int]] = {}
        if self.table.num_rows:
            names = self.table["shard"].combine_chunks().dictionary_encode()
            codes = names.indices.to_numpy()
            borders = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
            for start, stop in pairwise(borders):
                self.places.setdefault(names.dictionary[int(codes[start])].as_py(), (start, stop))

    def of(self, shard: str) -> pa.Table:
        """The rows of a shard, in order."""
        start, stop = self.places.get(shard, (0, 0))
        return self.table.slice(start, stop - start)
