"""Duplicate images: what is compared of each, and when two are one image.

A hash alone errs (screenshots of one program look alike in 64 bits), so each candidate pair (`near_hashes`) is compared on
small colour thumbnails.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict

import numpy as np
from PIL import Image as Pillow

from nextflow_data.common.stage_names import DEDUP
from nextflow_data.config import DedupConfig, IngestConfig
from nextflow_data.decisions import Decision, Finding, Subject, decision
from nextflow_data.document import Document
from nextflow_data.images.measure import open_rgb
from nextflow_data.nodes import with_nodes, without


class ImageOccurrence(TypedDict):
    """One image node: where it stands and what is compared. Nodes of one `image_id` hold the same bytes, and copies are
    looked for among all ids, or among those of one `scope` ("" is all)."""

    image_id: str
    scope: str
    doc_id: str
    node: int
    sha256: str
    phash: str
    width: int
    height: int


class ImageCopy(TypedDict):
    """An image node that goes: the one that stays, and the difference of their thumbnails, 0…1 (0 where bytes are equal)."""

    doc_id: str
    node: int
    equal: bool
    kept_doc_id: str
    kept_node: int
    kept_sha256: str
    value: float


def occurrences(document: Document, config: DedupConfig) -> list[ImageOccurrence]:
    """The image nodes of a document."""
    scope = "" if config.across_documents else document["doc_id"]
    return [
        {
            "image_id": f"{scope}:{node['image']['sha256']}" if scope else node["image"]["sha256"],
            "scope": scope,
            "doc_id": document["doc_id"],
            "node": index,
            "sha256": node["image"]["sha256"],
            "phash": node["image"]["phash"],
            "width": node["image"]["width"],
            "height": node["image"]["height"],
        }
        for index, node in enumerate(document["nodes"])
        if node["image"] is not None
    ]


def thumbnail(payload: bytes, config: DedupConfig, ingest: IngestConfig) -> bytes:
    """The image squeezed to uint8 [side, side, 3]. Raises ImageRejected."""
    side = config.image_thumbnail
    image = open_rgb(payload, ingest, 8 * side)
    return np.asarray(image.resize((side, side), Pillow.Resampling.BOX), dtype=np.uint8).tobytes()


def differences(one: Sequence[bytes], other: Sequence[bytes]) -> np.ndarray:
    """Mean absolute difference of each pair of thumbnails, 0 (equal) … 1 (black against white), float64 [n]."""
    a, b = (np.frombuffer(b"".join(side), np.uint8).reshape(len(side), -1).astype(np.int16) for side in (one, other))
    return np.asarray(np.abs(a - b).mean(axis=1) / 255)


def image_decision(document: Document, copy: ImageCopy, config: DedupConfig) -> Decision:
    """The drop of an image node that is a copy."""
    image = document["nodes"][copy["node"]]["image"]
    assert image is not None
    finding = Finding(
        "dedup.image_exact" if copy["equal"] else "dedup.image_max_difference",
        copy["value"],
        0.0 if copy["equal"] else config.image_max_difference,
        f"{image['sha256']}: kept {copy['kept_doc_id']} node {copy['kept_node']} {copy['kept_sha256']}",
    )
    return decision(Subject.of(document), DEDUP, finding, "drop", copy["node"])


def remove_images(document: Document, decisions: Iterable[Decision]) -> Document | None:
    """`document` without the image nodes its decisions name; None where nothing is left."""
    dropped = {d["index"] for d in decisions if d["doc_id"] == document["doc_id"] and d["index"] is not None}
    nodes = without(document["nodes"], dropped)
    return with_nodes(document, nodes) if nodes else None
