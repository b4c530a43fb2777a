"""From a shard set to micro-batches: which pack is next, on which process, in which layout.

The state is one number, the packs consumed, beside the seed and the shard set's fingerprint it counts in. The order of packs
does not depend on the number of processes: a global batch is a stretch of `global_batch_size` places of the order, dealt out
to the data-parallel copies. So a training may resume on more or fewer processes and see the same batches. The cost: tensor-
and pipeline-parallel peers each read and lay out the same packs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

from nextflow_tokenize.segments import image_grids
from nextflow_tokenize.shards.sample_format import Sample

from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.feeding.order import shuffled
from megatron_nextflow.sequence.batch import LayoutBatch, join
from megatron_nextflow.sequence.pack_layout import PackLayout, build_pack_layout
from megatron_nextflow.sequence.vocabulary import Vocabulary


class Packs(Protocol):
    """What feeding needs of a shard set."""

    def __len__(self) -> int: ...
    def read(self, number: int) -> Sample: ...


class FeedError(ValueError):
    """A pack that cannot be laid out; the message names it."""


@dataclass(frozen=True)
class Share:
    """Which data-parallel copy this process belongs to, of how many."""

    rank: int = 0
    size: int = 1


class Feed:
    """Micro-batches of the global batches from place `consumed` on, each one row (see `batch.join`).

    `skip`: places at which global batches begin that are left out; `keys` names the packs of this copy's part of the batch
    last given, once they have been read.
    """

    def __init__(
        self,
        packs: Packs,
        config: TrainConfig,
        vocabulary: Vocabulary,
        share: Share,
        consumed: int = 0,
        skip: Collection[int] = (),
    ) -> None:
        self.packs = packs
        self.config = config
        self.vocabulary = vocabulary
        self.share = share
        self.consumed = consumed
        self.skip = set(skip)
        self.keys: list[str] = []
        self.multiple = config.parallel.row_multiple(config.data.align)

    def coming(self) -> Iterator[list[int]]:
        """Without end, the packs of this copy's part of each global batch from here on; the state stays as it is."""
        place = self.consumed
        while True:
            place = self._next(place)
            yield self._packs_of(place)
            place += self.config.data.global_batch_size

    def next_batch(self) -> Iterator[LayoutBatch]:
        """The micro-batches of this copy's part of the next global batch; the state has then moved on by the whole of it."""
        place = self._next(self.consumed)
        indices = self._packs_of(place)
        self.consumed = place + self.config.data.global_batch_size
        self.keys = []
        size = self.config.data.micro_batch_size
        return (
            join([self._lay_out(i) for i in indices[at : at + size]], self.multiple) for at in range(0, len(indices), size)
        )

    def _next(self, place: int) -> int:
        """Where the first global batch from `place` on begins that is not left out."""
        while place in self.skip:
            place += self.config.data.global_batch_size
        return place

    def _packs_of(self, place: int) -> list[int]:
        """Numbers of the packs that this process's copy takes of the global batch at `place`."""
        places = range(place + self.share.rank, place + self.config.data.global_batch_size, self.share.size)
        return [shuffled(one, len(self.packs), self.config.data.seed) for one in places]

    def _lay_out(self, index: int) -> PackLayout:
        sample = self.packs.read(index)
        self.keys.append(sample.key)
        model, loss = self.config.model, self.config.loss
        try:
            scales = max((len(image_grids(s)) for s in sample.segments if s["kind"] == "image"), default=0)
            if scales > model.max_scales:
                raise ValueError(f"an image has {scales} scales, model.max_scales is {model.max_scales}")
            slots = sample.slots
            if slots > model.max_length:
                raise ValueError(f"it takes {slots} slots, model.max_length is {model.max_length}; raise it or pack shorter")
            if loss.responses_only and all(segment["loss"] for segment in sample.segments):
                raise ValueError("nothing in it is marked as given (loss: false), and loss.responses_only is set")
            arrays = (sample.text, sample.input, sample.target)
            return build_pack_layout(sample.segments, *arrays, self.vocabulary, slots, model.rope_extent, loss)
        except ValueError as error:
            raise FeedError(f"pack {sample.key}: {error}") from error
