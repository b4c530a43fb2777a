"""A small WARC of prose and pictures, a recipe that takes it the whole way in seconds, and one standing Prefect server."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WORDS = (
    "The editor,A layer,Each brush,The selection,Your picture,This filter,The window,A channel,The histogram,One path;"
    "shows,keeps,changes,copies,moves,removes,opens,stores,measures,hides;"
    "the colours of the photograph,a small preview,every pixel in the region,the settings of a tool,what was painted before,"
    "the edge between light and dark,a list of open documents,the distance from the centre,the values that you enter,a mask;"
    "when you press the key,after the first step,in most cases,while the mouse is held,at the end of the work,for each copy,"
    "unless you say otherwise,as soon as it can,without any question,since the second version"
)

RECIPE = """\
name: tiny
root: {root}
input: [{warc}]
spark: {{files: 3, partitions: 3}}
vision_tokenizer:
  levels: [128]
  codebook_size: 32
  semantic_dim: 4
  pixel_dim: 4
  channels: 8
  decoder_channels: 8
  patch: 4
  channel_mult: [1, 1, 1]
  semantic_channels: 8
  training: {{steps: 3, batch_tokens: 64, kmeans_iterations: 1, max_images: 12, threads: 1}}
text_tokenizer: {{vocab_size: 400}}
tokenize: {{level: 128, lower_levels: []}}
pack: {{max_length: 512, samples_per_shard: 4}}
train:
  steps: 4
  checkpoint_interval: 2
  model: {{hidden_size: 32, layers: 2, heads: 2, query_groups: 2, ffn_size: 64, max_length: 512}}
  data: {{global_batch_size: 2}}
  optimizer: {{warmup_steps: 1}}
generate: {{prompt: A picture, level: 128}}
report: {{packs: 2, examples: 1}}
"""


def _prose(seed: int) -> str:
    draw = random.Random(seed)
    columns = [draw.sample(words, len(words)) for words in (part.split(",") for part in WORDS.split(";"))]
    said = [" ".join(words) + f", which chapter {draw.randrange(9999)} explains." for words in zip(*columns, strict=True)]
    return "".join(f"<p>{' '.join(said[i : i + 3])}</p>" for i in range(0, len(said), 3))


def _picture(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (7, 7, 3), dtype=np.uint8)).resize((160, 160), Image.Resampling.BICUBIC)
    noisy = np.clip(np.asarray(coarse).astype(int) + rng.integers(-20, 20, (160, 160, 3)), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(noisy).save(out, "PNG")
    return out.getvalue()


def _member(number: int, address: str, kind: str, body: bytes) -> bytes:
    http = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    head = (
        f"WARC/1.1\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:00000000-0000-4000-8000-{number:012d}>\r\n"
        f"WARC-Date: 2026-01-01T00:00:00Z\r\nWARC-Target-URI: {address}\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
    )
    return zlib.compress(head.encode() + http + b"\r\n\r\n", wbits=31)


@pytest.fixture(scope="session")
def small_warc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pages with a picture each, and at the end a record that was cut."""
    members = []
    for n in range(10):
        page = f'<html><body><h1>Topic {n}</h1>{_prose(n)}<img src="/{n}.png" alt="Figure about topic {n}"></body></html>'
        members.append(_member(2 * n, f"https://docs.example/{n}.html", "text/html", page.encode()))
        members.append(_member(2 * n + 1, f"https://docs.example/{n}.png", "image/png", _picture(n)))
    path = tmp_path_factory.mktemp("source") / "small.warc.gz"
    path.write_bytes(b"".join(members) + members[0][:200])
    return path


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose standing Prefect server is up, as after `mnf ui`."""
    from nextflow_orchestration.runs.server import standing_server

    home = tmp_path_factory.mktemp("prefect")
    environment = {**os.environ, "PREFECT_HOME": str(home)}
    environment.pop("PREFECT_API_URL", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "nextflow_orchestration.cli", "ui", "--port", "0"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while standing_server(home) is None:
            assert process.poll() is None, "the Prefect server ended"
        yield home
    finally:
        process.terminate()
        process.wait()


@dataclass(frozen=True)
class Runner:
    """Starts `mnf run` on the small recipe with a root of its own."""

    folder: Path
    warc: Path
    home: Path

    @property
    def root(self) -> Path:
        return self.folder / "run"

    @property
    def recipe(self) -> Path:
        path = self.folder / "tiny.yaml"
        path.write_text(RECIPE.format(root=self.root, warc=self.warc))
        return path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "nextflow_orchestration.cli", *(arguments or ("run", str(self.recipe)))],
            env={**os.environ, "PREFECT_HOME": str(self.home), "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, *arguments: str) -> str:
        process = self.start(*arguments)
        out, _ = process.communicate()
        assert process.returncode == 0, out
        return out


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, small_warc: Path, prefect_home: Path) -> tuple[Runner, str]:
    """A run that was never disturbed, and what it printed."""
    runner = Runner(tmp_path_factory.mktemp("whole"), small_warc, prefect_home)
    return runner, runner.finish()
