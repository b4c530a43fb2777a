"""Records: what is listed, what is kept aside and why, and that a bad record does not take its neighbours with it."""

import gzip
import random
import zlib

import brotli
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nextflow_data.common.range_opener import LocalFiles
from nextflow_data.config import IngestConfig
from nextflow_data.records import ref_of
from nextflow_data.sources.warc import WarcConfig, WarcSource
from nextflow_data.warc import records
from nextflow_data.warc.records import RecordError

FILES = LocalFiles()
PAGE = b"<html><body><p>Hello, reader.</p></body></html>"


def scan(uri, config):
    return WarcSource(WarcConfig(files=(uri,)), config).records(uri, FILES)


def read(ref, config, max_bytes=None):
    return records.read(ref, config, FILES, max_bytes)


def rows(uri, config=None):
    """(addresses of usable records, reasons of kept-aside ones)."""
    found = list(scan(uri, config or IngestConfig()))
    return [r["address"] for r in found if "kind" in r], [r["reason"] for r in found if "reason" in r]


def three(build):
    return [build.record(f"{build.site}/{name}", PAGE * 40) for name in "abc"]


def test_record_is_described_and_read_back(build, write, config):
    body = build.png()
    uri = write(
        build.member(build.record(f"{build.site}/a%7Eb", PAGE, "text/html; charset=UTF-8", warc="MNF-Licence: CC0-1.0\r\n")),
        build.member(build.record(f"{build.site}/i.png", body, "image/png", http="X-Licence: MIT\r\n")),
    )
    page, image = list(scan(uri, config))
    assert page["address"] == f"{build.site}/a~b"
    assert (page["kind"], page["mime"], page["charset"], page["status"]) == ("page", "text/html", "utf-8", 200)
    assert page["licence"] == "CC0-1.0" and image["licence"] == "MIT"
    assert page["date"] == "2026-01-02T03:04:05Z" and page["record_id"].startswith("urn:uuid:")
    assert image["kind"] == "image"
    assert read(ref_of(page), config) == PAGE
    assert read(ref_of(image), config) == body
    assert page["offset"] == 0 and image["offset"] == page["length"]


def test_plain_warc_is_read_as_well(build, write, config):
    uri = write(*three(build), name="plain.warc")
    addresses, reasons = rows(uri)
    assert addresses == [f"{build.site}/{n}" for n in "abc"] and reasons == []
    for record in scan(uri, config):
        assert read(ref_of(record), config) == PAGE * 40


def test_empty_file(write):
    assert rows(write(b"")) == ([], ["empty-file"])


def test_missing_file(tmp_path):
    assert rows(str(tmp_path / "nowhere.warc.gz")) == ([], ["missing-file"])


@pytest.mark.parametrize(
    "content", [b"this is no WARC at all\n" * 10, gzip.compress(b"nor is this", mtime=0), b"\x00" * 100]
)
def test_file_that_is_no_warc(write, content):
    addresses, reasons = rows(write(content))
    assert addresses == [] and reasons and set(reasons) <= {"not-warc", "gzip-corrupt"}


def test_other_compressions_are_named(write):
    (row,) = scan(write(b"\x28\xb5\x2f\xfd" + b"x" * 50), IngestConfig())
    assert row["reason"] == "unsupported-compression" and row["detail"].startswith("zstd")


def test_file_cut_in_the_middle(build, write):
    members = [build.member(r) for r in three(build)]
    addresses, reasons = rows(write(*members[:2], members[2][:60]))
    assert addresses == [f"{build.site}/a", f"{build.site}/b"]
    assert reasons == ["gzip-truncated"]


def test_plain_file_cut_in_the_middle(build, write):
    records = three(build)
    addresses, reasons = rows(write(records[0], records[1][:-300], name="cut.warc"))
    assert addresses == [f"{build.site}/a"] and reasons == ["content-length"]


def test_truncated_member_between_good_ones(build, write):
    a, b, c = (build.member(r) for r in three(build))
    found = list(scan(write(a, b[:-30], c), IngestConfig()))
    assert [r["address"] for r in found if "kind" in r] == [f"{build.site}/a", f"{build.site}/c"]
    (bad,) = [r for r in found if "reason" in r]
    assert bad["reason"] in ("gzip-corrupt", "gzip-truncated")
    assert (bad["offset"], bad["length"]) == (len(a), len(b) - 30)
    assert bad["address"] == f"{build.site}/b"


def test_flipped_byte_is_caught_by_the_members_checksum(build, write):
    a, b, c = (build.member(build.record(f"{build.site}/{n}", random.Random(n).randbytes(5000), "image/png")) for n in "abc")
    broken = bytearray(b)
    broken[len(b) // 2] ^= 1
    addresses, reasons = rows(write(a, bytes(broken), c))
    assert addresses == [f"{build.site}/a", f"{build.site}/c"] and reasons == ["gzip-corrupt"]


@pytest.mark.parametrize("lie", [10**6, 5])
@pytest.mark.parametrize("plain", [False, True])
def test_lying_content_length(build, write, lie, plain):
    a, _, c = three(build)
    liar = build.record(f"{build.site}/b", PAGE * 40, declared=lie)
    parts = [a, liar, c] if plain else [build.member(r) for r in (a, liar, c)]
    addresses, reasons = rows(write(*parts, name="lie.warc" if plain else "lie.warc.gz"))
    assert addresses == [f"{build.site}/a", f"{build.site}/c"] and reasons == ["content-length"]


def test_http_length_longer_than_the_body(build, write):
    uri = write(build.member(build.record(f"{build.site}/a", PAGE, http="Content-Length: 99999\r\n")))
    assert rows(uri) == ([], ["http-body-short"])


def test_one_member_for_the_whole_file(build, write):
    addresses, reasons = rows(write(gzip.compress(b"".join(three(build)))))
    assert (addresses, reasons) == ([], ["several-records-in-member"])


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"status": "404 Not Found"}, "http-status"),
        ({"status": "301 Moved"}, "http-status"),
        ({"record_type": "revisit"}, "revisit"),
        ({"warc": "WARC-Segment-Number: 1\r\n"}, "segmented"),
    ],
)
def test_records_without_usable_content(build, write, kwargs, reason):
    assert rows(write(build.member(build.record(f"{build.site}/a", PAGE, **kwargs)))) == ([], [reason])


@pytest.mark.parametrize("record_type", ["warcinfo", "request", "metadata", "conversion"])
def test_records_about_records_are_passed_over(build, write, record_type):
    assert rows(write(build.member(build.record(f"{build.site}/a", b"x: y\r\n", record_type=record_type)))) == ([], [])


def test_member_that_inflates_without_end_is_stopped(build, write):
    config = IngestConfig(max_record_bytes=1 << 20)
    bomb = build.member(build.record(f"{build.site}/bomb", b"0" * (8 << 20)))
    addresses, reasons = rows(write(bomb, build.member(three(build)[0])), config)
    assert addresses == [f"{build.site}/a"] and reasons == ["record-too-large"]


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda data: zlib.compress(data)[2:-4]),
        ("br", brotli.compress),
        ("gzip, br", lambda data: brotli.compress(gzip.compress(data, mtime=0))),
        ("identity", lambda data: data),
        ("gzip", lambda data: data),
    ],
)
def test_content_encodings(build, write, config, encoding, encode):
    (record,) = scan(
        write(build.member(build.record(f"{build.site}/a", encode(PAGE), http=f"Content-Encoding: {encoding}\r\n"))), config
    )
    assert record["kind"] == "page" and read(ref_of(record), config) == PAGE


def test_chunked_transfer(build, write, config):
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(PAGE), PAGE)
    for sent in (body, PAGE):  # some archives undo the chunks and keep the header
        (record,) = scan(
            write(build.member(build.record(f"{build.site}/a", sent, http="Transfer-Encoding: chunked\r\n"))), config
        )
        assert read(ref_of(record), config) == PAGE


@pytest.mark.parametrize(
    ("encoding", "body", "reason"),
    [
        ("gzip", gzip.compress(PAGE, mtime=0)[:-12], "content-encoding"),
        ("gzip", gzip.compress(b"0" * (4 << 20)), "payload-too-large"),
        ("br", brotli.compress(b"0" * (4 << 20)), "payload-too-large"),
        ("br", brotli.compress(PAGE)[:-4], "content-encoding"),
        ("deflate", b"\x78\x9cgarbage", "content-encoding"),
        ("zstd", b"x", "content-encoding"),
        ("gzip," * 9, b"x", "content-encoding"),
    ],
)
def test_content_that_cannot_be_decoded(build, write, config, encoding, body, reason):
    (record,) = scan(
        write(build.member(build.record(f"{build.site}/a", body, http=f"Content-Encoding: {encoding}\r\n"))), config
    )
    with pytest.raises(RecordError) as error:
        read(ref_of(record), config, max_bytes=1 << 20)
    assert error.value.reason == reason


def test_reading_at_a_wrong_place(build, write, config):
    uri = write(build.member(three(build)[0]))
    for offset in (3, 10**6):
        with pytest.raises(RecordError):
            read({"uri": uri, "offset": offset, "length": 50}, config)
    with pytest.raises(RecordError):
        read({"uri": uri + ".gone", "offset": 0, "length": 50}, config)


@pytest.mark.parametrize(
    ("content_type", "body", "kind"),
    [
        ("text/html", b"\x89PNG\r\n\x1a\n....", "image"),
        ("application/octet-stream", b"\xff\xd8\xff\xe0....", "image"),
        ("application/octet-stream", b"<!DOCTYPE html><p>x", "page"),
        ("application/xhtml+xml", b"<p>x", "page"),
        ("image/png", b"<html>not found</html>", "image"),
        ("text/css", b"p {}", "other"),
        ("application/javascript", b"BM = 1", "other"),
    ],
)
def test_kind_by_what_the_bytes_are(build, write, config, content_type, body, kind):
    (record,) = scan(write(build.member(build.record(f"{build.site}/a", body, content_type))), config)
    assert record["kind"] == kind


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_damage_is_survived_and_accounted_for(build, tmp_path_factory, data):
    """Whatever bytes are cut or changed: no exception, members before the damage stay, every row lies within the file."""
    members = [build.member(build.record(f"{build.site}/{n}", PAGE * (n + 1))) for n in range(4)]
    content = bytearray(b"".join(members))
    start = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[start : start + data.draw(st.integers(1, 200))]
    else:
        content[start : start + 4] = data.draw(st.binary(min_size=1, max_size=8))
    path = tmp_path_factory.mktemp("damage") / "d.warc.gz"
    path.write_bytes(content)
    found = list(scan(str(path), IngestConfig()))
    whole = sum(1 for n in range(4) if sum(map(len, members[: n + 1])) <= start)
    assert [r["address"] for r in found if "kind" in r][:whole] == [f"{build.site}/{n}" for n in range(whole)]
    assert all(r["offset"] + r["length"] <= max(len(content), 1) for r in found)
    for record in found:
        if "kind" in record:
            assert read(ref_of(record), IngestConfig())
