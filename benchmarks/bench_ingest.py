"""How fast do archives become documents?

The same WARC files with as many processes: this tree's ingest, the ingest of commit c1cd4ca (before one pass over the data),
and datatrove's WarcReader with its trafilatura extractor in a LocalPipelineExecutor, which gives text alone. Each runs in a
process of its own; what it takes to start (the JVM, its first join, Spark's workers) is shown apart and not counted, nor are
datatrove's imports.
Images are stated apart too: what one process measures of them in a second, beside Pillow with imagehash, which decodes and
hashes only. Goals: text alone 3 times datatrove's documents/s, the stage 1.5 times c1cd4ca's with images and 2.5 times
without, images twice Pillow's with imagehash. The corpus is changed copies of one archive (changed_copies.py).
Run: python benchmarks/bench_ingest.py ARCHIVE.warc.gz [--copies 32] [--rounds 3]
Needs beside [data] and [dev]: pip install trafilatura lxml_html_clean python-magic imagehash
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from changed_copies import changed_copies
from common import Section, ratio, report, table
from PIL import Image

HERE = Path(__file__).resolve().parents[1]
BEFORE = "c1cd4ca"
PACKAGES = ("data", "tokenize", ".", "pipelines", "orchestration")


def ingest(tree: Path, archives: list[Path], processes: int, scratch: Path) -> dict[str, Any]:
    """Seconds of one ingest by the packages of `tree`, and what it counted."""
    path = os.pathsep.join([*(str(tree / name) for name in PACKAGES), *sys.path[1:]])
    return _one("one_ingest.py", [scratch / "root", processes, *archives], scratch, {"PYTHONPATH": path})


def datatrove(archives: list[Path], processes: int, scratch: Path) -> dict[str, Any]:
    """Seconds of datatrove's executor, and its documents."""
    return _one("one_datatrove.py", [archives[0].parent, scratch / "root", processes], scratch, {})


def _one(script: str, arguments: list[Any], scratch: Path, variables: dict[str, str]) -> dict[str, Any]:
    shutil.rmtree(scratch / "root", ignore_errors=True)
    command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, **variables}, cwd=scratch, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def images_of(archive: Path, most: int = 150) -> list[bytes]:
    """Pictures of an archive."""
    from changed_copies import _records

    return [body for _, kind, body in _records(archive, True) if kind.startswith("image/")][:most]


def measure_ours(payloads: list[bytes]) -> int:
    """How many were measured."""
    from nextflow_data.config import IngestConfig
    from nextflow_data.images.measure import ImageRejected, measure

    done = 0
    for payload in payloads:
        try:
            measure(payload, IngestConfig())
            done += 1
        except ImageRejected:
            continue
    return done


def measure_theirs(payloads: list[bytes]) -> int:
    """How many were hashed by Pillow and imagehash."""
    import imagehash

    done = 0
    for payload in payloads:
        try:
            imagehash.phash(Image.open(io.BytesIO(payload)))
            done += 1
        except Exception:  # a decoder's own errors
            continue
    return done


def measure_all_theirs(payloads: list[bytes]) -> int:
    """How many were hashed by Pillow and imagehash and measured by Pillow, numpy and scipy, whole."""
    import imagehash
    import numpy as np
    from scipy import ndimage

    done = 0
    for payload in payloads:
        try:
            image = Image.open(io.BytesIO(payload)).convert("RGB")
        except Exception:  # a decoder's own errors
            continue
        imagehash.phash(image)
        grey = image.convert("L")
        levels, colours = np.asarray(grey, dtype=np.float32), np.asarray(image, dtype=np.float32)
        ndimage.laplace(levels).var()
        grey.entropy()
        (np.hypot(ndimage.sobel(levels, 0), ndimage.sobel(levels, 1)) > 256).mean()
        red_green = colours[..., 0] - colours[..., 1]
        yellow_blue = (colours[..., 0] + colours[..., 1]) / 2 - colours[..., 2]
        for values in (red_green, yellow_blue):
            values.std(), values.mean()
        done += 1
    return done


def timed(function: Callable[[list[bytes]], int], payloads: list[bytes]) -> tuple[float, int]:
    """Seconds and images."""
    began = time.perf_counter()
    done = function(payloads)
    return time.perf_counter() - began, done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--copies", type=int, default=32)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "reports")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        before = scratch / "before"
        subprocess.run(["git", "-C", HERE, "worktree", "add", "--detach", before, BEFORE], check=True, capture_output=True)
        try:
            sections = [_stage(options, scratch, before, pictures) for pictures in (False, True)]
        finally:
            subprocess.run(["git", "-C", HERE, "worktree", "remove", "--force", before], check=True)
    payloads = images_of(options.archive)
    sections.append(_images("images of the archive", payloads, options.rounds))
    sections.append(_images("photographs of 12 megapixels", large(payloads), options.rounds))
    remarks = [
        "datatrove's documents are text alone, those that trafilatura left anything of; ours are ordered text and images.",
        f"Rounds: {options.rounds}, in turns; ratios are medians of ratios within a round.",
    ]
    print(report("ingest", __doc__ or "", sections, remarks, options.out))


def large(payloads: list[bytes], most: int = 4) -> list[bytes]:
    """The largest of the images as JPEGs of 12 megapixels."""
    found = []
    for payload in sorted(payloads, key=len)[-most:]:
        out = io.BytesIO()
        Image.open(io.BytesIO(payload)).convert("RGB").resize((4000, 3000)).save(out, "JPEG", quality=90)
        found.append(out.getvalue())
    return found


def _images(what: str, payloads: list[bytes], rounds: int) -> Section:
    ways = {
        "Pillow and imagehash: decoded, a hash": measure_theirs,
        "ours: decoded, five measures and a hash": measure_ours,
        "Pillow, imagehash, numpy and scipy: the same measures": measure_all_theirs,
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            seconds, done = timed(way, payloads)
            if turn:
                found[name].append(seconds / done)
    theirs = next(iter(found.values()))
    rows = [
        [name, f"{median(1 / one for one in times):.1f}", f"{ratio(theirs, times):.2f}"] for name, times in found.items()
    ]
    return table(f"{len(payloads)} {what}, one process", ["", "images/s", "over the first"], rows)


def _stage(options: argparse.Namespace, scratch: Path, before: Path, pictures: bool) -> Section:
    corpus = scratch / ("pictures" if pictures else "pages")
    archives = changed_copies(options.archive, corpus, options.copies, options.processes, pictures)
    size = sum(path.stat().st_size for path in archives) / 1e6
    names = {"this tree": HERE, f"commit {BEFORE}": before}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in [*names, "datatrove, trafilatura"]}
    for _ in range(options.rounds):
        for name, tree in names.items():
            found[name].append(ingest(tree, archives, options.processes, scratch))
        if not pictures:
            found["datatrove, trafilatura"].append(datatrove(archives, options.processes, scratch))
    rows = []
    ours = [one["seconds"] for one in found["this tree"]]
    for name, runs in found.items():
        if runs:
            seconds = [one["seconds"] for one in runs]
            counts = runs[0].get("counts", {})
            documents = runs[0].get("documents") or counts["rows"]["documents"]
            measured = counts.get("images", {}).get("measured", 0)
            starts = [one["start"] for one in runs if "start" in one]
            rows.append(
                [
                    name, f"{documents:,}", f"{median(documents / s for s in seconds):.1f}",
                    f"{median(measured / s for s in seconds):.1f}" if measured else "",
                    f"{median(seconds):.1f}", f"{median(starts):.1f}" if starts else "", f"{ratio(seconds, ours):.2f}",
                ]
            )  # fmt: skip
    what = "pages and images" if pictures else "pages alone"
    title = f"{what}, {size:.0f} MB gzipped, {options.processes} processes"
    header = ["", "documents", "documents/s", "images/s", "seconds", "seconds to start", "this tree is faster by"]
    return table(title, header, rows)


if __name__ == "__main__":
    main()
