"""Rotary angles against Qwen2.5-VL's formula, written out here as its model code has it, channel by channel."""

from __future__ import annotations

import math

import pytest
import torch
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_nextflow.model.rope import MultiScaleRotary


def qwen(x: torch.Tensor, positions: torch.Tensor, theta: float, sections: list[int]) -> torch.Tensor:
    """Rotate x [s, d] by positions [3, s]: cos and sin of a doubled d/2 table, its pieces taken from axis i mod 3."""
    s, d = x.shape
    table = torch.zeros(3, s, d, dtype=torch.float64)
    for axis in range(3):
        for t in range(s):
            for c in range(d // 2):
                angle = float(positions[axis, t]) / theta ** (2 * c / d)
                table[axis, t, c] = table[axis, t, c + d // 2] = angle
    pieces, at = [], 0
    for i, width in enumerate(sections * 2):
        pieces.append(table[i % 3, :, at : at + width])
        at += width
    angles = torch.cat(pieces, -1)
    half = torch.cat((-x[:, d // 2 :], x[:, : d // 2]), -1)
    return x.double() * angles.cos() + half.double() * angles.sin()


def rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1)
    return apply_rotary_pos_emb(x[:, None, None], angles, config, cp_group=torch.distributed.group.WORLD)[:, 0, 0]


def test_text_positions_are_qwens() -> None:
    positions = torch.tensor([0, 1, 2, 9, 100, 2047]).expand(3, -1)
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    angles = MultiScaleRotary(32, 1e6, (4, 6, 6))(positions[:, None])
    assert angles.shape == (6, 1, 1, 32) and angles.dtype == torch.float32
    torch.testing.assert_close(rotate(x, angles).double(), qwen(x, positions, 1e6, [4, 6, 6]), atol=2e-4, rtol=0)


def test_three_different_coordinates_are_qwens() -> None:
    generator = torch.Generator().manual_seed(1)
    positions = torch.rand(3, 20, generator=generator) * 64
    x = torch.randn(20, 16, generator=generator)
    for sections in ((2, 3, 3), (8, 0, 0), (1, 0, 7)):
        found = rotate(x, MultiScaleRotary(16, 1e4, sections)(positions[:, None]))
        torch.testing.assert_close(found.double(), qwen(x, positions, 1e4, list(sections)), atol=3e-5, rtol=0)


def test_qwen25_vl_gives_its_first_16_frequencies_to_the_scale() -> None:
    rotary = MultiScaleRotary(128, 1e6, (16, 24, 24))
    for axis, pairs in ((0, range(16)), (1, range(16, 40)), (2, range(40, 64))):
        positions = torch.zeros(3, 1, 1)
        positions[axis] = 1
        angles = rotary(positions)[0, 0, 0]
        moved = [c for c in range(64) if angles[c] != 0]
        assert moved == list(pairs)
        assert angles[pairs[0]].item() == pytest.approx(math.pow(1e6, -pairs[0] / 64), rel=1e-5)


def test_scores_depend_on_differences_only() -> None:
    rotary, generator = MultiScaleRotary(16, 1e4, (2, 3, 3)), torch.Generator().manual_seed(2)
    q, k = torch.randn(2, 1, 16, generator=generator)
    a, b, shift = torch.rand(3, 3, 1, 1, generator=generator) * 8
    scores = [(rotate(q, rotary(a + d)) * rotate(k, rotary(b + d))).sum().item() for d in (torch.zeros(3, 1, 1), shift)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_a_cast_of_the_model_does_not_round_the_frequencies() -> None:
    rotary, positions = MultiScaleRotary(32, 1e6, (4, 6, 6)), torch.full((3, 1, 1), 1001)
    before = rotary(positions)
    assert torch.equal(rotary.to(torch.bfloat16)(positions), before)


@pytest.mark.parametrize(("head_dim", "sections"), [(15, (2, 2, 3)), (16, (2, 3, 4)), (16, (4, 4)), (16, (9, 0, -1))])
def test_sections_that_do_not_fit_are_refused(head_dim: int, sections: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"even|sum to"):
        MultiScaleRotary(head_dim, 1e6, sections)
