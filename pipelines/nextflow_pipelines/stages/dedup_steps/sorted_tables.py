"""What is done to sorted rows as they stream by: tables, never a row at a time, and never more than a table held."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ROWS = 4096
"""Rows of a table, where we cut them."""


def changes(tables: Iterable[pa.Table], columns: Sequence[str]) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Each table, and of each row whether it differs from the row before it in `columns`: bool [rows]."""
    before: pa.Table | None = None
    for table in tables:
        if table.num_rows:
            keys = table.select(columns)
            yield table, _differs(keys if before is None else pa.concat_tables([before, keys]), before is None)
            before = keys.slice(table.num_rows - 1)


def _differs(keys: pa.Table, is_first: bool) -> np.ndarray:
    columns = [column.combine_chunks() for column in keys.itercolumns()]
    pairs = [pc.not_equal(column[1:], column[:-1]).to_numpy(zero_copy_only=False) for column in columns]
    found = reduce(np.logical_or, pairs, np.zeros(keys.num_rows - 1, dtype=bool))
    return np.concatenate([[True], found]) if is_first else found


def distinct(tables: Iterable[pa.Table], columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows that differ from the row before them in `columns`."""
    for table, new in changes(tables, columns):
        yield table.filter(pa.array(new))


def shared(tables: Iterable[pa.Table], column: str) -> Iterator[pa.Table]:
    """Rows without most of those whose value no neighbour has: the first and last of a table are kept unseen."""
    for table, new in changes(tables, [column]):
        alone = new & np.append(new[1:], False)
        alone[0] = False
        yield table.filter(pa.array(~alone))


def beside(
    tables: Iterable[pa.Table], column: str, other: Iterable[pa.Table], other_column: str
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """A merge join: the rows of `tables` whose `column` is in `other`, with the row of `other` that each belongs to.

    Both are in ascending order, `other` without repetition. `other` is not opened before the first row is there.
    """
    rest = iter(other)
    current: pa.Table | None = None
    for table in tables:
        if not table.num_rows:
            continue
        wanted, last = table[column].unique(), table[column][-1].as_py()
        found: list[pa.Table] = []
        while True:
            current = next(rest, None) if current is None else current
            if current is None:
                break
            if current.num_rows:
                found.append(current.filter(pc.is_in(current[other_column], wanted)))
                if current[other_column][-1].as_py() >= last:  # the next table may want it too
                    break
            current = None
        if found:
            whole = pa.concat_tables(found)
            places = pc.index_in(table[column], whole[other_column].combine_chunks())
            there = pc.is_valid(places)
            yield table.filter(there), whole.take(places.filter(there))


def in_tables(rows: Iterable[Any], write: Callable[[list[Any]], None]) -> None:
    """Hands rows on by the thousand."""
    waiting: list[Any] = []
    for row in rows:
        waiting.append(row)
        if len(waiting) == ROWS:
            write(waiting)
            waiting = []
    write(waiting)
