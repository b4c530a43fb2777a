"""datatrove's filters under one shared tokenisation: the same answers as each on its own, and values that explain them."""

import re
from pathlib import Path
from typing import Any

import pytest
from datatrove.data import Document
from datatrove.pipeline.filters.c4_filters import C4QualityFilter
from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter
from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter
from datatrove.utils.text import split_into_parts
from datatrove.utils.word_tokenizers import SpaCyTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from nextflow_data.config import IngestConfig
from nextflow_data.document import text_node
from nextflow_data.pages.blocks import TextBlock
from nextflow_data.pages.parse import parse_page
from nextflow_data.rules import datatrove_filters
from nextflow_data.rules.config import FilterConfig
from nextflow_data.rules.judge import filter_document
from nextflow_data.rules.shipped.c4 import C4, C4Rules
from nextflow_data.rules.shipped.fineweb import FineWebRules
from nextflow_data.rules.shipped.quality import GopherQualityRules
from nextflow_data.rules.shipped.repetition import GopherRepetitionRules
from nextflow_data.rules.word_tokens import SharedTokenizer

PAGE = Path(__file__).parents[1] / "fixtures" / "pygame_intro.html"
BLOCKS = [
    b.text
    for b in parse_page(PAGE.read_bytes(), "https://a.example/", None, IngestConfig()).blocks
    if isinstance(b, TextBlock)
]
PROSE = [block for block in BLOCKS if len(block) > 200 and "import" not in block]
TEXT = ("repetition", "quality", "c4", "fineweb")
PUBLISHED = FilterConfig(
    rules=TEXT,
    repetition=GopherRepetitionRules(
        top_n_grams=((2, 0.2), (3, 0.18), (4, 0.16)),
        dup_n_grams=((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10)),
    ),
    quality=GopherQualityRules(min_doc_words=50, min_alpha_words_ratio=0.8),
    c4=C4Rules(
        remove_citations=True,
        no_terminal_punctuation=True,
        min_sentences=5,
        min_words_per_line=3,
        javascript=True,
        curly_bracket=True,
    ),
    fineweb=FineWebRules(line_punct_thr=0.12, short_line_thr=0.67, char_duplicates_ratio=0.01, new_line_ratio=0.3),
)


@pytest.fixture(scope="module")
def spacy() -> SpaCyTokenizer:
    return SpaCyTokenizer("en")


def judge(config: FilterConfig, text: str) -> dict[str, Any] | None:
    """The decision that drops a document of this one text, or None."""
    source = {"address": "https://a.example/", "uri": "x", "offset": 0, "length": 1, "kind": "warc", "date": None}
    document = {"doc_id": "d", "source": source, "nodes": [text_node(text)], "task": "text", "licence": None}
    kept, decisions = filter_document({**document, "consent": None, "lang": None}, config, {})
    return None if kept is not None else decisions[-1]


def samples():
    """Texts of many kinds: prose, code, tables, repeated, punctuated, each long enough to reach the later rules."""
    prose = "\n\n".join(PROSE)
    yield prose
    yield "\n\n".join(BLOCKS)
    yield BLOCKS[13]
    yield "\n".join(b for b in BLOCKS if " | " in b) * 6
    yield prose[:300]
    yield prose + "\n\n" + "\n".join(["This line is repeated again and again."] * 60)
    yield "\n\n".join([PROSE[0]] * 3)
    yield "- " + prose.replace("\n\n", "\n- ").replace(". ", ".\n- ")
    yield prose.replace(".", "...").replace("\n\n", "…\n\n")
    yield re.sub(r"(\w+) ", r"\1 # ", prose)
    yield re.sub(r"\b\w", "1", prose)
    yield re.sub(r" (the|be|to|of|and|that|have|with)\b", "", prose)
    yield prose + " lorem ipsum { javascript"
    yield (
        prose.replace(". ", ".[12]\n")
        + "\nWe use cookies, see our privacy policy.\nShort.\nEnable JavaScript to see this page."
    )
    yield "word " * 80
    yield prose.replace(" ", "")
    yield "\n".join(prose.split(" "))
    yield "A sentence. Another one! A third? (A fourth.) And so on.\n" * 3


def alone(config: FilterConfig, text: str) -> str | None:
    """The verdict of datatrove's filters, each with its own tokenisation and whole texts, in FineWeb's order."""
    document = Document(text=text, id="")
    for build in (
        lambda: GopherRepetitionFilter(**config.repetition.model_dump()),
        lambda: GopherQualityFilter(
            **config.quality.model_dump(exclude={"min_alpha_words_ratio"}),
            max_non_alpha_words_ratio=config.quality.min_alpha_words_ratio,
        ),
        lambda: C4QualityFilter(
            remove_citations=config.c4.remove_citations,
            filter_no_terminal_punct=config.c4.no_terminal_punctuation,
            min_num_sentences=config.c4.min_sentences,
            min_words_per_line=max(config.c4.min_words_per_line, 1),  # C4 takes empty lines out by this rule
            max_word_length=config.c4.max_word_length,
            filter_javascript=config.c4.javascript,
            filter_curly_bracket=config.c4.curly_bracket,
        ),
        lambda: FineWebQualityFilter(**config.fineweb.model_dump()),
    ):
        split_into_parts.cache_clear()
        verdict = build().filter(document)
        if verdict is not True:
            return verdict[1]
    return None


NAMES = {
    "gopher_short_doc": "quality.min_doc_words", "gopher_long_doc": "quality.max_doc_words",
    "gopher_below_avg_threshold": "quality.min_avg_word_length", "gopher_above_avg_threshold": "quality.max_avg_word_length",
    "gopher_too_many_hashes": "quality.max_symbol_word_ratio", "gopher_too_many_ellipsis": "quality.max_symbol_word_ratio",
    "gopher_too_many_bullets": "quality.max_bullet_lines_ratio",
    "gopher_too_many_end_ellipsis": "quality.max_ellipsis_lines_ratio",
    "gopher_below_alpha_threshold": "quality.min_alpha_words_ratio", "gopher_enough_stop_words": "quality.min_stop_words",
    "line_punct_ratio": "fineweb.line_punct_thr", "short_line_ratio": "fineweb.short_line_thr",
    "char_dup_ratio": "fineweb.char_duplicates_ratio", "list_ratio": "fineweb.new_line_ratio",
    "lorem_ipsum": "c4.lorem_ipsum", "curly_bracket": "c4.curly_bracket", "too_few_sentences": "c4.min_sentences",
}  # fmt: skip


def expected_rule(reason: str) -> str:
    if match := re.fullmatch(r"top_(\d+)_gram", reason):
        return f"repetition.top_n_grams.{match[1]}"
    if match := re.fullmatch(r"duplicated_(\d+)_n_grams", reason):
        return f"repetition.dup_n_grams.{match[1]}"
    return NAMES.get(reason, f"repetition.{reason}")


@pytest.mark.parametrize("config", [PUBLISHED, FilterConfig(rules=TEXT)], ids=["published", "ours"])
def test_verdicts_equal_those_of_the_filters_alone(config):
    seen = set()
    for text in samples():
        reason = alone(config, text)
        failure = judge(config, text)
        assert (failure["rule"] if failure else None) == (expected_rule(reason) if reason else None), text[:200]
        seen.add(reason)
    assert None in seen and len(seen) >= 9


def test_words_and_sentences_equal_those_of_datatrove(spacy):
    shared = SharedTokenizer("en")
    for text in samples():
        shared._words.clear(), shared._spans.clear()
        assert shared.word_tokenize(text) == spacy.word_tokenize(text)
        for line in filter(None, (line.strip() for line in text.splitlines())):
            assert shared.span_tokenize(line) == spacy.span_tokenize(line)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["word", "U.S.", "e.g.", ".", "!", "?", "...", " ", "  ", "\n", "\n\n", "\t", "\r\n", "\u2028", "\x1c", "\x85",
             "-", "http://a.b/c?d=e", "'s", "don't", ":)", ": )", "(", ")", "3.14", "“", "”", "日本。", "\u200b"]
        )
        | st.text(max_size=6),
        max_size=30,
    )
)  # fmt: skip
def test_shared_tokenisation_equals_unshared_on_any_text(spacy, pieces):
    text = "".join(pieces)
    shared = SharedTokenizer("en")
    assert shared.word_tokenize(text) == spacy.word_tokenize(text)
    for line in filter(None, (line.strip() for line in text.splitlines())):
        assert shared.span_tokenize(line) == spacy.span_tokenize(line)
    kept = "\n".join(line.strip() for line in text.splitlines()[::2])
    assert shared.word_tokenize(kept) == spacy.word_tokenize(kept)


def test_the_word_that_breaks_spacy_has_one_answer_whatever_came_before():
    text = "before IS_ALPHA after\nIS_ALPHA\nnext"
    shared = SharedTokenizer("en")
    assert [shared.word_tokenize(t) for t in (text, "x", text + " x", text)][0::3] == [["before", "after", "next"]] * 2


def test_a_text_is_tokenised_once(monkeypatch):
    calls = []
    original = SpaCyTokenizer._do_tokenize
    monkeypatch.setattr(SpaCyTokenizer, "_do_tokenize", lambda self, text: calls.append(text) or original(self, text))
    datatrove_filters.tokenizer()._words.clear()
    assert judge(FilterConfig(rules=("language", *TEXT)), "\n\n".join(PROSE)) is None
    assert len(calls) == 1


LOWER_BOUNDS = {
    "min_doc_words",
    "min_avg_word_length",
    "min_alpha_words_ratio",
    "min_stop_words",
    "min_sentences",
    "line_punct_thr",
}


def test_values_lie_on_the_failing_side_of_their_thresholds():
    failures = [failure for text in samples() if (failure := judge(PUBLISHED, text))]
    assert len({f["rule"] for f in failures}) >= 8
    for failure in failures:
        if failure["rule"] in ("c4.lorem_ipsum", "c4.curly_bracket"):
            assert failure["value"] is None and failure["detail"]
        elif failure["rule"].rsplit(".", 1)[1] in LOWER_BOUNDS:
            assert failure["value"] < failure["threshold"]
        else:
            assert failure["value"] > failure["threshold"]


@pytest.mark.parametrize(
    ("text", "config", "rule", "value"),
    [
        ("one two three. " * 4, {"quality": GopherQualityRules()}, "quality.min_doc_words", 12),
        ("the and of to " * 20, {"quality": GopherQualityRules(max_doc_words=50)}, "quality.max_doc_words", 80),
        ("ab a " * 40, {"quality": GopherQualityRules()}, "quality.min_avg_word_length", 1.5),
        (
            "same line here\nsame line here\nother",
            {"repetition": GopherRepetitionRules()},
            "repetition.dup_line_frac",
            1 / 3,
        ),
        ("One. Two. Three.", {"c4": C4Rules(min_sentences=5)}, "c4.min_sentences", 3),
        ("a b\nc d\ne.", {"fineweb": FineWebRules(line_punct_thr=0.5)}, "fineweb.line_punct_thr", 1 / 3),
    ],
)
def test_values_counted_by_hand(text, config, rule, value):
    failure = judge(FilterConfig(rules=tuple(config), **config), text)
    assert failure["rule"] == rule and failure["value"] == pytest.approx(value)


def test_c4_edits_name_each_line():
    rule = C4(C4Rules(remove_citations=True, min_words_per_line=2, max_word_length=20, min_sentences=-1))
    lines = ["A kept line[3] here.", "We use cookies here.", "Short", "x" * 21 + " long word", "Last one."]
    edits = rule.judge("\n".join(lines), {}).edits
    assert [(e.finding.rule, e.finding.value, e.before, e.after) for e in edits] == [
        ("c4.remove_citations", 1.0, lines[0], "A kept line here."),
        ("c4.policy", None, lines[1], None),
        ("c4.min_words_per_line", 1.0, lines[2], None),
        ("c4.max_word_length", 21.0, lines[3], None),
    ]
