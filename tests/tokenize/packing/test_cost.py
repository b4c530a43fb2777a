"""What a pack costs: slots and attended pairs against a mask built pair by pair, and against figures the paper prints."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nextflow_tokenize.config.pack import CostModel
from nextflow_tokenize.packing.cost import attended_pairs, cost_of, flops_per_pair, flops_per_slot
from nextflow_tokenize.schedule import FINAL_GRIDS, canonical_final, grids
from nextflow_tokenize.segments import Segment, slots, slots_of
from pydantic import ValidationError


def image(doc: str, final: tuple[int, int], scales: int) -> Segment:
    h, w = grids(canonical_final(final, scales), scales)[-1]
    return {"kind": "image", "doc": doc, "sha256": "0" * 64, "grid": [h, w], "scales": scales, "loss": True}


def text(doc: str, tokens: int) -> Segment:
    return {"kind": "text", "doc": doc, "tokens": tokens, "loss": True}


def dense_mask(segments: list[Segment]) -> np.ndarray:
    """The mask of a pack, cell by cell: a query sees what is of its document and not after its block."""
    document, block = [], []
    starts = -1
    previous = None
    for segment in segments:
        if segment["doc"] != previous:
            starts += 1
            previous = segment["doc"]
        if segment["kind"] == "text":
            sizes = [1] * segment["tokens"]
        else:
            final = next(f for f in FINAL_GRIDS if list(grids(f, segment["scales"])[-1]) == segment["grid"])
            sizes = [1, *(h * w for h, w in grids(final, segment["scales"])[1:]), 1]
        for size in sizes:
            number = block[-1] + 1 if block else 0
            block += [number] * size
            document += [starts] * size
    doc, blk = np.array(document), np.array(block)
    return (doc[:, None] == doc[None, :]) & (blk[None, :] <= blk[:, None])


segments_strategy = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.one_of(st.integers(1, 40), st.tuples(st.sampled_from(FINAL_GRIDS), st.integers(1, 6))),
    ),
    min_size=1,
    max_size=6,
).map(
    # Sorted by document: the segments of one document stand together in a pack.
    lambda parts: [
        text(str(doc), what) if isinstance(what, int) else image(str(doc), *what)
        for doc, what in sorted(parts, key=lambda part: part[0])
    ]
)


@settings(max_examples=100, deadline=None)
@given(segments_strategy)
def test_attended_pairs_are_the_cells_of_the_mask(segments: list[Segment]) -> None:
    mask = dense_mask(segments)
    assert slots_of(segments) == len(mask)
    assert attended_pairs(segments) == int(mask.sum())


@pytest.mark.parametrize(("scales", "tokens"), [(12, 900), (16, 3684), (18, 10084)])
def test_a_square_image_takes_the_papers_tokens_and_one_slot_more(scales: int, tokens: int) -> None:
    segment = image("d", (64, 64), scales)
    assert slots(segment) == slots_of([segment]) == tokens + 1


def test_the_papers_inference_cost_is_the_same_count_of_pairs() -> None:
    """NextFlow prints 122,208 h² + 256,215,912 h a layer for 100 text tokens and an 18-scale image, from 12·s_q·h² and
    4·s_q·s_kv·h. Its prefill counts all 100² pairs and it has no ⟨eoi⟩; the rest must be ours."""
    segments = [text("d", 100), image("d", (64, 64), 18)]
    ours = slots_of(segments) - 1  # ⟨eoi⟩
    assert 12 * ours == 122_208
    causal_prefill, eoi = 100 * 101 // 2, slots_of(segments)
    assert 4 * (attended_pairs(segments) - causal_prefill + 100 * 100 - eoi) == 256_215_912


def test_flops_of_the_base_model() -> None:
    """Qwen2.5-7B states 6.53 billion parameters without embeddings; a training step is 6 FLOPs a weight and token."""
    headless = flops_per_slot(CostModel()) - 6 * 3584 * 152064
    assert headless / 6 == pytest.approx(6.53e9, rel=1e-3)
    # One pair: a product of 128 channels for the score and one for the value, in 28 heads of 28 layers, three passes.
    assert flops_per_pair(CostModel()) == 3 * 28 * 28 * 2 * (2 * 128)
    assert cost_of(7, 11, CostModel()) == 7 * flops_per_slot(CostModel()) + 11 * flops_per_pair(CostModel())


def test_two_documents_cost_less_than_one_of_their_length() -> None:
    assert attended_pairs([text("a", 50), text("b", 50)]) == 2 * 50 * 51 // 2
    assert attended_pairs([text("a", 50), text("a", 50)]) == 100 * 101 // 2


def test_a_model_whose_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValidationError, match="not a multiple of heads 5"):
        CostModel(hidden_size=64, heads=5)
    assert CostModel(hidden_size=64, heads=5, query_groups=5, head_size=16).channels == 16
