"""Finds the regions of a page that are not its content: navigation, footers, sidebars, lists of links, hidden parts.

One pass over the tree gathers each region's text and link text, so the cost is linear in the page. Names (tags, roles,
classes) are believed only up to a share of the page's text: a site that calls its body "sidebar" keeps its body.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from lxml import etree

from nextflow_data.config import IngestConfig
from nextflow_data.pages.layout_tables import TABLE_PARTS, LayoutTables

UNSEEN = frozenset(
    {"script", "style", "template", "svg", "canvas", "iframe", "object", "embed", "video", "audio", "select",
     "datalist", "button", "textarea", "input", "dialog", "map", "rp", "rt", "head", "applet", "frameset", "noframes",
     "progress", "meter"}
)  # fmt: skip
"""Elements whose content is never read as text. `noscript` is read for images only."""
_NAMED = frozenset({"nav", "aside", "footer", "header", "menu"})
_HEADERS = ("tag-header", "class-header")
_NEVER = frozenset({"html", "body", "main", "article", "h1"})
_LINKED = frozenset({"div", "ul", "ol", "dl", "table", "section", "td", "p", "center"})
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_ARTICLES = frozenset({"article", "main"})
_NO_ATTRIBUTES: Mapping[str, str] = {}
_WORD = re.compile(r"\W+")
_NO_WORD = bytes(code for code in range(128) if _WORD.match(chr(code)))
_HIDDEN = re.compile(r"(?:^|;)\s*(?:display\s*:\s*none|visibility\s*:\s*hidden)", re.I)


@dataclass(slots=True)
class Regions:
    """`skip` holds the elements to leave out, each with its rule; `counts` how often each rule held; `density` the smallest
    link density that was judged navigation; `layout_tables` the tables that list no data (`pages.layout_tables`)."""

    skip: dict[etree._Element, str] = field(default_factory=dict)
    layout_tables: set[etree._Element] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    density: float | None = None


@dataclass(slots=True)
class _Region:
    """A part of the page that may go. What it holds is counted as a difference: what the page held up to its beginning is
    taken from what it held up to its end."""

    element: etree._Element
    rule: str | None
    characters: int
    linked: int
    links: int
    images: int
    headings: int


def find_regions(root: etree._Element, config: IngestConfig) -> Regions:
    """The regions of the tree under `root` that are not content. No recursion: depth costs nothing."""
    classes, roles = frozenset(config.boilerplate_classes), frozenset(config.boilerplate_roles)
    closed: list[_Region] = []
    opened: list[_Region] = []
    tables = LayoutTables()
    depth = in_article = in_link = characters = linked = links = images = headings = 0
    walker = etree.iterwalk(root, events=("start", "end", "comment", "pi"))
    for event, element in walker:
        text: str | None
        if event == "start":
            depth += 1
            tag = element.tag
            items = element.items()
            attributes = dict(items) if items else _NO_ATTRIBUTES
            rule = _named(tag, attributes, classes, roles, in_article > 0) if items or tag in _NAMED else None
            if rule is not None or tag in _LINKED:
                opened.append(_Region(element, rule, characters, linked, links, images, headings))
            if tag in UNSEEN:
                walker.skip_subtree()
                continue
            if tag in TABLE_PARTS:
                tables.start(element, tag, attributes)
            if tag == "a":
                in_link += 1
                links += "href" in attributes
            elif tag == "img":
                images += 1
            elif tag == "h1":
                headings += 1
            elif tag in _ARTICLES:
                in_article += 1
            text = element.text
        else:
            if event == "end":
                depth -= 1
                tag = element.tag
                if opened and opened[-1].element is element:
                    region = opened.pop()
                    region.characters, region.linked = characters - region.characters, linked - region.linked
                    region.links, region.images = links - region.links, images - region.images
                    region.headings = headings - region.headings
                    closed.append(region)
                if tag == "a":
                    in_link -= 1
                elif tag in _ARTICLES:
                    in_article -= 1
                elif tag == "table":
                    tables.end()
            text = element.tail if depth else None
        if text and not text.isspace():
            length = _letters(text)
            characters += length
            if in_link:
                linked += length
    regions = _judge(closed, characters, config)
    regions.layout_tables = tables.layout
    return regions


def _judge(closed: list[_Region], total: int, config: IngestConfig) -> Regions:
    regions = Regions()
    for frame in closed:
        rule = frame.rule
        named = rule is not None and rule != "hidden"
        if named and (frame.characters > config.boilerplate_max_share * total > 0 or (rule in _HEADERS and frame.headings)):
            rule = None
        if (
            rule is None
            and frame.element.tag in _LINKED
            and frame.links >= config.link_density_min_links
            and not frame.images
        ):
            density = frame.linked / max(frame.characters, 1)
            if density >= config.link_density and frame.characters <= config.boilerplate_max_share * total:
                rule = "link-density"
                regions.density = density if regions.density is None else min(density, regions.density)
        if rule is not None:
            regions.skip[frame.element] = rule
    for element, rule in regions.skip.items():
        if not any(ancestor in regions.skip for ancestor in element.iterancestors()):
            regions.counts[rule] += 1
    return regions


def _named(
    tag: str, attributes: Mapping[str, str], classes: frozenset[str], roles: frozenset[str], in_article: bool
) -> str | None:
    if "hidden" in attributes and attributes["hidden"].lower() != "until-found":
        return "hidden"
    if tag in _NEVER:
        return None
    if "style" in attributes and _HIDDEN.search(attributes["style"]):
        return "hidden"
    if "aria-hidden" in attributes and attributes["aria-hidden"].lower() == "true" and tag != "img":
        return "hidden"
    if tag in _NAMED and not (in_article and tag in ("header", "footer", "aside")):
        return f"tag-{tag}"
    if "role" in attributes and attributes["role"].strip().lower() in roles:
        return "role"
    if tag in _HEADINGS or tag == "img":
        return None
    names = attributes.get("class", "").lower().split()
    if "id" in attributes:
        names.append(attributes["id"].lower())
    if "header" in names:
        return None if in_article else "class-header"
    return None if classes.isdisjoint(names) else "class"


def _letters(text: str) -> int:
    """How many letters, digits and underscores."""
    if text.isascii():
        return len(text.encode().translate(None, _NO_WORD))
    return len(_WORD.sub("", text))
