"""The multi-scale schedule: which grid an image has at each scale.

NextFlow (arXiv 2601.02204, appendix A.1 and Table 14) has 18 scales, 41 aspect ratios and three levels: an image at level
256 uses the first 12 scales of its ratio, at 512 the first 16, at 1024 all 18. The table is not stored: a rule gives every
entry of Table 14 (see `grids`). Level 128 with 8 scales is our choice, for small runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import log

Grid = tuple[int, int]
"""(height, width) of a token grid."""

SQUARE_SIDES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64)
LEVEL_SCALES = {128: 8, 256: 12, 512: 16, 1024: 18}
"""Number of scales an image of a level has; 128 is our choice, the others are the paper's."""

LEVEL_OF = {scales: level for level, scales in LEVEL_SCALES.items()}
"""The level that has so many scales."""

PIXELS_PER_TOKEN = 16
"""Side in pixels of one token of the final grid (both branches downsample by 16)."""

_WIDE = (
    (32, 128), (32, 124), (32, 120), (32, 116), (36, 112), (36, 104), (36, 108), (40, 100), (40, 96), (44, 92), (44, 88),
    (44, 84), (48, 84), (48, 80), (52, 76), (52, 72), (56, 72), (56, 68), (60, 68), (60, 64),
)  # fmt: skip
FINAL_GRIDS: tuple[Grid, ...] = (*_WIDE, (64, 64), *((w, h) for h, w in reversed(_WIDE)))
"""The 1024-level final grid of each of the 41 ratios, Table 14's order, then the transposes."""


@cache
def grids(final: Grid, scales: int) -> tuple[Grid, ...]:
    """The first `scales` grids of the ratio whose 1024-level final grid is `final`.

    Scale 1 is (1, 1); scale k is (max(1, round(s_k·H/64)), max(1, round(s_k·W/64))) with s_k the square side and Python's
    round-half-to-even: this reproduces all 378 entries of Table 14. Raises ValueError for a ratio or count the schedule
    does not have.
    """
    if final not in FINAL_GRIDS:
        raise ValueError(f"no ratio of the schedule has the final grid {final}; choose one of FINAL_GRIDS")
    if not 1 <= scales <= len(SQUARE_SIDES):
        raise ValueError(f"scales must be 1..{len(SQUARE_SIDES)}, not {scales}")
    height, width = final
    later = ((max(1, round(s * height / 64)), max(1, round(s * width / 64))) for s in SQUARE_SIDES[1:scales])
    return ((1, 1), *later)


def nearest_final(height: int, width: int) -> Grid:
    """The final grid whose aspect ratio is nearest in log space to an image of `height`×`width` pixels; ties: the first."""
    return min(FINAL_GRIDS, key=lambda g: abs(log(g[0] / g[1]) - log(height / width)))


def token_count(schedule: tuple[Grid, ...]) -> int:
    """Codes an image has over all its scales: Σ h·w."""
    return sum(h * w for h, w in schedule)


@cache
def schedule_of(grid: Grid, scales: int) -> tuple[Grid, ...]:
    """The schedule of `scales` scales whose last grid is `grid`: what a shard's segment stores, made whole again.

    Where several ratios share that last grid at a low level, the first of FINAL_GRIDS is taken, and the tokenizer does the
    same (`canonical_final`), so the answer is unique. Raises ValueError where no ratio ends in that grid.
    """
    for final in FINAL_GRIDS:
        found = grids(final, scales)
        if found[-1] == grid:
            return found
    raise ValueError(f"no ratio of the schedule has {grid} as its grid number {scales}")


def canonical_final(final: Grid, scales: int) -> Grid:
    """The first ratio that ends in the same grid as `final` at `scales` scales (the one `schedule_of` finds)."""
    last = grids(final, scales)[-1]
    return next(f for f in FINAL_GRIDS if grids(f, scales)[-1] == last)


def upscale(height: int, width: int, grid: Grid) -> float:
    """How many times larger 16 × `grid` pixels are than an image of `height`×`width`, on the side where it is most."""
    return max(grid[0] * PIXELS_PER_TOKEN / height, grid[1] * PIXELS_PER_TOKEN / width)


def choose_grids(height: int, width: int, levels: Sequence[int], max_upscale: float) -> tuple[Grid, ...] | None:
    """The schedule of an image of `height`×`width` pixels: nearest ratio, and the first of `levels` (highest first) that
    enlarges the image at most `max_upscale` times; None where every level would."""
    for level in levels:
        scales = LEVEL_SCALES[level]
        schedule = grids(canonical_final(nearest_final(height, width), scales), scales)
        if upscale(height, width, schedule[-1]) <= max_upscale:
            return schedule
    return None
