"""Batches that are read ahead are those of the feed, and no more is read ahead than was said."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from nextflow_tokenize.shards.reader import ShardSet
from nextflow_tokenize.shards.sample_format import Sample

from megatron_nextflow.config.model import ModelConfig
from megatron_nextflow.config.train import FeedConfig, TrainConfig
from megatron_nextflow.feeding.ahead import BATCHES, FeedAhead, PacksAhead
from megatron_nextflow.feeding.feed import Feed, Packs, Share
from megatron_nextflow.sequence.vocabulary import Vocabulary

CONFIG = TrainConfig(model=ModelConfig(max_length=192), data=FeedConfig(global_batch_size=4))
VOCABULARY = Vocabulary(61, 48)


def _ahead(packs: Packs, threads: int = 0, depth: int = 0, **settings: Any) -> FeedAhead:
    reads = PacksAhead(packs, threads)
    return FeedAhead(Feed(reads, CONFIG, VOCABULARY, Share(), **settings), reads, depth)


def _given(feed: Feed | FeedAhead) -> tuple[list[bytes], int, list[str]]:
    rows = [batch.token_ids.numpy().tobytes() for batch in feed.next_batch()]
    return rows, feed.consumed, feed.keys


@pytest.mark.parametrize(("threads", "depth"), [(0, 0), (3, 0), (3, 5)])
def test_what_is_given_is_what_the_feed_gives(training_data: Any, threads: int, depth: int) -> None:
    """Over more than an epoch, with places left out; the set is so small that a pack may be announced twice."""
    packs = ShardSet.open(training_data.shards)
    batches = len(packs) // 4 + 4
    plain = Feed(packs, CONFIG, VOCABULARY, Share(), 4, {8, 12})
    ahead = _ahead(packs, threads, depth, consumed=4, skip={8, 12})
    assert ahead.consumed == 4
    assert [_given(ahead) for _ in range(batches)] == [_given(plain) for _ in range(batches)]
    ahead.close()


class _Counted:
    """Packs that say how many were read, and give none before `least` of them were asked for at once."""

    def __init__(self, packs: ShardSet, least: int = 1) -> None:
        self.packs = packs
        self.least = least
        self.read_so_far = 0
        self.enough = threading.Condition()

    def __len__(self) -> int:
        return len(self.packs)

    def read(self, number: int) -> Sample:
        with self.enough:
            self.read_so_far += 1
            self.enough.notify_all()
            assert self.enough.wait_for(lambda: self.read_so_far >= self.least, timeout=60)
        return self.packs.read(number)


def test_no_more_is_read_than_waits(training_data: Any) -> None:
    """Beside the batch given: those that wait laid out, one that waits for room, and none in the threads of a disk."""
    packs = _Counted(ShardSet.open(training_data.shards))
    ahead = _ahead(packs)
    for given in range(1, 6):
        _given(ahead)
        assert 4 * given <= packs.read_so_far <= 4 * (given + BATCHES + 1)
    ahead.close()
    assert not ahead._thread.is_alive() and packs.read_so_far <= 4 * (5 + BATCHES + 1)


def test_packs_of_a_store_are_read_at_once(training_data: Any) -> None:
    """The first waits until three more are asked for, which one thread would do for ever."""
    packs = _Counted(ShardSet.open(training_data.shards), least=4)
    ahead = _ahead(packs, threads=4, depth=2)
    plain = Feed(packs.packs, CONFIG, VOCABULARY, Share())
    assert [_given(ahead) for _ in range(3)] == [_given(plain) for _ in range(3)]
    ahead.close()


class _Failing:
    """Packs of which one cannot be read."""

    def __init__(self, packs: ShardSet, number: int, error: Exception) -> None:
        self.packs, self.number, self.error = packs, number, error

    def __len__(self) -> int:
        return len(self.packs)

    def read(self, number: int) -> Sample:
        if number == self.number:
            raise self.error
        return self.packs.read(number)


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), RuntimeError("somebody's bug")])
def test_an_error_comes_with_its_batch_and_the_next_goes_on(training_data: Any, threads: int, error: Exception) -> None:
    packs = ShardSet.open(training_data.shards)
    plain = Feed(packs, CONFIG, VOCABULARY, Share())
    third = _batch(plain, 2)
    expected = [_given(plain) for _ in range(4)]
    ahead = _ahead(_Failing(packs, third[1], error), threads, depth=2)
    assert [_given(ahead) for _ in range(2)] == expected[:2]
    with pytest.raises(type(error)) as raised:
        ahead.next_batch()
    assert raised.value is error and ahead.consumed == 12
    assert _given(ahead) == expected[3]
    ahead.close()


def _batch(feed: Feed, number: int) -> list[int]:
    coming = feed.coming()
    return [next(coming) for _ in range(number + 1)][-1]
