"""Tells the tables that lay out a page from those that list data: they hold blocks, or say so, or have a cell of prose.

Fed with the parts of the page that matter for it, in their order, by whoever passes over the page anyway. What is never seen
is not given and does not count. The cost: a data table with a list or two paragraphs in one of its cells is read as layout.
"""

from __future__ import annotations

from collections.abc import Mapping

from lxml import etree

_BREAKS = frozenset(
    {"h1", "h2", "h3", "h4", "h5", "h6", "table", "ul", "ol", "dl", "pre", "figure", "blockquote", "section", "article",
     "hr"}
)  # fmt: skip
TABLE_PARTS = _BREAKS | frozenset({"td", "th", "p", "div"})
"""The tags to call `start` for; `end` is for tables alone."""


class LayoutTables:
    """`layout` has them all at the page's end."""

    def __init__(self) -> None:
        self.layout: set[etree._Element] = set()
        self._open: list[etree._Element] = []
        self._paragraphs = 0

    def start(self, element: etree._Element, tag: str, attributes: Mapping[str, str]) -> None:
        """An element of TABLE_PARTS begins."""
        if self._open and (tag in _BREAKS or (tag in ("p", "div") and self._paragraphs >= 1)):
            self.layout.update(self._open if tag == "table" else self._open[-1:])
        if tag == "table":
            self._open.append(element)
            if attributes.get("role", "").lower() in ("presentation", "none"):
                self.layout.add(element)
        elif tag in ("td", "th"):
            self._paragraphs = 0
        elif tag == "p":
            self._paragraphs += 1

    def end(self) -> None:
        """A table ends."""
        self._open.pop()
