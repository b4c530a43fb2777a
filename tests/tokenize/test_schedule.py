"""The schedule against Table 14 of NextFlow (arXiv 2601.02204), typed in.

A row is the listed ratio h/w (of the listed pixel size, which is not always that of the grid), then the 18 scales as h x w.
"""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nextflow_tokenize.schedule import (
    FINAL_GRIDS,
    LEVEL_SCALES,
    canonical_final,
    choose_grids,
    grids,
    nearest_final,
    schedule_of,
    token_count,
    upscale,
)

TABLE_14 = """
0.250 1x1 1x4 2x6 2x8 2x10 3x12 4x14 4x16 5x20 6x24 7x28 8x32 10x40 12x48 14x56 16x64 24x96 32x128
0.260 1x1 1x4 2x6 2x8 2x10 3x12 4x14 4x16 5x19 6x23 7x27 8x31 10x39 12x46 14x54 16x62 24x93 32x124
0.267 1x1 1x4 2x6 2x8 2x9 3x11 4x13 4x15 5x19 6x22 7x26 8x30 10x38 12x45 14x52 16x60 24x90 32x120
0.276 1x1 1x4 2x5 2x7 2x9 3x11 4x13 4x14 5x18 6x22 7x25 8x29 10x36 12x44 14x51 16x58 24x87 32x116
0.295 1x1 1x4 2x5 2x7 3x9 3x10 4x12 4x14 6x18 7x21 8x24 9x28 11x35 14x42 16x49 18x56 27x84 36x112
0.311 1x1 1x3 2x5 2x6 3x8 3x10 4x11 4x13 6x16 7x20 8x23 9x26 11x32 14x39 16x46 18x52 27x78 36x104
0.333 1x1 1x3 2x5 2x7 3x8 3x10 4x12 4x14 6x17 7x20 8x24 9x27 11x34 14x40 16x47 18x54 27x81 36x108
0.345 1x1 1x3 2x5 2x6 3x8 4x9 4x11 5x12 6x16 8x19 9x22 10x25 12x31 15x38 18x44 20x50 30x75 40x100
0.417 1x1 1x3 2x4 2x6 3x8 4x9 4x10 5x12 6x15 8x18 9x21 10x24 12x30 15x36 18x42 20x48 30x72 40x96
0.478 1x1 1x3 2x4 3x6 3x7 4x9 5x10 6x12 7x14 8x17 10x20 11x23 14x29 16x34 19x40 22x46 33x69 44x92
0.500 1x1 1x3 2x4 3x6 3x7 4x8 5x10 6x11 7x14 8x16 10x19 11x22 14x28 16x33 19x38 22x44 33x66 44x88
0.524 1x1 1x3 2x4 3x5 3x7 4x8 5x9 6x10 7x13 8x16 10x18 11x21 14x26 16x32 19x37 22x42 33x63 44x84
0.571 1x1 2x3 2x4 3x5 4x7 4x8 5x9 6x10 8x13 9x16 10x18 12x21 15x26 18x32 21x37 24x42 36x63 48x84
0.600 1x1 2x2 2x4 3x5 4x6 4x8 5x9 6x10 8x12 9x15 10x18 12x20 15x25 18x30 21x35 24x40 36x60 48x80
0.685 1x1 2x2 2x4 3x5 4x6 5x7 6x8 6x10 8x12 10x14 11x17 13x19 16x24 20x28 23x33 26x38 39x57 52x76
0.722 1x1 2x2 2x3 3x4 4x6 5x7 6x8 6x9 8x11 10x14 11x16 13x18 16x22 20x27 23x32 26x36 39x54 52x72
0.781 1x1 2x2 3x3 4x4 4x6 5x7 6x8 7x9 9x11 10x14 12x16 14x18 18x22 21x27 24x32 28x36 42x54 56x72
0.824 1x1 2x2 3x3 4x4 4x5 5x6 6x7 7x8 9x11 10x13 12x15 14x17 18x21 21x26 24x30 28x34 42x51 56x68
0.882 1x1 2x2 3x3 4x4 5x5 6x6 7x7 8x8 9x11 11x13 13x15 15x17 19x21 22x26 26x30 30x34 45x51 60x68
0.937 1x1 2x2 3x3 4x4 5x5 6x6 7x7 8x8 9x10 11x12 13x14 15x16 19x20 22x24 26x28 30x32 45x48 60x64
1.000 1x1 2x2 3x3 4x4 5x5 6x6 7x7 8x8 10x10 12x12 14x14 16x16 20x20 24x24 28x28 32x32 48x48 64x64
"""


def _rows():
    for line in TABLE_14.split("\n"):
        if line:
            ratio, *scales = line.split()
            yield float(ratio), tuple((int(h), int(w)) for h, w in (scale.split("x") for scale in scales))


ROWS = dict(_rows())


def test_the_table_is_whole():
    assert len(ROWS) == 21
    assert all(len(row) == 18 for row in ROWS.values())


@pytest.mark.parametrize("ratio", ROWS)
def test_every_entry_of_table_14(ratio):
    row = ROWS[ratio]
    assert grids(row[-1], 18) == row
    transposed = tuple((w, h) for h, w in row)
    assert grids(transposed[-1], 18) == transposed


def test_the_41_ratios_are_those_of_the_table():
    expected = {row[-1] for row in ROWS.values()} | {row[-1][::-1] for row in ROWS.values()}
    assert len(expected) == 41
    assert set(FINAL_GRIDS) == expected
    assert len(FINAL_GRIDS) == 41


@pytest.mark.parametrize(("level", "tokens"), [(256, 900), (512, 3684), (1024, 10084)])
def test_square_token_counts(level, tokens):
    assert token_count(grids((64, 64), LEVEL_SCALES[level])) == tokens


def test_range_of_1024_level_token_counts():
    counts = [token_count(grids(final, 18)) for final in FINAL_GRIDS]
    assert (min(counts), max(counts)) == (9093, 10089)


@pytest.mark.parametrize("scales", LEVEL_SCALES.values())
@pytest.mark.parametrize("final", FINAL_GRIDS)
def test_a_segment_gives_its_schedule_back(final, scales):
    chosen = grids(canonical_final(final, scales), scales)
    assert chosen[-1] == grids(final, scales)[-1]
    assert schedule_of(chosen[-1], scales) == chosen


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_the_nearest_ratio_is_nearest_in_log_space(height, width):
    chosen = nearest_final(height, width)
    wanted = math.log(height / width)
    distance = abs(math.log(chosen[0] / chosen[1]) - wanted)
    assert all(distance <= abs(math.log(h / w) - wanted) for h, w in FINAL_GRIDS)


@given(st.integers(16, 3000), st.integers(16, 3000), st.floats(1, 4))
def test_the_highest_level_without_too_much_upscaling(height, width, limit):
    levels = [1024, 512, 256, 128]
    chosen = choose_grids(height, width, levels, limit)
    for level in levels:
        h, w = grids(nearest_final(height, width), LEVEL_SCALES[level])[-1]
        factor = max(16 * h / height, 16 * w / width)
        if chosen is not None and chosen[-1] == (h, w) and len(chosen) == LEVEL_SCALES[level]:
            assert factor <= limit
            return
        assert factor > limit
    assert chosen is None


def test_upscale_is_of_the_side_that_grows_most():
    assert upscale(256, 128, (16, 16)) == 2.0
    assert upscale(1024, 512, (16, 16)) == 0.5


def test_unknown_ratios_and_counts_are_refused():
    with pytest.raises(ValueError, match="FINAL_GRIDS"):
        grids((10, 10), 12)
    with pytest.raises(ValueError, match="scales must be"):
        grids((64, 64), 19)
    with pytest.raises(ValueError, match="no ratio"):
        schedule_of((3, 200), 12)
