"""Duplicate documents: what is compared of each, and when two are copies.

Two documents are copies when their texts are alike and the images of the one that has fewer are in the other: two galleries
under the same words are not. Whether an image is in the other is judged by perceptual hash here, because pixels are looked
at only among documents that stay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np

from nextflow_data.common.stage_names import DEDUP
from nextflow_data.config import DedupConfig
from nextflow_data.decisions import Decision, Finding, Subject, decision
from nextflow_data.dedup.minhash import signature, signature_keys, text_hash
from nextflow_data.dedup.order import document_order
from nextflow_data.dedup.pairs import BAND_KEY, TEXT_KEY
from nextflow_data.document import Document
from nextflow_data.nodes import text_of


class DocumentSummary(TypedDict):
    """What deduplication needs of a document.

    `order` is its place (`nextflow_data.dedup.order`), `text` the hash of its text, 32 bytes, `images` the distinct
    perceptual hashes of its images, 8 bytes each, big-endian, ascending; `signature` uint32 [bands·rows], little-endian,
    None for a short text.
    """

    doc_id: str
    address: str
    order: bytes
    text: bytes
    images: bytes
    signature: bytes | None


class Copy(TypedDict):
    """A document that goes: the survivor that it was compared with, and their similarity, 0…1."""

    doc_id: str
    kept: str
    kept_address: str
    kept_text: bytes
    value: float


class Side(NamedTuple):
    """One side of a number of pairs: columns of their summaries."""

    text: Sequence[bytes]
    images: Sequence[bytes]
    signature: Sequence[bytes | None]


def summarise(document: Document, config: DedupConfig) -> tuple[DocumentSummary, list[bytes]]:
    """The summary of one document, and the keys under which its copies are looked for."""
    found = signature(document, config)
    images = [node["image"] for node in document["nodes"] if node["image"] is not None]
    text = bytes.fromhex(text_hash(document))
    identity = hashlib.sha256(text + "\n".join(image["sha256"] for image in images).encode()).digest()
    summary: DocumentSummary = {
        "doc_id": document["doc_id"],
        "address": document["source"]["address"],
        "order": document_order(len(images), len(text_of(document)), identity, config),
        "text": text,
        "images": b"".join(sorted({bytes.fromhex(image["phash"]) for image in images})),
        "signature": None if found is None else found.astype("<u4").tobytes(),
    }
    bands = [] if found is None else signature_keys(found, config)
    return summary, [TEXT_KEY + text, *(BAND_KEY + band for band in bands)]


def similarities(one: Side, other: Side, config: DedupConfig) -> tuple[np.ndarray, np.ndarray]:
    """Of each pair the similarity of its texts, float64 [n], and whether the two are copies, bool [n].

    1 for equal texts, else the estimated Jaccard similarity of their shingles (standard error below 0.05 with 112 hashes), 0
    where one has no signature.
    """
    found = np.zeros(len(one.text))
    signed = [n for n, pair in enumerate(zip(one.signature, other.signature, strict=True)) if None not in pair]
    if signed:
        a, b = (_matrix([side.signature[n] or b"" for n in signed], "<u4") for side in (one, other))
        found[signed] = (a == b).mean(axis=1)
    found[[a == b for a, b in zip(one.text, other.text, strict=True)]] = 1.0
    copies = found >= config.min_similarity
    for n in np.flatnonzero(copies).tolist():
        copies[n] = images_in_common(one.images[n], other.images[n], config) >= config.min_images_in_common
    return found, copies


def images_in_common(one: bytes, other: bytes, config: DedupConfig) -> float:
    """Share of the images of the document with fewer that have one near them in the other; 1 where it has none."""
    fewer, more = sorted((np.frombuffer(side, dtype=">u8") for side in (one, other)), key=len)
    if not len(fewer) or one == other:
        return 1.0
    return float((np.bitwise_count(fewer[:, None] ^ more[None, :]).min(axis=1) <= config.image_hamming).mean())


def document_decision(document: Document, copy: Copy, config: DedupConfig) -> Decision:
    """The drop of a document that is a copy."""
    equal = bytes.fromhex(text_hash(document)) == copy["kept_text"]
    finding = Finding(
        "dedup.exact" if equal else "dedup.min_similarity",
        copy["value"],
        1.0 if equal else config.min_similarity,
        f"kept {copy['kept']} {copy['kept_address']}",
    )
    return decision(Subject.of(document), DEDUP, finding, "drop")


def _matrix(rows: Sequence[bytes], kind: str) -> np.ndarray:
    return np.frombuffer(b"".join(rows), dtype=kind).reshape(len(rows), -1)
