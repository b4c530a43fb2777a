"""Runs all stages, small, on given source files; as a script it can kill itself with -9 in the middle of a stage.

    python run_chain.py ROOT FILES PARTITIONS KILL_IN SOURCE...

prints a line of JSON a stage.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from nextflow_data.captioners.config import CaptionConfig
from nextflow_data.common.section import Section
from nextflow_data.config import DedupConfig, IngestConfig
from nextflow_data.rules.config import FilterConfig
from nextflow_data.sources.warc import WarcConfig
from nextflow_pipelines.registry import STAGES, run_stage
from nextflow_pipelines.spark.config import SparkConfig
from nextflow_pipelines.spark.context import Progress, RunContext, StageResult, no_progress
from nextflow_tokenize.config.pack import PackConfig
from nextflow_tokenize.config.tokenize import TextTokenizerConfig, TokenizeConfig
from nextflow_tokenize.config.vision import VisionTokenizerConfig, VisionTrainingConfig

SECTIONS: Mapping[str, Section] = {
    "ingest": IngestConfig(max_page_bytes=200_000),
    "filter": FilterConfig(),
    "dedup": DedupConfig(),
    "caption": CaptionConfig(),
    "vision_tokenizer": VisionTokenizerConfig(
        levels=(128,),
        codebook_size=32,
        semantic_dim=4,
        pixel_dim=4,
        channels=8,
        decoder_channels=8,
        patch=4,
        channel_mult=(1, 1, 1),
        semantic_channels=8,
        training=VisionTrainingConfig(
            steps=2, batch_tokens=64, kmeans_iterations=1, max_images=12, threads=1, precision="float32"
        ),
    ),
    "text_tokenizer": TextTokenizerConfig(vocab_size=400),
    "tokenize": TokenizeConfig(level=128, lower_levels=()),
    "pack": PackConfig(max_length=512, samples_per_shard=8),
}


def run_chain(
    root: Path, sources: list[Path], files: int = 3, partitions: int = 4, progress: Mapping[str, Progress] | None = None
) -> dict[str, StageResult]:
    """All stages; `progress` may name a callback for a stage. Leaves the Spark session running."""
    spark = SparkConfig(files=files, partitions=partitions)
    entries = [WarcConfig(files=tuple(str(source) for source in sources))]
    results: dict[str, StageResult] = {}
    for name in STAGES:
        ctx = RunContext(root, spark, progress=(progress or {}).get(name, no_progress))
        results[name] = run_stage(name, ctx, SECTIONS, results, entries)
    return results


def _die(done: int, total: int | None, note: str) -> None:
    if done and not note.startswith("committing"):
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """The script."""
    root, files, partitions, kill_in, *sources = sys.argv[1:]
    results = run_chain(Path(root), [Path(s) for s in sources], int(files), int(partitions), {kill_in: _die})
    for name, result in results.items():
        print(json.dumps({"stage": name, "skipped": result.skipped, "kept": result.kept, "dir": str(result.dir)}))


if __name__ == "__main__":
    main()
