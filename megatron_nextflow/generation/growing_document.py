"""One document that is being generated: its parts so far, and which of its slots the model has been fed.

Slots, positions and visible ranges are those of training, made by the same function from the whole document each time it
grows (`build_pack_layout`), so that the two cannot drift apart. The cost: work in the document's length a text token, some
tenths of a millisecond where a pass takes many. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from nextflow_tokenize.schedule import Grid, schedule_of, token_count
from nextflow_tokenize.segments import ImageSegment, Segment, TextSegment, image_slots
from numpy.typing import NDArray

from megatron_nextflow.config.generate import GenerationError
from megatron_nextflow.config.loss import LossConfig
from megatron_nextflow.sequence.pack_layout import ImageInput, PackLayout, build_pack_layout
from megatron_nextflow.sequence.vocabulary import Vocabulary

_NOTHING_LEARNT = LossConfig()
"""A document that is generated has no labels, so nothing of this is read into it."""


@dataclass(frozen=True)
class TextPart:
    """Text ids."""

    ids: tuple[int, ...]

    @property
    def slots(self) -> int:
        """One a token."""
        return len(self.ids)


@dataclass(frozen=True)
class ImagePart:
    """An image: the grids of its scales and the codes int64 [Σhw] that it is fed with."""

    grids: tuple[Grid, ...]
    codes: NDArray[np.int64]

    @property
    def slots(self) -> int:
        """⟨boi⟩, the slots of scales from the second on, ⟨eoi⟩."""
        return image_slots(self.grids)


Part = TextPart | ImagePart


def layout_of(parts: Sequence[Part], vocabulary: Vocabulary, extent: float) -> PackLayout:
    """The pack layout of one document; `extent` as in `build_pack_layout`.

    Raises GenerationError for a schedule that no shard could name (`schedule_of`).
    """
    segments: list[Segment] = []
    for part in parts:
        if isinstance(part, TextPart):
            segments.append(TextSegment(kind="text", doc="", tokens=len(part.ids), loss=False))
            continue
        last, scales = part.grids[-1], len(part.grids)
        if schedule_of(last, scales) != part.grids:
            raise GenerationError(f"{part.grids} is not the canonical schedule of {scales} scales that ends in {last}")
        segments.append(ImageSegment(kind="image", doc="", sha256="", grid=list(last), scales=scales, loss=False))
    text = np.array([i for part in parts if isinstance(part, TextPart) for i in part.ids], np.int64)
    codes = np.concatenate([np.zeros(0, np.int64), *(part.codes for part in parts if isinstance(part, ImagePart))])
    slots = sum(part.slots for part in parts)
    return build_pack_layout(segments, text, codes, codes, vocabulary, slots, extent, _NOTHING_LEARNT)


def window(layout: PackLayout, first: int, last: int, images: tuple[ImageInput, ...] = ()) -> PackLayout:
    """Slots [first, last) of a layout, their visible ranges still absolute; `images` feed the vision slots among them.

    For the slots of scale k alone give ImageInput((grid k−1, grid k), codes of scale k−1).
    """
    cut: dict[str, Any] = {name: getattr(layout, name)[..., first:last] for name in ARRAYS}
    return replace(layout, **cut, images=images, used=last - first)


class GrowingDocument:
    """A growing document: `parts`, of which the first `given` are its prompt.

    What is new is asked for in windows, each to be fed before the next.
    """

    def __init__(self, parts: Sequence[Part], vocabulary: Vocabulary, extent: float) -> None:
        self.parts = list(parts)
        self.given = len(self.parts)
        self.fed = 0
        self._vocabulary, self._extent = vocabulary, extent
        self._layout: PackLayout | None = None
        self._drawn: list[NDArray[np.int64]] = []

    @property
    def slots(self) -> int:
        """Slots of all parts, fed or not."""
        return sum(part.slots for part in self.parts)

    @property
    def layout(self) -> PackLayout:
        """Of all parts; the codes of an image that is not finished are zeros."""
        if self._layout is None:
            self._layout = layout_of(self.parts, self._vocabulary, self._extent)
        return self._layout

    def add(self, token: int) -> None:
        """A text id at the end."""
        last = self.parts[-1] if len(self.parts) > self.given else None
        if isinstance(last, TextPart):
            self.parts[-1] = TextPart((*last.ids, token))
        else:
            self.parts.append(TextPart((token,)))
        self._layout = None

    def unread(self) -> PackLayout:
        """All slots not fed yet; an image among them is fed whole."""
        return self._take(self.slots, tuple(image for image in self.layout.images if image.slot >= self.fed))

    def begin(self, schedule: tuple[Grid, ...]) -> PackLayout:
        """An image at the end: all slots not fed yet up to its ⟨boi⟩, whose last predicts scale 1."""
        before = self.layout.images
        first, fed = self.slots, self.fed
        self.parts.append(ImagePart(schedule, np.zeros(token_count(schedule), np.int64)))
        self._layout, self._drawn = None, []
        return self._take(first + 1, tuple(image for image in before if image.slot >= fed))

    def grow(self, codes: NDArray[np.int64]) -> PackLayout | None:
        """The codes of the image's next scale; the slots that they feed, which predict the scale after, or None at its end.

        At its end only ⟨eoi⟩ is left to feed, before whatever follows.
        """
        image = self.parts[-1]
        assert isinstance(image, ImagePart)
        self._drawn.append(codes)
        done = len(self._drawn)
        if done < len(image.grids):
            source, target = image.grids[done - 1 : done + 1]
            return self._take(self.fed + target[0] * target[1], (ImageInput((source, target), codes),))
        self.parts[-1] = ImagePart(image.grids, np.concatenate(self._drawn))
        self._layout = None
        return None

    def _take(self, last: int, images: tuple[ImageInput, ...]) -> PackLayout:
        taken = window(self.layout, self.fed, last, images)
        self.fed = last
        return taken


ARRAYS = tuple(field.name for field in fields(PackLayout) if field.name not in ("images", "used"))
"""The fields of a layout that have one entry a slot."""
