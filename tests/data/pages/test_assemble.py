"""From a WARC to documents, end to end on a small made-up site, and back to every image's bytes."""

import base64

import pyarrow as pa
import pytest
from nextflow_data.common.range_opener import LocalFiles
from nextflow_data.config import IngestConfig
from nextflow_data.decisions import ASIDE_SCHEMA, DECISION_SCHEMA
from nextflow_data.document import DOCUMENT_SCHEMA, doc_id
from nextflow_data.nodes import recurrence_key
from nextflow_data.pages.assemble import image_addresses
from nextflow_data.pages.parse import parse_page
from nextflow_data.records import Unusable
from nextflow_data.sources.base import read_image

FILES = LocalFiles()


def image_bytes(image, config):
    return read_image(image, FILES, config)


@pytest.fixture
def site(build, write):
    inline = "data:image/png;base64," + base64.b64encode(build.png(70, 70, seed=9)).decode()
    broken = "data:image/png;base64," + base64.b64encode(b"broken" * 300).decode()
    page = f"""<h1>Title</h1><p>First <img src="/i/a.png" alt="An  A"> part.</p><p>Missing <img src=/i/none.png> here,
    broken <img src=/i/broken.png> there.</p><img src="{inline}" alt=inline><p>Between</p><img src="{broken}">
    <figure><img src=/i/b.png><figcaption>The B</figcaption></figure>""".encode()
    return write(
        build.member(build.record(f"{build.site}/p.html", page, warc="MNF-Licence: CC-BY-4.0\r\n")),
        build.member(build.record(f"{build.site}/i/a.png", build.png(seed=1), "image/png")),
        build.member(build.record(f"{build.site}/i/b.png", build.png(seed=2), "image/png")),
        build.member(build.record(f"{build.site}/i/broken.png", build.png()[:50], "image/png")),
        build.member(build.record(f"{build.site}/nav.html", b"<div hidden>unseen</div><script>x</script>")),
    )


def test_document_of_a_page(site, build, config, ingest):
    (document, decisions, asides), (nothing, _, empty) = ingest(site, config)
    assert [n["text"] or n["image"]["address"] for n in document["nodes"]] == [
        "Title\n\nFirst",
        f"{build.site}/i/a.png",
        "part.\n\nMissing here, broken there.",
        f"{build.site}/p.html#data-image-0",
        "Between",
        f"{build.site}/i/b.png",
        "The B",
    ]
    assert document["nodes"][1]["image"]["alt"] == "An A"
    assert (document["nodes"][5]["image"]["caption"], document["nodes"][5]["image"]["captioner"]) == ("The B", "figcaption")
    assert document["doc_id"] == doc_id(f"{build.site}/p.html", f"urn:uuid:{build.site}/p.html")
    assert (document["licence"], document["task"]) == ("CC-BY-4.0", "interleaved")
    rules = {d["rule"]: d for d in decisions}
    assert rules["image-not-in-source"]["detail"] == f"{build.site}/i/none.png"
    unusable = [d["detail"] for d in decisions if d["rule"] == "image-unusable"]
    assert len(unusable) == 2 and unusable[0].startswith(f"{build.site}/i/broken.png: ")
    assert [a["reason"] for a in asides] == ["unsupported-format"]
    assert nothing is None and [a["reason"] for a in empty] == ["empty-page"]


def test_rows_fit_the_schemas(site, config, ingest):
    (document, decisions, asides), (_, _, empty) = ingest(site, config)
    table = pa.Table.from_pylist([document], schema=DOCUMENT_SCHEMA)
    assert table.to_pylist() == [document]
    assert pa.Table.from_pylist(decisions, schema=DECISION_SCHEMA).num_rows == len(decisions)
    assert pa.Table.from_pylist(asides + empty, schema=ASIDE_SCHEMA).num_rows == 2


def test_every_image_node_leads_back_to_its_bytes(site, build, config, ingest):
    document = ingest(site, config)[0][0]
    found = [image_bytes(n["image"], config) for n in document["nodes"] if n["image"]]
    assert found == [build.png(seed=1), build.png(70, 70, seed=9), build.png(seed=2)]


def test_bytes_that_are_not_those_measured_are_refused(site, config, ingest):
    document = ingest(site, config)[0][0]
    for node in (document["nodes"][1], document["nodes"][3]):
        with pytest.raises(Unusable) as error:
            image_bytes({**node["image"], "sha256": "0" * 64}, config)
        assert error.value.reason == "content-changed"
    with pytest.raises(Unusable) as error:
        image_bytes({**document["nodes"][3]["image"], "address": "https://x/#data-image-7"}, config)
    assert error.value.reason == "not-found-in-page"


def test_second_candidate_is_used_where_the_first_was_not_saved(build, write, config, ingest):
    page = b'<p>text</p><img srcset="/big.png 1600w, /small.png 400w" src="/tiny.png">'
    uri = write(
        build.member(build.record(f"{build.site}/p", page)),
        build.member(build.record(f"{build.site}/small.png", build.png(), "image/png")),
    )
    (document, decisions, _), *_ = ingest(uri, config)
    assert document["nodes"][1]["image"]["address"] == f"{build.site}/small.png"
    assert decisions == []


def test_image_addresses_are_listed_once(build, config):
    parsed = parse_page(b'<p>x<img src=/a.png><img src=/a.png srcset="/b.png 2x">', f"{build.site}/", None, config)
    assert image_addresses(parsed) == [f"{build.site}/a.png", f"{build.site}/b.png"]


def test_recurrence_is_counted_by_site():
    image = {"sha256": "f00"}
    assert recurrence_key("https://A.example/x", image) == recurrence_key("https://a.example/y", image)
    assert recurrence_key("https://a.example/x", image) != recurrence_key("https://b.example/x", image)


def test_limits_reach_the_page(build, write, ingest):
    tight = IngestConfig(max_data_address_bytes=10)
    page = ("<p>t<img src='data:image/png;base64," + base64.b64encode(build.png()).decode() + "'>").encode()
    (document, decisions, _), *_ = ingest(write(build.member(build.record(f"{build.site}/p", page))), tight)
    assert [n["kind"] for n in document["nodes"]] == ["text"]
    assert "data-address-too-large" in [d["rule"] for d in decisions]
