"""Which documents are worth comparing, of those that share a key: a number of pairs linear in their number.

Each is compared with the first four of its key and with the one just before it. The first in order is the one that stays, so
of a group in which all are alike every copy is compared with its survivor. What can be missed is a pair that is alike while
both differ from the first four, which then needs no other key in common either. Pairs go from earlier to later in order, and
depend on nothing that comes after them: a document that is added later changes no pair of those before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter

FIRST = 4
"""How many of a key's first documents each other one is compared with. Our choice."""
TEXT_KEY = b"t"
"""What a key of whole texts begins with; a band's begins with `BAND_KEY`."""
BAND_KEY = b"b"

KeyedDocument = tuple[bytes, bytes, str]
"""(key, order, doc_id)."""


def copies_and_pairs(rows: Iterable[KeyedDocument]) -> Iterator[tuple[bool, str, str]]:
    """(equal, earlier doc_id, later doc_id) of rows in ascending order.

    Documents in one place of the order are equal in all that is compared, and share every key. So the first of them stands
    for all in every key, and the others are told once, as its equals, under their texts' key.
    """
    for key, group in groupby(rows, key=itemgetter(0)):
        first: list[str] = []
        before: str | None = None
        for _, equals in groupby(group, key=itemgetter(1)):
            one, *others = (doc_id for _, _, doc_id in equals)
            if key.startswith(TEXT_KEY):
                yield from ((True, one, other) for other in others)
            yield from ((False, parent, one) for parent in first)
            if before is not None and before not in first:
                yield False, before, one
            if len(first) < FIRST:
                first.append(one)
            before = one
