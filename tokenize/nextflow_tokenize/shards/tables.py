"""The tables of a shard set: a row a shard, a row a sample, a row a piece of a document.

`shards.parquet` has a row a shard: the hashes of its four files and what is in it. Beside each tar lie, written by the task
that wrote it, its parts of the other two: `samples/shard-000000.parquet`, each sample's place, checksum and cost, which is
also our index of the tar (a reader needs no other, and checks each sample by it); and `documents/shard-000000.parquet`,
which leads from a document to its packs. A document lies in the shards of one group (`nextflow_tokenize.packing.groups`), so
it is found without reading the others. The cost: four files a shard.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from nextflow_data.common.section import Section
from numpy.typing import NDArray

from nextflow_tokenize.packing.sample import PieceRow
from nextflow_tokenize.shards.records import Count, ManifestError, Sha256, ShardName

SAMPLES: Literal["samples"] = "samples"
DOCUMENTS: Literal["documents"] = "documents"
"""Folders of the two tables that are written a shard at a time."""

SHARDS_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("group", pa.int32()),
        *((f"{of}bytes", pa.int64()) for of in ("", "index_", "samples_", "documents_")),
        *((f"{of}sha256", pa.string()) for of in ("", "index_", "samples_", "documents_")),
        *((name, pa.int64()) for name in ("samples", "pieces", "slots", "text_tokens", "image_codes", "images")),
    ]
)
"""`shards.parquet`: one row a shard, in order. `group` is that of its documents."""

SAMPLES_SCHEMA = pa.schema(
    [
        ("shard", pa.string()),
        ("key", pa.string()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("crc32", pa.uint32()),
        ("slots", pa.int64()),
        ("cost", pa.float64()),
        ("segments", pa.int32()),
        ("documents", pa.int32()),
        ("text_tokens", pa.int64()),
        ("image_codes", pa.int64()),
        ("images", pa.int32()),
    ]
)
"""`samples/`: one row a pack, in the order of the shard. `crc32` is that of the sample's bytes in the tar."""

DOCUMENTS_SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("piece", pa.int32()),
        ("shard", pa.string()),
        ("key", pa.string()),
        ("first_segment", pa.int32()),
        ("last_segment", pa.int32()),
        ("first_slot", pa.int64()),
        ("last_slot", pa.int64()),
        ("text_tokens", pa.int64()),
        ("image_codes", pa.int64()),
        ("images", pa.int32()),
        ("address", pa.string()),
        ("source_kind", pa.string()),
        ("licence", pa.string()),
        ("task", pa.string()),
    ]
)
"""`documents/`: one row a piece of a document, sorted by doc_id and piece; slots and segments are the pack's."""


class ShardRecord(Section):
    """A row of `shards.parquet`. Slots count ⟨boi⟩ and ⟨eoi⟩; codes are Σhw of all images.

    A shard of format 1 has no files of its own for samples and documents: their size is None.
    """

    name: ShardName
    group: Count = 0
    bytes: Count
    sha256: Sha256
    index_bytes: Count
    index_sha256: Sha256
    samples_bytes: Count | None = None
    samples_sha256: Sha256 | None = None
    documents_bytes: Count | None = None
    documents_sha256: Sha256 | None = None
    samples: Count
    pieces: Count | None = None
    slots: Count
    text_tokens: Count
    image_codes: Count
    images: Count

    @property
    def index_name(self) -> str:
        """Energon's member index beside the shard."""
        return self.name + ".idx"

    @property
    def number(self) -> int:
        """The shard's number."""
        return int(self.name[6:12])

    def files(self) -> dict[str, tuple[int, str]]:
        """Size and sha256 of each of the shard's files, by its name in the set."""
        found = {self.name: (self.bytes, self.sha256), self.index_name: (self.index_bytes, self.index_sha256)}
        if self.samples_bytes is not None and self.samples_sha256 is not None:
            found[part_name(SAMPLES, self.name)] = self.samples_bytes, self.samples_sha256
        if self.documents_bytes is not None and self.documents_sha256 is not None:
            found[part_name(DOCUMENTS, self.name)] = self.documents_bytes, self.documents_sha256
        return found


def part_name(table: str, shard: str) -> str:
    """A shard's part of a table: `samples/shard-000000.parquet`."""
    return f"{table}/{shard.removesuffix('.tar')}.parquet"


class ShardTable:
    """The rows of `shards.parquet`. `starts` [shards + 1]: number of the first sample of each shard, then of all samples."""

    def __init__(self, table: pa.Table) -> None:
        """Raises ManifestError where the rows are not those of shards in their order."""
        if not table.schema.equals(SHARDS_SCHEMA):
            raise ManifestError("its columns are not those of the format")
        for expected, name in enumerate(table["name"].to_pylist()):
            if name != f"shard-{expected:06d}.tar":
                raise ManifestError(f"shard {expected} is missing or out of order; '{name}' stands in its place")
        self.table = table
        samples = table["samples"].to_numpy().astype(np.int64)
        self.starts: NDArray[np.int64] = np.concatenate([np.zeros(1, np.int64), np.cumsum(samples)])

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, number: int) -> ShardRecord:
        return ShardRecord(**self.table.slice(number, 1).to_pylist()[0])

    def of_group(self, group: int) -> list[int]:
        """Numbers of the shards that hold a group's documents."""
        found: list[int] = np.flatnonzero(self.table["group"].to_numpy() == group).tolist()
        return found

    def locate(self, sample: int) -> tuple[int, int]:
        """The number of the shard that holds a sample, and its place in it."""
        shard = int(np.searchsorted(self.starts, sample, side="right")) - 1
        return shard, sample - int(self.starts[shard])


class SampleRow(Section):
    """A row of `samples/`, less its shard, and the pieces that the sample holds."""

    key: str
    offset: int
    bytes: int
    crc32: int
    slots: int
    cost: float
    segments: int
    text_tokens: int
    image_codes: int
    images: int
    pieces: tuple[PieceRow, ...]


def parts_of(shard: str, rows: Iterable[SampleRow]) -> dict[str, pa.Table]:
    """A shard's parts of both tables."""
    samples: list[dict[str, Any]] = []
    documents: list[dict[str, Any]] = []
    for row in rows:
        at = {"shard": shard, "key": row.key}
        samples.append({**at, **row.model_dump(exclude={"pieces", "key"}), "documents": len(row.pieces)})
        documents += [{**at, **piece.model_dump()} for piece in row.pieces]
    documents.sort(key=lambda row: (row["doc_id"], row["piece"]))
    return {
        SAMPLES: pa.Table.from_pylist(samples, schema=SAMPLES_SCHEMA),
        DOCUMENTS: pa.Table.from_pylist(documents, schema=DOCUMENTS_SCHEMA),
    }


def to_parquet(table: pa.Table) -> bytes:
    """A table as the bytes of its file, the same for the same table and the same pyarrow."""
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=1 << 16)
    return sink.getvalue().to_pybytes()


def from_parquet(data: bytes) -> pa.Table:
    """The table of a file's bytes."""
    import pyarrow.parquet as pq

    return pq.read_table(pa.BufferReader(data))
