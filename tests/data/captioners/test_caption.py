"""Words for images from the page's own words, and what is refused."""

import pyarrow as pa
import pytest
from nextflow_data.captioners.caption import caption_documents
from nextflow_data.captioners.captioner import Caption, Captioner
from nextflow_data.captioners.config import CaptionConfig
from nextflow_data.captioners.shipped.alt_text import AltText, AltTextConfig, nearby_text, useless_alt
from nextflow_data.decisions import DECISION_SCHEMA
from nextflow_data.document import image_node, text_node
from pydantic import ValidationError

CONFIG = AltTextConfig()


def no_image(image):
    raise AssertionError("opens no image")


def image(alt=None, figcaption=None):
    return image_node({"sha256": "0" * 64, "address": "https://a/i.png", "alt": alt, "caption": figcaption,
                       "captioner": "figcaption" if figcaption else None})  # fmt: skip


def run(build, *nodes, config=CONFIG):
    document = build.document("https://site.example/p")
    document["nodes"] = [text_node(n) if isinstance(n, str) else n for n in nodes]
    before = repr(document)
    ((captioned, decisions),) = caption_documents([document], AltText(config, no_image), 64)
    assert repr(document) == before
    found = [(n["image"]["caption"], n["image"]["captioner"]) for n in captioned["nodes"] if n["image"]]
    return found, [(d["rule"], d["index"], d["value"], d["threshold"], d["detail"]) for d in decisions]


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
        ("alt-text.useless_alts", 2, None, None, "image"),
        ("caption.none", 5, None, None, "https://a/i.png"),
    ]


@pytest.mark.parametrize(
    ("alt", "rule"),
    [
        ("image", "alt-text.useless_alts"),
        ("[Note]", "alt-text.useless_alts"),
        ("LOGO.", "alt-text.useless_alts"),
        ("../_images/intro_ball.gif", "alt-text.file_name"),
        ("My photo (1).JPG", "alt-text.file_name"),
        ("DSC_0042", "alt-text.file_name"),
        ("1", "alt-text.min_characters"),
        ("--", "alt-text.min_characters"),
        ("A cat", None),
        ("Logo of the chess club", None),
        ("example.com main page", None),
        ("Figure 3 shows 12 cats", None),
    ],
)
def test_useless_alts(alt, rule):
    refusal = useless_alt(alt, CONFIG)
    assert (refusal.rule if refusal else None) == rule
    if rule == "alt-text.min_characters":
        assert refusal.value < refusal.threshold == 3


def test_nearby_text_is_a_block_and_can_be_turned_off(build):
    assert nearby_text("One.\n\nTwo\nlines", "After") == "Two lines"
    assert nearby_text("  \n", "After.\n\nMore") == "After."
    assert nearby_text("", "") is None
    assert run(build, "Text.", image(), config=AltTextConfig(nearby_text=False))[0] == [(None, None)]


def test_decisions_fit_their_schema(build):
    document = build.document("https://site.example/p")
    document["nodes"] = [image("img")]
    ((_, decisions),) = caption_documents([document], AltText(CONFIG, no_image), 64)
    assert pa.Table.from_pylist(decisions, schema=DECISION_SCHEMA).to_pylist() == decisions
    assert {d["action"] for d in decisions} == {"flag"}


class Model(Captioner):
    """Says what it was given; `batches` is how many images each call had."""

    name, version = "toy-vlm", "abc"

    def __init__(self):
        super().__init__(AltTextConfig(), lambda image: image["sha256"].encode())
        self.batches = []

    def caption(self, batch):
        self.batches.append(len(batch))
        return [Caption(f"{request.before}|{request.after}|{len(self.load(request.image))}", "model") for request in batch]


def test_batches_are_full_across_documents_and_documents_keep_their_order(build):
    documents = []
    for number, images in enumerate((2, 0, 3, 1, 0)):
        document = build.document(f"https://site.example/{number}")
        document["nodes"] = [text_node(f"t{number}"), *[image() for _ in range(images)]]
        documents.append(document)
    model = Model()
    found = list(caption_documents(documents, model, 4))
    assert model.batches == [4, 2]
    assert [document["doc_id"] for document, _ in found] == [document["doc_id"] for document in documents]
    captions = [[n["image"]["caption"] for n in document["nodes"] if n["image"]] for document, _ in found]
    assert captions == [["t0||64", "||64"], [], ["t2||64", "||64", "||64"], ["t3||64"], []]
    assert found[0][0]["nodes"][1]["image"]["captioner"] == "toy-vlm/abc:model"


def test_documents_do_not_pile_up_behind_an_image_that_waits(build, monkeypatch):
    monkeypatch.setattr("nextflow_data.captioners.caption.MAX_WAITING", 3)
    document = build.document("https://site.example/p")
    stream = [{**document, "nodes": [image() if number == 0 else text_node("t")]} for number in range(20)]
    read = 0

    def counted():
        nonlocal read
        for one in stream:
            read += 1
            yield one

    next(caption_documents(counted(), Model(), 64))
    assert read == 4


def test_a_captioner_that_loses_an_image_is_found_out(build):
    class Lossy(Model):
        def caption(self, batch):
            return super().caption(batch)[1:]

    document = build.document("https://site.example/p")
    document["nodes"] = [image()]
    with pytest.raises(ValueError, match="toy-vlm gave 0 captions for 1 images"):
        list(caption_documents([document], Lossy(), 64))


@pytest.mark.parametrize(
    ("tree", "place", "words"),
    [
        ({"captioner": "alt-txt"}, ("captioner",), "there is no captioner 'alt-txt'; did you mean 'alt-text'?"),
        ({"min_chars": 3}, ("min_chars",), "Extra inputs"),
        ({"min_characters": 0}, ("min_characters",), "greater than or equal to 1"),
        ({"batch_images": 0}, ("batch_images",), "greater than or equal to 1"),
    ],
)
def test_a_mistake_is_told_where_it_stands(tree, place, words):
    with pytest.raises(ValidationError) as caught:
        CaptionConfig.model_validate(tree)
    (error,) = caught.value.errors()
    assert error["loc"] == place and words in error["msg"]


def test_settings_come_back_as_they_went_and_batches_are_no_part_of_the_fingerprint():
    config = CaptionConfig.model_validate({"min_characters": 5, "batch_images": 7})
    assert CaptionConfig.model_validate(config.model_dump(mode="json")) == config
    assert config.settings == AltTextConfig(min_characters=5)
    assert config.identity() == {"captioner": ["alt-text", "1", {"min_characters": 5}]}
