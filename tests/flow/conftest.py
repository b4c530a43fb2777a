"""A recipe that takes a small WARC the whole way in seconds, and one standing Prefect server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

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
