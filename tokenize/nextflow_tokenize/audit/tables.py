"""The part of the audit that compares a set's tables and totals with the samples that were read.

The tables are cut by shard once, so that each shard is compared as it is read and no sample is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nextflow_tokenize.audit.statistics import Statistics
from nextflow_tokenize.segments import slots, slots_of
from nextflow_tokenize.shards.manifest import ShardManifest, Tokens, packing_of, schedule_record, sum_by
from nextflow_tokenize.shards.sample_format import Sample

Row = dict[str, Any]


class ByShard:
    """A table's rows by shard; none for a shard that it does not have. `rows` of a missing table is None."""

    def __init__(self, table: pa.Table | None, order: tuple[str, ...]) -> None:
        self.table = table.sort_by([(name, "ascending") for name in order]) if table is not None else None
        self.places: dict[str, tuple[int, int]] = {}
        if self.table is not None and self.table.num_rows:
            names = self.table["shard"].combine_chunks().dictionary_encode()
            codes = names.indices.to_numpy()
            borders = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
            for start, stop in pairwise(borders):
                self.places.setdefault(names.dictionary[int(codes[start])].as_py(), (start, stop))

    def rows(self, shard: str) -> list[Row] | None:
        """The rows of a shard, in order."""
        if self.table is None:
            return None
        start, stop = self.places.get(shard, (0, 0))
        return self.table.slice(start, stop - start).to_pylist()


def sample_row(shard: str, sample: Sample, offset: int, size: int, checksum: int) -> Row:
    """The row that `samples.parquet` must have for a sample."""
    return {
        "shard": shard,
        "key": sample.key,
        "offset": offset,
        "bytes": size,
        "crc32": checksum,
        "slots": sample.slots,
        "cost": sample.cost,
        "segments": len(sample.segments),
        "documents": len({segment["doc"] for segment in sample.segments}),
        "text_tokens": len(sample.text),
        "image_codes": len(sample.target),
        "images": sum(segment["kind"] == "image" for segment in sample.segments),
    }


def piece_rows(shard: str, sample: Sample) -> list[Row]:
    """The rows that `documents.parquet` must have for a sample, in the columns that the sample tells."""
    rows: list[Row] = []
    first_segment = first_slot = 0
    for doc, group in groupby(sample.segments, key=lambda segment: segment["doc"]):
        mine = list(group)
        taken = slots_of(mine)
        images = [segment for segment in mine if segment["kind"] == "image"]
        rows.append(
            {
                "shard": shard,
                "key": sample.key,
                "doc_id": doc,
                "first_segment": first_segment,
                "last_segment": first_segment + len(mine),
                "first_slot": first_slot,
                "last_slot": first_slot + taken,
                "text_tokens": sum(segment["tokens"] for segment in mine if segment["kind"] == "text"),
                "image_codes": sum(slots(image) - 1 for image in images),
                "images": len(images),
            }
        )
        first_segment += len(mine)
        first_slot += taken
    return rows


def compare_rows(found: list[Row], listed: list[Row], names: tuple[str, ...], complete: bool) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of one shard's rows in a table; `names` are the columns that identify a row.

    Rows that no sound sample has are named only where every sample of the shard is sound (`complete`).
    """
    by_name = {tuple(row[name] for name in names): row for row in listed}
    for row in found:
        other = by_name.pop(tuple(row[name] for name in names), None)
        if other is None:
            yield row["key"], f"it has no row with {', '.join(f'{name} {row[name]}' for name in names)}"
            continue
        for name, value in row.items():
            if other[name] != value:
                yield row["key"], f"{name} is {other[name]!r}, the sample gives {value!r}"
    if complete:
        for row in by_name.values():
            yield row["key"], f"its row with {', '.join(f'{name} {row[name]}' for name in names)} has nothing in the shard"


def check_pieces(documents: pa.Table) -> Iterator[str]:
    """What is wrong with `documents.parquet` in itself: rows sorted, the pieces of a document numbered 0, 1, …"""
    previous, piece = "", -1
    for batch in documents.select(["doc_id", "piece"]).to_batches():
        for row in batch.to_pylist():
            expected = piece + 1 if row["doc_id"] == previous else 0
            if row["doc_id"] < previous:
                yield f"its rows are not sorted: document {row['doc_id']} comes after {previous}"
            elif row["piece"] != expected:
                yield f"piece {expected} of document {row['doc_id']} is missing: piece {row['piece']} stands in its place"
            previous, piece = row["doc_id"], row["piece"]


def check_totals(
    manifest: ShardManifest, documents: pa.Table | None, statistics: Statistics, complete: bool
) -> Iterator[tuple[str, str]]:
    """(field, what is wrong) of totals in the manifest; fills the statistics by source, licence and task.

    Totals over samples are compared only where every sample is sound (`complete`).
    """
    if manifest.schedule != schedule_record():
        yield "schedule", "it is not the schedule that this software has, so grids cannot be trusted"
    if documents is not None:
        for name, column in (("source", "source_kind"), ("licence", "licence"), ("task", "task")):
            sums = documents.group_by(column).aggregate([(field, "sum") for field in Tokens.model_fields]).to_pylist()
            found = sum_by(
                (row[column], Tokens(**{field: row[f"{field}_sum"] for field in Tokens.model_fields})) for row in sums
            )
            setattr(statistics, f"tokens_by_{name}", {key: value.model_dump() for key, value in found.items()})
            if name != "task" and found != getattr(manifest, f"tokens_by_{name}"):
                yield f"tokens_by_{name}", "it is not the sum of what documents.parquet lists"
        statistics.documents = pc.count_distinct(documents["doc_id"]).as_py()
        for field, value in (("documents", statistics.documents), ("pieces", documents.num_rows)):
            if value != getattr(manifest.totals, field):
                yield f"totals.{field}", f"it is {getattr(manifest.totals, field)}, documents.parquet has {value}"
    if not complete:
        return
    for field in ("samples", "slots", "text_tokens", "image_codes", "images"):
        value = getattr(statistics, "packs" if field == "samples" else field)
        if value != getattr(manifest.totals, field):
            yield f"totals.{field}", f"it is {getattr(manifest.totals, field)}, the samples give {value}"
    packing = packing_of(statistics.slots, statistics.costs, manifest.budget.max_length, manifest.budget.max_cost)
    if packing != manifest.packing:
        yield "packing", "fill and cost are not what the samples give"
