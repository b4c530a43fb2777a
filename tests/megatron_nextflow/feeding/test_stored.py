"""Packs by ranges: the same as from a disk, one range each; damage and change are named, and never kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nextflow_tokenize.shards.reader import ShardError, ShardSet

from megatron_nextflow.feeding import stored
from megatron_nextflow.feeding.range_cache import RangeCache
from megatron_nextflow.feeding.stored import Ranges, StoredPacks


@pytest.fixture
def shards(training_data: Any, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(training_data.shards, tmp_path / "shards"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """What the place of the set is asked for."""
    found: list[tuple[str, int, int]] = []
    read = stored.read_range

    def counted(path: Any, offset: int, length: int) -> bytes:
        found.append((path.name, offset, length))
        return read(path, offset, length)

    monkeypatch.setattr(stored, "read_range", counted)
    return found


def _packs(shards: Path, tmp_path: Path) -> StoredPacks:
    packs = ShardSet.open(shards)
    ranges = Ranges(RangeCache(tmp_path / "cache", 1 << 30, 1, print), packs.manifest.sha256)
    packs.opener = ranges
    return StoredPacks(packs, ranges)


def test_packs_are_those_of_the_disk_and_each_is_one_range(shards: Path, tmp_path: Path, asked: list[Any]) -> None:
    plain, packs = ShardSet.open(str(shards)), _packs(shards, tmp_path)
    for number in range(len(plain)):
        ours, theirs = packs.read(number), plain.read(number)
        assert (ours.key, ours.segments) == (theirs.key, theirs.segments)
        for name in ("text", "input", "target"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    tars = [one for one in asked if one[0].endswith(".tar")]
    assert len(tars) == len(set(tars)) == len(plain)
    before = len(asked)
    again = _packs(shards, tmp_path)  # as another process of the machine, or after a restart
    assert [again.read(n).key for n in range(len(plain))] == [plain.key(n) for n in range(len(plain))]
    assert len(asked) == before


def test_a_changed_object_is_named_with_its_time_and_never_kept(shards: Path, tmp_path: Path) -> None:
    packs = _packs(shards, tmp_path)
    shard = shards / "shard-000000.tar"
    good = shard.read_bytes()
    shard.write_bytes(bytes(len(good)))
    for _ in range(2):
        with pytest.raises(ShardError, match=rf"shard-000000\.tar, sample 000000-000001: .*{shard} was last written 20..-"):
            packs.read(1)
    shard.write_bytes(good)
    assert packs.read(1).key == "000000-000001"


def test_a_cached_range_that_is_another_sets_is_read_again(shards: Path, tmp_path: Path, asked: list[Any]) -> None:
    """Whole by its own checksum, wrong by the pack's."""
    packs = _packs(shards, tmp_path)
    packs.read(1)
    (pack,) = (one for one in asked if one[0].endswith(".tar"))
    name = f"{packs.packs.manifest.sha256} {shards / pack[0]} {pack[1]} {pack[2]}"
    cache = packs.ranges.cache
    cache.drop(name)
    cache.get(name, lambda: bytes(pack[2]))
    assert packs.read(1).key == "000000-000001"


def test_a_shard_that_went_away_is_named(shards: Path, tmp_path: Path) -> None:
    packs = _packs(shards, tmp_path)
    packs.read(0)
    (shards / "shard-000000.tar").unlink()
    with pytest.raises(ShardError, match=r"shard-000000\.tar") as raised:
        packs.read(1)
    assert raised.value.key == "000000-000001"


def test_a_store_that_does_not_answer_is_no_damage(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packs = _packs(shards, tmp_path)
    packs.read(0)

    def expired(*_: Any) -> bytes:
        raise PermissionError("s3://bucket/shard-000000.tar: the credentials in use have expired")

    monkeypatch.setattr(stored, "read_range", expired)
    with pytest.raises(PermissionError, match="have expired"):
        packs.read(1)
