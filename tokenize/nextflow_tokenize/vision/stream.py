"""A stream of images of mixed grids to codes: images of one grid wait for each other and are quantised together.

How many wait is bounded, over all grids: where the bound is reached, the fullest bucket is encoded as it is. So results come
out of order, and an image of a rare grid may wait for the stream's end. Codes depend on an image's pixels, its seed and the
settings, never on what shares its batch: on a CPU the tokenizer sees to that; elsewhere the kernels that a library picks
depend on the batch's size, so there every batch is filled up to its full size. The cost: up to `batch_size − 1` images of
wasted work for a bucket that was forced, so that a GPU wants `max_pending` many times `batch_size`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from nextflow_tokenize.config.vision import SelfCorrectionConfig
from nextflow_tokenize.npy import code_dtype
from nextflow_tokenize.schedule import Grid
from nextflow_tokenize.vision.images.pixels import to_pixels

if TYPE_CHECKING:
    from nextflow_tokenize.vision.model import VisionTokenizer

K = TypeVar("K")
Schedule = tuple[Grid, ...]


@dataclass(frozen=True)
class StreamItem(Generic[K]):
    """An image resized for its schedule: uint8 [H, W, 3] (`pixels.fit` the last grid), the seed of its self-correction
    (`quantizer.seed_of` its hash), and a key of the caller's."""

    key: K
    schedule: Schedule
    array: npt.NDArray[np.uint8]
    seed: int


@dataclass(frozen=True)
class Encoded(Generic[K]):
    """An item and its codes, [Σhw] scale by scale, row by row, in the smallest type for the codebook (`npy.code_dtype`)."""

    item: StreamItem[K]
    input: npt.NDArray[np.unsignedinteger]
    target: npt.NDArray[np.unsignedinteger]


class Buckets(Generic[K]):
    """Images waiting by schedule, `held` in all, never more than `max_pending`. Raises ValueError for a size below one."""

    def __init__(
        self, tokenizer: VisionTokenizer, self_correction: SelfCorrectionConfig | None, batch_size: int, max_pending: int
    ) -> None:
        if batch_size < 1 or max_pending < 1:
            raise ValueError(f"batch_size {batch_size} and max_pending {max_pending} must be at least 1")
        self.held = 0
        self._tokenizer, self._self_correction = tokenizer, self_correction
        self._batch_size, self._max_pending = batch_size, max_pending
        self._waiting: dict[Schedule, list[StreamItem[K]]] = {}
        self._dtype = code_dtype(tokenizer.config.codebook_size)

    def add(self, item: StreamItem[K]) -> list[Encoded[K]]:
        """Takes an image in; gives the bucket that it fills, or the fullest one where too many wait, or nothing.

        Raises ValueError where its array has another shape than those of its schedule before it.
        """
        bucket = self._waiting.setdefault(item.schedule, [])
        if bucket and bucket[0].array.shape != item.array.shape:
            raise ValueError(
                f"an image of shape {item.array.shape} waits with one of {bucket[0].array.shape} for the same grid "
                f"{item.schedule[-1]}: resize both to it"
            )
        bucket.append(item)
        self.held += 1
        if len(bucket) >= self._batch_size:
            return self.force(item.schedule)
        if self.held >= self._max_pending:
            return self.force(max(self._waiting, key=lambda schedule: len(self._waiting[schedule])))
        return []

    def force(self, schedule: Schedule) -> list[Encoded[K]]:
        """Encodes what waits with `schedule`, in the order it came; nothing waits: nothing."""
        items = self._waiting.pop(schedule, [])
        if not items:
            return []
        self.held -= len(items)
        missing = 0 if self._tokenizer.device.type == "cpu" else self._batch_size - len(items)
        whole = items + [items[-1]] * missing
        codes = self._tokenizer.encode(
            to_pixels([item.array for item in whole]), schedule, [item.seed for item in whole], self._self_correction
        )
        fed, target = (part.cpu().numpy().astype(self._dtype) for part in (codes.input, codes.target))
        return [Encoded(item, fed[row], target[row]) for row, item in enumerate(items)]

    def flush(self) -> Iterator[Encoded[K]]:
        """Encodes all that waits, the fullest bucket first."""
        while self._waiting:
            yield from self.force(max(self._waiting, key=lambda schedule: len(self._waiting[schedule])))


def encode_stream(
    tokenizer: VisionTokenizer,
    items: Iterable[StreamItem[K]],
    self_correction: SelfCorrectionConfig | None = None,
    batch_size: int = 8,
    max_pending: int = 64,
) -> Iterator[Encoded[K]]:
    """Every item once with its codes, out of order; at most `max_pending` wait at a time.

    Raises ValueError for a size below one and what `VisionTokenizer.encode` raises, so for an array that does not fit its
    schedule.
    """
    buckets: Buckets[K] = Buckets(tokenizer, self_correction, batch_size, max_pending)
    for item in items:
        yield from buckets.add(item)
    yield from buckets.flush()
