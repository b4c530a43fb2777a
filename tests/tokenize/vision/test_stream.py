"""Streams of mixed grids: every item once, a bounded number held, and codes that do not depend on the mix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nextflow_tokenize.config.vision import SelfCorrectionConfig, VisionTokenizerConfig
from nextflow_tokenize.vision.codes.quantizer import Codes
from nextflow_tokenize.vision.images.pixels import to_pixels
from nextflow_tokenize.vision.model import VisionTokenizer
from nextflow_tokenize.vision.stream import Buckets, StreamItem, encode_stream

SCHEDULES = (((1, 1), (2, 2)), ((1, 1), (2, 3)), ((1, 1), (3, 2)), ((1, 1), (2, 2), (3, 2)))
CORRECTION = SelfCorrectionConfig(top_k=4)


@pytest.fixture(scope="module")
def tokenizer() -> VisionTokenizer:
    torch.manual_seed(0)
    config = VisionTokenizerConfig(
        levels=(128,), codebook_size=64, semantic_dim=4, pixel_dim=4, patch=8, channels=8, decoder_channels=8,
        channel_mult=(1, 1), semantic_channels=8,
    )  # fmt: skip
    return VisionTokenizer(config).eval()


def item(number: int, schedule: int) -> StreamItem[int]:
    grids = SCHEDULES[schedule]
    shape = (16 * grids[-1][0], 16 * grids[-1][1], 3)
    return StreamItem(number, grids, np.random.default_rng(number).integers(0, 255, shape, dtype=np.uint8), 1000 + number)


@settings(max_examples=25, deadline=None)
@given(
    mix=st.lists(st.integers(0, len(SCHEDULES) - 1), max_size=14),
    batch_size=st.integers(1, 5),
    max_pending=st.integers(1, 6),
    corrected=st.booleans(),
)
def test_any_mix_gives_each_item_once_with_its_own_codes(
    tokenizer: VisionTokenizer, mix: list[int], batch_size: int, max_pending: int, corrected: bool
) -> None:
    correction = CORRECTION if corrected else None
    items = [item(number, schedule) for number, schedule in enumerate(mix)]
    asked = 0

    def stream() -> Iterator[StreamItem[int]]:
        nonlocal asked
        for one in items:
            asked += 1
            yield one

    found = {}
    for given_out, encoded in enumerate(encode_stream(tokenizer, stream(), correction, batch_size, max_pending)):
        # What has gone in and has not come out, this one included, is what is held.
        assert asked - given_out <= max(batch_size, max_pending)
        assert encoded.item.key not in found
        found[encoded.item.key] = encoded
    assert sorted(found) == list(range(len(items)))
    for one in items:
        alone = tokenizer.encode(to_pixels([one.array]), one.schedule, [one.seed], correction)
        assert found[one.key].item is one
        assert found[one.key].input.tolist() == alone.input[0].tolist()
        assert found[one.key].target.tolist() == alone.target[0].tolist()
        assert found[one.key].target.dtype == np.uint8


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 5), st.integers(1, 6))
def test_no_more_are_held_than_the_bound(mix: list[int], batch_size: int, max_pending: int) -> None:
    buckets: Buckets[int] = Buckets(Recorder("cpu"), None, batch_size, max_pending)  # type: ignore[arg-type]
    out = 0
    for number, schedule in enumerate(mix):
        out += len(buckets.add(item(number, schedule)))
        assert buckets.held == number + 1 - out < max_pending or buckets.held == 0
    assert out + len(list(buckets.flush())) == len(mix) and buckets.held == 0


@dataclass
class _Settings:
    codebook_size: int = 300


class Recorder:
    """Stands in for a tokenizer on some device; codes are the images' first pixels; notes its batches' sizes."""

    def __init__(self, device: str) -> None:
        self.device, self.config, self.batches = torch.device(device), _Settings(), list[int]()

    def encode(self, pixels: torch.Tensor, grids: object, seeds: list[int], correction: object) -> Codes:
        assert len(seeds) == len(pixels)
        self.batches.append(len(pixels))
        codes = ((pixels[:, 0, :1, 0] + 1) * 127.5).round().long()
        return Codes(codes, codes)


def test_the_fullest_bucket_is_forced_first() -> None:
    recorder = Recorder("cpu")
    order = [0, 1, 1, 2, 0, 1]
    keys = [e.item.key for e in encode_stream(recorder, map(item, range(6), order), None, 4, 5)]  # type: ignore[arg-type]
    # The fifth fills the bound: 0 and 1 have two each and 0 came first; at the end 1 has two and 2 has one.
    assert keys == [0, 4, 1, 2, 5, 3]


def test_off_the_cpu_every_batch_is_full() -> None:
    for device, sizes in (("cpu", [3, 2]), ("cuda", [3, 3])):
        recorder = Recorder(device)
        found = list(encode_stream(recorder, [item(n, 0) for n in range(5)], None, 3, 9))  # type: ignore[arg-type]
        assert recorder.batches == sizes
        assert [e.target.tolist() for e in found] == [[int(item(n, 0).array[0, 0, 0])] for n in range(5)]
        assert found[0].target.dtype == np.uint16


def test_what_does_not_fit_is_refused(tokenizer: VisionTokenizer) -> None:
    with pytest.raises(ValueError, match="batch_size 0 and max_pending 3"):
        list(encode_stream(tokenizer, [], None, 0, 3))
    odd = StreamItem("odd", SCHEDULES[0], np.zeros((32, 48, 3), np.uint8), 0)
    with pytest.raises(ValueError, match=r"shape \(32, 48, 3\) waits with one of \(32, 32, 3\) .* \(2, 2\)"):
        list(encode_stream(tokenizer, [item(0, 0), odd]))  # type: ignore[list-item]
    with pytest.raises(ValueError, match="do not fit grid"):
        list(encode_stream(tokenizer, [odd]))
