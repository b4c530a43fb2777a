"""The walk over a page's tree that makes its blocks: once, in document order, without recursion.

Inline markup is joined into paragraphs; block elements end them. An image inside a paragraph cuts it in two pieces that
remember that they are one paragraph, so that they are joined again if the image turns out to be an icon or absent.

Plain-text forms (our choice): a list item begins with "- " or its number and is indented by two spaces a level; a table row
is a line with cells parted by " | "; `pre` keeps its line breaks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from lxml import etree

from nextflow_data.config import IngestConfig
from nextflow_data.pages.blocks import BlockKind, ImageCandidate, ParsedPage, Removed, TextBlock
from nextflow_data.pages.boilerplate import UNSEEN, find_regions
from nextflow_data.pages.image_markup import describe_image, icon_rule

_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_BLOCKS = _HEADINGS | frozenset(
    {"html", "body", "p", "div", "section", "article", "main", "header", "footer", "nav", "aside", "ul", "ol", "dl",
     "li", "dt", "dd", "table", "thead", "tbody", "tfoot", "tr", "td", "th", "caption", "figure", "figcaption", "pre",
     "blockquote", "hr", "address", "fieldset", "legend", "form", "details", "summary", "center", "listing", "xmp",
     "plaintext", "menu", "hgroup"}
)  # fmt: skip
_HANDLED = _BLOCKS | {"img", "br", "noscript"}
"""Elements at which more is to be done than to read their text."""
_PRE = frozenset({"pre", "listing", "xmp", "plaintext"})
_FIGURE_CLASSES = frozenset({"figure", "wp-caption", "thumb", "image-container", "figure-wrapper"})
_CAPTION_CLASSES = frozenset({"caption", "figcaption", "wp-caption-text", "thumbcaption", "caption-text", "title"})
_SPACE = re.compile(r"[ \t\n\r\f\v\u00a0\u2028\u2029\x1c-\x1f\x85]+")
_SPACES, _BREAKS = re.compile(" {2,}"), re.compile(r" *\n[ \n]*")
_PILCROWS = ("¶", "🔗")


class PageWalk:
    """One pass over a tree. State: the paragraph being gathered and the stack of what surrounds it."""

    def __init__(self, page: ParsedPage, root: etree._Element, config: IngestConfig) -> None:
        self.page, self.root, self.config = page, root, config
        self.regions = find_regions(root, config)
        self.pieces: list[str] = []
        self.paragraph = 0
        self.kinds: list[BlockKind] = ["paragraph"]
        self.lists: list[int | None] = []
        self.marker: str | None = None
        self.pre = 0
        self.tables: list[bool] = []
        self.figures: list[_Figure] = []
        self.captions: list[tuple[etree._Element, int]] = []
        self.data_images = 0
        self.noscript = 0
        self.counts: dict[str, list[float | None]] = {}

    def run(self) -> None:
        walker = etree.iterwalk(self.root, events=("start", "end", "comment", "pi"))
        skip = self.regions.skip
        for event, element in walker:
            if event == "start":
                tag = element.tag
                if tag in UNSEEN or element in skip:
                    if tag == "svg" and element not in skip:
                        self.counts.setdefault("inline-svg", []).append(None)
                    walker.skip_subtree()
                    continue
                if tag in _HANDLED or self.figures:
                    self._start(element, tag)
                text = element.text
            else:
                if event == "end":
                    tag = element.tag
                    if tag in UNSEEN or element in skip:
                        if tag in _BLOCKS:
                            self._break()
                    elif tag in _HANDLED or self.captions:
                        self._end(element, tag)
                text = element.tail
            if text and not self.noscript:
                self.pieces.append(text if self.pre else _one_space(text))
        self._break()
        self._report()

    def _start(self, element: etree._Element, tag: str) -> None:
        """An element of `_HANDLED` begins, or any within a figure."""
        if tag == "img":
            self._image(element)
        elif tag == "br":
            self.pieces.append("\n" if not self._in_cell() else " ")
        elif tag == "noscript":
            self.noscript += 1
        elif tag in _BLOCKS:
            self._open_block(element, tag)
        classes = element.get("class")
        if tag in ("figure", "div", "table") and (tag == "figure" or (classes and _FIGURE_CLASSES & set(classes.split()))):
            self.figures.append(_Figure(element))
        if tag == "figcaption" or (classes and self.figures and _CAPTION_CLASSES & set(classes.split())):
            self._break()
            self.kinds.append("caption")
            self.captions.append((element, len(self.page.blocks)))

    def _open_block(self, element: etree._Element, tag: str) -> None:
        if tag in ("td", "th"):
            if self._in_cell() and self._row_has_cells(element):
                self.pieces.append(" | ")
            elif not self._in_cell():
                self._break()
            return
        if self._in_cell() and tag in ("p", "div", "center"):
            self.pieces.append(" ")
            return
        self._break()
        if tag in _HEADINGS:
            self.kinds.append("heading")
        elif tag in ("ul", "ol", "menu"):
            start = element.get("start", "")
            self.lists.append((int(start) if start.isdigit() and len(start) < 9 else 1) if tag == "ol" else None)
        elif tag == "li":
            self.kinds.append("list")
            number = self.lists[-1] if self.lists else None
            if number is not None:
                self.lists[-1] = number + 1
            self.marker = "  " * max(len(self.lists) - 1, 0) + ("- " if number is None else f"{number}. ")
        elif tag == "table":
            self.tables.append(element not in self.regions.layout_tables)
            self.kinds.append("table" if self.tables[-1] else "paragraph")
        elif tag in _PRE:
            self.pre += 1
            self.kinds.append("pre")

    def _end(self, element: etree._Element, tag: str) -> None:
        if self.captions and self.captions[-1][0] is element:
            self._close_caption()
        if self.figures and self.figures[-1].element is element:
            self.figures.pop()
        if tag == "noscript":
            self.noscript -= 1
        if tag not in _BLOCKS or (tag in ("td", "th") and self._in_cell()):
            return
        if self._in_cell() and tag in ("p", "div", "center"):
            self.pieces.append(" ")
            return
        self._break()
        if tag in _HEADINGS or tag == "li":
            self.kinds.pop()
            self.marker = None
        elif tag in ("ul", "ol", "menu"):
            self.lists.pop()
        elif tag == "table":
            self.tables.pop()
            self.kinds.pop()
        elif tag in _PRE:
            self.pre -= 1
            self.kinds.pop()

    def _close_caption(self) -> None:
        self._break()
        _, first = self.captions.pop()
        self.kinds.pop()
        text = " ".join(block.text for block in self.page.blocks[first:] if isinstance(block, TextBlock))
        if self.figures and text:
            figure = self.figures[-1]
            for image in figure.waiting:
                image.figcaption = text
            if not figure.waiting:
                figure.lead = text
            figure.waiting.clear()

    def _in_cell(self) -> bool:
        return bool(self.tables) and self.tables[-1]

    def _row_has_cells(self, element: etree._Element) -> bool:
        return any(sibling.tag in ("td", "th") for sibling in element.itersiblings(preceding=True))

    def _flush(self) -> None:
        """Makes a block of the pieces gathered; the paragraph goes on."""
        if not self.pieces:
            return
        text = "".join(self.pieces)
        self.pieces.clear()
        if text.isspace():
            return
        kind = self.kinds[-1]
        if self.pre:
            text = text.strip("\n").rstrip()
        elif kind == "table":
            text = _tidy_row(text)
        else:
            text = _SPACES.sub(" ", text).strip()
            if "\n" in text:
                text = _BREAKS.sub("\n", text).strip()
        if kind == "heading" and text.endswith(_PILCROWS):
            text = text[:-1].rstrip()
        if not text or (len(text) == 1 and not text.isalnum() and kind != "pre"):
            return
        if self.marker is not None:
            text, self.marker = self.marker + text, None
        self.page.blocks.append(TextBlock(kind, text, self.paragraph))

    def _break(self) -> None:
        self._flush()
        self.paragraph += 1

    def _image(self, element: etree._Element) -> None:
        room = self.data_images < self.config.max_data_images
        declared = describe_image(element, self.page.base, self.config, decode=room)
        rule = icon_rule(element, declared, self.config)
        last = next((b for b in reversed(self.page.blocks) if isinstance(b, ImageCandidate)), None)
        if self.noscript and last is not None and set(last.addresses) & set(declared.addresses):
            return
        if rule is not None:
            self._remove(rule[0], rule[1], rule[2], declared.addresses[0] if declared.addresses else "data:")
            return
        if declared.data_problem is not None:
            self._remove(declared.data_problem, None, None, "a data: image")
        if declared.data is None and not declared.addresses:
            if declared.data_problem is None:
                self._remove("image-without-address", None, None, (element.get("src") or "")[:100])
            return
        image = ImageCandidate(declared.addresses, declared.alt, declared.width, declared.height, declared.data)
        if declared.data is not None:
            image.data_index = self.data_images
            self.data_images += 1
        self._flush()
        self.page.blocks.append(image)
        if self.figures:
            image.figcaption = self.figures[-1].lead
            self.figures[-1].waiting.append(image)

    def _remove(self, rule: str, value: float | None, threshold: float | None, detail: str) -> None:
        self.page.removed.append(Removed(rule, value, threshold, detail))

    def _report(self) -> None:
        for rule, number in sorted(self.regions.counts.items()):
            threshold = self.config.link_density if rule == "link-density" else None
            detail = f"{number} regions"
            if rule == "link-density":
                detail += f", the least dense with {self.regions.density:.3f} of its characters in links"
            value = self.regions.density if rule == "link-density" else float(number)
            self._remove(f"boilerplate-{rule}", value, threshold, detail)
        for rule, values in sorted(self.counts.items()):
            self._remove(rule, float(len(values)), None, "drawings in the markup are not pixels")


@dataclass(slots=True)
class _Figure:
    """A figure being read: a caption that came before its images (`lead`), and images that wait for one after them."""

    element: etree._Element
    lead: str | None = None
    waiting: list[ImageCandidate] = field(default_factory=list)


def _one_space(text: str) -> str:
    """`text` with one space for each run of white space."""
    if not text.isascii():
        return _SPACE.sub(" ", text)
    found = " ".join(text.split())  # of ASCII it parts at the characters of _SPACE
    if not found:
        return " "
    return f"{' ' if text[0].isspace() else ''}{found}{' ' if text[-1].isspace() else ''}"


def _tidy_row(text: str) -> str:
    cells = [cell.strip() for cell in re.sub(r"\s+", " ", text).split(" | ")]
    while cells and not cells[-1]:
        cells.pop()
    while cells and not cells[0]:
        cells.pop(0)
    return " | ".join(cells)
