"""Duplicate images: candidates by perceptual hash, confirmed on pixels.

A hash alone errs (screenshots of one program look alike in 64 bits), so each candidate pair is compared on small colour
thumbnails. Candidates are found by blocks: the hash is cut in r+2 blocks, of which two hashes at distance at most r share at
least two; a key for each pair of blocks finds every such pair and few others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, pairwise
from math import log
from typing import TypedDict

import numpy as np
from PIL import Image as Pillow

from nextflow_data.common.stage_names import DEDUP
from nextflow_data.config import DedupConfig, IngestConfig
from nextflow_data.decisions import Decision, Finding, Subject, decision
from nextflow_data.dedup.clusters import connected_components
from nextflow_data.document import Document
from nextflow_data.images.measure import open_rgb
from nextflow_data.nodes import with_nodes, without
from nextflow_data.records import Unusable

SHARED_BLOCKS = 2
ImageEdge = tuple[str, str, float]
"""(sha256, sha256, difference 0…1 of the thumbnails)."""


class ImageOccurrence(TypedDict):
    """One image node: where it stands and what is compared."""

    doc_id: str
    address: str
    node: int
    sha256: str
    phash: str
    width: int
    height: int


def occurrences(document: Document) -> list[ImageOccurrence]:
    """The image nodes of a document."""
    return [
        {
            "doc_id": document["doc_id"],
            "address": document["source"]["address"],
            "node": index,
            "sha256": node["image"]["sha256"],
            "phash": node["image"]["phash"],
            "width": node["image"]["width"],
            "height": node["image"]["height"],
        }
        for index, node in enumerate(document["nodes"])
        if node["image"] is not None
    ]


def image_keys(phash: str, config: DedupConfig) -> list[bytes]:
    """Keys of a 64-bit hash (16 hex digits): any two hashes at Hamming distance ≤ `image_hamming` share one or more."""
    blocks = config.image_hamming + SHARED_BLOCKS
    bits = f"{int(phash, 16):064b}"
    edges = [round(number * 64 / blocks) for number in range(blocks + 1)]
    parts = [bits[a:b] for a, b in pairwise(edges)]
    return [
        bytes(chosen) + int("1" + "".join(parts[number] for number in chosen), 2).to_bytes(9, "big")
        for chosen in combinations(range(blocks), SHARED_BLOCKS)
    ]


def hamming(a: str, b: str) -> int:
    """Differing bits of two hashes in hex."""
    return (int(a, 16) ^ int(b, 16)).bit_count()


def is_candidate(a: ImageOccurrence, b: ImageOccurrence, config: DedupConfig) -> bool:
    """Whether two images are alike enough to be compared on pixels."""
    aspect = abs(log(a["width"] / a["height"]) - log(b["width"] / b["height"]))
    return aspect <= config.image_max_aspect_difference and hamming(a["phash"], b["phash"]) <= config.image_hamming


def thumbnail(payload: bytes, config: DedupConfig, ingest: IngestConfig) -> np.ndarray:
    """The image squeezed to uint8 [side, side, 3]. Raises ImageRejected."""
    side = config.image_thumbnail
    image = open_rgb(payload, ingest, 8 * side)
    return np.asarray(image.resize((side, side), Pillow.Resampling.BOX), dtype=np.uint8)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference of two thumbnails, 0 (equal) … 1 (black against white)."""
    return float(np.abs(a.astype(np.int16) - b.astype(np.int16)).mean() / 255)


def confirm(
    pairs: Sequence[tuple[str, str]], load: Callable[[str], bytes], config: DedupConfig, ingest: IngestConfig
) -> list[ImageEdge]:
    """The pairs that are one image. `load` gives the bytes of a sha256; an image that cannot be read has no duplicates."""
    thumbnails: dict[str, np.ndarray | None] = {}

    def thumb(sha256: str) -> np.ndarray | None:
        if sha256 not in thumbnails:
            try:
                thumbnails[sha256] = thumbnail(load(sha256), config, ingest)
            except Unusable:
                thumbnails[sha256] = None
        return thumbnails[sha256]

    edges: list[ImageEdge] = []
    for a, b in sorted(pairs):
        one, other = thumb(a), thumb(b)
        if one is not None and other is not None:
            value = difference(one, other)
            if value <= config.image_max_difference:
                edges.append((a, b, value))
    return edges


def decide_images(images: Iterable[ImageOccurrence], edges: Iterable[ImageEdge], config: DedupConfig) -> list[Decision]:
    """A drop for every copy of an image that stays, in order of (doc_id, node).

    Images are taken in the order of `keep`, and one goes if it is a confirmed copy of one that already stays. So every image
    that goes was itself compared with the one that stays (`value`, 0 where the bytes are equal), and chains of slowly
    changing screenshots do not collapse into one.
    """
    edges = list(edges)
    labels = connected_components((a, b) for a, b, _ in edges)
    differences = {(a, b): value for a, b, value in edges} | {(b, a): value for a, b, value in edges}
    groups: dict[tuple[str, str], list[ImageOccurrence]] = defaultdict(list)
    for image in images:
        scope = "" if config.across_documents else image["doc_id"]
        groups[labels.get(image["sha256"], image["sha256"]), scope].append(image)
    decisions: list[Decision] = []
    for group in groups.values():
        kept: dict[str, ImageOccurrence] = {}
        for image in sorted(group, key=lambda i: keep_order(i, config)):
            sha256 = image["sha256"]
            copies = [one for one in kept if one == sha256 or (one, sha256) in differences]
            if not copies:
                kept[sha256] = image
                continue
            stays = kept[copies[0]]
            equal = copies[0] == sha256
            finding = Finding(
                "dedup.image_exact" if equal else "dedup.image_max_difference",
                0.0 if equal else differences[copies[0], sha256],
                0.0 if equal else config.image_max_difference,
                f"{sha256}: kept {stays['doc_id']} node {stays['node']} {stays['sha256']}",
            )
            subject = Subject(image["doc_id"], image["address"])
            decisions.append(decision(subject, DEDUP, finding, "drop", image["node"]))
    return sorted(decisions, key=lambda d: (d["doc_id"], d["index"] or 0))


def keep_order(image: ImageOccurrence, config: DedupConfig) -> tuple[int, str, int]:
    """Which copy comes first: by `keep`, the one with most pixels or none; then by (doc_id, node)."""
    pixels = image["width"] * image["height"] if config.keep == "largest" else 0
    return -pixels, image["doc_id"], image["node"]


def remove_images(document: Document, decisions: Iterable[Decision]) -> Document | None:
    """`document` without the image nodes its decisions name; None where nothing is left."""
    dropped = {d["index"] for d in decisions if d["doc_id"] == document["doc_id"] and d["index"] is not None}
    nodes = without(document["nodes"], dropped)
    return with_nodes(document, nodes) if nodes else None
