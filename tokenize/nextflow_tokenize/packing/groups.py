"""Groups: the parts of a corpus that are planned on their own, each by one task that holds nothing of the others.

Documents go to groups by a hash of their id, so each group is a sample of the whole and a pack of one is like a pack of any
other. The cost: the last packs of a group can only be filled from that group. At 20,000 documents a group that is under
0.01 points of fill, at 2,500 under 0.1 (web pages with images, packs of 8,192 slots).

The order of the set stays one drawn by the seed: packs lie in the order of a seeded hash within their group, and groups in
the order of another. The trainer draws an order of its own over all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from itertools import accumulate

from nextflow_tokenize.config.pack import PackConfig


def groups_of(documents: int, config: PackConfig) -> int:
    """How many groups a corpus has: one for each `group_documents` that are begun, and one at least."""
    return max(1, -(-documents // config.group_documents))


def group_of(doc_id: str, groups: int) -> int:
    """The group that a document is in: the first 32 bits of its id's sha256, modulo."""
    return int(sha256(doc_id.encode()).hexdigest()[:8], 16) % groups


def first_shards(counts: Sequence[int], seed: int) -> list[int]:
    """For each group the number of its first shard, given how many it has: groups follow each other in seeded order."""
    order = sorted(range(len(counts)), key=lambda group: sha256(f"{seed}\ngroup\n{group}".encode()).digest())
    starts = accumulate((counts[group] for group in order), initial=0)
    first = dict(zip(order, starts, strict=False))
    return [first[group] for group in range(len(counts))]
