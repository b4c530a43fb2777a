"""What filtering does to whole documents: every drop and edit a decision with value, threshold and the node it meant."""

import pyarrow as pa
import pytest
from nextflow_data.decisions import DECISION_SCHEMA
from nextflow_data.document import image_node, text_node
from nextflow_data.nodes import join_texts, recurrence_key, without
from nextflow_data.rules.config import ORDER, FilterConfig
from nextflow_data.rules.identify import identify
from nextflow_data.rules.judge import filter_document
from nextflow_data.rules.shipped.c4 import C4Rules
from nextflow_data.rules.shipped.document import DocumentRules
from nextflow_data.rules.shipped.image import ImageRules
from nextflow_data.rules.shipped.language import LanguageRules
from nextflow_data.rules.shipped.length import LengthRules
from pydantic import ValidationError

ENGLISH = (
    "The photographer stood at the edge of the lake and waited for the light that comes with the first minutes of the day. "
    "She had walked there in the dark, and she was cold. When the sun rose, the water turned from grey to gold in a moment. "
    "It is worth to have patience, she thought, and to be early."
)
GERMAN = (
    "Die Fotografin stand am Ufer des Sees und wartete auf das Licht, das mit den ersten Minuten des Tages kommt. "
    "Sie war im Dunkeln dorthin gegangen und fror. Als die Sonne aufging, wurde das graue Wasser in einem Augenblick golden."
)


def image(**changes):
    measured = {
        "ref": {"uri": "x", "offset": 0, "length": 1}, "address": "https://site.example/i.png", "sha256": "ab" * 32,
        "format": "png", "width": 640, "height": 480, "phash": "0" * 16, "sharpness": 500.0, "entropy": 6.0,
        "edge_density": 0.1, "colourfulness": 30.0, "alt": None, "caption": None, "captioner": None,
    }  # fmt: skip
    return image_node({**measured, **changes})


@pytest.fixture
def page(build):
    def make(*nodes):
        document = build.document("https://site.example/p")
        return {**document, "nodes": [text_node(n) if isinstance(n, str) else n for n in nodes]}

    return make


def only(**groups):
    return FilterConfig(**(dict.fromkeys(ORDER) | groups))


def test_good_document_passes_whole(page):
    document = page(ENGLISH, image(), ENGLISH.replace("photographer", "painter").replace("lake", "river"))
    kept, decisions = filter_document(document, FilterConfig(repetition=None), {})
    assert decisions == [] and kept == {**document, "lang": "en", "task": "interleaved"}


@pytest.mark.parametrize(
    ("changes", "rule", "value", "threshold"),
    [
        ({"width": 63}, "image.min_side", 63, 64),
        ({"width": 1, "height": 10_000}, "image.min_side", 1, 64),
        ({"width": 400, "height": 100}, None, None, None),
        ({"width": 401, "height": 100}, "image.max_aspect", 4.01, 4.0),
        ({"sharpness": 4.9}, "image.min_sharpness", 4.9, 5.0),
        ({"entropy": 0.29}, "image.min_entropy", 0.29, 0.3),
    ],
)
def test_image_rules_take_out_the_node_not_the_document(page, changes, rule, value, threshold):
    kept, decisions = filter_document(page(ENGLISH, image(**changes), "The end."), only(image=ImageRules()), {})
    if rule is None:
        assert decisions == []
        return
    assert [n["kind"] for n in kept["nodes"]] == ["text"]
    assert kept["nodes"][0]["text"] == ENGLISH + "\n\nThe end."
    (decision,) = decisions
    assert (decision["rule"], decision["value"], decision["threshold"]) == (rule, pytest.approx(value), threshold)
    assert (decision["action"], decision["index"], decision["detail"]) == ("drop", 1, "https://site.example/i.png")


def test_image_that_recurs_on_a_site_is_an_icon(page):
    document = page(ENGLISH, image())
    key = recurrence_key("https://site.example/other", document["nodes"][1]["image"])
    assert filter_document(document, only(image=ImageRules()), {key: 5})[1] == []
    (decision,) = filter_document(document, only(image=ImageRules()), {key: 6})[1]
    assert (decision["rule"], decision["value"], decision["threshold"]) == ("image.max_recurrence", 6, 5)


def test_languages(page):
    assert identify(ENGLISH)[0] == "en" and identify(GERMAN)[0] == "de"
    assert all(0 <= identify(t)[1] <= 1 for t in (ENGLISH, GERMAN, "", "123 456"))
    kept, (decision,) = filter_document(page(GERMAN), only(language=LanguageRules()), {})
    assert kept is None and (decision["rule"], decision["action"]) == ("language.allowed", "drop")
    assert decision["value"] == identify(GERMAN)[1] and decision["detail"].startswith("de")
    kept, _ = filter_document(page(GERMAN), only(language=LanguageRules(allowed=())), {})
    assert kept["lang"] == "de"
    kept, (decision,) = filter_document(
        page("Hotel Radio Taxi"), only(language=LanguageRules(allowed=(), min_probability=0.99)), {}
    )
    assert kept is None and decision["rule"] == "language.min_probability" and decision["value"] < 0.99


@pytest.mark.parametrize(
    ("rules", "nodes", "rule", "value", "threshold"),
    [
        ({"min_images": 1}, [ENGLISH], "document.min_images", 0, 1),
        ({"max_images": 1}, [ENGLISH, image(), image()], "document.max_images", 2, 1),
        ({}, ["short"], "document.min_characters", 5, 100),
        ({"min_characters": 0}, ["short", image(), image()], "document.min_characters_per_image", 2.5, 10),
    ],
)
def test_document_rules(page, rules, nodes, rule, value, threshold):
    kept, (decision,) = filter_document(page(*nodes), only(document=DocumentRules(**rules)), {})
    assert kept is None
    assert (decision["rule"], decision["value"], decision["threshold"]) == (rule, value, threshold)
    assert (decision["action"], decision["index"]) == ("drop", None)


def test_a_text_beyond_measure_is_read_by_no_other_rule(page):
    _, (decision,) = filter_document(page(ENGLISH), FilterConfig(length=LengthRules(max_characters=50)), {})
    assert (decision["rule"], decision["value"], decision["threshold"]) == ("length.max_characters", len(ENGLISH), 50)


def test_rules_judge_in_the_order_of_the_recipe(page):
    for order in (("language", "quality"), ("quality", "language")):
        _, (decision,) = filter_document(page("Das ist kurz."), FilterConfig(rules=order), {})
        assert decision["rule"].startswith(f"{order[0]}.")


@pytest.mark.parametrize(
    ("tree", "place", "words"),
    [
        ({"rules": ["lenght"]}, ("rules", 0), "there is no rule 'lenght'; did you mean 'length'? known: c4, document"),
        ({"rules": ["c4", "c4"]}, ("rules", 1), "named twice"),
        ({"qualty": {}}, ("qualty",), "Extra inputs"),
        ({"quality": {"min_doc_wrds": 3}}, ("quality", "min_doc_wrds"), "Extra inputs"),
        ({"image": {"min_side": 0}}, ("image", "min_side"), "greater than or equal to 1"),
        ({"rules": ["c4"], "image": {"min_side": 3}}, ("image",), "is not in filter.rules"),
        ({"rules": 3}, ("rules",), "valid tuple"),
    ],
)
def test_a_mistake_is_told_where_it_stands(tree, place, words):
    with pytest.raises(ValidationError) as caught:
        FilterConfig.model_validate(tree)
    (error,) = caught.value.errors()
    assert error["loc"] == place and words in error["msg"]


def test_settings_come_back_as_they_went_and_decide_the_fingerprint():
    config = FilterConfig.model_validate({"rules": ["image", "quality"], "quality": {"min_doc_words": 7}})
    assert FilterConfig.model_validate(config.model_dump(mode="json")) == config
    assert config.identity() == {"rules": [["image", 1, {}], ["quality", 1, {"min_doc_words": 7}]]}
    assert FilterConfig(rules=("quality", "image"), quality={"min_doc_words": 7}).identity() != config.identity()
    assert FilterConfig(image=None).section("image") is None


def test_dropped_images_count_before_the_document_is_judged(page):
    config = only(image=ImageRules(), document=DocumentRules(min_images=1))
    kept, decisions = filter_document(page(ENGLISH, image(width=10)), config, {})
    assert kept is None and [d["rule"] for d in decisions] == ["image.min_side", "document.min_images"]


def test_line_edits_name_their_node_and_keep_indentation(page):
    code = "def f():\n    return a[1]  # a comment that stays"
    document = page(
        "A line of text.\nWe use cookies to see you.", image(), code, image(), "Same.\nWe use cookies to see you."
    )
    kept, decisions = filter_document(document, only(c4=C4Rules(min_sentences=-1, remove_citations=False)), {})
    assert [(d["rule"], d["index"]) for d in decisions] == [("c4.policy", 0), ("c4.policy", 4)]
    assert [n["text"] for n in kept["nodes"] if n["text"]] == ["A line of text.", code, "Same."]


def test_document_without_text_or_anything(page):
    kept, decisions = filter_document(page(image()), only(), {})
    assert kept is not None and decisions == []
    kept, decisions = filter_document(page(image(width=3)), only(image=ImageRules()), {})
    assert kept is None and decisions[-1]["rule"] == "document.empty"


def test_decisions_fit_their_schema_and_the_input_is_not_touched(page):
    document = page(ENGLISH, image(width=3), image())
    before = repr(document)
    _, decisions = filter_document(document, FilterConfig(), {})
    assert pa.Table.from_pylist(decisions, schema=DECISION_SCHEMA).to_pylist() == decisions
    assert repr(document) == before


def test_texts_that_come_together():
    assert join_texts("Click on", "to go on.") == "Click on to go on."
    assert join_texts("See", ", then go.") == "See, then go."
    assert join_texts("It ends.", "it begins") == "It ends.\n\nit begins"
    assert join_texts("Head", "Body") == "Head\n\nBody"
    nodes = [text_node("a"), image(), text_node("b"), image(), text_node("C")]
    assert [n["text"] for n in without(nodes, {1, 3})] == ["a b\n\nC"]
    assert [n["kind"] for n in without(nodes, {3})] == ["text", "image", "text"]
