"""Texts cut short: at a word, never too long."""

from nextflow_data.common.excerpts import beginning, shorten


def test_cut_at_a_word() -> None:
    assert shorten("one two three", 100) == "one two three"
    assert shorten("one two, three", 10) == "one two…"
    assert shorten("x" * 50, 10) == "x" * 9 + "…"
    assert all(len(shorten("some words here " * 9, n)) <= n for n in range(1, 60))


def test_lines_stay_or_go() -> None:
    assert shorten(" one\n two ", 100) == "one two"
    assert beginning("one\ntwo three four", 12) == "one\ntwo…"
