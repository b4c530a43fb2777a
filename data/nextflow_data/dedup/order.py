"""In what order copies are looked at: of two that are alike the first stays, unless it is a copy of one before it.

An order is bytes, compared from the left, which Python, Arrow and Spark do alike: the rank (earlier partitions first), how
rich the copy is, a seeded hash. The hash makes greedy choice take a logarithmic number of rounds, whatever the graph
(Blelloch, Fineman and Shun 2012; Fischer and Noever 2018); an order by the data alone would not, because copies can be a
long chain in which each is a little richer than the last. So richness counts in coarse steps only: there are few, and each
adds at most a logarithmic number of rounds. The cost: of copies within a step any may stay.
"""

from __future__ import annotations

import xxhash

from nextflow_data.config import DedupConfig

MOST_IMAGES = 16
"""Documents with more images than this are equally rich. Our choice: it bounds the steps."""


def steps(amount: int) -> int:
    """Which step an amount is on: a step is a factor of the fourth root of 2, a fifth more. Exact, on every machine."""
    return (amount**4).bit_length()


def document_order(images: int, characters: int, identity: bytes, config: DedupConfig, rank: int = 0) -> bytes:
    """The place of a document. `identity` is a hash of all that is compared: documents that share a place are copies."""
    rich = bytes([MOST_IMAGES - min(images, MOST_IMAGES), 255 - min(steps(characters), 255)])
    return _place(rank, rich if config.keep_document == "richest" else b"", identity, config)


def image_order(width: int, height: int, first: tuple[str, int], image_id: str, config: DedupConfig, rank: int = 0) -> bytes:
    """The place of an image. `first` is where it stands first: (doc_id, node)."""
    if config.keep == "first":
        doc_id, node = first
        return rank.to_bytes(4, "big") + doc_id.encode() + node.to_bytes(4, "big")
    return _place(rank, bytes([255 - min(steps(width * height), 255)]), image_id.encode(), config)


def _place(rank: int, rich: bytes, identity: bytes, config: DedupConfig) -> bytes:
    return rank.to_bytes(4, "big") + rich + xxhash.xxh3_128_digest(identity, seed=config.seed % 2**64)
