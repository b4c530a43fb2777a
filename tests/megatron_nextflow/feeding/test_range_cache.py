"""Ranges on this machine's disk: asked for once, bounded, damage seen, and no reason to stop."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_nextflow.feeding.range_cache import RangeCache


def _cache(folder: Path, most: int = 1 << 20, processes: int = 1) -> tuple[RangeCache, list[str]]:
    said: list[str] = []
    return RangeCache(folder, most, processes, said.append), said


def _never() -> bytes:
    raise AssertionError("it is there already")


def test_a_range_is_fetched_once_and_found_by_others(tmp_path: Path) -> None:
    cache, _ = _cache(tmp_path / "cache")
    assert cache.get("a", lambda: b"first") == b"first" and cache.get("b", lambda: b"") == b""
    other, said = _cache(tmp_path / "cache")
    assert other.get("a", _never) == b"first" and other.get("b", _never) == b""
    other.drop("a")
    assert cache.get("a", lambda: b"second") == b"second" and said == []


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-1], lambda content: content[:2], lambda content: b"x" + content[1:]]
)
def test_damaged_bytes_are_fetched_anew(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    cache, _ = _cache(tmp_path)
    cache.get("a", lambda: b"some bytes")
    (kept,) = (path for path in tmp_path.glob("*/*") if path.is_file())
    kept.write_bytes(damage(kept.read_bytes()))
    assert cache.get("a", lambda: b"some bytes") == b"some bytes" and cache.get("a", _never) == b"some bytes"


def test_an_error_of_the_store_is_passed_on_and_nothing_is_kept(tmp_path: Path) -> None:
    cache, said = _cache(tmp_path)

    def fail() -> bytes:
        raise OSError("the store does not answer")

    with pytest.raises(OSError, match="does not answer"):
        cache.get("a", fail)
    assert cache.get("a", lambda: b"now") == b"now" and said == []


def _held(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*/*") if path.is_file())


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache, _ = _cache(tmp_path, most=64_000)
    for number in range(200):
        cache.get(f"{number}", lambda: bytes(1000))
        for path in tmp_path.glob("*/*"):  # as if all that was kept were used a second apart
            os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**9))
        cache.get("0", lambda: bytes(1000))
        assert _held(tmp_path) <= 64_000
    assert _held(tmp_path) >= 40_000
    assert cache.get("199", _never) and cache.get("0", _never)
    fetched: list[int] = []
    for number in range(1, 100):
        cache.get(f"{number}", lambda: fetched.append(1) or bytes(1000))  # type: ignore[func-returns-value]
    assert len(fetched) == 99


def test_processes_together_stay_below_the_bound_and_ask_once(tmp_path: Path) -> None:
    """Four processes that want the same forty ranges, of which few fit; and threads of one that want the same one."""
    program = (
        "import sys; from pathlib import Path; from megatron_nextflow.feeding.range_cache import RangeCache\n"
        "cache = RangeCache(Path(sys.argv[1]), 64_000, 4, print)\n"
        "for number in range(400): assert cache.get(str(number % 40), lambda: bytes(2000)) == bytes(2000)\n"
        "print('done')"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "small")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate(timeout=120)[0] for process in running] == ["done\n"] * 4
    assert 0 < _held(tmp_path / "small") <= 64_000

    fetched: list[int] = []
    begun = threading.Event()

    def fetch() -> bytes:
        fetched.append(1)
        begun.wait(timeout=60)
        return b"slow"

    caches = [_cache(tmp_path / "large")[0] for _ in range(4)]
    threads = [threading.Thread(target=cache.get, args=("one", fetch)) for cache in caches]
    for thread in threads:
        thread.start()
    begun.set()
    for thread in threads:
        thread.join(timeout=60)
    assert len(fetched) == 1


def test_a_full_disk_is_said_once_and_all_comes_from_the_store(tmp_path: Path, mounted_disk: Callable[[str], Path]) -> None:
    folder = mounted_disk("512k")
    cache, said = _cache(folder / "cache", most=1 << 30)
    for number in range(20):
        assert cache.get(f"{number}", lambda: bytes(100_000)) == bytes(100_000)
    assert cache.get("0", _never) == bytes(100_000)
    (sentence,) = said
    assert "takes no more (No space left on device)" in sentence and "set storage.cache" in sentence


def test_a_folder_that_cannot_be_made_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache, said = _cache(tmp_path / "file" / "cache")
    assert [cache.get("a", lambda: b"x") for _ in range(3)] == [b"x"] * 3 and len(said) == 1


def test_nothing_is_kept_where_nothing_may_be(tmp_path: Path) -> None:
    cache, said = _cache(tmp_path / "cache", most=0)
    assert cache.get("a", lambda: b"x") == b"x" and not (tmp_path / "cache").exists() and said == []
