"""The paper's count of FLOPs, to the digit, and ours of a generation against FLOPs counted product by product."""

from __future__ import annotations

import pytest
from nextflow_tokenize.schedule import grids, token_count

from megatron_nextflow.config.model import ModelConfig
from megatron_nextflow.generation.cost import Work, diffusion_passes, generation_flops, image_passes, layer_flops
from megatron_nextflow.sequence.vocabulary import Vocabulary

SQUARE = grids((64, 64), 18)


def test_the_published_constants_and_ratio() -> None:
    """arXiv 2601.02204: NextFlow 122,208 h² + 256,215,912 h, MMDiT 884,736 h² + 1,207,959,552 h; 5.96, 7.2 and 4.7 times.

    5.96 is the quotient at a width of 2048; at 4096 the same two polynomials give 6.38.
    """
    ours, theirs = layer_flops(image_passes(SQUARE, prefix=100)), layer_flops(diffusion_passes(tokens=4096, steps=18))
    assert (ours.linear, ours.attention) == (122_208, 256_215_912)
    assert (theirs.linear, theirs.attention) == (884_736, 1_207_959_552)
    assert round(theirs.at(2048) / ours.at(2048), 2) == 5.96
    assert round(theirs.at(4096) / ours.at(4096), 2) == 6.38
    assert round(theirs.linear / ours.linear, 1) == 7.2 and round(theirs.attention / ours.attention, 1) == 4.7


def test_the_passes_of_an_image_are_one_a_scale_behind_its_text() -> None:
    passes = image_passes(grids((64, 64), 3), prefix=5)
    assert list(passes) == [(5, 5), (1, 6), (4, 10), (9, 19)]
    assert sum(new for new, _ in image_passes(SQUARE, 0)) == token_count(SQUARE) == 10_084


def test_flops_of_our_model_product_by_product() -> None:
    """A layer's matrices written out: query, key, value, projection, gate, up, down; score and value a pair and channel."""
    model = ModelConfig(hidden_size=48, layers=3, heads=6, query_groups=2, ffn_size=100)
    width, kv = 48, 2 * 8
    matrices = width * width + 2 * width * kv + width * width + 3 * width * 100
    work = Work(passes=4, slots=70, pairs=900, logits=70 * 24)
    expected = 3 * (2 * matrices * 70 + 2 * 2 * 48 * 900) + 2 * width * 70 * 24
    assert generation_flops(model, Vocabulary(40, 24), work) == pytest.approx(expected, rel=1e-12)
    assert work + Work(1, 2, 3, 4) == Work(5, 72, 903, 70 * 24 + 4)
