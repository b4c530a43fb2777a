"""One behaviour of disks and stores: what is written is read back, whole or in ranges, and listed by name."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
from nextflow_data.common.errors import RequestError
from nextflow_data.storage.errors import ChangedObject, Conflict
from nextflow_data.storage.files import (
    any_path,
    download,
    list_files,
    local_copy,
    put,
    put_if_absent,
    read_range,
    state_of,
    upload,
)
from nextflow_data.storage.store_path import AnyPath, StorePath


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> AnyPath:
    return tmp_path / "root" if request.param == "disk" else request.getfixturevalue("s3_root")


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def test_what_is_put_is_read_back(root: AnyPath) -> None:
    path = root / "a" / "b.bin"
    assert not path.exists()
    put(path, b"0123456789")
    assert path.read_bytes() == b"0123456789"
    assert path.exists() and path.is_file() and not path.is_dir() and path.parent.is_dir() and not path.parent.is_file()
    assert [read_range(path, *asked) for asked in ((0, 3), (7, 9), (10, 5), (99, 1), (4, 0))] == [
        b"012",
        b"789",
        b"",
        b"",
        b"",
    ]
    put(path, "ü")
    assert path.read_text(encoding="utf-8") == "ü" and state_of(path).size == 2
    path.unlink()
    assert (not path.exists() and not path.parent.exists()) or isinstance(path, Path)
    for ask in (state_of, lambda path: path.read_bytes(), lambda path: path.unlink(), lambda path: read_range(path, 0, 1)):
        with pytest.raises(FileNotFoundError, match="b\\.bin"):
            ask(path)


def test_a_file_that_was_bound_is_read_as_it_was_or_not_at_all(root: AnyPath) -> None:
    path = root / "bound"
    put(path, b"first")
    state = state_of(path)
    assert read_range(path, 1, 3, state) == b"irs"
    put(path, b"other")
    for ask in (lambda: read_range(path, 1, 3, state), lambda: local_copy(path, state)):
        with pytest.raises(ChangedObject, match=r"bound: it was changed after this run had bound it"):
            ask()
    path.unlink()
    with pytest.raises(ChangedObject):
        read_range(path, 1, 3, state)


def test_nothing_is_overwritten(root: AnyPath, tmp_path: Path) -> None:
    assert put_if_absent(root / "one", b"mine")
    assert not put_if_absent(root / "one", b"mine")
    assert not put_if_absent(root / "one", b"other")
    assert (root / "one").read_bytes() == b"mine"
    for name, content in (("small", b"content"), ("large", noise(3 << 20))):
        local, other = tmp_path / name, tmp_path / f"other-{name}"
        local.write_bytes(content)
        other.write_bytes(content[:-1] + b"!")
        sha256 = hashlib.sha256(content).hexdigest()
        upload(local, root / name, sha256)
        upload(local, root / name, sha256)
        changed = hashlib.sha256(other.read_bytes()).hexdigest()
        with pytest.raises(Conflict, match=rf"(?s){name}: another file is there already.*{sha256}.*{changed}"):
            upload(other, root / name, changed)
        assert (root / name).read_bytes() == content
    put(root / "unhashed", content)  # by somebody who says no hash
    upload(local, root / "unhashed", sha256)
    with pytest.raises(Conflict):
        upload(other, root / "unhashed", changed)


def test_large_files_go_and_come_in_ranges(root: AnyPath, tmp_path: Path) -> None:
    content = noise((17 << 20) + 5)
    local = tmp_path / "local"
    local.write_bytes(content)
    upload(local, root / "large", hashlib.sha256(content).hexdigest())
    download(root / "large", tmp_path / "new" / "copy")
    assert (tmp_path / "new" / "copy").read_bytes() == content
    with (root / "large").open("rb") as stream:
        assert stream.read(10) == content[:10]
        assert stream.seek(-7, 2) == len(content) - 7 and stream.read() == content[-7:]
        stream.seek(1000)
        parts = []
        while part := stream.read(300_000):
            parts.append(part)
        assert b"".join(parts) == content[1000:]
        stream.seek(len(content) + 3)
        assert stream.read(1) == b""


ODD = [
    "a b",
    "a%20b",
    "a+b",
    "a#b",
    "a?b=c&d",
    "new\nline",
    "tab\t",
    "ü/é",
    "emoji😀",
    "quote'\"<>&amp;",
    "sl~*()![x]",
    "\x01control",
    "..dots",
    "dots..",
    ".hidden",
    "s/a/b",
    "s/a-b",
    "s/a.b",
    "s/ab",
]


def test_names_with_odd_characters(root: AnyPath) -> None:
    for name in ODD:
        put(root / name, name)
    found = dict(list_files(root))
    assert [str(path)[len(str(root)) + 1 :] for path in found] == sorted(ODD)
    for path, state in found.items():
        assert path.read_text(encoding="utf-8") == str(path)[len(str(root)) + 1 :]
        assert state_of(path).size == state.size and read_range(path, 0, 100, state) == path.read_bytes()
    assert sorted(path.name for path in root.iterdir()) == sorted({name.partition("/")[0] for name in ODD})


PATTERNS = [
    "*",
    "**/*",
    "*.gz",
    "a/*",
    "a/**/*.gz",
    "**/x.gz",
    "?.gz",
    "[a-c]/x.gz",
    "a/b/*",
    "*/*/*",
    "**/b/**/*",
    "none*",
    "**",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_mean_what_they_mean_on_a_disk(s3_tree: tuple[StorePath, Path], pattern: str) -> None:
    store, disk = s3_tree
    expected = sorted(path.relative_to(disk).as_posix() for path in disk.glob(pattern) if path.is_file())
    assert [str(path)[len(str(store)) + 1 :] for path in store.glob(pattern)] == expected
    assert [str(path)[len(str(store)) + 1 :] for path, _ in list_files(store, pattern)] == expected
    assert [path.relative_to(disk).as_posix() for path, _ in list_files(disk, pattern)] == expected


@pytest.fixture
def s3_tree(s3_root: StorePath, tmp_path: Path) -> tuple[StorePath, Path]:
    for name in ("x.gz", "y.txt", ".z.gz", "a/x.gz", "a/b/x.gz", "a/b/c/y.gz", "ab/x.gz", "b/x.gz", "b/b/b/b.gz"):
        put(s3_root / name, name)
        put(tmp_path / "disk" / name, name)
    return s3_root, tmp_path / "disk"


def test_a_folder_as_a_local_copy(s3_tree: tuple[StorePath, Path]) -> None:
    store, disk = s3_tree
    copy = local_copy(store)
    assert {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*") if path.is_file()} == {
        path.relative_to(disk): path.read_bytes() for path in disk.rglob("*") if path.is_file()
    }
    assert local_copy(store) == copy and local_copy(disk) == disk
    put(store / "b/x.gz", "changed")
    assert local_copy(store) != copy and (local_copy(store) / "b/x.gz").read_text() == "changed"
    with pytest.raises(FileNotFoundError, match="there is no such object"):
        local_copy(store / "nothing")


def test_what_is_an_address() -> None:
    assert any_path("s3://bucket/a/b/") == StorePath("s3://bucket/a/b")
    assert any_path("s3a://bucket/a") == any_path("S3://bucket/a") == StorePath("s3://bucket/a")
    assert (
        any_path("file:///tmp/a b") == Path("/tmp/a b")
        and any_path("a/b") == Path("a/b")
        and any_path(Path("x")) == Path("x")
    )
    path = StorePath("s3://bucket/a") / "b.json"
    assert (str(path), path.name, path.parent, path.suffix) == (
        "s3://bucket/a/b.json",
        "b.json",
        StorePath("s3://bucket/a"),
        ".json",
    )
    assert StorePath("s3://bucket").name == "" and StorePath("s3://bucket").parent == StorePath("s3://bucket")
    assert (
        StorePath("s3://bucket//lead").parent == StorePath("s3://bucket") and StorePath("s3://bucket//lead").name == "lead"
    )


@pytest.mark.parametrize(
    "address",
    ["https://somebody:hidden@host/x", "https://host/x?X-Amz-Signature=hidden&a=b", "https://host/x?sig=hidden", "s3://"],
)
def test_an_address_with_a_credential_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(RequestError) as refused:
        any_path(address)
    assert "hidden" not in str(refused.value)
