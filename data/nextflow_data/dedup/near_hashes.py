"""Which images are worth comparing: those with perceptual hashes near one another, in time and pairs linear in their number.

Keys: the hash is cut in r+2 blocks, of which two hashes at distance at most r share at least two; a key for each pair of
blocks finds every such pair and few others, and one for the whole hash brings equal ones together.

Within a key, images come in order, in blocks of a fixed number. Each is compared with those before it in its block and with
those carried from the blocks before: every image that had fewer than `FIRST` near it when it came, up to `CARRIED`. Of those
near it, each is paired with the first in order, of which one stays, and with the nearest. So a logo with 50,000 near-equal
hashes is a few carried ones, each compared with all. What can be missed: in a key with more than `FIRST` +
`NEAREST` near one another, a pair that pixels would confirm while neither is confirmed with those chosen (screenshots of one
program); in a key with more than `CARRIED` that are not near, pairs from different blocks that share no smaller key.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np

from nextflow_data.config import DedupConfig

SHARED_BLOCKS = 2
FIRST, NEAREST = 4, 8
"""Of the images near one, how many it is paired with: the first in order, and the nearest. Our choice."""
BLOCK, CARRIED = 128, 4096
"""Images compared at once, and most that are carried on: half a million distances of one byte."""
KEY_BYTES = 9


def key_masks(config: DedupConfig) -> np.ndarray:
    """What of a hash each key holds, uint64 [keys]: two blocks of it, and at last the whole."""
    blocks = config.image_hamming + SHARED_BLOCKS
    edges = [round(number * 64 / blocks) for number in range(blocks + 1)]
    parts = [((1 << (b - a)) - 1) << (64 - b) for a, b in pairwise(edges)]
    masks = [sum(chosen) for chosen in combinations(parts, SHARED_BLOCKS)]
    return np.array(masks if blocks == SHARED_BLOCKS else [*masks, 2**64 - 1], dtype=np.uint64)


def hash_keys(hashes: np.ndarray, config: DedupConfig) -> np.ndarray:
    """Keys of hashes, uint64 [n] to uint8 [n, keys, KEY_BYTES]: the key's number, then the bits it holds."""
    masks = key_masks(config)
    held = (hashes[:, None] & masks[None, :]).astype(">u8")
    numbers = np.broadcast_to(np.arange(len(masks), dtype=np.uint8)[None, :, None], (*held.shape, 1))
    return np.concatenate([numbers, held[..., None].view(np.uint8)], axis=2)


class NearHashes:
    """The images of one key, given block by block, in order. Nothing but the carried ones is held."""

    def __init__(self, config: DedupConfig) -> None:
        self.config = config
        self.ids: list[str] = []
        self.hashes, self.aspects = np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.float64)

    def add(self, ids: Sequence[str], hashes: np.ndarray, aspects: np.ndarray) -> list[tuple[str, str]]:
        """Pairs (earlier, later) of a block, at most `FIRST` + `NEAREST` for each later one.

        `hashes` uint64 [n], `aspects` float64 [n] the logarithm of width by height; n is at most BLOCK, and less only in a
        key's last block.
        """
        carried, names = len(self.ids), [*self.ids, *ids]
        all_hashes, all_aspects = np.concatenate([self.hashes, hashes]), np.concatenate([self.aspects, aspects])
        distances = np.bitwise_count(hashes[:, None] ^ all_hashes[None, :])
        near = distances <= self.config.image_hamming
        near &= np.tri(len(ids), len(names), carried - 1, dtype=bool)
        later, earlier = np.nonzero(near)
        shape = np.abs(aspects[later] - all_aspects[earlier]) <= self.config.image_max_aspect_difference
        later, earlier = later[shape], earlier[shape]
        nearest = np.lexsort((-earlier, distances[later, earlier], later))
        chosen = _first_of_each(later, FIRST)
        chosen[nearest[_first_of_each(later[nearest], NEAREST)]] = True
        found = [(names[a], ids[b]) for a, b in zip(earlier[chosen], later[chosen], strict=True)]
        alone = np.flatnonzero(np.bincount(later, minlength=len(ids)) < FIRST)[: CARRIED - carried]
        self.ids += [ids[one] for one in alone]
        self.hashes = np.concatenate([self.hashes, hashes[alone]])
        self.aspects = np.concatenate([self.aspects, aspects[alone]])
        return found


def _first_of_each(groups: np.ndarray, most: int) -> np.ndarray:
    """Of an ascending array, which are among the first `most` with their value: bool [n]."""
    starts = np.searchsorted(groups, groups, side="left")
    return np.arange(len(groups)) - starts < most
