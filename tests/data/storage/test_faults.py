"""What networks and stores do to requests does not reach who reads and writes; what they do for too long is told."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_proxy import FaultProxy
from nextflow_data.storage import retrying
from nextflow_data.storage.errors import ChangedObject, StoreError
from nextflow_data.storage.files import download, list_files, local_copy, put, put_if_absent, read_range, state_of, upload
from nextflow_data.storage.opener import StoreOpener
from nextflow_data.storage.store_path import StorePath

Through = Callable[[StorePath, FaultProxy], StorePath]
CONTENT = random.Random(1).randbytes(5 << 20)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_PAUSE", 0.01)


def test_all_goes_on_through_a_storm(s3_root: StorePath, fault_proxy: FaultProxy, through: Through, tmp_path: Path) -> None:
    root = through(s3_root, fault_proxy)
    local = tmp_path / "local"
    local.write_bytes(CONTENT)
    fault_proxy.rates = {"error_500": 0.1, "slow_down": 0.1, "refused": 0.1, "cut": 0.1, "lost": 0.1, "slow": 0.05}
    upload(local, root / "large", hashlib.sha256(CONTENT).hexdigest())
    for number in range(20):
        assert put_if_absent(root / "many" / str(number), b"%d" % number)
        assert not put_if_absent(root / "many" / str(number), b"other")
    fault_proxy.rates["cut"] = 0.15
    state = state_of(root / "large")
    assert (root / "large").read_bytes() == CONTENT
    with (root / "large").open() as stream:
        parts = []
        while part := stream.read(100_000):
            parts.append(part)
        assert b"".join(parts) == CONTENT
    download(root / "large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == local_copy(root / "large").read_bytes() == CONTENT
    ranges = [(start, 5000) for start in range(0, len(CONTENT), 400_000)]
    opener = StoreOpener({"large": (root / "large", state)})
    assert list(opener.read_many("large", ranges)) == [CONTENT[start : start + 5000] for start, _ in ranges]
    assert [path.read_bytes() for path, _ in list_files(root / "many")] == sorted(b"%d" % number for number in range(20))
    happened = {"error_500", "slow_down", "refused", "cut", "lost", "slow"}
    assert happened <= set(fault_proxy.done)


def test_a_body_is_read_on_from_where_it_was_cut(s3_root: StorePath, fault_proxy: FaultProxy, through: Through) -> None:
    put(s3_root / "a", CONTENT)
    fault_proxy.order("cut", "GET", "/a", times=3)
    assert (through(s3_root, fault_proxy) / "a").read_bytes() == CONTENT
    assert fault_proxy.done["cut"] == 3


def test_an_object_that_changes_between_two_parts_of_a_body(
    s3_root: StorePath, fault_proxy: FaultProxy, through: Through, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3_root / "a", CONTENT)
    fault_proxy.order("cut", "GET", "/a")
    monkeypatch.setattr("nextflow_data.storage.stores.s3.pause", lambda _: put(s3_root / "a", CONTENT[::-1]))
    with pytest.raises(ChangedObject, match="/a: it was changed after this run had bound it"):
        (through(s3_root, fault_proxy) / "a").read_bytes()


def test_faults_without_end_are_told(s3_root: StorePath, fault_proxy: FaultProxy, through: Through) -> None:
    put(s3_root / "a", b"content")
    s3 = through(s3_root, fault_proxy).config.s3.model_copy(update={"attempts": 3})
    path = StorePath(str(s3_root / "a"), s3_root.config.model_copy(update={"s3": s3}))
    for fault, words in (("slow_down", "503 SlowDown after 3 attempts"), ("refused", "broke off 3 times")):
        fault_proxy.order(fault, "GET", "/a", times=3)
        with pytest.raises(StoreError, match=words):
            read_range(path, 0, 7)
        assert read_range(path, 0, 7) == b"content"


def test_a_store_that_says_nothing(s3_root: StorePath, fault_proxy: FaultProxy, through: Through) -> None:
    """A body that stands still longer than `read_seconds` is given up and read on."""
    put(s3_root / "a", CONTENT)
    s3 = through(s3_root, fault_proxy).config.s3.model_copy(update={"read_seconds": 0.5})
    path = StorePath(str(s3_root / "a"), s3_root.config.model_copy(update={"s3": s3}))
    fault_proxy.order("still", "GET", "/a")
    assert path.read_bytes() == CONTENT and fault_proxy.done["still"] == 1


def test_what_a_stale_listing_leaves_out_is_there(s3_root: StorePath, fault_proxy: FaultProxy, through: Through) -> None:
    root = through(s3_root, fault_proxy)
    fault_proxy.rates, fault_proxy.stale_seconds = {"stale": 1.0}, 3600
    put(root / "new", b"x")
    assert list(list_files(root)) == []
    assert (root / "new").is_file() and not put_if_absent(root / "new", b"y")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("count", [2_100, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_listing_of_many_names(s3_root: StorePath, fault_proxy: FaultProxy, through: Through, count: int) -> None:
    """Real objects over pages of a thousand, with faults; half of the names are odd."""
    from concurrent.futures import ThreadPoolExecutor

    names = [f"d{number % 7}/{number:05d}{' %+#?é'[number % 6] if number % 2 else ''}" for number in range(count)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: put(s3_root / name, b""), names))
    fault_proxy.rates = {"error_500": 0.2, "cut": 0.2}
    found = [str(path)[len(str(s3_root)) + 1 :] for path, _ in list_files(through(s3_root, fault_proxy))]
    assert found == sorted(names)
