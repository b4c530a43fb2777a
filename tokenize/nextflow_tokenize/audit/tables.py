"""The part of the audit that compares a set's tables and totals with the samples that were read.

A shard's rows are compared as the shard is read, and the pieces of a group's documents when its last shard is done, so no
more than a group is held.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from math import isclose
from typing import Any

import pyarrow as pa

from nextflow_tokenize.packing.groups import group_of
from nextflow_tokenize.segments import slots, slots_of
from nextflow_tokenize.shards.manifest import MOST_NAMES, ShardManifest, Totals
from nextflow_tokenize.shards.records import CostRecord, schedule_record
from nextflow_tokenize.shards.sample_format import Sample
from nextflow_tokenize.shards.statistics import Statistics, tokens_of

Row = dict[str, Any]


def sample_row(shard: str, sample: Sample, offset: int, size: int, checksum: int) -> Row:
    """The row that the table of samples must have for a sample."""
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
    """The rows that the table of documents must have for a sample, in the columns that the sample tells."""
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


class GroupPieces:
    """The pieces of one group's documents, gathered from its shards' rows."""

    def __init__(self, group: int, groups: int) -> None:
        self.group, self.groups = group, groups
        self.found: dict[str, list[tuple[int, str]]] = {}

    def add(self, file: str, rows: list[Row]) -> Iterator[str]:
        """Takes a shard's rows; gives what is wrong with their order and with the group they are in."""
        previous = ("", -1)
        for row in rows:
            place = row["doc_id"], row["piece"]
            if place <= previous:
                yield f"its rows are not sorted: piece {place[1]} of document {place[0]} comes after {previous[0]}"
            if group_of(row["doc_id"], self.groups) != self.group:
                yield f"document {row['doc_id']} is not of group {self.group}, so nobody would look for it here"
            previous = place
            self.found.setdefault(row["doc_id"], []).append((row["piece"], file))

    def gaps(self) -> Iterator[tuple[str, str]]:
        """(file, what is wrong) where the pieces of a document are not numbered 0, 1, …"""
        for doc_id, pieces in self.found.items():
            for expected, (piece, file) in enumerate(sorted(pieces)):
                if piece != expected:
                    yield file, f"piece {expected} of document {doc_id} is missing: piece {piece} stands in its place"
                    break


def sorted_pieces(documents: pa.Table) -> Iterator[str]:
    """What is wrong with the one table of documents of format 1: rows sorted, a document's pieces numbered 0, 1, …"""
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
    manifest: ShardManifest, of_shards: Totals, counted: Statistics, complete: bool, listed: bool
) -> Iterator[tuple[str, str]]:
    """(field, what is wrong) of totals in the manifest.

    `of_shards` are those of the rows of shards and of `counted`. Totals over samples are compared only where every sample is
    sound (`complete`), those over documents where every row of documents is (`listed`).
    """
    if manifest.schedule != schedule_record():
        yield "schedule", "it is not the schedule that this software has, so grids cannot be trusted"
    wanted = ["shards", "bytes", "groups", *(["documents", "pieces"] if listed else [])]
    wanted += ["samples", "slots", "text_tokens", "image_codes", "images"] if complete else []
    for field in wanted:
        stated, found = getattr(manifest.totals, field), getattr(of_shards, field)
        if stated != found:
            yield f"totals.{field}", f"it is {stated}, the set's shards give {found}"
    for name in ("source", "licence") if listed else ():
        amounts = getattr(manifest, f"tokens_by_{name}")
        # Format 1 told any number of names apart.
        if len(amounts) <= MOST_NAMES + 1 and tokens_of(getattr(counted, f"tokens_by_{name}")) != amounts:
            yield f"tokens_by_{name}", "it is not the sum of what the table of documents lists"
    if complete:
        packing = counted.packing(manifest.budget.max_length, manifest.budget.max_cost)
        # Format 1 added costs up as floats, whose last digits depend on how.
        pairs = ((getattr(packing, name), getattr(manifest.packing, name)) for name in CostRecord.model_fields)
        if not all(isclose(one, other, rel_tol=1e-9) for one, other in pairs):
            yield "packing", "fill and cost are not what the samples give"
