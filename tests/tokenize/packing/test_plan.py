"""The plan of packs: nothing lost, nothing twice, no budget exceeded, whatever the documents and their order."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nextflow_tokenize.config.pack import CostModel, PackConfig
from nextflow_tokenize.documents.tokenized import TokenizedDocument
from nextflow_tokenize.packing.cost import attended_pairs, cost_of, text_pairs
from nextflow_tokenize.packing.pieces import DocumentShape, SegmentShape, budget, shape_of
from nextflow_tokenize.packing.plan import Packing, PackPlan, assign_shards, plan
from nextflow_tokenize.schedule import FINAL_GRIDS, canonical_final, grids
from nextflow_tokenize.segments import Segment, slots_of
from pydantic import ValidationError

SMALL = CostModel(hidden_size=32, ffn_hidden_size=64, layers=2, heads=2, query_groups=2, vocabulary=100)


def image_part(final: tuple[int, int], scales: int) -> SegmentShape:
    return SegmentShape(grid=grids(canonical_final(final, scales), scales)[-1], scales=scales)


parts_strategy = st.lists(
    st.one_of(
        st.builds(SegmentShape, text=st.integers(0, 400)),
        st.builds(image_part, st.sampled_from(FINAL_GRIDS), st.integers(1, 7)),
    ),
    max_size=6,
).map(tuple)

shapes_strategy = st.lists(parts_strategy, max_size=25).map(
    lambda documents: [DocumentShape(f"{number:032x}", parts) for number, parts in enumerate(documents)]
)

config_strategy = st.builds(
    PackConfig,
    max_length=st.integers(8, 500),
    relative_cost=st.sampled_from([0.3, 0.7, 1.0, 2.0]),
    cost=st.just(SMALL),
    split=st.sampled_from(["fill", "drop"]),
    image_context=st.sampled_from([0, 5, 64]),
    window=st.sampled_from([1, 7, 8192]),
    open_packs=st.sampled_from([1, 1024]),
    seed=st.integers(0, 3),
)


def segments_of(pack: PackPlan, shapes: dict[str, DocumentShape]) -> list[Segment]:
    """The segments that the pack's sample will have, made from the plan's spans alone."""
    segments: list[Segment] = []
    for piece in pack.pieces:
        for span in piece.spans:
            part = shapes[piece.doc_id].parts[span.segment]
            if part.grid is None:
                segments.append({"kind": "text", "doc": piece.doc_id, "tokens": span.stop - span.start, "loss": True})
            else:
                grid, scales = list(part.grid), part.scales
                segments.append(
                    {"kind": "image", "doc": piece.doc_id, "sha256": "", "grid": grid, "scales": scales, "loss": True}
                )
    return segments


def check(found: Packing, shapes: list[DocumentShape], config: PackConfig) -> None:
    by_id = {shape.doc_id: shape for shape in shapes}
    limit = budget(config)
    pieces: dict[str, dict[int, list]] = {}
    for pack in found.packs:
        segments = segments_of(pack, by_id)
        assert segments
        assert pack.slots == slots_of(segments) <= config.max_length
        assert pack.cost == cost_of(slots_of(segments), attended_pairs(segments), config.cost) <= limit
        assert len({piece.doc_id for piece in pack.pieces}) == len(pack.pieces)
        for piece in pack.pieces:
            assert piece.number not in pieces.setdefault(piece.doc_id, {})
            pieces[piece.doc_id][piece.number] = [
                (span.segment, token) for span in piece.spans for token in (range(span.start, span.stop) or ["image"])
            ]
    dropped = {decision["doc_id"] for decision in found.decisions}
    assert dropped.isdisjoint(pieces)
    assert dropped | set(pieces) == set(by_id)
    for doc_id, by_number in pieces.items():
        assert sorted(by_number) == list(range(len(by_number)))
        seen = [item for number in sorted(by_number) for item in by_number[number]]
        assert seen == [
            (number, token)
            for number, part in enumerate(by_id[doc_id].parts)
            for token in (range(part.text) if part.grid is None else ["image"])
        ]
    assert found.statistics.slots == sum(pack.slots for pack in found.packs)


@settings(max_examples=200, deadline=None)
@given(shapes_strategy, config_strategy)
def test_every_token_once_within_both_budgets(shapes: list[DocumentShape], config: PackConfig) -> None:
    check(plan(shapes, config), shapes, config)


@settings(max_examples=50, deadline=None)
@given(shapes_strategy, config_strategy, st.randoms(use_true_random=False))
def test_the_order_of_documents_does_not_matter(shapes: list[DocumentShape], config: PackConfig, rng: random.Random) -> None:
    shuffled = list(shapes)
    rng.shuffle(shuffled)
    assert plan(shuffled, config) == plan(shapes, config)


def web_shapes(count: int, seed: int = 0) -> list[DocumentShape]:
    """Documents like web pages: log-normal texts, half of them with one to six images at level 256."""
    rng = random.Random(seed)
    shapes = []
    for number in range(count):
        parts = [SegmentShape(text=max(1, int(rng.lognormvariate(5.5, 1.1))))]
        for _ in range(rng.choice([0, 0, 0, 1, 1, 2, 3, 6])):
            parts += [image_part(rng.choice(FINAL_GRIDS), 12), SegmentShape(text=max(1, int(rng.lognormvariate(4, 1))))]
        shapes.append(DocumentShape(f"{number:032x}", tuple(parts)))
    return shapes


def first_fit(shapes: list[DocumentShape], length: int) -> float:
    """Fill of the simplest packer, first fit in order of arrival, on documents that fit whole."""
    left: list[int] = []
    for shape in shapes:
        need = sum(part.slots for part in shape.parts)
        place = next((i for i, room in enumerate(left) if room >= need), None)
        if place is None:
            left.append(length - need)
        else:
            left[place] -= need
    return 1 - sum(left) / (len(left) * length)


def test_packs_are_fuller_than_first_fit_and_of_nearly_equal_cost() -> None:
    config = PackConfig(max_length=4096, split="drop", relative_cost=10, cost=SMALL)
    shapes = [shape for shape in web_shapes(1500) if sum(part.slots for part in shape.parts) <= 4096]
    found = plan(shapes, config)
    assert not found.decisions
    assert found.statistics.fill > max(0.98, first_fit(shapes, 4096))
    bound = plan(web_shapes(1500), PackConfig(max_length=8192, max_cost=cost_of(4096, text_pairs(2048), SMALL), cost=SMALL))
    assert bound.statistics.cost_spread < 1.1
    check(bound, web_shapes(1500), PackConfig(max_length=8192, max_cost=cost_of(4096, text_pairs(2048), SMALL), cost=SMALL))


def test_another_seed_is_another_order() -> None:
    shapes = web_shapes(60)
    one, other = (plan(shapes, PackConfig(max_length=2048, cost=SMALL, seed=seed)).packs for seed in (0, 1))
    assert one != other
    assert [pack.pieces[0].doc_id for pack in one] != sorted(pack.pieces[0].doc_id for pack in one)


def test_a_document_alone_is_cut_at_tokens_and_each_piece_fills_its_pack() -> None:
    config = PackConfig(max_length=100, relative_cost=5, cost=SMALL)
    found = plan([DocumentShape("0" * 32, (SegmentShape(text=250),))], config)
    assert sorted(pack.slots for pack in found.packs) == [50, 100, 100]
    assert found.statistics.split_documents == 1


def test_an_image_at_a_cut_takes_the_words_before_it_along() -> None:
    """95 tokens and an image of 31 slots in packs of 100: the image begins a pack, with the 10 tokens that lead to it."""
    picture = image_part((64, 64), 4)
    assert picture.slots == 31
    shape = DocumentShape("0" * 32, (SegmentShape(text=95), picture, SegmentShape(text=3)))
    spans = {}
    for context in (0, 10):
        packs = plan([shape], PackConfig(max_length=100, relative_cost=5, cost=SMALL, image_context=context)).packs
        pieces = sorted((pack.pieces[0] for pack in packs), key=lambda piece: piece.number)
        spans[context] = [[(span.segment, span.start, span.stop) for span in piece.spans] for piece in pieces]
    assert spans[0] == [[(0, 0, 95)], [(1, 0, 0), (2, 0, 3)]]
    assert spans[10] == [[(0, 0, 85)], [(0, 85, 95), (1, 0, 0), (2, 0, 3)]]


def test_what_fits_no_pack_is_set_aside_with_its_measure() -> None:
    big = DocumentShape("a" * 32, (SegmentShape(text=5), image_part((64, 64), 12)), "https://site.example/big")
    config = PackConfig(max_length=900, relative_cost=5, cost=SMALL)
    decision, whole = plan([big], config).decisions
    found = decision["rule"], decision["value"], decision["threshold"], decision["scope"], decision["index"]
    assert found == ("longer-than-pack", 901, 900, "segment", 1)
    for one in (decision, whole):
        about = one["stage"], one["action"], one["doc_id"], one["address"]
        assert about == ("pack", "drop", "a" * 32, "https://site.example/big")
    assert (whole["scope"], whole["index"], whole["rule"]) == ("document", None, "pack.nothing_left")
    assert "segment 1 fits no pack" in (whole["detail"] or "")
    decision, _ = plan([big], PackConfig(max_length=901, relative_cost=0.5, cost=SMALL)).decisions
    assert decision["rule"] == "costlier-than-pack"
    assert decision["threshold"] == budget(PackConfig(max_length=901, relative_cost=0.5, cost=SMALL))
    (decision,) = plan([DocumentShape("b" * 32, (SegmentShape(text=0),))], config).decisions
    assert decision["rule"] == "empty"
    (decision,) = plan(
        [DocumentShape("c" * 32, (SegmentShape(text=901),))], PackConfig(max_length=900, cost=SMALL, split="drop")
    ).decisions
    assert (decision["rule"], decision["value"]) == ("longer-than-pack", 901)


def test_two_documents_of_one_id_are_refused() -> None:
    twice = [DocumentShape("0" * 32, (SegmentShape(text=5),)), DocumentShape("0" * 32, (SegmentShape(text=6),))]
    with pytest.raises(ValueError, match="two documents have the id 0000"):
        plan(twice, PackConfig(cost=SMALL))


def test_a_budget_below_one_token_is_a_mistake_of_the_recipe() -> None:
    with pytest.raises(ValueError, match="does not hold one token"):
        plan([], PackConfig(max_cost=10, cost=SMALL))
    with pytest.raises(ValidationError, match="max_lenght"):
        PackConfig(max_lenght=5)  # type: ignore[call-arg]


def test_codes_that_are_not_their_grids_are_refused() -> None:
    document: TokenizedDocument = {
        "doc_id": "0" * 32,
        "address": None,
        "source_kind": None,
        "licence": None,
        "task": None,
        "segments": [
            {"kind": "image", "loss": True, "text": None, "sha256": "0" * 64, "grid": [3, 3], "scales": 3}  # type: ignore[typeddict-item]
            | {"input": [0] * 14, "target": [0] * 13}
        ],
    }
    with pytest.raises(ValueError, match=r"segment 0: 13 target codes, but grid 3×3 at 3 scales has 14"):
        shape_of(document)


def test_shards_are_closed_by_samples_or_bytes() -> None:
    packs = plan(web_shapes(100), PackConfig(max_length=4096, cost=SMALL)).packs
    by_count = assign_shards(packs, 2, PackConfig(samples_per_shard=7))
    assert [len(shard) for shard in by_count[:-1]] == [7] * (len(by_count) - 1)
    assert tuple(pack for shard in by_count for pack in shard) == packs
    by_bytes = assign_shards(packs, 2, PackConfig(shard_bytes=100_000))
    sizes = [
        sum(4 * (pack.slots - sum(p.codes for p in pack.pieces)) + 4 * sum(p.codes for p in pack.pieces) for pack in shard)
        for shard in by_bytes
    ]
    assert max(sizes) <= 100_000
    assert tuple(pack for shard in by_bytes for pack in shard) == packs
    assert assign_shards((), 2, PackConfig()) == [()]
