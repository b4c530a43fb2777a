"""A pack made whole: the arrays and segments that one sample of a shard holds, built from a plan and its documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from nextflow_data.common.section import Section
from numpy.typing import NDArray

from nextflow_tokenize.documents.tokenized import TokenizedDocument
from nextflow_tokenize.packing.pieces import Piece
from nextflow_tokenize.packing.plan import PackPlan
from nextflow_tokenize.segments import Segment, slots, slots_of


class PieceRow(Section):
    """What one pack holds of one document: a row of `documents.parquet`, less its shard and key.

    Segments [first_segment, last_segment) and slots [first_slot, last_slot) of the pack; `piece` counts the document's
    pieces.
    """

    doc_id: str
    piece: int
    first_segment: int
    last_segment: int
    first_slot: int
    last_slot: int
    text_tokens: int
    image_codes: int
    images: int
    address: str | None
    source_kind: str | None
    licence: str | None
    task: str | None


@dataclass(frozen=True)
class PackSample:
    """One pack: segments in order, cost in FLOPs, text ids int32 [T], input and target codes uint32 [C], and its pieces."""

    segments: tuple[Segment, ...]
    cost: float
    text: NDArray[np.int32]
    input: NDArray[np.uint32]
    target: NDArray[np.uint32]
    pieces: tuple[PieceRow, ...]


def build_pack(pack: PackPlan, documents: Mapping[str, TokenizedDocument]) -> PackSample:
    """The pack that a plan describes. `documents` must hold every document of its pieces, by id.

    Raises KeyError for a missing document and ValueError for one that is no longer what was planned.
    """
    segments: list[Segment] = []
    text: list[NDArray[np.int32]] = [np.zeros(0, np.int32)]
    codes: dict[str, list[NDArray[np.uint32]]] = {name: [np.zeros(0, np.uint32)] for name in ("input", "target")}
    rows: list[PieceRow] = []
    slot = 0
    for piece in pack.pieces:
        if piece.doc_id not in documents:
            raise KeyError(f"document {piece.doc_id} is in the plan but was not given")
        document = documents[piece.doc_id]
        first = len(segments)
        for span in piece.spans:
            if span.segment >= len(document["segments"]):
                raise _changed(piece)
            source = document["segments"][span.segment]
            if source["kind"] == "text":
                ids = np.asarray(source["text"] or (), dtype=np.int32)[span.start : span.stop]
                if len(ids) != span.stop - span.start:
                    raise _changed(piece)
                text.append(ids)
                segments.append({"kind": "text", "doc": piece.doc_id, "tokens": len(ids), "loss": bool(source["loss"])})
                continue
            for name, parts in codes.items():
                parts.append(np.asarray(source[name] or (), dtype=np.uint32))  # type: ignore[literal-required]
            segments.append(
                {
                    "kind": "image",
                    "doc": piece.doc_id,
                    "sha256": source["sha256"] or "",
                    "grid": [int(n) for n in source["grid"] or ()],
                    "scales": int(source["scales"] or 0),
                    "loss": bool(source["loss"]),
                }
            )
        row = _row(piece, document, segments, first, slot)
        if row.last_slot - slot != piece.slots or row.image_codes != piece.codes:
            raise _changed(piece)
        rows.append(row)
        slot = row.last_slot
    arrays = {name: np.concatenate(parts) for name, parts in codes.items()}
    expected = sum(row.image_codes for row in rows)
    for name, array in arrays.items():
        if len(array) != expected:
            raise ValueError(f"the images of the pack have {len(array)} {name} codes, their grids need {expected}")
    return PackSample(
        tuple(segments), float(pack.cost), np.concatenate(text), arrays["input"], arrays["target"], tuple(rows)
    )


def _row(piece: Piece, document: TokenizedDocument, segments: list[Segment], first: int, slot: int) -> PieceRow:
    mine = segments[first:]
    images = [segment for segment in mine if segment["kind"] == "image"]
    return PieceRow(
        doc_id=piece.doc_id,
        piece=piece.number,
        first_segment=first,
        last_segment=len(segments),
        first_slot=slot,
        last_slot=slot + slots_of(mine),
        text_tokens=sum(segment["tokens"] for segment in mine if segment["kind"] == "text"),
        image_codes=sum(slots(image) - 1 for image in images),
        images=len(images),
        address=document["address"],
        source_kind=document["source_kind"],
        licence=document["licence"],
        task=document["task"],
    )


def _changed(piece: Piece) -> ValueError:
    return ValueError(
        f"document {piece.doc_id} is not what was planned (piece {piece.number}); plan again from these documents"
    )
