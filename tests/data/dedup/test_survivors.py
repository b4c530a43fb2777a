"""Who stays: the rounds that ship against ten lines that go through the copies one after the other."""

import random
from collections import defaultdict
from math import log2

from hypothesis import given
from hypothesis import strategies as st
from nextflow_data.config import DedupConfig
from nextflow_data.dedup.order import document_order, image_order
from nextflow_data.dedup.survivors import STAYS, advance, both_sides, finish

graphs = st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)).filter(lambda e: e[0] != e[1]), max_size=40)


def oriented(pairs, order):
    """Edges from earlier to later, by names that do not sort as the order does."""
    place = {one: n for n, one in enumerate(order)}
    return sorted({(*(f"v{one}" for one in sorted(pair, key=place.__getitem__)), 0.5 + sum(pair) / 100) for pair in pairs})


def reference(edges, order):
    """Each in order stays, unless it is a copy of one that stays: every (copy, survivor, value)."""
    values = {(a, b): value for a, b, value in edges}
    stays, goes = [], []
    for one in [f"v{number}" for number in order]:
        survivors = [other for other in stays if (other, one) in values]
        goes += [(one, other, values[other, one]) for other in survivors]
        if not survivors:
            stays.append(one)
    return sorted(goes)


def in_rounds(edges, buckets):
    """As the stage does it: what is told is shuffled, what is known stays in its bucket. Gives the copies and the rounds."""
    told, known, found, rounds = list(both_sides(edges)), defaultdict(list), [], 0
    while told:
        rounds += 1
        after = {
            b: list(advance(sorted([*known[b], *(r for r in told if int(r[0][1:]) % buckets == b)]))) for b in range(buckets)
        }
        for bucket, rows in after.items():
            known[bucket] = [row for is_told, row in rows if not is_told]
            assert known[bucket] == sorted(known[bucket])
        told = [row for rows in after.values() for is_told, row in rows if is_told]
        found += [(one, other, value) for one, kind, other, value in told if kind == STAYS]
    assert not any(known.values())
    return sorted(found), rounds


@given(graphs, st.permutations(range(15)), st.integers(1, 5))
def test_the_answer_is_that_of_one_after_the_other(pairs, order, buckets):
    edges = oriented(pairs, order)
    expected = reference(edges, order)
    assert in_rounds(edges, buckets)[0] == expected
    assert sorted((one, other, value) for one, _, other, value in finish(both_sides(edges))) == expected


@given(graphs, graphs, st.permutations(range(15)))
def test_what_comes_at_the_end_of_the_order_changes_nothing_before_it(old, new, order):
    late = [(a, b + 15) for a, b in new]
    before = reference(oriented(old, order), order)
    after = in_rounds(oriented([*old, *late], [*order, *range(15, 30)]), 2)[0]
    assert [row for row in after if int(row[0][1:]) < 15] == before


def test_chains_and_stars_take_few_rounds():
    """4,000 links in an order by hash: the longest chain of waiting is about e·ln n / 2 at most, far below n."""
    draw = random.Random(0)
    order = list(range(4001))
    draw.shuffle(order)
    chain = oriented([(n, n + 1) for n in range(4000)], order)
    found, rounds = in_rounds(chain, 3)
    assert found == reference_of_chain(order) and rounds <= 2 * log2(4000)
    for hub in (order[0], order[2000], order[-1]):
        star = oriented([(hub, n) for n in range(4001) if n != hub], order)
        found, rounds = in_rounds(star, 3)
        assert rounds <= 3 and {copy for copy, _, _ in found} == (
            {f"v{n}" for n in order if n != hub} if hub == order[0] else {f"v{hub}"}
        )


def reference_of_chain(order):
    """The reference, in linear time for a chain."""
    stays, goes = set(), []
    for one in order:
        kept = [n for n in (one - 1, one + 1) if n in stays]
        goes += [(f"v{one}", f"v{n}", 0.5 + (one + n) / 100) for n in kept]
        if not kept:
            stays.add(one)
    return sorted(goes)


def test_the_order_is_rank_then_coarse_richness_then_hash():
    config, whole = DedupConfig(), b"w" * 32
    order = [
        document_order(9, 9, whole, config, rank=0), document_order(3, 100, whole, config, rank=1),
        document_order(2, 1000, whole, config, rank=1), document_order(2, 800, whole, config, rank=1),
    ]  # fmt: skip
    assert order == sorted(order)
    assert document_order(17, 1000, whole, config) == document_order(99, 1001, whole, config)
    other = DedupConfig(seed=2)
    assert document_order(1, 1, whole, config) != document_order(1, 1, whole, other)
    any_copy = DedupConfig(keep_document="any")
    assert document_order(1, 1, whole, any_copy) == document_order(9, 900, whole, any_copy)
    large, small = (image_order(side, side, ("d", 0), "i", config) for side in (640, 320))
    assert large < small
    first = DedupConfig(keep="first")
    places = [image_order(9, 9, place, "i", first) for place in (("a", 2), ("a", 10), ("b", 0))]
    assert places == sorted(places)
