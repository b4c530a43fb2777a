"""Who stays: the greedy maximal independent set of verified copies, in rounds of messages.

Taken in order, each stays unless it is a copy of one that stays. So each that goes was itself compared with one that stays,
chains of small changes do not swallow their ends, and one that is added at the end of the order changes nothing before it.

Read in parallel (Blelloch, Fineman and Shun 2012, "Greedy sequential maximal independent set and matching are parallel on
average"): who waits for nobody stays and tells its later copies so; who is told that goes, and tells its own later copies
that it need not be waited for. Each edge carries one message in all. The rounds are as many as the longest chain of waiting,
logarithmic in number for the orders of `nextflow_data.dedup.order`. Nobody needs more than its own rows: those it waits for
(a few, by `pairs` and `near_hashes`) are held, those that wait for it are passed over as they come.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter

STAYS, GOES, WAITS_FOR, BEFORE = range(4)
"""Kinds of a row, in the order in which `advance` needs them: the other stays; the other goes; the other has to be known
first; the other is later."""

Row = tuple[str, int, str, float]
"""(one, kind, other, value): what `one` knows or is told of `other`. `value` is what was measured of the two."""


def both_sides(edges: Iterable[tuple[str, str, float]]) -> Iterator[Row]:
    """The rows of edges (earlier, later, value), with which the first round begins."""
    for earlier, later, value in edges:
        yield earlier, BEFORE, later, value
        yield later, WAITS_FOR, earlier, value


def advance(rows: Iterable[Row]) -> Iterator[tuple[bool, Row]]:
    """One round: what is known and what was told, in ascending order, into what is known after and what is told next.

    Yields (told, row). What is known stays with its `one` and in order; what is told goes to another. All is decided when
    nothing is told any more; rows of kind STAYS that were told are then all of (copy that goes, kind, survivor, value).
    """
    for one, group in groupby(rows, key=itemgetter(0)):
        goes = False
        gone: set[str] = set()
        waits: list[Row] = []
        verdict: int | None = None
        for row in group:
            kind = row[1]
            if kind == STAYS:
                goes = True
            elif kind == GOES:
                gone.add(row[2])
            elif kind == WAITS_FOR:
                if row[2] not in gone:
                    waits.append(row)
            else:
                if verdict is None:
                    verdict = GOES if goes else WAITS_FOR if waits else STAYS
                    if verdict == WAITS_FOR:
                        yield from ((False, known) for known in waits)
                if verdict == WAITS_FOR:
                    yield False, row
                else:
                    yield True, (row[2], verdict, one, row[3])
        if verdict is None and not goes:
            yield from ((False, known) for known in waits)


def finish(rows: Iterable[Row]) -> Iterator[Row]:
    """All rounds at once, of rows that fit in memory: every row of kind STAYS that is told."""
    left = sorted(rows)
    while left:
        after = list(advance(left))
        told = [row for is_told, row in after if is_told]
        yield from (row for row in told if row[1] == STAYS)
        left = sorted(row for _, row in after) if told else []
