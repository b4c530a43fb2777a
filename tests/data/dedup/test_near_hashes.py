"""Candidates among images: complete where few are near one another, linear where many are."""

import random
from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from nextflow_data.config import DedupConfig
from nextflow_data.dedup.near_hashes import BLOCK, FIRST, NEAREST, NearHashes, hash_keys

CONFIG = DedupConfig()


def keys(value, config):
    return {key.tobytes() for key in hash_keys(np.array([value], dtype=np.uint64), config)[0]}


def pairs_of(hashes, aspects=None, near=None):
    near, found = near or NearHashes(CONFIG), []
    for start in range(0, len(hashes), BLOCK):
        part = np.array(hashes[start : start + BLOCK], dtype=np.uint64)
        shapes = np.zeros(len(part)) if aspects is None else np.array(aspects[start : start + BLOCK])
        found += near.add([str(n) for n in range(start, start + len(part))], part, shapes)
    return [(int(a), int(b)) for a, b in found]


@given(st.integers(0, 2**64 - 1), st.sets(st.integers(0, 63), max_size=15), st.integers(0, 15))
def test_hashes_within_the_radius_always_share_a_key(value, flips, radius):
    config = DedupConfig(image_hamming=radius)
    other = value
    for bit in sorted(flips)[:radius]:
        other ^= 1 << bit
    assert keys(value, config) & keys(other, config)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=9), st.randoms(use_true_random=False))
def test_all_near_pairs_are_found_where_few_are_near(centres, draw):
    hashes = [centre ^ (1 << draw.randrange(64)) ^ (1 << draw.randrange(64)) for centre in centres for _ in range(3)]
    aspects = [draw.choice([0.0, 0.04, 0.2]) for _ in hashes]
    draw.shuffle(hashes)
    expected = {
        (a, b) for a, b in combinations(range(len(hashes)), 2)
        if (hashes[a] ^ hashes[b]).bit_count() <= CONFIG.image_hamming and abs(aspects[a] - aspects[b]) <= 0.05
    }  # fmt: skip
    most = max([sum(b == n for _, b in expected) for n in range(len(hashes))])
    found = pairs_of(hashes, aspects)
    assert len(found) == len(set(found)) and set(found) <= expected
    assert set(found) == expected or most > FIRST


def test_pairs_of_more_than_one_block_are_found():
    draw = random.Random(1)
    hashes = [draw.getrandbits(64) for _ in range(3 * BLOCK)]
    hashes[-1] = hashes[3] ^ 0b111
    hashes[BLOCK + 5] = hashes[7] ^ 1
    assert pairs_of(hashes) == [(7, BLOCK + 5), (3, 3 * BLOCK - 1)]


def test_a_logo_with_fifty_thousand_near_hashes_is_linear():
    """Each differs from the logo in at most two bits, so every two are near: 1.25 thousand million pairs."""
    draw = random.Random(2)
    logo = draw.getrandbits(64)
    hashes = [logo ^ (1 << draw.randrange(64)) ^ (1 << draw.randrange(64)) for _ in range(50_000)]
    near = NearHashes(CONFIG)
    found = pairs_of(hashes, near=near)
    assert len(found) <= 50_000 * (FIRST + NEAREST) and len(near.ids) < 2 * FIRST
    assert {(0, n) for n in range(1, 50_000)} <= set(found)
    later = pairs_of(hashes[: 3 * BLOCK + 40])
    assert later == [pair for pair in found if pair[1] < 3 * BLOCK + 40]
