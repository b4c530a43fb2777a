"""A pack's segments: what the `.json` member of a shard's sample says, and the arithmetic every reader shares.

Positions, visible ranges and weights are never stored; they follow from the segments. The cost: every reader must agree on
the slots of an image, so that count lives here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Literal, TypedDict

from nextflow_tokenize.schedule import Grid, schedule_of, token_count


class TextSegment(TypedDict):
    """`tokens` ids of `.text.npy`, in order. `loss` is False where the text is only a condition."""

    kind: Literal["text"]
    doc: str
    tokens: int
    loss: bool


class ImageSegment(TypedDict):
    """One image: `grid` is its last grid (h, w), `scales` how many it has. `loss` is False for a condition image."""

    kind: Literal["image"]
    doc: str
    sha256: str
    grid: list[int]
    scales: int
    loss: bool


Segment = TextSegment | ImageSegment


def image_grids(segment: ImageSegment) -> tuple[Grid, ...]:
    """The grids of all scales of an image segment."""
    h, w = segment["grid"]
    return schedule_of((h, w), segment["scales"])


def image_slots(schedule: tuple[Grid, ...]) -> int:
    """Sequence slots of an image with these grids: its codes + 1.

    It has ⟨boi⟩ (predicts scale 1), one slot a code of scales 2…K, and ⟨eoi⟩: 1 + (Σhw − 1) + 1.
    """
    return token_count(schedule) + 1


@lru_cache(maxsize=4096)
def slots_at(grid: Grid, scales: int) -> int:
    """Slots of an image whose last grid is `grid`, of `scales` scales: remembered, for planning asks it of every image."""
    return image_slots(schedule_of(grid, scales))


def slots(segment: Segment) -> int:
    """Sequence slots a segment takes: its text tokens, or its image's slots."""
    if segment["kind"] == "text":
        return segment["tokens"]
    return slots_at((segment["grid"][0], segment["grid"][1]), segment["scales"])


def slots_of(segments: Iterable[Segment]) -> int:
    """Sequence slots of a pack."""
    return sum(slots(segment) for segment in segments)
