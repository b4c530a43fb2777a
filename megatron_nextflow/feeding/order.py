"""The order in which packs are fed: a permutation of each epoch that can be asked for any place of it.

The state of the feeding is then one number, resuming costs nothing however far the training is, and no epoch's order is ever
held in memory (10⁹ packs would take 8 GB on every process). The cost: a few hashes a pack, some microseconds. numpy's own
permutation is not used, because its stream may change from release to release and an order must outlive one.

A step that crosses from one epoch into the next may take a pack twice, and one of more packs than there are always does
(`FeedConfig.repeats`, which a training says at its start): a small set is worth training on, and the gradient is then that
of the packs as often as they came.
"""

from __future__ import annotations

import hashlib

_ROUNDS = 6


def shuffled(place: int, count: int, seed: int) -> int:
    """Which pack of `count` is fed at `place` (0, 1, 2, … without end); each epoch of `count` places is another permutation.

    A balanced Feistel network over the smallest even number of bits that holds `count`, walked until it falls below `count`
    (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002); the round function is keyed BLAKE2b.
    """
    epoch, value = divmod(place, count)
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    key = f"{seed}:{epoch}:{count}".encode()
    while True:
        left, right = value >> half, value & mask
        for number in range(_ROUNDS):
            digest = hashlib.blake2b(b"%d:%d" % (number, right), key=key[:64], digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "big") & mask)
        value = left << half | right
        if value < count:
            return value
