"""datatrove's quality filters, asked for the measured value as well as the verdict.

The verdict is always datatrove's own, from its own classes. They give back only a name, so the value that failed is measured
again, with datatrove's own helpers where it has them; this is done for failing documents only. All of them share one
tokenisation of a text (`word_tokens`), which is most of their time.
"""

from __future__ import annotations

from functools import cache

from datatrove.data import Document

from nextflow_data.rules.word_tokens import SharedTokenizer


@cache
def tokenizer() -> SharedTokenizer:
    """The one that all filters of a process share; takes half a second to make."""
    return SharedTokenizer("en")


def document(text: str) -> Document:
    """A text as datatrove's filters take it."""
    return Document(text=text, id="")


def reason(result: bool | tuple[bool, str]) -> str | None:
    """The name that a filter gives to its failure, None where it passes."""
    if isinstance(result, tuple):
        return None if result[0] else result[1]
    return None if result else "unnamed"


def lines_of(text: str) -> list[str]:
    """The lines of a text without the white space around them, empty ones left out: what C4 and FineWeb read."""
    return [line for line in (line.strip() for line in text.splitlines()) if line]
