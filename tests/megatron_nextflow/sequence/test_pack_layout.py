"""The layout of a pack: the paper's figure position by position, labels, weights, visible ranges, vision inputs."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nextflow_tokenize.schedule import FINAL_GRIDS, canonical_final, grids, token_count
from nextflow_tokenize.segments import ImageSegment, Segment, TextSegment, image_grids, slots
from torch.nn.functional import interpolate

from megatron_nextflow.config.loss import LossConfig
from megatron_nextflow.sequence.batch import collate, vision_inputs
from megatron_nextflow.sequence.pack_layout import (
    IGNORED,
    ImageInput,
    PackLayout,
    build_pack_layout,
    scale_weights,
)
from megatron_nextflow.sequence.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text=50, codes=64)
SQUARE = (64, 64)


def text(doc: str, tokens: int, loss: bool = True) -> TextSegment:
    return TextSegment(kind="text", doc=doc, tokens=tokens, loss=loss)


def image(doc: str, scales: int, final: tuple[int, int] = SQUARE, loss: bool = True) -> ImageSegment:
    grid = grids(canonical_final(final, scales), scales)[-1]
    return ImageSegment(kind="image", doc=doc, sha256="", grid=list(grid), scales=scales, loss=loss)


def lay_out(segments: list[Segment], length: int | None = None, extent: float = 64.0, **loss: float) -> PackLayout:
    """Distinct ids where the vocabulary has room, so that a misplaced label shows."""
    tokens = sum(s["tokens"] for s in segments if s["kind"] == "text")
    codes = sum(token_count(image_grids(s)) for s in segments if s["kind"] == "image")
    return build_pack_layout(
        segments,
        np.arange(tokens, dtype=np.int32) % VOCABULARY.text,
        np.arange(codes, dtype=np.uint32) % VOCABULARY.codes,
        (np.arange(codes, dtype=np.uint32) + 7) % VOCABULARY.codes,
        VOCABULARY,
        length or sum(slots(s) for s in segments),
        extent,
        LossConfig(**{"alpha": 0.0, **loss}),  # type: ignore[arg-type]
    )


def square(side: int, scale: int) -> list[tuple[Fraction, Fraction, Fraction]]:
    """(scale, row, column) of a square grid with C = 1, row by row, as figure 5 draws it."""
    places = [Fraction(2 * i + 1, 2 * side) for i in range(side)]
    return [(Fraction(scale), row, column) for row in places for column in places]


def test_two_images_of_three_scales_are_the_papers_figure_5() -> None:
    layout = lay_out([image("a", 3), text("a", 5), image("a", 3)], extent=1)
    expected = [(Fraction(0),) * 3]
    expected += [(Fraction(1), Fraction(a, 4), Fraction(b, 4)) for a in (1, 3) for b in (1, 3)]
    expected += [(Fraction(2), Fraction(a, 6), Fraction(b, 6)) for a in (1, 3, 5) for b in (1, 3, 5)]
    expected += [(Fraction(p),) * 3 for p in (3, 4, 5, 6, 7, 8, 9)]
    expected += [*square(2, 10), *square(3, 11), (Fraction(12),) * 3]
    assert layout.positions.shape == (3, 35) == (3, len(expected))
    for slot, (found, wanted) in enumerate(zip(layout.positions.T, expected, strict=True)):
        assert found.tolist() == pytest.approx([float(x) for x in wanted], abs=1e-6), slot
    ends = [1, *[5] * 4, *[14] * 9, 15, 16, 17, 18, 19, 20, 21, *[25] * 4, *[34] * 9, 35]
    assert layout.visible.tolist() == [[0] * 35, ends]
    boi, eoi = VOCABULARY.boi, VOCABULARY.eoi
    assert layout.token_ids.tolist() == [boi, *[0] * 13, eoi, 0, 1, 2, 3, 4, boi, *[0] * 13, eoi]
    assert layout.is_vision.tolist() == ([False] + [True] * 13 + [False]) + [False] * 5 + ([False] + [True] * 13 + [False])
    code = VOCABULARY.code_offset + 7
    first, second = list(range(code, code + 14)), list(range(code + 14, code + 28))
    assert layout.labels.tolist() == [*first, 0, 1, 2, 3, 4, boi, *second, IGNORED]
    one = [1, *[2] * 4, *[3] * 9, 0]
    assert layout.scale.tolist() == [*one, *[0] * 5, *one]
    assert layout.num_scales.tolist() == [*[3] * 14, *[0] * 6, *[3] * 14, 0]


def test_position_of_a_wide_grid_by_equation_1() -> None:
    schedule = grids((32, 128), 8)
    layout = lay_out([text("a", 2), image("a", 8, (32, 128))], extent=64)
    h, w = schedule[2]
    assert h != w
    slot = 2 + 1 + schedule[1][0] * schedule[1][1] + 1 * w + 2  # scale 3, row 1, column 2
    scale, row, column = layout.positions[:, slot].tolist()
    assert scale == 2 + 2
    assert row == pytest.approx(64 * 1.5 / (h * w) ** 0.5)
    assert column == pytest.approx(64 * 2.5 / (h * w) ** 0.5)


def test_documents_of_a_pack_restart_and_do_not_see_one_another() -> None:
    layout = lay_out([text("a", 3), image("a", 2), text("b", 4)], length=16)
    assert layout.used == 13
    assert layout.positions[:, 9:13].tolist() == [[0, 1, 2, 3]] * 3
    assert layout.visible[0].tolist() == [0] * 9 + [9] * 4 + [13, 14, 15]
    assert layout.visible[1, 9:].tolist() == [10, 11, 12, 13, 14, 15, 16]
    assert layout.labels[8] == IGNORED, "⟨eoi⟩ must not predict another document's text"
    assert layout.labels[12:].tolist() == [IGNORED] * 4
    assert layout.weights[12:].tolist() == [0] * 4


def test_a_label_counts_where_the_predicted_token_has_loss() -> None:
    asked = lay_out([text("a", 3, loss=False), image("a", 2)])
    assert asked.labels[:2].tolist() == [IGNORED] * 2 and asked.labels[2] == VOCABULARY.boi
    assert (asked.labels[3:8] >= VOCABULARY.code_offset).all()
    shown = lay_out([text("a", 3, loss=False), image("a", 2, loss=False), text("a", 2)])
    assert shown.labels[:8].tolist() == [IGNORED] * 8
    assert shown.labels[8:].tolist() == [3, 4, IGNORED]
    assert shown.weights.tolist() == [0] * 8 + [1, 1, 0]
    silent = lay_out([text("a", 3), image("a", 2)], predict_boi=False)
    assert silent.labels[:3].tolist() == [1, 2, IGNORED]
    pair = lay_out([image("a", 2), image("a", 2)])
    assert pair.labels[5] == IGNORED, "⟨eoi⟩ before an image predicts nothing"


@pytest.mark.parametrize(("alpha", "first", "last"), [(0.0, 0.01, 40.6), (0.9, 3.4, 7.8)])
def test_scale_shares_of_the_loss_at_1024(alpha: float, first: float, last: float) -> None:
    """Percentages worked out from the paper's schedule and weight rule (section 3)."""
    schedule = grids(SQUARE, 18)
    weights = scale_weights(schedule, alpha)
    shares = [100 * w * h_w[0] * h_w[1] / 10_084 for w, h_w in zip(weights, schedule, strict=True)]
    assert sum(shares) == pytest.approx(100)
    assert shares[0] == pytest.approx(first, abs=0.05 if alpha else 0.005)
    assert shares[-1] == pytest.approx(last, abs=0.05)


def test_an_images_weights_sum_to_its_codes() -> None:
    layout = lay_out([text("a", 3), image("a", 8), text("a", 2), image("a", 8, (32, 128))], alpha=0.9)
    in_image = layout.scale > 0
    codes = token_count(grids(SQUARE, 8)) + token_count(grids(canonical_final((32, 128), 8), 8))
    assert layout.weights[in_image].sum() == pytest.approx(codes, rel=1e-5)
    assert layout.weights[1] > 0 and layout.weights[~in_image].max() == 1


def test_vision_inputs_equal_a_loop_over_images_and_scales() -> None:
    rng = np.random.default_rng(0)
    codebook = torch.randn(64, 5, dtype=torch.float64, requires_grad=True)
    images, expected = [], []
    for final, scales in ((SQUARE, 8), ((32, 128), 6), (SQUARE, 8), ((128, 32), 1), ((60, 68), 12)):
        schedule = grids(final, scales)
        codes = rng.integers(0, 64, token_count(schedule))
        images.append(ImageInput(schedule, codes))
        at = 0
        for (h, w), target in itertools.pairwise(schedule):
            grid = codebook[torch.from_numpy(codes[at : at + h * w])].view(h, w, 5).permute(2, 0, 1)
            upsampled = interpolate(grid[None], size=target, mode="bicubic", align_corners=False)[0]
            expected.append(upsampled.flatten(1).T)
            at += h * w
    wanted = torch.cat(expected)
    found = vision_inputs(codebook, images)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
    upstream = torch.randn_like(wanted)
    gradients = [torch.autograd.grad(x, codebook, upstream)[0] for x in (found, wanted)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-5)


def test_vision_inputs_fill_the_vision_slots_of_a_batch() -> None:
    layouts = [lay_out([text("a", 2), image("a", 4)], 40), lay_out([image("b", 3), image("b", 2), text("b", 3)], 40)]
    batch = collate(layouts)
    assert len(vision_inputs(torch.randn(64, 4), batch.images)) == int(batch.is_vision.sum())
    assert batch.positions.shape == (3, 2, 40) and batch.visible.shape == (2, 2, 40)
    assert batch.labels[1].tolist() == layouts[1].labels.tolist()
    assert vision_inputs(torch.randn(64, 4), []).shape == (0, 4)


@st.composite
def packs(draw: st.DrawFn) -> list[Segment]:
    found: list[Segment] = []
    for doc in range(draw(st.integers(1, 3))):
        for _ in range(draw(st.integers(1, 4))):
            loss = draw(st.booleans())
            if draw(st.booleans()):
                found.append(text(str(doc), draw(st.integers(1, 9)), loss))
            else:
                found.append(image(str(doc), draw(st.integers(1, 7)), draw(st.sampled_from(FINAL_GRIDS)), loss))
    return found


@settings(max_examples=60, deadline=None)
@given(packs(), st.integers(0, 5))
def test_a_layout_says_the_same_slot_by_slot(segments: list[Segment], spare: int) -> None:
    """Ranges, positions and the places of text against a loop over tokens that knows only the table of the design."""
    length = sum(slots(s) for s in segments) + spare
    layout = lay_out(segments, length)
    slot = position = start = 0
    before = None
    for segment in segments:
        if segment["doc"] != before:
            position, start, before = 0, slot, segment["doc"]
        blocks = [1] * segment["tokens"] if segment["kind"] == "text" else [h * w for h, w in image_grids(segment)] + [1]
        for size in blocks:
            end = slot + size
            while slot < end:
                assert layout.visible[:, slot].tolist() == [start, end]
                assert layout.positions[0, slot] == position
                slot += 1
            position += 1
    assert layout.used == slot == length - spare
    assert (layout.labels[slot:] == IGNORED).all() and layout.visible[:, slot:].tolist() == [
        list(range(slot, length)),
        list(range(slot + 1, length + 1)),
    ]
    assert ((layout.labels == IGNORED) == (layout.weights == 0)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 5}, "more than 5 slots"),
        ({"text": np.arange(4)}, "need 3 entries of 'text'"),
        ({"text": np.array([0, 1, 50])}, "outside 0..49"),
        ({"target_codes": np.arange(4)}, "need 5 entries of 'target'"),
        ({"input_codes": np.array([0, 0, 0, 0, 64])}, "'input' holds ids outside 0..63"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: dict[str, object], message: str) -> None:
    good = {"text": np.arange(3), "input_codes": np.arange(5), "target_codes": np.arange(5), "length": 9}
    segments: list[Segment] = [text("a", 3), image("a", 2)]
    build_pack_layout(segments, **good, vocabulary=VOCABULARY, extent=64.0, loss=LossConfig())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        build_pack_layout(segments, **{**good, **change}, vocabulary=VOCABULARY, extent=64.0, loss=LossConfig())  # type: ignore[arg-type]
