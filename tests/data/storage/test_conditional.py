"""Whatever must have one winner has one: on the real server, by real processes, also where answers are lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_proxy import FaultProxy
from nextflow_data.common.errors import exit_status
from nextflow_data.storage.conditional import read_with_state, replace_if, supports_conditional_writes
from nextflow_data.storage.errors import ConditionalWritesMissing
from nextflow_data.storage.files import put, put_if_absent, state_of
from nextflow_data.storage.store_path import StorePath
from racing import Kind, race

Through = Callable[[StorePath, FaultProxy], StorePath]


def each_had_one_winner(root: StorePath, rounds: int, kind: Kind) -> None:
    if kind == "replace":
        for number in range(rounds):
            put(root / str(number), b"nobody's")
    for number, won in enumerate(race(root, 4, rounds, kind)):
        assert won.count(True) == 1, f"round {number}: {won}"
        assert (root / str(number)).read_bytes() == b"writer %d" % won.index(True)


def test_four_writers_race(s3_root: StorePath) -> None:
    each_had_one_winner(s3_root, 15, "absent")


@pytest.mark.slow
def test_four_writers_race_for_replacing(s3_root: StorePath) -> None:
    each_had_one_winner(s3_root, 40, "replace")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["absent", "replace"])
def test_four_writers_race_through_faults(s3_root: StorePath, fault_proxy: FaultProxy, through: Through, kind: Kind) -> None:
    fault_proxy.rates = {"lost": 0.15, "error_500": 0.04, "refused": 0.04, "slow_down": 0.04}
    each_had_one_winner(through(s3_root, fault_proxy), 20, kind)
    assert fault_proxy.done["lost"] > 5


def test_a_lost_answer_is_not_taken_for_another_writer(
    s3_root: StorePath, fault_proxy: FaultProxy, through: Through
) -> None:
    path = through(s3_root, fault_proxy) / "mine"
    fault_proxy.order("lost", "PUT", "/mine")
    assert put_if_absent(path, b"content")
    assert [method for method, asked in fault_proxy.requests if asked.endswith("/mine")] == ["PUT", "PUT", "HEAD"]
    assert not put_if_absent(path, b"content")  # equal bytes, but somebody else's
    etag = state_of(path).etag
    assert etag is not None
    fault_proxy.order("lost", "PUT", "/mine", times=2)
    new = replace_if(path, b"again", etag)
    assert new == state_of(path).etag != etag
    assert replace_if(path, b"too late", etag) is None and path.read_bytes() == b"again"


def test_another_who_came_first_is_seen_after_a_fault(s3_root: StorePath, fault_proxy: FaultProxy, through: Through) -> None:
    path = through(s3_root, fault_proxy) / "theirs"
    put_if_absent(s3_root / "theirs", b"content")
    etag = state_of(path).etag
    assert etag is not None
    fault_proxy.order("error_500", "PUT", "/theirs")
    assert not put_if_absent(path, b"content")
    put(s3_root / "theirs", b"renewed")
    fault_proxy.order("slow_down", "PUT", "/theirs")
    assert replace_if(path, b"content", etag) is None
    assert replace_if(path / "nothing", b"content", etag) is None


def test_what_a_lease_reads(s3_root: StorePath) -> None:
    put_if_absent(s3_root / "lease", b"held")
    content, state, clock = read_with_state(s3_root / "lease")
    assert (content, state) == (b"held", state_of(s3_root / "lease"))
    assert abs(clock - time.time()) < 60  # one machine, one clock; the header has whole seconds
    assert supports_conditional_writes(s3_root / "lease")
    assert [path.name for path in s3_root.iterdir()] == ["lease"]  # nothing of the probe is left


@pytest.fixture
def careless(s3_root: StorePath, monkeypatch: pytest.MonkeyPatch) -> StorePath:
    """A store that takes no notice of conditions: the client's requests lose them before they are signed."""
    from nextflow_data.storage.stores import s3_client

    root = StorePath(
        s3_root.address, s3_root.config.model_copy(update={"s3": s3_root.config.s3.model_copy(update={"attempts": 3})})
    )

    def forget(params: dict[str, dict[str, str]], **_: object) -> None:
        params["headers"].pop("If-None-Match", None)
        params["headers"].pop("If-Match", None)

    s3_client.client(root.config.s3).meta.events.register("before-call.s3.PutObject", forget)
    return root


def test_a_store_without_conditional_writes_is_refused(careless: StorePath, tmp_path: Path) -> None:
    with pytest.raises(
        ConditionalWritesMissing, match=r"commit: this store takes no notice of If-None-Match.*storage\.lock"
    ) as no:
        put_if_absent(careless / "commit", b"content")
    assert exit_status(no.value) == 2
    assert not (careless / "commit").exists()
    locking = StorePath(careless.address, careless.config.model_copy(update={"lock": tmp_path / "lock"}))
    assert put_if_absent(locking / "commit", b"content")
    assert not put_if_absent(locking / "commit", b"other") and (locking / "commit").read_bytes() == b"content"
    etag = state_of(locking / "commit").etag
    assert etag is not None
    new = replace_if(locking / "commit", b"new", etag)
    assert new == state_of(locking / "commit").etag and replace_if(locking / "commit", b"x", etag) is None


def test_disks_have_one_winner_too(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        for number in range(50):
            path = tmp_path / "new" / str(number)
            won = list(pool.map(lambda writer, path=path: put_if_absent(path, b"%d" % writer), range(8)))
            assert won.count(True) == 1 and path.read_bytes() == b"%d" % won.index(True)
    assert not [path for path in (tmp_path / "new").iterdir() if path.name.startswith(".")]
