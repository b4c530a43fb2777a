"""`mnf explain` on a run with a kept, a dropped, a copied and a kept-aside page."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import pytest
from nextflow_orchestration.explain import nearest as finder
from nextflow_orchestration.explain.find import explain
from nextflow_orchestration.explain.story import Story, print_story, visible
from nextflow_orchestration.runs.lineage import NoRun
from nextflow_tokenize.schedule import grids, token_count
from rich.console import Console

SITE = "https://docs.example/"
CODES = token_count(grids((64, 64), 8))


def told(story: Story) -> str:
    """What a person reads."""
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_story(story, console)
    return console.export_text()


def test_a_kept_page_is_told_from_record_to_pack(small_run: Any) -> None:
    story = explain(small_run.root, SITE + "kept.html")
    (found,) = story.documents
    assert found.doc_id == small_run.ids["kept"]
    assert dict(found.record)["licence"] == "CC0-1.0" and dict(found.record)["language"] == "en"
    assert [(s.stage, s.verdict) for s in found.steps] == [
        ("ingest", "edited"), ("filter", "edited"), ("dedup", "kept"), ("caption", "kept"),
    ]  # fmt: skip
    assert [n.kind for n in found.nodes] == ["text", "image", "text", "image"]
    assert [n.kind for n in found.final] == ["text", "image", "text"]
    assert "A tree" in found.final[1].words
    assert [t.tokens for t in found.tokens] == [5, CODES, 5]
    assert f"1 of {CODES} input codes differ" in found.tokens[1].words
    (place,) = found.placements
    # Two texts of five tokens, and an image of its codes and one slot more.
    assert (place.shard, place.key, place.first, place.last) == ("shard-000000", "000000-000000", 0, 10 + CODES)
    text = told(story)
    for words in ("shorter side is too small", "measured 16, threshold 64", "small.png", "shard-000000:000000-000000"):
        assert words in text
    assert "<script>alert('title')</script>" in text


def test_a_dropped_page_says_why(small_run: Any) -> None:
    (found,) = explain(small_run.root, SITE + "short.html").documents
    assert found.outcome == (
        "Not in the shards: filter dropped it (quality.min_doc_words, too few words (measured 2, threshold 30); dropped)."
    )
    assert found.placements == () and found.tokens == ()


@pytest.mark.parametrize(
    ("stage", "outcome", "part_words"),
    [
        (
            "filter",
            "Not in the shards: filter dropped it (quality.min_doc_words, too few words (measured 2, threshold 20); "
            "dropped).",
            "image.min_side, the image's shorter side is too small, in pixels (measured 6, threshold 64), node 1; the "
            "node was taken out",
        ),
        (
            "dedup",
            "Not in the shards: dedup dropped it (dedup.nothing_left, it held nothing but copies (measured 0, threshold 1); "
            "dropped).",
            "dedup.image_exact, the same image as one that stays (measured 0, threshold 0), node 1; the node was taken out",
        ),
        (
            "tokenize",
            "Not in the shards: tokenize.nothing_left, no text and no image of it could be tokenised (measured 0, threshold "
            "1); dropped.",
            "image-unreadable, the image's bytes could not be read or decoded, node 1; the node was taken out",
        ),
        (
            "pack",
            "Not in the shards: pack.nothing_left, an image of it fits no pack; dropped: segment 1 fits no pack, and none "
            f"is left out; longer-than-pack, it does not fit the length of a pack (measured {CODES + 1}, threshold 50), "
            "segment 1; the segment was taken out: raise max_length or lower the image's level.",
            "segment 1; the segment was taken out: raise max_length",
        ),
    ],
)
def test_a_drop_is_told_right_in_every_stage(losing_run: Any, stage: str, outcome: str, part_words: str) -> None:
    (found,) = explain(losing_run.root, f"{SITE}{stage}.html").documents
    assert found.outcome == outcome
    here = [step for step in found.steps if step.stage == stage]
    assert [(step.verdict, step.scope) for step in here if step.scope == "document"] == [("dropped", "document")]
    (part,) = [step for step in here if step.scope != "document"]
    assert part.verdict == "edited" and part.scope == ("segment" if stage == "pack" else "node")
    assert part_words in part.words
    # Only a node's number leads to a node: the image is shown, and of a segment nothing else in its place.
    assert part.snippet == ("" if stage == "pack" else f"{SITE}big.png (96×96 png)")


def test_a_copy_names_the_page_that_stays(small_run: Any) -> None:
    (found,) = explain(small_run.root, SITE + "copy.html").documents
    assert "dedup dropped it" in found.outcome and "measured 0.93, threshold 0.7" in found.outcome
    assert small_run.ids["kept"] in found.outcome


def test_a_record_kept_aside_says_why_and_where(small_run: Any) -> None:
    story = explain(small_run.root, SITE + "huge.html")
    (found,) = story.asides
    assert story.documents == () and found.reason == "page-too-large"
    assert "larger than the limit. 52428800 bytes" in found.words and "offset 7" in found.where
    assert "kept aside, page-too-large" in told(story)


@pytest.mark.parametrize("query", ["docs.example/kept.html", "kept.html", "HTTPS://DOCS.EXAMPLE:443/kept.html#part"])
def test_other_ways_to_write_an_address(small_run: Any, query: str) -> None:
    assert [d.doc_id for d in explain(small_run.root, query).documents] == [small_run.ids["kept"]]


def test_by_id_and_by_image(small_run: Any) -> None:
    doc_id = small_run.ids["short"]
    assert [d.doc_id for d in explain(small_run.root, doc_id).documents] == [doc_id]
    assert [d.doc_id for d in explain(small_run.root, doc_id[:10]).documents] == [doc_id]
    from nextflow_orchestration.runs.lineage import chain
    from nextflow_pipelines.contract.tables import read_table

    rows = read_table(chain(small_run.root)["ingest"].folder, "documents").to_pylist()
    sha = next(n["image"]["sha256"] for row in rows for n in row["nodes"] if n["image"])
    assert [d.doc_id for d in explain(small_run.root, sha[:12]).documents] == [small_run.ids["kept"]]


def test_a_pack_lists_its_documents(small_run: Any) -> None:
    story = explain(small_run.root, "shard-000000:000000-000000")
    assert story.pack is not None and story.pack.slots == 11 + CODES
    assert [(p.first, p.last, address) for p, address in story.pack.pieces] == [(0, 10 + CODES, SITE + "kept.html")]
    assert [d.doc_id for d in story.documents] == [small_run.ids["kept"]]
    assert "shard-000000:000000-000000" in told(story)


def test_unknown_queries_get_the_nearest(small_run: Any) -> None:
    story = explain(small_run.root, SITE + "kpt.html")
    assert not story.found and story.suggestions[0] == SITE + "kept.html"
    assert "Nearest:" in told(story)
    assert explain(small_run.root, "shard-000000:000000-000009").suggestions == ("shard-000000:000000-000000",)


@pytest.mark.parametrize(
    "slip", ["ttps://docs.example/0123/page", "https://docs.example/0123/pge", "https://dcs.example/0123/page"]
)
def test_few_of_many_are_compared_and_the_nearest_is_among_them(slip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f"https://docs.example/{number:04d}/page" for number in range(1000)]
    (nearest,) = difflib.get_close_matches(slip, words, n=1)
    compared: list[int] = []
    match = difflib.get_close_matches
    monkeypatch.setattr(finder, "COMPARED", 20)
    monkeypatch.setattr(finder.difflib, "get_close_matches", lambda *a, **k: compared.append(len(a[1])) or match(*a, **k))
    assert finder.alike(slip, words, 0.5)[0] == nearest == "https://docs.example/0123/page"
    assert compared[0] <= 80


def test_nothing_committed(tmp_path: Path) -> None:
    with pytest.raises(NoRun, match="mnf run"):
        explain(tmp_path, SITE)


def test_a_terminal_is_not_driven_by_a_page() -> None:
    assert visible("a\x1b[31mb\u202ec\nd") == "a\\x1b[31mb\\u202ec\nd"
