"""Forward passes over new slots only: keys and values of earlier slots are kept, a layer at a time.

A slot never sees beyond its own block, so a block's keys and values are final once computed: an image of K scales takes K
passes, each over one scale. Megatron's inference contexts assume one new token a step and one length for all rows, so the
cache sits where the block ranges already are, in the core attention. Rows may differ in length: guidance runs the prompt and
the empty prompt side by side. The cost: memory for all keys and values of the longest row times the rows, and one process
only (no tensor or pipeline parallelism).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch

from megatron_nextflow.attention import BlockRangeParams
from megatron_nextflow.layout import ImageInput, PackLayout, collate
from megatron_nextflow.model import NextFlowModel


class KeyValueCache:
    """Keys and values of every layer for `rows` rows of up to `capacity` slots; `lengths` are filled so far."""

    def __init__(self, rows: int, capacity: int) -> None:
        self.capacity = capacity
        self.lengths = [0] * rows
        self._new = [0] * rows
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def begin(self, new: Sequence[int]) -> None:
        """Announce a pass over `new`[r] slots of row r. Raises ValueError where they do not fit."""
        if any(length + n > self.capacity for length, n in zip(self.lengths, new, strict=True)):
            raise ValueError(f"{list(new)} new slots behind {self.lengths} do not fit into a cache of {self.capacity}")
        self._new = list(new)

    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep keys and values [n, b, g, d] of the pass's slots; gives those of all slots so far, [m, b, g, d].

        m is the longest row's; behind a shorter row's end there is nothing of meaning.
        """
        if layer not in self._kept:
            shape = (self.capacity, *key.shape[1:])
            self._kept[layer] = key.new_zeros(shape), value.new_zeros(shape)
        keys, values = self._kept[layer]
        for row, (length, n) in enumerate(zip(self.lengths, self._new, strict=True)):
            keys[length : length + n, row] = key[:n, row]
            values[length : length + n, row] = value[:n, row]
        longest = max(length + n for length, n in zip(self.lengths, self._new, strict=True))
        return keys[:longest], values[:longest]

    def commit(self) -> None:
        """End the pass that `begin` announced."""
        self.lengths = [length + n for length, n in zip(self.lengths, self._new, strict=True)]
        self._new = [0] * len(self.lengths)


class CachedModel:
    """A model in one process, fed block after block: `rows` documents of up to `capacity` slots side by side."""

    def __init__(self, model: NextFlowModel, rows: int, capacity: int) -> None:
        self.model = model
        self.cache = KeyValueCache(rows, capacity)
        self.passes = 0

    @torch.no_grad()
    def feed(self, windows: Sequence[PackLayout]) -> list[torch.Tensor]:
        """One pass over each row's next slots (see `window`); gives each row's logits [n_r, V], padding ids at −∞."""
        new = [window.token_ids.size for window in windows]
        self.cache.begin(new)
        ranges = BlockRangeParams.cached([window.visible for window in windows], self.cache.lengths, self.cache)
        device = next(self.model.parameters()).device
        batch = collate([_padded(window, max(new)) for window in windows]).to(device)
        logits = self.model(batch, ranges)
        self.cache.commit()
        self.passes += 1
        return [logits[:n, row] for row, n in enumerate(new)]


def window(layout: PackLayout, first: int, last: int, images: tuple[ImageInput, ...] = ()) -> PackLayout:
    """Slots [first, last) of a layout, their visible ranges still absolute; `images` feed the vision slots among them.

    For the slots of scale k alone give ImageInput((grid k−1, grid k), codes of scale k−1).
    """
    cut: dict[str, Any] = {name: getattr(layout, name)[..., first:last] for name in _ARRAYS}
    return replace(layout, **cut, images=images, used=last - first)


def _padded(layout: PackLayout, length: int) -> PackLayout:
    missing = length - layout.token_ids.size
    if not missing:
        return layout

    def pad(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array, np.zeros((*array.shape[:-1], missing), array.dtype)], axis=-1)

    longer: dict[str, Any] = {name: pad(getattr(layout, name)) for name in _ARRAYS}
    return replace(layout, **longer)


_ARRAYS = tuple(field.name for field in fields(PackLayout) if field.name not in ("images", "used"))
