"""The two tables of a shard set, a row a sample and a row a piece of a document, and what a written shard says of itself.

`samples.parquet` holds each sample's place, checksum and cost, so that a reader can verify a sample alone and choose packs
without opening a tar; `documents.parquet` leads from a document to its packs. The cost: both are gathered by one process
when the set is committed, about 200 bytes a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from nextflow_data.common.section import Section

from nextflow_tokenize.packing.sample import PieceRow
from nextflow_tokenize.shards.manifest import ShardRecord

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
"""`samples.parquet`: one row a pack, in the order of shards. `crc32` is that of the sample's bytes in the tar."""

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
"""`documents.parquet`: one row a piece of a document, sorted by doc_id and piece; slots and segments are the pack's."""


class SampleRow(Section):
    """A row of `samples.parquet`, less its shard."""

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


class ShardInfo(Section):
    """What `write_shard` made: all that `write_manifest` needs of a shard. Tasks send it as JSON (`model_dump_json`)."""

    record: ShardRecord
    samples: tuple[SampleRow, ...]


def tables_of(ordered: Sequence[ShardInfo]) -> tuple[pa.Table, pa.Table]:
    """Both tables of a set whose shards are given in order."""
    samples, documents = [], []
    for info in ordered:
        for row in info.samples:
            at = {"shard": info.record.name, "key": row.key}
            samples.append({**at, **row.model_dump(exclude={"pieces", "key"}), "documents": len(row.pieces)})
            documents += [{**at, **piece.model_dump()} for piece in row.pieces]
    documents.sort(key=lambda row: (row["doc_id"], row["piece"]))
    return pa.Table.from_pylist(samples, schema=SAMPLES_SCHEMA), pa.Table.from_pylist(documents, schema=DOCUMENTS_SCHEMA)


def to_parquet(table: pa.Table) -> bytes:
    """A table as the bytes of its file, the same for the same table and the same pyarrow."""
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=1 << 16)
    return sink.getvalue().to_pybytes()
