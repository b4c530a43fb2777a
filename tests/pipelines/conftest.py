"""A small WARC with planted duplicates, icons and broken records, and one Spark session for all tests."""

from __future__ import annotations

import importlib.util
import io
import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from nextflow_data.common.whole_files import file_sha256
from nextflow_pipelines.contract.stage import MANIFEST, StagePlan, check_sizes, read_manifest
from nextflow_pipelines.spark.config import SparkConfig
from nextflow_pipelines.spark.context import StageResult
from nextflow_pipelines.spark.session import spark_session, stop_session
from PIL import Image
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

SITE = "https://docs.example"
SUBJECTS = "The editor,A layer,Each brush,The selection,Your picture,This filter,The window,A channel,The histogram,One path"
VERBS = "shows,keeps,changes,copies,moves,removes,opens,stores,measures,hides"
OBJECTS = (
    "the colours of the photograph,a small preview of the drawing,every pixel in the chosen region,the settings of a tool,"
    "what was painted before,the edge between light and dark,a list of all open documents,the distance from the centre,"
    "the values that you enter in the dialogue,nothing unless the mask is active"
)
ENDS = (
    "when you press the key,after the first step,in most cases,while the mouse is held,at the end of the work,for each copy,"
    "unless you say otherwise,as soon as it can,without any question,since the second version"
)


def prose(seed: int) -> list[str]:
    """Four paragraphs of ten plain English sentences, different for each seed."""
    draw = random.Random(seed)
    parts = [draw.sample(words, len(words)) for words in (text.split(",") for text in (SUBJECTS, VERBS, OBJECTS, ENDS))]
    said = [" ".join(words) + f", which chapter {draw.randrange(9999)} explains." for words in zip(*parts, strict=True)]
    return [" ".join(said[i : i + 3]) for i in range(0, len(said), 3)]


def picture(seed: int, side: int = 160) -> Image.Image:
    """A picture with structure and texture, different for each seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (7, 7, 3), dtype=np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    noise = rng.integers(-20, 20, (side, side, 3))
    return Image.fromarray(np.clip(np.asarray(coarse).astype(int) + noise, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes that claims 50,000×50,000 pixels."""
    small = bytearray(encoded(Image.new("L", (1, 1))))
    small[16:24] = (50_000).to_bytes(4, "big") * 2
    small[29:33] = zlib.crc32(bytes(small[12:29])).to_bytes(4, "big")
    return bytes(small)


def page(title: str, paragraphs: list[str], images: list[str]) -> bytes:
    body = "".join(
        f"<p>{text}</p>" + (f'<img src="/img/{images[i]}" alt="Figure about {title}">' if i < len(images) else "")
        for i, text in enumerate(paragraphs)
    )
    return f"<html><head><title>{title}</title></head><body><h1>{title}</h1>{body}</body></html>".encode()


def build_warc(path: Path, pages: int = 14) -> None:
    """`pages` pages of prose with two pictures each (the second also on the next page's neighbour), plus what is planted."""
    with path.open("wb") as stream:
        writer = WARCWriter(stream, gzip=True)

        def response(address: str, kind: str, body: bytes, status: str = "200 OK") -> None:
            number = f"<urn:uuid:00000000-0000-4000-8000-{abs(hash_of(address)):012d}>"
            headers = StatusAndHeaders(status, [("Content-Type", kind)], protocol="HTTP/1.1")
            record = writer.create_warc_record(
                address,
                "response",
                payload=io.BytesIO(body),
                http_headers=headers,
                warc_headers_dict={"WARC-Record-ID": number, "WARC-Date": "2026-01-02T03:04:05Z"},
            )
            writer.write_record(record)

        for number in range(pages):
            images = [f"own{number}.png", "icon.png", *({3: ["torn.png"], 4: ["bomb.png"], 6: ["line.png"]}.get(number, []))]
            response(f"{SITE}/{number}.html", "text/html", page(f"Topic {number}", prose(number), images))
            response(f"{SITE}/img/own{number}.png", "image/png", encoded(picture(number)))
        near = prose(0)
        near[-1] += " And this page says one thing more than the other."
        response(f"{SITE}/near.html", "text/html", page("Topic 0", near, []))
        response(f"{SITE}/same.html", "text/html", page("Topic 1", prose(1), []))
        response(f"{SITE}/resized.html", "text/html", page("Resized", prose(901), ["small.jpg"]))
        response(f"{SITE}/img/small.jpg", "image/jpeg", encoded(picture(5).resize((120, 120)), "JPEG", quality=90))
        response(f"{SITE}/short.html", "text/html", b"<html><body><p>Too little.</p></body></html>")
        french = "<p>" + "Ceci est une page en français, qui ne parle que de la pluie et du beau temps. " * 12 + "</p>"
        response(f"{SITE}/francais.html", "text/html", f"<html><body>{french}</body></html>".encode())
        response(f"{SITE}/gone.html", "text/html", b"<p>not here</p>", "404 Not Found")
        response(f"{SITE}/img/icon.png", "image/png", encoded(picture(77, 96)))
        response(f"{SITE}/img/torn.png", "image/png", encoded(picture(99))[:900])
        response(f"{SITE}/img/bomb.png", "image/png", bomb())
        response(f"{SITE}/img/line.png", "image/png", encoded(picture(8, 64).resize((1, 10_000))))
        response(f"{SITE}/huge.html", "text/html", b"<p>" + b"<b>word</b> " * 40_000)


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode()[-5:], "big") % 10**12


@pytest.fixture(scope="session")
def warc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small WARC, and at its end a record that was cut."""
    path = tmp_path_factory.mktemp("source") / "small.warc.gz"
    build_warc(path)
    with path.open("ab") as stream:
        stream.write(path.read_bytes()[:200])
    return path


@pytest.fixture(scope="session")
def session() -> Iterator[Any]:
    """The Spark session of all tests."""
    yield spark_session(SparkConfig())
    stop_session()


@pytest.fixture(scope="session")
def script() -> Path:
    return Path(__file__).with_name("run_chain.py")


@pytest.fixture(scope="session")
def chain(script: Path) -> ModuleType:
    """`run_chain.py` as a module."""
    spec = importlib.util.spec_from_file_location("run_chain", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="session")
def results(session: Any, chain: ModuleType, warc: Path, root: Path) -> Mapping[str, StageResult]:
    """All stages run once on the small WARC."""
    done: Mapping[str, StageResult] = chain.run_chain(root, [warc])
    return done


def _damaged_files(stage_dir: Path) -> list[str]:
    """Everything wrong with a committed stage, in words: fingerprint, sizes, sha256, files that no manifest names."""
    manifest = read_manifest(stage_dir)
    plan = StagePlan(manifest["stage"], manifest["version"], manifest["parameters"], manifest["inputs"])
    wrong = check_sizes(stage_dir, manifest)
    if plan.fingerprint != manifest["fingerprint"] or stage_dir.name != f"{plan.name}-{plan.fingerprint[:12]}":
        wrong.append("the fingerprint is not that of the stage, parameters and inputs that the manifest names")
    named = {MANIFEST}
    for entry in manifest["files"]:
        named.add(entry["path"])
        path = stage_dir / entry["path"]
        if path.is_file() and path.stat().st_size == entry["bytes"] and file_sha256(path) != entry["sha256"]:
            wrong.append(f"{entry['path']} has another sha256 than the manifest says")
    for path in sorted(stage_dir.rglob("*")):
        relative = path.relative_to(stage_dir).as_posix()
        if path.is_file() and relative not in named:
            wrong.append(f"{relative} is not named by the manifest")
    return wrong


@pytest.fixture
def damaged_files() -> Callable[[Path], list[str]]:
    """Tells what is wrong with the folder of a committed stage."""
    return _damaged_files
