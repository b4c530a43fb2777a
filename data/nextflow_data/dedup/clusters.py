"""Groups of things that are pairwise alike, and which pairs to look at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from scipy.sparse import coo_array, csgraph


def connected_components(edges: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Each id that is in an edge, mapped to the smallest id of its component. The order of the edges does not matter.

    Alikeness is taken as transitive, as everyone does who joins MinHash buckets: a chain of near-duplicates is one group,
    though its ends may be less alike than the threshold.
    """
    pairs = list(edges)
    ids = sorted({one for pair in pairs for one in pair})
    number = {one: position for position, one in enumerate(ids)}
    rows = np.array([number[a] for a, _ in pairs], dtype=np.int64)
    columns = np.array([number[b] for _, b in pairs], dtype=np.int64)
    matrix = coo_array((np.ones(len(pairs), dtype=np.int8), (rows, columns)), shape=(len(ids), len(ids)))
    _, labels = csgraph.connected_components(matrix, directed=False) if ids else (0, np.zeros(0, dtype=np.int64))
    smallest: dict[int, str] = {}
    for one, label in zip(ids, labels, strict=True):
        smallest.setdefault(int(label), one)
    return {one: smallest[int(label)] for one, label in zip(ids, labels, strict=True)}


def bucket_pairs(ids: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of a bucket worth comparing: in order of id, each with the first and with the one before it.

    Linear instead of quadratic; what it can miss is a pair that is alike while both differ from the first and from their
    neighbours, which then needs no other band in common either. The order given does not matter.
    """
    ordered = sorted(set(ids))
    pairs = {(ordered[0], one) for one in ordered[1:]} | set(pairwise(ordered[1:]))
    return sorted(pairs)
