"""One spelling for each web address, so that an image a page names finds the record that holds it.

RFC 3986 §6.2.2 normalisation (case of scheme and host, percent-encoding, dot segments, default ports) without the fragment.
What it costs: two addresses a server answers differently could only be told apart by such spellings, which none should do.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

_DEFAULT_PORT = {"http": 80, "https": 443}
_SAFE = ":@!$&'()*+,;=~-._"
_WHITESPACE = re.compile(r"[\t\n\r]+")


def canonical_address(address: str) -> str | None:
    """`address` in its one spelling, or None where it is no http(s) address. Never raises."""
    try:
        parts = urlsplit(_WHITESPACE.sub("", address).strip().strip("<>"))
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if parts.scheme not in _DEFAULT_PORT or not host:
        return None
    if ":" in host:
        host = f"[{host}]"
    netloc = host if port in (None, _DEFAULT_PORT[parts.scheme]) else f"{host}:{port}"
    return urlunsplit((parts.scheme, netloc, _path(parts.path), quote(parts.query, safe=_SAFE + "/?%"), ""))


def absolute_address(base: str, reference: str) -> str | None:
    """`reference` as a page with base address `base` means it, in its one spelling; None where it names no http(s) thing."""
    reference = _WHITESPACE.sub("", reference).strip()
    if not reference:
        return None
    try:
        return canonical_address(urljoin(base, reference.replace("\\", "/")))
    except ValueError:
        return None


def site_of(address: str) -> str:
    """The host an address belongs to, in lower case; the whole address where it has none."""
    try:
        return urlsplit(address).hostname or address
    except ValueError:
        return address


def _path(path: str) -> str:
    segments: list[str] = []
    pieces = path.split("/")
    for number, piece in enumerate(pieces):
        if piece == "..":
            if len(segments) > 1:
                segments.pop()
        elif piece != ".":
            segments.append(piece)
            continue
        if number == len(pieces) - 1:
            segments.append("")
    return (
        "/".join(quote(unquote(s, errors="surrogateescape"), safe=_SAFE, errors="surrogateescape") for s in segments) or "/"
    )
