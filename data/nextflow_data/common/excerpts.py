"""Texts cut short, for captions and for people: at a word, never longer than was asked, an ellipsis where words are gone."""

from __future__ import annotations


def beginning(text: str, limit: int) -> str:
    """`text`, or of a longer one at most `limit` characters of its beginning, white space as it is."""
    if len(text) <= limit:
        return text
    cut = text[: limit - 1]
    return (cut.rsplit(" ", 1)[0] if " " in cut else cut).rstrip(" ,;:") + "…"


def shorten(text: str, limit: int) -> str:
    """The same in one line, white space in it single."""
    return beginning(" ".join(text.split()), limit)
