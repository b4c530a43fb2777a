"""Finds the regions of a page that are not its content: navigation, footers, sidebars, lists of links, hidden parts.

One pass over the tree gathers each region's text and link text, so the cost is linear in the page. Names (tags, roles,
classes) are believed only up to a share of the page's text: a site that calls its body "sidebar" keeps its body.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from lxml import etree

from nextflow_data.config import IngestConfig

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
_WORD = re.compile(r"\W+")
_HIDDEN = re.compile(r"(?:^|;)\s*(?:display\s*:\s*none|visibility\s*:\s*hidden)", re.I)


@dataclass(slots=True)
class Regions:
    """`skip` holds the elements to leave out, each with its rule; `counts` how often each rule held; `density` the smallest
    link density that was judged navigation; `characters` how many characters of text were left out."""

    skip: dict[etree._Element, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    density: float | None = None
    characters: int = 0


@dataclass(slots=True)
class _Open:
    element: etree._Element
    rule: str | None
    characters: int = 0
    linked: int = 0
    links: int = 0
    heading: bool = False
    images: int = 0


def find_regions(root: etree._Element, config: IngestConfig) -> Regions:
    """The regions of the tree under `root` that are not content. No recursion: depth costs nothing."""
    classes, roles = frozenset(config.boilerplate_classes), frozenset(config.boilerplate_roles)
    closed: list[_Open] = []
    stack: list[_Open] = []
    in_article = in_link = total = 0
    walker = etree.iterwalk(root, events=("start", "end", "comment", "pi"))
    for event, element in walker:
        if event == "start":
            tag = element.tag
            frame = _Open(element, _named(element, tag, classes, roles, in_article > 0))
            stack.append(frame)
            if tag in UNSEEN:
                walker.skip_subtree()
                continue
            in_article += tag in ("article", "main")
            in_link += tag == "a"
            frame.links = int(tag == "a" and element.get("href") is not None)
            frame.images = int(tag == "img")
            frame.heading = tag == "h1"
            _add(frame, element.text, in_link)
        elif event == "end":
            frame = stack.pop()
            tag = element.tag
            if tag not in UNSEEN:
                in_article -= tag in ("article", "main")
                in_link -= tag == "a"
            if stack:
                parent = stack[-1]
                parent.characters += frame.characters
                parent.linked += frame.linked
                parent.links += frame.links
                parent.images += frame.images
                parent.heading |= frame.heading
                _add(parent, element.tail, in_link)
            else:
                total = frame.characters
            if frame.rule is not None or tag in _LINKED:
                closed.append(frame)
        elif stack:
            _add(stack[-1], element.tail, in_link)
    return _judge(closed, total, config)


def _judge(closed: list[_Open], total: int, config: IngestConfig) -> Regions:
    regions = Regions()
    for frame in closed:
        rule = frame.rule
        named = rule is not None and rule != "hidden"
        if named and (frame.characters > config.boilerplate_max_share * total > 0 or (rule in _HEADERS and frame.heading)):
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
    element: etree._Element, tag: str, classes: frozenset[str], roles: frozenset[str], in_article: bool
) -> str | None:
    attributes = element.attrib
    if not attributes and tag not in _NAMED:
        return None
    if "hidden" in attributes and attributes["hidden"].lower() != "until-found":
        return "hidden"
    if tag in _NEVER:
        return None
    if "style" in attributes and _HIDDEN.search(attributes["style"]):
        return "hidden"
    if attributes.get("aria-hidden", "").lower() == "true" and tag != "img":
        return "hidden"
    if tag in _NAMED and not (in_article and tag in ("header", "footer", "aside")):
        return f"tag-{tag}"
    if attributes.get("role", "").strip().lower() in roles:
        return "role"
    if tag in _HEADINGS or tag == "img":
        return None
    names = attributes.get("class", "").lower().split()
    names.append(attributes.get("id", "").lower())
    if "header" in names:
        return None if in_article else "class-header"
    if any(name in classes for name in names):
        return "class"
    return None


def _add(frame: _Open, text: str | None, in_link: int) -> None:
    if text and not text.isspace():
        length = len(text) if text.isalnum() else len(_WORD.sub("", text))
        frame.characters += length
        if in_link:
            frame.linked += length
