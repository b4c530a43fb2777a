"""Packs end to end in one row, and a row's parts under context parallelism, against the packs one by one."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from nextflow_tokenize.schedule import canonical_final, grids, token_count
from nextflow_tokenize.segments import ImageSegment, Segment, TextSegment, slots_of

from megatron_nextflow.config.loss import LossConfig
from megatron_nextflow.sequence.batch import LayoutBatch, collate, join, vision_inputs
from megatron_nextflow.sequence.pack_layout import PackLayout, build_pack_layout
from megatron_nextflow.sequence.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text=50, codes=40)


def pack(seed: int, words: int, sizes: list[tuple[tuple[int, int], int]], padding: int = 0) -> PackLayout:
    """A document of text, and after it images of the given final grids and scales with a word after each."""
    rng = np.random.default_rng(seed)
    segments: list[Segment] = [TextSegment(kind="text", doc="d", tokens=words, loss=True)]
    codes = 0
    for final, scales in sizes:
        schedule = grids(canonical_final(final, scales), scales)
        grid = list(schedule[-1])
        segments.append(ImageSegment(kind="image", doc="d", sha256="", grid=grid, scales=scales, loss=True))
        segments.append(TextSegment(kind="text", doc="d", tokens=1, loss=True))
        codes += token_count(schedule)
    length = slots_of(segments) + padding
    text, given = rng.integers(0, 50, words + len(sizes)), rng.integers(0, 40, codes)
    return build_pack_layout(segments, text, given, rng.integers(0, 40, codes), VOCABULARY, length, 64.0, LossConfig())


PACKS = [pack(0, 5, [((64, 64), 4)]), pack(1, 30, []), pack(2, 2, [((32, 128), 3), ((60, 68), 5)], padding=9)]


def test_a_row_holds_the_packs_one_after_the_other() -> None:
    row = join(PACKS, 64)
    assert row.length % 64 == 0 and row.used == sum(p.used for p in PACKS) and row.spans == ((0, row.length),)
    first = 0
    for one in PACKS:
        here = slice(first, first + one.used)
        for field in fields(PackLayout):
            if field.name not in ("images", "used", "visible"):
                found = getattr(row, field.name)[..., 0, here].numpy()
                np.testing.assert_array_equal(found, getattr(one, field.name)[..., : one.used])
        np.testing.assert_array_equal(row.visible[:, 0, here].numpy() - first, one.visible[:, : one.used])
        first += one.used
    rest = row.visible[:, 0, row.used :]
    assert torch.equal(rest[1] - rest[0], torch.ones_like(rest[0])) and rest[0, 0] == row.used
    assert not row.is_vision[0, row.used :].any() and [image.slot for image in row.images] == [
        int(slot) for slot in (row.token_ids[0] == VOCABULARY.boi).nonzero()
    ]


def test_pairs_are_counted_without_padding() -> None:
    """By hand: a word sees all before it and itself; a scale of n slots sees all before it and itself, n times."""
    one = pack(3, 2, [((64, 64), 3)], padding=5)
    assert collate([one]).pairs == 1 + 2 + 3 + 4 * 7 + 9 * 16 + 17 + 18
    assert join([one, one], 32).pairs == 2 * collate([one]).pairs


@pytest.mark.parametrize("size", [1, 2, 3])
def test_parts_make_up_the_row(size: int) -> None:
    row = join(PACKS, 2 * size * 8)
    parts = [row.part(rank, size) for rank in range(size)]
    slots = torch.cat([torch.arange(*span) for part in parts for span in part.spans])
    assert sorted(slots.tolist()) == list(range(row.length))
    order = slots.argsort()
    for name in ("token_ids", "is_vision", "labels", "weights", "scale", "num_scales", "positions", "visible"):
        together = torch.cat([getattr(part, name) for part in parts], dim=-1)
        assert torch.equal(together[..., order], getattr(row, name))
    assert (sum(p.used for p in parts), sum(p.pairs for p in parts)) == (row.used, row.pairs)
    codebook = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    whole = torch.zeros(row.length, 3)
    whole[row.is_vision[0]] = vision_inputs(codebook, row.images)
    for part in parts:
        mine = torch.cat([torch.arange(*span) for span in part.spans])[part.is_vision[0]]
        assert torch.equal(vision_inputs(codebook, part.images, part.vision_rows), whole[mine])


def test_rows_that_cannot_be_cut_are_refused() -> None:
    def refused(batch: LayoutBatch) -> None:
        with pytest.raises(ValueError, match="cannot be cut into 4 equal stretches"):
            batch.part(0, 2)

    refused(join(PACKS[1:2]))
    refused(collate([PACKS[1], PACKS[1]]))
