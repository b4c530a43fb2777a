"""Forward passes over new slots only: keys and values of earlier slots are kept, a layer at a time.

A slot never sees beyond its own block, so a block's keys and values are final once computed: an image of K scales takes K
passes, each over one scale. Megatron's inference contexts assume one new token a step and one length for all rows, so the
cache sits where the block ranges already are, in the core attention. Rows may differ in length, and a pass may leave rows
out. The head runs only over the slots and the ids that are asked for: at a prompt's 10,000 slots and 180,000 ids it would be
gigabytes. The cost: memory for the longest row's keys and values times the rows, and one process only (no tensor or pipeline
parallelism).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from megatron_nextflow.generation.cost import Work
from megatron_nextflow.generation.growing_document import ARRAYS
from megatron_nextflow.model.attention import BlockRangeParams
from megatron_nextflow.model.nextflow import NextFlowModel
from megatron_nextflow.sequence.batch import collate
from megatron_nextflow.sequence.pack_layout import PackLayout


class KeyValueCache:
    """Keys and values of every layer for `rows` rows of up to `capacity` slots; `lengths` are filled so far.

    A layer's memory is taken whole at its first pass and never grows.
    """

    def __init__(self, rows: int, capacity: int) -> None:
        self.capacity = capacity
        self.lengths = [0] * rows
        self._rows: Sequence[int] = ()
        self._ends: list[int] = []
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def begin(self, new: Mapping[int, int]) -> None:
        """Announce a pass over `new`[row] slots of each row that takes part. Raises ValueError where they do not fit."""
        self._rows = list(new)
        self._ends = [self.lengths[row] + count for row, count in new.items()]
        if max(self._ends) > self.capacity:
            raise ValueError(f"new slots {dict(new)} behind {self.lengths} do not fit into a cache of {self.capacity}")

    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep keys and values [n, b, g, d] of the pass's slots; gives those of all its rows' slots so far, [m, b, g, d].

        m is the longest row's; behind a shorter row's end there is nothing of meaning.
        """
        if layer not in self._kept:
            shape = (len(self.lengths), self.capacity, *key.shape[2:])
            self._kept[layer] = key.new_empty(shape), value.new_empty(shape)
        longest = max(self._ends)
        found = []
        for kept, new in zip(self._kept[layer], (key, value), strict=True):
            for place, (row, end) in enumerate(zip(self._rows, self._ends, strict=True)):
                start = self.lengths[row]
                kept[row, start:end] = new[: end - start, place]
            first, count = self._rows[0], len(self._rows)
            neighbours = list(self._rows) == list(range(first, first + count))
            rows = kept[first : first + count] if neighbours else kept[list(self._rows)]
            found.append(rows[:, :longest].transpose(0, 1))
        return found[0], found[1]

    def commit(self) -> None:
        """End the pass that `begin` announced."""
        for row, end in zip(self._rows, self._ends, strict=True):
            self.lengths[row] = end

    def clear(self, row: int) -> None:
        """Forget a row's slots, so that another document can take its place."""
        self.lengths[row] = 0


class CachedModel:
    """A model in one process, fed block after block: `rows` documents of up to `capacity` slots side by side.

    `work` is what was computed so far.
    """

    def __init__(self, model: NextFlowModel, rows: int, capacity: int) -> None:
        self.model = model
        self.cache = KeyValueCache(rows, capacity)
        self.work = Work()

    @torch.no_grad()
    def feed(self, windows: Mapping[int, PackLayout]) -> dict[int, torch.Tensor]:
        """One pass over the next slots of some rows (see `document.window`); gives each row's hidden states [n, H].

        All rows of a pass are padded to the longest, so rows of very different numbers of new slots belong in several.
        """
        new = {row: window.token_ids.size for row, window in windows.items()}
        self.cache.begin(new)
        visible = [window.visible for window in windows.values()]
        ranges = BlockRangeParams.cached(visible, [self.cache.lengths[row] for row in windows], self.cache)
        model, longest = self.model, max(new.values())
        batch = collate([_padded(window, longest) for window in windows.values()]).to(self.device)
        hidden = model.decoder(
            hidden_states=model.embedding(batch),
            attention_mask=None,
            rotary_pos_emb=model.rotary(batch.positions),
            packed_seq_params=ranges,
        )
        self.cache.commit()
        pairs = sum(int((v[1] - v[0]).sum()) for v in visible)
        self.work += Work(passes=1, slots=sum(new.values()), pairs=pairs)
        return {row: hidden[:count, place] for place, (row, count) in enumerate(new.items())}

    @torch.no_grad()
    def score(self, hidden: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Logits [n, last − first] float32 of the ids [first, last) of the joint vocabulary, from hidden states [n, H]."""
        self.work += Work(logits=hidden.size(0) * (last - first))
        return F.linear(hidden, self.model.output_layer.weight[first:last]).float()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.output_layer.weight.device  # type: ignore[no-any-return]


def _padded(layout: PackLayout, length: int) -> PackLayout:
    missing = length - layout.token_ids.size
    if not missing:
        return layout

    def pad(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array, np.zeros((*array.shape[:-1], missing), array.dtype)], axis=-1)

    longer: dict[str, Any] = {name: pad(getattr(layout, name)) for name in ARRAYS}
    return replace(layout, **longer)
