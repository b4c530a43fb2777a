"""What an `img` and its `picture` say: every address the image may be had at, the best first, and whether it is an icon.

The archive decides which address is used: a crawler may have saved any one candidate. Order: the largest sensible candidate
of `srcset` (or its lazy-loading twin), the lazy-loading address, the other candidates, `src`.
"""

from __future__ import annotations

import base64
import binascii
import re
from itertools import islice
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from lxml import etree

from nextflow_data.addresses import absolute_address
from nextflow_data.config import IngestConfig

_LAZY = (
    "data-src",
    "data-original",
    "data-lazy-src",
    "data-lazy",
    "data-hi-res-src",
    "data-full-src",
    "data-url",
    "data-image",
)
_LAZY_SETS = ("data-srcset", "data-lazy-srcset", "data-original-set")
_PIXELS = re.compile(r"\s*(\d{1,6})(?:\.\d+)?\s*(?:px)?\s*;?\s*$")
_STYLE_SIZE = {side: re.compile(rf"(?:^|;)\s*{side}\s*:\s*(\d{{1,6}})(?:\.\d+)?px", re.I) for side in ("width", "height")}
_DESCRIPTOR = re.compile(r"^(\d+(?:\.\d+)?)([wx])$")
_UNREADABLE = ("image/svg+xml", "image/jxl", "image/heic", "image/heif")
PLACEHOLDER_BYTES = 1024
"""A data: image of at most this many bytes beside a lazy-loading address is its placeholder."""


class Declared(NamedTuple):
    """What markup says of an image. `addresses` are canonical, best first; `data` is a decoded data: image."""

    addresses: tuple[str, ...]
    data: bytes | None
    data_problem: str | None
    alt: str | None
    width: int | None
    height: int | None


def describe_image(element: etree._Element, base: str, config: IngestConfig, decode: bool = True) -> Declared:
    """Reads an `img` (with the `source`s of a `picture` around it). `decode` False leaves data: addresses undecoded."""
    sets = [element.get(name) for name in (*_LAZY_SETS, "srcset")]
    parent = element.getparent()
    while parent is not None and parent.tag == "source":  # libxml2 does not know that `source` is void, and nests
        parent = parent.getparent()
    if parent is not None and parent.tag == "picture":
        for source in parent.iter("source"):
            if (source.get("type") or "").strip().lower() not in _UNREADABLE:
                sets += [source.get(name) for name in (*_LAZY_SETS, "srcset")]
    ranked = sorted(
        (candidate for value in sets if value for candidate in parse_srcset(value)),
        key=lambda c: _preference(c[1], c[2], config.max_srcset_width),
    )
    plain = [element.get(name) for name in (*_LAZY, "src")]
    found = [address for address, _, _ in ranked] + [value for value in plain if value]
    data_addresses = [value for value in found if _is_data(value)]
    addresses = tuple(
        dict.fromkeys(a for a in (absolute_address(base, value) for value in found if not _is_data(value)) if a)
    )
    data, problem = None, None
    if data_addresses and decode:
        data, problem = decode_data_address(data_addresses[0], config.max_data_address_bytes)
        if addresses and (problem is not None or (data is not None and len(data) <= PLACEHOLDER_BYTES)):
            data, problem = None, None
    alt = element.get("alt")
    alt = " ".join(alt.split()) if alt else None
    return Declared(addresses, data, problem, alt or None, _side(element, "width"), _side(element, "height"))


def parse_srcset(value: str) -> list[tuple[str, float, str]]:
    """(address, number, unit) of each candidate of a `srcset`; unit "w" or "x" (1x where nothing is said).

    Splits as the HTML standard does: an address runs to white space, so it may hold commas but not end in one.
    """
    candidates, rest = [], value[: 1 << 16]
    while rest := rest.lstrip(" \t\n\r\f,"):
        address, _, rest = re.sub(r"[\t\n\r\f]", " ", rest).partition(" ")
        number, unit = 1.0, "x"
        if address.endswith(","):
            address = address.rstrip(",")
        else:
            descriptors, _, rest = rest.partition(",")
            for descriptor in descriptors.split():
                if match := _DESCRIPTOR.match(descriptor):
                    number, unit = float(match[1]), match[2]
        if address:
            candidates.append((address, number, unit))
    return candidates


def _preference(number: float, unit: str, widest: int) -> tuple[int, float]:
    """Widths that are sensible first, the largest of them first; then densities; then widths too large, smallest first."""
    if unit == "w":
        return (0, -number) if number <= widest else (2, number)
    return (1, -number)


def _is_data(address: str) -> bool:
    return address.lstrip()[:5].lower() == "data:"


def decode_data_address(address: str, limit: int) -> tuple[bytes | None, str | None]:
    """(bytes, None) of a `data:` address (RFC 2397), or (None, reason). The size is judged before anything is decoded."""
    head, comma, body = address.lstrip().partition(",")
    if not comma:
        return None, "data-address-malformed"
    if len(body) > limit * 4:
        return None, "data-address-too-large"
    if head.lower().rstrip().endswith(";base64"):
        text = re.sub(r"[\s]+", "", unquote_to_bytes(body).decode("latin-1"))
        try:
            data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (binascii.Error, ValueError):
            return None, "data-address-malformed"
    else:
        data = unquote_to_bytes(body)
    return (data, None) if len(data) <= limit else (None, "data-address-too-large")


def _side(element: etree._Element, name: str) -> int | None:
    match = _PIXELS.match(element.get(name) or "") or _STYLE_SIZE[name].search(element.get("style") or "")
    return int(match[1]) if match else None


def icon_rule(
    element: etree._Element, declared: Declared, config: IngestConfig
) -> tuple[str, float | None, float | None] | None:
    """(rule, value, threshold) of the rule that makes this image an icon, or None."""
    sides = [side for side in (declared.width, declared.height) if side is not None]
    if sides and min(sides) <= 2:
        return "icon-tracking-pixel", float(min(sides)), 2.0
    if len(sides) == 2 and max(sides) <= config.icon_declared_side:
        return "icon-declared-size", float(max(sides)), float(config.icon_declared_side)
    names = [element.get("class") or ""]
    for ancestor in islice(element.iterancestors("a", "span", "div", "picture"), 2):
        names.append(ancestor.get("class") or "")
    tokens = set(re.split(r"[\s_-]+", " ".join(names).lower()))
    if tokens & set(config.icon_classes):
        return "icon-class", None, None
    return None
