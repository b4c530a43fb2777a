"""Copies of a store's files on this machine: found again, bounded, kept while used, clear where there is no room."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from nextflow_data.storage import cache
from nextflow_data.storage.config import StorageConfig
from nextflow_data.storage.errors import StoreError


def copy(config: StorageConfig, name: str, size: int = 1000) -> Path:
    return cache.copy_of(
        config, name, name, size, lambda path: path.write_bytes(name.encode() * (size // len(name))) and None
    )


@pytest.fixture
def nobody_holds() -> Callable[[], None]:
    """Lets go of all entries, as the end of this process would."""
    import os

    def let_go() -> None:
        while cache._held:
            os.close(cache._held.popitem()[1])

    return let_go


def test_the_longest_unused_go_and_those_in_use_stay(tmp_path: Path, nobody_holds: Callable[[], None]) -> None:
    import os

    config = StorageConfig(cache=tmp_path / "cache", cache_bytes=3000)
    a, b, c = (copy(config, name) for name in "abc")
    assert copy(config, "a") == a and a.read_bytes() == b"a" * 1000
    with pytest.raises(StoreError, match="all copies in it are in use"):
        copy(config, "d")
    for age, path in ((30, b), (20, a), (10, c)):
        os.utime(path.parent, (path.stat().st_mtime - age,) * 2)
    nobody_holds()
    d = copy(config, "d")
    assert [path.exists() for path in (a, b, c, d)] == [True, False, True, True]
    copy(config, "a")  # in use again, and the longest unused but for that
    e = copy(config, "e")
    assert [path.exists() for path in (a, b, c, d, e)] == [True, False, False, True, True]
    with pytest.raises(StoreError, match=r"a copy of 4000 bytes is more than storage.cache_bytes \(3000\) allows"):
        copy(config, "f", 4000)
    nobody_holds()


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path) -> None:
    config = StorageConfig(cache=tmp_path / "cache")

    def fails(path: Path) -> None:
        path.write_bytes(b"half")
        raise StoreError("broke off")

    with pytest.raises(StoreError, match="broke off"):
        cache.copy_of(config, "a", "a", 10, fails)
    assert copy(config, "a").read_bytes() == b"a" * 1000


def test_a_full_disk(mounted_disk: Callable[[str], Path], nobody_holds: Callable[[], None]) -> None:
    config = StorageConfig(cache=mounted_disk("512k") / "cache")
    kept = copy(config, "a", 300_000)
    with pytest.raises(StoreError, match=r"no room for a copy of b \(400000 bytes\) in .*set storage\.cache"):
        copy(config, "b", 400_000)
    assert kept.stat().st_size == 300_000
    nobody_holds()
    assert copy(config, "b", 400_000).stat().st_size == 400_000 and not kept.exists()
    nobody_holds()


def test_processes_make_one_copy(tmp_path: Path) -> None:
    """Four at once ask for one file: one makes it, the others find it."""
    script = (
        "import sys; from pathlib import Path; from nextflow_data.storage import cache;"
        "from nextflow_data.storage.config import StorageConfig; log = Path(sys.argv[2]);"
        "make = lambda path: (path.write_bytes(b'x' * 100), log.open('a').write('made\\n'));"
        "print(cache.copy_of(StorageConfig(cache=Path(sys.argv[1])), 'one', 'one', 100, make))"
    )
    command = [sys.executable, "-c", script, tmp_path / "cache", tmp_path / "log"]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    said = {process.communicate()[0] for process in started}
    assert len(said) == 1 and (tmp_path / "log").read_text() == "made\n"
