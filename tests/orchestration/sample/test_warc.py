"""The sample input: made from a tiny wheel of the test's own, so no network is needed."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import pytest
from nextflow_orchestration.sample.pages import gallery_page, skimage_photographs
from nextflow_orchestration.sample.warc import SampleError, Wheel, build
from warcio.archiveiterator import ArchiveIterator

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)

FETCHERS = '''
def _load(f):
    return f

def cat():
    """Chelsea the cat.

    An example with `fur <https://fur.example/a b>`__ & whiskers.

    Notes
    -----
    No copyright restrictions.  CC0 by the photographer.

    Returns
    -------
    cat : (300, 451, 3) uint8 ndarray
        Cat image.
    """
    return _load("data/cat.png")

def moon():
    """Surface of the moon."""
    return _load("data/moon.png")

def elsewhere():
    """A picture that is not in the wheel."""
    return _load("data/elsewhere.png")
'''

FILTERS = '''
def blur(image):
    """Blur an image.

    Every pixel becomes the mean of its neighbours.

    Examples
    --------
    >>> from skimage import data
    >>> blur(data.cat())
    """
'''


def _wheel(folder: Path, name: str, version: str, members: dict[str, bytes]) -> Wheel:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(zipfile.ZipInfo(member), data)
    return Wheel(name, version, ("any",), hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def wheels(tmp_path: Path) -> tuple[Wheel, ...]:
    docs = "pygame/docs/generated/"
    page = (
        '<html><body><p>Hi</p><img src="../_images/a%20b.png?x=1"><img src="/gone.png"><img src="https://e.example/x.png">'
    )
    return (
        _wheel(
            tmp_path / "cache",
            "pygame",
            "2.6.1",
            {docs + "tut/a.html": page.encode(), docs + "_images/a b.png": PNG, docs + "_images/unused.png": PNG},
        ),
        _wheel(
            tmp_path / "cache",
            "scikit-image",
            "0.26.0",
            {
                "skimage/data/_fetchers.py": FETCHERS.encode(),
                "skimage/data/cat.png": PNG + b"cat",
                "skimage/data/moon.png": PNG + b"moon",
                "skimage/filters/_mean.py": FILTERS.encode(),
                "scikit_image-0.26.0.dist-info/LICENSE.txt": b"BSD",
            },
        ),
        _wheel(
            tmp_path / "cache",
            "scikit-learn",
            "1.9.1",
            {
                "sklearn/datasets/images/README.txt": b"Image: china.jpg\nReleased under a licence. [1]\n\n"
                b"[1] https://creativecommons.org/licenses/by/2.0/\n\nImage: gone.jpg\nNothing.\n",
                "sklearn/datasets/images/china.jpg": b"\xff\xd8\xff",
            },
        ),
    )


def _records(path: Path) -> dict[str, tuple[str | None, bytes, str]]:
    found = {}
    with path.open("rb") as stream:
        for record in ArchiveIterator(stream, check_digests="raise"):
            if record.rec_type == "response":
                licence = record.rec_headers.get_header("MNF-Licence")
                kind = record.http_headers.get_header("Content-Type")
                found[record.rec_headers.get_header("WARC-Target-URI")] = (licence, record.content_stream().read(), kind)
    return found


def test_records_pages_images_and_licences(tmp_path: Path, wheels: tuple[Wheel, ...]) -> None:
    info = build(tmp_path / "out.warc.gz", tmp_path / "cache", wheels=wheels)
    found = _records(info.path)
    assert {address: licence for address, (licence, _, _) in found.items()} == {
        "https://pygame.example/docs/tut/a.html": "LGPL-2.1-or-later",
        "https://pygame.example/docs/_images/a%20b.png": "LGPL-2.1-or-later",
        "https://scikit-image.example/data/cat.html": "BSD-3-Clause AND CC0-1.0",
        "https://scikit-image.example/data/cat.png": "CC0-1.0",
        "https://scikit-image.example/data/moon.html": "BSD-3-Clause AND see scikit_image-0.26.0.dist-info/LICENSE.txt",
        "https://scikit-image.example/data/moon.png": "see scikit_image-0.26.0.dist-info/LICENSE.txt",
        "https://scikit-learn.example/images/china.html": "BSD-3-Clause AND CC-BY-2.0",
        "https://scikit-learn.example/images/china.jpg": "CC-BY-2.0",
    }
    assert (info.pages, info.images, sum(info.licences.values())) == (4, 4, 8)
    assert found["https://scikit-image.example/data/cat.png"][1] == PNG + b"cat"
    assert found["https://scikit-image.example/data/cat.png"][2] == "image/png"
    cat = found["https://scikit-image.example/data/cat.html"][1].decode()
    assert '<img src="cat.png" alt="Chelsea the cat.">' in cat
    assert '<a href="https://fur.example/a b">fur</a> &amp; whiskers' in cat
    assert "Used in skimage.filters.blur" in cat and "mean of its neighbours" in cat
    assert info.sha256 == hashlib.sha256(info.path.read_bytes()).hexdigest()


def test_same_wheels_same_bytes(tmp_path: Path, wheels: tuple[Wheel, ...]) -> None:
    first = build(tmp_path / "a" / "one.warc.gz", tmp_path / "cache", wheels=wheels)
    second = build(tmp_path / "b" / "two.warc.gz", tmp_path / "cache", wheels=wheels)
    assert first.path.read_bytes() == second.path.read_bytes()
    assert not list(tmp_path.rglob("*.part"))


def test_every_page_can_be_read_back_by_the_pipeline(tmp_path: Path, wheels: tuple[Wheel, ...]) -> None:
    config = pytest.importorskip("nextflow_data.config").IngestConfig()
    sources = pytest.importorskip("nextflow_data.sources.warc")
    warc = pytest.importorskip("nextflow_data.warc.records")
    info = build(tmp_path / "out.warc.gz", tmp_path / "cache", wheels=wheels)
    files = pytest.importorskip("nextflow_data.common.range_opener").LocalFiles()
    found = list(sources.WarcSource(sources.WarcConfig(files=(str(info.path),)), config).records(str(info.path), files))
    assert [r["kind"] for r in found].count("page") == info.pages
    expected = _records(info.path)
    for record in found:
        assert (
            warc.read({n: record[n] for n in ("uri", "offset", "length")}, config, files) == expected[record["address"]][1]
        )
        assert record["licence"] == expected[record["address"]][0]


def test_another_wheel_than_the_pinned_one_is_refused(
    tmp_path: Path, wheels: tuple[Wheel, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    wrong = (Wheel("pygame", "2.6.1", ("any",), "0" * 64), *wheels[1:])
    with pytest.raises(SampleError, match=r"cannot download pygame==2\.6\.1 .* a WARC of your own"):
        build(tmp_path / "out.warc.gz", tmp_path / "cache", wheels=wrong)
    assert not (tmp_path / "out.warc.gz").exists()


def test_untrusted_words_are_escaped() -> None:
    doc = '"""<script>alert(1)</script>\n\n    `x <javascript:1>`_ <b>\n    """'
    source = f'def evil():\n    {doc}\n    return _load("data/x.png")\n'
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("skimage/data/_fetchers.py", source)
        archive.writestr("skimage/data/x.png", PNG)
    with zipfile.ZipFile(buffer) as archive:
        page = gallery_page(skimage_photographs(archive)[0], "scikit-image")
    assert "<script>" not in page and "&lt;script&gt;" in page and "&lt;b&gt;" in page
