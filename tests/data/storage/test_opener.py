"""Sources are read by uri, bound to a state, neighbours in one request."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import pytest
from fault_proxy import FaultProxy
from hypothesis import given
from hypothesis import strategies as st
from nextflow_data.storage.errors import ChangedObject
from nextflow_data.storage.files import put, state_of
from nextflow_data.storage.opener import StoreOpener, _joined
from nextflow_data.storage.store_path import AnyPath, StorePath

CONTENT = random.Random(2).randbytes(3 << 20)


@pytest.fixture(params=["disk", "s3"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> AnyPath:
    root: AnyPath = tmp_path if request.param == "disk" else request.getfixturevalue("s3_root")
    put(root / "source", CONTENT)
    return root / "source"


def test_ranges_come_in_the_order_asked(path: AnyPath) -> None:
    opener = pickle.loads(pickle.dumps(StoreOpener({"uri": (path, state_of(path))}, gap=1000)))  # noqa: S301
    draw = random.Random(3)
    asked = [(draw.randrange(len(CONTENT)), draw.randrange(3000)) for _ in range(300)]
    for ranges in (asked, sorted(asked), [], [(len(CONTENT) - 5, 100), (len(CONTENT) + 5, 3)]):
        assert list(opener.read_many("uri", ranges)) == [CONTENT[start : start + length] for start, length in ranges]
    assert opener.size("uri") == len(CONTENT) and opener.read("uri", 7, 9) == CONTENT[7:16]
    with opener.open("uri") as stream:
        assert stream.read() == CONTENT
    assert next(opener.read_many("uri", sorted(asked))) is not None  # who stops early leaves nothing running


def test_a_source_that_changes_stops_every_way_of_reading(path: AnyPath) -> None:
    for opener in (StoreOpener({"uri": (path, state_of(path))}), StoreOpener({"uri": (path, None)})):
        opener.size("uri")
        put(path, path.read_bytes()[:-1])
        ways = (
            lambda o: o.read("uri", 0, 5),
            lambda o: list(o.read_many("uri", [(0, 5)])),
            lambda o: o.open("uri").read(1),
        )
        for way in ways:
            with pytest.raises(ChangedObject, match="source: it was changed"):
                way(opener)


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 500)), max_size=30), st.integers(0, 1000))
def test_groups_are_neighbours(ranges: list[tuple[int, int]], gap: int) -> None:
    groups = list(_joined(iter(ranges), gap))
    assert [one for group in groups for one in group] == ranges
    for group in groups:
        covered = group[0][0]
        for start, length in group:
            assert group[0][0] <= start <= max(covered, group[0][0] + group[0][1]) + gap
            covered = max(covered, start + length)


def test_neighbours_cost_one_request(s3_root: StorePath, fault_proxy: FaultProxy, through: object) -> None:
    path = through(s3_root, fault_proxy) / "source"  # type: ignore[operator]
    put(path, CONTENT)
    opener = StoreOpener({"uri": (path, state_of(path))}, gap=10_000)
    fault_proxy.requests.clear()
    list(opener.read_many("uri", [(start, 1000) for start in range(0, 1_000_000, 10_000)] + [(2_000_000, 10)]))
    assert [method for method, _ in fault_proxy.requests] == ["GET", "GET"]


def test_a_file_read_through_costs_few_requests(s3_root: StorePath, fault_proxy: FaultProxy, through: object) -> None:
    path = through(s3_root, fault_proxy) / "source"  # type: ignore[operator]
    put(path, CONTENT)
    fault_proxy.requests.clear()
    with path.open() as stream:
        while stream.read(8000):
            pass
    assert len(fault_proxy.requests) <= 8  # one HEAD, then windows of 64 KiB, 128 KiB, … of 3 MiB in all
    fault_proxy.requests.clear()
    with path.open() as stream:
        stream.seek(-8, 2)
        assert stream.read(8) == CONTENT[-8:]
    assert len(fault_proxy.requests) == 2
