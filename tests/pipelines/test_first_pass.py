"""Parts of a file, however it is cut, give what the whole file gives; and which input files a recipe's names stand for."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nextflow_data.common.range_opener import LocalFiles
from nextflow_data.config import IngestConfig
from nextflow_data.records import Read, Span
from nextflow_data.sources import read_once
from nextflow_data.sources.jsonl import JsonlConfig, JsonlSource
from nextflow_data.sources.one_pass import OnePass
from nextflow_data.sources.read_once import ReadOnce
from nextflow_data.sources.warc import WarcConfig, WarcSource
from nextflow_data.storage.config import StorageConfig
from nextflow_data.storage.files import state_of
from nextflow_pipelines.contract.locks import stage_lock
from nextflow_pipelines.first_pass import _chain, _unit, discard, first_pass, pass_plan
from nextflow_pipelines.inputs import InputFile, KnownContents, input_files
from nextflow_pipelines.sources import Place
from nextflow_pipelines.spark.context import RunContext

LIMITS = IngestConfig()


def record(address: str, body: bytes, kind: str = "text/html") -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n\r\n".encode()
    return (
        f"WARC/1.1\r\nWARC-Type: response\r\nWARC-Target-URI: {address}\r\nWARC-Record-ID: <urn:uuid:{address}>\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(head) + len(body)}\r\n\r\n"
    ).encode() + b"".join([head, body, b"\r\n\r\n"])


def a_warc(packed: bool) -> bytes:
    """Pages, and among them WARCs, packed and plain, as what was fetched; one record is damaged, one has blanks after."""
    draw = random.Random(7)

    def pack(content: bytes) -> bytes:
        return gzip.compress(content, mtime=0) if packed else content

    inner = [record(f"https://inner.example/{n}", b"<p>inner</p>" * n) for n in range(1, 9)]
    within = {
        "plain": b"".join(inner),
        # Stored and not deflated, so that members lie as they are in the member around them.
        "gz": b"".join(gzip.compress(one, 0, mtime=0) for one in inner),
    }
    parts = []
    for number in range(12):
        text = " ".join(
            draw.choice(["one", "two", "three", "four"]) + str(draw.random()) for _ in range(draw.randrange(200))
        )
        parts.append(pack(record(f"https://outer.example/{number}", f"<p>{text}</p>".encode())))
        if number in (3, 4, 9):
            body = within["gz" if number == 4 else "plain"]
            whole = record(f"https://outer.example/{number}.warc", body, "application/warc")
            parts.append(gzip.compress(whole, 0, mtime=0) if packed else whole)
        if number == 6:
            parts.append(pack(record("https://outer.example/torn", b"<p>torn</p>" * 50))[:-40])
        if number == 7 and not packed:
            parts.append(b"\r\n" * 40)
    return b"".join(parts)


def rows_of_json() -> bytes:
    rows = [{"text": f"row {n} " * (n % 7 * 20)} for n in range(60)]
    lines = [json.dumps(row).encode() for row in rows]
    lines[5], lines[9], lines[30] = b"", b"not json", b"[" * 5
    return b"\xef\xbb\xbf" + b"\n".join(lines)


def part(source: OnePass[Any], uri: str, span: Span) -> tuple[Span, list[Any]]:
    found: list[Any] = []
    with ReadOnce(LocalFiles(), uri, span.start, span.stop) as stream:
        for one in source.read_on(stream, "", span):
            if isinstance(one, Read):
                found.append({**one.record, "payload": one.payload})
            else:
                found.append(one)
    return span, found


def in_parts(source: OnePass[Any], file: Path, most: int) -> list[Any]:
    """What the parts of a file give, of at most that many bytes each, chained as the first pass chains them."""
    size = file.stat().st_size
    input_file = InputFile(0, "x", Place(file, state_of(file)))
    units = [_unit(input_file, start, min(start + most, size), start == 0) for start in range(0, size, most)]
    read: dict[str, tuple[Span, list[Any]]] = {}
    again: Any = None
    while True:
        for unit in [again] if again else units:
            payload = unit.payload
            read[unit.name] = part(source, str(file), Span(payload["start"], payload["stop"], payload["exact"]))
        facts = {name: {"began": span.began, "ended": span.ended} for name, (span, _) in read.items()}
        taken, again = _chain(units, facts)
        if again is None:
            break
    found, before = [], 0
    for name in taken:
        span, rows = read[name]
        for row in rows:
            names = {key: source.named(row[key], "u", before) for key in ("address", "record_id") if row.get(key)}
            found.append({**row, **names})
        before += span.count
    return found


FILES: dict[str, tuple[bytes, OnePass[Any]]] = {
    "gzip": (a_warc(True), WarcSource(WarcConfig(files=("x",)), LIMITS)),
    "plain": (a_warc(False), WarcSource(WarcConfig(files=("x",)), LIMITS)),
    "one member": (gzip.compress(a_warc(False), mtime=0), WarcSource(WarcConfig(files=("x",)), LIMITS)),
    "rows": (rows_of_json(), JsonlSource(JsonlConfig(files=("x",)), LIMITS)),
}


@pytest.mark.parametrize("kind", list(FILES))
@settings(max_examples=4, deadline=None)
@given(most=st.integers(min_value=700, max_value=9000))
def test_parts_of_any_size_give_what_the_whole_file_gives(tmp_path_factory: Any, kind: str, most: int) -> None:
    content, source = FILES[kind]
    file = tmp_path_factory.mktemp("parts") / "file"
    file.write_bytes(content)
    whole = in_parts(source, file, len(content))
    assert in_parts(source, file, most) == whole
    if kind in ("gzip", "plain"):
        addresses = [row["address"] for row in whole if "kind" in row]
        assert len(addresses) >= 14 and not any("inner" in address for address in addresses)
        # The test would prove nothing if no part could be taken in.
        inside = content.index(b"inner.example/5", 0 if kind == "plain" else content.index(b"outer.example/4.warc"))
        span, _ = part(source, str(file), Span(inside, len(content), exact=False))
        assert span.began is not None and span.began not in {row["offset"] for row in whole}


def test_a_file_is_read_once_from_end_to_end_and_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_once, "BLOCK", 1000)
    monkeypatch.setattr(read_once, "WINDOW", 64_000)
    content = a_warc(True)
    file = tmp_path / "file"
    file.write_bytes(content)
    asked: list[tuple[int, int]] = []

    class Counting(LocalFiles):
        def read(self, uri: str, offset: int, length: int) -> bytes:
            asked.append((offset, length))
            return super().read(uri, offset, length)

    source = FILES["gzip"][1]
    with ReadOnce(Counting(), str(file), hashed=True) as stream:
        assert sum(isinstance(one, Read) for one in source.read_on(stream, "", Span())) >= 14
        assert stream.sha256() == hashlib.sha256(content).hexdigest()
    assert asked == [(start, min(1000, len(content) - start)) for start in range(0, len(content), 1000)]


def test_a_reader_may_step_back_further_than_what_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_once, "BLOCK", 64)
    monkeypatch.setattr(read_once, "WINDOW", 256)
    monkeypatch.setattr(read_once, "_BUFFER", 16)
    content = random.Random(3).randbytes(5000)
    (tmp_path / "file").write_bytes(content)
    plain, draw = io.BytesIO(content), random.Random(4)
    with ReadOnce(LocalFiles(), str(tmp_path / "file"), hashed=True) as stream:
        for _ in range(300):
            at, length = draw.randrange(5200), draw.randrange(300)
            assert (stream.seek(at), stream.read(length)) == (plain.seek(at), plain.read(length))
        assert stream.sha256() == hashlib.sha256(content).hexdigest()


def test_names_of_folders_and_patterns_are_listed(tmp_path: Path) -> None:
    odd = ["a b.warc", "ä%20#?[x].warc", "new\nline.warc", "'\"$&.warc", "*.warc", "-x.warc"]
    for name in odd:
        (tmp_path / "in" / "deep").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"1")
    (tmp_path / "in" / "deep" / "b.warc").write_bytes(b"1")
    (tmp_path / "in" / ".hidden").write_bytes(b"1")

    def listed(*names: str) -> list[str]:
        entry = WarcConfig(files=tuple(f"{tmp_path}/in/{name}" for name in names))
        return [str(file.place.path).removeprefix(f"{tmp_path}/in/") for file in input_files([entry], StorageConfig())]

    assert listed("") == sorted([*odd, "deep/b.warc"])
    assert listed("*.warc", "a b.warc") == sorted(odd)
    assert listed("**/b.warc") == ["deep/b.warc"]
    with pytest.raises(FileNotFoundError, match="no input file is there by this name"):
        listed("*.jsonl")
    with pytest.raises(FileNotFoundError, match=r"input file not found: .*absent"):
        listed("absent")


def test_what_was_learned_is_known_until_the_file_changes(tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.warc" for n in range(3)]
    for file in files:
        file.write_bytes(file.name.encode())
    entry = WarcConfig(files=(f"{tmp_path}/*.warc",))
    root = tmp_path / "run"

    def known() -> KnownContents:
        return KnownContents(root, input_files([entry], StorageConfig()))

    first = known()
    assert len(first.unknown()) == 3
    first.learn({file.place.key: hashlib.sha256(file.place.path.read_bytes()).hexdigest() for file in first.files})
    assert known().unknown() == []
    files[1].write_bytes(b"another content")
    assert [file.place.path.name for file in known().unknown()] == ["1.warc"]
    assert not (root / "sources").joinpath("nothing").exists()


def test_a_pass_that_another_run_is_at_is_waited_for_and_not_cleared_away(tmp_path: Path) -> None:
    class Waited(Exception):
        pass

    def told(done: int, total: int | None, note: str) -> None:
        raise Waited(note)

    source = tmp_path / "a.warc"
    source.write_bytes(b"content")
    entries = [WarcConfig(files=(str(source),))]
    ctx = RunContext(tmp_path / "root", progress=told)
    files = input_files(entries, StorageConfig())
    known = KnownContents(ctx.root, files)
    plan = pass_plan(LIMITS, entries, known)
    folder = tmp_path / "root" / plan.folder(ctx.root).name
    (folder / "_work").mkdir(parents=True)
    with stage_lock(ctx.root, folder.name):
        with pytest.raises(Waited, match="waiting for process"):
            first_pass(ctx, LIMITS, entries, files, known)
        discard(ctx, plan)
        assert (folder / "_work").is_dir()
    discard(ctx, plan)
    assert not folder.exists()
