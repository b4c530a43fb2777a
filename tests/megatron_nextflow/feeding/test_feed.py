"""The order of packs and the batches made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nextflow_tokenize.segments import slots_of
from nextflow_tokenize.shards.reader import ShardSet
from nextflow_tokenize.shards.sample_format import Sample

from megatron_nextflow.config.loss import LossConfig
from megatron_nextflow.config.model import ModelConfig, ParallelConfig
from megatron_nextflow.config.train import FeedConfig, TrainConfig
from megatron_nextflow.feeding.feed import Feed, FeedError, Share
from megatron_nextflow.feeding.order import shuffled
from megatron_nextflow.sequence.pack_layout import IGNORED
from megatron_nextflow.sequence.vocabulary import Vocabulary


@given(st.integers(1, 300), st.integers(0, 5), st.integers(0, 2**64))
def test_each_epoch_feeds_each_pack_once(count: int, epoch: int, seed: int) -> None:
    fed = [shuffled(epoch * count + i, count, seed) for i in range(count)]
    assert sorted(fed) == list(range(count))


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(shuffled(e * 64 + i, 64, s) for i in range(64)) for e in range(4) for s in range(4)}
    assert len(orders) == 16
    assert tuple(range(64)) not in orders


def test_the_order_has_no_visible_pattern() -> None:
    """Of a random order, the correlation of place and pack is about 1/√n."""
    count = 4096
    order = np.array([shuffled(i, count, 3) for i in range(count)])
    assert abs(np.corrcoef(order, np.arange(count))[0, 1]) < 5 / np.sqrt(count)
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 5 / np.sqrt(count)


def test_far_places_cost_nothing() -> None:
    assert 0 <= shuffled(10**15, 10**9, 1) < 10**9


def _config(**settings: Any) -> TrainConfig:
    data = FeedConfig(global_batch_size=settings.pop("global_batch_size", 8), micro_batch_size=settings.pop("micro", 1))
    return TrainConfig(model=ModelConfig(max_length=192), data=data, **settings)


VOCABULARY = Vocabulary(61, 48)


def _tokens(feed: Feed, batches: int = 1) -> list[bytes]:
    return [row.numpy().tobytes() for _ in range(batches) for b in feed.next_batch() for row in b.token_ids]


@pytest.mark.parametrize("copies", [1, 2, 4, 8])
def test_a_global_batch_is_the_same_on_any_number_of_copies(training_data: Any, copies: int) -> None:
    packs = ShardSet.open(training_data.shards)
    whole = Feed(packs, _config(), VOCABULARY, Share())
    parts = [Feed(packs, _config(), VOCABULARY, Share(rank, copies)) for rank in range(copies)]
    for _ in range(3):
        assert sorted(_tokens(whole)) == sorted(row for part in parts for row in _tokens(part))
    assert {part.consumed for part in parts} == {24}


def test_feeding_goes_on_from_a_number(training_data: Any) -> None:
    packs = ShardSet.open(training_data.shards)
    straight = Feed(packs, _config(), VOCABULARY, Share())
    _tokens(straight, 3)
    resumed = Feed(packs, _config(), VOCABULARY, Share(), consumed=straight.consumed)
    assert _tokens(straight) == _tokens(resumed)


def test_an_epoch_of_batches_holds_each_pack_once(training_data: Any) -> None:
    packs = ShardSet.open(training_data.shards)
    feed = Feed(packs, _config(global_batch_size=1), VOCABULARY, Share())
    seen = _tokens(feed, len(packs))
    assert len(set(seen)) == len(packs)
    assert sorted(_tokens(feed, len(packs))) == sorted(seen)


def test_micro_batches_hold_several_packs_end_to_end(training_data: Any) -> None:
    """One row a pass, as long as its packs and less than `align` slots of padding, with the same slots in the same order."""
    packs = ShardSet.open(training_data.shards)
    batches = {m: list(Feed(packs, _config(micro=m), VOCABULARY, Share()).next_batch()) for m in (4, 1)}
    assert [len(found) for found in batches.values()] == [2, 8]
    for found in batches.values():
        for batch in found:
            assert batch.token_ids.shape[0] == 1
            assert batch.length % 16 == 0 and batch.used <= batch.length < batch.used + 16
    slots = {m: torch.cat([b.token_ids[0, : b.used] for b in found]) for m, found in batches.items()}
    assert torch.equal(slots[4], slots[1])


def test_rows_fit_the_layout_of_processes(training_data: Any) -> None:
    packs = ShardSet.open(training_data.shards)
    config = _config().model_copy(update={"parallel": ParallelConfig(tp=2, cp=2, sequence_parallel=True)})
    feed = Feed(packs, config, VOCABULARY, Share())
    for batch in feed.next_batch():
        assert batch.length % (16 * 2 * 2) == 0 and batch.length - batch.used < 16 * 2 * 2
        assert batch.part(0, 2).token_ids.size(1) % (16 * 2) == 0


def test_batches_left_out_are_jumped_over_and_keys_are_told(training_data: Any) -> None:
    packs = ShardSet.open(training_data.shards)
    whole, short = Feed(packs, _config(), VOCABULARY, Share()), Feed(packs, _config(), VOCABULARY, Share(), skip={8, 16})
    keys = []
    for _ in range(4):
        list(whole.next_batch())
        keys.append(whole.keys)
    assert all(len(named) == 8 for named in keys) and keys[0] != keys[1]
    found = []
    for _ in range(2):
        list(short.next_batch())
        found.append((short.keys, short.consumed))
    assert found == [(keys[0], 8), (keys[3], 32)]


def test_fine_tuning_needs_packs_that_mark_what_is_given(training_data: Any) -> None:
    sample = ShardSet.open(training_data.shards).read(3)
    config = _config(global_batch_size=1, loss=LossConfig(responses_only=True))
    given = [{**segment, "loss": number > 0} for number, segment in enumerate(sample.segments)]
    marked = replace(sample, segments=given)
    (batch,) = Feed(_One(marked), config, VOCABULARY, Share()).next_batch()
    first = slots_of(given[:1])
    assert (batch.labels[0, : first - 1] == IGNORED).all() and (batch.labels[0, first:] != IGNORED).any()
    every = replace(sample, segments=[{**segment, "loss": True} for segment in sample.segments])
    with pytest.raises(FeedError, match=r"nothing in it is marked as given.*responses_only"):
        next(Feed(_One(every), config, VOCABULARY, Share()).next_batch())


def test_what_the_recipe_says_of_weights_and_positions_reaches_the_layout(training_data: Any) -> None:
    packs = ShardSet.open(training_data.shards)
    plain = list(Feed(packs, _config(), VOCABULARY, Share()).next_batch())
    weighted = Feed(packs, _config(loss=LossConfig(vision_weight=0.25)), VOCABULARY, Share()).next_batch()
    model, loss = ModelConfig(max_length=192, rope_extent=32.0), LossConfig(alpha=0.0, predict_boi=False)
    other = Feed(packs, _config().model_copy(update={"model": model, "loss": loss}), VOCABULARY, Share()).next_batch()
    for a, b, c in zip(plain, weighted, other, strict=True):
        assert set(c.weights.unique().tolist()) == {0.0, 1.0} and not (c.labels == VOCABULARY.boi).any()
        assert torch.equal(c.positions[1:, a.is_vision] * 2, a.positions[1:, a.is_vision])
        factor = torch.where(a.scale > 0, 0.25, 1.0)
        torch.testing.assert_close(b.weights, a.weights * factor, rtol=0, atol=0)
        assert torch.equal(a.labels, b.labels)
        assert (a.weights[a.labels == IGNORED] == 0).all()


class _One:
    """A set of one pack."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample

    def __len__(self) -> int:
        return 1

    def read(self, number: int) -> Sample:
        return self.sample


def test_a_pack_that_does_not_fit_is_named(training_data: Any, tmp_path: Path) -> None:
    sample = ShardSet.open(training_data.shards).read(3)
    long = TrainConfig(model=ModelConfig(max_length=sample.slots - 1), data=FeedConfig(global_batch_size=1))
    with pytest.raises(FeedError, match=f"pack {sample.key}: .*{sample.slots - 1}"):
        next(Feed(_One(sample), long, VOCABULARY, Share()).next_batch())
    scales = max(s["scales"] for s in sample.segments if s["kind"] == "image")
    few = TrainConfig(model=ModelConfig(max_length=192, max_scales=scales - 1), data=FeedConfig(global_batch_size=1))
    with pytest.raises(FeedError, match=f"pack {sample.key}: an image has {scales} scales, model.max_scales is"):
        next(Feed(_One(sample), few, VOCABULARY, Share()).next_batch())
    outside = replace(sample, text=sample.text + 61)
    with pytest.raises(FeedError, match=f"pack {sample.key}"):
        next(Feed(_One(outside), _config(global_batch_size=1), VOCABULARY, Share()).next_batch())
