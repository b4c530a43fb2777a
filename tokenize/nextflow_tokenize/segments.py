"""A pack's segments: what the `.json` member of a shard's sample says, and the arithmetic every reader shares.

Positions, visible ranges and weights are never stored; they follow from the segments. The cost: every reader must agree on
the slots of an image, so that count lives here and nowhere else.
"""

from __future__ import annotations

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


class Pack(TypedDict):
    """The `.json` member: segments in order and the pack's compute cost in FLOPs (see `nextflow_tokenize.packing.plan`)."""

    segments: list[Segment]
    cost: float


def image_grids(segment: ImageSegment) -> tuple[Grid, ...]:
    """The grids of all scales of an image segment."""
    h, w = segment["grid"]
    return schedule_of((h, w), segment["scales"])


def slots(segment: Segment) -> int:
    """Sequence slots a segment takes: its text tokens, or for an image its codes + 1.

    An image has ⟨boi⟩ (predicts scale 1), one slot a code of scales 2…K, and ⟨eoi⟩: 1 + (Σhw − 1) + 1.
    """
    if segment["kind"] == "text":
        return segment["tokens"]
    return token_count(image_grids(segment)) + 1
