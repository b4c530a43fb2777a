"""Words for images from the page's own words, and what is refused."""

import pyarrow as pa
import pytest
from nextflow_data.captions import (
    AltTextCaptioner,
    Caption,
    caption_document,
    make_captioner,
    nearby_text,
    useless_alt,
)
from nextflow_data.config import CaptionConfig
from nextflow_data.document import DECISION_SCHEMA, image_node, text_node

CONFIG = CaptionConfig()


def image(alt=None, figcaption=None):
    return image_node({"sha256": "0" * 64, "address": "https://a/i.png", "alt": alt, "caption": figcaption,
                       "captioner": "figcaption" if figcaption else None})  # fmt: skip


def run(build, *nodes, config=CONFIG):
    document = build.document("https://site.example/p")
    document["nodes"] = [text_node(n) if isinstance(n, str) else n for n in nodes]
    before = repr(document)
    captioned, decisions = caption_document(document, make_captioner(config), config)
    assert repr(document) == before
    found = [(n["image"]["caption"], n["image"]["captioner"]) for n in captioned["nodes"] if n["image"]]
    return found, [(d["rule"], d["node"], d["value"], d["threshold"], d["detail"]) for d in decisions]


def test_alt_then_figure_caption_then_nearby_text(build):
    found, decisions = run(
        build,
        "A heading\n\nThe text before.",
        image("A red barn at dusk", "Figure 1"),
        image("image", "Figure 2: the  barn"),
        "Text after.\n\nMore.",
        image(),
        image(None),
    )
    assert found == [
        ("A red barn at dusk", "alt-text/1:alt"),
        ("Figure 2: the barn", "alt-text/1:figcaption"),
        ("More.", "alt-text/1:nearby"),
        (None, None),
    ]
    assert decisions == [
        ("caption.useless_alts", 2, None, None, "image"),
        ("caption.none", 5, None, None, "https://a/i.png"),
    ]


@pytest.mark.parametrize(
    ("alt", "rule"),
    [
        ("image", "caption.useless_alts"),
        ("[Note]", "caption.useless_alts"),
        ("LOGO.", "caption.useless_alts"),
        ("../_images/intro_ball.gif", "caption.file_name"),
        ("My photo (1).JPG", "caption.file_name"),
        ("DSC_0042", "caption.file_name"),
        ("1", "caption.min_characters"),
        ("--", "caption.min_characters"),
        ("A cat", None),
        ("Logo of the chess club", None),
        ("example.com main page", None),
        ("Figure 3 shows 12 cats", None),
    ],
)
def test_useless_alts(alt, rule):
    refusal = useless_alt(alt, CONFIG)
    assert (refusal.rule if refusal else None) == rule
    if rule == "caption.min_characters":
        assert refusal.value < refusal.threshold == 3


def test_nearby_text_is_a_block_and_can_be_turned_off(build):
    assert nearby_text("One.\n\nTwo\nlines", "After") == "Two lines"
    assert nearby_text("  \n", "After.\n\nMore") == "After."
    assert nearby_text("", "") is None
    assert run(build, "Text.", image(), config=CaptionConfig(nearby_text=False))[0] == [(None, None)]


def test_decisions_fit_their_schema(build):
    document = build.document("https://site.example/p")
    document["nodes"] = [image("img")]
    _, decisions = caption_document(document, AltTextCaptioner(CONFIG), CONFIG)
    assert pa.Table.from_pylist(decisions, schema=DECISION_SCHEMA).to_pylist() == decisions
    assert {d["action"] for d in decisions} == {"flag"}


def test_a_captioner_gets_batches_and_is_named(build):
    batches = []

    class Model:
        name, version = "toy-vlm", "abc"

        def caption(self, batch):
            batches.append(len(batch))
            return [Caption(f"{request.before}|{request.after}", "model") for request in batch]

    document = build.document("https://site.example/p")
    document["nodes"] = [text_node("a"), image(), text_node("b"), image(), image()]
    captioned, decisions = caption_document(document, Model(), CaptionConfig(batch_images=2))
    assert batches == [2, 1] and decisions == []
    assert [n["image"]["caption"] for n in captioned["nodes"] if n["image"]] == ["a|b", "b|", "|"]
    assert captioned["nodes"][1]["image"]["captioner"] == "toy-vlm/abc:model"
