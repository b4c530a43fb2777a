"""What a misspelt query probably meant: the names that are most like it, among millions, without comparing it with each."""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections.abc import Iterable

COMPARED = 250
"""Neighbours that a misspelt query is compared with, before and after it, in each order."""


def nearest(query: str, addresses: list[str]) -> tuple[str, ...]:
    """Up to five addresses that hold the query, or are like it, or end like it."""
    lowered = {a.lower(): a for a in addresses}
    inside = [a for low, a in lowered.items() if query.lower() in low]
    close = [lowered[m] for m in alike(query.lower(), lowered, 0.5)]
    ends = {low.rsplit("/", 1)[-1]: a for low, a in lowered.items()}
    close += [ends[m] for m in alike(query.lower().rsplit("/", 1)[-1], ends, 0.6)]
    return tuple(dict.fromkeys(inside[:5] + close))[:5]


def alike(word: str, words: Iterable[str], cutoff: float) -> list[str]:
    """Of `words`, up to five that are most like `word`, among those that begin or end as it does: what has a slip at both
    ends is missed, and millions cost two sorts and a bounded number of comparisons."""
    near: list[str] = []
    for turn in (slice(None), slice(None, None, -1)):
        ordered = sorted(one[turn] for one in words)
        place = bisect_left(ordered, word[turn])
        near += [one[turn] for one in ordered[max(0, place - COMPARED) : place + COMPARED]]
    return difflib.get_close_matches(word, dict.fromkeys(near), n=5, cutoff=cutoff)
