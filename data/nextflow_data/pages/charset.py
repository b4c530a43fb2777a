"""Decides how a page's bytes are read as text, and says who said so.

Order: byte order mark, HTTP header, meta element, then what the bytes themselves look like. A claim counts only if the
bytes decode under it strictly; a page that claims a single-byte charset (which decodes anything) but is valid UTF-8 beyond
ASCII is UTF-8. Labels mean what browsers take them to mean (WHATWG Encoding: latin-1 and ascii are windows-1252), and only
text encodings on the list are ever looked up, since Python's codecs include some that are no charset.
"""

from __future__ import annotations

import codecs
import re
from typing import Literal, NamedTuple

import cchardet

Origin = Literal["bom", "header", "meta", "utf-8", "detected", "replaced"]

_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_META = re.compile(rb"<meta[^>]{0,512}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.\-]{2,40})", re.IGNORECASE)
_XML = re.compile(rb"^\s*<\?xml[^>]{0,256}?encoding\s*=\s*[\"']([A-Za-z0-9_:.\-]{2,40})")
_RENAMED = {"iso8859-1": "cp1252", "ascii": "cp1252", "iso8859-9": "cp1254", "iso8859-11": "cp874", "tis-620": "cp874",
            "shift_jis": "cp932", "gb2312": "gb18030", "gbk": "gb18030", "euc_kr": "cp949",
            "utf-16": "utf-16-le"}  # fmt: skip
_ALLOWED = re.compile(
    r"utf-8|utf-16-(le|be)|cp125[0-8]|cp(866|874|932|949)|iso8859-\d+|koi8-[rut]|mac-(roman|cyrillic)|gb18030|big5(hkscs)?|"
    r"euc_(jp|kr)|iso2022_jp"
)
_PRESCAN = 4096


class DecodedPage(NamedTuple):
    """A page as text; `charset` is Python's name, `origin` who named it, `lie` a claim that the bytes contradict, or None.

    Origin "replaced" means that no charset fitted and undecodable bytes became U+FFFD.
    """

    text: str
    charset: str
    origin: Origin
    lie: str | None


def codec_name(label: str | None) -> str | None:
    """The codec that a browser uses for `label`, or None where it is unknown or not a charset."""
    if not label:
        return None
    try:
        name = codecs.lookup(label.strip().lower()).name
    except (LookupError, ValueError, UnicodeError):
        return None
    name = _RENAMED.get(name, name)
    return name if _ALLOWED.fullmatch(name) else None


def decode_page(payload: bytes, declared: str | None) -> DecodedPage:
    """`payload` as text. `declared` is the HTTP header's charset. Never raises."""
    for bom, name in _BOMS:
        if payload.startswith(bom):
            text = _strict(payload[len(bom) :], name)
            if text is not None:
                return DecodedPage(text, name, "bom", None)
    as_utf8 = _strict(payload, "utf-8")
    beyond_ascii = as_utf8 is not None and not payload.isascii()
    claims: list[tuple[Origin, str]] = []
    if declared:
        claims.append(("header", declared))
    found = _XML.search(payload, 0, _PRESCAN) or _META.search(payload, 0, _PRESCAN)
    if found:
        claims.append(("meta", found[1].decode("ascii")))
    lie = None
    for origin, label in claims:
        claimed = codec_name(label)
        if origin == "meta" and claimed is not None and claimed.startswith("utf-16"):
            claimed = "utf-8"  # a meta element that can be read as ASCII is not in UTF-16 (WHATWG, prescan)
        if claimed is not None and not (beyond_ascii and claimed != "utf-8" and _single_byte(claimed)):
            text = as_utf8 if claimed == "utf-8" else _strict(payload, claimed)
            if text is not None:
                return DecodedPage(text, claimed, origin, lie)
        lie = lie or label
    if as_utf8 is not None:
        return DecodedPage(as_utf8, "utf-8", "utf-8", lie)
    guessed = codec_name((cchardet.detect(payload[: 1 << 18]) or {}).get("encoding"))
    for guess in (guessed, "cp1252"):
        text = _strict(payload, guess) if guess else None
        if guess and text is not None:
            return DecodedPage(text, guess, "detected", lie)
    last = guessed or "utf-8"
    return DecodedPage(payload.decode(last, "replace"), last, "replaced", lie)


def _single_byte(name: str) -> bool:
    return name.startswith(("cp125", "iso8859", "koi8", "mac-", "cp866", "cp874"))


def _strict(payload: bytes, name: str) -> str | None:
    try:
        return payload.decode(name)
    except (UnicodeDecodeError, LookupError):
        return None
