"""Rows of JSONL: what each shape of row becomes, what is put aside and why, and the way back to an image's bytes."""

import base64
import gzip
import json

import pyarrow as pa
import pytest
from nextflow_data.common.range_opener import LocalFiles
from nextflow_data.config import IngestConfig
from nextflow_data.decisions import ASIDE_SCHEMA
from nextflow_data.document import DOCUMENT_SCHEMA, doc_id
from nextflow_data.nodes import with_nodes, without
from nextflow_data.records import Unusable
from nextflow_data.sources.base import Found, read_image
from nextflow_data.sources.jsonl import JsonlConfig, JsonlSource


def row(text="", *images, **more):
    """A line; images are bytes, addresses, or dicts as they are."""

    def one(image):
        if isinstance(image, bytes):
            return {"data": base64.b64encode(image).decode()}
        return {"uri": image} if isinstance(image, str) else image

    return json.dumps({"text": text, "images": [one(image) for image in images], **more}).encode() + b"\n"


@pytest.fixture
def rows(write, ingest, config):
    """Ingests lines: (documents, decisions, asides) row by row, those that could not be listed first."""

    def made(*lines, limits=config, **settings):
        uri = write(*lines, name="rows.jsonl")
        return ingest(uri, limits, JsonlSource(JsonlConfig(files=(uri,), **settings), limits))

    return made


def shape(document):
    return [node["text"] or "image" for node in document["nodes"]]


def reasons(found):
    return [aside["reason"] for _, _, asides in found for aside in asides]


def test_each_task_has_its_order(rows, build):
    a, b = build.png(seed=1), build.png(seed=2)
    found = rows(
        row("Only words."),
        row("A red cup.", a, task="text-to-image"),
        row("What is it?", a, task="image-to-text"),
        row("<image>Make it blue.<image>", a, b, task="editing"),
        row("User: <image> What is it? Assistant: A cup. User: And <image>?", a, b),
    )
    assert [(d["task"], shape(d)) for d, _, _ in found] == [
        ("text", ["Only words."]),
        ("text-to-image", ["A red cup.", "image"]),
        ("image-to-text", ["image", "What is it?"]),
        ("editing", ["image", "Make it blue.", "image"]),
        ("interleaved", ["User:", "image", "What is it? Assistant: A cup. User: And", "image", "?"]),
    ]
    documents = [d for d, _, _ in found]
    assert pa.Table.from_pylist(documents, schema=DOCUMENT_SCHEMA).to_pylist() == documents
    assert not any(decisions or asides for _, decisions, asides in found)


def test_what_a_row_says_of_itself_is_kept_and_the_entry_fills_what_it_leaves_out(rows, build):
    said = {"licence": "CC0-1.0", "consent": "opt-in", "lang": "de", "date": "2026-01-02", "task": "image-to-text"}
    image = {"data": base64.b64encode(build.png()).decode(), "alt": "Cup", "caption": "A cup"}
    (one, _, _), (other, _, _) = rows(
        row("x", image, url="HTTPS://A.example/p", **said), row("y"), licence="MIT", task="text"
    )
    assert {key: one[key] for key in ("licence", "consent", "lang", "task")} == {
        k: v for k, v in said.items() if k != "date"
    }
    source = one["source"]
    assert (source["address"], source["date"]) == ("https://a.example/p", "2026-01-02")
    assert one["doc_id"] == doc_id("https://a.example/p", f"{source['uri']}#row-1")
    shown = one["nodes"][0]["image"]
    assert [shown[key] for key in ("alt", "caption", "captioner")] == ["Cup", "A cup", "row"]
    assert (other["licence"], other["task"], other["source"]["address"]) == ("MIT", "text", f"{source['uri']}#row-2")


def test_images_lead_back_to_their_bytes_and_rows_to_their_place(rows, build, config, tmp_path):
    pictures = [build.png(seed=seed) for seed in range(3)]
    inline = {"data": "data:image/png;base64," + base64.b64encode(pictures[2]).decode()}
    lines = [b"\xef\xbb\xbf" + row("one", pictures[0]), b"\n", row("two", pictures[1], inline)]
    (one, _, _), (two, _, _) = rows(*lines)
    images = [node["image"] for d in (one, two) for node in d["nodes"] if node["image"]]
    # A run's references name their source, and lead there with nothing but themselves.
    (tmp_path / "sources").mkdir()
    (tmp_path / "rows.jsonl").rename(tmp_path / "sources" / "rows.jsonl")
    bound = [{**i, "ref": {**i["ref"], "uri": "jsonl:sources/rows.jsonl"}} for i in images]
    assert [read_image(image, LocalFiles(tmp_path), config) for image in bound] == pictures
    content = (tmp_path / "sources" / "rows.jsonl").read_bytes()
    place = two["source"]
    assert content[place["offset"] : place["offset"] + place["length"]] == lines[2]
    for wrong in ("#image-0", "#image-9", ""):
        image = {**bound[0], "address": wrong}
        changed = {**image, "ref": {**image["ref"], "offset": len(content)}}
        with pytest.raises(Unusable):
            read_image(changed if wrong == "#image-0" else image, LocalFiles(tmp_path), config)


def test_what_cannot_be_used_is_put_aside_with_its_reason(rows, build):
    small = IngestConfig(max_record_bytes=20_000)
    found = rows(
        b'{"text": \n',
        b"[1]\n",
        b'{"text": 3}\n',
        b'{"text": "\\ud800"}\n',
        row("a", {"data": "x", "uri": "y"}),
        row("long " * 10_000),
        row(""),
        row("one <image>", "https://a.example/1.png", "https://a.example/2.png"),
        row("a cup", "https://a.example/1.png", task="text-to-image"),
        row("a cup", {"data": "no base64!"}, task="image-to-text"),
        row("a cup", build.png(), task="editing"),
        row("the last is whole"),
        limits=small,
    )
    assert reasons(found) == [
        "not-json", "row-not-as-documented", "row-not-as-documented", "not-json", "row-not-as-documented",
        "record-too-large", "empty-row", "marks-without-images", "image-not-in-source", "undecodable",
        "images-missing",
    ]  # fmt: skip
    assert [shape(d) for d, _, _ in found if d] == [["the last is whole"]]
    asides = [aside for _, _, asides in found for aside in asides]
    assert pa.Table.from_pylist(asides, schema=ASIDE_SCHEMA).num_rows == 11 and asides[2]["detail"].startswith("text: ")
    assert asides[5]["length"] == len(row("long " * 10_000)) and asides[9]["address"].endswith("#row-10")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty-file"), (gzip.compress(b"{}", mtime=0), "unsupported-compression"), (None, "missing-file")],
)
def test_files_without_rows(write, ingest, config, content, reason, tmp_path):
    uri = str(tmp_path / "none") if content is None else write(content)
    assert reasons(ingest(uri, config, JsonlSource(JsonlConfig(files=(uri,)), config))) == [reason]


def test_images_elsewhere_are_asked_for_by_address_and_the_text_stays_without_them(write, config, build):
    uri = write(row("Before <image> between <image> after", "HTTP://A.example/1.png", "https://a.example/2.png"))
    source, files = JsonlSource(JsonlConfig(files=(uri,)), config), LocalFiles()
    (record,) = source.records(uri, files)
    payload = source.payload(record, files)
    assert record["kind"] == "page"
    assert list(source.links(record, payload)) == ["http://a.example/1.png", "https://a.example/2.png"]
    made = source.document(record, payload, Found({}, {"http://a.example/1.png": "truncated-image"}))
    assert made.document is not None and shape(made.document) == ["Before between after"]
    assert [d["rule"] for d in made.decisions] == ["image-unusable", "image-not-in-source"]


def test_a_task_that_the_row_gave_stays_while_its_images_do(rows, build):
    ((document, _, _),) = rows(row("Now <image> then <image>", build.png(seed=1), build.png(seed=2), task="editing"))
    assert with_nodes(document, without(document["nodes"], {0}))["task"] == "editing"
    assert with_nodes(document, without(document["nodes"], {1}))["task"] == "interleaved"
