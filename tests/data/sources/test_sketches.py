"""Two sources that do not ship, to hold the interface to: pairs in columns of Parquet, and frames of a moving picture."""

import hashlib
import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nextflow_data.common.range_opener import LocalFiles, kind_and_place, uri_of
from nextflow_data.common.sockets import Socket, UnknownPart
from nextflow_data.document import doc_id, image_node, text_node
from nextflow_data.images.measure import measured_image
from nextflow_data.records import ref_of, source_of
from nextflow_data.sources.base import SOURCES, Made, Source, SourceConfig, read_image
from nextflow_data.sources.warc import WarcSource
from PIL import Image


def listed(uri, number, length, kind="document") -> Any:
    return {
        "address": f"{uri}#{number}",
        "uri": uri,
        "offset": number,
        "length": length,
        "kind": kind,
        "record_id": str(number),
    }


def document(record, nodes, task):
    return Made({
        "doc_id": doc_id(record["address"], record["record_id"]), "source": source_of(record), "nodes": nodes, "task": task,
        "licence": None, "consent": None, "lang": None,
    })  # fmt: skip


class ParquetPairs(Source[dict[str, Any]]):
    """A row is (caption, image): its place is its number, and its image's address ends in the column."""

    def records(self, uri, opener):
        with opener.open(uri) as stream:
            for number in range(pq.ParquetFile(stream).metadata.num_rows):
                yield listed(uri, number, 1)

    def payload(self, record, opener):
        return self._row(ref_of(record), opener)

    @staticmethod
    def _row(ref, opener):
        with opener.open(ref["uri"]) as stream:
            file, first = pq.ParquetFile(stream), 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if ref["offset"] < first + rows:
                    return file.read_row_group(group).slice(ref["offset"] - first, 1).to_pylist()[0]
                first += rows

    def document(self, record, payload, found):
        image = measured_image(ref_of(record), f"{record['address']}/image", payload["image"], self.limits)
        return document(record, [text_node(payload["caption"]), image_node(image)], "text-to-image")

    @classmethod
    def image_bytes(cls, image, opener, limits):
        return cls._row(image["ref"], opener)[image["address"].rpartition("/")[2]]


class Frames(Source[bytes]):
    """A file is one record; frames are told by their number, and their bytes are the PNG of what is decoded."""

    def records(self, uri, opener):
        yield listed(uri, 0, opener.size(uri))

    def payload(self, record, opener):
        return opener.read(record["uri"], record["offset"], record["length"])

    @staticmethod
    def _frame(payload, number):
        stream = io.BytesIO()
        with Image.open(io.BytesIO(payload)) as moving:
            moving.seek(number)
            moving.convert("RGB").save(stream, "PNG")
        return stream.getvalue()

    def document(self, record, payload, found):
        frames = [
            measured_image(ref_of(record), f"{record['address']}/frame-{n}", self._frame(payload, n), self.limits)
            for n in (0, 2)
        ]
        return document(record, [image_node(frame) for frame in frames], "interleaved")

    @classmethod
    def image_bytes(cls, image, opener, limits):
        payload = opener.read(*(image["ref"][name] for name in ("uri", "offset", "length")))
        return cls._frame(payload, int(image["address"].rpartition("-")[2]))


@pytest.fixture
def sockets(monkeypatch):
    """Both registered as a package's would be; gone after the test."""
    monkeypatch.setattr(SOURCES, "_parts", dict(SOURCES._parts))
    SOURCES.names()
    SOURCES.register("pairs")(ParquetPairs)
    SOURCES.register("frames")(Frames)


def test_sources_of_other_kinds_go_the_same_way(sockets, build, config, ingest, tmp_path):
    pictures = [build.png(seed=seed) for seed in range(3)]
    table = pa.table({"caption": ["a", "b", "c"], "image": pa.array(pictures, pa.binary())})
    pq.write_table(table, tmp_path / "pairs.parquet", row_group_size=2)
    stills = [Image.new("RGB", (70, 70), colour) for colour in ("red", "green", "blue")]
    stills[0].save(tmp_path / "moving.gif", save_all=True, append_images=stills[1:])
    seen = []
    for kind, name in (("pairs", "pairs.parquet"), ("frames", "moving.gif")):
        uri = str(tmp_path / name)
        for made, _, _ in ingest(uri, config, SOURCES.get(kind)(SourceConfig(kind=kind, files=(uri,)), config)):
            for image in [node["image"] for node in made["nodes"] if node["image"]]:
                stored = {**image, "ref": {**image["ref"], "uri": uri_of(kind, name)}}
                payload = read_image(stored, LocalFiles(tmp_path), config)
                assert hashlib.sha256(payload).hexdigest() == image["sha256"]
                seen.append(payload if kind == "pairs" else Image.open(io.BytesIO(payload)).getpixel((5, 5)))
    assert seen == [*pictures, (255, 0, 0), (0, 0, 255)]


def test_a_uri_names_its_kind_and_none_is_a_warc():
    for kind, place in (("warc", "sources/a-b:c.warc"), ("jsonl", "sources/a.jsonl"), ("jsonl", "s3://bucket/a:b.jsonl")):
        assert kind_and_place(uri_of(kind, place)) == (kind, place)
    assert kind_and_place("s3://bucket/a.warc.gz") == ("warc", "s3://bucket/a.warc.gz")
    with pytest.raises(OSError, match="only local paths"):
        LocalFiles().size("s3://bucket/a.warc.gz")


def test_sources_are_found_by_name_and_an_unknown_one_lists_them():
    assert isinstance(SOURCES, Socket) and SOURCES.get("warc") is WarcSource
    with pytest.raises(UnknownPart, match=r"there is no source 'jsonk'; did you mean 'jsonl'\? known: jsonl, warc"):
        SOURCES.get("jsonk")
